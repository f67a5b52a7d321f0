"""Grades as a table: one row for each input, in Parquet, CSV or JSON Lines."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from petm._internal.storage import Located, for_arrow, locate
from petm.data.decisions import refuse_former
from petm.data.tables import FORMULA
from petm.errors import DataError
from petm.grading.grades import NO_SECOND, Grades
from petm.selective.audit import drawn

GRADE_NAMES = ("trusted", "suspect", "unreadable")
"""The values of the column ``grade``."""

SCHEMA = pa.schema(
    [
        pa.field("input", pa.string(), nullable=False),
        ("row", pa.int64()),
        ("text", pa.string()),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("second", pa.int64()),
        ("second_name", pa.string()),
        ("probability_of_error", pa.float64()),
        ("confidence", pa.float64()),
        ("suspicion", pa.float64()),
        ("group", pa.string()),
        pa.field("grade", pa.string(), nullable=False),
        ("candidates", pa.string()),
        ("reason", pa.string()),
        ("true_label", pa.int64()),
        ("chance", pa.float64()),
        ("audit", pa.bool_()),
        ("sha256", pa.string()),
    ]
)
"""``input`` is a path, ``row`` a place in this file from 1: a row in Parquet and arrays, a line in files of lines,
null for an image; ``text`` is the beginning of a text. ``label`` is the base model's prediction, ``second`` the
second opinion's, null where a cascade asked for none; ``confidence`` is the probability that ``label`` is right, 1 -
``probability_of_error``. ``group`` is the combination of groups whose threshold the row has. ``candidates`` are the
names of the classes that it may be, a JSON list, the most probable first. ``reason`` says why an input could not be
read; all values between are null then. ``chance`` is that of a row to be reviewed, 1 for a suspect; ``audit`` marks
the trusted that were drawn; ``sha256`` is the hash of the content."""

OPTIONAL = frozenset(
    ("text", "second", "second_name", "group", "candidates", "true_label", "chance", "audit", "sha256")
)
"""Columns that are absent where a run has nothing to put into them."""

_LONGEST_TEXT = 200
"""Characters of a text that a row shows."""

GRADE_SUFFIXES = (".parquet", ".csv", ".jsonl")

_JSON_BLOCK = 1 << 21
"""Bytes of JSON Lines that are read at a time."""


def grade_table(
    inputs: Sequence[str],
    rows: Sequence[int | None],
    grades: Grades | None,
    classes: Sequence[str],
    *,
    reasons: Sequence[str | None] | None = None,
    texts: Sequence[str | None] | None = None,
    has_second: bool = True,
    groups: Sequence[str] | None = None,
    has_candidates: bool = False,
    true_labels: Sequence[int | None] | None = None,
    hashes: Sequence[str | None] | None = None,
    audit: float | None = None,
    seed: int = 0,
) -> pa.Table:
    """Returns the rows of some inputs, in their order; columns that an absent argument would fill are left out.

    Args:
        inputs: ``n`` paths.
        rows: Places in these files.
        grades: Grades of the readable inputs, in their order; absent if there are none.
        classes: ``K`` class names; a class without one is named by its number.
        reasons: Why an input could not be read, None for a readable one; absent if all are readable.
        texts: Inputs that are texts, None for others; absent if none is.
        has_second: Whether there is a second opinion.
        groups: The group whose threshold each readable input has, in words; absent without groups.
        has_candidates: Whether the grader has prediction sets.
        true_labels: True labels, None where unknown; absent if none were read.
        hashes: SHA-256 of the contents, None where unknown.
        audit: Chance of each trusted row to be drawn for review, by its input, row, hash and ``seed``; None draws none.
        seed: Seed of the draw.
    """
    if grades is None:
        none, nothing = np.empty(0, np.int64), np.empty(0)
        grades = Grades(none, none, nothing, nothing, np.empty(0, bool))
    why = list(reasons) if reasons is not None else [None] * len(inputs)
    read = np.array([reason is None for reason in why], dtype=bool)

    def spread(values: Any, kind: pa.DataType) -> pa.Array:
        """The values of the readable inputs, null for the others."""
        places = np.where(read, np.cumsum(read) - 1, 0)
        whole = pa.array(values, kind)
        return whole.take(pa.array(places, mask=~read)) if len(whole) else pa.nulls(len(read), kind)

    digests = list(hashes) if hashes is not None else [None] * len(inputs)

    def named(labels: Any) -> list[str | None]:
        numbers = ((label, label is not None and label < len(classes)) for label in labels.tolist())
        return [classes[label] if has_name else label if label is None else str(label) for label, has_name in numbers]

    def known(probabilities: Any) -> pa.Array:
        return spread(np.ma.masked_invalid(probabilities).tolist(), pa.float64())

    columns = {
        "input": _texts(inputs),
        "row": pa.array(rows, pa.int64()),
        "label": spread(grades.labels, pa.int64()),
        "label_name": spread(_texts(named(grades.labels)), pa.string()),
        "probability_of_error": known(grades.probability_of_error),
        "confidence": known(1 - grades.probability_of_error),
        "suspicion": spread(grades.suspicion, pa.float64()),
        "grade": spread(np.where(grades.trusted, *GRADE_NAMES[:2]).tolist(), pa.string()).fill_null(GRADE_NAMES[2]),
        "reason": _texts(why),
    }
    if texts is not None:
        columns["text"] = _texts([None if text is None else text[:_LONGEST_TEXT] for text in texts])
    if has_second:
        second = np.ma.masked_equal(grades.second, NO_SECOND)
        columns["second"] = spread(second.tolist(), pa.int64())
        columns["second_name"] = spread(_texts(named(second)), pa.string())
    if groups is not None:
        columns["group"] = spread(_texts(groups), pa.string())
    if has_candidates:
        lists = [] if grades.candidates is None else [named(np.array(each)) for each in grades.candidates]
        columns["candidates"] = spread(_texts([json.dumps(each, ensure_ascii=False) for each in lists]), pa.string())
    if true_labels is not None:
        columns["true_label"] = pa.array(true_labels, pa.int64())
    if audit is not None:
        mine = [(inputs[place], rows[place], digests[place]) for place in np.flatnonzero(read).tolist()]
        columns["chance"] = spread(np.where(grades.trusted, audit, 1.0), pa.float64())
        columns["audit"] = spread(grades.trusted & drawn(mine, audit, seed=seed), pa.bool_())
        columns["sha256"] = pa.array(digests, pa.string())
    schema = pa.schema([field for field in SCHEMA if field.name in columns])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _texts(values: Sequence[str | None]) -> pa.Array:
    """Texts in UTF-8; a file's name may hold other bytes on some systems, and any text half a character."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if value is None else _printable(value) for value in values], pa.string())


