"""The benchmark of detection: what it judges by, that nothing is computed twice, and what it writes."""

import copy
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import experiments.detection.methods as methods
from experiments.baselines.averages import McDropout
from experiments.baselines.protocol import Baseline, Learned, OfEvidence, Seen
from experiments.commands import main
from experiments.detection.conditions import (
    EPSILONS,
    SHIFTS,
    attacked,
    blur,
    choose_epsilon,
    contrast,
    noise,
    pgd,
    rotation,
    shifted,
)
from experiments.detection.judge import (
    SHOWN,
    at_precision,
    calibration,
    curves,
    judge,
    recall_at_precision,
    under_conditions,
)
from experiments.detection.measure import DetectionSettings, measure_detection, random_part
from experiments.detection.methods import (
    CONTROLS,
    VARIANTS,
    SecondOpinion,
    alike,
    fit_method,
    plan,
    random_halves,
    settings_of,
)
from experiments.detection.recipes import RECIPES
from experiments.detection.results import (
    detection_tables,
    drawn,
    markdown,
    merge_folders,
    read_result,
    write_results,
)
from experiments.detection.scores import TEST, open_folder, read_array, write_array
from networks import TinyCNN, images, randomise, seeded
from petm.adapter.model import attach_adapter
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError, RunError
from petm.evidence.formulas import ENTROPY, SOFTMAX
from petm.models.loading import save_weights
from petm.models.scores import entropy as entropy_of
from petm.models.scores import maximum_softmax, mean_of_both
from petm.report.tables import markdown_table
from petm.selective.bootstrap import bootstrap
from petm.selective.metrics import METRICS
from petm.training.error_set import fgsm
from petm.training.recipes import Recipe

