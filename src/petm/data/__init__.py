"""Inputs: one reader for each format, data sets by index, and streams."""
