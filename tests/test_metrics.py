import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from petm.errors import ArgumentError
from petm.metrics import aupr_error, auroc, detection, fidelity, most_suspect, paired_bootstrap, share

# share


def test_wilson_of_eight_in_ten() -> None:
    # 1.959964: (0.8 + z²/20 ± z sqrt(0.8 * 0.2 / 10 + z²/400)) / (1 + z²/10), worked out by hand
    found = share(8, 10)
    assert (found.value, found.count, found.of) == (0.8, 8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (57, 132), (1, 100_000)])
def test_wilson_against_scipy(count: int, of: int, confidence: float) -> None:
    found = share(count, of, confidence=confidence)
    expected = binomtest(count, of).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_share_of_nothing_says_nothing() -> None:
    found = share(0, 0)
    assert math.isnan(found.value)
    assert (found.count, found.of, found.low, found.high) == (0, 0, 0.0, 1.0)


# detection


def test_detection_by_hand() -> None:
    flagged = [True, True, True, False, False, False, False, True]
    wrong = [True, False, True, True, False, False, True, False]
    found = detection(flagged, wrong)
    assert (found.flagged, found.errors, found.caught) == (4, 4, 2)
    assert found.recall == share(2, 4)
    assert found.precision == share(2, 4)
    found = detection(np.array(flagged), np.array([True] + [False] * 7))
    assert (found.recall.value, found.precision.value) == (1.0, 0.25)


def test_detection_without_flags_or_errors() -> None:
    assert math.isnan(detection([False, False], [True, False]).precision.value)
    assert detection([False, False], [True, False]).recall.value == 0
    assert math.isnan(detection([True, False], [False, False]).recall.value)


@pytest.mark.parametrize("metric", [detection, auroc, aupr_error])
def test_shapes_must_agree(metric: object) -> None:
    with pytest.raises(ArgumentError, match=r"wrong: expected the same shape \(N,\) .* got \(2,\) and \(3,\)"):
        metric([0, 1, 0], [True, False])  # type: ignore[operator]
    with pytest.raises(ArgumentError, match=r"got \(1, 2\) and \(1, 2\)"):
        metric([[0, 1]], [[True, False]])  # type: ignore[operator]


# fidelity and most_suspect


def test_fidelity() -> None:
    assert fidelity([1, 2, 3, 3], [1, 2, 0, 3]) == 0.75


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1, 2])])
def test_fidelity_refuses(first: list[int], second: list[int]) -> None:
    with pytest.raises(ArgumentError, match=r"fidelity: expected two equal shapes of at least one sample"):
        fidelity(first, second)


def test_most_suspect_takes_the_earlier_of_equal_ones() -> None:
    suspicion = [0.5, 0.9, 0.5, -1.0, 0.5]
    assert most_suspect(suspicion, 0).tolist() == [False] * 5
    assert most_suspect(suspicion, 1).tolist() == [False, True, False, False, False]
    assert most_suspect(suspicion, 3).tolist() == [True, True, True, False, False]
    assert most_suspect(suspicion, 5).tolist() == [True] * 5
    assert most_suspect(np.arange(1000) % 2, 10).nonzero()[0].tolist() == list(range(1, 20, 2))


