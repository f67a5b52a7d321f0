import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from networks import randomise
from petm._internal.files import plain, sha256_of_file
from petm._internal.texts import markdown
from petm.adapter.model import AdaptedModel, Cascade, Member, attach_adapter, views_alone
from petm.adapter.one_pass import dual_logits
from petm.data.base import Data
from petm.grading.grader import Grader, fit_grader
from petm.grading.manifest import read_manifest
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin, describe_data
from petm.selective.choice import Choice, Compared
from petm.selective.tables import percent
from petm.selective.targets import Coverage, MaxRisk, Recall
from petm.selective.thresholds import DISAGREEMENT, Threshold


@pytest.fixture
def adapted(model: nn.Module) -> AdaptedModel:
    return randomise(attach_adapter(model, {"fc1": 4, "fc2": 5}))


def card_of(grader: Grader, folder: Path, *, include_base: bool = False) -> tuple[dict[str, Any], str]:
    """The card that is saved with a grader: its header, and the rest."""
    grader.save(folder, include_base=include_base)
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cell."""
    lines = [line.strip()[1:-1].split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_card_says_what_was_measured(adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path) -> None:
    origin = Origin(
        ModelOrigin("networks:TinyCNN"), InputOrigin(), {"calibration": describe_data(digits[2])}, {"seed": 3}
    )
    grader = fit_grader(adapted, digits[2], target=Recall(0.9), origin=origin)
    header, text = card_of(grader, tmp_path / "g.petm")
    assert header == {"library_name": "peft", "tags": ["petm", "second-opinion", "selective-classification", "lora"]}
    manifest = read_manifest(tmp_path / "g.petm")
    assert manifest.files["README.md"] == sha256_of_file(tmp_path / "g.petm" / "README.md")
    found, held = rows(text), plain(manifest.measured)
    assert (
        f"On {len(digits[2])} calibration samples, on which the base model makes {held['calibration_errors']} errors"
        in text
    )
    for name, key in (
        ("Recall: of the model's errors, flagged", "recall"),
        ("Precision: of the flagged, the model's errors", "precision"),
    ):
        share = held[key]
        spread = f"95% interval {100 * share['low']:.1f}% to {100 * share['high']:.1f}%"
        assert found[name][0] == f"{100 * share['value']:.1f}% ({share['count']} of {share['of']}; {spread})"
    assert found["AUROC, higher is better"] == [f"{held['auroc']:.4f}", f"{held['auroc_of_softmax']:.4f}"]
    assert found["AURC, lower is better"] == [f"{held['aurc']:.4f}", f"{held['aurc_of_softmax']:.4f}"]
    parameters = sum(parameter.numel() for parameter in adapted.base.parameters())
    assert found["Base model"][0].startswith(f"networks:TinyCNN, {parameters:,} parameters, fingerprint")
    assert manifest.fingerprint[:12] in found["Base model"][0]
    assert found["Layers"] == ["fc1 rank 4, fc2 rank 5"]
    assert found["Data, calibration"] == [f"899 samples, SHA-256 {digits[2].content[:12]}"]
    assert found["Seed"] == ["3"]
    assert "Nothing is guaranteed: the threshold flags at least 90% of the errors seen here" in text


def test_the_card_states_the_guarantee(adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path) -> None:
    grader = fit_grader(adapted, digits[2], target=MaxRisk(0.2, confidence=0.9))
    assert grader.threshold.holds
    _, text = card_of(grader, tmp_path / "g.petm")
    assert "The guarantee: of later predictions at most 20% of the trusted are wrong, with 90% confidence" in text


def test_the_card_says_what_was_compared_and_what_it_brings(
    adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    compared = (
        Compared("softmax", 0.0, 0.62, 0.0, 0.0, better=False, taken=False),
        Compared("mean_opinion", 0.25, 0.7, 0.02, 0.1, better=True, taken=True),
    )
    choice = Choice("mean_opinion", "coverage at risk 0.02", compared, "It beats the softmax.")
    grader = fit_grader(adapted, digits[2], target=Recall(0.9), choice=choice)
    assert grader.outcome is not None
    _, text = card_of(grader, tmp_path / "g.petm")
    assert "It beats the softmax." in text
    assert rows(text)["mean opinion"] == ["+25.0%", "70.0%", "+2.0 to +10.0", "better", "taken"]
    assert all(markdown(sentence) in text for sentence in grader.outcome.sentences)
    last = grader.outcome.trade_off[-1]
    assert rows(text)["10%"][1] == f"{percent(last.chosen.seen)} ({percent(last.softmax.seen)})"


@pytest.mark.parametrize(
    ("members", "folders"),
    [((Member(),), ["."]), ((Member(), Member("second"), Member("third")), [".", "second", "third"])],
    ids=["one adapter", "three"],
)
def test_the_code_in_the_card_runs(
    model: nn.Module,
    digits: tuple[Data, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: tuple[Member, ...],
    folders: list[str],
) -> None:
    adapted = randomise(attach_adapter(model, {"fc1": 4}, members=members))
    grader, x = fit_grader(adapted, digits[1], target=Coverage(0.7)), digits[2].inputs(range(30))
    _, text = card_of(grader, tmp_path / "g.petm")
    monkeypatch.chdir(tmp_path / "g.petm")
    petm_code, peft_code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    named: dict[str, Any] = {"model": model, "x": x}
    exec(petm_code, named)
    np.testing.assert_array_equal(named["grades"].suspicion, grader.grade(x).suspicion)
    with torch.no_grad():
        exec(peft_code, named)
        opinions = [named["second"]] if len(folders) == 1 else [named[f"second_{place}"] for place in (1, 2, 3)]
        pooled = torch.stack([second(x).softmax(1) for second in opinions]).mean(0)
        for member, second in zip(members, opinions, strict=True):
            torch.testing.assert_close(second(x), adapted.alone(member.adapter)(x))
    torch.testing.assert_close(dual_logits(adapted, x).second.softmax(1), pooled)
    assert [folder in peft_code for folder in (f'"{name}"' for name in folders)] == [True] * len(folders)
    assert ("mean of their probabilities" in text) == (len(folders) > 1)


def test_the_base_model_alone_on_a_view(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    adapted = attach_adapter(model, {"fc2": 1}, members=(Member("", "mirror"),))
    adapted.cascade = Cascade(0.25)
    header, text = card_of(fit_grader(adapted, digits[1], target=Coverage(0.7)), tmp_path / "g.petm")
    assert header["library_name"] == "petm"
    assert "lora" not in header["tags"]
    assert text.count("```python") == 1
    assert "the base model gets the view mirror." in text
    assert "Grading takes 1." in text
    assert "computed only where 1 minus the base model's greatest probability is 0.25 or more" in text


def test_the_base_model_alone_has_no_second_opinion(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    grader = fit_grader(views_alone(model, ()), digits[1], target=Coverage(0.7), score="softmax")
    header, text = card_of(grader, tmp_path / "g.petm")
    assert header["tags"] == ["petm", "selective-classification"]
    assert "second" not in text.lower()


def test_where_the_base_weights_are(adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path) -> None:
    grader = fit_grader(adapted, digits[1], target=Coverage(0.7))
    assert "are not in here" in card_of(grader, tmp_path / "a.petm")[1]
    assert "lie here in `base.safetensors`" in card_of(grader, tmp_path / "b.petm", include_base=True)[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/model.v2", "owner/model.v2"),
        ("bert-base", "bert-base"),
        ("/home/me/bert", None),
        ("a: b", None),
        (".", None),
    ],
)
def test_the_base_model_is_named_where_it_may_be_one_of_the_hub(
    adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path, name: str, said: str | None
) -> None:
    adapted.base.name_or_path = name
    header, text = card_of(fit_grader(adapted, digits[1], target=Coverage(0.7)), tmp_path / "g.petm")
    assert header.get("base_model") == said
    assert "/home" not in text


def test_names_are_no_markup_and_no_places(adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path) -> None:
    origin = Origin(
        ModelOrigin("/home/me/nets.py:build|it", {}, "/home/me/w.safetensors", ("<b>", "a|b", "new  line")),
        InputOrigin(),
        {"train": {"source": "/home/me/images", "samples": 3, "content": "0" * 64}},
    )
    _, text = card_of(fit_grader(adapted, digits[1], target=Coverage(0.7), origin=origin), tmp_path / "g.petm")
    assert rows(text)["Classes"] == [r"\<b\>, a\|b, new line"]
    assert r"# A second opinion for nets.py:build\|it" in text
    assert "/home" not in text


def test_figures_that_are_not_there(adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path) -> None:
    x = digits[1].inputs(range(30))
    with torch.no_grad():
        labels = adapted(x, alpha=0).argmax(1)
    _, text = card_of(fit_grader(adapted, (x, labels)), tmp_path / "a.petm")  # type: ignore[arg-type]
    assert rows(text)["AUROC, higher is better"] == ["not defined", "not defined"]
    assert rows(text)["Recall: of the model's errors, flagged"][0] == "not defined"
    assert "The base model made no error on the calibration samples" in text
    _, text = card_of(Grader(adapted, DISAGREEMENT, measured={"auroc": 0.75, "flagged": 3}), tmp_path / "c.petm")
    assert rows(text)["AUROC, higher is better"] == ["0.7500", ""]
    assert "calibration samples, on which" not in text
    _, text = card_of(Grader(adapted, Threshold(0.5, "by hand")), tmp_path / "b.petm")
    assert "Measured quality" not in text
    assert "Nothing is guaranteed. The threshold: by hand." in text
