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
    path = root / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "owner/name"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        names = ",".join(hf_folders.KINDS)
        told = ("--data", "train.csv", "--recipe", "paper", "--force")
        code = run(patch, "fit", "--model", "hf:adapter", "--base", "base", "--classes", names, *told, "-o", "my.petm")
    assert code == 0
    return root, tuned


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
    assert capfd.readouterr().err.startswith("Error: base: expected")
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
