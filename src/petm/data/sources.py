"""Inputs in their order, not decoded yet: from files, folders, tables, archives and lists of paths.

Fitting reads them once and then by index (`petm.data.image_data`, `petm.data.texts`); grading takes them as they come.
"""

import glob
import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from petm._internal.storage import Located, RemotePath, identity_of, locate
from petm.data.arrays import ArrayArchive
from petm.data.images import LEAVE_OUT, Found, first_image, images_below, is_sample
from petm.data.labels import LabelColumn, Name, beside, class_of_folder, refuse_faults
from petm.data.tables import TABLE_SUFFIXES, Record, find_shards, open_table
from petm.errors import DataError

Content = Located | bytes | str | NDArray[Any] | None
"""An image file, an encoded image, a text, an array ``(C, H, W)``; or nothing, where a cell is empty."""

Columns = str | tuple[str, ...]
"""The column of texts; or that column and others that belong to an input."""
TEXT = "text"
"""The name of the text among several columns, whatever its column is called."""


def as_content(values: Mapping[str, object]) -> str:
    """Returns a row of several columns as one text, a JSON object; of the text alone it is the text."""
    return str(values[TEXT]) if len(values) == 1 else json.dumps(dict(values), ensure_ascii=False, default=str)


def text_of(columns: Columns, cells: Sequence[object]) -> str | None:
    """Returns the text of an input, from the cells of its columns; None where one of them is empty."""
    if not cells or None in cells or not isinstance(cells[0], str):
        return None
    return as_content(dict(zip((TEXT, *names_of(columns)[1:]), cells, strict=True)))


def names_of(columns: Columns) -> tuple[str, ...]:
    """Returns the names of one or more columns."""
    return (columns,) if isinstance(columns, str) else columns


class Row(NamedTuple):
    """One input."""

    path: str
    number: int | None
    """Row in the file, or line in a file of lines, from 1; None where the file is one input."""
    content: Content = None
    label: object = None
    """A class number or name as it was read; None where there is none."""
    fault: str | None = None
    """Why the input cannot be read, where that is known already."""


class Source(ABC):
    """Inputs in an order that does not change.

    Attributes:
        name: The path of the file or folder.
        class_names: The names of the classes in their order, where the source knows one.
    """

    name: str
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def count(self) -> int:
        """Returns the number of inputs."""

    @abstractmethod
    def identity(self) -> str:
        """Returns names, sizes and times of change of the inputs as text, without their content."""

    @abstractmethod
    def rows(self, start: int, stop: int, size: int) -> Iterator[list[Row]]:
        """Yields the inputs from ``start`` to before ``stop``, up to ``size`` at a time.

        Raises:
            DataError: The file is not whole, or a column is missing or of an unsuitable type.
        """

    def place(self, row: int | None) -> str:
        """Returns the place of an input for a person, by its number as in `Row`."""
        return self.name if row is None else f"{self.name} row {row}"

    def parts(self, size: int) -> Iterator["Source"]:
        """Yields all inputs in parts of up to ``size``, sources that other processes can read."""
        for start in range(0, self.count(), size):
            yield _Part(self, start, start + size)


class _Part(Source):
    def __init__(self, whole: Source, start: int, stop: int) -> None:
        self.name, self.whole, self.start, self.stop = whole.name, whole, start, min(stop, whole.count())

    def count(self) -> int:
        return self.stop - self.start

    def identity(self) -> str:
        return f"{self.whole.identity()} {self.start} {self.stop}"

    def rows(self, start: int, stop: int, size: int) -> Iterator[list[Row]]:
        yield from self.whole.rows(self.start + start, min(self.start + stop, self.stop), size)


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while some := list(islice(rows, size)):
        yield some