# auroc and aupr_error


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_with_ties_against_sklearn_and_against_all_pairs(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    wrong = random.random(120) < 0.2
    suspicion = random.integers(0, levels, 120) + 0.3 * levels * wrong // 1
    pairs = [(bad > good) + (bad == good) / 2 for bad, good in itertools.product(suspicion[wrong], suspicion[~wrong])]
    assert auroc(suspicion, wrong) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(suspicion, wrong) == pytest.approx(roc_auc_score(wrong, suspicion), abs=1e-12)


def test_auroc_of_the_reference_implementation() -> None:
    # Source: reference implementation of AUGRC, Traub et al. 2024 (suspicion is minus confidence).
    assert auroc(-np.arange(-50, 50), np.arange(100) % 2 == 0) == pytest.approx(0.51, abs=1e-12)
    suspicion = np.repeat([0, 0, 1, 1], [930, 20, 20, 30])
    wrong = np.repeat([False, True, False, True], [930, 20, 20, 30])
    order = np.random.default_rng(0).permutation(1000)
    assert auroc(suspicion, wrong) == pytest.approx(0.7894737, abs=1e-7)
    assert auroc(suspicion[order], wrong[order]) == auroc(suspicion, wrong)


def test_areas_without_both_kinds() -> None:
    assert math.isnan(auroc([0.1, 0.2], [False, False]))
    assert math.isnan(auroc([0.1, 0.2], [True, True]))
    assert math.isnan(aupr_error([0.1, 0.2], [False, False]))
    assert aupr_error([0.1, 0.2], [True, True]) == 1


def test_average_precision_of_the_reference_implementation() -> None:
    # Source: reference implementation of AUGRC, Traub et al. 2024; there the correct predictions are the positives.
    assert aupr_error(np.arange(-50, 50), np.arange(100) % 2 == 1) == pytest.approx(0.5293777484847491, abs=1e-12)


def test_average_precision_by_hand() -> None:
    # Thresholds 4, 3, 1: recall 1/3, 2/3, 1; precision 1/1, 2/3, 3/5. The tie of two at 3 is one step.
    assert aupr_error([4, 3, 3, 1, 1], [True, True, False, True, False]) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


# paired_bootstrap


def mean(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    del wrong
    return float(suspicion.mean())


def test_no_difference_between_equal_methods() -> None:
    random = np.random.default_rng(0)
    scores, wrong = random.random(200), random.random(200) < 0.3
    found = paired_bootstrap(auroc, scores, scores.copy(), wrong, resamples=50)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_interval_of_a_mean_is_that_of_normal_theory() -> None:
    random = np.random.default_rng(1)
    second = random.normal(0, 5, 2000)
    first = second + random.normal(0.5, 1, 2000)
    found = paired_bootstrap(mean, first, second, np.zeros(2000, bool), resamples=2000)
    difference = first - second
    half = 1.959964 * difference.std() / math.sqrt(2000)
    assert found.value == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=half / 8)
    # Two separate samples would have to live with the spread that both methods have in common.
    draws = [random.choice(first, 2000).mean() - random.choice(second, 2000).mean() for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.high - found.low < (high - low) / 3


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(100):
        second = random.normal(0, 1, 80)
        first = second + random.normal(0.3, 0.5, 80)
        found = paired_bootstrap(mean, first, second, np.zeros(80, bool), resamples=200, confidence=0.8, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 68 <= covered <= 91  # 80 of 100, within three standard deviations


def test_the_interval_follows_the_seed() -> None:
    random = np.random.default_rng(3)
    first, second, wrong = random.random(50), random.random(50), random.random(50) < 0.3
    found = paired_bootstrap(auroc, first, second, wrong, resamples=100, seed=5)
    assert found == paired_bootstrap(auroc, first, second, wrong, resamples=100, seed=5)
    assert found != paired_bootstrap(auroc, first, second, wrong, resamples=100, seed=6)
    assert found.value == pytest.approx(roc_auc_score(wrong, first) - roc_auc_score(wrong, second))


def test_resamples_without_an_error_are_left_out() -> None:
    wrong = np.arange(6) == 0
    found = paired_bootstrap(auroc, np.arange(6)[::-1], np.arange(6), wrong, resamples=200)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    found = paired_bootstrap(auroc, [1, 2], [2, 1], [False, False], resamples=20)
    assert math.isnan(found.low)
    assert math.isnan(found.value)


def test_bootstrap_shapes_must_agree() -> None:
    with pytest.raises(ArgumentError, match=r"wrong: expected the same shape"):
        paired_bootstrap(auroc, [1, 2], [1], [True, False])
