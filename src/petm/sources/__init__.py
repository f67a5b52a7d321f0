"""Inputs to be graded, read in their order and never all at once: files, folders, tables, lists of paths."""

from petm.sources.base import Rows, Source
from petm.sources.opening import open_source, open_sources
from petm.sources.reading import Reader, Readings

__all__ = ["Reader", "Readings", "Rows", "Source", "open_source", "open_sources"]
