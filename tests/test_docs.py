"""The documentation site: its links lead somewhere, its commands are real ones, its Python runs."""

import json
import re
import runpy
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import petm
from image_files import write_images
from networks import seeded
from petm.adapter.model import attach_adapter, views_alone
from petm.cli import main
from petm.cli import petm as group
from petm.data.base import Data
from petm.grading.grade_table import SCHEMA
from petm.grading.grader import fit_grader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.loading import save_weights
from petm.models.paper import PaperCNN
from petm.selective.targets import Recall
from petm.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE: dict[str, str] = runpy.run_path(str(DOCS / "site_pages.py"))["made_pages"]()
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")} | MADE
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of these languages."""
    return [code for _, language, code in FENCE.findall(text) if language in languages]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them, and of its entries of the Python reference."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", re.sub(r"[`*]|\]\([^)]*\)", "", heading)).encode("ascii", "ignore")
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.decode()).strip().lower())
        found.append(slug if slug not in found else f"{slug}_{found.count(slug)}")
    return {*found, *re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def missing(target: str, folder: Path, text: str) -> bool:
    """Whether a link from a page in ``folder`` of the site leads nowhere."""
    place, _, anchor = target.partition("#")
    path = (folder / place).resolve()
    name = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else ""
    if place and name not in PAGES and not path.exists():
        return True
    return bool(anchor) and anchor not in anchors(PAGES.get(name, "") if place else text)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each call of petm in a page: in a shell, in a unit of systemd, in a Dockerfile."""
    for code in blocks(text, "", "sh", "console", "ini", "dockerfile"):
        for line in code.replace("\\\n", " ").splitlines():
            if line.startswith("CMD ["):
                yield json.loads(line.removeprefix("CMD "))[1:]
            elif call := re.search(r"(?:^|^\$ |/bin/|-m )petm (?=[a-z])(.*?)(?= \d?>| \||$)", line):
                yield shlex.split(call[1], comments=True)


