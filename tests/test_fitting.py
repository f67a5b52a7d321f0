from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from networks import snapshot
from petm.adapter.model import Member
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, NothingToLearnError
from petm.fitting import RECALL, fit
from petm.training.recipes import RECIPES, Recipe
from short_recipe import SHORT

AT_MIRROR = Recipe("mirror", (Member("", "mirror"),), look=0.2, max_extra_parameters=3.0)


def test_by_default_nine_of_ten_errors_are_flagged(model: nn.Module, digits: tuple[Data, ...]) -> None:
    before = snapshot(model)
    grader = fit(model, digits[0], calibration=digits[2], recipe=SHORT)
    assert snapshot(model) == before
    assert grader.score == "mean_of_both"
    grades = grader.grade(digits[2])
    wrong = grades.labels != digits[2].labels.numpy()
    flagged = (~grades.trusted)[wrong].mean()
    assert RECALL <= flagged < RECALL + 1 / wrong.sum() + 1e-9
    settings = grader.origin.settings
    assert settings["recipe"] == "short"
    assert settings["training_errors"] == (grader.grade(digits[0]).labels != digits[0].labels.numpy()).sum()


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


def test_a_calibration_without_errors_falls_back_to_disagreement(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x = digits[1].inputs(range(60))
    with torch.no_grad():
        labels = model(x).argmax(1)
    grades = fit(model, digits[0], calibration=TensorData(x, labels), recipe=SHORT).grade(digits[2])
    np.testing.assert_array_equal(grades.trusted, grades.labels == grades.second)


def test_a_second_look_is_set_on_samples_that_the_threshold_does_not_use() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        half = torch.randn(2, 16)
        model[1].weight.copy_(torch.cat((half, half.flip(1)), 1))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
        images = torch.rand(300, 1, 1, 32)
        labels = model(images).argmax(1)
    labels[:40] = 1 - labels[:40]
    data = TensorData(images, labels)
    grader = fit(model, data, calibration=data, recipe=replace(SHORT, mirrored=AT_MIRROR, max_extra_parameters=3.0))
    assert grader.adapted.members == AT_MIRROR.members
    assert grader.adapted.look_from > 0
    assert grader.measured["calibration_samples"] == 270


def test_faults(model: nn.Module, digits: tuple[Data, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"recipe: expected one of paper, fast, .* got 'slow'"):
        fit(model, digits[0], recipe="slow")
    with pytest.raises(ArgumentError, match=r"calibration: expected data or a share between 0 and 1, got 1\.5"):
        fit(model, digits[0], calibration=1.5)
    x = digits[0].inputs(range(50))
    with torch.no_grad():
        labels = model(x).argmax(1)
    with pytest.raises(NothingToLearnError, match=r"errors: expected at least one sample that A gets wrong"):
        fit(model, TensorData(x, labels), calibration=digits[1], recipe="paper")
    with pytest.raises(ArgumentError, match=r"not even rank 1"):
        fit(model, digits[0], recipe="balanced", max_extra_parameters=1e-9)


def test_budgets_bound_what_is_adapted(model: nn.Module, digits: tuple[Data, ...]) -> None:
    wide = fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_parameters=0.5)
    small = fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_parameters=0.1)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert small.adapted.adapter_parameters() <= 0.1 * parameters < wide.adapted.adapter_parameters()
    late = fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_parameters=0.5, max_extra_time=0.1)
    late.grade(digits[2].inputs(range(4)))
    wide.grade(digits[2].inputs(range(4)))
    assert late.adapted.parting is not None
    assert late.adapted.parting.counted_ratio <= 1.1 + 1e-9
    assert set(late.adapted.ranks) < set(wide.adapted.ranks)
    with pytest.raises(ArgumentError, match="max_extra_time: expected a share above 0, got -1"):
        fit(model, digits[0], calibration=digits[2], recipe=SHORT, max_extra_time=-1.0)