class _ImageFiles(Source):
    """Image files in the fixed order of ``find()``; their paths are not kept."""

    def __init__(self, name: str, find: Callable[[], Iterator[Found]]) -> None:
        self.name, self.find = name, find

    def count(self) -> int:
        return self._seen[0]

    def identity(self) -> str:
        return self._seen[1]

    def rows(self, start: int, stop: int, size: int) -> Iterator[list[Row]]:
        yield from _chunks(map(self._row, islice(self.find(), start, stop)), size)

    def _row(self, found: Found) -> Row:
        content = Path(found.path) if isinstance(found.path, str) else found.path
        return Row(str(found.path), None, content, found.label and Name(class_of_folder(found.label)), found.fault)

    def parts(self, size: int) -> Iterator[Source]:
        found = self.find()
        while some := tuple(islice(found, size)):
            yield listed(some, self.name)

    @cached_property
    def _seen(self) -> tuple[int, str]:
        count, digest = 0, hashlib.sha256()
        for path, _, _ in self.find():
            count += 1
            digest.update(str(path).encode("utf-8", "surrogatepass") + b"\0")
            with suppress(OSError, ValueError):
                state = os.stat(path) if isinstance(path, str) else None
                digest.update(f"{state and (state.st_size, state.st_mtime_ns)}\0".encode())
        return count, digest.hexdigest()


def listed(paths: Sequence[Found], name: str = "images") -> Source:
    """Returns the files of a list."""
    return _ImageFiles(name, lambda: iter(paths))


class TableRows(Source):
    """The rows of a Parquet, CSV or JSON Lines file as encoded images or texts.

    Args:
        path: The file.
        column: Column of encoded images (binary, or a struct with a field ``bytes``) or of texts; with further columns,
            each row is one text in JSON (`as_content`).
        label_column: Column of labels; None reads none.
        texts: Whether the column holds texts.
        needs_labels: Whether the column of labels must exist.

    Raises:
        DataError: The file is not whole, or a column is missing or of an unsuitable type.
    """

    def __init__(
        self, path: Located, column: Columns, label_column: str | None, *, texts: bool, needs_labels: bool = False
    ) -> None:
        column, *self._others = (column,) if isinstance(column, str) else column
        self.name, self._column, self._texts, self._labelled = str(path), column, texts, label_column is not None
        self._untyped = path.suffix.lower() == ".csv"
        held = (column, *self._others)
        columns = (*held, label_column, f"{label_column}_name") if label_column else held
        known = path.suffix.lower() in (".csv", ".parquet")
        required = columns[: (len(held) if known else 1) + (needs_labels and known)]
        hint = "Name the columns of texts and labels (--text-column, --label-column)."
        hint = hint if texts else "Rename the columns of images and labels."
        self._table = open_table(path, columns, required=required, hint=hint)
        self.class_names = self._table.class_names(label_column)
        kind = self._table.kind(column)
        if kind is not None and not _suits(kind, texts=texts):
            wanted = "texts" if texts else "encoded images (binary, or a struct with a field bytes)"
            raise DataError(f"{path}: expected {wanted} in column '{column}', got {kind}. Name another column.")

    def count(self) -> int:
        """Returns the number of rows."""
        return self._table.count()

    def identity(self) -> str:
        """Returns path, size, time of change and column."""
        return f"{identity_of(self._table.path)} {' '.join((self._column, *self._others))}"

    def place(self, row: int | None) -> str:
        """Returns how a person would find a row again."""
        return self.name if row is None else self._table.place(row)

    def rows(self, start: int, stop: int, size: int) -> Iterator[list[Row]]:
        """Yields the rows from ``start`` to before ``stop``, up to ``size`` at a time."""
        yield from _chunks(map(self._row, self._table.records(start, stop, size)), size)

    @cached_property
    def holding(self) -> frozenset[int] | None:
        """The lines that hold in a labels file of ``petm serve``: of each input the last; None in other files."""
        if not self._labelled or self._table.path.suffix.lower() != ".jsonl":
            return None
        of_input = open_table(self._table.path, ("sha256", "confirmed"), required=(), hint="")
        first = next(of_input.records(0, 1), None)
        if first is None or None in (first.values or (None,)):
            return None
        return frozenset({each.values[0]: each.number for each in of_input.records() if each.values}.values())

    def _row(self, record: Record) -> Row:
        content, *others = record.values[: 1 + len(self._others)] or (None,)
        label, name = (*record.values[1 + len(self._others) :], None, None)[:2]
        if isinstance(content, dict):
            content = content.get("bytes")
        if self.holding is not None and record.number not in self.holding:
            label = None
        with suppress(ValueError):  # what is no label stays, and whoever needs it refuses it
            label = beside(label, None if self.class_names else name, untyped=self._untyped)
        if type(label) is int and 0 <= label < len(self.class_names):
            label = Name(self.class_names[label])
        fault = record.fault
        if fault is None and not (isinstance(content, str) and content.strip() if self._texts else content):
            kind = "a text" if self._texts else "an image"
            got = "nothing" if content in (None, b"") or isinstance(content, str) else type(content).__name__
            content, fault = None, f"expected {kind} in column '{self._column}', got {got}"
        if fault is None and self._others:
            content = as_content({TEXT: content, **dict(zip(self._others, others, strict=True))})
            empty = next((name for name, value in zip(self._others, others, strict=True) if value is None), None)
            fault = None if empty is None else f"expected a value in column '{empty}', got nothing"
        return Row(self.name, record.number, content, label, fault)


