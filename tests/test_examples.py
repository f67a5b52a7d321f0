"""The examples, run as a reader runs them: where neither petm nor torch can be imported."""

import ast
import csv
import getpass
import json
import re
import runpy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hf_folders
from networks import TinyCNN, randomise, seeded
from petm.adapter.model import Cascade, attach_adapter
from petm.adapter.one_pass import predict_answers
from petm.cli import main
from petm.data.opening import open_data
from petm.errors import PetmWarning
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_processors import load_processor
from petm.models.loading import load_model
from petm.models.scores import maximum_softmax
from petm.selective.probability import fit_probability
from petm.selective.sets import PredictionSets
from petm.selective.thresholds import Threshold

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "first_hour.ipynb"
EXAMPLE = EXAMPLES / "onnx_grade.py"
WITHOUT = """
import runpy, sys
for name in ("petm", "torch", "transformers", "scipy"):
    sys.modules[name] = None  # importing it is an ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pictures(folder):
    """Noise and shapes in grey, colour, with alpha, of a palette, turned by EXIF, of several sizes."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index, (mode, size) in enumerate(
        (("L", (28, 28)), ("L", (60, 45)), ("RGB", (28, 28)), ("RGB", (33, 90)), ("RGBA", (40, 40)), ("LA", (31, 29)))
    ):
        smooth = Image.fromarray(generator.integers(0, 256, (5, 4, 4), np.uint8), "RGBA").resize(size)
        smooth.convert(mode).save(folder / f"{index}.png")
    Image.fromarray(generator.integers(0, 256, (30, 50, 3), np.uint8)).quantize(16).save(folder / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(generator.integers(0, 256, (50, 20, 3), np.uint8)).save(folder / "turned.png", exif=turned)
    frames = [Image.fromarray(generator.integers(0, 256, (30, 30, 3), np.uint8)) for _ in range(3)]
    frames[0].save(folder / "with_default.png", save_all=True, append_images=frames[1:], default_image=True)
    return sorted(folder.iterdir())


def graded_by_the_example(graph, paths):
    command = [sys.executable, "-c", WITHOUT, EXAMPLE, graph, *paths]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=120)
    return list(csv.DictReader(answer.stdout.splitlines())), answer.stderr


def check(rows, paths, grades, classes):
    """Against what petm says of the same files."""
    assert [row["input"] for row in rows] == [str(path) for path in paths]
    assert [int(row["label"]) for row in rows] == grades.labels.tolist()
    assert [row["label_name"] for row in rows] == [classes[label] for label in grades.labels]
    assert [row["grade"] for row in rows] == ["trusted" if trusted else "suspect" for trusted in grades.trusted]
    np.testing.assert_allclose([float(row["suspicion"]) for row in rows], grades.suspicion, rtol=0, atol=1e-5)
    told = [float(row["probability_of_error"]) for row in rows]
    np.testing.assert_allclose(told, grades.probability_of_error, rtol=0, atol=1e-4)
    named = [tuple(json.loads(row["candidates"])) for row in rows]
    assert named == grades.candidate_names.tolist()
    assert len(set(named)) > 1
    assert len(set(grades.suspicion.round(4))) >= len(rows) // 2, "the images are told apart"
    assert 0 < grades.trusted.sum() < len(rows)


