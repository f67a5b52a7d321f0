"""The README's commands and its Python are run, in a folder as a reader would have it."""

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import petm
from image_files import write_images
from petm.cli import main
from petm.cli import petm as petm_command
from petm.data.digits import load_digits
from petm.models.loading import save_weights
from petm.training import loop as training
from petm.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program):
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


def run(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["petm", *arguments])
    main()


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    assert commands("make") == [["demo"], ["test"]]
    for (target,) in commands("make"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_own_model(tmp_path, monkeypatch, model, digits, capfd):
    """fit, grade and inspect as they stand there, on a package of the reader's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text("")
    (tmp_path / "mypkg" / "nets.py").write_text("from networks import TinyCNN as build\n")
    save_weights(model, tmp_path / "w.safetensors")
    write_images(digits[0], range(300), tmp_path / "images")
    write_images(digits[2], range(10), tmp_path / "more_images", flat=True)
    assert [line[0] for line in commands("petm")] == ["fit", "grade", "inspect"]
    for line in commands("petm"):
        run(monkeypatch, [*line, "--max-extra-parameters", "0.2"] if line[0] == "fit" else line)
    assert len((tmp_path / "grades.csv").read_text().splitlines()) == 11
    assert (tmp_path / "my.html").stat().st_size > 50_000
    assert "mypkg.nets:build" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*expected inputs like those of the fit")
def test_demo_then_the_python_example(tmp_path, monkeypatch, capfd):
    """What `make demo` runs, with fewer epochs, and the example that uses what it leaves."""
    monkeypatch.chdir(tmp_path)

    def fewer(**how):
        train, calibration, test = load_digits(**how)
        return train.subset(range(0, len(train), 3)), calibration, test.subset(range(0, len(test), 6))

    monkeypatch.setattr(petm, "load_digits", fewer)
    monkeypatch.setitem(RECIPES, "auto", replace(RECIPES["auto"], epochs=1))
    monkeypatch.setattr(import_module("petm.cli.demo"), "EPOCHS", 4)
    run(monkeypatch, ["demo"])
    (example,) = blocks("python")
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["grader"], petm.Grader)
    assert len(names["grades"]) == len(names["new"])
    assert len(petm.load("digits.petm", names["model"]).grade(names["new"])) == len(names["new"])
    (printed,) = blocks("text")
    told = f"{names['grader']}\n{names['grades']}"
    assert [line.split(":")[0] for line in told.splitlines()[:6]] == [
        line.split(":")[0] for line in printed.splitlines()[:6]
    ]
    folder, out = tmp_path / "runs" / "demo", capfd.readouterr().out
    assert os.path.getsize(folder / "report.html") > 100_000
    assert len((folder / "grades.csv").read_text().splitlines()) == 1 + len(list((folder / "new").rglob("*.png")))
    left = dict(re.findall(r"^(softmax alone|petm, after learning) +\d+ +(\d+)$", out, re.MULTILINE))
    assert int(left["petm, after learning"]) < int(left["softmax alone"])
    for line in re.findall(r"^  petm (inspect|grade)(.*)$", out, re.MULTILINE):
        run(monkeypatch, [line[0], *shlex.split(line[1])])


def examples():
    """The example of each verb's help, as words behind ``petm``."""
    return {
        name: shlex.split(verb.epilog.removeprefix("Example: petm"))[1:] for name, verb in petm_command.commands.items()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")
def test_the_examples_of_help(tmp_path, monkeypatch, capfd):
    """Each runs on what `make demo` leaves, in an order in which a user would; what would wait or upload is parsed."""
    monkeypatch.chdir(tmp_path)
    train, fresh, new = load_digits(splits=(0.3, 0.2, 0.5))
    monkeypatch.setitem(RECIPES, "auto", replace(RECIPES["auto"], epochs=1))
    model = petm.paper_cnn()
    training.train(model, train, training.CROSS_ENTROPY, training.Settings(3, 1e-3, batch_size=64))
    save_weights(model, Path("runs/demo/base.safetensors"))
    for name, data, rows in (("images", train, 400), ("fresh", fresh, 359), ("more_images", new, 60)):
        write_images(data, range(rows), tmp_path / name)
    shown = examples()
    run(monkeypatch, ["fit", *shown["fit"]])
    shutil.copytree("my.petm", "runs/demo/grader.petm")
    run(monkeypatch, ["grade", *shown["grade"]])
    run(monkeypatch, ["grade", "my.petm", "more_images/", "-o", "grades.parquet"])
    told = [(row["input"], Path(row["input"]).parent.name) for row in pq.read_table("grades.parquet").to_pylist()]
    Path("labels.jsonl").write_text("".join(json.dumps({"input": path, "label": label}) + "\n" for path, label in told))
    Path("checked.csv").write_text("input,label\n" + "".join(f"{path},{label}\n" for path, label in told))
    for day, rows in (("monday", slice(0, 30)), ("tuesday", slice(30, 60))):
        pq.write_table(pq.read_table("grades.parquet")[rows], f"{day}.parquet")
    for verb in ("learn", "recalibrate", "inspect", "export"):
        run(monkeypatch, [verb, *shown[verb]])
    with contextlib.suppress(SystemExit):  # by what it finds
        run(monkeypatch, ["monitor", *shown["monitor"]])
    assert "trusted" in (tmp_path / "watch" / "monitor.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} >= {"better.petm", "strict.petm", "grades.csv", "model.onnx"}
    for verb in ("serve", "push", "demo", "reproduce"):
        petm_command.commands[verb].make_context(verb, shown[verb])


def test_the_korean_readme_has_the_same_commands_and_python():
    korean = (ROOT / "README.ko.md").read_text()
    for language in ("sh", "python"):
        theirs = re.findall(rf"```{language}\n(.*?)```", korean, re.DOTALL)
        assert [_code(block) for block in theirs] == [_code(block) for block in blocks(language)]


def _code(block):
    return [line.partition("#")[0].rstrip() for line in block.splitlines()]