def _suits(kind: Any, *, texts: bool) -> bool:
    """Whether a column of a Parquet file holds texts or encoded images."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and not texts:
        kind = kind.field("bytes").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    of_texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    of_images = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(suits(kind) for suits in (of_texts if texts else of_images))


class ReadableRows:
    """The rows of sources that have no fault: their labels, and where those of tables stand.

    Attributes:
        tables: The tables among the sources.
        labels: Labels of the rows that `each` has yielded.
        skipped: Why rows were left out, by place.
    """

    def __init__(self) -> None:
        self.tables, self.labels, self.skipped = list[TableRows](), LabelColumn(), dict[str, str]()
        self._numbers, self._ends = array("q"), list[int]()

    def each(self, sources: Iterable[Source], size: int, *, skip_bad: bool) -> Iterator[Row]:
        """Yields the rows in order, of which ``size`` are read at a time.

        Raises:
            DataError: A file is not whole; or at the end, without ``skip_bad``, a row has a fault.
        """
        for source in sources:
            for row in (row for rows in source.rows(0, sys.maxsize, size) for row in rows):
                if row.label is None and isinstance(source, TableRows) and source.holding is not None:
                    continue  # its label was taken back, or replaced
                fault = row.fault or self.labels.add(row.label)
                if fault is not None:
                    self.skipped[row.path if row.number is None else source.place(row.number)] = fault
                    continue
                if row.number is not None:
                    self._numbers.append(row.number)
                yield row
            if isinstance(source, TableRows):
                self.tables.append(source)
                self._ends.append(len(self._numbers))
        if not skip_bad:
            refuse_faults(self.skipped, LEAVE_OUT)

    def place(self, index: int) -> str:
        """Returns the place of a row of the tables that `each` has yielded: ``train.csv:17``."""
        return self.tables[bisect_right(self._ends, index)].place(self._numbers[index])

    def at(self, index: int) -> tuple[str, int]:
        """Returns the path of such a row's table, and its number."""
        return self.tables[bisect_right(self._ends, index)].name, self._numbers[index]


class _ArrayRows(Source):
    """The rows of the array of images in a NumPy archive, numbered from 1."""

    def __init__(self, path: Located, *, labelled: bool) -> None:
        self.name, self._archive = str(path), ArrayArchive(path)
        self._labels = self._archive.labels if labelled else None

    def count(self) -> int:
        return len(self._archive)

    def identity(self) -> str:
        return identity_of(self._archive.path)

    def rows(self, start: int, stop: int, size: int) -> Iterator[list[Row]]:
        for first, images in self._archive.images(start, stop, size):
            labels = [None] * len(images) if self._labels is None else self._labels[first:].tolist()
            numbered = enumerate(zip(images, labels), first + 1)  # noqa: B905 - the labels of later images follow
            yield [Row(self.name, number, image, label) for number, (image, label) in numbered]


