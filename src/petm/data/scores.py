"""Labelled tables of class probabilities or scores, read into arrays a block at a time."""

import csv
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petm._internal.storage import Located
from petm._internal.texts import near
from petm.data.labels import UNLABELLED, Label, beside, class_numbers, enumerated, in_order, normal_name, refuse_faults
from petm.data.sources import matching
from petm.data.tables import TABLE_SUFFIXES, find_shards, open_table
from petm.errors import DataError, PetmWarning
from petm.selective.groups import Coded, text_of
from petm.selective.plain import Columns, Predictions, number_faults

_HINT = "Name the columns (--probability-columns, --prediction-column, --score-column, --label-column)."
_BLOCK, _ROWS = 1 << 22, 1 << 15
"""Bytes of CSV, and rows of other tables, that are read at a time."""


class LabelledScores(NamedTuple):
    """Predictions with their true classes, and the class names."""

    predictions: Predictions
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


class _Block(NamedTuple):
    """Some rows: numbers, cells as float64 ``(n, C)``, codes of predictions, labels and groups, and faults by place."""

    numbers: NDArray[np.int64]
    values: NDArray[np.float64]
    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: list[NDArray[np.int64]]
    faults: dict[int, str]


def open_tables(paths: Iterable[str | Path]) -> list[Located]:
    """Returns the tables at paths, in folders of Parquet files and of globs; raises DataError for anything else."""
    found = [each for path in paths for place in matching(path, globs=True) for each in _tables_at(place)]
    for path in found:
        if path.suffix.lower() not in TABLE_SUFFIXES:
            kinds = ", ".join(TABLE_SUFFIXES)
            raise DataError(f"{path}: expected a table of scores ({kinds}), got a file of the kind '{path.suffix}'.")
    return found


def _tables_at(place: Located) -> Sequence[Located]:
    if not place.is_dir():
        return [place]
    if not (shards := find_shards(place)):
        raise DataError(f"{place}: expected a folder of Parquet files, got none in it. Name a table.")
    return shards


def columns_of(
    path: Located,
    *,
    probability_columns: Sequence[str] = (),
    prediction_column: str | None = None,
    score_columns: Sequence[str] = (),
    higher_is_suspect: bool = False,
    group_columns: Sequence[str] = (),
) -> tuple[Columns, tuple[str, ...]]:
    """Returns the columns that are read of a table, and the class names by those of probabilities.

    Args:
        path: The table.
        probability_columns: Names of columns, or one prefix of these; a prefix that all have is no part of the classes.
        prediction_column: Column of predicted classes.
        score_columns: Columns of scores.
        higher_is_suspect: Whether a higher score is less sure.
        group_columns: Columns whose values are groups.

    Raises:
        DataError: The table cannot be read, or lacks a column.
    """
    present = _names_in(path)
    names, classes = tuple(probability_columns), tuple(probability_columns)
    if len(names) == 1:
        prefix = names[0]
        names = tuple(name for name in present if name.startswith(prefix) and name != prefix)
        if len(names) < 2:
            raise DataError(
                f"{path}, probability_columns: expected at least two columns that begin with {prefix!r}, got "
                f"{len(names)} among {', '.join(present)}{near(prefix, present)}. {_HINT}"
            )
        classes = tuple(name[len(prefix) :] for name in names)
    elif names:
        shared = _shared_prefix(names)
        classes = tuple(name[len(shared) :] for name in names)
    columns = Columns(names, prediction_column, tuple(score_columns), higher_is_suspect, tuple(group_columns))
    wanted = columns.all
    if twice := next((name for name in wanted if wanted.count(name) > 1), None):
        raise DataError(f"{path}: expected each column in one role, got {twice!r} twice. {_HINT}")
    return columns, classes


