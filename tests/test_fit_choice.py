"""A fit compares evidence on held-out labels, and keeps the softmax unless something beats it."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import petm
from networks import TinyCNN, seeded, snapshot
from petm.adapter.model import views_alone
from petm.adapter.one_pass import MOST_FEATURES, Answers, find_feature_layer, predict_answers
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, BundleError, DataError, ModelError, PetmWarning
from petm.evidence.protocol import FittedEvidence
from petm.evidence.suspicion import evidence_named
from petm.fitting import CHOICE_SHARE, FEWEST_TO_CHOOSE, fit
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.models.scores import maximum_softmax
from petm.recalibration import recalibrate
from petm.selective.metrics import aurc
from petm.selective.targets import Coverage, MaxRisk

FEW: dict[str, Any] = {"layers": {"fc2": 2}, "device": "cpu"}


@pytest.fixture(scope="module")
def poor(digits: tuple[Data, ...]) -> nn.Module:
    """A network whose last layer was disturbed, so that its features know more than its softmax."""
    model = seeded(TinyCNN)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(8):
        order = torch.randperm(len(digits[0]), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(64):
            inputs, labels = digits[0].__getitems__(rows.tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    with torch.no_grad():
        noise = torch.randn(model.fc2.weight.shape, generator=torch.Generator().manual_seed(1))
        model.fc2.weight += 0.45 * model.fc2.weight.std() * noise
    return model.eval()


def test_evidence_that_beats_the_softmax_is_taken(poor: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    before = snapshot(poor)
    grader = fit(poor, digits[0], calibration=digits[2], **FEW)
    assert snapshot(poor) == before
    choice = grader.choice
    assert choice is not None
    assert choice.compared[0].name == "softmax"
    (taken,) = (row for row in choice.compared if row.taken)
    assert taken.name == choice.name != "softmax"
    assert taken.better
    assert taken.value < choice.compared[0].value
    suspicion, wrong = grader.grade(digits[2]).suspicion, predict_answers(grader.adapted, digits[2]).predicted
    assert aurc(suspicion, (wrong != digits[2].labels).numpy()) < choice.compared[0].value
    grader.save(tmp_path / "a.petm")
    again = petm.load(tmp_path / "a.petm", poor)
    assert again.choice == choice
    assert again.adapted.members == grader.adapted.members
    np.testing.assert_array_equal(again.grade(digits[1]).suspicion, grader.grade(digits[1]).suspicion)


def test_the_softmax_is_kept_where_nothing_beats_it(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    grader = fit(model, digits[0], calibration=digits[1], recipe="softmax, margin", target=Coverage(0.8), device="cpu")
    assert grader.choice is not None
    assert [row.name for row in grader.choice.compared] == ["softmax", "margin"]
    assert (grader.score, grader.adapted.members, grader.adapted.ranks) == ("softmax", (), {})
    logits = model(digits[2].inputs(range(50)))
    grades = grader.grade(digits[2].subset(range(50)))
    np.testing.assert_allclose(grades.suspicion, maximum_softmax(logits.detach()).numpy(), atol=1e-6)
    np.testing.assert_array_equal(grades.second, np.full(50, -1), "there is none")
    grader.save(tmp_path / "s.petm")
    assert "it grades each prediction" in (tmp_path / "s.petm" / "README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "s.petm").iterdir()) == ["README.md", "petm.json"]
    again = petm.load(tmp_path / "s.petm", model)
    np.testing.assert_array_equal(again.grade(digits[2].subset(range(50))).suspicion, grades.suspicion)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis", "knn", "knn_distance", "softmax"])
def test_a_graph_has_the_evidence(name: str, model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    grader = fit(model, digits[0], calibration=digits[1], recipe="softmax", target=Coverage(0.8), device="cpu")
    adapted = grader.adapted
    adapted.take_features("fc2")
    answers = predict_answers(adapted, digits[0])
    suspicion = petm.evidence.suspicion.Suspicion((evidence_named(name).fit(answers, digits[0].labels),))
    made = petm.fit_grader(adapted, digits[1], target=Coverage(0.8), score=suspicion)
    x = digits[2].inputs(range(40))
    export_onnx(made, tmp_path / "g.onnx", x)
    graph = OnnxGrader(tmp_path / "g.onnx")
    assert (graph.has_second, graph.outcome) == (False, made.outcome)
    found, expected = graph.grade(x), made.grade(x)
    np.testing.assert_allclose(found.suspicion, expected.suspicion, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.trusted, expected.trusted)


def test_a_guarantee_is_computed_on_samples_that_nothing_was_chosen_on(
    poor: nn.Module, digits: tuple[Data, ...]
) -> None:
    grader = fit(poor, digits[0], calibration=digits[2], target=MaxRisk(0.2), **FEW)
    assert grader.choice is not None
    assert grader.choice.metric == "coverage at risk 0.2"
    used = grader.measured["calibration_samples"]
    assert used == len(digits[2]) - int(CHOICE_SHARE * len(digits[2]))


def test_a_guarantee_on_the_labels_of_the_fit_leaves_out_those_of_the_choice(
    poor: nn.Module, digits: tuple[Data, ...]
) -> None:
    how: Any = {"calibration": digits[2], "recipe": "margin, entropy", "device": "cpu"}
    grader = fit(poor, digits[0], target=MaxRisk(0.3), **how)
    assert grader.choice is not None
    stricter = recalibrate(grader, digits[2], target=MaxRisk(0.25))
    assert stricter.measured["calibration_samples"] == grader.measured["calibration_samples"] < len(digits[2])
    assert stricter.origin.data["calibration"].content == grader.origin.data["calibration"].content
    assert recalibrate(grader, digits[2], target=Coverage(0.5)).measured["calibration_samples"] == len(digits[2])
    assert recalibrate(grader, digits[1]).measured["calibration_samples"] == len(digits[1])
    everything = fit(poor, digits[0], target=Coverage(0.5), **how)
    with pytest.raises(DataError, match=r"^calibration: "):
        recalibrate(everything, digits[2], target=MaxRisk(0.2))


def test_a_layer_with_very_many_inputs_has_no_features() -> None:
    for width, name in ((MOST_FEATURES, "1"), (MOST_FEATURES + 1, "")):
        wide = views_alone(nn.Sequential(nn.Flatten(), nn.Linear(width, 2)), ())
        assert find_feature_layer(wide, torch.rand(3, 1, width)) == name


def test_named_evidence_that_cannot_be_compared_is_said(model: nn.Module, digits: tuple[Data, ...]) -> None:
    without = digits[0].subset((digits[0].labels != 3).nonzero().flatten())
    with pytest.warns(PetmWarning, match=r"^recipe: .* mahalanobis, which"):
        grader = fit(model, without, calibration=digits[1], recipe="margin, mahalanobis", device="cpu")
    assert grader.choice is not None
    assert {row.name for row in grader.choice.compared} == {"softmax", "margin"}


class Plain(nn.Module):
    """A linear classifier of two numbers; its weights are in no layer, or in one that is too small for an adapter."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False) if layer else None
        self.weight = nn.Parameter(torch.eye(2)) if self.fc is None else self.fc.weight
        with torch.no_grad():
            self.weight.copy_(torch.eye(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T if self.fc is None else self.fc(x)


@pytest.mark.parametrize("layer", [False, True])
def test_a_model_without_room_for_an_adapter_is_compared_without_one(layer: bool) -> None:
    labels = torch.arange(1200) % 2
    x = torch.eye(2)[labels] + 0.7 * torch.randn(1200, 2, generator=torch.Generator().manual_seed(0))
    data, fresh = TensorData(x[:600], labels[:600]), TensorData(x[600:], labels[600:])
    grader = fit(Plain(layer), data, calibration=fresh, target=Coverage(0.8), device="cpu")
    assert grader.choice is not None
    assert {"softmax", "margin", "entropy"} <= {row.name for row in grader.choice.compared}
    assert not grader.adapted.adapters
    with pytest.raises((ArgumentError, ModelError)):
        fit(Plain(layer), data, calibration=fresh, max_extra_parameters=0.01, device="cpu")


def test_few_samples_are_all_for_the_guarantee(poor: nn.Module, digits: tuple[Data, ...]) -> None:
    few = digits[2].subset(range(FEWEST_TO_CHOOSE - 1))
    grader = fit(poor, digits[0], calibration=few, target=MaxRisk(0.3), device="cpu")
    assert grader.choice is not None
    assert (grader.score, grader.choice.compared, grader.adapted.members) == ("softmax", (), ())
    assert grader.measured["calibration_samples"] == len(few)


def test_labels_are_not_spent_on_a_choice_of_one(poor: nn.Module, digits: tuple[Data, ...]) -> None:
    how: Any = {"calibration": digits[2], "recipe": "softmax", "device": "cpu"}
    guaranteed, plain = fit(poor, digits[0], target=MaxRisk(0.3), **how), fit(poor, digits[0], **how)
    assert guaranteed.measured["calibration_samples"] == len(digits[2])
    assert plain.choice is not None
    assert plain.outcome is not None
    assert (plain.score, plain.choice.compared, plain.outcome.chosen_here) == ("softmax", (), False)
    again = recalibrate(plain, digits[2], target=MaxRisk(0.3))  # suspicion was chosen on none of them
    assert again.threshold.values == guaranteed.threshold.values


class Weighted:
    """A formula that knows what the softmax of a disturbed layer does not: distances to mean logits of each class."""

    name, title, source, needs, fitted_on = "weighted", "Distance to mean logits", "me", "features", "training"

    def fit(self, answers: Answers, labels: torch.Tensor, *, seed: int = 0) -> FittedEvidence:
        means = [answers.features[labels == label].mean(0) for label in range(answers.base.shape[1])]
        return FittedEvidence(self, {"means": torch.stack(means)})

    def compute(self, answers: Answers, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        # Features are no zeros, and classes are as many as in the fit.
        assert answers.features.abs().sum() > 0
        return (answers.features - state["means"][answers.predicted]).norm(dim=1).double()

    def operations(self, classes: int, features: int) -> int:
        return features


def test_evidence_of_the_users_own_from_fit_to_grade(poor: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    how: Any = {"calibration": digits[2], "recipe": "softmax", "target": Coverage(0.8), "device": "cpu"}
    grader = fit(poor, digits[0], evidence=[Weighted()], **how)
    assert grader.choice is not None
    assert [row.name for row in grader.choice.compared] == ["softmax", "weighted"]
    assert grader.choice.compared[1].cost > 0
    assert grader.score == "weighted"
    grader.save(tmp_path / "own.petm")
    with pytest.raises(BundleError, match=r"evidence: .*'weighted'.*petm\.load"):
        petm.load(tmp_path / "own.petm", poor)
    again = petm.load(tmp_path / "own.petm", poor, evidence=[Weighted()])
    np.testing.assert_array_equal(again.grade(digits[1]).suspicion, grader.grade(digits[1]).suspicion)


@pytest.mark.parametrize(("names", "recipe"), [(["softmax"], "auto"), (["a", "a"], "auto"), (["a"], "paper")])
def test_own_evidence_that_cannot_be_compared(
    names: list[str], recipe: str, model: nn.Module, digits: tuple[Data, ...]
) -> None:
    own: Any = [SimpleNamespace(name=name) for name in names]
    with pytest.raises(ArgumentError, match=r"^evidence: "):
        fit(model, digits[0], calibration=digits[1], recipe=recipe, evidence=own)


@pytest.mark.parametrize("recipe", ["luck", "softmax, luck", "auto, softmax", "softmax,"])
def test_names_that_are_no_evidence(recipe: str, model: nn.Module) -> None:
    with pytest.raises(ArgumentError, match=r"^recipe:"):
        fit(model, TensorData(torch.rand(4, 1, 28, 28), torch.arange(4)), recipe=recipe)