def open_sources(
    paths: Iterable[str | Path],
    *,
    text_column: Columns | None = None,
    label_column: str | None = None,
    keep_faults: bool = False,
) -> list[Source]:
    """Returns what paths, folders and globs stand for, in their order.

    Args:
        paths: Files, folders and globs; adjacent image files become one source.
        text_column: Column of texts; None reads images.
        label_column: Column of labels; None reads none. In folders of images, the sub-folders are the classes.
        keep_faults: Whether the paths are a list: none is a glob, and one of which nothing can be read is an input with
            a fault.

    Raises:
        DataError: There is nothing at a path, the classifier does not read its kind, or it lacks a column.
    """

    def opened(path: str | Path) -> Iterator[Found | Source]:
        try:
            for place in matching(path, globs=not keep_faults):
                remote = isinstance(place, RemotePath)
                if text_column is None and is_sample(place.name) and (remote or place.is_file()):
                    yield _found(place)
                else:
                    yield from _open_source(place, text_column, label_column)
        except DataError as error:
            if not keep_faults:
                raise
            yield _found(Path(path), str(error))

    sources: list[Source] = []
    for are_files, some in groupby((each for path in paths for each in opened(path)), lambda x: isinstance(x, Found)):
        each: Any = tuple(some)
        sources += [listed(each)] if are_files else each
    return sources


def _open_source(path: Located, text_column: Columns | None, label_column: str | None) -> list[Source]:
    """What one path stands for; the shards of a folder are several."""
    texts = text_column is not None
    wanted = f"texts ({', '.join(f'*{suffix}' for suffix in TABLE_SUFFIXES)})"
    wanted = wanted if texts else "images (files, folders, *.parquet, *.npz)"
    if path.is_dir():
        shards = find_shards(path) if texts else shards_of_images(path)
        if shards:
            return [source for shard in shards for source in _open_source(shard, text_column, label_column)]
        if texts:
            raise DataError(f"{path}: expected {wanted}, got a folder.")
        return [_ImageFiles(str(path), lambda: images_below(path))]
    if isinstance(path, Path) and not path.is_file():
        raise DataError(f"{path}: expected {wanted}, got a pipe or a device. Name other inputs.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet" or (texts and suffix in TABLE_SUFFIXES):
            return [TableRows(path, text_column or "image", label_column, texts=texts)]
        if not texts and suffix == ".npz":
            return [_ArrayRows(path, labelled=label_column is not None)]
    except DataError as error:
        if error.__cause__ is None:  # it is whole, and does not suit
            raise
        return [listed([_found(path, str(error))], str(path))]
    raise DataError(f"{path}: expected {wanted}, got a file of the kind '{suffix or path.name}'. Name other inputs.")


def shards_of_images(path: Located) -> Sequence[Located]:
    """Returns the Parquet files of a folder; raises DataError where images lie beside them."""
    shards = find_shards(path)
    if shards and (image := first_image(path)) is not None:
        raise DataError(
            f"{path}: expected Parquet files or images in a folder, got both ({shards[0].name} beside {image}). "
            f"Name the Parquet files, such as {path / '*.parquet'}, or move them away."
        )
    return shards


def matching(path: str | Path, *, globs: bool) -> list[Located]:
    """Returns what is at a path, at an address in a store, or matches a glob, in order; raises DataError for none."""
    place = locate(path)
    found: list[Located] = []
    if isinstance(place, RemotePath) and is_sample(place.name) and "*" not in place.name:
        found = [place]  # not asked for until it is fetched: a question for each would take hours for a list
    elif isinstance(place, Path) and os.path.exists(place):  # unlike Path.exists, it raises nothing
        found = [place]
    elif isinstance(place, RemotePath):
        found = [place] if place.exists() else [*place.matching()] if globs and "*" in place.key else []
    elif globs and "\0" not in str(path):
        found = [*sorted(map(Path, glob.glob(str(path))))]
    if not found:
        raise DataError(f"{place}: expected a file, a folder or a glob, got a path that does not exist. Check it.")
    return found


def _found(path: Located, fault: str | None = None) -> Found:
    return Found(path if isinstance(path, RemotePath) else str(path), None, fault)