CALLS = [(page, line) for page, text in PAGES.items() for line in commands(text)]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors(page: str) -> None:
    text = FENCE.sub("", PAGES[page])
    found = [link for link in LINK.findall(text) if not re.match(r"\w+:", link)]
    assert [link for link in found if missing(link, (DOCS / page).parent, PAGES[page])] == []


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_of_the_root(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [link for link in LINK.findall(FENCE.sub("", text)) if not re.match(r"\w+:", link)]
    assert [link for link in found if missing(link, ROOT, text)] == []


def test_paths_of_pages_that_messages_and_docstrings_name_are_there() -> None:
    files = [path for folder in ("src", "experiments") for path in (ROOT / folder).rglob("*.py")]
    named = {path for file in files for path in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8"))}
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_navigation_has_every_page_once() -> None:
    navigation = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(navigation) == sorted(page for page in PAGES if not page.startswith("measured/"))


def test_the_reference_has_every_public_name_once() -> None:
    named = re.findall(r"^::: petm\.(\w+)$", PAGES["reference/python.md"], re.MULTILINE)
    assert sorted(named) == petm.__all__


def test_the_reference_has_every_verb_and_option() -> None:
    page = MADE["reference/command-line.md"]
    for name, command in group.commands.items():
        section = page.partition(f"\n## petm {name}\n")[2].partition("\n## petm ")[0]
        options = [opt for parameter in command.params for opt in parameter.opts if opt.startswith("--")]
        assert [opt for opt in options if not re.search(rf"`(-\w, )?{opt}[ `]", section)] == [], name


def test_the_reference_has_the_columns_of_grades_in_their_order() -> None:
    table = re.findall(r"^\| `(\w+)` \|", PAGES["reference/grades.md"], re.MULTILINE)
    assert table == SCHEMA.names


def test_troubleshooting_quotes_messages_that_the_code_has() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    lines = re.sub(r'"\s*\n\s*f?"', "", source).splitlines()  # a message may go on in the next line of the source
    quoted = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(quoted) >= 20
    for message in quoted:
        parts = message.split("…")
        pattern, longest = re.compile(".*?".join(map(re.escape, parts))), max(parts, key=len)
        assert any(pattern.search(line) for line in lines if longest in line), message


@pytest.mark.parametrize(("page", "line"), CALLS, ids=[f"{page}: {' '.join(line)[:60]}" for page, line in CALLS])
def test_commands_are_real(page: str, line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def as_path(self: click.Path, value: Any, *_: Any) -> Path:
        return Path(value)

    monkeypatch.setattr(click.Path, "convert", as_path)  # no file of the reader's is here
    group.commands[line[0]].make_context(line[0], line[1:])


def test_commands_were_found() -> None:
    pages = {page for page, _ in CALLS}
    assert {page for page in PAGES if page.startswith(("start/", "how-to/"))} - pages == {"start/dataset.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("how-to/")])
def test_how_tos_begin_with_the_command_and_end_with_the_next_step(page: str) -> None:
    assert re.match(r"# [^\n]+\n\n```(sh|console|python)\n", PAGES[page])
    assert PAGES[page].rstrip().rpartition("\n\n")[2].startswith("**Next**: ")


@pytest.fixture(scope="module")
def network(digits: tuple[Data, ...]) -> PaperCNN:
    """A network of petm's own, which a bundle may build by itself, right on three of four digits."""
    model = seeded(PaperCNN)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for rows in torch.arange(len(digits[0])).split(64):
        inputs, labels = digits[0].__getitems__(rows.tolist())
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that pages are run in, with a fit that takes a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(RECIPES, "auto", replace(RECIPES["auto"], epochs=1, max_extra_parameters=0.3))
    return tmp_path


@pytest.fixture
def folder(model: nn.Module, digits: tuple[Data, ...], here: Path) -> Path:
    """The reader's folder: a network of their own, its weights, and images."""
    train, calibration, test = digits
    (here / "mypkg").mkdir()
    (here / "mypkg" / "__init__.py").write_text("")
    (here / "mypkg" / "nets.py").write_text("from networks import TinyCNN as build\n")
    save_weights(model, here / "w.safetensors")
    write_images(train, range(0, len(train), 4), here / "images")
    write_images(calibration, range(len(calibration)), here / "fresh")
    for name in ("more_images", "monday"):
        write_images(test, range(80), here / name, flat=True)
    return here


@pytest.fixture
def bundle(network: PaperCNN, digits: tuple[Data, ...], folder: Path) -> Path:
    """The bundle my.petm in the reader's folder, as `petm fit` would have made it of images."""
    save_weights(network, folder / "w.safetensors")
    weights = str(folder / "w.safetensors")
    model = ModelOrigin("petm.models:PaperCNN", weights=weights, classes=digits[0].classes)
    origin = Origin(model, InputOrigin((28, 28), 1))
    fit_grader(views_alone(network, ()), digits[1], target=Recall(0.9), score="softmax", origin=origin).save("my.petm")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["petm", *arguments])
    main()


def run_python(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs the blocks of a page one after the other in one namespace, which begins with what the page speaks of."""
    for code in blocks(PAGES[page], "python"):
        exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.slow
def test_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, grade, inspect, prepared, dry_run = commands(PAGES["start/images.md"])
    for line in (fit, grade, inspect):
        run(monkeypatch, *line)
    assert len((folder / "grades.csv").read_text().splitlines()) == 81
    run(monkeypatch, *prepared, "--dry-run")
    run(monkeypatch, *dry_run, "--overwrite")
    assert len(run_python("start/images.md", {})["grades"]) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_risk_and_labels(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for page in ("how-to/risk.md", "how-to/labels.md", "reference/bundle.md"):
        for line in commands(PAGES[page]):
            run(monkeypatch, *line)
    assert petm.load("guaranteed.petm").target == petm.MaxRisk(0.05)
    capsys.readouterr()
    assert "149" in (run_python("how-to/labels.md", {}) and capsys.readouterr().out)


@pytest.mark.slow
def test_onnx(bundle: Path, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="needs petm[onnx]")
    for line in commands(PAGES["how-to/onnx.md"]):
        run(monkeypatch, *line)
    names = run_python("how-to/onnx.md", {"x": digits[2].inputs(range(20)).numpy()})
    assert names["trusted"].tolist() == names["grades"].trusted.tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_review(bundle: Path, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the page itself, where people decide: here the true labels are what they said."""
    grade, serve, monitor, learn = commands(PAGES["how-to/review.md"])
    run(monkeypatch, *grade)
    truth = [{"input": f"monday/{row:04d}.png", "label": int(digits[2].labels[row])} for row in range(80)]
    (bundle / serve[-1]).write_text("".join(json.dumps(label) + "\n" for label in truth))
    run(monkeypatch, *monitor)
    run(monkeypatch, *learn)
    assert petm.load("better.petm").origin.settings["parent"]


@pytest.mark.slow
def test_label_errors(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects, serve = commands(PAGES["how-to/label-errors.md"])
    run(monkeypatch, *suspects)
    header = Path(serve[serve.index("--queue") + 1]).read_text().partition("\n")[0].split(",")
    told = re.findall(r"^\| ([a-z_, ]+) \|", PAGES["how-to/label-errors.md"], re.MULTILINE)[1:]
    assert [name for name in ", ".join(told).split(", ") if name != "text"] == header


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("start/dataset.md", "again"),
        ("how-to/risk.md", "strict"),
        ("how-to/review.md", "better"),
        ("how-to/monitor.md", "counts"),
        ("how-to/label-errors.md", "worst"),
        ("concepts/method.md", "both"),
        ("concepts/mining.md", "replaced"),
        ("benchmark/baselines.md", "fitted"),
    ],
)
def test_python(page: str, made: str, here: Path, model: nn.Module, digits: tuple[Data, ...]) -> None:
    """With what such a page speaks of: a trained model, data, a grader and its grades."""
    train, calibration, test = digits
    grader = fit_grader(attach_adapter(model, {"fc1": 4}), calibration, target=Recall(0.9))
    inputs, truth = test.inputs(range(len(test))), test.labels.numpy()
    bytes_of = [((data.inputs(range(len(data))) * 255).to(torch.uint8), data.labels) for data in (train, calibration)]
    names: dict[str, Any] = {
        "model": model,
        "train": train,
        "train_data": train,
        "calibration": calibration,
        "calibration_data": calibration,
        "fresh": test,
        "test": test,
        "test_data": test,
        "held_out": test,
        "grader": grader,
        "grades": grader.grade(test),
        "inputs": inputs,
        "truth": truth,
        "labels_of_people": test.labels,
        "seen": bytes_of[0],
        "unseen": bytes_of[1],
        "arrays": (calibration.inputs(range(len(calibration))).numpy(), calibration.labels.numpy()),
    }
    assert made not in names
    assert run_python(page, names)[made] is not None


def test_every_block_of_python_is_run_by_a_test() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert [page for page, text in PAGES.items() if blocks(text, "py", "pycon")] == []
    assert [page for page, text in PAGES.items() if blocks(text, "python") and f'"{page}"' not in here] == []
