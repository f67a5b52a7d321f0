"""``petm fit``, ``grade``, ``inspect`` and the service's reader on a LoRA classifier that PEFT has saved."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_folders
import petm
from petm.adapter.one_pass import answers_of
from petm.cli import main
from petm.cli.graders import inputs_at, prepares, reader_of
from petm.cli.options import GraderPlace
from petm.data.texts import Tokenized, read_texts
from petm.errors import BundleError
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with ``base``, ``adapter`` with a head of its own, texts, a bundle; and PEFT's own model."""
    root = tmp_path_factory.mktemp("fitted")
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *hf_folders.QUESTIONS[::3]])
    tuned = hf_folders.trained_adapter(root / "adapter", hf_folders.bert(("a", "b")), target_modules=["query", "value"])
    hf_folders.save(root / "base", hf_folders.word_tokenizer())
    named(root / "base", "/moved/name")
    path = root / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "owner/name"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        names = ",".join(hf_folders.KINDS)
        told = ("--data", "train.csv", "--recipe", "paper", "--force")
        code = run(patch, "fit", "--model", "hf:adapter", "--base", "base", "--classes", names, *told, "-o", "my.petm")
    assert code == 0
    return root, tuned


def named(folder: Path, name: str) -> None:
    """Notes in a model's configuration what it was called, as transformers once did."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": name}))


def run(patch: pytest.MonkeyPatch, *arguments: str) -> Any:
    patch.setattr(sys, "argv", ["petm", *arguments])
    prepares.cache_clear()
    try:
        main()
    except SystemExit as exit_:
        return exit_.code
    return 0


@pytest.fixture
def place(fitted: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(fitted[0], tmp_path / "place"))
    return tmp_path / "place"


def test_the_bundle_remembers_both_folders_and_answers_as_peft_does(fitted: tuple[Path, Any], place: Path) -> None:
    grader = petm.load("my.petm")
    model, inputs = grader.origin.model, grader.origin.inputs
    assert (model.reference, model.arguments) == ("hf:adapter", {"base": "base"})
    assert (inputs.processor, inputs.base) == ("adapter", "base")
    assert grader.adapted.members
    encoder = load_processor(place / "base")
    assert isinstance(encoder, Tokenizer)
    x = Tokenized(read_texts("train.csv", classes=hf_folders.KINDS), encoder).inputs(range(8))
    with torch.no_grad():
        expected = fitted[1].eval()(**x).logits
    assert torch.equal(grader.adapted(x, alpha=0.0), expected)
    torch.testing.assert_close(answers_of(grader.adapted, x).base, expected)


def test_it_grades_and_its_folders_may_move(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "more.csv").write_text("text\nWho met Galileo ?\nWhere is it ?\n")
    assert run(monkeypatch, "grade", "my.petm", "more.csv") == 0
    out = capfd.readouterr().out
    assert {row["label_name"] for row in csv.DictReader(out.splitlines())} <= set(hf_folders.KINDS)
    (place / "base").rename(place / "moved")
    assert run(monkeypatch, "grade", "my.petm", "more.csv") == 1
    assert capfd.readouterr().err.startswith("Error: --base: expected")
    assert run(monkeypatch, "grade", "my.petm", "more.csv", "--base", "moved") == 0
    assert capfd.readouterr().out == out
    (place / "adapter").rename(place / "other")
    assert run(monkeypatch, "grade", "my.petm", "more.csv", "--model", "hf:other", "--base", "moved") == 0
    assert capfd.readouterr().out == out
    served = GraderPlace(place / "my.petm", "hf:other", base=Path("moved"))
    inputs = petm.load("my.petm", "hf:other", base="moved").origin.inputs
    assert reader_of(inputs_at(inputs, served), False).encoder is not None
    assert run(monkeypatch, "inspect", "my.petm") == 0
    assert "hf:adapter on base" in capfd.readouterr().out


@pytest.mark.filterwarnings("default::petm.errors.PetmWarning")
def test_a_base_of_another_name_is_told_at_the_fit_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    named(place / "base", "owner/other")
    told = ("--data", "train.csv", "--recipe", "softmax", "--coverage", "0.9", "--force")
    assert run(monkeypatch, "fit", "--model", "hf:adapter", "--base", "base", *told, "-o", "new.petm") == 0
    message = "adapter: was trained on 'owner/name', but the model is 'base'."
    assert capfd.readouterr().err.startswith(f"Warning: {message}")
    assert run(monkeypatch, "grade", "new.petm", "train.csv") == 0
    assert message not in capfd.readouterr().err


def test_it_learns_from_labels_that_name_their_texts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text, _ in hf_folders.QUESTIONS]
    with open("more.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in texts)])
    assert run(monkeypatch, "grade", "my.petm", "more.csv", "-o", "grades.csv") == 0
    with open("grades.csv", newline="") as file:
        answers = [int(row["label"]) for row in csv.DictReader(file)]
    with open("labels.csv", "w", newline="") as file:
        pairs = zip(texts, answers, strict=True)
        told = [(text, hf_folders.KINDS[(answer + ("old" in text)) % 3]) for text, answer in pairs]
        csv.writer(file).writerows([("text", "label"), *told])
    figures = []
    for more in ((), ("--grades", "grades.csv")):
        output = f"better{len(more)}.petm"
        assert run(monkeypatch, "learn", "my.petm", "--labels", "labels.csv", *more, "-o", output) == 0
        assert run(monkeypatch, "grade", output, "more.csv") == 0
        origin = petm.load(output).origin
        assert (origin.model.arguments, origin.data["labels"].samples) == ({"base": "base"}, len(texts))
        figures.append(origin.data["labels"].content)
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    "file", ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "base/model.safetensors"]
)
def test_an_adapter_or_base_that_has_changed_is_refused(place: Path, file: str) -> None:
    if file.endswith("json"):
        (place / file).write_text((place / file).read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    else:
        from safetensors.torch import load_file, save_file

        held = load_file(place / file)
        name = next(name for name in held if "value" in name and name.endswith("weight"))
        save_file({**held, name: held[name] + 1}, place / file, {"format": "pt"})
    with pytest.raises(BundleError, match="another model"):
        petm.load("my.petm")
