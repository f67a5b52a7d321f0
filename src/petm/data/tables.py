"""Rows of Parquet, CSV and JSON Lines files, each with its number; a fault in one leaves the others readable."""

import io
import json
import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from sys import maxsize
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from petm._internal.storage import Located, RemotePath, for_arrow, open_binary
from petm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")

_BUFFER = 1 << 20
"""Bytes of a Parquet file that are read at a time."""
_LONGEST = 1 << 26
"""Characters of a quoted cell; a quote that is not closed within them was never closed."""
_TO_CLOSING_QUOTE = re.compile(r'((?:[^"]+|"")*+)"')
_NO_UTF8 = re.compile("[\ud800-\udfff]")
"""Stands for bytes that are no UTF-8, or for half an escaped character in JSON."""


class Record(NamedTuple):
    """One row of a table."""

    number: int
    """The line on which it begins, from 1; in a Parquet file the row, from 0."""
    values: tuple[Any, ...]
    """The values of the requested columns, None for an empty cell; empty where the row has a fault."""
    fault: str | None = None
    """Why the row cannot be read."""


class Table(ABC):
    """The rows of a file, read from any row on; the arguments are those of `open_table`."""

    numbered = ":"
    """Text between the path and the number of a row."""

    def __init__(self, path: Located, columns: Sequence[str], required: Collection[str], hint: str) -> None:
        self.path, self.columns, self.required, self.hint = path, tuple(columns), required, hint
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Reads the names of the columns, and checks them."""

    @abstractmethod
    def count(self) -> int:
        """Returns the number of rows."""

    @abstractmethod
    def records(self, start: int = 0, stop: int = maxsize, size: int = 1024) -> Iterator[Record]:
        """Yields the rows from ``start`` to before ``stop``; of a Parquet file ``size`` are in memory at a time.

        Raises:
            DataError: The file is truncated.
        """

    def class_names(self, column: str | None) -> tuple[str, ...]:
        """Returns the class names behind a column of numbers, where the file has them."""
        return ()

    def kind(self, column: str) -> "pa.DataType | None":
        """Returns the type of a column, or None where each row has its own."""
        return None

    def place(self, number: int) -> str:
        """Returns the place of a row for a person: ``x.csv:17``, ``x.parquet row 15``."""
        return f"{self.path}{self.numbered}{number}"

    def _check(self, present: Collection[str]) -> None:
        for column in self.columns:
            if column in self.required and column not in present:
                got = f"the columns {', '.join(present) or 'of an empty file'}"
                raise DataError(f"{self.path}: expected a column '{column}', got {got}. {self.hint}")

    def _broken(self, kind: str, error: Exception) -> DataError:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        return DataError(f"{self.path}: expected a whole {kind} file, got: {reason}. Fetch it again.")


def open_table(path: Located, columns: Sequence[str], *, required: Collection[str], hint: str) -> Table:
    """Returns the rows of a ``.csv`` (with a header), ``.jsonl``, ``.ndjson`` or ``.parquet`` file, text in UTF-8.

    ``required`` columns must exist: in the file, or in each row of JSON Lines. ``hint`` is the next step in the message
    where one is missing, a sentence.

    Raises:
        DataError: The file is not whole, or a required column is missing.
    """
    kinds = {".csv": _CsvTable, ".parquet": _ParquetTable}
    return kinds.get(path.suffix.lower(), _JsonTable)(path, columns, required, hint)


class _ParquetTable(Table):
    """The rows of a Parquet file, numbered from 0."""

    numbered = " row "

    def _open(self) -> None:
        with self._opened() as file:
            self._schema, self._rows = file.schema_arrow, int(file.metadata.num_rows)
            self._groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._check(self._schema.names)

    def count(self) -> int:
        return self._rows

    def class_names(self, column: str | None) -> tuple[str, ...]:
        try:  # the metadata of the Hugging Face hub
            features = json.loads((self._schema.metadata or {})[b"huggingface"])["info"]["features"]
            return tuple(str(name) for name in features[column]["names"])
        except (KeyError, TypeError, ValueError):
            return ()

    def kind(self, column: str) -> "pa.DataType | None":
        return self._schema.field(column).type

    def records(self, start: int = 0, stop: int = maxsize, size: int = 1024) -> Iterator[Record]:
        stop = min(stop, self._rows)
        if start >= stop:
            return
        ends = list(accumulate(self._groups))
        groups = list(range(bisect_right(ends, start), bisect_left(ends, stop) + 1))
        row = ends[groups[0]] - self._groups[groups[0]]
        present = [column for column in self.columns if column in self._schema.names]
        with self._opened() as file:
            for batch in file.iter_batches(size, row_groups=groups, columns=present):
                if row + len(batch) > start:
                    part = batch.slice(max(0, start - row), stop - max(start, row))
                    cells = {name: part.column(name).to_pylist() for name in present}
                    empty = [None] * len(part)
                    values = zip(*(cells.get(name, empty) for name in self.columns), strict=True)
                    yield from (Record(number, each) for number, each in enumerate(values, max(start, row)))
                row += len(batch)
                if row >= stop:
                    return

    @contextmanager
    def _opened(self) -> "Iterator[pq.ParquetFile]":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Buffered, a column is read page by page; otherwise a group of rows is, which may be the whole file.
            source, filesystem = for_arrow(self.path)
            with pq.ParquetFile(source, filesystem=filesystem, buffer_size=_BUFFER, pre_buffer=False) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise self._broken("Parquet", error) from error


class _LineTable(Table):
    """The rows of a file of lines, numbered by the line on which they begin, from 1."""

    def _open(self) -> None:
        next(self.records(), None)

    def count(self) -> int:
        return self._count

    def records(self, start: int = 0, stop: int = maxsize, size: int = 1024) -> Iterator[Record]:
        yield from islice(self._all(), start, stop)

    @cached_property
    def _count(self) -> int:
        count = 0
        with suppress(DataError):  # one more row has the reason why no others follow
            for _ in self._all():
                count += 1
            return count
        return count + 1

    def _all(self) -> Iterator[Record]:
        how: Any = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
        try:
            with io.TextIOWrapper(open_binary(self.path), **how) as file:
                yield from self._each(file)
        except OSError as error:
            raise self._broken(self.path.suffix.lstrip("."), error) from error

    @abstractmethod
    def _each(self, file: TextIO) -> Iterator[Record]: ...

    def _record(self, number: int, values: tuple[Any, ...]) -> Record:
        if any(isinstance(value, str) and not value.isascii() and _NO_UTF8.search(value) for value in values):
            return Record(number, (), "expected text in UTF-8, got other bytes")
        return Record(number, values)


class _CsvTable(_LineTable):
    """The rows of a CSV file with a header, its cells separated by commas; an empty cell is None.

    The csv module limits the length of a cell for the whole process, and loses all behind a quote that is not closed.
    """

    def _each(self, file: TextIO) -> Iterator[Record]:
        lines = _Lines(file)
        header: list[str] | None = None
        places: list[int | None] = []
        while (line := lines.take()) is not None:
            if not line.strip("\r\n"):
                continue
            number = lines.number
            try:
                cells = _cells(line, lines)
            except ValueError as error:
                if header is not None:
                    yield Record(number, (), str(error))
                    continue
                raise self._broken("CSV", error) from error
            if header is None:
                header = cells
                if _NO_UTF8.search(line):
                    raise self._broken("CSV", ValueError("a header that is not in UTF-8"))
                self._check(header)
                places = [header.index(column) if column in header else None for column in self.columns]
            elif len(cells) != len(header):
                yield Record(number, (), f"expected {len(header)} fields as in the header, got {len(cells)}")
            else:
                yield self._record(number, tuple(None if at is None else cells[at] or None for at in places))
        if header is None:
            self._check(())


class _JsonTable(_LineTable):
    """The rows of a file with one JSON object a line."""

    def _each(self, file: TextIO) -> Iterator[Record]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Record(number, (), f"expected a JSON object, got: {error}")
                continue
            if not isinstance(entry, dict):
                yield Record(number, (), f"expected a JSON object, got {type(entry).__name__}")
            elif missing := [column for column in self.columns if column in self.required and column not in entry]:
                yield Record(number, (), f"expected a JSON object with '{missing[0]}', got none in it")
            else:
                yield self._record(number, tuple(map(entry.get, self.columns)))


class _Lines:
    """Lines, taken one by one and given back; ``number`` is that of the last line taken, from 1."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._back, self.number = lines, deque[str](), 0

    def take(self) -> str | None:
        line = self._back.popleft() if self._back else next(self._lines, None)
        self.number += line is not None
        return line

    def give_back(self, lines: Sequence[str]) -> None:
        self._back.extendleft(reversed(lines))
        self.number -= len(lines)


