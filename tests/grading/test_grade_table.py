import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petm.data.decisions import read_decided
from petm.data.reviewed import read_reviewed
from petm.errors import DataError
from petm.grading.grade_files import write_tables
from petm.grading.grade_table import SCHEMA, grade_table, read_grades
from petm.grading.grades import NO_SECOND, Grades
from tests.helpers.graded_tables import write

GRADES = Grades(
    np.array([1, 0]),
    np.array([1, 2]),
    np.array([0.1, 0.9]),
    np.array([0.01, np.nan]),
    np.array([True, False]),
    candidates=np.fromiter([(1,), (0, 2, 1)], object),
)
INPUTS = ["a.png", 'b "quoted".png', "c, d.png"]


def made() -> pa.Table:
    how: Any = {"reasons": [None, "broken\nfile", None], "true_labels": [1, None, 0], "has_candidates": True}
    return grade_table(INPUTS, [None, 3, 4], GRADES, ("x", "größe, y"), **how)


def whole(table: pa.Table) -> list[dict[str, Any]]:
    """The rows with all columns."""
    return [dict.fromkeys(SCHEMA.names) | row for row in table.to_pylist()]


def test_rows_by_hand() -> None:
    absent = ("text", "group", "chance", "audit", "sha256")
    assert made().column_names == [name for name in SCHEMA.names if name not in absent]
    rows = whole(made())
    assert rows[0] == {
        **dict.fromkeys(SCHEMA.names), "input": "a.png", "label": 1, "label_name": "größe, y", "second": 1,
        "second_name": "größe, y",
        "probability_of_error": 0.01, "confidence": 0.99, "suspicion": 0.1, "grade": "trusted",
        "candidates": '["größe, y"]', "true_label": 1,
    }  # fmt: skip
    assert rows[1] == {
        **dict.fromkeys(SCHEMA.names), "input": INPUTS[1], "row": 3, "grade": "unreadable", "reason": "broken\nfile",
    }  # fmt: skip
    assert rows[2]["grade"] == "suspect"
    assert rows[2]["probability_of_error"] is rows[2]["confidence"] is None, "none was calibrated"
    assert (rows[2]["second"], rows[2]["second_name"]) == (2, "2"), "a class without a name"
    assert json.loads(rows[2]["candidates"]) == ["x", "2", "größe, y"]


def test_a_second_opinion_that_was_not_asked_for_is_empty() -> None:
    grades = replace(GRADES, second=np.array([NO_SECOND, 1]))
    rows = grade_table(INPUTS, [None] * 3, grades, ("x", "y"), reasons=[None, "broken", None]).to_pylist()
    assert [(row["second"], row["second_name"]) for row in rows] == [(None, None), (None, None), (1, "y")]