UNIT = (0.0, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(count: int = 120, seed: int = 0, *, strength: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion with some ties, and where the base model is wrong, about a fifth."""
    drawn = np.random.default_rng(seed)
    wrong = np.random.default_rng(99).random(count) < 0.2
    return np.round(drawn.normal(size=count) + strength * wrong, 1), wrong


# Judging


def test_one_seed_has_the_intervals_of_the_library() -> None:
    (suspicion, wrong), (softmax, _) = scores(), scores(seed=1)
    found = judge([suspicion], [softmax], wrong, resamples=50, seed=3)
    for name in SHOWN:
        expected = bootstrap(METRICS[name], suspicion, wrong, resamples=50, seed=3)
        got = found["metrics"][name]
        assert (got["value"], got["low"], got["high"]) == pytest.approx(
            (expected.value, expected.low, expected.high), abs=1e-12
        )
        assert got["spread"] is None
    assert set(found["difference"]) == {"aurc", "auroc", "aupr_error"}
    for name, got in found["difference"].items():
        difference = bootstrap(METRICS[name], suspicion, wrong, minus=softmax, resamples=50, seed=3)
        assert (got["value"], got["low"], got["high"]) == pytest.approx(
            (difference.value, difference.low, difference.high), abs=1e-12
        )


def test_several_seeds_are_averaged_within_each_resample() -> None:
    runs = [scores(seed=seed)[0] for seed in range(3)]
    softmax, wrong = scores(seed=7)
    found = judge(runs, [softmax], wrong, names=("auroc",), resamples=40, seed=5)
    auroc, drawn = METRICS["auroc"], np.random.default_rng(5)
    draws = [drawn.integers(0, len(wrong), len(wrong)) for _ in range(40)]
    means = [np.mean([auroc(run[rows], wrong[rows]) for run in runs]) for rows in draws]
    less = [mean - auroc(softmax[rows], wrong[rows]) for mean, rows in zip(means, draws, strict=True)]
    each = [auroc(run, wrong) for run in runs]
    got, difference = found["metrics"]["auroc"], found["difference"]["auroc"]
    assert got["value"] == pytest.approx(np.mean(each))
    assert got["spread"] == pytest.approx(np.std(each, ddof=1))
    assert (got["low"], got["high"]) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))
    assert (difference["low"], difference["high"]) == pytest.approx(tuple(np.quantile(less, (0.025, 0.975))))


def test_against_a_method_with_seeds_the_means_are_compared() -> None:
    runs, others = [scores(seed=seed)[0] for seed in range(2)], [scores(seed=seed)[0] for seed in range(5, 8)]
    wrong = scores()[1]
    found = judge(runs, others, wrong, names=("aupr_error",), resamples=30, seed=5)["difference"]["aupr_error"]
    metric, drawn = METRICS["aupr_error"], np.random.default_rng(5)
    draws = [np.arange(len(wrong)), *(drawn.integers(0, len(wrong), len(wrong)) for _ in range(30))]
    means = [[np.mean([metric(run[rows], wrong[rows]) for run in each]) for rows in draws] for each in (runs, others)]
    value, *less = np.subtract(*means)
    assert found["value"] == pytest.approx(value)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(less, (0.025, 0.975))))


def test_the_softmax_does_not_differ_from_itself() -> None:
    suspicion, wrong = scores()
    for found in judge([suspicion], [suspicion], wrong, resamples=20)["difference"].values():
        assert (found["value"], found["low"], found["high"]) == (0, 0, 0)


@pytest.mark.parametrize("precision", [0.2, 0.3, 0.5904, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_recall_at_a_precision_is_the_best_of_all_thresholds(precision: float, seed: int) -> None:
    suspicion, wrong = scores(40, seed)
    flags = [suspicion >= threshold for threshold in np.unique(suspicion)]
    recalls = [(flag & wrong).sum() / wrong.sum() for flag in flags if (flag & wrong).sum() >= precision * flag.sum()]
    assert recall_at_precision(suspicion, wrong, precision) == pytest.approx(
        max(recalls, default=math.nan), nan_ok=True
    )


def test_a_precision_that_no_threshold_has_is_nan() -> None:
    assert math.isnan(recall_at_precision([0.0, 1.0], [True, False], 0.6))
    assert math.isnan(recall_at_precision([0.0, 1.0], [False, False], 0.6))
    assert recall_at_precision([0.0, 1.0], [False, True], 0.6) == 1
    good, bad = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    assert math.isnan(at_precision([good, bad], np.array([False, True])))
    assert at_precision([good, good], np.array([False, True])) == 1


def test_the_probability_of_error_is_judged_on_samples_that_it_was_not_fitted_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspicion = np.arange(101.0)
    wrong = suspicion % 5 == 0  # 21 errors
    fits: list[set[float]] = []

    class Says:
        def probability(self, asked: np.ndarray) -> np.ndarray:
            assert not fits[-1] & set(asked)
            assert fits[-1] | set(asked) == set(suspicion)
            return np.full(len(asked), 0.25)

    def fit(learned: np.ndarray, errors: np.ndarray) -> Says:
        assert errors.sum() == 10
        fits.append(set(learned))
        return Says()

    monkeypatch.setattr("experiments.detection.judge.fit_probability", fit)
    found = calibration([suspicion], wrong, splits=4)
    assert len({frozenset(fit) for fit in fits}) == 4
    # One level: the distance of the guarantee from the share of errors in the other half, 11 of 51.
    assert found["value"] == pytest.approx(0.25 - 11 / 51)
    assert found["spread"] == pytest.approx(0)


def test_curves_of_six_samples_by_hand() -> None:
    found = curves(np.array([0.1, 0.2, 0.3, 0.3, 0.5, 0.6]), np.array([0, 0, 1, 0, 0, 1], bool))
    assert found["coverage"] == pytest.approx([1 / 6, 2 / 6, 4 / 6, 5 / 6, 1])
    assert found["risk"] == pytest.approx([0, 0, 1 / 4, 1 / 5, 2 / 6])
    assert found["recall"] == pytest.approx([1 / 2, 1])
    assert found["precision"] == pytest.approx([1, 2 / 4])


def test_curves_are_thinned() -> None:
    suspicion, wrong = np.arange(5000.0), np.arange(5000) % 7 == 0
    found = curves(suspicion, wrong)
    assert len(found["coverage"]) <= 201
    assert found["coverage"][-1] == 1
    assert found["risk"][-1] == pytest.approx(wrong.mean())
    assert np.interp(0.5, found["coverage"], found["risk"]) == pytest.approx(wrong[:2500].mean(), abs=1e-3)


def test_each_condition_has_its_own_errors() -> None:
    (one, wrong), (other, _) = scores(), scores(seed=1)
    turned = {"softmax": {"a": one, "b": other}, "method": {"a": other, "b": other}}
    found = under_conditions(turned, {"a": wrong, "b": ~wrong}, resamples=10)
    assert found["method"]["a"]["metrics"]["auroc"]["value"] == METRICS["auroc"](other, wrong)
    assert found["softmax"]["b"]["metrics"]["aurc"]["value"] == METRICS["aurc"](other, ~wrong)
    assert found["method"]["b"]["difference"]["aurc"]["value"] == 0


# Shifts and attacks


def test_noise_has_its_strength_and_stays_in_the_range() -> None:
    middle = torch.full((4, 1, 60, 60), 5.0)
    changed = noise(middle, 0.05, (0.0, 10.0), generator())
    assert float((changed - middle).std()) == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(changed, noise(middle, 0.05, (0.0, 10.0), generator()))
    wide = noise(middle, 2.0, (0.0, 10.0), generator())
    assert (float(wide.min()), float(wide.max())) == (0, 10)


def test_blur_of_a_point_is_the_kernel_and_of_one_colour_nothing() -> None:
    point = torch.zeros(1, 2, 41, 41)
    point[0, 0, 20, 20] = 1
    spread = blur(point, 2 / 41, UNIT, generator())  # a standard deviation of two pixels
    line = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / 8)
    line = line / line.sum()
    torch.testing.assert_close(spread[0, 0, 14:27, 14:27], torch.outer(line, line))
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert not spread[0, 1].any()
    even = torch.full((1, 3, 8, 12), 0.3)
    torch.testing.assert_close(blur(even, 0.2, UNIT, generator()), even)


def test_a_quarter_turn_is_one_to_either_side() -> None:
    picture = images(6, 1, 9, 9)
    turned = rotation(picture, 90.0, UNIT, generator())
    sides = {
        side
        for one, other in zip(picture, turned, strict=True)
        for side in (1, -1)
        if torch.allclose(one.rot90(side, (1, 2)), other, atol=1e-4)
    }
    assert sides == {1, -1}
    wide = images(3, 1, 5, 9)
    torch.testing.assert_close(rotation(wide, 180.0, UNIT, generator()), wide.flip(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotation(wide, 0.0, UNIT, generator()), wide, atol=1e-5, rtol=0)


def test_contrast_goes_towards_the_mean() -> None:
    picture = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert contrast(picture, 0.6, UNIT, generator()).flatten().tolist() == pytest.approx([0.3, 0.5, 0.7])


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_keeps_labels_and_form_and_has_its_own_content(name: str) -> None:
    slope = (
        torch.linspace(0.1, 0.9, 10) * torch.linspace(1, 0, 12).unsqueeze(1)
    ) ** 2  # smooth, so that more is farther
    data = TensorData(slope.expand(5, 3, 12, 10).clone(), torch.arange(5), source="slope", value_range=UNIT)
    found = [shifted(data, name, strength) for strength in SHIFTS[name].strengths]
    assert len({each.content for each in (data, *found)}) == 4
    distances = [float((each.images - data.images).abs().mean()) for each in found]
    assert 0 < distances[0] < distances[1] < distances[2]
    for each in found:
        assert torch.equal(each.labels, data.labels)
        assert each.images.shape == data.images.shape
        assert float(each.images.min()) >= 0
        assert float(each.images.max()) <= 1


def test_what_is_no_image_is_refused() -> None:
    rows = TensorData(torch.rand(4, 8), torch.zeros(4), source="rows")
    with pytest.raises(DataError, match=r"rows: expected images \(N, C, H, W\) to shift, got shape \(4, 8\)"):
        shifted(rows, "blur", 0.1)


def test_pgd_stays_near_and_does_more_harm_than_fgsm() -> None:
    model, x, labels = seeded(TinyCNN), images(16), torch.arange(16) % 10

    def loss(inputs: Tensor) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(inputs), labels))

    moved = pgd(model, x, labels, epsilon=0.05, value_range=UNIT)
    one = fgsm(model, x, labels, epsilon=0.05, value_range=UNIT)
    assert float((moved - x).abs().max()) <= 0.05 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert loss(x) < loss(one) <= loss(moved) + 1e-6
    # One step is longer than epsilon, and brought back to it.
    torch.testing.assert_close(pgd(model, x, labels, epsilon=0.05, value_range=UNIT, steps=1), one)


def test_an_attack_is_kept(tmp_path: Path) -> None:
    model, data = seeded(TinyCNN), TensorData(images(6), torch.arange(6), value_range=UNIT)
    first = attacked(model, data, "pgd", 0.1, batch_size=4, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    second = attacked(model, data, "pgd", 0.1, folder=tmp_path)
    assert torch.equal(first.images, second.images)
    assert first.content == second.content != attacked(model, data, "pgd", 0.2).content
    assert kept.stat().st_mtime_ns == before


class Threshold(nn.Module):
    """Class 1 above a half, by a margin of the pixel itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        distance = self.weight * (x.flatten(1).mean(1) - 0.5)
        return torch.stack((-distance, distance), 1)


def test_the_step_of_the_attack_is_the_least_that_misleads_a_quarter() -> None:
    # Three pixels stay clear of the boundary, one is 3/255 from it: a step of 4/255 is the first to cross.
    data = TensorData(torch.tensor([0.0, 1.0, 1.0, 0.5 + 3 / 255]).view(4, 1, 1, 1), torch.tensor([0, 1, 1, 1]))
    assert choose_epsilon(Threshold(), data) == pytest.approx(4 / 255)
    far = TensorData(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]))
    assert choose_epsilon(Threshold(), far) == EPSILONS[-1]


