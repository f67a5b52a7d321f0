"""``petm learn``, from graded images and their labels to another bundle; and what it refuses in one line."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from image_files import write_images
from petm.adapter.model import views_alone
from petm.cli import main
from petm.cli.learn import _print as print_result
from petm.data.base import TensorData
from petm.grading.grader import fit_grader
from petm.grading.manifest import MANIFEST, read_manifest
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.loading import weights_fingerprint
from petm.selective.before_after import Change
from petm.selective.bootstrap import Estimate

# As in a process of its own, where dimmed images are said to be unlike those of the fit.
pytestmark = pytest.mark.filterwarnings("always::petm.errors.PetmWarning")

CLASSES = tuple("0123456789")
BUDGETS = ("--model", "networks:TinyCNN", "--max-extra-parameters", "0.3", "--max-extra-time", "0.5")


@pytest.fixture
def petm(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

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
def place(model, digits, tmp_path, petm):
    """A bundle, 400 dimmed images, their grades and their labels."""
    origin = Origin(ModelOrigin("networks:TinyCNN", classes=CLASSES), InputOrigin((28, 28), 1))
    grader = fit_grader(views_alone(model, ()), digits[1], target=None, score="softmax", origin=origin)
    grader.save("my.petm", include_base=True)
    dim = TensorData(digits[2].inputs(range(400)) * 0.35, digits[2].labels[:400], classes=CLASSES)
    write_images(dim, range(400), Path("in"), flat=True)
    assert petm("grade", "my.petm", "--model", "networks:TinyCNN", "in", "-o", "grades.parquet")[0] == 0
    rows = pq.read_table("grades.parquet").to_pylist()
    write(
        "labels.csv",
        [{"input": row["input"], "label": int(label)} for row, label in zip(rows, dim.labels, strict=True)],
    )
    return rows, dim.labels.tolist()


def write(name, rows):
    with open(name, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def learn(petm, *more, labels="labels.csv"):
    return petm("learn", "my.petm", *BUDGETS, "--labels", labels, *more)


def test_from_labels_to_a_better_bundle(place, petm, model):
    code, out, err = learn(petm, "--grades", "grades.parquet", "-o", "better.petm", "--json")
    assert (code, "Traceback" in err) == (0, False)
    told = json.loads(out)
    parent = hashlib.sha256((Path("my.petm") / MANIFEST).read_bytes()).hexdigest()
    assert (told["parent"], told["labels"], told["judged"]) == (parent, 400, 400)
    assert told["changes"][0]["name"] == "aurc"
    assert told["changes"][0]["difference"]["high"] < 0
    manifest = read_manifest("better.petm")
    assert (manifest.origin.settings["parent"], manifest.fingerprint) == (parent, weights_fingerprint(model))
    assert not Path("better.petm.run").exists()
    assert f"parent{parent}" in re.sub(r"[\s│]", "", petm("inspect", "better.petm")[1])
    assert petm("grade", "better.petm", "--model", "networks:TinyCNN", "in", "-o", "again.csv")[0] == 0


def test_labels_alone_or_as_data_give_the_same_adapter(place, petm):
    _, labels = place
    for row, label in enumerate(labels):
        Path("data", CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Path("data", CLASSES[label], f"{row:04d}.png").write_bytes(Path("in", f"{row:04d}.png").read_bytes())
    assert learn(petm, "-o", "a.petm")[0] == 0
    code, out, _ = learn(petm, "-o", "b.petm", labels="data")
    assert code == 0
    assert "Before and after" in out
    assert "AURC" in out
    assert read_manifest("a.petm").measured["aurc"] == pytest.approx(read_manifest("b.petm").measured["aurc"], rel=0.2)


def test_the_page_alone_guarantees_nothing_and_goes_on(place, petm):
    rows, labels = place
    middle = float(np.median([row["suspicion"] for row in rows]))
    with open("labels.jsonl", "w") as file:
        for row, label in zip(rows, labels, strict=True):
            if row["suspicion"] > middle:
                digest = hashlib.sha256(Path(row["input"]).read_bytes()).hexdigest()
                line = {"sha256": digest, "label": label, "confirmed": label == row["label"], "suspicion": 0.5}
                file.write(json.dumps(line) + "\n")
        least = min(rows, key=lambda row: row["suspicion"])
        digest = hashlib.sha256(Path(least["input"]).read_bytes()).hexdigest()
        line = {"sha256": digest, "label": None, "decision": "cannot tell", "confirmed": False, "suspicion": 0.5}
        file.write(json.dumps(line) + "\n")
    how = ("--grades", "grades.parquet", "--max-risk", "0.1", "-o", "better.petm", "--json")
    code, out, err = learn(petm, *how, labels="labels.jsonl")
    assert code == 0
    assert "nothing is guaranteed" in err
    assert "nobody can tell 1" in err
    assert json.loads(out)["labels"] == 200
    assert read_manifest("better.petm").threshold.confidence is None


def test_an_input_that_was_never_graded_is_no_missing_draw(place, petm, monkeypatch):
    seen = []
    monkeypatch.setattr("petm.learning.learned", lambda *_, drawn, **how: seen.append(drawn) or sys.exit(0))
    with_grades = ("--grades", "grades.parquet")
    for broken, grades in ((b"no image", ()), (b"no image", with_grades), (None, ())):
        Path("in/0003.png").unlink() if broken is None else Path("in/0003.png").write_bytes(broken)
        code, _, err = learn(petm, *grades, "--skip-bad", "-o", "better.petm", "--overwrite")
        assert (code, "skipped: in/0003.png" in err) == (0, True)
    assert list(map(bool, seen)) == [True, False, False]


def test_an_interrupt_says_how_to_go_on(place, petm, monkeypatch):
    from petm.training import from_labels

    train, done = from_labels.train, []

    def killed(*arguments, **how):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(how["title"])
        return train(*arguments, **how)

    monkeypatch.setattr(from_labels, "train", killed)
    code, _, err = learn(petm, "-o", "better.petm")
    assert (code, Path("better.petm").exists()) == (130, False)
    assert "--resume" in err
    assert len(list(Path("better.petm.run/checkpoints").iterdir())) == 2


DYING = """
import os, signal, sys
import torch
torch.set_num_threads(1)  # as conftest does: another number rounds otherwise
import petm.training.checkpoint as checkpoint
from petm.cli import main
from petm.cli.learn import _print as print_result