def _shared_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to the last ``_.:-`` or space; nothing where one would be empty."""
    first, last = min(names), max(names)
    length = next((at for at, letter in enumerate(first) if letter != last[at : at + 1]), 0)
    while length and first[length - 1] not in "_.:- ":
        length -= 1
    return first[:length] if length < len(first) else ""


def _names_in(path: Located) -> list[str]:
    """The names of a table's columns; of JSON Lines those of the first row."""
    from petm._internal.storage import for_arrow, open_binary

    table = open_table(path, (), required=(), hint=_HINT)  # which refuses what is no table
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        source, filesystem = for_arrow(path)
        return list(pq.read_schema(source, filesystem=filesystem).names)
    with open_binary(path) as file:
        first = next((line for line in file if line.strip()), b"").decode("utf-8-sig", "replace")
    if path.suffix.lower() == ".csv":
        return next(csv.reader([first]), [])
    record = next(table.records(0, 1), None)
    if record is None or record.fault is not None:
        raise DataError(f"{path}: expected a JSON object in the first row, got {(record and record.fault) or 'none'}.")
    return list(json.loads(first))


class _Codes:
    """Labels in the order in which they are met, and why some are none."""

    def __init__(self, *, untyped: bool) -> None:
        self.untyped, self.known, self.bad = untyped, dict[Label | str, int](), dict[int, str]()

    def of(self, values: Sequence[object]) -> NDArray[np.int64]:
        """Returns the code of each value, `UNLABELLED` where there is none."""
        found = dict[object, int]()
        return np.array([found.get(each, -2) if each in found else found.setdefault(each, self._code(each))
                         for each in values], np.int64)  # fmt: skip

    def of_arrow(self, column: Any) -> NDArray[np.int64]:
        """Returns the codes of an Arrow column."""
        told = column.dictionary_encode()
        codes = np.append(self.of(told.dictionary.to_pylist()), UNLABELLED)
        found: NDArray[np.int64] = codes[told.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)]
        return found

    def _code(self, value: object) -> int:
        try:
            label = beside(value, None, untyped=self.untyped)
        except ValueError as error:
            code = self.known.setdefault(f"no label: {value!r}", len(self.known))
            self.bad[code] = str(error)
            return code
        if label is None or (not self.untyped and label == UNLABELLED):
            return UNLABELLED
        return self.known.setdefault(label, len(self.known))


class _Texts(_Codes):
    """Texts in the order in which they are met, such as values of a group column."""

    def __init__(self) -> None:
        super().__init__(untyped=True)

    def _code(self, value: object) -> int:
        text = text_of(value)
        return self.known.setdefault(text, len(self.known)) if text else UNLABELLED


