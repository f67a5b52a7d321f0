"""The inputs that people have labelled, read again from where they were graded or where the page keeps its copies."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from petm.data.base import Data, TensorData
from petm.data.fields import as_batch, concatenate
from petm.data.labels import UNLABELLED, Place, refuse_faults
from petm.data.reader import Reader
from petm.data.reviewed import Decided
from petm.data.sources import Content, Row, open_sources
from petm.data.tables import open_table
from petm.errors import DataError

_AT_A_TIME = 256
"""Images that are decoded at a time."""


@dataclass(frozen=True, eq=False)
class LabelledInputs:
    """Inputs with their true classes, in memory.

    Attributes:
        data: ``N`` samples.
        chance: float64 ``(N,)``, with which each was drawn to be labelled; NaN where it had none, or that is not known.
        skipped: Why labelled inputs were left out, by name.
    """

    data: Data
    chance: NDArray[np.float64]
    skipped: Mapping[str, str]


def read_labelled(
    decided: Decided,
    files: Sequence[str | Path],
    reader: Reader,
    classes: Sequence[str],
    *,
    text_column: str | None = None,
    skip_bad: bool = False,
) -> LabelledInputs:
    """Returns the inputs that have a label; those of which nobody can tell the class have none.

    Args:
        decided: The decisions.
        files: The files of labels that they are from; `petm serve` keeps copies of the inputs there.
        reader: Makes the model's inputs.
        classes: Class names of the grader.
        text_column: Column of texts in graded tables; None reads images.
        skip_bad: Whether to leave out what cannot be read.

    Raises:
        DataError: An input is no longer there, or cannot be read.
    """
    known = [number for number, label in enumerate(decided.labels.tolist()) if label != UNLABELLED]
    copies = _copies(files, {decided.sha256[number] for number in known} - {None})
    wanted = {decided.places[number] for number in known if decided.sha256[number] not in copies} - {None}
    found = {(row.path, row.number): row for row in _graded(wanted, text_column)}
    rows = [_row(decided.places[number], copies.get(decided.sha256[number]), found) for number in known]
    batches, reasons = [], list[str | None]()
    step = len(rows) if reader.encoder else _AT_A_TIME  # texts are padded to one length
    for start in range(0, len(rows), step):
        readings = reader.read(rows[start : start + step])
        batches += [] if readings.inputs is None else [as_batch(readings.inputs)]
        reasons += readings.reasons
    faults = {_name(row): reason for row, reason in zip(rows, reasons, strict=True) if reason is not None}
    if not skip_bad:
        refuse_faults(faults, "Put it back, or leave out such inputs with --skip-bad.")
    if not batches:
        raise DataError(f"labels: expected inputs that can be read, got none of {len(rows):,}. Put them back.")
    kept = [number for number, reason in zip(known, reasons, strict=True) if reason is None]
    source = " + ".join(map(str, files))
    data = TensorData(concatenate(batches), torch.from_numpy(decided.labels[kept]), classes=classes, source=source)
    data.names = tuple(_name(row) for row, reason in zip(rows, reasons, strict=True) if reason is None)
    chance = decided.chance[kept]
    return LabelledInputs(data, np.where(chance > 0, chance, np.nan), faults)


def _copies(files: Sequence[str | Path], wanted: set[str | None]) -> dict[str | None, Content]:
    """The copies that ``petm serve`` keeps, by their hash: images beside its file, texts in it."""
    found = dict[str | None, Content]()
    for path in map(Path, files):
        table = open_table(path, ("sha256", "path", "text", "confirmed"), required=(), hint="Name a file of labels.")
        for record in table.records():
            digest, place, text, confirmed = record.values or (None,) * 4
            if digest not in wanted or confirmed is None:
                continue
            if isinstance(text, str):
                found[digest] = text
            elif place is not None and (path.parent / str(place)).is_file():
                found[digest] = path.parent / str(place)
    return found


def _graded(wanted: set[Place | None], text_column: str | None) -> Iterator[Row]:
    """The rows of graded inputs; a file that is gone is one row with its fault."""
    for path in dict.fromkeys(place[0] for place in wanted if place is not None):
        for source in open_sources([path], text_column=text_column, keep_faults=True):
            try:
                for rows in source.rows(0, sys.maxsize, _AT_A_TIME):
                    yield from (row for row in rows if (row.path, row.number) in wanted)
            except DataError as error:
                yield Row(path, None, fault=str(error))


def _row(place: Place | None, copy: Content, found: Mapping[Place, Row]) -> Row:
    if copy is not None:
        return Row(str(copy) if isinstance(copy, Path) else "a text of the labels", None, copy)
    if place is None:
        return Row("a label by its hash", None, fault="expected the labelled input beside the labels, got none")
    return found.get(place) or found.get((place[0], None)) or Row(*place, fault="expected an input, got nothing there")


def _name(row: Row) -> str:
    return row.path if row.number is None else f"{row.path} row {row.number}"
