"""The documentation site: its links lead somewhere, its commands are real ones, its Python runs."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx2
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hf_folders
import petm
import petm.selective
from image_files import write_images
from networks import seeded
from petm.adapter.model import attach_adapter, views_alone
from petm.cli import main
from petm.cli import petm as group
from petm.data.base import Data
from petm.data.texts import Tokenized, read_texts
from petm.grading.grade_table import SCHEMA
from petm.grading.grader import fit_grader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import ask
from petm.models.label_words import LabelWords
from petm.models.loading import save_weights
from petm.models.paper import PaperCNN
from petm.models.prompt import Prompt
from petm.selective.targets import Recall
from petm.training.recipes import RECIPES
from served import serve_while

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


def test_the_reference_has_every_public_name_of_the_statistics() -> None:
    named = re.findall(r"^::: petm\.selective\.(\w+)$", PAGES["reference/python.md"], re.MULTILINE)
    assert sorted([*named, "MaxRisk", "Coverage", "Recall"]) == petm.selective.__all__


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
    for line in (fit, grade, inspect, prepared, dry_run):
        run(monkeypatch, *line)
    assert len((folder / "grades.csv").read_text().splitlines()) == 81
    assert (folder / "mine.petm").exists()
    assert len(run_python("start/images.md", {})["grades"]) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_risk_and_labels(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for page in ("how-to/risk.md", "how-to/labels.md", "reference/bundle.md", "concepts/sets.md"):
        for line in commands(PAGES[page]):
            run(monkeypatch, *line)
    assert petm.load("guaranteed.petm").target == petm.MaxRisk(0.05)
    capsys.readouterr()
    assert "149" in (run_python("how-to/labels.md", {}) and capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_scores(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_python("how-to/scores.md", {})
    assert len(names["grades"].trusted) == 5
    answers, surest = names["probabilities"].argmax(1), names["probabilities"].max(1)
    lines = [
        f"{label},{answer},{score}\n" for label, answer, score in zip(names["labels"], answers, surest, strict=True)
    ]
    for place, some in {"scores.csv": lines[:1000], "new.csv": lines[1000:]}.items():
        (here / place).write_text("".join(["label,answer,logprob\n", *some]))
    rows = zip(names["labels"][:600], names["probabilities"], strict=False)
    (here / "probabilities.csv").write_text(
        "label,p_0,p_1,p_2\n" + "".join(f"{a},{b[0]},{b[1]},{b[2]}\n" for a, b in rows)
    )
    places = [f"{'north' if row % 3 else 'south'},{'old' if row % 2 else 'new'}" for row in range(2000)]
    grouped = [f"{line[:-1]},{place}\n" for line, place in zip(lines, places, strict=True)]
    for place, some in {"sites.csv": grouped[:1500], "new_sites.csv": grouped[1500:]}.items():
        (here / place).write_text("".join(["label,answer,logprob,site,device\n", *some]))
    graded = [line.split(",") for line in grouped]
    (here / "labelled_grades.csv").write_text(
        "true_label,label_name,suspicion,site\n" + "".join(f"{a},{b},{1 - float(c)},{d}\n" for a, b, c, d, _ in graded)
    )
    for line in commands(PAGES["how-to/scores.md"]):
        run(monkeypatch, *line)
    assert len((here / "grades.csv").read_text().splitlines()) == 1001


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
    assert serve_while(monkeypatch, serve[1:], lambda client: client.get("/queue").json()["total"]) > 0
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


def tables(rows: Sequence[Sequence[str]], *columns: str) -> pa.Table:
    return pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True)))


def texts(folder: Path) -> None:
    """A classifier of texts, LoRA classifiers beside it, and texts in each format."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    tokenizer, rows = hf_folders.word_tokenizer(), hf_folders.QUESTIONS
    model = hf_folders.bert(max_position_embeddings=130)
    kinds = torch.tensor([hf_folders.KINDS.index(kind) for _, kind in rows])
    hf_folders.train(model, tokenizer([text for text, _ in rows[::2]], return_tensors="pt", padding=True), kinds[::2])
    for name in ("DIR", "BASE"):
        hf_folders.save(folder / name, model, tokenizer)
    for name, base in (("ADAPTER", "BASE"), ("folder", "DIR")):
        plain = AutoModelForSequenceClassification.from_pretrained(base)
        with warnings.catch_warnings(action="ignore"):  # of PEFT about transformers
            tuned = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
        for key, parameter in tuned.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter, std=0.05)
        hf_folders.save(folder / name, tuned)
    for name in ("train.csv", "fresh.csv"):
        pc.write_csv(tables(rows, "text", "label"), name)
    pairs = [(text, "Where is Rome ?", kind) for text, kind in rows]
    pq.write_table(tables(pairs, "premise", "hypothesis", "gold"), "pairs.parquet")
    Path("more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows[:20]))


def reviews(folder: Path) -> None:
    """A language model that answers the page's own question, and reviews."""
    words, things = ("negative", "positive"), ("film", "plot", "cast", "score", "scene", "end", "story", "title")
    told = [(word, words[good]) for good, some in enumerate((("dull", "bad"), ("great", "fine"))) for word in some]
    rows = [(f"a {word} {one} and {two}", label) for word, label in told for one in things for two in things]
    (question,) = blocks(PAGES["how-to/language-models.md"], "text")
    Path("prompt.txt").write_text(question)
    hf_folders.save(folder / "DIR", hf_folders.llama(), hf_folders.byte_tokenizer([*words, *(row[0] for row in rows)]))
    prompt, tokens = ask(folder / "DIR", Prompt.read(Path("prompt.txt")), words)
    encoder, model = load_processor(folder / "DIR", prompt=prompt), hf_folders.llama()
    pc.write_csv(tables(rows, "text", "label"), "reviews.csv")
    data = Tokenized(read_texts(Path("reviews.csv"), classes=words), encoder)
    hf_folders.train(LabelWords(model, tokens), data.inputs(range(0, len(data), 3)), data.labels[::3])
    hf_folders.save(folder / "DIR", model)
    Path("more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows[:20]))


def archive(folder: Path) -> None:
    """The images as Parquet, as Hugging Face lays them out."""
    (folder / "archive").mkdir()
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((folder / "monday").iterdir())]
    pq.write_table(pa.table({"image": images}), folder / "archive" / "0.parquet")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
@pytest.mark.parametrize(
    ("page", "reader", "prepare"),
    [
        ("index.md", "folder", None),
        ("start/texts.md", "here", texts),
        ("how-to/language-models.md", "here", reviews),
        ("how-to/archive.md", "bundle", archive),
    ],
)
def test_commands(
    page: str,
    reader: str,
    prepare: Callable[[Path], None] | None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a page shows, in its order, as the reader's folder has what it speaks of."""
    folder = request.getfixturevalue(reader)
    if prepare:
        prepare(folder)
    for line in commands(PAGES[page]):
        run(monkeypatch, *line)
        assert (folder / line[line.index("-o") + 1]).exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_monitor(
    bundle: Path, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands, the example with its four days, and the script in a shell, whose calls run here (`from_cron`)."""
    shutil.copytree("my.petm", "risk.petm")
    grade, monitor, _, example = commands(PAGES["how-to/monitor.md"])
    run(monkeypatch, *grade)
    run(monkeypatch, "grade", "my.petm", "more_images", "-o", "tuesday.parquet")
    days = [f"2026-11-{day:02d}.parquet" for day in range(8, 12)]
    assert example[2:5] == [days[0], "...", days[-1]]
    for day in days:
        shutil.copy("tuesday.parquet", day)
    labels = digits[2].labels[:80].tolist()
    told = [
        (f"{day}/{row:04d}.png", str(label)) for day in ("monday", "more_images") for row, label in enumerate(labels)
    ]
    pc.write_csv(tables(told, "input", "label"), "checked.csv")
    for line in (monitor, [*example[:2], *days, *example[5:]]):
        run(monkeypatch, *line)
        assert {path.suffix for path in Path("watch").iterdir()} == {".png", ".svg", ".md", ".json"}

    shutil.rmtree("watch")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *from_cron(bundle, 2))
    assert "GRADES" in capsys.readouterr().err, "there are none yet"
    assert Path("mailed.txt").read_text() == "said\n"
    Path("mailed.txt").unlink()
    Path("grades").mkdir()
    for day in days[:2]:
        shutil.copy("monday.parquet", f"grades/{day}")
    asked = from_cron(bundle, 0)
    assert asked[2:4] == [f"grades/{day}" for day in days[:2]]
    run(monkeypatch, *asked)
    assert Path("watch", "monitor.json").exists()
    assert not Path("mailed.txt").exists()


def from_cron(folder: Path, status: int) -> list[str]:
    """What the page's script calls petm with, which says a word and ends with this status; its mailer writes a file."""
    (script,) = (code for code in blocks(PAGES["how-to/monitor.md"], "sh") if "/srv/petm" in code)
    stands_in = f"printf '%s\\n' \"$@\" >asked.txt; echo said >&2; exit {status}"
    for name, does in (("petm", stands_in), ("mail", "cat >mailed.txt")):
        Path("bin").mkdir(exist_ok=True)
        Path("bin", name).write_text(f"#!/bin/sh\n{does}\n")
        Path("bin", name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", "-c", script.replace("/srv/petm", shlex.quote(str(folder)))]
    subprocess.run(command, env=environment, check=True, timeout=120)
    return Path("asked.txt").read_text().splitlines()


@pytest.mark.slow
def test_service(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the page, by systemd's command with its key, and by that of the image of Docker; what curl sends, too."""
    plain, systemd = commands(PAGES["how-to/service.md"])
    (image,) = commands(f"```dockerfile\n{(ROOT / 'Dockerfile').read_text()}```")
    (curl,) = re.findall(r"^\$ curl (.*)$", PAGES["how-to/service.md"], re.MULTILINE)
    Path("key.txt").write_text(f"{'0123456789abcdef' * 4}\n")
    key = Path("key.txt").read_text().strip()
    for name in ("a.png", "b.png"):
        shutil.copy(next((bundle / "monday").iterdir()), name)

    def send(client: httpx2.Client) -> Any:
        *_, address = words = shlex.split(curl)
        files = [part.partition("=@") for part in words if "=@" in part]
        assert words[:-1] == [word for name, _, path in files for word in ("-F", f"{name}=@{path}")]
        assert address.startswith("http://127.0.0.1:8000/")
        sent = [(name, (path, Path(path).read_bytes())) for name, _, path in files]
        return client.post(address.removeprefix("http://127.0.0.1:8000"), files=sent)

    answer = serve_while(monkeypatch, plain[1:], send).json()
    assert [grade["input"] for grade in answer["grades"]] == ["a.png", "b.png"]

    def with_key(client: httpx2.Client) -> tuple[int, int]:
        return send(client).status_code, client.get("/about", headers={"X-API-Key": key}).status_code

    assert serve_while(monkeypatch, systemd[1:], with_key) == (401, 200)
    monkeypatch.setenv("PETM_API_KEY", key)
    assert serve_while(monkeypatch, image[1:], with_key) == (401, 200)


NOT_RUN = {
    r"pip install ": "changes the environment; its extras are looked up in the next test",
    r"make \w+": "a target of the Makefile, looked up in tests/test_readme.py",
    r"chown ": "needs root and a folder of the host",
    r"docker ": "needs Docker; test_service runs the command of the image",
    r"torchrun .*-m petm fit": "needs several devices; tests/_internal/test_distributed.py runs several processes",
    r"petm grade my\.petm s3://": "needs a store and a cluster; tests/grading/test_ray_engine.py has small ones",
    r"petm reproduce --dataset mnist": "needs MNIST and minutes; tests/test_readme.py runs it on digits",
    r"python -m experiments": "needs data sets and hours; experiments/tests/test_documented_commands.py parses it",
}
"""Commands that no test can run as they stand, and why; those of petm are parsed by `test_commands_are_real`."""

READMES = ("../README.md", "../README.ko.md")
RUN = r"petm [a-z]|curl |cd /srv/petm"


def lines(text: str) -> list[str]:
    """The commands in a page's blocks, without what they print."""
    found: list[str] = []
    for language in ("", "sh", "console"):
        for code in blocks(text, language):
            each = [line for line in code.replace("\\\n", " ").splitlines() if line and not line.startswith("# ")]
            found += [line.removeprefix("$ ") for line in each if language == "sh" or line.startswith("$ ")]
    return found


@pytest.mark.parametrize("page", [*PAGES, *READMES])
def test_every_command_is_run_or_listed_with_the_reason(page: str) -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    found = lines(PAGES.get(page) or (DOCS / page).read_text(encoding="utf-8"))
    left = [line for line in found if not any(re.match(pattern, line) for pattern in NOT_RUN)]
    assert [line for line in left if not re.match(RUN, line)] == []
    # test_readme.py runs the README and the examples of help.
    assert not left or f'"{page}"' in here.partition("NOT_RUN =")[0] or page in ("reference/command-line.md", *READMES)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for line in found for some in re.findall(r"\.\[([\w,]+)\]", line) for name in some.split(",")}
    assert named <= extras.keys()


def test_the_list_of_what_is_not_run_names_what_there_is() -> None:
    found = [line for text in (*PAGES.values(), (ROOT / "README.md").read_text()) for line in lines(text)]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in found)] == []
