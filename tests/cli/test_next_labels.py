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
