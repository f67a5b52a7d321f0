"""What is imported, and when: nothing heavy before it is needed, and nothing that Windows lacks."""

import copy
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import petm
from petm.adapter.model import attach_adapter
from petm.data.base import Data
from petm.grading.grader import fit_grader
from petm.selective.targets import Coverage

HEAVY = ("torch", "transformers", "peft", "sklearn", "scipy.stats", "matplotlib", "jinja2")
POSIX = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "_posixshmem")
COMMAND = """
import json, sys
from petm.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(sys.modules)]), file=open(sys.argv.pop(), "w"))
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, set[str], str]:
    """Exit code, imported modules and standard error of ``petm ...`` in a process of its own."""
    report = tmp_path / "report.json"
    code = COMMAND.replace("sys.argv.pop()", repr(str(report)))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert report.exists(), done.stderr
    exit_code, modules = json.loads(report.read_text())
    return exit_code or 0, set(modules), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["fit", "--help"], 0),
        (["serve", "--help"], 0),
        (["grade", "some.petm"], 2),
        (["grade", "some.petm", "there.png", "--batch-size", "0"], 2),
        (["grade", "some.petm", "there.png", "-o", "grades.txt"], 1),
        (["grade", "some.petm", "absent.png"], 1),
        (["grade", "absent.petm", "there.png"], 1),
        (["grade", "absent.onnx", "there.png"], 1),
        (["grade", "there.onnx", "there.png", "--device", "tpu"], 2),
        (["reproduce", "--dataset", "cifar"], 2),
    ],
    ids=str,
)
def test_help_and_wrong_arguments_are_answered_at_once(arguments: list[str], code: int, tmp_path: Path) -> None:
    for name in ("there.png", "there.onnx"):
        (tmp_path / name).touch()
    found, modules, told = run(tmp_path, *arguments)
    assert found == code, told
    assert not modules & set(HEAVY)


MANY = """
import json, sys
from click.testing import CliRunner
from petm.cli import petm
heavy, cases = json.loads(sys.stdin.read())
for words, wanted in cases:
    result = CliRunner().invoke(petm, words)
    assert result.exit_code in (1, 2), (words, result.exception)
    assert f"Error: {wanted}" in result.output, (words, wanted, result.output)
    assert not set(heavy) & set(sys.modules), (words, set(heavy) & set(sys.modules))