# Methods


def test_the_softmax_is_first_and_always_there() -> None:
    chosen = plan(("mc_dropout:2", "entropy"), seeds=range(3))
    assert [(method.name, method.seeds) for method in chosen] == [
        ("softmax", (0,)),
        ("entropy", (0,)),
        ("mc_dropout", (0, 1)),
    ]
    everything = plan(members=(seeded(TinyCNN),), seeds=range(2))
    assert everything[0].name == "softmax"
    names = [method.name for method in everything]
    assert "ensemble_2" in names
    assert [name for name in names if name.startswith("second_opinion_")] == [
        f"second_opinion_{name}" for name in (*RECIPES, *CONTROLS, *VARIANTS)
    ]
    assert {method.seeds for method in everything} == {(0,), (0, 1)}
    rivals = {method.name for method in everything if method.is_rival}
    assert rivals >= {"petm", "trained_further", "views_2", "ensemble_2", "second_opinion_random_control"}
    assert not rivals & {"softmax", "knn", "second_opinion_fast", "second_opinion_mirror_adapter"}
    (ours,) = plan(("fast",), seeds=(0,))[1:]
    assert ours.name == "second_opinion_fast"
    assert ours.is_ours
    others = plan((*CONTROLS, *VARIANTS))[1:]
    assert [method.is_ours for method in others] == [False] * len(CONTROLS | VARIANTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("nonsense",)}, r"methods: expected known names, got nonsense\. Available: softmax, entropy"),
        ({"names": ("entropy:3",)}, r"methods: expected NAME or NAME:SEEDS with 1 to 2 seeds, got 'entropy:3'"),
        ({"names": ("entropy:x",)}, r"methods: expected NAME or NAME:SEEDS with 1 to 2 seeds, got 'entropy:x'"),
        ({"views": "upside down"}, r"views: expected one of mirror, shift, got 'upside down'"),
        ({"seeds": ()}, r"seeds: expected at least one, got none"),
    ],
)
def test_a_plan_that_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        plan(**{"seeds": (0, 1), **arguments})


