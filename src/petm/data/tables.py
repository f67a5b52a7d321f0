"""Rows of Parquet, CSV and JSON Lines files, each with its number; a fault in one leaves the others readable."""

import codecs
import io
import json
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from sys import maxsize
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from petm._internal.storage import Located, RemotePath, check_regular, for_arrow, open_binary
from petm._internal.texts import near
from petm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")

_BUFFER = 1 << 20
"""Bytes of a Parquet file that are read at a time."""
_LONGEST = 1 << 26
"""Characters of a line, or of a quoted cell; a quote that is not closed within them was never closed."""
_MOST_LOST = 1 << 20
"""Rows of a damaged group, as many as Arrow puts into one; a file that claims more ends there."""
_FULL_LINES = 8
"""Lines in one quoted cell, each with as many commas as the header, that are taken for rows behind a stray quote."""
_TO_CLOSING_QUOTE = re.compile(r'((?:[^"]+|"")*+)"')
_GZIP = b"\x1f\x8b"
_NO_UTF8 = re.compile("[\ud800-\udfff]")
"""Stands for bytes that are no UTF-8, or for half an escaped character in JSON."""

FORMULA = r"'*[=+\-@\t\r\n]"
"""Start of a cell that a spreadsheet may run, or that `guard` has put behind an apostrophe."""


def guard(cell: str) -> str:
    """Returns a CSV cell that no spreadsheet runs as a formula: behind an apostrophe where it looks like one.

    >>> guard("=1+2"), unguard("'=1+2"), unguard("'tis")
    ("'=1+2", '=1+2', "'tis")
    """
    return f"'{cell}" if re.match(FORMULA, cell) else cell


def unguard(cell: str) -> str:
    """Returns the text of a cell that `guard` has made."""
    return cell[1:] if re.match(f"'{FORMULA}", cell) else cell