def fitted(adapted, data, origin):
    """A grader that trusts about half of the data."""
    suspicion = suspicion_named("mean_opinion").of(predict_answers(adapted, data)).numpy()
    value = float(np.sort(suspicion)[len(suspicion) // 2 - 1 : len(suspicion) // 2 + 1].mean())
    probability = fit_probability(suspicion, np.arange(len(suspicion)) % 3 == 0)
    sets = PredictionSets(0.9, "threshold", ((0.8,), (0.9,)), (100, 100), (1.0, 2.0))
    held = (suspicion_named("mean_opinion"), probability, origin)
    return Grader(adapted, Threshold(value, "by hand"), *held, sets=sets)


@pytest.mark.slow
def test_onnx_grade_alone_answers_as_petm_does(tmp_path):
    """In colour; the next test grades in grey."""
    paths, classes = pictures(tmp_path / "more"), tuple("abcdefghij")
    data = open_data(tmp_path / "more", size=(28, 28), channels=3, resize="squeeze")
    network = seeded(TinyCNN)
    network.conv1 = torch.nn.Conv2d(3, 6, 5, stride=3, bias=False)
    origin = Origin(ModelOrigin("networks:TinyCNN", classes=classes), InputOrigin((28, 28), 3, resize="squeeze"))
    grader = fitted(randomise(attach_adapter(network, {"fc1": 4}), scale=2), data, origin)
    export_onnx(grader, tmp_path / "model.onnx")
    rows, said = graded_by_the_example(tmp_path / "model.onnx", paths)
    check(rows, paths, grader.grade(data), classes)
    assert said == f"by hand: suspect from a suspicion of {grader.threshold.value} on\n"


@pytest.mark.slow
def test_the_rows_are_those_of_petm_grade(tmp_path, monkeypatch, capfd):
    """Bundle, export, and both ways to grade the same files, each by its command."""
    paths = pictures(tmp_path / "more")
    inputs = InputOrigin((28, 28), 1, resize="crop", mean=(0.1,), std=(0.8,))
    origin = Origin(ModelOrigin("networks:TinyCNN", classes=tuple("abcdefghij")), inputs)
    data = open_data(tmp_path / "more", **inputs.settings())
    adapted = randomise(attach_adapter(seeded(TinyCNN), {"fc1": 4}), scale=2)
    adapted.cascade = Cascade(float(maximum_softmax(predict_answers(adapted, data).base).sort().values[3]), most=0.003)
    grader = fitted(adapted, data, origin)
    grader.save(tmp_path / "my.petm", include_base=True)
    for arguments in (
        ("export", tmp_path / "my.petm", "--trust-bundle-code", "-o", tmp_path / "my.onnx"),
        ("grade", tmp_path / "my.petm", "--trust-bundle-code", tmp_path / "more", "-o", tmp_path / "grades.csv"),
    ):
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            main()
    assert "cascade: " in capfd.readouterr().err
    expected = list(csv.DictReader((tmp_path / "grades.csv").read_text().splitlines()))
    full = grader.judge(predict_answers(adapted, data)).suspicion
    near = [abs(float(row["suspicion"]) - value) < 1e-5 for row, value in zip(expected, full, strict=True)]
    assert near.count(False) == 3, "of six second opinions half are left out"
    rows, _ = graded_by_the_example(tmp_path / "my.onnx", paths)
    assert len(rows) == len(expected) == len(paths)
    with pytest.warns(PetmWarning, match=r"^cascade: "):
        grades = grader.grade(data)
    check(rows, paths, grades, tuple("abcdefghij"))
    for row, told in zip(rows, expected, strict=True):
        for name in ("input", "label", "label_name", "grade"):
            assert row[name] == told[name]
        assert float(row["suspicion"]) == pytest.approx(float(told["suspicion"]), abs=1e-5)


@pytest.mark.slow
def test_what_a_processor_does_is_done_without_it(tmp_path):
    paths = pictures(tmp_path / "more")
    made = hf_folders.image_processor(resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    hf_folders.save(tmp_path / "vit", hf_folders.vit(), made)
    processor = load_processor(tmp_path / "vit")
    data = open_data(tmp_path / "more", processor=processor)
    model = load_model(f"hf:{tmp_path / 'vit'}")
    inputs = InputOrigin(processor=str(tmp_path / "vit"), fingerprint=processor.fingerprint)
    origin = Origin(ModelOrigin(classes=hf_folders.KINDS), inputs)
    grader = fitted(randomise(attach_adapter(model, {"classifier": 2}), scale=2), data, origin)
    export_onnx(grader, tmp_path / "model.onnx", processor=processor)
    rows, _ = graded_by_the_example(tmp_path / "model.onnx", paths)
    check(rows, paths, grader.grade(data), hf_folders.KINDS)
    graph = OnnxGrader(tmp_path / "model.onnx")
    np.testing.assert_allclose(graph.grade(data).suspicion, grader.grade(data).suspicion, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_image_that_cannot_be_read_does_not_spoil_the_others(tmp_path):
    paths = pictures(tmp_path / "more")[:2]
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:60])
    Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(tmp_path / "deep.png")
    origin = Origin(ModelOrigin("networks:TinyCNN"), InputOrigin((28, 28), 1))
    grader = Grader(randomise(attach_adapter(seeded(TinyCNN), {"fc1": 4})), Threshold(0.5, "by hand"), origin=origin)
    export_onnx(grader, tmp_path / "model.onnx")
    names = "none.png", "broken.png", "deep.png", "hidden.png"
    Image.fromarray(np.arange(784 * 4).reshape(28, 28, 4).astype(np.uint8) * np.uint8([1, 1, 1, 0])).save(
        tmp_path / names[3]
    )
    given = [paths[0], *(tmp_path / name for name in names), paths[1]]
    rows, _ = graded_by_the_example(tmp_path / "model.onnx", given)
    assert [row["grade"] == "unreadable" for row in rows] == [False, True, True, True, True, False]
    assert rows[3]["reason"] == "other than 8 bits in a pixel"
    assert all(row["reason"] for row in rows[1:5])


@pytest.mark.slow
def test_a_graph_that_needs_its_processor_says_so(tmp_path):
    hf_folders.save(tmp_path / "vit", hf_folders.vit(), hf_folders.image_processor())
    origin = Origin(inputs=InputOrigin(processor="a/folder"))
    adapted = randomise(attach_adapter(load_model(f"hf:{tmp_path / 'vit'}"), {"classifier": 2}))
    export_onnx(
        Grader(adapted, Threshold(0.5, "by hand"), origin=origin), tmp_path / "g.onnx", torch.rand(3, 3, 16, 16)
    )
    with pytest.raises(subprocess.CalledProcessError) as raised:
        graded_by_the_example(tmp_path / "g.onnx", [])
    assert "not prepared by Pillow alone: {'needs_processor': 'a/folder'}" in raised.value.stderr


def test_it_is_as_short_as_it_says():
    page = (EXAMPLES.parent / "docs" / "how-to" / "onnx.md").read_text(encoding="utf-8")
    assert f"in {len(EXAMPLE.read_text().splitlines())} lines" in page


NEEDS = {"10_datasets.py": "datasets", "12_mlflow.py": "mlflow"}
"""Examples of packages that `make test` does not install."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("[0-9]*.py")))
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}, which petm does not")
    (work := tmp_path / "work").mkdir()
    (left := tmp_path / "temporary").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(left))
    monkeypatch.syspath_prepend(EXAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.simplefilter("error", PetmWarning)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 20
    assert [path.name for path in left.iterdir() if path.name != f"torchinductor_{getpass.getuser()}"] == []
    assert 15 <= len((EXAMPLES / name).read_text().splitlines()) <= 50


@pytest.mark.slow
def test_the_notebook_shows_what_its_cells_show_today(tmp_path, monkeypatch, capsys):
    """In one namespace, as a kernel runs them; numbers may differ a little between machines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(EXAMPLES)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    names = {}
    for cell in cells:
        shown = {"stdout": "", "stderr": "", "result": ""}
        for output in cell["outputs"]:
            shown[output.get("name", "result")] += "".join(output.get("text") or output["data"]["text/plain"])
        code = ast.parse("".join(cell["source"]))
        last = ast.Expression(code.body.pop().value) if isinstance(code.body[-1], ast.Expr) else None
        exec(compile(code, NOTEBOOK.name, "exec"), names)
        result = eval(compile(last, NOTEBOOK.name, "eval"), names) if last else None
        told = capsys.readouterr()
        now = {"stdout": told.out, "stderr": told.err, "result": "" if result is None else repr(result)}
        assert {name: _form(text) for name, text in now.items()} == {name: _form(text) for name, text in shown.items()}


def _form(text):
    """A text without its numbers and the spaces between its words."""
    return re.sub(r"[\d.,]+", "0", text).split()
