"""Groups of inputs, such as those of a site or a device, which may overlap.

A group is a value of a column. The combinations of values are *cells*, which do not overlap, and each group is a union
of cells.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petm._internal.records import Json, Record
from petm.errors import ArgumentError, BundleError

Cell = tuple[str | None, ...]


class Coded(NamedTuple):
    """A column of texts: the different ones, and of each row the place among them, int64 ``(N,)``, -1 for none."""

    names: tuple[str, ...]
    codes: NDArray[np.int64]

    def rows(self, kept: NDArray[Any]) -> "Coded":
        """Returns the column at some places, or where a mask is true."""
        return Coded(self.names, self.codes[kept])


Values = Sequence[object] | NDArray[Any] | Coded
"""``N`` values that are compared as `text_of` writes them; None, NaN and an empty text are none."""
_WHOLE = re.compile(r"(-?[0-9]+)\.0*")


def text_of(value: object) -> str:
    """Returns a value of a group column as text: 1, 1.0 and "1.0" are one, as files write whole numbers either way."""
    text = "" if value is None or value != value else str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def coded(values: Mapping[str, Values], column: str) -> Coded:
    """Returns the texts of a column; raises ArgumentError where it is absent."""
    if column not in values:
        raise ArgumentError(f"group_columns: expected the column {column!r}, got {list(values)}. Add it.")
    found = values[column]
    if isinstance(found, Coded):
        return found
    known: dict[object, int] = {}
    codes = np.fromiter((known.setdefault(each, len(known)) for each in found), np.int64, len(found))
    texts = [text_of(each) for each in known]
    names = tuple(dict.fromkeys(text for text in texts if text))
    places = {name: place for place, name in enumerate(names)}
    return Coded(names, np.array([places.get(text, -1) for text in texts], np.int64)[codes])


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
            values: ``(N,)`` for each column; a value that is not known counts as one without data enough.

        Raises:
            ArgumentError: A column is absent.
        """
        kept = [sorted({cell[at] or "" for cell in self.cells} - {""}) for at in range(len(self.columns))]
        numbers = cell_numbers([coded(values, column) for column in self.columns], kept)
        found, inverse = np.unique(numbers, return_inverse=True)
        known = {number_of(cell, kept): place for place, cell in enumerate(self.cells)}
        others = len(self.cells)
        places = [known.get(each, others if each else others + 1) for each in found.tolist()]
        return np.array(places, np.int64)[inverse.reshape(-1)]

    @property
    def names(self) -> tuple[str, ...]:
        """What each place stands for, in words."""
        cells = (
            ", ".join(f"{column} {value or 'other'}" for column, value in zip(self.columns, cell, strict=True))
            for cell in self.cells
        )
        return (*cells, "rare combination", "other groups")

    def told(self, values: Mapping[str, Values]) -> list[str]:
        """Returns what the place of each sample stands for, in words, ``N`` texts."""
        names = self.names
        return [names[place] for place in self.places(values).tolist()]

    def unknown(self, values: Mapping[str, Values]) -> dict[str, int]:
        """Returns the values that the calibration had not, in words, and the number of samples of each."""
        found: dict[str, int] = {}
        for at, column in enumerate(self.columns):
            texts = coded(values, column)
            known = {cell[at] for cell in self.cells} | set(self.rare[at])
            counts = np.bincount(texts.codes + 1, minlength=len(texts.names) + 1)[1:].tolist()
            new = zip(texts.names, counts, strict=True)
            found |= {f"{column} {name}": count for name, count in new if count and name not in known}
        return found

    @property
    def members(self) -> dict[str, tuple[int, ...]]:
        """The places of each group with a guarantee, by its column and value in words."""
        found: dict[str, tuple[int, ...]] = {}
        for at, column in enumerate(self.columns):
            for value in sorted({cell[at] or "" for cell in self.cells} - {""}):
                places = (place for place, cell in enumerate(self.cells) if cell[at] == value)
                found[f"{column} {value}"] = tuple(places)
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
        empty = any(not value for values in rare for value in values) or any("" in cell for cell in cells)
        if not fitting or empty or len(set(cells)) < len(cells):
            raise BundleError(f"{record.place}: expected cells and rare values for each of {columns}. Calibrate again.")
        return cls(columns, cells, tuple(tuple(map(str, values)) for values in rare))


def cell_numbers(columns: Sequence[Coded], kept: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Returns a number for each row's combination of kept values, int64 ``(N,)``; 0 where it has none of them."""
    numbers = np.zeros(len(columns[0].codes), np.int64)
    for column, values in zip(columns, kept, strict=True):
        digit = {value: place for place, value in enumerate(values, 1)}
        digits = np.array([*(digit.get(name, 0) for name in column.names), 0], np.int64)
        numbers = numbers * (len(values) + 1) + digits[column.codes]
    return numbers


def number_of(cell: Cell, kept: Sequence[Sequence[str]]) -> int:
    """Returns the number that `cell_numbers` gives a cell."""
    found = 0
    for value, values in zip(cell, kept, strict=True):
        found = found * (len(values) + 1) + (0 if value is None else list(values).index(value) + 1)
    return found


def cell_of(number: int, kept: Sequence[Sequence[str]]) -> Cell:
    """Returns the cell that `cell_numbers` gives a number."""
    found: list[str | None] = []
    for values in reversed(kept):
        number, digit = divmod(number, len(values) + 1)
        found.append(values[digit - 1] if digit else None)
    return tuple(reversed(found))


def _rows(record: Record, name: str) -> tuple[Cell, ...]:
    """An entry that lists lists of texts or nulls."""
    rows = record.sequence(name)
    good = all(isinstance(row, list) and all(isinstance(each, str | None) for each in row) for row in rows)
    if not good:
        raise BundleError(f"{record.place}, {name}: expected lists of texts. Calibrate again.")
    return tuple(tuple(row) for row in rows if isinstance(row, list))
