import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from petm.cli import petm
from petm.errors import BundleError, PetmWarning
from petm.grading.calibration_file import read_calibration, write_calibration
from petm.selective import risk_threshold

CLASSES = ("cat", "dog", "emu")
COLUMNS = ("label", "answer", "logprob", "noise", *(f"p_{name}" for name in CLASSES))


def rows(count: int, seed: int = 0) -> list[list[Any]]:
    random = np.random.default_rng(seed)
    p = random.dirichlet((0.15,) * 3, count)
    p = np.clip(p, 1e-6, None) / np.clip(p, 1e-6, None).sum(1, keepdims=True)
    true = [int(random.choice(3, p=row)) for row in p]
    return [
        [CLASSES[label], CLASSES[row.argmax()], float(np.log(row.max())), float(random.normal()), *map(float, row)]
        for label, row in zip(true, p, strict=True)
    ]


def written(path: Path, held: list[list[Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *held])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in held))
    else:
        pq.write_table(pa.table(dict(zip(columns, zip(*held, strict=True), strict=True))), path)
    return path


def run(*arguments: object, code: int = 0) -> Any:
    found = CliRunner().invoke(petm, [str(each) for each in arguments])
    if code == 0 and found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(petm, [str(each) for each in arguments])
    assert found.exit_code in (1, 2), found.output
    line = found.output.strip().splitlines()[-1]
    assert line.startswith("Error: "), found.output
    return line


PROBABILITIES = ("--probability-columns", "p_")
SCORES = ("--prediction-column", "answer", "--score-column", "logprob")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scores")
    written(place / "cal.csv", rows(400))
    written(place / "new.csv", rows(300, seed=1))
    run("calibrate", place / "cal.csv", *PROBABILITIES, "--max-risk", "0.1", "-o", place / "p.calibration")
    run("calibrate", place / "cal.csv", *SCORES, "--max-risk", "0.1", "-o", place / "s.calibration")
    return place


