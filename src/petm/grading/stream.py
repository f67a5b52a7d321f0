"""Grading a stream of inputs: the next batches are read while the model runs."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from petm.data.labels import class_number
from petm.data.reader import Reader, Readings
from petm.data.sources import Row, Source
from petm.errors import DataError
from petm.grading.grade_table import grade_table
from petm.models import BATCH_SIZE

if TYPE_CHECKING:
    from petm.grading.grader import Grader
    from petm.grading.onnx_grader import OnnxGrader

AnyGrader: TypeAlias = "Grader | OnnxGrader"

_AHEAD = 2
"""Batches that are read ahead of the model."""


class Place(NamedTuple):
    """The place before a row of a source."""

    source: int = 0
    row: int = 0


class Graded(NamedTuple):
    """Graded inputs: a ``pyarrow.Table`` of `petm.grading.grade_table.SCHEMA`, and the place behind them."""

    table: Any
    after: Place


def grade_stream(
    grader: AnyGrader,
    sources: Sequence[Source],
    reader: Reader,
    *,
    start: Place = Place(),  # noqa: B008 - it is immutable
    batch_size: int = BATCH_SIZE,
    labelled: bool = False,
) -> Iterator[Graded]:
    """Yields the grades of all inputs in their order, a batch at a time, in constant memory.

    An unreadable input is a row with the reason. A file that breaks off adds such a row, and the next file follows.

    Args:
        grader: The grader.
        sources: The inputs.
        reader: Turns them into the model's inputs.
        start: The place of the first input.
        batch_size: Inputs in one pass.
        labelled: Whether the tables hold the sources' true labels.

    Raises:
        ModelError: The model cannot take the inputs.
    """
    classes = grader.origin.model.classes
    for rows, readings, after in _read_ahead(_rows(sources, start, batch_size), reader):
        grades = grader.grade_batch(readings.inputs) if readings.inputs is not None else None
        labels = [class_number(row.label, classes) for row in rows] if labelled else None
        paths, numbers = [row.path for row in rows], [row.number for row in rows]
        table = grade_table(paths, numbers, grades, classes, reasons=readings.reasons, true_labels=labels)
        yield Graded(table, after)


def _rows(sources: Sequence[Source], start: Place, size: int) -> Iterator[tuple[list[Row], Place]]:
    for index in range(start.source, len(sources)):
        row = start.row if index == start.source else 0
        try:
            for rows in sources[index].rows(row, sys.maxsize, size):
                row += len(rows)
                yield rows, Place(index, row)
        except DataError as error:
            yield [Row(sources[index].name, None, fault=str(error))], Place(index + 1)


_Read: TypeAlias = tuple[list[Row], Readings, Place]


def _read_ahead(found: Iterator[tuple[list[Row], Place]], reader: Reader) -> Iterator[_Read]:
    def read_next() -> _Read | None:
        rows, after = next(found, ([], Place()))
        return (rows, reader.read(rows), after) if rows else None

    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(read_next) for _ in range(_AHEAD))
        try:
            while (ready := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(read_next))
                yield ready
        finally:
            thread.shutdown(cancel_futures=True)
