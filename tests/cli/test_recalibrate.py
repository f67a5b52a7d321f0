"""``petm recalibrate``: another target, fresh labels, and labels of a review queue, from files."""

import csv
import json
import sys

import numpy as np
import pytest

from image_files import write_images
from networks import randomise
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.data.base import TensorData
from petm.data.opening import open_data
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import fit_grader, load
from petm.grading.manifest import read_manifest
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.recalibration import recalibrate
from petm.selective.targets import MaxRisk, Recall

NAMES = tuple("0123456789")
RECALIBRATE = ("recalibrate", "my.petm", "--trust-bundle-code")


@pytest.fixture
def petm(monkeypatch, capfd):
    """Runs ``petm ...`` and returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def place(tmp_path, model, digits, monkeypatch):
    """A folder with a bundle that holds its weights, and 400 labelled images."""
    monkeypatch.chdir(tmp_path)
    adapted = randomise(attach_adapter(model, {"fc1": 4}), scale=0.05)
    origin = Origin(ModelOrigin("networks:TinyCNN", {}, None, NAMES), InputOrigin((28, 28), 1))
    grader = fit_grader(adapted, digits[1], target=Recall(0.8), score=suspicion_named("mean_opinion"), origin=origin)
    grader.save(tmp_path / "my.petm", include_base=True)
    write_images(digits[2], range(400), tmp_path / "fresh")
    return tmp_path


def test_another_target_keeps_all_else(place, petm, model):
    code, out, err = petm(
        *RECALIBRATE, "--calibration", "fresh", "--max-risk", 0.1, "-o", "new.petm", "--json", "--report", "page.html"
    )
    assert code == 0, err
    old, new = read_manifest(place / "my.petm"), read_manifest(place / "new.petm")
    expected = recalibrate(load("my.petm", model), open_data("fresh", size=(28, 28), channels=1), target=MaxRisk(0.1))
    assert (new.threshold, new.target, new.outcome) == (expected.threshold, MaxRisk(0.1), expected.outcome)
    for kept in ("fingerprint", "layers", "members", "cascade", "suspicion"):
        assert getattr(new, kept) == getattr(old, kept)
    assert (new.origin.model, new.origin.inputs) == (old.origin.model, old.origin.inputs)
    assert new.files["base.safetensors"] == old.files["base.safetensors"]
    assert json.loads(out)["outcome"]["worth"]["reviewed"] == expected.outcome.worth.reviewed
    assert "Next: petm grade new.petm" in err
    assert (place / "page.html").is_file()
    assert petm("grade", "new.petm", "--trust-bundle-code", "fresh", "-o", "grades.csv")[0] == 0


def test_without_an_output_it_prints_the_trade_off_and_writes_nothing(place, petm):
    before = sorted(place.rglob("*"))
    code, out, err = petm(*RECALIBRATE, "--calibration", "fresh")
    assert code == 0, err
    assert all(f"{risk}%" in out for risk in ("0.5", "1", "2", "5", "10"))
    assert "Of 1,000 predictions" in out
    assert "a recall of 0.8" in out
    assert "-o" in err
    assert sorted(place.rglob("*")) == before
    code, out, _ = petm(*RECALIBRATE, "--calibration", "fresh", "--json")
    assert [row["max_risk"] for row in json.loads(out)["outcome"]["trade_off"]] == [0.005, 0.01, 0.02, 0.05, 0.1]


def test_candidates_of_another_coverage(place, petm):
    code, out, err = petm(*RECALIBRATE, "--calibration", "fresh", "--set-coverage", 0.8)
    assert code == 0, err
    assert "Candidates hold the true class with probability 0.8; on average these are " in out
    code, out, err = petm(*RECALIBRATE, "--calibration", "fresh", "--set-coverage", 0.9, "-o", "new.petm", "--json")
    assert (code, json.loads(out)["sets"]["coverage"]) == (0, 0.9)
    assert read_manifest(place / "my.petm").sets.coverage == 0.95
    assert petm("grade", "new.petm", "--trust-bundle-code", "fresh", "-o", "grades.csv")[0] == 0
    rows = list(csv.DictReader((place / "grades.csv").read_text().splitlines()))
    held = [json.loads(row["candidates"]) for row in rows]
    assert all(row["label_name"] in names for row, names in zip(rows, held, strict=True))
    assert max(map(len, held)) > 1
    code, _, err = petm(*RECALIBRATE, "--calibration", "fresh", "--set-coverage", 95)
    assert (code, "--set-coverage: expected a probability between 0 and 1, got 95" in err) == (2, True)


@pytest.fixture
def queue(place, petm):
    """Grades with a chance of being labelled, half of the trusted; returns the rows that were drawn."""
    assert petm("grade", "my.petm", "--trust-bundle-code", "fresh", "-o", "graded.csv")[0] == 0
    rows = list(csv.DictReader((place / "graded.csv").read_text().splitlines()))
    for row in rows:
        row["chance"] = 0.5 if row["grade"] == "trusted" else 1
    write(place / "graded.csv", rows)
    chosen = np.random.default_rng(0).random(len(rows)) < [row["chance"] for row in rows]
    return [row for row, drawn in zip(rows, chosen, strict=True) if drawn]


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def decided(rows):
    """The labels, which are the names of the folders; nobody can tell the first."""
    told = [{"input": row["input"], "label": row["input"].split("/")[1], "decision": ""} for row in rows]
    told[0] |= {"label": "", "decision": "cannot tell"}
    return told


def test_labels_of_a_review_queue_count_by_their_chance(place, petm, queue, model):
    write(place / "labels.csv", decided(queue))
    code, _, err = petm(
        *RECALIBRATE, "--labels", "labels.csv", "--grades", "graded.csv", "--max-risk", 0.15, "-o", "new.petm"
    )
    assert code == 0, err
    data = open_data("fresh", size=(28, 28), channels=1)
    chances = {row["input"]: row["chance"] for row in queue}
    rows = [index for index in range(len(data)) if data.name(index) in chances]
    assert len(rows) == len(queue)
    chance, labels = [chances[data.name(index)] for index in rows], data.labels[rows]
    assert data.name(rows[0]) == queue[0]["input"]
    labels[0] = (int(queue[0]["label"]) + 1) % 10  # any other class than the predicted one
    drawn = TensorData(data.inputs(rows), labels)
    expected = recalibrate(load("my.petm", model), drawn, target=MaxRisk(0.15), chance=chance)
    assert read_manifest(place / "new.petm").threshold == expected.threshold
    assert expected.threshold.holds
    assert "nobody can tell 1;" in err


def test_suspects_alone_and_inputs_that_are_gone_are_refused(place, petm, queue):
    how = (*RECALIBRATE, "--labels", "labels.csv", "--grades", "graded.csv", "-o", "new.petm")
    write(place / "labels.csv", decided([row for row in queue if row["grade"] == "suspect"]))
    code, _, err = petm(*how)
    assert (code, err.count("\n")) == (1, 1)
    assert "labels: expected each graded row to have a chance" in err
    write(place / "labels.csv", decided(queue))
    (place / queue[5]["input"]).unlink()
    code, _, err = petm(*how)
    assert code == 1
    assert queue[5]["input"] in err
    assert not (place / "new.petm").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "--calibration"),
        (("--calibration", "fresh", "--labels", "l.csv"), 2, "--calibration"),
        (("--labels", "l.csv"), 2, "--grades"),
        (("--labels", "l.csv", "--grades", "g.csv", "--report", "page.html"), 2, "--report"),
        (("--calibration", "fresh", "--max-risk", 2), 2, "--max-risk"),
        (("--calibration", "fresh", "--recall", 0.5, "--coverage", 0.5), 2, "recall"),
        (("--calibration", "gone"), 1, "calibration"),
        (("--calibration", "fresh", "-o", "my.petm"), 1, "got a bundle"),
    ],
)
def test_arguments_are_checked_first(place, petm, monkeypatch, options, code, message):
    monkeypatch.setattr("petm.cli.graders.open_bundle", lambda *_: pytest.fail("opened"))
    found, _, err = petm(*RECALIBRATE, *options)
    assert found == code
    assert message in err
