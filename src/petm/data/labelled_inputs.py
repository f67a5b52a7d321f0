"""The inputs that people have labelled, read again from where they were graded or where the page keeps its copies."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petm._internal.files import fingerprint
from petm.data.base import Data, TensorData
from petm.data.decisions import Decided
from petm.data.fields import Inputs, as_batch, tensors_of
from petm.data.labels import UNLABELLED, Place, refuse_faults
from petm.data.reader import Reader, content_hash
from petm.data.sources import Columns, Content, Row, names_of, open_sources, text_of
from petm.data.tables import open_table
from petm.errors import DataError

_AT_A_TIME = 256
"""Images that are decoded at a time."""


@dataclass(frozen=True, eq=False)
class LabelledInputs:
    """Inputs with their true classes; of images only names and labels are held, and encoded ones of tables.

    Attributes:
        data: ``N`` samples.
        chance: float64 ``(N,)``, with which each was drawn to be labelled; NaN where it had none, or that is not known.
            None where nothing says so.
        skipped: Why labelled inputs were left out, by name.
        gone: Number of these that are no longer there, or no longer the same.
    """

    data: Data
    chance: NDArray[np.float64] | None
    skipped: Mapping[str, str]
    gone: int = 0


def read_labelled(
    decided: Decided,
    files: Sequence[str | Path],
    reader: Reader,
    classes: Sequence[str],
    *,
    text_column: Columns | None = None,
    skip_bad: bool = False,
) -> LabelledInputs:
    """Returns the inputs with a decision; those of which nobody can tell the class only where their chance is known.

    Args:
        decided: The decisions.
        files: The files of labels that they are from; `petm serve` keeps copies of the inputs there.
        reader: Makes the model's inputs.
        classes: Class names of the grader.
        text_column: Column of texts in graded tables; None reads images.
        skip_bad: Whether to leave out what cannot be read.

    Raises:
        DataError: An input is no longer there, cannot be read, or has another hash than the one that was labelled.
    """
    known = np.flatnonzero((decided.labels != UNLABELLED) | np.isfinite(decided.chance)).tolist()
    copies = _copies(files, {decided.sha256[number] for number in known} - {None}, text_column)
    wanted = {decided.places[number] for number in known if decided.sha256[number] not in copies} - {None}
    found = {(row.path, row.number): row for row in _graded(wanted, text_column)}
    rows = [_row(decided.places[each], decided.sha256[each], copies.get(decided.sha256[each]), found) for each in known]
    held, reasons, hashes = list[Inputs](), list[str | None](), list[str | Tensor]()
    step = len(rows) if reader.encoder else _AT_A_TIME  # texts are padded to one length
    for start in range(0, len(rows), step):
        readings = reader.read(rows[start : start + step])
        reasons += readings.reasons
        if readings.inputs is not None:
            held = [as_batch(readings.inputs)]
            hashes.append(fingerprint(tensors_of(held[0])))
    faults = {_name(row): reason for row, reason in zip(rows, reasons, strict=True) if reason is not None}
    if not skip_bad:
        refuse_faults(faults, "Put it back.")
    if not held:
        raise DataError(f"labels: expected inputs that can be read, got none of {len(rows):,}. Put them back.")
    readable = [place for place, reason in enumerate(reasons) if reason is None]
    gone = sum(row.fault is not None for row in rows)
    rows, kept = [rows[place] for place in readable], [known[place] for place in readable]
    labels, source = torch.from_numpy(decided.labels[kept]), " + ".join(map(str, files))
    data: Data
    if reader.encoder:
        data = TensorData(held[0], labels, classes=classes, source=source)
        data.names = tuple(map(_name, rows))
    else:
        data = _Images(rows, reader, labels, tuple(classes), source, fingerprint((*hashes, labels)))
    chance = decided.chance[kept]
    return LabelledInputs(data, np.where(chance > 0, chance, np.nan), faults, gone)


class _Images(Data):
    """Images that are decoded when they are read."""

    def __init__(
        self, rows: Sequence[Row], reader: Reader, labels: Tensor, classes: tuple[str, ...], source: str, content: str
    ) -> None:
        self._rows, self._reader, self._content = rows, reader, content
        self.labels, self.classes, self.source = labels, classes, source
        form = reader.form
        self.value_range = form.value_range if form else (-float("inf"), float("inf"))
        self.are_pixels = form is not None and not (form.processor or form.mean)

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns float32 ``(n, C, H, W)``: the images at ``indices``, in that order; raises DataError without one."""
        rows = [self._rows[index] for index in torch.as_tensor(indices, dtype=torch.int64).tolist()]
        if not rows:
            return self.inputs([0])[:0]
        readings = self._reader.read(rows)
        faults = {_name(row): why for row, why in zip(rows, readings.reasons, strict=True) if why is not None}
        refuse_faults(faults, "It was there before: put it back.")
        return as_batch(readings.inputs)

    @cached_property
    def content(self) -> str:
        """A SHA-256 over decoded images and labels."""
        return self._content

    def name(self, index: int) -> str:
        """Returns the path, and the row in a table."""
        return _name(self._rows[index])


def _copies(
    files: Sequence[str | Path], wanted: set[str | None], text_column: Columns | None
) -> dict[str | None, Content]:
    """The inputs that labels hold, by their hash: copies that ``petm serve`` keeps, or texts in their own columns."""
    columns = ("sha256", "path", "text", "confirmed", *names_of(text_column or ()))
    found = dict[str | None, Content]()
    for path in map(Path, files):
        table = open_table(path, columns, required=(), hint="Name a file of labels.")
        for record in table.records():
            digest, place, text, confirmed, *cells = record.values or (None,) * len(columns)
            if confirmed is None:
                text = None if text_column is None else text_of(text_column, cells)
                digest, place = content_hash(text), None
            if digest not in wanted:
                continue
            if isinstance(text, str):
                found[digest] = text
            elif place is not None and (path.parent / str(place)).is_file():
                found[digest] = path.parent / str(place)
    return found


def _graded(wanted: set[Place | None], text_column: Columns | None) -> Iterator[Row]:
    """The rows of graded inputs; a file that is gone is one row with its fault."""
    for path in dict.fromkeys(place[0] for place in wanted if place is not None):
        for source in open_sources([path], text_column=text_column, keep_faults=True):
            try:
                for rows in source.rows(0, sys.maxsize, _AT_A_TIME):
                    yield from (row for row in rows if (row.path, row.number) in wanted)
            except DataError as error:
                yield Row(path, None, fault=str(error))


def _row(place: Place | None, digest: str | None, copy: Content, found: Mapping[Place, Row]) -> Row:
    if copy is not None:
        return Row(str(copy) if isinstance(copy, Path) else "a text of the labels", None, copy)
    if place is None:
        return Row("a label by its hash", None, fault="expected the labelled input beside the labels, got none")
    row = found.get(place) or found.get((place[0], None)) or Row(*place, fault="expected an input, got nothing there")
    if digest is not None and row.fault is None and content_hash(row.content) not in (None, digest):
        return row._replace(content=None, fault=f"expected the content {digest[:12]}... that was labelled, got another")
    return row


def _name(row: Row) -> str:
    return row.path if row.number is None else f"{row.path} row {row.number}"
