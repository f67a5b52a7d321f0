"""Grades written to a file in parts, so that a run that is killed at any moment can be resumed.

grades.parquet.parts/       beside grades.parquet, until this is whole
├── run.json                the run's settings
└── part-00000000.parquet   some thousand rows, and the place of the next input
"""

import glob
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from petm._internal.files import check_new_file, fingerprint, to_json, write_atomically
from petm._internal.progress import track
from petm._internal.storage import Located, RemotePath
from petm.data.reader import Reader
from petm.data.sources import Source
from petm.data.tables import guard
from petm.errors import DataError, RunError
from petm.grading.grade_table import GRADE_SUFFIXES, SCHEMA
from petm.grading.stream import AnyGrader, Graded, Place, grade_stream
from petm.grading.summary import Summary
from petm.models import BATCH_SIZE
from petm.selective.audit import check_audit
from petm.training.run_folder import forget_finished, open_run

PART_ROWS, PART_SECONDS = 1 << 11, 20.0
"""Rows after which a part is written, and seconds after the last one."""
_AFTER = b"petm.after"
_FileId: TypeAlias = tuple[int, int]
_PROBABILITIES = frozenset(("probability_of_error", "confidence", "probability_of_label_error"))
_IN_QUOTES = re.compile(r'[",\r\n]|\A\Z')


def check_output(path: Located, *, overwrite: bool) -> Path:
    """Returns the path if grades may be written there, and raises RunError if not; an unfinished run may be there."""
    if isinstance(path, RemotePath):
        raise RunError(f"{path}: expected a file on this machine, got an address. Copy it there, or use --engine ray.")
    check_new_file(path, *GRADE_SUFFIXES, overwrite=overwrite or parts_folder(path).exists())
    return path


def check_apart(output: Located, inputs: Iterable[str | Path]) -> None:
    """Raises RunError where the output is an input, lies in a folder that is read, or holds an input, also by links.

    Args:
        output: The file or folder to write.
        inputs: Files, folders and globs that are read.
    """
    if isinstance(output, RemotePath):
        holders = {str(output), *(f"{output.scheme}://{parent}" for parent in PurePosixPath(output.key).parents)}
        clash = next((path for path in map(str, inputs) if path.rstrip("/") in holders), None)
    else:
        place = output.resolve()
        own = {*map(_file_id, (place, parts_folder(place))), *map(_file_id, place.parents)} - {None}
        holder = _file_id(place) if place.is_dir() else None
        clash = next((str(path) for path in inputs if not own.isdisjoint(_read_at(path, holder))), None)
    if clash is not None:
        raise RunError(
            f"output: expected a place apart from the inputs, got {output} beside the input {clash}. Move it."
        )


def _read_at(path: str | Path, holder: _FileId | None) -> Iterator[_FileId | None]:
    """The files and folders that a path names, links in these, and ``holder`` if it is a folder around them."""
    for found in [path] if os.path.exists(path) else glob.glob(str(path)):
        yield _file_id(found)
        if os.path.isdir(found):
            with suppress(OSError), os.scandir(found) as entries:
                yield from [_file_id(entry.path) for entry in entries if entry.is_symlink()]
        if holder is not None:
            yield from {holder} & {*map(_file_id, Path(found).resolve().parents)}


def _file_id(path: str | Path) -> _FileId | None:
    """What all paths of one file or folder have in common, links included; None where there is nothing."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def parts_folder(path: Path) -> Path:
    """Returns the folder of a file's parts."""
    return path.with_name(f"{path.name}.parts")


