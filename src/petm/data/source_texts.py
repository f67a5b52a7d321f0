"""Texts of CSV and JSON Lines files, row by row."""

import csv
import io
import json
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from petm._internal.storage import Located, identity_of, open_binary
from petm.data.source import (
    Content,
    Rows,
    Source,
    chunks,
)
from petm.errors import DataError

Line = tuple[str, int, Content, int | str | None, str | None]
"""Path, line, text, label, fault."""

_LONGEST = 1 << 30
"""Characters of a cell; Python's own limit would refuse texts of more than 131,072."""


class TextLines(Source):
    """The rows of a CSV file with a header, or of a file with one JSON object a line, named by their line from 1.

    A row that cannot be read is one with a fault; the rest of the file goes on.

    Args:
        path: A ``.csv``, ``.jsonl`` or ``.ndjson`` file in UTF-8.
        column: Of texts.
        label_column: Of labels, where there is one: integers or names.

    Raises:
        DataError: The file cannot be read, or its header lacks the column.
    """

    def __init__(self, path: Located, column: str, label_column: str | None) -> None:
        self.name, self.path, self.column, self.label_column = str(path), path, column, label_column
        next(self._lines(), None)

    def count(self) -> int:
        """Returns how many rows there are."""
        return self._count

    def identity(self) -> str:
        """Returns path, size, time of change and column."""
        return f"{identity_of(self.path)} {self.column}"

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the rows from ``start`` to before ``stop``, up to ``size`` at a time.

        Raises:
            DataError: The file is not in UTF-8, or cannot be read.
        """
        yield from chunks(islice(self._lines(), start, stop), size)

    @cached_property
    def _count(self) -> int:
        count = 0
        try:
            for _ in self._lines():
                count += 1
        except DataError:  # the rows before it are read, and one more says why there are no others
            count += 1
        return count

    def _lines(self) -> Iterator[Line]:
        limit = csv.field_size_limit(_LONGEST)
        try:
            with io.TextIOWrapper(open_binary(self.path), encoding="utf-8-sig", newline="") as file:
                yield from self._csv(file) if self.path.suffix.lower() == ".csv" else self._json(file)
        except (OSError, UnicodeError, csv.Error) as error:
            raise DataError(
                f"{self.path}: expected a file in UTF-8, got: {str(error).rstrip('.')}. Fetch it again."
            ) from error
        finally:
            csv.field_size_limit(limit)

    def _csv(self, file: Any) -> Iterator[Line]:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if self.column not in header:
            raise DataError(
                f"{self.path}: expected a column '{self.column}', got the columns "
                f"{', '.join(header) or 'of an empty file'}. Name it with --text-column."
            )
        text = header.index(self.column)
        label = header.index(self.label_column) if self.label_column in header else None
        number = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                fault = f"expected {len(header)} fields as in the header, got {len(cells)}"
                yield str(self.path), number, None, None, fault
            elif cells:
                yield str(self.path), number, cells[text], None if label is None else cells[label] or None, None
            number = reader.line_num + 1

    def _json(self, file: Any) -> Iterator[Line]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            text, label, fault = None, None, None
            try:
                entry = json.loads(line)
                text = entry[self.column]
                label = entry.get(self.label_column) if self.label_column else None
            except (ValueError, TypeError, KeyError, AttributeError):
                fault = f"expected a JSON object with a text under '{self.column}', got another line"
            if not isinstance(text, str | None):
                text, fault = None, f"expected a text under '{self.column}', got {type(text).__name__}"
            yield str(self.path), number, text, label if isinstance(label, int | str) else None, fault
