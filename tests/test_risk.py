import math

import numpy as np
import pytest
from scipy.stats import binom

from petm.errors import ArgumentError
from petm.risk import COVERAGES, DISAGREEMENT, Threshold, risk_threshold

LEVELS = len(COVERAGES)


def population(
    random: np.random.Generator, samples: int, *, levels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion uniform in [0, 1] and wrong with probability its cube, so that the risk below t is t³/4."""
    suspicion = random.random(samples)
    wrong = random.random(samples) < suspicion**3
    return (suspicion if levels is None else np.floor(suspicion * levels) / levels), wrong


def true_risk(threshold: float, *, levels: int | None = None) -> float:
    """The error rate of all that lies strictly below the threshold."""
    threshold = min(max(threshold, 0.0), 1.0)
    if levels is not None:  # the value j/levels stands for the suspicions from there up to (j + 1)/levels
        threshold = math.ceil(threshold * levels - 1e-9) / levels
    return threshold**3 / 4


@pytest.mark.parametrize("levels", [None, 20])
def test_the_promise_is_kept_as_often_as_it_says(levels: int | None) -> None:
    random, draws, confidence, max_risk = np.random.default_rng(0), 300, 0.8, 0.05
    broken = naive_broken = 0
    coverage = []
    for _ in range(draws):
        suspicion, wrong = population(random, 400, levels=levels)
        threshold = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=confidence)
        broken += true_risk(threshold.value, levels=levels) > max_risk
        coverage.append(threshold.coverage)
        # What one would do without the theorem: the largest threshold whose calibration risk looks good enough.
        candidates = [*np.unique(suspicion)[1:], math.inf]
        naive = max((t for t in candidates if wrong[suspicion < t].mean() <= max_risk), default=-math.inf)
        naive_broken += true_risk(naive, levels=levels) > max_risk
    assert broken <= binom.ppf(0.9999, draws, 1 - confidence)
    assert np.mean(coverage) > 0.2, "a promise that trusts nothing would be worthless"
    if levels is None:
        assert naive_broken > binom.ppf(0.9999, draws, 1 - confidence), "or else this test shows nothing"


def test_no_error_at_all_by_hand() -> None:
    threshold = risk_threshold(np.arange(100.0), np.zeros(100, bool), max_risk=0.06)
    assert threshold.value == math.inf
    assert threshold.coverage == 1
    assert threshold.holds
    assert (threshold.max_risk, threshold.confidence, threshold.samples_needed) == (0.06, 0.95, None)
    # Without errors the Clopper-Pearson bound is 1 - level^(1/n).
    assert threshold.risk_bound == pytest.approx(1 - (0.05 / LEVELS) ** (1 / 100), rel=1e-12)


def test_the_bound_is_where_so_few_errors_become_unlikely() -> None:
    suspicion = np.arange(200.0)
    wrong = np.isin(suspicion, [3, 50, 77])
    threshold = risk_threshold(suspicion, wrong, max_risk=0.1, confidence=0.9)
    assert threshold.coverage == 1
    assert threshold.risk_bound is not None
    assert binom.cdf(3, 200, threshold.risk_bound) == pytest.approx(0.1 / LEVELS, rel=1e-9)


def test_greatest_coverage_wins() -> None:
    # 700 of 1000 without an error: 1 - 0.005^(1/700) = 0.0075. At 800 there are 50 errors.
    suspicion = np.random.default_rng(0).permutation(1000) / 1000
    threshold = risk_threshold(suspicion, suspicion >= 0.75, max_risk=0.01)
    assert threshold.value == 0.7
    assert threshold.coverage == 0.7
    assert threshold.risk_bound == pytest.approx(1 - 0.005 ** (1 / 700), rel=1e-12)


def test_equal_suspicion_is_trusted_together_or_not_at_all() -> None:
    suspicion = np.repeat([0.0, 1.0], [600, 400])
    threshold = risk_threshold(suspicion, suspicion == 1, max_risk=0.02)
    assert (suspicion < threshold.value).sum() == 600
    assert threshold.coverage == 0.6
    all_equal = risk_threshold(np.zeros(1000), np.zeros(1000, bool), max_risk=0.02)
    assert (all_equal.value, all_equal.coverage) == (math.inf, 1.0)


@pytest.mark.parametrize(("max_risk", "confidence"), [(0.01, 0.95), (0.05, 0.99), (0.2, 0.5)])
def test_samples_needed_is_the_least_number_that_can_do(max_risk: float, confidence: float) -> None:
    level = (1 - confidence) / LEVELS
    needed = next(n for n in range(1, 10_000) if (1 - max_risk) ** n <= level)
    nothing = risk_threshold([0.0], [True], max_risk=max_risk, confidence=confidence)
    assert nothing.samples_needed == needed
    for samples, holds in ((needed - 1, False), (needed, True)):
        found = risk_threshold(np.arange(samples), np.zeros(samples, bool), max_risk=max_risk, confidence=confidence)
        assert found.holds is holds


def test_where_nothing_can_be_promised_nothing_is_trusted() -> None:
    suspicion = np.arange(50.0)
    threshold = risk_threshold(suspicion, np.ones(50, bool), max_risk=0.01)
    assert threshold.value == -math.inf
    assert not (suspicion < threshold.value).any()
    assert (threshold.coverage, threshold.risk_bound, threshold.holds) == (0, None, False)


def test_disagreement_trusts_zero_and_suspects_all_above() -> None:
    suspicion = np.array([-1.0, -1e-300, -0.0, 0.0, np.nextafter(0.0, 1.0), 1e-18, 1.0])
    assert (suspicion < DISAGREEMENT.value).tolist() == [True, True, True, True, False, False, False]
    assert DISAGREEMENT.holds
    assert DISAGREEMENT.max_risk is None


def test_holds_follows_samples_needed() -> None:
    assert Threshold(0.0, "by hand").holds
    assert not Threshold(0.0, "by hand", samples_needed=3).holds


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_levels_outside_their_rule(value: float) -> None:
    with pytest.raises(ArgumentError, match=rf"max_risk: expected a number between 0 and 1, got {value}"):
        risk_threshold([0.0], [False], max_risk=value)
    with pytest.raises(ArgumentError, match=rf"confidence: expected a number between 0 and 1, got {value}"):
        risk_threshold([0.0], [False], max_risk=0.1, confidence=value)


@pytest.mark.parametrize(("suspicion", "wrong"), [([], []), ([0.1], [True, False]), ([[0.1]], [[True]])])
def test_shapes_outside_their_rule(suspicion: list[float], wrong: list[bool]) -> None:
    with pytest.raises(ArgumentError, match=r"suspicion: expected shape \(N,\) as wrong"):
        risk_threshold(suspicion, wrong, max_risk=0.1)
