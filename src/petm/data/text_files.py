"""The rows of one file of texts, whatever its format."""

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from petm.data.base import UNLABELLED
from petm.data.parquet import class_names
from petm.errors import DataError

_ROWS = 1 << 16
"""Rows that are held as Python objects at a time; Arrow holds them in a tenth of the memory."""


class Labels(NamedTuple):
    """What stands in a column of labels, each value once."""

    values: list[int] | list[str] | list[int | str]
    codes: Tensor  # int64 (n,), places in values; UNLABELLED for none


class Rows(NamedTuple):
    """The two columns of one file."""

    texts: Any  # pyarrow.ChunkedArray of large_string, (n,), null where there is none
    labels: Labels
    place: str  # the file in front of a number, as in "train.csv:17"
    numbers: Tensor  # int64 (n,), line or row
    names: tuple[str, ...] = ()  # of the classes, where the file has them apart from the labels


def read_parquet(file: Path, text_column: str, label_column: str | None) -> Rows:
    """Returns the rows of a Parquet file, numbered from 0.

    Raises:
        DataError: The file is not whole, or a column is missing or of an unsuitable type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, memory_map=True) as opened:
            schema = opened.schema_arrow
            _check_columns(file, schema.names, text_column, label_column)
            table = opened.read(columns=[text_column, label_column] if label_column else [text_column])
    except (OSError, pa.ArrowException) as error:
        raise _broken(file, "Parquet", error) from error
    texts, numbers = table.column(text_column), torch.arange(table.num_rows)
    kind = texts.type.value_type if pa.types.is_dictionary(texts.type) else texts.type
    if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise DataError(f"{file}: expected texts in column '{text_column}', got {kind}. Name the column of texts.")
    texts, place = texts.cast(pa.large_string()), f"{file} row "
    if label_column is None:
        return Rows(texts, _no_labels(table.num_rows), place, numbers)
    labels = table.column(label_column)
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    if pa.types.is_integer(kind):
        labels = labels.cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        labels = labels.cast(pa.large_string())
    else:
        raise DataError(
            f"{file}: expected integers or names in column '{label_column}', got {kind}. Store class numbers or names."
        )
    encoded = labels.combine_chunks().dictionary_encode()
    codes = torch.tensor(encoded.indices.fill_null(UNLABELLED).to_numpy(zero_copy_only=False), dtype=torch.int64)
    values = encoded.dictionary.to_pylist()
    return Rows(texts, Labels(values, codes), place, numbers, class_names(schema.metadata, label_column))


def read_csv(file: Path, text_column: str, label_column: str | None) -> Rows:
    """Returns the rows of a CSV file with a header, numbered by the line on which they begin, from 1.

    Raises:
        DataError: The file is not whole, or a column is missing, or a row has another number of fields.
    """
    limit = csv.field_size_limit(1 << 30)  # Python's own would refuse texts of more than 131,072 characters
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = next(reader, [])
            _check_columns(file, header, text_column, label_column)
            text, label = header.index(text_column), header.index(label_column) if label_column else None
            return _gather(file, _csv_rows(file, reader, len(header), text, label))
    except (OSError, ValueError, csv.Error) as error:
        raise _broken(file, "CSV", error) from error
    finally:
        csv.field_size_limit(limit)


def _csv_rows(file: Path, reader: Any, fields: int, text: int, label: int | None) -> Iterator[tuple[int, str, Any]]:
    line = reader.line_num + 1
    for row in reader:
        if row and len(row) != fields:
            raise DataError(
                f"{file}:{line}: expected {fields} fields as in the header, got {len(row)}. "
                f"Put quotes around texts that hold commas."
            )
        if row:
            yield line, row[text], None if label is None else row[label].strip() or None
        line = reader.line_num + 1


def read_json_lines(file: Path, text_column: str, label_column: str | None) -> Rows:
    """Returns the rows of a file with one JSON object a line, numbered by their line, from 1.

    Raises:
        DataError: The file is not whole, a line is no object, a column is missing or a value of an unsuitable type.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            return _gather(file, _json_rows(file, opened, text_column, label_column))
    except (OSError, ValueError) as error:
        raise _broken(file, "JSON Lines", error) from error


def _json_rows(
    file: Path, lines: Iterator[str], text_column: str, label_column: str | None
) -> Iterator[tuple[int, str | None, Any]]:
    expected = label_column
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: expected a JSON object, got: {error}. Repair the line.") from error
        if not isinstance(row, Mapping):
            raise DataError(f"{file}:{number}: expected a JSON object, got {type(row).__name__}. Repair the line.")
        _check_columns(f"{file}:{number}", list(row), text_column, expected)
        expected = None  # a later row may be without its label, as a cell of a table may be empty
        text, label = row[text_column], row.get(label_column) if label_column else None
        if not isinstance(text, str | None):
            raise DataError(
                f"{file}:{number}: expected a text in column '{text_column}', got {type(text).__name__}. "
                f"Name the column of texts."
            )
        if isinstance(label, bool) or not isinstance(label, int | str | None):
            raise DataError(
                f"{file}:{number}: expected an integer or a name in column '{label_column}', "
                f"got {type(label).__name__}. Store class numbers or names."
            )
        yield number, text, label


def _gather(file: Path, rows: Iterator[tuple[int, str | None, Any]]) -> Rows:
    """Gathers rows ``(number, text, label)`` in Arrow memory."""
    import pyarrow as pa

    numbers, codes = array("q"), array("q")
    values: dict[int | str, int] = {}
    chunks, held = [], list[str | None]()
    for number, text, label in rows:
        held.append(text)
        numbers.append(number)
        codes.append(UNLABELLED if label is None else values.setdefault(label, len(values)))
        if len(held) == _ROWS:
            chunks.append(pa.array(held, pa.large_string()))
            held.clear()
    chunks.append(pa.array(held, pa.large_string()))
    labels = Labels(list(values), torch.tensor(codes, dtype=torch.int64))
    return Rows(pa.chunked_array(chunks), labels, f"{file}:", torch.tensor(numbers, dtype=torch.int64))


READERS: Mapping[str, Callable[[Path, str, str | None], Rows]] = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}
"""What reads the file of a suffix: file, column of texts and column of labels to rows."""


def _check_columns(place: object, columns: Sequence[str], text_column: str, label_column: str | None) -> None:
    """Raises DataError unless both columns are there."""
    for column, option in (
        (text_column, "text_column (--text-column)"),
        (label_column, "label_column (--label-column)"),
    ):
        if column is not None and column not in columns:
            raise DataError(
                f"{place}: expected a column '{column}', got the columns {', '.join(columns) or 'of an empty file'}. "
                f"Name it with {option}."
            )


def _no_labels(count: int) -> Labels:
    return Labels([], torch.full((count,), UNLABELLED))


def _broken(file: Path, kind: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0].rstrip(".")
    return DataError(f"{file}: expected a whole {kind} file in UTF-8, got: {reason}. Fetch it again.")