def _cells(line: str, lines: _Lines) -> list[str]:
    """The cells of the row that begins with a line; after a ValueError the next line is that behind it.

    A cell in quotes may hold commas, line ends and doubled quotes (RFC 4180).
    """
    if '"' not in line:
        return line.rstrip("\r\n").split(",")
    cells: list[str] = []
    taken: list[str] = []
    at = 0
    while True:
        if not line.startswith('"', at):
            end = line.find(",", at)
            if end < 0:
                return [*cells, line[at:].rstrip("\r\n")]
            cells.append(line[at:end])
            at = end + 1
            continue
        parts: list[str] = []
        at, length = at + 1, 0
        while (quoted := _TO_CLOSING_QUOTE.match(line, at)) is None:
            parts.append(line[at:])
            length += len(parts[-1])
            following = lines.take() if length < _LONGEST else None
            if following is None:
                lines.give_back(taken)
                raise ValueError("expected a quote that closes the cell, got none")
            taken.append(following)
            line, at = following, 0
        cells.append("".join([*parts, quoted[1]]).replace('""', '"'))
        at = quoted.end() + 1
        if not line[at - 1 : at + 1].strip("\r\n"):
            return cells
        if line[at - 1] != ",":
            lines.give_back(taken)
            raise ValueError("expected a comma behind the quote that closes a cell, got more text")


def find_shards(path: Located) -> Sequence[Located]:
    """Returns the Parquet files of a folder in the order of their names, hidden ones excluded."""
    if isinstance(path, RemotePath):
        return (path / "*.parquet").matching()
    found: list[Path] = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    return found