def grade_files(
    grader: AnyGrader,
    sources: Sequence[Source],
    reader: Reader,
    output: Path,
    *,
    told: Mapping[str, Any],
    batch_size: int = BATCH_SIZE,
    labelled: bool = False,
    audit: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Summary:
    """Grades inputs into a Parquet, CSV or JSON Lines file, and returns their summary.

    The file appears at the end, whole. Until then its parts stand beside it. The same call resumes after the last part,
    so that every input is in the file exactly once.

    Args:
        grader: The grader.
        sources: The inputs.
        reader: Turns them into the model's inputs.
        output: The file, of the kind that its suffix says.
        told: Whatever else the result depends on, such as the grader, in JSON's types.
        batch_size: Inputs in one pass.
        labelled: Whether true labels are read.
        audit: Chance of each trusted row to be drawn for review beside the suspects, above 0; None draws none. A run
            that is resumed, and any batch size, draws the same rows.
        seed: Seed of the draw.
        overwrite: Whether to replace an existing file, and the parts of another run.

    Raises:
        ArgumentError: ``audit`` is no such chance.
        DataError: There is no input.
        ModelError: The model cannot take the inputs.
        RunError: The file exists, is an input or lies in a folder that is read; its parts belong to another run or are
            in use; or the disk is full.
    """
    check_audit(audit)
    check_apart(output, [source.name for source in sources])
    forget_finished(parts_folder(output))
    check_output(output, overwrite=overwrite)
    total = sum(source.count() for source in sources)
    if not total:
        raise DataError("inputs: expected at least one, got none. Name files, folders or globs that hold some.")
    told = {
        **told,
        "columns": SCHEMA.names,
        "inputs": fingerprint(source.identity() for source in sources),
        "labels": labelled,
    }
    drawing: Any = {} if audit is None else {"audit": audit, "seed": seed}
    told |= drawing
    with open_run(parts_folder(output), told, resume=True, overwrite=overwrite) as run:
        parts = _Parts(run.path)
        with track("grade", total, parts.rows) as progress:
            began, before = time.monotonic(), parts.rows
            how: Any = {"batch_size": batch_size, "labelled": labelled, **drawing}
            found = grade_stream(grader, sources, reader, start=parts.after, **how)
            try:
                for graded in found:
                    parts.add(graded)
                    progress.advance(len(graded.table))
                    rate = (parts.rows - before) / max(time.monotonic() - began, 1e-9)
                    progress.show(**{"per second": round(rate)})
            finally:
                parts.close()
        summary = Summary(labelled=labelled)
        write_atomically(output, lambda path: write_tables(path, output.suffix.lower(), parts.tables(summary)))
    shutil.rmtree(parts_folder(output), ignore_errors=True)
    return summary


def write_tables(path: Path, kind: str, tables: Iterator[Any]) -> None:
    """Writes tables of the same columns of `SCHEMA`, at least one, as ``.parquet``, ``.csv`` or ``.jsonl``."""
    if kind == ".parquet":
        first = next(tables)
        with pq.ParquetWriter(path, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == ".csv":
            write_csv(file, tables)
        else:
            for table in tables:
                file.writelines(to_json(row) + "\n" for row in table.to_pylist())


def write_csv(file: Any, tables: Iterator[Any]) -> None:
    """Writes tables as CSV with a header into an open file, each at once; null is an empty cell, no text is ``""``.

    Probabilities have six digits. Suspicion has all, as thresholds are compared with it again.
    """
    for number, table in enumerate(tables):
        if not number:
            file.write(",".join(table.column_names) + "\n")
        columns = (_cells(table.column(name).to_pylist(), name in _PROBABILITIES) for name in table.column_names)
        file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))
        file.flush()


def _cells(values: Sequence[Any], rounded: bool) -> Iterator[str]:
    return (f"{value:.6g}" if rounded and value is not None else _cell(value) for value in values)


def _cell(value: str | float | None) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    value = guard(value)
    return '"{}"'.format(value.replace('"', '""')) if _IN_QUOTES.search(value) else value


class _Parts:
    """The parts in a folder, and the rows of the next one; ``after`` is the place behind those written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows, self.after = 0, Place()
        for path in self._paths():
            metadata = pq.read_metadata(path)
            self.rows += metadata.num_rows
            self.after = Place(*json.loads(metadata.metadata[_AFTER]))
        self._waiting: list[Graded] = []
        self._count, self._written = len(self._paths()), time.monotonic()

    def add(self, graded: Graded) -> None:
        """Adds some rows, and writes a part if there are enough or the last one is long ago."""
        self._waiting.append(graded)
        self.rows += len(graded.table)
        waiting = sum(len(each.table) for each in self._waiting)
        if waiting >= PART_ROWS or time.monotonic() - self._written >= PART_SECONDS:
            self.close()

    def close(self) -> None:
        """Writes the waiting rows."""
        if self._waiting:
            self.after = self._waiting[-1].after
            table = pa.concat_tables([each.table for each in self._waiting])
            table = table.replace_schema_metadata({_AFTER: json.dumps(self.after)})
            path = self.folder / f"part-{self._count:08}.parquet"
            write_atomically(path, lambda temporary: pq.write_table(table, temporary))
            self._waiting, self._count = [], self._count + 1
        self._written = time.monotonic()

    def tables(self, summary: Summary) -> Iterator[Any]:
        """Yields the parts in their order, and adds each to the summary."""
        for path in self._paths():
            table = pq.read_table(path).replace_schema_metadata(None)
            summary.add(table)
            yield table

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))
