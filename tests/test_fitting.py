import doctest
import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from networks import snapshot
from petm.adapter.model import Member
from petm.data.base import Data, TensorData
from petm.data.fields import Fields
from petm.errors import ArgumentError, DataError, NothingToLearnError, PetmWarning, RunError
from petm.fitting import estimate, fit
from petm.grading.grader import RECALL
from petm.selective.targets import Coverage, Disagreement, MaxRisk
from petm.training.config import ErrorSource, FitConfig, FitSettings, RecipeName
from petm.training.mining import SOURCES
from petm.training.recipes import RECIPES, Recipe
from short_recipe import SHORT

AT_MIRROR = Recipe("mirror", (Member("", "mirror"),), look=0.2, max_extra_parameters=3.0)


def test_by_default_nine_of_ten_errors_are_flagged(model: nn.Module, digits: tuple[Data, ...]) -> None:
    before = snapshot(model)
    grader = fit(model, digits[0], calibration=digits[2], recipe=SHORT)
    assert snapshot(model) == before
    assert grader.score == "mean_opinion"
    grades = grader.grade(digits[2])
    wrong = grades.labels != digits[2].labels.numpy()
    flagged = (~grades.trusted)[wrong].mean()
    assert RECALL <= flagged < RECALL + 1 / wrong.sum() + 1e-9
    settings = grader.origin.settings
    assert settings["recipe"] == "short"
    assert settings["training_errors"] == (grader.grade(digits[0]).labels != digits[0].labels.numpy()).sum()


@pytest.mark.parametrize("target", [None, MaxRisk(0.1)])
def test_a_trade_off_on_labels_that_suspicion_was_chosen_on_says_so(
    model: nn.Module, digits: tuple[Data, ...], target: MaxRisk | None
) -> None:
    grader = fit(model, digits[0].subset(range(200)), calibration=digits[2], target=target, layers={"fc2": 2})
    assert grader.choice is not None
    assert grader.outcome is not None
    assert grader.outcome.chosen_here == (target is None)
    if grader.choice.name == "softmax":
        assert grader.outcome.softmax_alone
        assert "No adapter is kept." in grader.choice.reason
    else:
        assert "No adapter" not in grader.choice.reason