def test_settings_tell_methods_apart() -> None:
    told = {
        settings_of(baseline)
        for baseline in (
            OfEvidence(SOFTMAX),
            OfEvidence(ENTROPY),
            McDropout(),
            McDropout(samples=7),
            SecondOpinion("fast", RECIPES["fast"]),
            SecondOpinion("fast", Recipe("another")),
            SecondOpinion("fast", RECIPES["fast"], "bfloat16"),
            *(method.baseline for method in plan(members=(seeded(TinyCNN, 1),)) if "ensemble" in method.name),
            *(method.baseline for method in plan(members=(seeded(TinyCNN, 2),)) if "ensemble" in method.name),
        )
    }
    assert len(told) == 9
    recipe = RECIPES["fast"]
    kept = SecondOpinion("fast", recipe, folder=Path("somewhere"))
    assert settings_of(kept) == settings_of(SecondOpinion("fast", recipe))


def test_halves_are_halves_of_every_class() -> None:
    data = TensorData(images(21), torch.tensor([0] * 10 + [1] * 11))
    halves = random_halves(data, 3)
    assert (int(halves[:10].sum()), int(halves[10:].sum())) == (5, 5)
    assert torch.equal(halves, random_halves(data, 3))
    assert not torch.equal(halves, random_halves(data, 4))


def test_settings_that_are_alike() -> None:
    assert alike({"t": 1.0, "e": 0.0}, {"t": 1.2, "e": 0.0})
    assert not alike({"t": 1.0, "e": 0.0}, {"t": 1.0, "e": 0.1})
    assert not alike({"t": 1.0}, {"t": 1.5})
    assert alike({}, {})


@dataclass(frozen=True)
class Calibrated(Baseline):
    """Says which samples it was calibrated on: suspicion is the first pixel, plus ten times the calibration's mean."""

    factor: float = 10.0

    name = "calibrated"
    title = "Calibrated"
    source = "the tests"
    fitted_on = "calibration"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        mean = self.factor * float(_first_pixels(calibration).mean())
        return Learned(lambda seen: _first_pixels(seen) + mean, chosen={"mean": mean})


def _first_pixels(seen: Seen) -> Tensor:
    return seen.data.inputs(range(len(seen)))[:, 0, 0, 0].double()


def ramp(count: int = 12) -> TensorData:
    """Images whose first pixel is their position."""
    x = torch.zeros(count, 1, 28, 28)
    x[:, 0, 0, 0] = torch.arange(count)
    return TensorData(x, torch.arange(count) % 2, source="ramp")


def test_what_is_calibrated_on_a_half_is_judged_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "alike", lambda one, other: True)
    model, data = seeded(TinyCNN), ramp()
    seen, halves, pixels = Seen(model, data), random_halves(data, 1), torch.arange(12.0).double()
    fitted = fit_method(Calibrated(), seen, seen, seed=1)
    of_the_other_half = torch.where(halves, pixels[~halves].mean(), pixels[halves].mean())
    expected = pixels + 10 * of_the_other_half
    torch.testing.assert_close(fitted.suspicion(seen, torch.arange(12)), expected)
    # Asked about a few of the samples, each is still judged by the fit that has not seen it.
    rows = torch.tensor([7, 2, 9])
    torch.testing.assert_close(fitted.suspicion(Seen(model, data.subset(rows)), rows), expected[rows])
    assert fitted.seconds > 0


