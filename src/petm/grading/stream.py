"""Grading a stream of inputs: the next batches are read while the model runs."""

import reprlib
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from petm.data.labels import UNLABELLED, Label, class_numbers, enumerated, numbers_are_names, plain_label
from petm.data.reader import Reader, Readings
from petm.data.score_rows import ScoreReader
from petm.data.sources import Row, Source
from petm.errors import DataError, PetmWarning
from petm.grading.grade_table import grade_table
from petm.models import BATCH_SIZE
from petm.selective.audit import check_audit

if TYPE_CHECKING:
    from petm.grading.grader import Grader
    from petm.grading.onnx_grader import OnnxGrader

AnyGrader: TypeAlias = "Grader | OnnxGrader"

_AHEAD = 2
"""Batches that are read ahead of the model."""


class Place(NamedTuple):
    """The place before a row of a source, and the state of the run's `petm.adapter.cascade.Allowance` there."""

    source: int = 0
    row: int = 0
    allowance: int | None = None


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
    audit: float | None = None,
    seed: int = 0,
) -> Iterator[Graded]:
    """Yields the grades of all inputs in their order, a batch at a time, in constant memory.

    One allowance of second opinions serves them all, and a warning at the end says where it did not suffice. An
    unreadable input is a row with the reason. A file that breaks off adds such a row, and the next file follows. A
    warning at the end names true labels that are none of the classes.

    Args:
        grader: The grader.
        sources: The inputs.
        reader: Turns them into the model's inputs.
        start: The place of the first input.
        batch_size: Inputs in one pass.
        labelled: Whether the tables hold the sources' true labels.
        audit: Chance of each trusted row to be drawn for review, above 0; the tables then hold chances, draws and
            hashes. None draws none.
        seed: Seed of the draw.

    Raises:
        ArgumentError: ``audit`` is no such chance.
        DataError: True labels can be names or numbers of different classes (`petm.data.labels.class_numbers`).
        ModelError: The model cannot take the inputs.
    """
    check_audit(audit)
    drawing: Any = {"audit": audit, "seed": seed, "has_second": grader.has_second}
    drawing["has_candidates"] = grader.sets is not None
    classes = grader.origin.model.classes
    true = [_TrueLabels(source, classes) for source in sources] if labelled else None
    allowance, unknown = grader.allow(start.allowance), Counter[str]()
    for rows, readings, after in _read_ahead(
        _rows(sources, start, batch_size), partial(reader.read, hashed=audit is not None)
    ):
        inputs = readings.inputs
        grades = grader.grade_batch(inputs, allowance=allowance) if inputs is not None else None
        if isinstance(reader, ScoreReader) and (groups := grader.threshold.groups) is not None:
            drawing["groups"] = groups.told(inputs.groups) if inputs is not None else []
            unknown.update(groups.unknown(inputs.groups) if inputs is not None else {})
        labels = [None if row.label is None else true[after.source].number(row.label) for row in rows] if true else None
        paths, numbers = [row.path for row in rows], [row.number for row in rows]
        drawing["hashes"] = readings.hashes
        if reader.encoder is not None:
            drawing["texts"] = [row.content if isinstance(row.content, str) else None for row in rows]
        table = grade_table(paths, numbers, grades, classes, reasons=readings.reasons, true_labels=labels, **drawing)
        yield Graded(table, after._replace(allowance=allowance.state))
    allowance.tell()
    for each in true or ():
        each.warn()
    if unknown:
        some = ", ".join(f"{name} ({count:,} rows)" for name, count in unknown.most_common(5))
        warnings.warn(
            f"groups: expected those of the calibration, got {len(unknown):,} others: {some}. Nothing is guaranteed "
            f"for these. Calibrate again with rows of them.",
            PetmWarning,
            stacklevel=2,
        )


class _TrueLabels:
    """The class numbers of the true labels of one source, whose numbers are all names or all class numbers."""

    def __init__(self, source: Source, classes: Sequence[str]) -> None:
        self._source, self._classes = source.name, classes
        self._numbers, self._unknown, self._inputs = dict[Label, int](), set[str](), 0
        if numbers_are_names(classes):
            seen = set[Label | None]()
            with suppress(DataError):  # the file breaks off there, and grading says so
                seen.update(_plain(row.label) for rows in source.rows(0, sys.maxsize, BATCH_SIZE) for row in rows)
            self._learn({label for label in seen if label is not None})

    def number(self, said: object) -> int | None:
        """Returns the class number of a label, or None where it stands for no class."""
        label = _plain(said)
        if label is not None and label not in self._numbers:
            self._learn({label})
        if label is not None and label not in self._numbers:
            self._inputs += 1
            if len(self._unknown) < 6:
                self._unknown.add(str(label))
        return None if label is None else self._numbers.get(label)

    def warn(self) -> None:
        """Warns of labels that stand for no class."""
        if self._inputs:
            got = f"{', '.join(sorted(self._unknown))} as well, for {self._inputs:,} inputs"
            rule = f"true labels among the classes {enumerated(self._classes)}"
            warnings.warn(
                f"{self._source}: expected {rule}, got {got}. These are not judged.", PetmWarning, stacklevel=2
            )

    def _learn(self, labels: set[Label]) -> None:
        try:
            self._numbers |= class_numbers(labels, self._classes)
        except ValueError as error:
            raise DataError(f"{self._source}: {error}") from error


def _plain(label: object) -> Label | None:
    try:
        value = plain_label(label)
    except ValueError:  # it is none, and stands for no class
        value = f"({reprlib.repr(label)})"
    return None if value == UNLABELLED else value


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


def _read_ahead(found: Iterator[tuple[list[Row], Place]], read: Callable[[list[Row]], Readings]) -> Iterator[_Read]:
    def read_next() -> _Read | None:
        rows, after = next(found, ([], Place()))
        return (rows, read(rows), after) if rows else None

    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(read_next) for _ in range(_AHEAD))
        try:
            while (ready := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(read_next))
                yield ready
        finally:
            thread.shutdown(cancel_futures=True)