def test_errors_that_nothing_is_learnt_from_are_counted_on_some_samples(
    model: nn.Module, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petm.fitting.CHECKED", 40)
    settings = fit(model, digits[0], calibration=digits[2], recipe=SHORT, seed=3).origin.settings
    chosen = torch.randperm(len(digits[0]), generator=torch.Generator().manual_seed(3))[:40]
    with torch.no_grad():
        wrong = model(digits[0].inputs(chosen)).argmax(1) != digits[0].labels[chosen]
    assert (settings["training_samples"], settings["training_errors"]) == (40, int(wrong.sum()))


def test_the_papers_recipe_grades_as_the_paper_does(model: nn.Module, digits: tuple[Data, ...]) -> None:
    recipe = replace(RECIPES["paper"], epochs=1, max_extra_parameters=0.2)
    grader = fit(model, digits[0], calibration=digits[1], recipe=recipe)
    grades = grader.grade(digits[2])
    np.testing.assert_array_equal(grades.trusted, grades.labels == grades.second)


@pytest.mark.parametrize(("recipe", "score"), [(SHORT, SHORT.score), ("margin, entropy", "softmax")])
def test_a_calibration_without_errors_keeps_the_suspicion_and_flags_a_tenth(
    recipe: Any, score: str, model: nn.Module, digits: tuple[Data, ...]
) -> None:
    x = digits[1].inputs(range(60))
    with torch.no_grad():
        labels = model(x).argmax(1)
    with pytest.warns(PetmWarning, match=r"^calibration: .*none in 60"):
        grader = fit(model, digits[0], calibration=TensorData(x, labels), recipe=recipe, device="cpu")
    assert (grader.score, grader.target) == (score, Coverage(0.9))
    assert (~grader.grade(x).trusted).sum() == 6


@pytest.mark.parametrize("recipe", ["auto", "margin"])
def test_disagreement_is_no_target_of_a_suspicion_that_is_chosen(recipe: str) -> None:
    with pytest.raises(ArgumentError, match=r"^target: "):
        FitConfig(recipe=recipe, target=Disagreement())
    assert FitConfig(recipe="paper", target=Disagreement()).target == Disagreement()


def test_the_cascade_is_set_on_samples_that_the_threshold_does_not_use() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        half = torch.randn(2, 16)
        model[1].weight.copy_(torch.cat((half, half.flip(1)), 1))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
        images = torch.rand(600, 1, 1, 32)
        labels = model(images).argmax(1)
    labels[:40] = 1 - labels[:40]
    labels[300:340] = 1 - labels[300:340]
    data, fresh = TensorData(images[:300], labels[:300]), TensorData(images[300:], labels[300:])
    grader = fit(model, data, calibration=fresh, recipe=replace(SHORT, mirrored=AT_MIRROR, max_extra_parameters=3.0))
    assert grader.adapted.members == AT_MIRROR.members
    assert grader.adapted.cascade is not None
    assert grader.measured["calibration_samples"] == 270
    assert grader.origin.settings["recipe"] == "mirror", "what was made, not what was asked for"


def test_faults(model: nn.Module, digits: tuple[Data, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^recipe:"):
        fit(model, digits[0], recipe="slow")
    with pytest.raises(ArgumentError, match=r"^calibration:"):
        fit(model, digits[0], calibration=1.5)
    x = digits[0].inputs(range(50))
    with torch.no_grad():
        labels = model(x).argmax(1)
    with pytest.raises(NothingToLearnError, match=r"^errors:"):
        fit(model, TensorData(x, labels), calibration=digits[1], recipe="paper")
    with pytest.raises(ArgumentError, match=r"^max_extra_parameters:"):
        fit(model, digits[0], recipe="auto", max_extra_parameters=1e-9)


def test_budgets_bound_what_is_adapted(model: nn.Module, digits: tuple[Data, ...]) -> None:
    wide = fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_parameters=0.5)
    small = fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_parameters=0.1)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert small.adapted.adapter_parameters() <= 0.1 * parameters < wide.adapted.adapter_parameters()
    late = fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_parameters=0.5, max_extra_time=0.1)
    late.grade(digits[2].inputs(range(4)))
    wide.grade(digits[2].inputs(range(4)))
    assert late.adapted.split_point is not None
    assert late.adapted.split_point.counted_ratio <= 1.1 + 1e-9
    assert set(late.adapted.ranks) < set(wide.adapted.ranks)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"recipe": "slow"}, "recipe"),
        ({"errors": "none"}, "errors"),
        ({"layers": {}}, "layers"),
        ({"layers": {"fc1": 0}}, "layers"),
        ({"layers": {"fc1": True}}, "layers"),
        ({"max_extra_parameters": 0.0}, "max_extra_parameters"),
        ({"max_extra_time": -1.0}, "max_extra_time"),
        ({"max_extra_time": float("nan")}, "max_extra_time"),
        ({"target": 0.1}, "target"),
        ({"calibration": 1.0}, "calibration"),
        ({"seed": 0.5}, "seed"),
        ({"precision": "float16"}, "precision"),
        ({"cache_budget": -1}, "cache_budget"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}:"):
        FitConfig(**settings)