def _printable(name: str) -> str:
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def read_grades(path: str | Located, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file of grades, or of a folder of such Parquet files, some thousands at a time.

    Args:
        path: A file that ``petm grade`` has written, or its address in a store.
        columns: Names of columns; absent reads all.

    Raises:
        DataError: The file is absent, of another kind, not whole, or lacks a column.
    """
    import pyarrow.dataset as ds
    from pyarrow import csv

    path = locate(path) if isinstance(path, str) else path
    kind = ".parquet" if path.is_dir() else path.suffix.lower()
    if not path.exists() or kind not in GRADE_SUFFIXES:
        got = f"a file of the kind '{path.suffix}'" if path.exists() else "a path that does not exist"
        raise DataError(
            f"{path}: expected grades ({', '.join(GRADE_SUFFIXES)}), got {got}. Name what petm grade wrote."
        )
    formats: dict[str, Any] = {
        ".parquet": ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False)),
        ".csv": "csv",
    }
    wanted = list(columns or SCHEMA.names)

    def check_columns(found: Collection[str]) -> None:
        refuse_former(str(path), found)
        missing = [name for name in wanted if name not in found and name not in OPTIONAL]
        if missing:
            raise DataError(
                f"{path}: expected the column {missing[0]!r}, got {', '.join(found)}. Name what petm grade wrote."
            )

    try:
        source, filesystem = for_arrow(path)
        if kind == ".jsonl":
            with filesystem.open_input_stream(source) if filesystem else open(source, "rb") as file:
                for table in _json_tables(file, check_columns):
                    yield from table.select(wanted).combine_chunks().to_batches()
            return
        check_columns(ds.dataset(source, format=formats[kind], filesystem=filesystem).schema.names)
        # With threads, Arrow would read ahead without limit.
        if kind == ".csv":
            opened = filesystem.open_input_stream(source) if filesystem else source
            batches = csv.open_csv(
                opened,
                read_options=csv.ReadOptions(block_size=1 << 21, use_threads=False),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    column_types=SCHEMA,
                    include_columns=wanted,
                    include_missing_columns=True,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
            yield from map(_unguarded, batches)
            return
        batches = ds.dataset(source, format=formats[kind], schema=SCHEMA, filesystem=filesystem).to_batches(
            columns=wanted, batch_size=1 << 14, batch_readahead=2, fragment_readahead=1, use_threads=False
        )
        for batch in batches:
            batch.validate(full=True)  # text in UTF-8
            yield batch
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: expected a whole file of grades, got: {reason}. Grade again.") from error


def _json_tables(file: IO[bytes], check_columns: Callable[[Collection[str]], None]) -> Iterator[pa.Table]:
    """The rows of JSON Lines, some thousands at a time; each line is looked at first, as Arrow crashes on ``null``."""
    from pyarrow import json as arrow_json

    rest, checked, ended = b"", False, False
    while not ended:
        block = file.read(_JSON_BLOCK)
        ended = not block
        lines, end, rest = (rest + block).rpartition(b"\n")
        lines, rest = (_whole_line(rest), b"") if ended else (lines + end, rest)
        if re.search(rb"^[ \t\r]*[^{\s]", lines, re.MULTILINE):
            raise pa.ArrowInvalid("a line that is no object")
        if not lines.strip():
            continue
        if not checked:
            check_columns(_keys(lines.lstrip().split(b"\n", 1)[0]))
            checked = True
        table = arrow_json.read_json(
            pa.BufferReader(lines),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(lines)),
            parse_options=arrow_json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)  # text in UTF-8
        yield table
    if not checked:
        check_columns(())


def _whole_line(rest: bytes) -> bytes:
    """What stands behind the last line end; nothing where it is cut off, as by the end of a service."""
    try:
        json.loads(rest)
    except (ValueError, RecursionError):
        return b""
    return rest


def _keys(line: bytes) -> Collection[str]:
    try:
        return dict(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"a line that is no JSON: {error}") from error


def _unguarded(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with their texts as they were before `petm.data.tables.guard`."""
    columns = [
        pc.replace_substring_regex(column, f"^'({FORMULA})", r"\1") if pa.types.is_string(column.type) else column
        for column in rows.columns
    ]
    return pa.record_batch(columns, rows.schema)
