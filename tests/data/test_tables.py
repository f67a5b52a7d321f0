"""Rows of CSV, JSON Lines and Parquet files: the csv module as reference, numbers, faults, any part of the whole."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petm.data import tables
from petm.data.tables import Record, Table, open_table
from petm.errors import DataError


def opened(path: Path, *columns: str, required: int = 1) -> Table:
    return open_table(path, columns, required=columns[:required], hint="Name it.")


def records(path: Path, *columns: str, required: int = 1) -> list[tuple[int, tuple[object, ...], bool]]:
    """Number and values of each row, and whether it has a fault."""
    found = opened(path, *columns, required=required).records()
    return [(record.number, record.values, record.fault is not None) for record in found]


CELL = st.sampled_from(["a", 'x"y', '"', '""', ",", "\n", "\r\n", "é,\n\n,", " padded ", "long " * 50, ""]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"),
    max_size=9,  # before 3.13 csv quotes no \r
)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), max_size=40)


@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.booleans())
def test_csv_is_read_as_by_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], end: str, quoting: int, cut: bool
) -> None:
    tmp_path, text = tmp_path_factory.mktemp("csv"), io.StringIO()
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([["a", "b", "c"], *rows])  # type: ignore[arg-type]
    content = text.getvalue().removesuffix(end if cut else "")
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


@given(ROWS.filter(bool))
def test_any_rows_are_the_same_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    tmp_path, columns = tmp_path_factory.mktemp("formats"), ["a", "b", "c"]
    entries = [dict(zip(columns, row, strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "x.parquet", row_group_size=7)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    for suffix in (".parquet", ".jsonl", ".csv"):
        found = opened(tmp_path / f"x{suffix}", *columns, required=3)
        empty = None if suffix == ".csv" else ""  # CSV has no other way to leave a cell out
        assert [record.values for record in found.records()] == [tuple(cell or empty for cell in row) for row in rows]
        assert found.count() == len(rows)


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
    first = {".csv": 2, ".jsonl": 1, ".parquet": 1}[suffix]
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


TEXTS = [(f"question {number}", number % 3) for number in range(400)]


def faults(path: Path) -> list[int]:
    """Numbers of the rows with a fault; all others are those of `TEXTS`."""
    found = list(opened(path, "text", "label").records())
    assert len(found) == opened(path, "text", "label").count() == 400
    for record, (text, label) in zip(found, TEXTS, strict=True):
        assert record.fault or record.values in ((text, label), (text, str(label)))
    return [record.number for record in found if record.fault]


@pytest.mark.parametrize(
    "row",
    [
        b'{"text": "a \\ud83d", "label": 1}',
        b'{"text": "a", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text": "a", "label": ' + b"9" * 5_000 + b"}",
        b'{"text": "caf\xe9", "label": 1}',
        b'{"text": "a", "label": 1',
    ],
)
def test_one_bad_row_of_json_lines(tmp_path: Path, row: bytes) -> None:
    lines = [json.dumps({"text": text, "label": label}).encode() for text, label in TEXTS]
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([*lines[:200], row, *lines[201:]]))
    assert faults(tmp_path / "x.jsonl") == [201]


@pytest.mark.parametrize(
    "row",
    [b'"question 200,1', b"caf\xe9,1", b"question 200", b"question,200,1", b'question,"200"1', b'"question"200,1'],
)
@pytest.mark.parametrize("later", [b"question 300,0", b'question 300,"0"', b'"question 300","0"', b'"question 300",0'])
def test_one_bad_row_of_csv(tmp_path: Path, row: bytes, later: bytes) -> None:
    lines = [f"{text},{label}".encode() for text, label in TEXTS]
    lines[200], lines[300] = row, later
    (tmp_path / "x.csv").write_bytes(b"\n".join([b"text,label", *lines]))
    assert faults(tmp_path / "x.csv") == [202]


@pytest.mark.parametrize("later", [b'disk of 19",0', b'a,disk of 19"', b'a,disk of 19",0'])
def test_a_stray_quote_takes_no_rows_up_to_a_quote_far_below(tmp_path: Path, later: bytes) -> None:
    lines = [f"{text},{label}".encode() for text, label in TEXTS]
    lines[200], lines[300] = b'"question 200,1', later
    (tmp_path / "x.csv").write_bytes(b"\n".join([b"text,label", *lines]))
    found = records(tmp_path / "x.csv", "text", "label")
    assert len(found) == 400
    assert [number for number, _, fault in found if fault] == ([202, 302] if later.count(b",") > 1 else [202])


def test_a_long_line_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LONGEST", 1000)
    (tmp_path / "x.csv").write_text("a,b\n" + "x" * 5000 + ",2\n3,4\n")
    (tmp_path / "x.jsonl").write_text(json.dumps({"a": "x" * 5000}) + '\n{"a": "3", "b": "4"}\n')
    assert records(tmp_path / "x.csv", "a", "b") == [(2, (), True), (3, ("3", "4"), False)]
    assert records(tmp_path / "x.jsonl", "a", "b") == [(1, (), True), (2, ("3", "4"), False)]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\na,1\n", encoding="utf-16")
    with pytest.raises(DataError, match=rf"{name}: .*UTF-16"):
        opened(tmp_path / name, "text")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
@pytest.mark.parametrize("kind", ["utf-16-le", "utf-16-be", "gzip"])
def test_other_encodings_are_named_without_a_mark(tmp_path: Path, name: str, kind: str) -> None:
    text = "text,label\nWas ist das für ein Ding,1\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode(kind))
    with pytest.raises(
        DataError, match=rf"{name}: expected text in UTF-8, got {'a gzip' if kind == 'gzip' else 'UTF-16'}"
    ):
        opened(tmp_path / name, "text")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_cells_that_no_comma_separates_say_so(tmp_path: Path, separator: str) -> None:
    (tmp_path / "x.csv").write_text(f"text{separator}label\na{separator}1\n")
    with pytest.raises(DataError, match=r"x\.csv: expected cells separated by commas"):
        open_table(tmp_path / "x.csv", ("text",), required=("text",), hint="")
    (tmp_path / "x.csv").write_text(f"a{separator}b\nc\n")
    assert [*open_table(tmp_path / "x.csv", (f"a{separator}b",), required=(), hint="").records()] == [(2, ("c",), None)]


@pytest.mark.parametrize("compression", ["none", "snappy"])
@pytest.mark.parametrize("checksum", [False, True])
def test_a_damaged_page_of_parquet(tmp_path: Path, compression: str, checksum: bool) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"text": [text for text, _ in TEXTS], "label": [label for _, label in TEXTS]})
    how = {"use_dictionary": False, "compression": compression, "write_page_checksum": checksum}
    pq.write_table(table, path, row_group_size=100, **how)
    content = path.read_bytes()
    labels = pq.read_metadata(path).row_group(2).column(1).data_page_offset
    place = content.rindex(b"question 200", 0, labels)  # behind those in the statistics
    for at in range(place, place + 300, 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
        found = list(opened(path, "text", "label").records())
        assert [record.number for record in found] == list(range(1, 401)), "each row once"
        others = [record.values for record in found if not 200 < record.number <= 300]
        assert others == TEXTS[:200] + TEXTS[300:]
        lost = [record.number for record in found if record.fault]
        if checksum:
            assert lost == list(range(201, 301))
        for start, stop in ((250, 350), (150, 260), (299, 301)):
            assert list(opened(path, "text", "label").records(start, stop, size=7)) == found[start:stop]


def test_a_column_that_is_there_twice_and_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,a\n1,2\n")
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(DataError, match=rf"{name}: expected one column 'a', got 2"):
            opened(tmp_path / name, "a")
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}: .*a pipe"):
            opened(tmp_path / name, "a")
