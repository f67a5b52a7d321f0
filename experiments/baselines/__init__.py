"""Detectors that a user would try instead of a second opinion; all are fitted and asked in one way."""
