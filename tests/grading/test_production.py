"""Graded production data in one pass: counts by window against a plain count of all rows, labels, memory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from graded_tables import THRESHOLD, graded, write
from petm.data.reviewed import read_reviewed
from petm.errors import ArgumentError, DataError
from petm.grading.grade_table import SCHEMA, grade_table
from petm.grading.grades import Grades
from petm.grading.production import MOST_WINDOWS, read_production
from petm.selective.drift import SuspicionProfile, suspicion_profile
from petm.selective.thresholds import Threshold

PROFILE = SuspicionProfile.from_measured(suspicion_profile(np.linspace(0, 1, 500)))


def by_hand(rows):
    """The counts of some rows, one after the other."""
    told = {"rows": len(rows), "unreadable": 0, "suspects": 0, "labelled_trusted": 0, "wrong_trusted": 0}
    probability = 0.0
    for row in rows:
        told["unreadable"] += row["grade"] == "unreadable"
        told["suspects"] += row["grade"] == "suspect"
        probability += row["probability_of_error"] or 0
        if row["grade"] == "trusted" and row["true_label"] is not None:
            told["labelled_trusted"] += 1
            told["wrong_trusted"] += row["true_label"] != row["label"]
    return told, probability


def counted(found, number):
    """What was found in a window, by the names of `by_hand`."""
    trusted = (found.labelled["window"] == number) & (found.labelled["trusted"] == 1)
    labelled = {"labelled_trusted": trusted.sum(), "wrong_trusted": (trusted & found.wrong).sum()}
    return {name: getattr(found.windows[number], name) for name in ("rows", "unreadable", "suspects")} | labelled


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_each_file_is_a_window(tmp_path, suffix):
    tables = [graded(150 + 50 * part, seed=part) for part in range(3)]
    paths = [write(table, tmp_path / f"{part}{suffix}") for part, table in enumerate(tables)]
    found = read_production(paths, THRESHOLD, PROFILE)
    assert [window.name for window in found.windows] == list(map(str, paths))
    for number, (window, table) in enumerate(zip(found.windows, tables, strict=True)):
        expected, probability = by_hand(table.to_pylist())
        assert counted(found, number) == expected
        assert window.probability == pytest.approx(probability)
        assert window.with_probability == window.graded == expected["rows"] - expected["unreadable"]
        suspicion = [value for value in table["suspicion"].to_pylist() if value is not None]
        np.testing.assert_array_equal(window.suspicion, PROFILE.counts(suspicion))
    rows = [row for table in tables for row in table.to_pylist() if row["true_label"] is not None]
    counts = found.counts(THRESHOLD)
    assert counts.trusted.tolist() == [sum(row["grade"] == "trusted" for row in rows)]
    assert counts.suspects == sum(row["grade"] == "suspect" for row in rows)
    assert counts.found == sum(row["grade"] == "suspect" and row["true_label"] != row["label"] for row in rows)
    labelled = [row["suspicion"] for row in rows if row["grade"] == "trusted"]
    np.testing.assert_array_equal(found.among_trusted()[0], PROFILE.counts(labelled))
    assert found.among_trusted().sum() == sum(
        row["grade"] == "trusted" for table in tables for row in table.to_pylist()
    )


@pytest.mark.parametrize("window", [1, 7, 100, 333, 1000])
def test_windows_of_so_many_rows_go_across_files(tmp_path, window):
    tables = [graded(150, seed=part) for part in range(3)]
    paths = [write(table, tmp_path / f"{part}.parquet") for part, table in enumerate(tables)]
    rows = [row for table in tables for row in table.to_pylist()]
    found = read_production(paths, THRESHOLD, window=window)
    starts = range(0, len(rows), window)
    assert [each.name for each in found.windows] == [str(start) for start in starts]
    for number, start in enumerate(starts):
        expected, _ = by_hand(rows[start : start + window])
        assert counted(found, number) == expected


def reviewed(tmp_path, grades, lines):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_reviewed([path], grades, ("cat", "dog", "cow"), fewest=1)


def test_labels_of_another_file_go_before_those_in_the_grades(tmp_path):
    table = graded(200, labelled=0.3)
    path = write(table, tmp_path / "g.parquet")
    rows = table.to_pylist()
    labels = {row["input"]: 0 for row in rows[:50] if row["grade"] != "unreadable"}
    lines = [{"input": name, "label": 0} for name in labels]
    lines += [{"input": "absent.png", "label": 1}, {"input": rows[0]["input"], "row": 4, "label": 2}]
    told = [{**row, "true_label": labels.get(row["input"], row["true_label"])} for row in rows]
    expected, _ = by_hand(told)
    for paths in ([path], [path, path]):  # a row that is there again counts once
        found = read_production(paths, THRESHOLD, reviewed=reviewed(tmp_path, paths, lines))
        assert counted(found, 0) == expected
    for window in (7, 200):
        found = read_production([path], THRESHOLD, reviewed=reviewed(tmp_path, [path], lines), window=window)
        wrong = sum(counted(found, number)["wrong_trusted"] for number in range(len(found.windows)))
        assert wrong == expected["wrong_trusted"]


def test_an_audit_counts_by_its_chance_and_nobody_can_tell_is_the_worse_answer(tmp_path):
    table = graded(4000, labelled=0.0, unreadable=0.05)
    trusted, suspect = (np.array(table["grade"].to_pylist()) == grade for grade in ("trusted", "suspect"))
    marks = trusted & (np.random.default_rng(1).random(4000) < 0.1)
    columns = {"chance": np.where(trusted, 0.1, 1.0), "audit": marks}
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, mask=~(trusted | suspect)))
    path = write(table, tmp_path / "g.parquet")
    chosen = [row for row in table.to_pylist() if row["audit"] or row["grade"] == "suspect"]
    lines = [{"input": row["input"], "label": row["label"]} for row in chosen]
    others = [row["input"] for row in table.to_pylist() if row["audit"] is False and row["grade"] == "trusted"]
    lines += [{"input": name, "label": 0} for name in others[:30]]  # chosen by somebody
    untold = [next(row["input"] for row in chosen if row["grade"] == grade) for grade in ("trusted", "suspect")]
    for line in lines:
        line |= {"label": None, "decision": "cannot tell"} if line["input"] in untold else {}
    labels = reviewed(tmp_path, [path], lines)
    assert (len(labels.labels), labels.undrawn, labels.unmatched) == (len(chosen), 30, 0)
    found = read_production([path], THRESHOLD, reviewed=labels)
    counts = found.counts(THRESHOLD)
    assert (counts.trusted.tolist(), counts.wrong.tolist(), counts.found) == ([marks.sum()], [1], 0)
    chances = dict(zip(*np.unique(found.labelled["chance"], return_counts=True), strict=True))
    assert chances == {0.1: marks.sum(), 1.0: suspect.sum()}
    assert found.untold == 1
    of_suspects = [line for line in lines if line["input"] in {r["input"] for r in chosen if r["grade"] == "suspect"}]
    with pytest.raises(DataError, match=r"^labels.*--audit"):
        read_production([path], THRESHOLD, reviewed=reviewed(tmp_path, [path], of_suspects))


def test_grades_that_a_service_was_writing_when_it_was_killed(tmp_path):
    table = graded(60, labelled=0.0, unreadable=0)
    path = write(table, tmp_path / "g.jsonl")
    path.write_bytes(path.read_bytes()[:-40])
    lines = [{"input": row["input"], "label": row["label"]} for row in table.to_pylist()[:-1]]
    labels = reviewed(tmp_path, [path], lines)
    found = read_production([path], THRESHOLD, reviewed=labels)
    assert (labels.rows, found.windows[0].rows) == (59, 59)
    (tmp_path / "folder.parquet").mkdir()
    parts = [write(table.slice(30 * part, 30), tmp_path / "folder.parquet" / f"{part}.parquet") for part in range(2)]
    assert len(parts) == 2
    labels = reviewed(tmp_path, [tmp_path / "folder.parquet"], lines)
    found = read_production([tmp_path / "folder.parquet"], THRESHOLD, reviewed=labels)
    assert len(found.labelled) == 59
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0][:20], *text[1:]]))
    with pytest.raises(DataError, match=r"g\.jsonl"):
        reviewed(tmp_path, [path], lines)


def test_rows_of_a_file_are_told_apart(tmp_path):
    grades = Grades(*(np.zeros(3, np.int64),) * 2, *(np.zeros(3),) * 2, np.ones(3, bool))
    path = write(grade_table(["t.csv"] * 3, [1, 2, 3], grades, ()), tmp_path / "g.csv")
    lines = [{"input": "t.csv", "row": row, "label": label} for row, label in ((2, 1), (3, 0), (None, 1))]
    found = read_production([path], THRESHOLD, reviewed=reviewed(tmp_path, [path], lines))
    told = counted(found, 0)
    assert (told["labelled_trusted"], told["wrong_trusted"]) == (2, 1)


def test_a_threshold_for_each_class(tmp_path):
    parts = tuple(Threshold(value, "by hand", 0.5, 0.1, 0.95) for value in (0.2, 0.5, 0.8))
    threshold = Threshold(0.8, "by hand", 0.5, 0.1, 0.95, classes=parts)
    table = graded(600, threshold=threshold)
    found = read_production([write(table, tmp_path / "g.parquet")], threshold)
    for label in range(3):
        rows = [row for row in table.to_pylist() if row["label"] == label and row["true_label"] is not None]
        trusted = [row for row in rows if row["grade"] == "trusted"]
        assert found.counts(threshold).trusted[label] == len(trusted) > 0
        assert found.counts(threshold).wrong[label] == sum(row["true_label"] != label for row in trusted)
    one_class = Threshold(0.8, "by hand", 0.5, 0.1, 0.95, classes=parts[:2])
    with pytest.raises(
        DataError, match=r"g\.parquet: expected grades by this bundle, got others \(predicted: expected"
    ):
        read_production([tmp_path / "g.parquet"], one_class)


def test_grades_of_another_bundle_are_refused(tmp_path):
    path = write(graded(200, threshold=Threshold(0.6, "by hand")), tmp_path / "g.parquet")
    message = r"g\.parquet: expected grades by this bundle, got 0/\d+\.png trusted at a suspicion of 0\.5\d*, .*\. Name"
    with pytest.raises(DataError, match=message):
        read_production([path], THRESHOLD)


def test_what_cannot_be_counted(tmp_path):
    path = write(graded(MOST_WINDOWS + 1), tmp_path / "g.parquet")
    with pytest.raises(ArgumentError, match=r"window: expected at least 1 row, got 0"):
        read_production([path], THRESHOLD, window=0)
    with pytest.raises(ArgumentError, match=r"window: expected at most 1,000 windows, got more\. Take more rows"):
        read_production([path], THRESHOLD, window=1)
    empty = write(SCHEMA.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: expected at least one graded row, got none"):
        read_production([empty], THRESHOLD)
    with pytest.raises(DataError, match=r"none\.csv: expected grades .*, got a path that does not exist"):
        read_production([tmp_path / "none.csv"], THRESHOLD)
    holes = graded(20, unreadable=0)
    holes = holes.set_column(holes.column_names.index("suspicion"), "suspicion", pa.nulls(20, pa.float64()))
    with pytest.raises(DataError, match=r"h\.parquet: expected a suspicion in each graded row, got none in 20"):
        read_production([write(holes, tmp_path / "h.parquet")], THRESHOLD)


def test_all_unreadable_is_counted(tmp_path):
    table = grade_table(["a.png", "b.png"], [None, None], None, (), reasons=["gone", "gone"])
    (window,) = read_production([write(table, tmp_path / "g.parquet")], THRESHOLD, PROFILE).windows
    assert (window.rows, window.unreadable, window.graded, window.suspicion.sum()) == (2, 2, 0, 0)