@pytest.mark.parametrize("factor", [0.0, 10.0])
def test_two_scales_are_joined_by_rank(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = seeded(TinyCNN), ramp()
    seen, halves = Seen(model, data), random_halves(data, 0)
    monkeypatch.setattr(methods, "alike", lambda one, other: factor == 0)
    found = fit_method(Calibrated(factor), seen, seen, seed=0).suspicion(seen, torch.arange(12))
    if factor == 0:  # the same scale
        assert found.tolist() == list(range(12))
    else:
        for side in (True, False):
            assert found[halves == side].tolist() == pytest.approx([(place + 0.5) / 6 for place in range(6)])


def test_what_needs_no_calibration_is_fitted_once_on_the_training_data() -> None:
    model = seeded(TinyCNN)
    train, test = Seen(model, ramp()), Seen(model, ramp(8))
    fitted = fit_method(OfEvidence(SOFTMAX), train, test, seed=0)
    torch.testing.assert_close(fitted.suspicion(test, torch.arange(8)), maximum_softmax(test.logits))


def test_a_second_opinion_is_its_recipe_and_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, data, asked = seeded(TinyCNN), TensorData(images(20), torch.arange(20) % 10), []

    def adapt(model: nn.Module, data: Data, **told: Any) -> Any:
        asked.append(told)
        return randomise(attach_adapter(model, {"fc1": 2}), seed=told["seed"])

    monkeypatch.setattr(methods, "adapt", adapt)
    seen, recipe = Seen(model, data), Recipe("for the tests")
    fitted = fit_method(SecondOpinion("tests", recipe, "bfloat16"), seen, seen, seed=4, device="cpu", folder=tmp_path)
    assert (asked[0]["recipe"], asked[0]["seed"], asked[0]["device"]) == (recipe, 4, "cpu")
    assert asked[0]["precision"] == "bfloat16"
    assert tmp_path in asked[0]["storage"]("adapter").path.parents
    adapted = randomise(attach_adapter(model, {"fc1": 2}), seed=4)
    both = predict_answers(adapted, data)
    torch.testing.assert_close(fitted.suspicion(seen, torch.arange(20)), mean_of_both(both.base, both.second))
    assert fitted.fitted.learned.extra_parameters == adapted.adapter_parameters()


# The folder


def test_a_folder_is_gone_on_with(tmp_path: Path) -> None:
    with open_folder(tmp_path / "run") as folder:
        (folder / "fits").mkdir()
        with pytest.raises(RunError, match="another process is at work there"), open_folder(folder):
            pass
    with open_folder(tmp_path / "run") as folder:
        assert (folder / "fits").is_dir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="expected an empty folder or a detection benchmark"), open_folder(tmp_path):
        pass
    with pytest.raises(RunError, match="cannot be used as an output folder"), open_folder(tmp_path / "notes.txt"):
        pass
    assert {entry.name for entry in tmp_path.iterdir()} == {"run", "notes.txt"}


def test_an_array_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a" / "array.npz"
    assert read_array(path) is None
    write_array(path, np.arange(1000.0))
    assert read_array(path) == pytest.approx(np.arange(1000.0))
    path.write_bytes(path.read_bytes()[:-40])
    assert read_array(path) is None
    path.write_bytes(b"")
    assert read_array(path) is None


QUICK = ("entropy", "temperature", "mc_dropout", "mahalanobis")


