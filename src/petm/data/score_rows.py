"""Tables of class probabilities or scores as inputs that are graded row by row."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from petm._internal.storage import Located, identity_of
from petm.data.labels import beside, class_numbers, enumerated
from petm.data.reader import Readings, content_hash
from petm.data.scores import matrix_of
from petm.data.sources import Row, Source
from petm.data.tables import Table, open_table
from petm.selective.groups import coded
from petm.selective.plain import Columns, Predictions, number_faults

_HINT = "Name the columns as in the table that petm calibrate read, or calibrate again."


class ScoreRows(Source):
    """The rows of a table as inputs of a calibration, each a JSON list of its cells, in the order of the columns."""

    def __init__(self, path: Located, columns: Columns, label: str | None) -> None:
        self.name = str(path)
        self._columns, self._untyped = columns, path.suffix.lower() == ".csv"
        needed = columns.all
        self._width, self._cells = len(needed), (*needed, *([label] if label else []))
        self._table: Table = open_table(path, self._cells, required=needed, hint=_HINT)

    def count(self) -> int:
        """Returns the number of rows."""
        return self._table.count()

    def identity(self) -> str:
        """Returns path, size, time of change and columns."""
        return f"{identity_of(self._table.path)} {' '.join(self._cells)}"

    def rows(self, start: int, stop: int, size: int) -> Iterator[list[Row]]:
        """Yields the rows from ``start`` to before ``stop``, up to ``size`` at a time."""
        records = self._table.records(start, stop, size)
        while some := [self._row(record) for record in islice(records, size)]:
            yield some

    def _row(self, record: Any) -> Row:
        cells, label = record.values[: self._width], record.values[self._width :]
        told: Any = label[0] if label else None
        with suppress(ValueError):  # whoever needs it refuses it
            told = beside(told, None, untyped=self._untyped)
        content = json.dumps(cells, default=str) if record.fault is None else None
        return Row(self.name, record.number, content, told, record.fault)


@dataclass(frozen=True)
class ScoreReader:
    """Makes predictions of `ScoreRows`; a row that cannot be used gets a reason."""

    columns: Columns
    classes: tuple[str, ...]
    encoder: None = None

    def read(self, rows: Sequence[Row], *, hashed: bool = False) -> Readings:
        """Returns the predictions of the rows that can be read, and why the others cannot."""
        width = len(self.columns.numbers)
        blank = [None] * len(self.columns.all)
        told = [blank if row.fault is not None else json.loads(str(row.content)) for row in rows]
        cells = list(zip(*told, strict=True))
        values, unlike = matrix_of(cells[:width], self.columns)
        reasons = {row: reason for row, (_, reason) in number_faults(values, self.columns).items()} | unlike
        numbers = None
        if self.columns.prediction:
            numbers = np.array([self._class_of(cell, row, reasons) for row, cell in enumerate(cells[width])], np.int64)
        reasons |= {place: row.fault for place, row in enumerate(rows) if row.fault is not None}
        good = np.array([place not in reasons for place in range(len(rows))], bool)
        kinds, inputs = self.columns.shape[0], None
        if good.any():
            chosen = None if numbers is None else numbers[good]
            names = self.columns.groups
            texts = {name: coded({name: cells[self.columns.all.index(name)]}, name).rows(good) for name in names}
            inputs = Predictions.checked(chosen, values[good, :kinds], values[good, kinds:], self.columns, texts)
        hashes = [content_hash(row.content) for row in rows] if hashed else None
        return Readings(inputs, [reasons.get(place) for place in range(len(rows))], hashes)  # type: ignore[arg-type]

    @cached_property
    def _places(self) -> dict[object, int]:
        return {}

    def _class_of(self, cell: object, row: int, reasons: dict[int, str]) -> int:
        if cell not in self._places:
            try:
                label = beside(cell, None, untyped=isinstance(cell, str))
                self._places[cell] = -1 if label is None else class_numbers([label], self.classes).get(label, -1)
            except ValueError:
                self._places[cell] = -1
        if self._places[cell] < 0:
            got = "nothing" if cell is None else f"{cell!r:.60}"
            wanted = f"one of the classes {enumerated(self.classes)} in column '{self.columns.prediction}'"
            reasons.setdefault(row, f"expected {wanted}, got {got}")
        return self._places[cell]