def test_only_unreadable() -> None:
    table = grade_table(["a"], [None], None, (), reasons=["broken"], has_candidates=True)
    assert "candidates" in table.column_names, "as in the other parts of one file"
    (row,) = whole(table)
    assert row == {**dict.fromkeys(SCHEMA.names), "input": "a", "grade": "unreadable", "reason": "broken"}


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_written_and_read_again(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"g{kind}"
    write_tables(path, kind, iter([made(), made()]))
    rows = [row for batch in read_grades(path) for row in batch.to_pylist()]
    assert rows == whole(made()) * 2
    chosen = [row for batch in read_grades(path, ["grade", "suspicion"]) for row in batch.to_pylist()]
    assert chosen == [{"grade": row["grade"], "suspicion": row["suspicion"]} for row in rows]


PIECES = [
    "=", "+", "-", "@", "\t", "\r", "\n", '"', ",", "'", "a", "é", "\ud83d", "\udcff", "\0", "NA", "null", " ", "\\",
]  # fmt: skip


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_any_text_is_read_again(tmp_path: Path, kind: str) -> None:
    chance = random.Random(kind)
    texts = ["".join(chance.choices(PIECES, k=chance.randrange(6))) for _ in range(3000)]
    count = np.arange(1000)
    grades = Grades(count, count, count / 7, np.full(1000, np.nan), count % 2 == 0)
    reasons = [None if row % 2 else texts[row] for row in range(2000)]
    table = grade_table(texts[:2000], [None] * 2000, grades, texts[2000:], reasons=reasons)
    write_tables(tmp_path / f"g{kind}", kind, iter([table, table]))
    rows = [row for batch in read_grades(tmp_path / f"g{kind}") for row in batch.to_pylist()]
    assert rows == whole(table) * 2
    told = [text for text in texts[:2000] if "\ud83d" not in text and "\udcff" not in text]
    assert set(told) <= {row["input"] for row in rows}


def test_no_cell_of_csv_is_a_formula(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0.png", "+1.png", "-1.png", "@SUM.png", "\t=1.png", "'=1.png", "tis.png", "'tis.png"]
    count = np.arange(8) % 2
    grades = Grades(count, count, -count / 7, count / 9, count == 0)
    table = grade_table(names, [None] * 8, grades, ("=a", "b"), reasons=None)
    write_tables(tmp_path / "g.csv", ".csv", iter([table]))
    with (tmp_path / "g.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["input"] for row in cells] == [f"'{name}" for name in names[:6]] + names[6:]
    assert {row["label_name"] for row in cells} == {"'=a", "b"}
    assert float(cells[1]["suspicion"]) == -1 / 7, "a number stays one"
    (tmp_path / "labels.csv").write_text(
        "".join(
            f"{cell},{row['label_name']}\n"
            for cell, row in [
                ("input", {"label_name": "label"}),
                *((row["input"], row) for row in cells if '"' not in row["input"]),
            ]
        )
    )
    known = read_decided([tmp_path / "labels.csv"], ("=a", "b"), fewest=1)
    assert dict(zip(known.places, known.labels.tolist(), strict=True)) == {
        (name, None): int(label) for name, label in zip(names, count, strict=True)
    }


def test_a_folder_of_parts(tmp_path: Path) -> None:
    for part in range(3):
        pq.write_table(made(), tmp_path / f"{part}.parquet")
    assert sum(len(batch) for batch in read_grades(tmp_path)) == 9


def test_files_that_hold_no_grades(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.csv: expected grades .*, got a path that does not exist"):
        next(iter(read_grades(tmp_path / "absent.csv")))
    (tmp_path / "g.txt").write_text("x")
    with pytest.raises(DataError, match=r"g.txt: expected grades .*, got a file of the kind '.txt'"):
        next(iter(read_grades(tmp_path / "g.txt")))
    pq.write_table(pa.table({"other": [1]}), tmp_path / "g.parquet")
    with pytest.raises(DataError, match=r"g.parquet: expected the column 'grade', got other"):
        next(iter(read_grades(tmp_path / "g.parquet", ["grade"])))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "g.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cut.parquet: expected a whole file of grades, got: "):
        next(iter(read_grades(tmp_path / "cut.parquet")))
    (tmp_path / "g.jsonl").write_text(json.dumps({"grade": "trusted", "suspicion": "high"}) + "\n")
    with pytest.raises(DataError, match=r"g.jsonl: expected a whole file of grades, got: "):
        list(read_grades(tmp_path / "g.jsonl", ["suspicion"]))


@pytest.mark.parametrize("lines", ["null\n", "nullull", '{"input": "a"}\n' * 150_000 + "null\n" * 500_000, "[1]\n", ""])
def test_lines_that_are_no_objects(lines: str, tmp_path: Path) -> None:
    """Arrow itself crashes on a block that holds null alone."""
    (tmp_path / "g.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"g\.jsonl: "):
        list(read_grades(tmp_path / "g.jsonl"))


@pytest.mark.parametrize("ends", [b"\n", b"\r\n\n", b"\n  \n"])
def test_json_lines_in_blocks_of_any_size(ends: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = tmp_path / "g.jsonl", [f"{number} \u00e9" for number in range(50)]
    whole = [dict.fromkeys(SCHEMA.names) | {"input": row, "grade": "suspect"} for row in rows]
    path.write_bytes(ends + ends.join(json.dumps(each, ensure_ascii=False).encode() for each in whole))
    for size in (1, 7, 300, 1 << 20):
        monkeypatch.setattr("petm.grading.grade_table._JSON_BLOCK", size)
        assert [row["input"] for batch in read_grades(path) for row in batch.to_pylist()] == rows


def test_columns_are_those_of_the_run(tmp_path: Path) -> None:
    """A text stands with its beginning; a column that a run cannot fill is absent; CSV rounds probabilities alone."""
    grades = Grades(np.array([1]), np.array([1]), np.array([1 / 3]), np.array([1 / 7]), np.array([True]))
    table = grade_table(["t.csv"], [2], grades, ("x", "y"), texts=["long " * 99], has_second=False)
    columns = ["input", "row", "text", "label", "label_name", "probability_of_error", "confidence"]
    columns += ["suspicion", "grade", "reason"]
    assert table.column_names == columns
    write_tables(tmp_path / "g.csv", ".csv", iter([table]))
    ((header, row),) = [(tmp_path / "g.csv").read_text().splitlines()]
    assert header.split(",") == columns
    assert row.split(",") == ["t.csv", "2", "long " * 40, "1", "y", "0.142857", "0.857143", repr(1 / 3), "trusted", ""]


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_a_file_of_an_earlier_petm_is_refused(tmp_path: Path, kind: str) -> None:
    """It counts rows from another number."""
    row = {"input": "x.parquet", "row": 0, "label": 1, "probability": 0.5, "suspicion": 0.5, "grade": "suspect"}
    write(pa.Table.from_pylist([row]), tmp_path / f"g{kind}")
    with pytest.raises(DataError, match="probability_of_error"):
        list(read_grades(tmp_path / f"g{kind}", ["input", "grade"]))
    (tmp_path / "l.csv").write_text("input,row,label\nx.parquet,1,x\n")
    with pytest.raises(DataError, match="probability_of_error"):
        read_reviewed([tmp_path / "l.csv"], [tmp_path / f"g{kind}"], ("x", "y"), fewest=1)
