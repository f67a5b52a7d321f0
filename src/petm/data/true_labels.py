"""True labels that became known after grading: a file of them as a dictionary by input."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv

from petm.errors import DataError

Place: TypeAlias = tuple[str, int | None]
"""An input and the row in it, as in a table of grades."""

LABEL_SUFFIXES = (".csv", ".jsonl", ".parquet")


def read_true_labels(paths: Sequence[str | Path], classes: Sequence[str] = ()) -> dict[Place, int]:
    """Returns what is known of inputs, by input and row; what was said last of one holds.

    A file has the columns ``input``, ``label`` and, where inputs are rows of files, ``row``; others are ignored. A
    whole number is a class as in the column ``label`` of grades, anything else a class name. No label takes back what
    was said before. Lines that name no input are passed over, and so is a last line of JSON Lines that was never
    finished, as ``petm serve`` leaves it where it was killed while writing.

    Args:
        paths: CSV, JSON Lines or Parquet files.
        classes: ``K`` class names; empty where the classes have none.

    Raises:
        DataError: A file is absent, of another kind, not whole, lacks a column, or has a label that is no class.
    """
    labels: dict[Place, int] = {}
    for path in map(Path, paths):
        for number, entry in _entries(path):
            name, said, row = entry.get("input"), entry.get("label"), entry.get("row")
            if name is None:
                continue
            if row is not None and not isinstance(row, int):
                raise DataError(f"{path}: expected a whole number as row, got {row!r} in entry {number}. Correct it.")
            place = str(name), row
            if said is None:
                labels.pop(place, None)
            else:
                labels[place] = _class_of(said, classes, f"{path}: entry {number}")
    return labels


def _class_of(said: Any, classes: Sequence[str], place: str) -> int:
    if isinstance(said, str) and said in classes:
        return classes.index(said)
    if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < (len(classes) or said + 1):
        return said
    known = f"one of {', '.join(classes)}, or a number below {len(classes)}" if classes else "a number from 0 on"
    raise DataError(f"{place}: expected as label {known}, got {said!r}. Correct it.")


def _entries(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The entries of a file, counted from 1."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in LABEL_SUFFIXES:
        got = f"a file of the kind '{path.suffix}'" if path.is_file() else "no file there"
        raise DataError(f"{path}: expected labels ({', '.join(LABEL_SUFFIXES)}), got {got}. Name such a file.")
    try:
        yield from _lines(path) if kind == ".jsonl" else _table(path, kind.removeprefix("."))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: expected a whole file of labels, got: {reason}. Write it again.") from error


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # By the json module rather than by Arrow: a label may be a number in one line and a name in the next.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return
                raise DataError(f"{path}: expected JSON in line {number}, got {error}. Correct it.") from error
            if not isinstance(entry, dict):
                raise DataError(f"{path}: expected an object in line {number}, got {entry!r}. Correct it.")
            yield number, entry


def _table(path: Path, kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # A name that reads as a number is a name still, and an empty cell no label, whatever the others are.
    options = csv.ConvertOptions(column_types={"input": pa.string()}, null_values=[""], strings_can_be_null=True)
    found = ds.dataset(path, format=ds.CsvFileFormat(convert_options=options) if kind == "csv" else kind)
    present = found.schema.names
    missing = [name for name in ("input", "label") if name not in present]
    if missing:
        raise DataError(f"{path}: expected the column {missing[0]!r}, got {', '.join(present)}. Name it so.")
    wanted = [name for name in ("input", "row", "label") if name in present]
    number = 0
    for batch in found.to_batches(columns=wanted):
        for entry in batch.to_pylist():
            number += 1
            yield number, entry