def test_the_threshold_is_that_of_the_guaranteed_risk(folder: Path) -> None:
    held = rows(400)
    wrong = [row[0] != row[1] for row in held]
    suspicion = [-row[2] for row in held]
    expected = risk_threshold(suspicion, wrong, max_risk=0.1)
    assert read_calibration(folder / "s.calibration").threshold == expected
    by_softmax = [sum(sorted(row[4:])[:2]) / sum(row[4:]) for row in held]
    found = read_calibration(folder / "p.calibration").threshold
    assert found.value == pytest.approx(risk_threshold(by_softmax, wrong, max_risk=0.1).value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_every_kind_of_table_gives_one_result(folder: Path, tmp_path: Path, suffix: str) -> None:
    table, out = written(tmp_path / f"cal{suffix}", rows(400)), tmp_path / "x.calibration"
    run("calibrate", table, *PROBABILITIES, "--max-risk", "0.1", "-o", out)
    assert out.read_text() == (folder / "p.calibration").read_text()
    new = written(tmp_path / f"new{suffix}", rows(50, seed=1))
    run("grade", out, new, "-o", tmp_path / "g.csv")
    grades = arrow_csv.read_csv(tmp_path / "g.csv").to_pylist()
    assert [row["label_name"] for row in grades] == [row[1] for row in rows(50, seed=1)]
    assert grades[0]["row"] == (2 if suffix == ".csv" else 1)


def test_rows_by_arrow_and_row_by_row_are_the_same(folder: Path, tmp_path: Path) -> None:
    """A quoted cell with a line end is read row by row, so that line numbers are right."""
    held = [[*row, 'a\nb"c'] for row in rows(400)]
    table, how = written(tmp_path / "t.csv", held, (*COLUMNS, "text")), (*PROBABILITIES, "--max-risk", "0.1", "-o")
    run("calibrate", table, *how, tmp_path / "x.calibration")
    assert (tmp_path / "x.calibration").read_text() == (folder / "p.calibration").read_text()
    held[-1][4] = 7.0
    written(table, held, (*COLUMNS, "text"))
    told = refused("calibrate", table, *how, tmp_path / "y.calibration")
    assert ":800: " in told  # two lines a row, behind the header
    assert "sum of" in told


def test_grades_say_why_a_row_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    held = rows(20, seed=2)
    held[3][4:] = [0.9, 0.9, 0.9]
    held[4][4] = ""
    held[5][4] = "much"
    held[6][1], held[7][2] = "yak", "nan"
    new = written(tmp_path / "new.csv", held)
    for made, bad in (("p", {3, 4, 5}), ("s", {6, 7})):
        run("grade", folder / f"{made}.calibration", new, "--labels", "-o", tmp_path / f"{made}.csv")
        grades = arrow_csv.read_csv(tmp_path / f"{made}.csv").to_pylist()
        assert {place for place, row in enumerate(grades) if row["grade"] == "unreadable"} == bad
        assert all(grades[place]["reason"] and grades[place]["label"] is None for place in bad)
        assert [row["row"] for row in grades] == list(range(2, 22))
        assert {"label", "label_name", "true_label", "probability_of_error", "suspicion"} <= set(grades[0])
        assert "second" not in grades[0]


def test_monitor_recalibrate_and_inspect(folder: Path, tmp_path: Path) -> None:
    run("grade", folder / "p.calibration", folder / "new.csv", "--labels", "-o", tmp_path / "g.parquet")
    found = json.loads(run("monitor", folder / "p.calibration", tmp_path / "g.parquet", "--json").stdout)
    wrong = [row[0] != row[1] for row in rows(300, seed=1)]
    trusted = read_calibration(folder / "p.calibration").threshold.trusts([1 - max(r[4:]) for r in rows(300, seed=1)])
    assert found["guarantee"]["found"]["count"] == int((np.array(wrong) & trusted).sum())
    assert found["drift"]["samples"] == 300
    out = tmp_path / "r.calibration"
    run("recalibrate", folder / "s.calibration", folder / "new.csv", "--max-risk", "0.2", "-o", out)
    expected = risk_threshold([-row[2] for row in rows(300, seed=1)], wrong, max_risk=0.2)
    assert read_calibration(out).threshold == expected
    told = json.loads(run("inspect", out, "--json").stdout)
    assert told["threshold"]["max_risk"] == 0.2
    assert "logprob" in run("inspect", out).stdout


def test_nothing_here_imports_torch(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from click.testing import CliRunner
from petm.cli import petm
for line in (
    "calibrate cal.csv --probability-columns p_ --max-risk 0.1 -o {tmp_path}/x.calibration",
    "grade {tmp_path}/x.calibration new.csv --labels -o {tmp_path}/g.csv",
    "monitor {tmp_path}/x.calibration {tmp_path}/g.csv -o {tmp_path}/watch",
    "recalibrate {tmp_path}/x.calibration new.csv -o {tmp_path}/y.calibration",
    "inspect {tmp_path}/y.calibration",
):
    found = CliRunner().invoke(petm, line.split())
    assert found.exit_code == 0, found.output
    assert not {{"torch", "transformers"}} & set(sys.modules), line
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def spoilt(row: int, column: str, value: object) -> list[list[Any]]:
    held = rows(60)
    held[row][COLUMNS.index(column)] = value
    return held


@pytest.mark.parametrize(
    ("held", "how", "words"),
    [
        (spoilt(3, "p_cat", 5.0), PROBABILITIES, (":5: ", "sum of")),
        (spoilt(3, "p_cat", "nan"), PROBABILITIES, (":5: ", "'p_cat'")),
        (spoilt(3, "p_cat", -0.2), PROBABILITIES, (":5: ", "'p_cat'", "-0.2")),
        (spoilt(3, "p_cat", "high"), PROBABILITIES, (":5: ", "'p_cat'", "high")),
        (spoilt(3, "logprob", "inf"), SCORES, (":5: ", "'logprob'", "inf")),
        (spoilt(3, "logprob", ""), SCORES, (":5: ", "'logprob'", "nothing")),
        (spoilt(3, "answer", ""), SCORES, (":5: ", "'answer'")),
        (spoilt(3, "label", "yak"), PROBABILITIES, (":5: ", "'label'", "yak")),
        ([[*row[:2], 0.5, *row[3:]] for row in rows(60)], SCORES, ("logprob", "0.5")),
        ([["cat", *row[1:]] for row in rows(60)], SCORES, ("labels", "two classes")),
        ([["", *row[1:]] for row in rows(60)], SCORES, ("'label'", "none")),
        (rows(60) * 2, SCORES, ("2 times",)),
        ([], SCORES, ("at least one row",)),
        (rows(60), ("--probability-columns", "q_"), ("--probability-columns", "q_")),
        (rows(60), ("--prediction-column", "answer", "--score-column", "logprop"), ("'logprop'", "did you mean")),
        (rows(60), ("--probability-columns", "p_cat,p_cat"), ("twice",)),
        (rows(60), ("--prediction-column", "answer"), ("--score-column",)),
        (rows(60), (*SCORES, *PROBABILITIES), ("--probability-columns",)),
        (rows(60), (*SCORES, "--max-risk", "2"), ("--max-risk",)),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, held: list[list[Any]], how: tuple[str, ...], words: tuple[str, ...]
) -> None:
    table = written(tmp_path / "t.csv", held)
    line = refused("calibrate", table, *how, "-o", tmp_path / "x.calibration")
    assert all(word in line for word in words), line
    assert not (tmp_path / "x.calibration").exists()


def test_rows_without_a_label_are_counted_and_left_out(tmp_path: Path) -> None:
    held = rows(60)
    for row in held[::6]:
        row[0] = ""
    with pytest.warns(match="10 of 60"):
        run("calibrate", written(tmp_path / "t.csv", held), *SCORES, "-o", tmp_path / "x.calibration")
    assert read_calibration(tmp_path / "x.calibration").measured["samples"] == 50
    held[1][2] = "nan"
    with pytest.warns(PetmWarning) as told:
        run("calibrate", written(tmp_path / "t.csv", held), *SCORES, "--skip-bad", "-o", tmp_path / "y.calibration")
    assert read_calibration(tmp_path / "y.calibration").measured["samples"] == 49
    assert any("1 that cannot" in str(each.message) for each in told)


def test_a_hostile_file_is_refused(folder: Path, tmp_path: Path) -> None:
    made = json.loads((folder / "p.calibration").read_text())
    bad = tmp_path / "x.calibration"
    changed = (json.dumps(made | change) for change in ({"classes": ["a"]}, {"format_version": 9}))
    for text in ("", "{}", "[1]", "x" * 100, *changed):
        bad.write_text(text)
        with pytest.raises(BundleError):
            read_calibration(bad)
    from petm.grading.manifest import checksum

    held = {name: value for name, value in made.items() if name != "checksum"}
    changes: list[dict[str, Any]] = [{name: None} for name in held if name not in ("weighting", "sets")]
    changes += [{"suspicion": ["softmax", "softmax"]}, {"suspicion": ["other"]}, {"suspicion": ["softmax", "entropy"]}]
    changes += [
        {"classes": ["a"]},
        {"columns": {"probabilities": [], "scores": []}},
        {"threshold": {"value": "x"}},
        {"sets": {}},
    ]
    for change in changes:
        if change in ({"measured": None},):
            continue
        changed = held | change
        bad.write_text(json.dumps(changed | {"checksum": checksum(changed)}))
        with pytest.raises(BundleError):
            read_calibration(bad)
    assert refused("grade", bad, folder / "new.csv").startswith("Error: ")


def test_a_file_gives_the_calibration_back(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.calibration"
    write_calibration(out, read_calibration(folder / "p.calibration"))
    assert out.read_text() == (folder / "p.calibration").read_text()


def test_every_grade_has_the_candidates_of_its_conformal_set(folder: Path, tmp_path: Path) -> None:
    held, how = rows(2000, seed=2), (*PROBABILITIES, "--max-risk", "0.1", "--set-coverage", "0.9")
    run("calibrate", written(tmp_path / "cal.csv", held), *how, "-o", tmp_path / "c.calibration")
    fresh = rows(4000, seed=3)
    run("grade", tmp_path / "c.calibration", written(tmp_path / "new.csv", fresh), "-o", tmp_path / "g.csv")
    with (tmp_path / "g.csv").open(newline="") as file:
        graded = list(csv.DictReader(file))
    found: dict[str, list[bool]] = {"trusted": [], "suspect": []}
    for row, grade in zip(fresh, graded, strict=True):
        candidates = json.loads(grade["candidates"])
        assert candidates[0] == grade["label_name"]
        assert [row[4 + CLASSES.index(name)] for name in candidates] == sorted(
            (row[4 + CLASSES.index(name)] for name in candidates), reverse=True
        )
        found[grade["grade"]].append(row[0] in candidates)
    for held_in in found.values():  # five standard errors of 0.9, of both samples
        assert np.mean(held_in) > 0.9 - 5 * 0.3 * (1 / len(held_in) + 1 / 200) ** 0.5
    assert np.mean([len(json.loads(grade["candidates"])) for grade in graded if grade["grade"] == "suspect"]) < 3
    assert read_calibration(tmp_path / "c.calibration").sets.coverage == 0.9
    assert read_calibration(folder / "s.calibration").sets is None


def test_the_report_shows_figures_of_the_rows_that_set_the_threshold(folder: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "r.html", tmp_path / "x.calibration"
    run("calibrate", folder / "cal.csv", *SCORES, "--max-risk", "0.1", "-o", out, "--report", page)
    told, held = page.read_text(), rows(400)
    wrong = sum(row[0] != row[1] for row in held)
    assert f"400 calibration samples right and is wrong on {wrong}" in told
    assert "the logprob" in told
    assert told.count("data:image/svg+xml") >= 2
    run("recalibrate", out, folder / "new.csv", "--report", tmp_path / "again.html")
    assert "300 calibration samples" in (tmp_path / "again.html").read_text()


def test_a_report_never_replaces_a_table(tmp_path):
    table = written(tmp_path / "t.csv", rows(50))
    before = table.read_bytes()
    asked = ("--prediction-column", "answer", "--score-column", "logprob", "-o", tmp_path / "x.calibration")
    found = run("calibrate", table, *asked, "--report", table, "--overwrite", code=1)
    assert "expected a place apart from the inputs" in found.output
    assert table.read_bytes() == before


def test_an_edited_calibration_without_a_column_is_refused(tmp_path):
    from petm.grading.manifest import checksum

    table, made = written(tmp_path / "t.csv", rows(300)), tmp_path / "x.calibration"
    run("calibrate", table, "--prediction-column", "answer", "--score-column", "logprob", "-o", made)
    content = json.loads(made.read_text())
    del content["checksum"]
    content["columns"]["prediction"] = ""
    made.write_text(json.dumps(content | {"checksum": checksum(content)}))
    with pytest.raises(BundleError, match="expected a name of each column"):
        read_calibration(made)


def test_grade_names_the_step_after_a_missing_column_that_it_has(tmp_path):
    table, made = written(tmp_path / "t.csv", rows(300)), tmp_path / "x.calibration"
    run("calibrate", table, "--prediction-column", "answer", "--score-column", "logprob", "-o", made)
    other = written(tmp_path / "o.csv", [row[:2] for row in rows(5)], COLUMNS[:2])
    told = run("grade", made, other, code=1).output
    assert "calibrate again" in told
    assert "--score-column" not in told
