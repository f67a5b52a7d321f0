"""``petm calibrate --group-column``: from the tables to the grades, and what is told by group."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petm.errors import ArgumentError, BundleError, PetmWarning
from petm.grading.calibration_file import read_calibration, to_json, write_calibration
from petm.selective import Coverage, MaxRisk, calibrate
from petm.selective.group_thresholds import group_thresholds
from petm.selective.guarantee import guarantee
from tests.cli.test_calibrate import refused, run, written

COLUMNS = ("label", "answer", "score", "site", "device")
GROUPED = ("--prediction-column", "answer", "--score-column", "score")


def rows(count: int, seed: int = 0) -> list[list[Any]]:
    random = np.random.default_rng(seed)
    sites = random.choice(["1", "2", "three, or so", ""], count, p=[0.5, 0.45, 0.02, 0.03])
    scores, truth = random.random(count), random.integers(0, 2, count)
    wrong = random.random(count) < (1 - scores) ** 3 * np.where(sites == "2", 0.9, 0.3)
    devices = random.choice(["x", "y"], count)
    return [
        ["ab"[true], "ab"[true ^ bad], float(score), str(site), str(device)]
        for true, bad, score, site, device in zip(truth, wrong, scores, sites, devices, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("groups")
    written(place / "cal.csv", rows(2000), COLUMNS)
    written(place / "new.csv", rows(600, seed=1), COLUMNS)
    target = ("--max-risk", "0.1", "--group-column", "site", "--group-column", "device")
    found = run("calibrate", place / "cal.csv", *GROUPED, *target, "-o", place / "my.calibration")
    (place / "told.txt").write_text(found.output)
    run("grade", place / "my.calibration", place / "new.csv", "--labels", "-o", place / "grades.csv")
    return place


def test_thresholds_are_those_of_the_groups(folder: Path) -> None:
    held = rows(2000)
    values = {"site": [row[3] for row in held], "device": [row[4] for row in held]}
    suspicion, wrong = [-row[2] for row in held], [row[0] != row[1] for row in held]
    expected = group_thresholds(suspicion, wrong, values, max_risk=0.1)
    assert read_calibration(folder / "my.calibration").threshold == expected
    assert len(expected.groups.cells) == 4
    assert expected.groups.rare == (("three, or so",), ())


def test_every_row_is_graded_by_the_threshold_of_its_groups(folder: Path) -> None:
    threshold, held = read_calibration(folder / "my.calibration").threshold, rows(600, seed=1)
    with (folder / "grades.csv").open(newline="") as file:
        graded = list(csv.DictReader(file))
    assert len(graded) == 600
    for row, grade in zip(held, graded, strict=True):
        site = f"site {row[3]}, " if row[3] in ("1", "2") else "site other, "
        name = f"{site}device {row[4]}"
        place = threshold.groups.names.index(name) if name in threshold.groups.names else len(threshold.groups.cells)
        assert grade["group"] == threshold.groups.names[place]
        assert (grade["grade"] == "trusted") == (-row[2] < threshold.values[place])


def test_a_table_of_another_kind_gives_the_same(folder: Path, tmp_path: Path) -> None:
    held = [[*row[:3], int(row[3]) if row[3].isdigit() else None, row[4]] for row in rows(2000)]
    table = dict(zip(COLUMNS, zip(*held, strict=True), strict=True))
    pq.write_table(pa.table(table), tmp_path / "cal.parquet")
    target = ("--max-risk", "0.1", "--group-column", "site", "--group-column", "device")
    run("calibrate", tmp_path / "cal.parquet", *GROUPED, *target, "-o", tmp_path / "x.calibration")
    one, other = (read_calibration(each).threshold for each in (folder / "my.calibration", tmp_path / "x.calibration"))
    assert one.values[:4] == other.values[:4]  # the rare site is none here
    run("grade", tmp_path / "x.calibration", tmp_path / "cal.parquet", "-o", tmp_path / "grades.parquet")
    assert set(pq.read_table(tmp_path / "grades.parquet")["group"].to_pylist()) <= set(other.groups.names)


def test_groups_that_the_calibration_had_not_are_told(folder: Path, tmp_path: Path) -> None:
    held = [["a", 0.5, "9", "x"], ["a", 0.5, "9", "x"], ["a", 0.5, "1", "x"], ["a", 0.5, "three, or so", "x"]]
    table = written(tmp_path / "new.csv", held, ("answer", "score", "site", "device"))
    with pytest.warns(PetmWarning, match=r"^groups: .*site 9 \(2 rows\)") as told:
        run("grade", folder / "my.calibration", table, "-o", tmp_path / "g.csv")
    assert "three" not in str(told[0].message)


def test_what_is_told_names_every_group(folder: Path) -> None:
    told = (folder / "told.txt").read_text()
    for name in ("site 1", "site 2", "site three, or so", "device x", "device y"):
        assert name in told
    text = guarantee(read_calibration(folder / "my.calibration").threshold)
    assert "in each group of site and device" in text


def test_monitor_tells_by_group(folder: Path) -> None:
    found = json.loads(run("monitor", folder / "my.calibration", folder / "grades.csv", "--json").stdout)
    checks = found["guarantee"]["classes"]
    threshold = read_calibration(folder / "my.calibration").threshold
    held = rows(600, seed=1)
    for place, (name, places) in enumerate(threshold.groups.members.items()):
        if any(threshold.classes[each].holds for each in places):
            inside = {threshold.groups.names[each] for each in places}
            with (folder / "grades.csv").open(newline="") as file:
                graded = list(csv.DictReader(file))
            mine = [row for row, grade in zip(held, graded, strict=True)
                    if grade["group"] in inside and grade["grade"] == "trusted"]  # fmt: skip
            assert checks[str(place)]["found"]["of"] == len(mine), name
            assert checks[str(place)]["found"]["count"] == sum(row[0] != row[1] for row in mine)
    text = run("monitor", folder / "my.calibration", folder / "grades.csv").output
    assert "Group site 1:" in text


def test_monitor_refuses_groups_of_another_calibration(folder: Path, tmp_path: Path) -> None:
    text = (folder / "grades.csv").read_text().replace("site 1, device x", "site 9, device x")
    (tmp_path / "grades.csv").write_text(text)
    assert "group" in refused("monitor", folder / "my.calibration", tmp_path / "grades.csv")


def test_recalibrate_keeps_the_groups_of_a_risk_and_drops_them_for_a_coverage(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.calibration"
    run("recalibrate", folder / "my.calibration", folder / "cal.csv", "--max-risk", "0.2", "-o", out)
    made = read_calibration(out)
    assert made.target == MaxRisk(0.2, per=("site", "device"))
    assert made.columns.groups == ("site", "device")
    out = tmp_path / "b.calibration"
    run("recalibrate", folder / "my.calibration", folder / "cal.csv", "--coverage", "0.5", "-o", out)
    assert read_calibration(out).columns.groups == ()


def test_a_group_column_that_is_absent_or_empty_is_named(folder: Path, tmp_path: Path) -> None:
    how = ("calibrate", folder / "cal.csv", *GROUPED, "-o", tmp_path / "x.calibration")
    assert "'sites'" in refused(*how, "--max-risk", "0.1", "--group-column", "sites")
    assert "--group-column" in refused(*how, "--group-column", "site")
    assert "--group-column" in refused(*how, "--max-risk", "0.1", "--per-class", "--group-column", "site")
    assert "--group-column" in refused(*how, "--max-risk", "0.0001", "--group-column", "site")
    assert "site" in refused(
        "grade", folder / "my.calibration", written(tmp_path / "n.csv", [["a", 1.0]], ("answer", "score"))
    )


def test_arrays_with_groups() -> None:
    held = rows(2000)
    labels, predicted = ([("ab").index(row[place]) for row in held] for place in (0, 1))
    groups = {"site": [row[3] for row in held]}
    how: Any = {"predicted": predicted, "scores": [row[2] for row in held], "groups": groups}
    made = calibrate(labels, **how, target=MaxRisk(0.1, per=("site",)))
    graded = made.grade(predicted=[0, 0], scores=[0.9, 0.9], groups={"site": ["1", "unknown"]})
    assert list(graded.group) == ["site 1", "other groups"]
    with pytest.raises(ArgumentError, match="'site'"):
        made.grade(predicted=[0], scores=[0.9])
    with pytest.raises(ArgumentError, match=r"^groups: "):
        calibrate(labels, **how, target=Coverage(0.5))
    with pytest.raises(ArgumentError, match=r"^groups: "):
        calibrate(labels, **how | {"groups": None}, target=MaxRisk(0.1, per=("site",)))
    with pytest.raises(ArgumentError, match=r"^per: "):
        MaxRisk(0.1, per=("site", "site"))


def test_a_file_whose_groups_disagree_is_refused(folder: Path, tmp_path: Path) -> None:
    made = read_calibration(folder / "my.calibration")
    write_calibration(tmp_path / "same.calibration", made)
    assert to_json(read_calibration(tmp_path / "same.calibration")) == to_json(made)
    broken = type(made)(**vars(made) | {"columns": type(made.columns)((), "answer", ("score",))})
    write_calibration(tmp_path / "broken.calibration", broken)
    with pytest.raises(BundleError, match="groups"):
        read_calibration(tmp_path / "broken.calibration")


def test_whole_numbers_as_groups_are_one_however_a_file_writes_them():
    from petm.selective.groups import coded, text_of

    values = {"site": [1, "1", 1.0, "1.0", " 1 ", "2.5", "v1.0", None, float("nan"), ""]}
    assert coded(values, "site").names == ("1", "2.5", "v1.0")
    assert coded(values, "site").codes.tolist() == [0, 0, 0, 0, 0, 1, 2, -1, -1, -1]
    assert [text_of(each) for each in (-3.0, "-3", True, "01")] == ["-3", "-3", "True", "01"]