def test_settings_of_the_right_kind() -> None:
    assert FitConfig().told() == {"recipe": "auto", "seed": 0}
    config = FitConfig(recipe=SHORT, layers={"fc1": 2}, target=MaxRisk(0.1), device="cpu", seed=3)
    assert config.told() == {"recipe": "short", "seed": 3, "layers": {"fc1": 2}}
    identity = config.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity == replace(config, target=None, device="auto").identity()
    for other in ({"layers": {"fc1": 3}}, {"recipe": "paper"}, {"seed": 4}, {"precision": "bfloat16"}):
        assert replace(config, **other).identity() != identity
    assert set(FitSettings.__annotations__) == {field.name for field in fields(FitConfig)} - {"calibration"}
    assert set(get_args(RecipeName)) == set(RECIPES)
    assert set(get_args(ErrorSource)) == set(SOURCES)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"layers": {"fc9": 2}}, ArgumentError, "layers: .*fc9"),
        ({"layers": {"fc1": 99}}, ArgumentError, "layers: .*fc1"),
        ({"calibration": lambda x, y: TensorData(x, y + 5)}, DataError, "labels"),
        ({"calibration": lambda x, _: TensorData(x)}, DataError, "labels"),
        ({"calibration": lambda x, y: TensorData(x[..., :20], y)}, DataError, "inputs"),
        ({"calibration": lambda x, y: TensorData(x, y, classes="jihgfedcba")}, DataError, "classes"),
        ({"calibration": lambda x, y: TensorData(x[:0], y[:0])}, DataError, "at least one sample"),
        ({"calibration": lambda x, y: TensorData(Fields({"x": x}), y)}, DataError, "inputs"),
        ({"data": lambda x, y: TensorData(x, y, classes="abc")}, DataError, "class names"),
        ({"data": lambda x, y: TensorData(x, 0 * y)}, DataError, "two classes"),
        ({"data": lambda x, y: TensorData(x[:0], y[:0])}, DataError, "at least one sample"),
    ],
)
@pytest.mark.parametrize("recipe", ["auto", "paper"])
def test_faults_are_found_before_any_pass_over_the_data(
    model: nn.Module,
    digits: tuple[Data, ...],
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, Any],
    error: type[Exception],
    message: str,
    recipe: str,
) -> None:
    monkeypatch.setattr("petm.fitting.preflight", lambda *_: pytest.fail("a pass over the data"))
    x, y = digits[1].inputs(range(60)), digits[1].labels[:60]
    found = {"data": digits[0], "calibration": digits[1], "recipe": recipe}
    found |= {name: value(x, y) if callable(value) else value for name, value in wrong.items()}
    before = snapshot(model)
    for begin in (fit, estimate):
        with pytest.raises(error, match=message):
            begin(model, found["data"], **{name: value for name, value in found.items() if name != "data"})
    assert snapshot(model) == before


