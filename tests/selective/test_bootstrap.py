import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from petm.errors import ArgumentError
from petm.selective.bootstrap import bootstrap
from petm.selective.metrics import (
    METRICS,
    auroc,
    coverage_at_risk,
    expected_calibration_error,
    risk_at_coverage,
)

# bootstrap


def samples(seed: int = 0, levels: int = 1000, count: int = 200) -> tuple[NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(seed)
    wrong = random.random(count) < 0.2
    return random.integers(0, levels, count) / levels * 0.7 + 0.3 * wrong, wrong


FAST = [
    *METRICS.values(),
    expected_calibration_error,
    partial(expected_calibration_error, bins=4),
    partial(coverage_at_risk, risk=0.1),
    partial(risk_at_coverage, coverage=0.6),
]


@pytest.mark.parametrize("metric", FAST)
@pytest.mark.parametrize("levels", [2, 1000])
def test_recounting_levels_is_what_drawing_rows_is(metric: Callable[..., float], levels: int) -> None:
    first, wrong = samples(0, levels)
    second, _ = samples(1, levels)
    settings = {"resamples": 20, "seed": 4}

    def by_rows(suspicion: NDArray[Any], errors: NDArray[Any]) -> float:
        return metric(suspicion, errors)

    slow = bootstrap(by_rows, first, wrong, **settings)
    found = bootstrap(metric, first, wrong, **settings)
    assert (found.value, found.low, found.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-12)
    slow = bootstrap(by_rows, first, wrong, minus=second, **settings)
    found = bootstrap(metric, first, wrong, minus=second, **settings)
    assert (found.value, found.low, found.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-12)


def test_the_draws_by_hand() -> None:
    suspicion, wrong = samples(2)
    random = np.random.default_rng(7)
    draws = [random.integers(0, 200, 200) for _ in range(50)]
    drawn = [roc_auc_score(wrong[rows], suspicion[rows]) for rows in draws]
    found = bootstrap(auroc, suspicion, wrong, resamples=50, confidence=0.8, seed=7)
    assert found.value == auroc(suspicion, wrong)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.1, 0.9])), abs=1e-12)


def test_the_interval_of_one_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000)
    found = bootstrap(mean, values, np.zeros(1000, bool), resamples=2000)
    half = 1.959964 * values.std() / math.sqrt(1000)
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 8)


def test_the_interval_of_auroc_has_its_coverage() -> None:
    # Errors from N(1, 1), right ones from N(0, 1): the AUROC is the normal distribution function at 1/sqrt(2).
    truth, covered = 0.5 * (1 + math.erf(0.5)), 0
    random = np.random.default_rng(0)
    for trial in range(100):
        wrong = random.random(300) < 0.3
        found = bootstrap(auroc, random.normal(wrong, 1), wrong, resamples=200, confidence=0.8, seed=trial)
        covered += found.low <= truth <= found.high
    assert 68 <= covered <= 92  # 80 of 100, within three standard deviations


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"resamples": 0}, "^resamples:"), ({"confidence": 1.0}, "^confidence:"), ({"confidence": 0}, "^confidence:")],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        bootstrap(auroc, [0, 1], [False, True], **settings)
    with pytest.raises(ArgumentError, match=message):
        bootstrap(auroc, [0, 1], [False, True], minus=[1, 0], **settings)


@pytest.mark.parametrize("metric", [auroc, lambda suspicion, wrong: 0.0])
def test_no_samples_no_interval(metric: Callable[..., float]) -> None:
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        bootstrap(metric, [], [])


# paired_bootstrap


def mean(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    del wrong
    return float(suspicion.mean())


def test_no_difference_between_equal_methods() -> None:
    random = np.random.default_rng(0)
    scores, wrong = random.random(200), random.random(200) < 0.3
    found = bootstrap(auroc, scores, wrong, minus=scores.copy(), resamples=50)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_interval_of_a_mean_is_that_of_normal_theory() -> None:
    random = np.random.default_rng(1)
    second = random.normal(0, 5, 2000)
    first = second + random.normal(0.5, 1, 2000)
    found = bootstrap(mean, first, np.zeros(2000, bool), minus=second, resamples=2000)
    difference = first - second
    half = 1.959964 * difference.std() / math.sqrt(2000)
    assert found.value == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=half / 8)
    # Two separate samples would have to live with the spread that both methods have in common.
    draws = [random.choice(first, 2000).mean() - random.choice(second, 2000).mean() for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.high - found.low < (high - low) / 3


def test_the_interval_has_its_coverage_of_the_true_difference() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(100):
        second = random.normal(0, 1, 80)
        first = second + random.normal(0.3, 0.5, 80)
        found = bootstrap(mean, first, np.zeros(80, bool), minus=second, resamples=200, confidence=0.8, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 68 <= covered <= 91  # 80 of 100, within three standard deviations


def test_the_interval_follows_the_seed() -> None:
    random = np.random.default_rng(3)
    first, second, wrong = random.random(50), random.random(50), random.random(50) < 0.3
    found = bootstrap(auroc, first, wrong, minus=second, resamples=100, seed=5)
    assert found == bootstrap(auroc, first, wrong, minus=second, resamples=100, seed=5)
    assert found != bootstrap(auroc, first, wrong, minus=second, resamples=100, seed=6)
    assert found.value == pytest.approx(roc_auc_score(wrong, first) - roc_auc_score(wrong, second))


def test_resamples_without_an_error_are_left_out() -> None:
    wrong = np.arange(6) == 0
    found = bootstrap(auroc, np.arange(6)[::-1], wrong, minus=np.arange(6), resamples=200)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    found = bootstrap(auroc, [1, 2], [False, False], minus=[2, 1], resamples=20)
    assert math.isnan(found.low)
    assert math.isnan(found.value)


def test_bootstrap_shapes_must_agree() -> None:
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        bootstrap(auroc, [1, 2], [True, False], minus=[1])
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        bootstrap(mean, [1, 2], [True, False], minus=[1])
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        bootstrap(mean, [1, 2, 3], [True, False])


@pytest.mark.parametrize("metric", [*METRICS.values(), partial(coverage_at_risk, risk=0.1)])
def test_unequal_chances_weigh_a_sample_as_the_rows_that_it_stands_for(metric: Any) -> None:
    suspicion, wrong = samples()
    often = np.random.default_rng(1).integers(1, 5, len(wrong))
    found = bootstrap(metric, suspicion, wrong, chance=1 / often, resamples=50)
    assert found.value == pytest.approx(metric(np.repeat(suspicion, often), np.repeat(wrong, often)))
    assert found.low < found.value < found.high


def test_a_metric_of_the_users_own_has_no_weights() -> None:
    suspicion, wrong = samples()
    with pytest.raises(ArgumentError, match=r"^metric:"):
        bootstrap(lambda s, w: float(w.mean()), suspicion, wrong, chance=np.full(len(wrong), 0.5))