save, saved = checkpoint.save_file, []

def half(tensors, path, **how):
    save(tensors, path, **how)
    saved.append(path)
    if len(saved) == 3:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_file = half
main()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_bundle(place, petm):
    few = [{"input": row["input"], "label": label} for row, label in zip(*place, strict=True)][:90]
    write("few.csv", few)
    how = (*BUDGETS, "--labels", "few.csv", "-o", "better.petm")
    command = [sys.executable, "-c", DYING, "learn", "my.petm", *how]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (killed.returncode, Path("better.petm").exists()) == (-signal.SIGKILL, False), killed.stderr
    code, _, err = learn(petm, "-o", "better.petm", labels="few.csv")
    assert (code, "--resume" in err) == (1, True)
    assert learn(petm, "-o", "better.petm", "--resume", labels="few.csv")[0] == 0
    assert learn(petm, "-o", "whole.petm", labels="few.csv")[0] == 0
    files = [sorted(path.name for path in Path(name).iterdir()) for name in ("better.petm", "whole.petm")]
    assert files[0] == files[1]
    for name in files[0]:
        assert Path("better.petm", name).read_bytes() == Path("whole.petm", name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda told: [row | {"input": f"elsewhere/{n}.png"} for n, row in enumerate(told)], "name a graded row"),
        (lambda told: [*told, told[0] | {"label": (told[0]["label"] + 1) % 10}], "one label"),
        (lambda told: [*told[:-1], told[-1] | {"label": "cat"}], "classes"),
        (lambda told: [row | {"label": 1} for row in told], "two classes"),
        (lambda told: told[:19], "at least 20"),
        (lambda told: [row | {"sha256": f"{n:064x}"} for n, row in enumerate(told)], "hash"),
    ],
)
def test_bad_labels_are_one_line_and_nothing_is_lost(place, petm, change, match):
    rows, labels = place
    told = [{"input": row["input"], "label": label} for row, label in zip(rows, labels, strict=True)]
    write("bad.csv", change(told))
    before = sorted(Path().rglob("*"))
    code, out, err = learn(petm, "--grades", "grades.parquet", "-o", "better.petm", labels="bad.csv")
    assert (code, out) == (1, "")
    assert match in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "code"),
    [(("--confidence", "0.9"), 2), (("--max-risk", "2"), 2), (("--max-extra-time", "0"), 2), (("--data", "gone"), 1)],
)
def test_wrong_options(place, petm, more, code):
    found, _, err = learn(petm, *more, "-o", "better.petm")
    assert found == code
    assert "Traceback" not in err


def test_labels_that_grow_judge_only_with_what_is_new(place, petm):
    rows, labels = place
    told = [{"input": row["input"], "label": label} for row, label in zip(rows, labels, strict=True)]
    write("monday.csv", told[:150])
    assert learn(petm, "-o", "first.petm", labels="monday.csv")[0] == 0
    assert "hashes" not in petm("inspect", "first.petm")[1]
    code, out, err = petm("learn", "first.petm", *BUDGETS, "--labels", "labels.csv", "-o", "second.petm", "--json")
    assert code == 0, err
    assert (json.loads(out)["labels"], json.loads(out)["judged"]) == (250, 250)
    first, second = (read_manifest(name).origin for name in ("first.petm", "second.petm"))
    assert len(first.learned_from) == 150
    assert set(first.learned_from) <= set(second.learned_from)


def test_a_figure_that_is_not_there_is_a_dash(capsys):
    change = Change("errors among the trusted", 0.2, np.nan, Estimate(np.nan, np.nan, np.nan))
    result = SimpleNamespace(changes=[change], judged=50, errors=10, grader=SimpleNamespace(choice=None))
    print_result(result, Path("better.petm"))
    out = capsys.readouterr().out
    assert "nan" not in out
    assert re.search(r"trusted +20\.0% +– +–", out)
