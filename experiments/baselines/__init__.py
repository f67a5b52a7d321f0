"""Detectors that a user would try instead, and that are no evidence of petm."""