def test_a_full_disk_is_found_before_the_adversarial_copy(
    model: nn.Module, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("petm.training.recipes.with_adversarial_copy", lambda *_: pytest.fail("too late"))
    with pytest.raises(RunError, match="expected room for"):
        fit(model, digits[0], calibration=digits[2], recipe=SHORT, cache_budget=1000)


@pytest.mark.parametrize("budget", [4 << 30, 1000, 0], ids=["memory", "disk", "none"])
def test_an_estimate_describes_the_fit(model: nn.Module, digits: tuple[Data, ...], budget: int) -> None:
    before = snapshot(model)
    found = estimate(model, digits[0], calibration=digits[2], recipe=SHORT, cache_budget=budget)
    assert snapshot(model) == before
    grader = fit(model, digits[0], calibration=digits[2], recipe=SHORT, cache_budget=budget)
    adapted = grader.adapted
    assert found.branch == "adapters"
    assert found.layers == adapted.ranks
    assert found.adapter_parameters == adapted.adapter_parameters()
    assert found.adapter_bytes == 4 * found.adapter_parameters
    assert found.members == tuple((member.adapter, member.view) for member in adapted.members)
    assert found.share == found.adapter_parameters / sum(weight.numel() for weight in model.parameters())
    grader.grade(digits[2].inputs(range(4)))
    assert adapted.split_point is not None
    assert found.split_point["module"] == adapted.split_point.module
    assert found.one_pass_ratio == adapted.split_point.counted_ratio
    assert (found.samples, found.calibration_samples) == (len(digits[0]), len(digits[2]))
    assert found.features_on_disk == (budget == 1000)
    assert (found.feature_bytes > 0) == (budget > 0)
    steps = {stage.title: stage.batches for stage in found.stages}
    assert steps["train the adapters"] == 3 * -(-3 * len(digits[0]) // 256), "three adapters, one epoch, two copies"
    assert ("cache features" in steps) == (budget > 0)
    assert all(stage.seconds >= 0 for stage in found.stages)
    assert not found.at_most


def test_an_estimate_by_views_trains_nothing(model: nn.Module, digits: tuple[Data, ...]) -> None:
    torch.manual_seed(0)
    symmetric = torch.rand(300, 1, 28, 14)
    data = TensorData(torch.cat((symmetric, symmetric.flip(-1)), -1), torch.arange(300) % 10)
    with torch.no_grad():
        data.labels = model(data.images).argmax(1)
    data.labels[:30] = (data.labels[:30] + 1) % 10
    recipe = replace(SHORT, mirrored=AT_MIRROR)
    found = estimate(model, data, calibration=TensorData(data.images + 0.01, data.labels), recipe=recipe)
    assert (found.branch, found.recipe, found.adapter_parameters) == ("views", "mirror", 0)
    assert (found.members, found.layers) == ((("", "mirror"),), {})
    assert found.one_pass_ratio == pytest.approx(1.2)
    assert found.calibration_samples == 270
    assert not any("train" in stage.title for stage in found.stages)


@pytest.mark.parametrize("recipe", ["softmax", "margin, mahalanobis"])
def test_an_estimate_of_evidence_alone_trains_nothing(recipe: str, model: nn.Module, digits: tuple[Data, ...]) -> None:
    before = snapshot(model)
    found = estimate(model, digits[0], calibration=digits[2], recipe=recipe)
    assert snapshot(model) == before
    assert (found.branch, found.recipe, found.members, found.layers) == ("evidence", recipe, (), {})
    assert (found.one_pass_ratio, found.adapter_parameters) == (1, 0)
    assert not any("train" in stage.title or "layers" in stage.title for stage in found.stages)


def test_an_estimate_with_a_teacher_is_a_bound(model: nn.Module, digits: tuple[Data, ...]) -> None:
    found = estimate(model, digits[0], calibration=digits[2], recipe="paper", max_extra_parameters=0.2)
    assert (found.branch, found.at_most) == ("teacher", True)
    assert 0 < found.adapter_parameters <= 0.2 * sum(weight.numel() for weight in model.parameters())
    steps = {stage.title: stage.batches for stage in found.stages}
    assert steps["train the teacher"] == 2 * -(-len(digits[0]) // 128)
    assert steps["distil into the adapter, at most"] == 20 * -(-len(digits[0]) // 128)


def test_an_estimate_decodes_a_sample_only(
    model: nn.Module, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decoded(TensorData):
        def in_memory(self, budget: int = 1 << 30) -> Data:
            pytest.fail("the whole")

    whole = Decoded(digits[0].inputs(range(200)), digits[0].labels[:200]).subset(range(200))
    monkeypatch.setattr("petm.training.estimate.SAMPLES", 50)
    found = estimate(model, whole, calibration=digits[2], recipe=SHORT, decoded=True)
    assert found.stages[0].title == "decode the data"


def test_the_example_of_fit_runs() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(fit, "fit", globs={"fit": fit, "torch": torch, "nn": nn})
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(0, 6)


def test_what_the_data_say_is_remembered(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    """Of images that a torch data set has prepared, nobody knows how: `save` says what the command line cannot do."""
    known = fit(model, digits[0], calibration=digits[2], recipe="softmax")
    assert known.origin.model.classes == digits[0].classes
    names = [f"digit {number}" for number in range(10)]
    pixels = (torch.as_tensor(digits[2].inputs(range(400))) * 255).round().to(torch.uint8)
    named = TensorData(pixels, digits[2].labels[:400], classes=names)
    read = fit(model, named, recipe="softmax")
    assert read.origin.model.classes == tuple(names)
    assert (read.origin.inputs.size, read.origin.inputs.channels) == ((28, 28), 1)
    mapped = [(digits[2].inputs([row])[0], int(digits[2].labels[row])) for row in range(200)]
    own = fit(model, mapped, recipe="softmax")
    said = []
    with mock.patch("petm.grading.grader.note", said.append):
        read.save(tmp_path / "read.petm")
        assert not said
        own.save(tmp_path / "own.petm")
    assert len(said) == 1
    assert "own.petm" in said[0]