"""


def test_what_is_wrong_in_the_options_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    for name in ("folder", "some.petm", "images"):
        (tmp_path / name).mkdir()
    for name in ("good.txt", "bad.txt", "fresh.npz", "taken.onnx"):
        (tmp_path / name).write_text("Say: {text}" if name == "good.txt" else "no placeholder")
    fit, asks = "fit --data images -o my.petm --model", "--label-words yes,no --template"
    old = "--calibration fresh.npz --model"
    cases = {
        f"{fit} hf:folder {asks} bad.txt": "--template: expected",
        f"{fit} hf:folder --label-words yes,yes --template good.txt": "--label-words: expected",
        f"{fit} hf:folder --label-words yes,no": "--label-words, --template: expected both",
        f"{fit} a:b {asks} good.txt": "--label-words: expected a language model",
        f"{fit} hf:absent": "--model: expected the folder",
        f"{fit} absent.py:Net": "--model: expected a file",
        f"{fit} nothing": "--model: expected 'module:factory'",
        f"{fit} a:b --base folder": "--base: expected none",
        f"{fit} a:b --device-map auto": "--device-map: expected none",
        f"{fit} a:b --classes cat,cat": "--classes: expected different names",
        f"{fit} a:b --calibration absent.npz": "--calibration: expected",
        f"{fit} a:b --weights absent.safetensors": "--weights: expected",
        f"{fit} a:b --fsdp --report page.html": "--fsdp: expected",
        "learn absent.petm --labels images -o new.petm": "BUNDLE: expected",
        "learn some.petm --labels images -o new.petm --model hf:absent": "--model: expected the folder",
        f"recalibrate some.petm {old} hf:absent": "--model: expected the folder",
        f"recalibrate some.petm {old} absent.py:Net": "--model: expected a file",
        f"recalibrate absent.petm {old} hf:folder": "BUNDLE: expected",
        "grade some.petm fresh.npz --model nothing": "--model: expected 'module:factory'",
        "grade some.petm fresh.npz --weights absent.safetensors": "--weights: expected",
        "serve absent.petm": "BUNDLE: expected",
        "serve absent.onnx": "BUNDLE: expected",
        "serve some.petm --model hf:absent": "--model: expected the folder",
        "export absent.petm -o new.onnx": "BUNDLE: expected",
        "export some.petm -o taken.onnx": "taken.onnx: expected no such file yet",
        "export some.petm -o new.txt": "new.txt: expected a name that ends in .onnx",
        "export some.petm -o new.onnx --example absent.npz": "--example: expected",
    }
    told = json.dumps([HEAVY, [(words.split(), wanted) for words, wanted in cases.items()]])
    done = subprocess.run(
        [sys.executable, "-c", MANY], cwd=tmp_path, input=told, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def graph(_trained: nn.Module, digits: tuple[Data, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported grader, and ten images beside it."""
    pytest.importorskip("onnxscript", reason="needs petm[onnx]")
    tmp_path = tmp_path_factory.mktemp("graph")
    grader = fit_grader(attach_adapter(copy.deepcopy(_trained), {"fc1": 4}), digits[1], target=Coverage(0.7))
    petm.export_onnx(grader, tmp_path / "model.onnx", digits[2].inputs(range(4)))
    (tmp_path / "images").mkdir()
    for index, image in enumerate(digits[2].inputs(range(10))):
        pixels = (image[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "model.onnx"


GRADED = """
import sys
import numpy as np
import petm
grades = petm.OnnxGrader("model.onnx").grade(np.load("images.npy"))
assert (grades.labels.dtype, grades.suspicion.dtype, grades.trusted.dtype) == (np.int64, np.float64, np.bool_)
assert len(grades) == 10
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.mark.slow
def test_a_graph_grades_arrays_without_pytorch(graph: Path, digits: tuple[Data, ...]) -> None:
    np.save(graph.parent / "images.npy", digits[2].inputs(range(10)).numpy())
    done = subprocess.run(
        [sys.executable, "-c", GRADED], cwd=graph.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_graph_grades_files_without_pytorch(graph: Path) -> None:
    code, modules, told = run(graph.parent, "grade", "model.onnx", "images", "-o", "grades.csv")
    assert code == 0, told
    assert "10 inputs" in told
    assert not modules & set(HEAVY)


NO_POSIX = """
import builtins, importlib, sys
absent, names = sys.argv[1].split(), sys.argv[2].split()
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    if name in absent and str((globals or {}).get("__name__")).startswith("petm"):
        raise ModuleNotFoundError(name)
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
for name in names:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_without_what_windows_lacks() -> None:
    modules = (module.name for module in pkgutil.walk_packages(petm.__path__, "petm."))
    names = " ".join(name for name in modules if name != "petm.__main__")
    done = subprocess.run(
        [sys.executable, "-c", NO_POSIX, " ".join(POSIX), names],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "package", "code"),
    [
        ("hf", "transformers", "petm.load_model('hf:.')"),
        ("hf", "huggingface_hub", "from petm._internal.extras import import_extra; import_extra('hf', package)"),
        ("onnx", "onnxruntime", "petm.OnnxGrader('model.onnx')"),
    ],
)
def test_an_extra_that_is_not_installed(extra: str, package: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    script = f"import sys, petm\npackage = {package!r}\nsys.modules[package] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"petm.errors.ExtraError: {extra}: ")
    assert f"pip install 'petm[{extra}]', " in last
    assert last.endswith(f"pip install '.[{extra}]'.")