def settings(**told: Any) -> DetectionSettings:
    return DetectionSettings(
        **{"title": "tiny A", "methods": QUICK, "seeds": 2, "resamples": 30, "device": "cpu", **told}
    )


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs from run to run."""
    result = copy.deepcopy(result)
    for name in ("date", "machine"):
        del result[name]
    for row in result["methods"]:
        del row["cost"]["seconds"]
    return result


def test_what_was_interrupted_goes_on_and_nothing_is_computed_twice(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _, test = digits
    whole = measure_detection(model, train, test, tmp_path / "whole", settings(shift=True, attack=True, at_most=60))
    fits: list[tuple[str, int]] = []
    fit, stop_after = methods.fit_method, 3

    def counting(baseline: Baseline, *arguments: Any, **told: Any) -> Any:
        if len(fits) == stop_after:
            raise KeyboardInterrupt
        fits.append((baseline.name, told["seed"]))
        return fit(baseline, *arguments, **told)

    monkeypatch.setattr("experiments.detection.scores.fit_method", counting)
    told: dict[str, Any] = {"shift": True, "attack": True, "at_most": 60}
    with pytest.raises(KeyboardInterrupt):
        measure_detection(model, train, test, tmp_path / "run", settings(**told))
    assert fits == [("softmax", 0), ("entropy", 0), ("temperature", 0)]
    stop_after = 100
    resumed = measure_detection(model, train, test, tmp_path / "run", settings(**told))
    assert fits == [
        ("softmax", 0),
        ("entropy", 0),
        ("temperature", 0),
        ("temperature", 1),
        ("mc_dropout", 0),
        ("mc_dropout", 1),
        ("mahalanobis", 0),
    ]
    assert timeless(resumed) == timeless(whole)
    fits.clear()
    again = measure_detection(model, train, test, tmp_path / "run", settings(**told))
    assert not fits
    assert timeless(again) == timeless(whole)
    more = settings(**told, methods=(*QUICK, "energy"))
    added = measure_detection(model, train, test, tmp_path / "run", more)
    assert fits == [("energy", 0)]
    others = [row for row in timeless(added)["methods"] if row["name"] != "energy"]
    assert others == timeless(whole)["methods"]
    # Another the base model has scores of its own.
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc2.bias[0] += 0.1
    fits.clear()
    measure_detection(other, train, test, tmp_path / "run", settings(methods=("entropy",)))
    assert fits == [("softmax", 0), ("entropy", 0)]


def test_a_damaged_score_is_computed_again(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    train, _, test = digits
    whole = measure_detection(model, train, test, tmp_path, settings(methods=("entropy",)))
    (path,) = tmp_path.glob("fits/entropy-0-*/test-*.npz")
    path.write_bytes(path.read_bytes()[:50])
    again = measure_detection(model, train, test, tmp_path, settings(methods=("entropy",)))
    assert timeless(again) == timeless(whole)


@pytest.fixture(scope="module")
def measured(
    _trained: nn.Module, digits: tuple[Data, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run with a shift, an attack, and a method that has to be left out."""
    folder = tmp_path_factory.mktemp("detection")
    train, _, test = digits

    def unfit(self: Baseline, *_: Any) -> Learned:
        raise DataError("train: expected more of it, got little. Add some.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.ConfidNet, "_fit", unfit)
        told = settings(methods=(*QUICK, "confidnet"), shift=True, attack=True, at_most=80)
        result = measure_detection(copy.deepcopy(_trained), train, test, folder, told)
    write_results([result], folder)
    return folder, result


def test_a_result_says_what_the_library_says(
    measured: tuple[Path, dict[str, Any]], model: nn.Module, digits: tuple[Data, ...]
) -> None:
    folder, result = measured
    assert json.loads((folder / "result.json").read_text()) == result
    test = Seen(model, digits[2])
    wrong = test.wrong.numpy()
    assert result["errors"]["test"] == int(wrong.sum())
    assert [row["name"] for row in result["methods"]] == [
        "softmax",
        "entropy",
        "temperature",
        "mc_dropout",
        "mahalanobis",
    ]
    softmax, entropy = result["methods"][:2]
    suspicion = maximum_softmax(test.logits).numpy()
    for name in SHOWN:
        assert softmax["metrics"][name]["value"] == pytest.approx(METRICS[name](suspicion, wrong))
    expected = bootstrap(METRICS["aurc"], entropy_of(test.logits).numpy(), wrong, minus=suspicion, resamples=30)
    assert entropy["difference"]["aurc"] == pytest.approx(
        {"value": expected.value, "low": expected.low, "high": expected.high}, abs=1e-12
    )
    assert softmax["cost"]["extra_parameters"] == 0
    assert softmax["cost"]["passes"] == 1
    assert [len(row["seeds"]) for row in result["methods"]] == [1, 1, 2, 2, 1]
    assert result["left_out"] == {"confidnet": "train: expected more of it, got little. Add some."}
    names = [f"{name} {strength:g}" for name, shift in SHIFTS.items() for strength in shift.strengths]
    assert list(result["conditions"]) == [*names, "fgsm", "pgd"]
    assert result["conditions"]["pgd"]["samples"] == 80
    assert result["conditions"]["fgsm"]["errors"] > 80 * result["errors"]["test"] / len(test)
    assert "/" not in result["data"]["test"]["source"]


def test_others_can_check_the_scores(
    measured: tuple[Path, dict[str, Any]], model: nn.Module, digits: tuple[Data, ...]
) -> None:
    folder, result = measured
    datasets = json.loads((folder / "scores" / "datasets.json").read_text())["datasets"]
    assert datasets == [TEST, *result["conditions"]]
    test = Seen(model, digits[2])
    for row in result["methods"]:
        for place, seed in enumerate(row["seeds"]):
            here = folder / "scores" / f"{row['name']}-{seed}"
            with np.load(here / "raw_logits.npz") as archive:
                assert archive.files == ["arr_0"]
                raw = archive["arr_0"]
            with np.load(here / "external_confids.npz") as archive:
                confidence = archive["arr_0"]
            rows = len(test) + (80 * len(result["conditions"]) if place == 0 else 0)
            assert raw.shape == (rows, 12)
            assert confidence.shape == (rows,)
            assert set(raw[:, -1]) == set(range(len(datasets) if place == 0 else 1))
            first = raw[:, -1] == 0
            assert np.array_equal(raw[first, :10], test.logits.numpy())
            assert np.array_equal(raw[first, 10], test.labels.numpy())
            # As that benchmark computes it: an error is what the logits say otherwise than the label.
            wrong = raw[first, :10].argmax(1) != raw[first, 10]
            auroc = METRICS["auroc"](-confidence[first], wrong)
            if len(row["seeds"]) == 1:
                assert auroc == pytest.approx(row["metrics"]["auroc"]["value"])
            if place == 0:
                last = raw[:, -1] == len(datasets) - 1
                wrong = raw[last, :10].argmax(1) != raw[last, 10]
                found = METRICS["auroc"](-confidence[last], wrong)
                assert found == pytest.approx(row["conditions"]["pgd"]["metrics"]["auroc"]["value"])


def by_hand() -> dict[str, Any]:
    """A result with numbers that are easily told apart."""

    def row(name: str, title: str, less: float, *, ours: bool = False) -> dict[str, Any]:
        metrics = {each: {"value": 0.25, "low": 0.125, "high": 0.5, "spread": None} for each in SHOWN}
        metrics["aurc"] = {"value": 0.000394, "low": 0.0002, "high": 0.0005, "spread": 0.00001}
        differences = {
            "aurc": {"value": less, "low": less - 0.00005, "high": less + 0.00005},
            "auroc": {"value": -less, "low": -0.01, "high": 0.01},
            "aupr_error": {"value": 0.02, "low": 0.01, "high": 0.03},
        }
        curve = {"coverage": [0.5, 1], "risk": [0, 0.1], "recall": [0, 1], "precision": [1, 0.1]}
        return {
            "name": name, "title": title, "definition": f"what {title} does", "source": "Someone (2020)", "ours": ours,
            "seeds": [0, 1], "metrics": metrics, "difference": differences, "curves": curve,
            "calibration_error": {"value": 0.0123, "spread": 0.001}, "recall_at_precision": None, "chosen": [],
            "cost": {"extra_parameters": 1500, "passes": 1.25, "seconds": None},
            "conditions": {"noise 0.1": {"metrics": metrics, "difference": differences}},
            "against": {"bad": differences} if ours else {},
        }  # fmt: skip

    return {
        "format": "petm detection result",
        "title": "MNIST, early A",
        "model": {"parameters": 100000, "weights": ""},
        "data": {"train": {"samples": 60000}, "test": {"samples": 10000}},
        "errors": {"test": 132, "train": 507},
        "settings": {"precision": 0.5904, "splits": 20, "epsilon": 4 / 255},
        "methods": [
            row("softmax", "Softmax", 0.0),
            row("good", "Good", -0.0001, ours=True),
            row("bad", "Bad", 0.0001),
            row("same", "Same", 0.00001),
        ],
        "conditions": {"noise 0.1": {"samples": 2000, "errors": 100}},
        "left_out": {"petm": "no errors."},
    }


def test_the_page_has_the_numbers() -> None:
    page = markdown([by_hand()], [""])
    head, *_ = (table for table in detection_tables(by_hand()) if table.title == "Detection")
    assert markdown_table(head) in page
    lines = {line.split(" |")[0].strip("| "): line for line in markdown_table(head).splitlines()}
    assert lines["Softmax"] == "| Softmax | 2 | 0.394 (0.200 to 0.500) ±0.010 | – | 25.00 (12.50 to 50.00) | – | – |"
    assert lines["Good"].endswith(
        "| −0.100 (−0.150 to −0.050) | 25.00 (12.50 to 50.00) | +0.01 (−1.00 to +1.00) | better |"
    )
    assert lines["Bad"].endswith("| worse |")
    assert lines["Same"].endswith("| no clear difference |")
    assert "It is wrong on 132 of 10,000 test samples (1.32%) and on 507 of 60,000 training samples." in page
    assert "| Good | Someone (2020) | 1,500 | 1.5% | 1.25 | – |" in page
    assert "| Good | Bad | −0.100 (−0.150 to −0.050) | +0.01 (−1.00 to +1.00) | +2.0 (+1.0 to +3.0) | better |" in page
    assert "| the model's errors | 5.0% |" in page
    assert "| Good | −0.100* |" in page
    assert "at most 4/255 of the range" in page
    assert "- Left out, petm: no errors." in page
    assert "- **Good**: what Good does." in page
    assert "![risk coverage](risk_coverage.svg)" in page


def test_the_best_of_each_kind_are_drawn() -> None:
    result = by_hand()
    (softmax, *_) = result["methods"]
    names = ["a", "b", "c", "d", "e", "one_control", "other_control", "ours"]
    for place, name in enumerate(names):
        row = copy.deepcopy(softmax) | {"name": name, "ours": name == "ours"}
        row["metrics"]["aurc"]["value"] = 1 - place / 10
        result["methods"].insert(0, row)
    result["methods"] = [row for row in result["methods"] if row["name"] in (*names, "softmax")]
    assert [row["name"] for row in drawn(result)] == ["softmax", "ours", "other_control", "e", "d", "c", "b"]


def test_a_curve_begins_where_an_error_is_caught() -> None:
    found = curves(np.array([0.1, 0.2, 0.3]), np.array([True, True, False]))
    assert found["recall"] == pytest.approx([1 / 2, 1])
    assert found["precision"] == pytest.approx([1 / 2, 2 / 3])


def test_several_results_are_one_page(measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, result = measured
    for name in ("early", "late"):
        (tmp_path / name).mkdir()
        other = result | {"title": f"A, {name}"}
        (tmp_path / name / "result.json").write_text(json.dumps(other))
    merge_folders([tmp_path / "early", tmp_path / "late"], tmp_path / "page")
    page = (tmp_path / "page" / "detection.md").read_text(encoding="utf-8")
    assert "| Method | A, early | A, late |" in page
    assert "## A, early" in page
    written = {path.name for path in (tmp_path / "page").iterdir()}
    names = itertools.product(("early", "late"), ("risk_coverage", "precision_recall"), ("png", "svg"))
    assert written == {"detection.md", *(f"{run}-{name}.{kind}" for run, name, kind in names)}
    assert all(f"{name}.svg)" in page for name in ("early-risk_coverage", "late-precision_recall"))
    assert {path.name for path in folder.glob("*.svg")} == {"risk_coverage.svg", "precision_recall.svg"}


def test_a_folder_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected the result\.json of a detection benchmark, got none"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"format": "another"}')
    with pytest.raises(RunError, match=r"expected the result\.json of a detection benchmark"):
        read_result(tmp_path)


# What it is told


@pytest.mark.parametrize("name", ["seeds", "resamples", "at_most"])
def test_numbers_are_at_least_1(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: expected at least 1, got 0"):
        DetectionSettings(**{name: 0})


def test_an_a_without_errors_has_nothing_to_detect(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    train, _, test = digits
    right = test.subset(~Seen(model, test).wrong)
    with pytest.raises(
        DataError, match="expected samples that the model gets right and samples that it gets wrong, got 0 wrong"
    ):
        measure_detection(model, train, right, tmp_path, settings())


def test_a_random_part_is_always_the_same() -> None:
    data = ramp()
    assert random_part(data, None) is data
    assert random_part(data, 12) is data
    part = random_part(data, 5)
    assert len(part) == 5
    assert part.content == random_part(data, 5).content
    assert bool((part.inputs(range(5))[:, 0, 0, 0].diff() > 0).all())
    with pytest.raises(ArgumentError, match="samples: expected at least 1, got 0"):
        random_part(data, 0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line, in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["experiments", "detection", *map(str, arguments)])
        monkeypatch.setattr("warnings.showwarning", lambda *_: None)
        code: Any = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        return code or 0, printed.out, printed.err

    return run


def test_the_command(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    for name, data in zip(("train", "test"), digits[::2], strict=True):
        np.savez(tmp_path / f"{name}.npz", images=data.inputs(range(len(data))).numpy(), labels=data.labels.numpy())
    save_weights(model, tmp_path / "a.safetensors")
    save_weights(seeded(TinyCNN, 5), tmp_path / "b.safetensors")
    told = ("--model", "networks:TinyCNN", "--weights", tmp_path / "a.safetensors", "--train", tmp_path / "train.npz")
    told = (*told, "--test", tmp_path / "test.npz", "--seeds", "1", "--train-samples", "300", "-o", tmp_path / "run")
    code, out, err = command(*told, "--member", tmp_path / "b.safetensors", "--method", "ensemble_2")
    assert (code, "Written" in err, "Ensemble of 2" in out) == (0, True, True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["name"] for row in result["methods"]] == ["softmax", "ensemble_2"]
    assert result["data"]["train"]["samples"] == 300
    assert (tmp_path / "run" / "detection.md").is_file()
    assert command(*told, "--method", "entropy")[0] == 0
    code, out, _ = command("--merge", tmp_path / "run", "-o", tmp_path / "page")
    assert code == 0
    assert "Entropy of the softmax" in (tmp_path / "page" / "detection.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "--model or --merge: expected one of them"),
        (("--model", "networks:TinyCNN", "--merge", "x"), 2, "--model or --merge: expected one of them"),
        (("--model", "networks:TinyCNN", "--train", "x.npz"), 2, "--train and --test: expected both or none"),
        (("--merge", "nowhere"), 1, "Error: nowhere: expected the result.json of a detection benchmark"),
        (("--model", "networks:TinyCNN", "--views", "odd"), 2, "odd"),
    ],
)
def test_a_command_that_makes_no_sense(
    arguments: tuple[str, ...], code: int, message: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())