class Record(NamedTuple):
    """One row of a table."""

    number: int
    """The line on which it begins, or in a Parquet file the row; both from 1."""
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
            DataError: The rest of the file cannot be read.
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
            if (times := list(present).count(column)) > 1:
                raise DataError(
                    f"{self.path}: expected one column '{column}', got {times}. Rename or leave out all but one."
                )
            if column in self.required and not times:
                got = f"the columns {', '.join(present) or 'of an empty file'}{near(column, present)}"
                raise DataError(f"{self.path}: expected a column '{column}', got {got}. {self.hint}")

    def _broken(self, kind: str, error: Exception) -> DataError:
        return DataError(f"{self.path}: expected a whole {kind} file, got: {_first_line(error)}. Fetch it again.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


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
    """The rows of a Parquet file, numbered from 1."""

    numbered = " row "

    def _open(self) -> None:
        with self._opened() as file:
            self._schema = file.schema_arrow
            self._groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            if min(self._groups, default=0) < 0 or sum(self._groups) != file.metadata.num_rows:
                raise OSError(f"groups of {sum(self._groups)} rows in a file of {file.metadata.num_rows}")
            names = self._schema.names
        self._check(names)
        self._present = [column for column in self.columns if column in names]

    def count(self) -> int:
        return sum(self._groups)

    def class_names(self, column: str | None) -> tuple[str, ...]:
        try:  # the metadata of the Hugging Face hub
            features = json.loads((self._schema.metadata or {})[b"huggingface"])["info"]["features"]
            return tuple(str(name) for name in features[column]["names"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return ()

    def kind(self, column: str) -> "pa.DataType | None":
        return self._schema.field(column).type

    def records(self, start: int = 0, stop: int = maxsize, size: int = 1024) -> Iterator[Record]:
        row = 0
        with self._opened() as file:
            for group, length in enumerate(self._groups):
                if row < stop and start < row + length:
                    yield from self._group(file, group, row, range(max(start, row), min(stop, row + length)), size)
                row += length

    def _group(self, file: "pq.ParquetFile", group: int, row: int, wanted: range, size: int) -> Iterator[Record]:
        """The wanted rows of a group whose first row is ``row``; each has a fault where a page is damaged.

        A damaged length in a page shifts the values behind it, which only the page's end shows. So a group on this
        machine is read twice; stores notice damage themselves.
        """
        import pyarrow as pa

        how: Any = {"batch_size": size, "row_groups": [group], "columns": self._present}
        try:
            if isinstance(self.path, Path):
                found = sum(map(len, file.iter_batches(**how)))
                if found != self._groups[group]:
                    raise OSError(f"{found} of {self._groups[group]} rows")
            for batch in file.iter_batches(**how):
                start, stop = max(row, wanted.start), min(row + len(batch), wanted.stop)
                if start < stop:
                    yield from self._numbered(batch.slice(start - row, stop - start), start + 1)
                row += len(batch)
                if row >= wanted.stop:
                    return
        except (OSError, pa.ArrowException) as error:
            if wanted.stop - row > _MOST_LOST:
                raise
            fault = f"expected whole pages in the group of this row, got: {_first_line(error)}"
            yield from (Record(number, (), fault) for number in range(max(row, wanted.start) + 1, wanted.stop + 1))

    def _numbered(self, part: "pa.RecordBatch", first: int) -> Iterator[Record]:
        """The rows of a batch; a cell without a value in Python, such as text that is no UTF-8, is a fault."""
        empty = [None] * len(part)
        try:
            cells = {name: part.column(name).to_pylist() for name in self._present}
        except (ValueError, OverflowError) as error:
            if len(part) > 1:
                for row in range(len(part)):
                    yield from self._numbered(part.slice(row, 1), first + row)
            else:
                yield Record(first, (), f"expected values that can be read, got: {_first_line(error)}")
            return
        values = zip(*(cells.get(name, empty) for name in self.columns), strict=True)
        yield from (Record(number, each) for number, each in enumerate(values, first))

    @contextmanager
    def _opened(self) -> "Iterator[pq.ParquetFile]":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Buffered, a column is read page by page; otherwise a group of rows is, which may be the whole file.
            if isinstance(self.path, Path):
                check_regular(self.path)
            source, filesystem = for_arrow(self.path)
            how = {"buffer_size": _BUFFER, "pre_buffer": False, "page_checksum_verification": True}
            with pq.ParquetFile(source, filesystem=filesystem, **how) as file:
                yield file
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise self._broken("Parquet", error) from error


def _not_utf_8(start: bytes) -> str | None:
    """What the first bytes of a file are instead of text in UTF-8, and the next step; None where they may be that."""
    if start.startswith(_GZIP):
        return "a gzip file. Unpack it (gunzip)"
    zeros = [start[parity::2].count(0) * 4 > len(start) for parity in (0, 1)]  # of each letter's two bytes one is 0
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or any(zeros):
        return "UTF-16. Save it in UTF-8"
    return None


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
            with open_binary(self.path) as content, io.TextIOWrapper(content, **how) as file:
                if (other := _not_utf_8(content.peek(64)[:64])) is not None:
                    raise DataError(f"{self.path}: expected text in UTF-8, got {other}.")
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
        while (line := lines.begin()) is not None:
            if not line.strip("\r\n"):
                continue
            number = lines.number
            try:
                cells = _cells(line, lines, 0 if header is None else len(header))
            except ValueError as error:
                if header is not None:
                    yield Record(number, (), str(error))
                    continue
                raise self._broken("CSV", error) from error
            if header is None:
                header = cells
                if _NO_UTF8.search(line) or "\0" in line:
                    raise self._broken("CSV", ValueError("a header that is not in UTF-8"))
                if len(header) == 1 and header[0] not in self.columns and (other := re.search("[;\t|]", line)):
                    got = f"the header {line.strip()[:60]!r}"
                    step = f"Write commas in place of {other[0]!r}"
                    raise DataError(f"{self.path}: expected cells separated by commas, got {got}. {step}.")
                self._check(header)
                places = [header.index(column) if column in header else None for column in self.columns]
            else:
                yield self._record(number, tuple(None if at is None else cells[at] or None for at in places))
        if header is None:
            self._check(())


class _JsonTable(_LineTable):
    """The rows of a file with one JSON object a line."""

    def _each(self, file: TextIO) -> Iterator[Record]:
        lines = _Lines(file)
        while (line := lines.begin()) is not None:
            if not line.strip():
                continue
            try:
                _refuse_long(line)
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Record(lines.number, (), f"expected a JSON object, got: {error}")
                continue
            if not isinstance(entry, dict):
                yield Record(lines.number, (), f"expected a JSON object, got {type(entry).__name__}")
            elif missing := [column for column in self.columns if column in self.required and column not in entry]:
                yield Record(lines.number, (), f"expected a JSON object with '{missing[0]}', got none in it")
            else:
                yield self._record(lines.number, tuple(map(entry.get, self.columns)))


class _Lines:
    """The lines of a file, cut after `_LONGEST` characters, and given back where a row ends before them.

    Attributes:
        number: Number of the last line taken, from 1.
        taken: The lines of this row.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._back, self.number, self.taken = file, deque[str](), 0, list[str]()

    def begin(self) -> str | None:
        """Returns the first line of the next row, or None at the end."""
        self.taken.clear()
        return self.take()

    def take(self) -> str | None:
        """Returns the next line of this row, or None at the end."""
        line = self._back.popleft() if self._back else self._file.readline(_LONGEST)
        if not line:
            return None
        rest = line
        while len(rest) >= _LONGEST and rest[-1] not in "\r\n":
            rest = self._file.readline(_LONGEST)
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """Gives back all lines of this row but the first."""
        self._back.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def _refuse_long(line: str) -> None:
    if len(line) >= _LONGEST:
        raise ValueError(f"a line of more than {_LONGEST:,} characters")


def _cells(line: str, lines: _Lines, width: int) -> list[str]:
    """The ``width`` cells of the row that begins with a line, or any number where ``width`` is 0.

    A cell in quotes may hold commas, line ends and doubled quotes (RFC 4180). After a ValueError the next line is that
    behind the row; where a quote seems to be a stray one, that behind the row's first line.
    """
    try:
        _refuse_long(line)
        cells = _split(line, lines)
    except ValueError:
        lines.give_back()
        raise
    if width:
        others = lines.taken[:-1]
        full = bool(others) and width > 1 and all(each.count(",") == width - 1 for each in others)
        if full and (len(cells) != width or len(others) >= _FULL_LINES):
            lines.give_back()
            raise ValueError("expected a quote that closes the cell, got whole rows before one")
        if len(cells) != width:
            raise ValueError(f"expected {width} fields as in the header, got {len(cells)}")
    return cells


def _split(line: str, lines: _Lines) -> list[str]:
    if '"' not in line:
        return line.rstrip("\r\n").split(",")
    cells: list[str] = []
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
                raise ValueError("expected a quote that closes the cell, got none")
            line, at = following, 0
        cells.append("".join([*parts, quoted[1]]).replace('""', '"'))
        at = quoted.end() + 1
        if not line[at - 1 : at + 1].strip("\r\n"):
            return cells
        if line[at - 1] != ",":
            raise ValueError("expected a comma behind the quote that closes a cell, got more text")


def find_shards(path: Located) -> Sequence[Located]:
    """Returns the Parquet files of a folder in the order of their names, hidden ones excluded."""
    if isinstance(path, RemotePath):
        return (path / "*.parquet").matching()
    found: list[Path] = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    return found
