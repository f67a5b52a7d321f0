"""Groups of inputs, such as those of a site or a device, which may overlap.

A group is a value of a column. The combinations of values are *cells*, which do not overlap, and each group is a union
of cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.records import Json, Record
from petm.errors import ArgumentError, BundleError

Cell = tuple[str | None, ...]
Values = Sequence[object] | NDArray[Any]


@dataclass(frozen=True)
class Groups:
    """The part of a threshold that serves each sample.

    Attributes:
        columns: Names of the columns, one or more.
        cells: Combinations of values with data enough; None stands for values without data enough. The samples of
            ``cells[i]`` have the place ``i``.
        rare: Values without data enough, for each column.

    Samples in a combination of which the calibration samples hold too few have the place ``len(cells)``, where nothing
    is trusted, as they belong to groups with a guarantee. Those in no group with a guarantee have the next place.
    """

    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    rare: tuple[tuple[str, ...], ...]

    def places(self, values: Mapping[str, Values]) -> NDArray[np.int64]:
        """Returns the place of each sample's threshold, int64 ``(N,)``.

        Args:
            values: ``(N,)`` for each column; a value that is None or not known counts as one without data enough.

        Raises:
            ArgumentError: A column is absent.
        """
        kept = [{cell[place] for cell in self.cells} - {None} for place in range(len(self.columns))]
        known = {cell: place for place, cell in enumerate(self.cells)}
        rows = zip(*(texts_of(values, column) for column in self.columns), strict=True)
        cells = (tuple(each if each in of else None for each, of in zip(row, kept, strict=True)) for row in rows)
        rest: Cell = (None,) * len(self.columns)
        pooled = len(self.cells) + 1
        return np.fromiter((known.get(cell, pooled if cell == rest else pooled - 1) for cell in cells), np.int64)

    def name(self, place: int) -> str:
        """Returns what a place stands for, in words."""
        if place >= len(self.cells):
            return ("rare combinations", "other groups")[place - len(self.cells)]
        pairs = zip(self.columns, self.cells[place], strict=True)
        return ", ".join(f"{column} {'other' if value is None else value}" for column, value in pairs)

    def members(self) -> dict[tuple[str, str], list[int]]:
        """Returns the places of the cells of each group with a guarantee, by column and value."""
        found: dict[tuple[str, str], list[int]] = {}
        for place, cell in enumerate(self.cells):
            for column, value in zip(self.columns, cell, strict=True):
                if value is not None:
                    found.setdefault((column, value), []).append(place)
        return found

    def as_json(self) -> dict[str, Json]:
        """Returns the fields in JSON's types."""
        return {
            "columns": list(self.columns),
            "cells": [list(cell) for cell in self.cells],
            "rare": [list(values) for values in self.rare],
        }

    @classmethod
    def from_json(cls, record: Record) -> "Groups":
        """Returns what `as_json` wrote; raises BundleError where an entry breaks its rule."""
        columns = record.texts("columns")
        cells, rare = (_rows(record, name) for name in ("cells", "rare"))
        fitting = columns and len(rare) == len(columns) and all(len(cell) == len(columns) for cell in cells)
        if not fitting or any(value is None for values in rare for value in values):
            raise BundleError(f"{record.place}: expected cells and rare values for each of {columns}. Fit again.")
        return cls(columns, cells, tuple(tuple(map(str, values)) for values in rare))


def _rows(record: Record, name: str) -> tuple[Cell, ...]:
    """An entry that lists lists of texts or nulls."""
    rows = record.sequence(name)
    good = all(isinstance(row, list) and all(isinstance(each, str | None) for each in row) for row in rows)
    if not good:
        raise BundleError(f"{record.place}, {name}: expected lists of texts. Fit again.")
    return tuple(tuple(row) for row in rows if isinstance(row, list))


def texts_of(values: Mapping[str, Values], column: str) -> list[str | None]:
    """Returns a column's values as text, None where there is none; raises ArgumentError where the column is absent."""
    if column not in values:
        raise ArgumentError(f"group_columns: expected the column {column!r}, got {list(values)}. Add it.")
    missing = (None, "")
    return [None if each in missing or each != each else str(each) for each in values[column]]