class _Scores:
    """The rows of one table in blocks; by Arrow while that takes the file as it is, else row by row."""

    def __init__(self, path: Located, columns: Columns, label: str | None) -> None:
        self.path, self.columns, self.label = path, columns, label
        untyped = path.suffix.lower() == ".csv"
        self.predicted, self.labels = _Codes(untyped=untyped), _Codes(untyped=untyped)
        self.groups = [_Texts() for _ in columns.groups]
        self.names = (*columns.all, *([label] if label else []))
        self.table = open_table(path, self.names, required=self.names, hint=_HINT)

    def blocks(self, *, by_arrow: bool = True) -> Iterator[_Block]:
        """Yields all rows; raises DataError where the rest of the file cannot be read.

        Arrow does not count the lines within quotes, so from a block with a fault on rows are read one by one.
        """
        import pyarrow as pa

        done = 0
        try:
            for batch in self._batches() if by_arrow else ():
                block = self._of_arrow(batch, done)
                if block.faults:
                    break
                yield block
                done += len(block.numbers)
            else:
                if by_arrow:
                    return
        except (OSError, pa.ArrowException):
            pass  # the reader of rows says why, and reads what is behind
        rows = self.table.records(done)
        while some := list(islice(rows, _ROWS)):
            yield self._of_rows(some)

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa

        if not isinstance(self.path, Path) or not self.path.is_file():
            raise OSError("not for Arrow")
        if self.path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            yield from pq.ParquetFile(self.path).iter_batches(_ROWS, columns=list(self.names))
            return
        if self.path.suffix.lower() != ".csv":
            raise OSError("not for Arrow")
        from pyarrow import csv as arrow_csv

        kinds = {name: pa.float64() if name in self.columns.numbers else pa.string() for name in self.names}
        yield from (
            arrow_csv.open_csv(
                self.path,
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
                parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=kinds, include_columns=list(self.names), null_values=[""], strings_can_be_null=True
                ),
            )
        )

    def _of_arrow(self, batch: Any, done: int) -> _Block:
        import pyarrow as pa

        first = done + (2 if self.path.suffix.lower() == ".csv" else 1)
        cells = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
        numbers = [cells[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in self.columns.numbers]
        values = np.column_stack(numbers) if numbers else np.empty((len(batch), 0))
        predicted = self.predicted.of_arrow(cells[self.columns.prediction]) if self.columns.prediction else None
        labels = self.labels.of_arrow(cells[self.label]) if self.label else None
        groups = [kinds.of_arrow(cells[name]) for kinds, name in zip(self.groups, self.columns.groups, strict=True)]
        return self._checked(np.arange(first, first + len(batch)), values, predicted, labels, groups, {})

    def _of_rows(self, rows: Sequence[Any]) -> _Block:
        faults = {place: row.fault for place, row in enumerate(rows) if row.fault is not None}
        empty = (None,) * len(self.names)
        cells = list(zip(*(row.values or empty for row in rows), strict=True))
        values, unlike = matrix_of(cells[: len(self.columns.numbers)], self.columns)
        rest = cells[len(self.columns.numbers) :]
        predicted = self.predicted.of(rest[0]) if self.columns.prediction else None
        labels = self.labels.of(rest[-1]) if self.label else None
        groups = [
            kinds.of(cells[self.names.index(name)])
            for kinds, name in zip(self.groups, self.columns.groups, strict=True)
        ]
        numbers = np.array([row.number for row in rows], np.int64)
        return self._checked(numbers, values, predicted, labels, groups, unlike | faults)

    def _checked(
        self,
        numbers: NDArray[np.int64],
        values: NDArray[np.float64],
        predicted: NDArray[np.int64] | None,
        labels: NDArray[np.int64] | None,
        groups: list[NDArray[np.int64]],
        faults: dict[int, str],
    ) -> _Block:
        for codes, kinds, name in (
            (predicted, self.predicted, self.columns.prediction), (labels, self.labels, self.label)
        ):  # fmt: skip
            for code, reason in kinds.bad.items() if codes is not None else ():
                faults |= dict.fromkeys(np.flatnonzero(codes == code).tolist(), f"{reason} in column '{name}'")
        if predicted is not None:
            for row in np.flatnonzero(predicted == UNLABELLED).tolist():
                faults.setdefault(row, f"expected a prediction in column '{self.columns.prediction}', got nothing")
        others = number_faults(values, self.columns)
        faults = {row: reason for row, (_, reason) in others.items()} | faults
        none = np.full(len(numbers), UNLABELLED)
        predicted, labels = (none if each is None else each for each in (predicted, labels))
        return _Block(numbers, values, predicted, labels, groups, faults)


def matrix_of(cells: Sequence[Sequence[object]], columns: Columns) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Returns columns of cells as float64 ``(n, C)``, NaN for none, and why cells are no numbers, by row."""
    faults = dict[int, str]()
    found = []
    for name, column in zip(columns.numbers, cells, strict=True):
        try:
            found.append(np.array(column, np.float64))
        except (TypeError, ValueError):
            values = np.full(len(column), np.nan)
            for row, cell in enumerate(column):
                try:
                    values[row] = np.nan if cell is None else float(cell)  # type: ignore[arg-type]
                except (TypeError, ValueError):
                    faults.setdefault(row, f"expected a number in column '{name}', got {cell!r:.60}")
            found.append(values)
    return np.column_stack(found) if found else np.empty((0, 0)), faults


def read_labelled_scores(
    paths: Sequence[Located],
    columns: Columns,
    label_column: str,
    *,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
) -> LabelledScores:
    """Returns the rows of tables whose true class is known; a warning counts the others.

    Args:
        paths: Tables.
        columns: The columns to read.
        label_column: The column of true classes.
        classes: ``K`` class names; absent takes those of predictions and labels.
        skip_bad: Whether to leave out rows that cannot be read.

    Raises:
        DataError: A table cannot be read or is empty; a row has a fault; no row has a label; or a label is no class.
    """
    tables = [_Scores(path, columns, label_column) for path in paths]
    held: list[tuple[_Block, NDArray[np.bool_]]] = []
    faults, unlabelled, rows = dict[str, str](), 0, 0
    ends = []
    for table in tables:
        for block in table.blocks():
            good = np.ones(len(block.numbers), bool)
            good[list(block.faults)] = False
            for place in sorted(block.faults):
                faults[table.table.place(int(block.numbers[place]))] = block.faults[place]
            unlabelled += int((good & (block.labels == UNLABELLED)).sum())
            held.append((block, good & (block.labels != UNLABELLED)))
            rows += len(block.numbers)
        ends.append(len(held))
    source = ", ".join(map(str, paths))
    if not rows:
        raise DataError(f"{source}: expected at least one row, got none. Name a table with rows.")
    if faults and not skip_bad:
        refuse_faults(faults, "Mend the table, or leave such rows out with skip_bad=True (--skip-bad).")
    kept = sum(int(good.sum()) for _, good in held)
    if not kept:
        raise DataError(f"{source}: expected true labels in column '{label_column}', got none in {rows:,} rows.")
    if faults:
        where, reason = next(iter(faults.items()))
        _warn(f"{source}: expected rows that can be read, got {len(faults):,} that cannot ({where}: {reason}). These "
              f"are left out.")  # fmt: skip
    if unlabelled:
        _warn(f"{source}: expected a label in each row, got {unlabelled:,} of {rows:,} without one. These are left "
              f"out: if they are others than the labelled, a guarantee does not hold for them.")  # fmt: skip
    names = tuple(classes) or _classes_in(tables)
    labels, predicted, start = [], [], 0
    for table, end in zip(tables, ends, strict=True):
        of_labels = _numbers(table, table.labels, names, label_column)
        of_predictions = _numbers(table, table.predicted, names, columns.prediction or "")
        for block, good in held[start:end]:
            labels.append(of_labels[block.labels[good]])
            predicted.append(of_predictions[block.predicted[good]])
        start = end
    values = np.concatenate([block.values[good] for block, good in held])
    groups = {name: _coded(place, tables, ends, held) for place, name in enumerate(columns.groups)}
    del held
    kinds = columns.shape[0]
    told = np.concatenate(predicted) if columns.prediction else None
    return LabelledScores(
        Predictions.checked(told, values[:, :kinds], values[:, kinds:], columns, groups), np.concatenate(labels), names
    )


def _coded(
    place: int, tables: Sequence[_Scores], ends: Sequence[int], held: Sequence[tuple[_Block, NDArray[np.bool_]]]
) -> Coded:
    """A group column of all tables."""
    names, codes, start = dict[str, int](), [], 0
    for table, end in zip(tables, ends, strict=True):
        known = [names.setdefault(str(text), len(names)) for text in table.groups[place].known]
        codes += [np.array([*known, -1])[block.groups[place][good]] for block, good in held[start:end]]
        start = end
    return Coded(tuple(names), np.concatenate(codes))


def _warn(text: str) -> None:
    warnings.warn(text, PetmWarning, stacklevel=3)


def _classes_in(tables: Sequence[_Scores]) -> tuple[str, ...]:
    return in_order(
        normal_name(str(label)) for table in tables for kinds in (table.predicted, table.labels)
        for label, code in kinds.known.items() if code not in kinds.bad
    )  # fmt: skip


def _numbers(table: _Scores, kinds: _Codes, classes: Sequence[str], column: str) -> NDArray[np.int64]:
    """The class number of each code, and `UNLABELLED` at the end."""
    known: list[Label] = [label for label, code in kinds.known.items() if code not in kinds.bad]
    try:
        found: Mapping[Any, int] = class_numbers(known, classes)
    except ValueError as error:
        raise DataError(f"{table.path}, column '{column}': {error}") from error
    if unknown := [label for label in known if label not in found]:
        raise DataError(
            f"{table.path}{_place_of(table, kinds, unknown[0])}: expected one of the classes {enumerated(classes)} in "
            f"column '{column}', got {str(unknown[0])!r:.60}{near(unknown[0], classes)}. Rename it, or remove the row."
        )
    return np.array([*(found.get(label, UNLABELLED) for label in kinds.known), UNLABELLED], np.int64)


def _place_of(table: _Scores, kinds: _Codes, label: Label) -> str:
    for block in _Scores(table.path, table.columns, table.label).blocks(by_arrow=False):  # codes are the same again
        codes = block.labels if kinds is table.labels else block.predicted
        if (at := np.flatnonzero(codes == kinds.known[label])).size:
            return f"{table.table.numbered}{int(block.numbers[at[0]])}"
    return ""
