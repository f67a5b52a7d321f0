"""Rows of CSV, JSON Lines and Parquet files: the csv module as reference, numbers, faults, any part of the whole."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petm.data import tables
from petm.data.tables import Record, Table, open_table
from petm.errors import DataError


def opened(path: Path, *columns: str, required: int = 1) -> Table:
    return open_table(path, columns, required=columns[:required], hint="Name it.")


def records(path: Path, *columns: str, required: int = 1) -> list[tuple[int, tuple[object, ...], bool]]:
    """Number and values of each row, and whether it has a fault."""
    found = opened(path, *columns, required=required).records()
    return [(record.number, record.values, record.fault is not None) for record in found]


@pytest.mark.parametrize("seed", range(20))
def test_csv_is_read_as_by_the_csv_module(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    cells = ["a", 'x"y', '"', '""', ",", "\n", "\r\n", "é,\n\n,", " padded ", "long " * 50, ""]
    rows = [[chance.choice(cells), chance.choice(cells), chance.choice(cells)] for _ in range(60)]
    text = io.StringIO()
    how = {
        "lineterminator": chance.choice(["\n", "\r\n"]),
        "quoting": chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    }
    csv.writer(text, **how).writerows([["a", "b", "c"], *rows])  # type: ignore[arg-type]
    content = text.getvalue()
    if chance.random() < 0.5:
        content = content.removesuffix("\n").removesuffix("\r")
    (tmp_path / "x.csv").write_bytes(content.encode())
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    next(reader)
    expected, line = [], reader.line_num + 1
    for row in reader:
        if row:
            expected.append((line, tuple(cell or None for cell in row), False))
        line = reader.line_num + 1
    assert records(tmp_path / "x.csv", "a", "b", "c", required=3) == expected
    assert [row[1] for row in expected] == [tuple(cell or None for cell in row) for row in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('a,b\n1,2\n"3,4\n5,6\n', [(2, ("1", "2")), (3, None), (4, ("5", "6"))]),
        ('a,b\n"1"x,2\n3,4\n', [(2, None), (3, ("3", "4"))]),
        ('a,b\n"1\n2,3\n4,"5"\n6,7\n', [(2, None), (3, ("2", "3")), (4, ("4", "5")), (5, ("6", "7"))]),
        ('a,b\n5" disk,1\n2,3\n', [(2, ('5" disk', "1")), (3, ("2", "3"))]),
        ('a,b\n1\n\n1,2,3\n,\n', [(2, None), (4, None), (5, (None, None))]),
        ('\n\na,b\n"1\r\n2",3\r\n4,5', [(4, ("1\r\n2", "3")), (6, ("4", "5"))]),
        ('b,c,a\n"2",3,"1"', [(2, ("1", "2"))]),
        ('a,b\n1,"2",\n3,""\n', [(2, None), (3, ("3", None))]),
        ("a\n1\n", [(2, ("1", None))]),
        ('a,b\n"', [(2, None)]),
    ],
)  # fmt: skip
def test_what_follows_a_broken_row_is_still_read(
    tmp_path: Path, content: str, expected: list[tuple[int, tuple[str | None, ...] | None]]
) -> None:
    (tmp_path / "x.csv").write_bytes(content.encode())
    assert records(tmp_path / "x.csv", "a", "b") == [(number, row or (), row is None) for number, row in expected]


def test_a_quote_that_is_never_closed_is_not_looked_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_LONGEST", 100)
    (tmp_path / "x.csv").write_text('a\n"' + "1\n" * 500 + '"2"\n')
    found = records(tmp_path / "x.csv", "a")
    assert (found[0], len(found), found[-1]) == ((2, (), True), 501, (502, ("2",), False))


def test_long_cells_and_no_limit_for_the_process(tmp_path: Path) -> None:
    before, long = csv.field_size_limit(), "word " * 100_000
    (tmp_path / "x.csv").write_text(f'a\n{long}\n"{long}"\n')
    assert [row[1] for row in records(tmp_path / "x.csv", "a")] == [(long,), (long,)]
    assert csv.field_size_limit() == before


def test_json_lines(tmp_path: Path) -> None:
    lines = ['{"a": 1, "b": [2]}', "", '{"b": 1}', "{", '"a"', '{"a": null, "c": 3}', '{"a": "\\ud800"}', '{"a": "é"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert records(tmp_path / "x.jsonl", "a", "b") == [
        (1, (1, [2]), False), (3, (), True), (4, (), True), (5, (), True), (6, (None, None), False), (7, (), True),
        (8, ("é", None), False),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_any_part_is_that_part_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"x{suffix}", [{"a": f"text {n}", "b": str(n)} for n in range(11)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif suffix == ".csv":
        path.write_text("b,a\n" + "".join(f"{row['b']},{row['a']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = opened(path, "a", "none", "b")
    whole = list(table.records())
    assert [record.values for record in whole] == [(row["a"], None, row["b"]) for row in rows]
    first = {".csv": 2, ".jsonl": 1, ".parquet": 0}[suffix]
    assert [record.number for record in whole] == list(range(first, first + 11))
    assert table.count() == 11
    for start in range(12):
        for stop in range(start, 13):
            assert list(table.records(start, stop, size=3)) == whole[start:stop]
    assert isinstance(whole[0], Record)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.jsonl"])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: "):
        opened(tmp_path / name, "a")
