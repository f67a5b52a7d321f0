"""``petm next``: drawn rows of files of grades, and what reads their labels back."""

import json
import sys

import numpy as np
import pytest

from petm.cli import main
from petm.data.reviewed import read_reviewed
from petm.errors import DataError
from petm.grading.grade_files import write_tables
from petm.grading.grade_table import grade_table, read_grades
from petm.grading.grades import Grades
from petm.selective.next_labels import labelling_chances


def test_drawn_rows_have_their_chance_and_their_labels_are_read_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    probability, labels = random.beta(0.3, 2, 500), random.integers(3, size=500)
    grades = Grades(labels, labels, probability, probability, probability < 0.3)
    names = [f"{row:03}.png" for row in range(500)]
    write_tables(tmp_path / "grades.csv", ".csv", iter([grade_table(names, [None] * 500, grades, ("a", "b", "c"))]))
    monkeypatch.setattr(sys, "argv", ["petm", "next", "grades.csv", "-n", "100", "-o", "queue.csv"])
    main()
    assert "Next: petm serve" in capsys.readouterr().err
    rows = [row for batch in read_grades("queue.csv") for row in batch.to_pylist()]
    assert 60 < len(rows) < 140
    given = [float(f"{value:.6g}") for value in probability]
    expected = dict(zip(names, labelling_chances(given, labels, count=100), strict=True))
    assert all(abs(row["chance"] - expected[row["input"]]) < 1e-9 for row in rows)
    assert {row["audit"] for row in rows if row["grade"] == "suspect"} == {False}
    assert {row["audit"] for row in rows if row["grade"] == "trusted"} == {True}
    told = "".join(json.dumps({"input": row["input"], "label": number % 3}) + "\n" for number, row in enumerate(rows))
    (tmp_path / "labels.jsonl").write_text(told)
    reviewed = read_reviewed(["labels.jsonl"], ["queue.csv"], ("a", "b", "c"))
    reviewed.check_drawn()
    assert reviewed.chance.tolist() == [row["chance"] for row in rows]
    (tmp_path / "labels.jsonl").write_text("".join(told.splitlines(keepends=True)[:-3]))
    with pytest.raises(DataError, match=r"^labels: expected a decision on each row .* got about 3 rows without"):
        read_reviewed(["labels.jsonl"], ["queue.csv"], ("a", "b", "c")).check_drawn()


@pytest.fixture
def graded(tmp_path, monkeypatch, capsys):
    """Writes grades of some rows as g.csv and g.parquet, and runs ``petm next``."""
    monkeypatch.chdir(tmp_path)
    values = np.linspace(0.01, 0.6, 40)
    grades = Grades(np.arange(40) % 2, np.arange(40) % 2, values, values, values < 0.3)
    for suffix in (".csv", ".parquet"):
        names = [f"{row}{suffix}.png" for row in range(40)]
        write_tables(tmp_path / f"g{suffix}", suffix, iter([grade_table(names, [None] * 40, grades, ("a", "b"))]))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["petm", "next", *arguments, "--overwrite"])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err

    return run


def test_files_of_several_kinds_are_drawn_from_together(graded):
    code, err = graded("g.csv", "g.parquet", "-n", "80", "-o", "q.csv")
    assert (code, err.startswith("80 of 80 rows")) == (0, True)


def test_a_draw_that_would_lose_grades_or_have_wrong_chances_is_refused(graded, tmp_path):
    before = (tmp_path / "g.csv").read_bytes()
    assert graded("g.csv", "-n", "5", "-o", "g.csv")[0] == 1
    assert (tmp_path / "g.csv").read_bytes() == before
    assert "expected each file once" in graded("g.csv", "g.csv", "-n", "5", "-o", "q.csv")[1]
    assert graded("g.csv", "-n", "20", "-o", "q.csv")[0] == 0
    assert "those that petm next has drawn" in graded("q.csv", "-n", "5", "-o", "again.csv")[1]


@pytest.mark.parametrize("change", ["no rows", "unreadable", "7"])
def test_grades_without_a_use_are_refused_in_one_line(graded, tmp_path, change):
    header, *lines = (tmp_path / "g.csv").read_text().splitlines()
    if change == "7":
        lines[0] = lines[0].replace("0.01", "7", 1)
    elif change == "unreadable":
        lines = [line.replace("trusted", "unreadable").replace("suspect", "unreadable") for line in lines]
    else:
        lines = []
    (tmp_path / "x.csv").write_text("\n".join([header, *lines]) + "\n")
    code, err = graded("x.csv", "-n", "5", "-o", "q.csv")
    assert (code, err.count("\n"), err.startswith("Error: x.csv: expected")) == (1, 1, True)
