import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from petm._internal.records import Record
from petm.errors import ArgumentError
from petm.selective.thresholds import (
    BEARABLE_ERRORS,
    DISAGREEMENT,
    FIRST_COVERAGE,
    Threshold,
    class_thresholds,
    coverage_threshold,
    recall_threshold,
    risk_threshold,
)


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


def slow_reference(suspicion: np.ndarray, wrong: np.ndarray, max_risk: float, confidence: float) -> float:
    """The rule for a suspicion without ties, word by word, with sums of binomial terms."""

    def p_value(failures: int, count: int) -> float:
        return sum(math.comb(count, k) * max_risk**k * (1 - max_risk) ** (count - k) for k in range(failures + 1))

    def first_count(failures: int) -> int:
        return next(m for m in range(failures + 1, 10**6) if p_value(failures, m) <= 1 - confidence)

    pairs = sorted(zip(suspicion.tolist(), wrong.tolist(), strict=True))
    start = max(first_count(0), min(first_count(BEARABLE_ERRORS), math.ceil(FIRST_COVERAGE * len(pairs))))
    value = -math.inf
    for count in range(start, len(pairs) + 1):
        if p_value(sum(error for _, error in pairs[:count]), count) > 1 - confidence:
            break
        value = pairs[count][0] if count < len(pairs) else math.inf
    return value


def most_broken(draws: int, allowed: float) -> int:
    """So many broken guarantees, or fewer, in all but one of 10,000 runs of a test whose guarantee is good."""
    return int(binom.ppf(0.9999, draws, allowed))


# risk_threshold: the guarantee


@pytest.mark.slow
@pytest.mark.parametrize("levels", [None, 20])
def test_the_guarantee_has_its_confidence(levels: int | None) -> None:
    random, draws, confidence, max_risk = np.random.default_rng(0), 1000, 0.8, 0.05
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
    assert broken <= most_broken(draws, 1 - confidence)
    # t³/4 is 0.05 at t = 0.58, the greatest threshold allowed; a bound over ten coverages reaches 0.45 here.
    assert np.mean(coverage) > 0.45
    if levels is None:
        assert naive_broken > most_broken(draws, 1 - confidence), "or else this test shows nothing"
        assert broken > draws * (1 - confidence) / 4, "or else more could be trusted"


def test_the_guarantee_holds_where_the_risk_rises_and_falls() -> None:
    # Risk by tenths of the samples: too great up to 0.1, fine from 0.25, too great again from 0.5, fine from 0.7.
    rates = np.array([0.08, 0, 0.02, 0.08, 0.12, 0.0, 0.0, 0.02, 0.0, 0.0])
    edges = np.linspace(0, 1, 11)

    def risk(t: float) -> float:
        t = min(max(t, 1e-12), 1.0)
        return float((rates * np.clip(t - edges[:-1], 0, 0.1)).sum() / t)

    max_risk, confidence, draws = 0.05, 0.8, 1000
    assert max_risk < min(risk(0.05), risk(0.55))
    assert max_risk > max(risk(0.25), risk(1.0))
    random = np.random.default_rng(1)
    broken = trusting = 0
    for _ in range(draws):
        suspicion = random.random(500)
        wrong = random.random(500) < rates[(suspicion * 10).astype(int)]
        threshold = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=confidence)
        trusting += threshold.holds
        broken += threshold.holds and risk(threshold.value) > max_risk
    assert broken <= most_broken(draws, 1 - confidence)
    assert trusting > draws / 5


def test_the_guarantee_is_not_needlessly_strict() -> None:
    # Right up to 0.95 and wrong from there: beyond 0.95/0.96 the risk exceeds 0.04, and the errors below that, of n
    # samples, are binomial. The guarantee is broken where they are so few as to pass: about as often as it may be.
    random, draws, allowed = np.random.default_rng(2), 2000, 0.1
    counts = np.arange(900, 1001)
    few = np.array([binom.cdf(k - 1, n, 0.04) for k, n in zip(binom.ppf(allowed, counts, 0.04), counts, strict=True)])
    expected = float((binom.pmf(counts, 1000, 0.95 / 0.96) * few).sum())
    assert allowed / 2 < expected <= allowed
    broken = 0
    for _ in range(draws):
        suspicion = random.random(1000)
        value = risk_threshold(suspicion, suspicion >= 0.95, max_risk=0.04, confidence=1 - allowed).value
        broken += value > 0.95 / 0.96
    assert binom.ppf(0.0001, draws, expected) <= broken <= most_broken(draws, expected)


@st.composite
def calibrations(draw: st.DrawFn, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion, without ties or on a few levels, and errors: all, none, or most of them where suspicion is high."""
    samples = draw(st.integers(20, 400))
    suspicion, wrong = population(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), samples, levels=levels)
    return suspicion, wrong & draw(st.booleans()) | (suspicion >= draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])))


risks, confidences = st.sampled_from([0.05, 0.1, 0.25, 0.6]), st.floats(0.5, 0.99)


@given(calibrations(), risks, confidences)
def test_against_a_slow_reference(
    calibration: tuple[np.ndarray, np.ndarray], max_risk: float, confidence: float
) -> None:
    suspicion, wrong = calibration
    expected = slow_reference(suspicion, wrong, max_risk, confidence)
    found = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=confidence)
    assert found.value == expected
    assert found.coverage == (suspicion < expected).mean()
    assert found.holds is (expected > -math.inf)


@given(calibrations(levels=7), risks, confidences)
def test_what_is_guaranteed_passes_its_test_on_the_calibration_set(
    calibration: tuple[np.ndarray, np.ndarray], rate: float, confidence: float
) -> None:
    suspicion, wrong = calibration
    found = risk_threshold(suspicion, wrong, max_risk=rate, confidence=confidence)
    trusted = found.trusts(suspicion)
    assert found.holds == trusted.any()
    if found.holds:
        assert binom.cdf(wrong[trusted].sum(), trusted.sum(), rate) <= 1 - confidence + 1e-12
        assert (found.coverage, found.risk) == (trusted.mean(), wrong[trusted].mean())
    if wrong.any():
        flagging = recall_threshold(suspicion, wrong, recall=1 - rate, confidence=confidence)
        missed = wrong & flagging.trusts(suspicion)
        if flagging.holds:
            assert binom.cdf(missed.sum(), wrong.sum(), rate) <= 1 - confidence + 1e-12


@given(calibrations(levels=20), st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_more_is_trusted_where_less_is_asked(
    calibration: tuple[np.ndarray, np.ndarray], shares: list[float], chance: random.Random
) -> None:
    suspicion, wrong = calibration
    order = np.array(chance.sample(range(len(wrong)), len(wrong)))
    wrong[0] = True
    covered = [coverage_threshold(suspicion, share) for share in sorted(shares)]
    flagging = [recall_threshold(suspicion, wrong, recall=share) for share in sorted(shares, reverse=True)]
    sure = [recall_threshold(suspicion, wrong, recall=0.7, confidence=1 - share / 2) for share in sorted(shares)]
    for thresholds in (covered, flagging, sure):
        assert sorted(found.value for found in thresholds) == [found.value for found in thresholds]
    for share, found in zip(sorted(shares), covered, strict=True):
        assert found.trusts(suspicion).mean() == found.coverage >= share
        assert coverage_threshold(suspicion[order], share) == found
    for share, found in zip(sorted(shares, reverse=True), flagging, strict=True):
        assert (wrong & ~found.trusts(suspicion)).sum() >= share * wrong.sum() - 1e-9
        assert recall_threshold(suspicion[order], wrong[order], recall=share) == found


# risk_threshold: by hand


def test_no_error_at_all_by_hand() -> None:
    threshold = risk_threshold(np.arange(100.0), np.zeros(100, bool), max_risk=0.06)
    assert threshold == Threshold(math.inf, "guaranteed risk", 1.0, 0.06, 0.95, risk=0.0)
    assert threshold.holds
    assert threshold.remedy == ""


def test_it_ends_before_the_first_count_that_fails() -> None:
    # 0.95^59 = 0.0485: 59 without an error will do for 5 %, and with an error at the 71st it takes 93 in all.
    # The tests begin at 59, pass up to 70, and fail at 71.
    suspicion = np.random.default_rng(0).permutation(100).astype(float)
    threshold = risk_threshold(suspicion, suspicion == 70, max_risk=0.05)
    assert (threshold.value, threshold.coverage, threshold.risk) == (70, 0.7, 0)
    assert binom.cdf(1, 92, 0.05) > 0.05 >= binom.cdf(1, 93, 0.05)
    later = risk_threshold(suspicion, suspicion == 93, max_risk=0.05)
    assert (later.value, later.coverage, later.risk) == (math.inf, 1, 0.01)


def test_early_errors_are_borne_where_there_are_enough_samples() -> None:
    # 1,000 samples: 0.3 of them are 300, and 12 errors would need 1,942, so the tests begin at 300. There
    # P(Bin(300, 0.02) <= 1) = 0.0166, so an error among the very first does no harm. At 100 it would have.
    suspicion = np.arange(1000.0)
    assert risk_threshold(suspicion, suspicion == 0, max_risk=0.02).value == math.inf
    assert binom.cdf(1, 300, 0.02) < 0.05 < binom.cdf(1, 150, 0.02)
    assert not risk_threshold(suspicion[:299], suspicion[:299] == 0, max_risk=0.01).holds


def test_equal_suspicion_is_trusted_together_or_not_at_all() -> None:
    suspicion = np.repeat([0.0, 1.0], [600, 400])
    threshold = risk_threshold(suspicion, suspicion == 1, max_risk=0.02)
    assert (suspicion < threshold.value).sum() == 600
    assert threshold.coverage == 0.6
    all_equal = risk_threshold(np.zeros(1000), np.zeros(1000, bool), max_risk=0.02)
    assert (all_equal.value, all_equal.coverage) == (math.inf, 1.0)


def test_the_order_of_equal_samples_does_not_matter() -> None:
    # Sorted by label, as folders of classes are: read in that order, 40 errors would stand in front of the first test.
    wrong = np.arange(1000) < 40
    for labels in (wrong, wrong[::-1]):
        found = risk_threshold(np.zeros(1000), labels, max_risk=0.08)
        assert (found.value, found.risk) == (math.inf, 0.04)


def test_without_a_guarantee_nothing_is_trusted() -> None:
    suspicion = np.arange(50.0)
    threshold = risk_threshold(suspicion, np.ones(50, bool), max_risk=0.01)
    assert threshold == Threshold(-math.inf, "guaranteed risk", 0.0, 0.01, 0.95)
    assert not threshold.trusts(suspicion).any()
    assert not threshold.holds
    assert threshold.remedy == ("At the error rates seen no number of calibration samples would do: allow more errors.")


# How many samples it takes


@pytest.mark.parametrize(("max_risk", "confidence"), [(0.01, 0.95), (0.05, 0.99), (0.2, 0.5)])
def test_the_least_number_that_can_do(max_risk: float, confidence: float) -> None:
    needed = next(n for n in range(1, 10_000) if (1 - max_risk) ** n <= 1 - confidence)
    for samples, holds in ((needed - 1, False), (needed, True)):
        found = risk_threshold(np.arange(samples), np.zeros(samples, bool), max_risk=max_risk, confidence=confidence)
        assert found.holds is holds
    one = risk_threshold(np.zeros(1), np.zeros(1, bool), max_risk=max_risk, confidence=confidence)
    assert one.samples_needed == (None if needed == 1 else needed)


def test_half_of_them_take_twice_as_many() -> None:
    needed = next(n for n in range(1, 10_000) if 0.99**n <= 0.05)
    half = risk_threshold(np.arange(100), np.arange(100) >= 50, max_risk=0.01)
    assert half.samples_needed is not None
    assert 2 * needed <= half.samples_needed <= 2.02 * needed
    assert half.remedy == (
        f"About {half.samples_needed} calibration samples would do at the error rates seen: add some, or ask less."
    )


def test_no_number_will_do_where_the_least_suspect_err_too_often() -> None:
    wrong = np.arange(200) % 8 == 7
    assert risk_threshold(np.arange(200), wrong, max_risk=0.02).samples_needed is None


@pytest.mark.parametrize("rate", [0.0, 0.005])
def test_the_proposed_number_of_samples_is_about_enough(rate: float) -> None:
    # The less suspect half errs at this rate and the other half always; 400 samples have seen just that.
    suspicion = (np.arange(400) + 0.5) / 400
    wrong = (suspicion > 0.5) | (np.arange(400) == 100) * (rate > 0)
    nothing = risk_threshold(suspicion, wrong, max_risk=0.02, confidence=0.99)
    assert nothing.samples_needed is not None
    random = np.random.default_rng(3)

    def share_that_hold(samples: int) -> float:
        found = 0
        for _ in range(100):
            scores = random.random(samples)
            errors = random.random(samples) < np.where(scores > 0.5, 1, rate)
            found += risk_threshold(scores, errors, max_risk=0.02, confidence=0.99).holds
        return found / 100

    assert share_that_hold(2 * nothing.samples_needed) > 0.6
    assert share_that_hold(nothing.samples_needed // 3) < 0.4


def test_more_samples_are_needed_than_there_are() -> None:
    # 40 without an error and then one: the tests begin at 59 and fail there, though they would have passed at 93.
    suspicion = np.arange(160.0)
    nothing = risk_threshold(suspicion, (suspicion == 40) | (suspicion >= 120), max_risk=0.05)
    assert not nothing.holds
    assert nothing.samples_needed is not None
    assert nothing.samples_needed > 160


# class_thresholds


def test_each_class_has_its_own_threshold() -> None:
    suspicion = np.tile(np.arange(200.0), 2)
    predicted = np.repeat([0, 1], 200)
    wrong = (predicted == 1) & (suspicion >= 150)
    whole = class_thresholds(suspicion, wrong, predicted, classes=2, max_risk=0.05, confidence=0.9)
    # At 0.05 for each: 0.95^150 is far below, and five errors at 155 give P(Bin(155, 0.05) <= 5) = 0.24.
    last = next(m for m in range(150, 200) if binom.cdf(m - 150, m, 0.05) > 0.05) - 1
    assert whole.values == (math.inf, float(last))
    first, second = whole.classes
    assert (first.coverage, second.coverage) == (1.0, last / 200)
    assert (first.risk, second.risk) == (0, (last - 150) / last)
    assert (second.max_risk, second.confidence, second.rule) == (0.05, 0.9, "guaranteed risk")
    assert whole.holds
    assert (whole.value, whole.rule, whole.max_risk, whole.confidence) == (
        math.inf, "guaranteed risk in each class", 0.05, 0.9,
    )  # fmt: skip
    assert whole.coverage == (200 + last) / 400
    assert whole.risk == (last - 150) / (200 + last)
    assert whole.trusts([1e9, 0.0, last, last - 0.5], [0, 1, 1, 1]).tolist() == [True, True, False, True]


def test_a_class_is_calibrated_as_alone_at_its_part_of_the_level() -> None:
    random = np.random.default_rng(4)
    suspicion, wrong = population(random, 1500)
    predicted = random.integers(0, 3, 1500)
    whole = class_thresholds(suspicion, wrong, predicted, classes=3, max_risk=0.1, confidence=0.85)
    for label, part in enumerate(whole.classes):
        rows = predicted == label
        assert part.value == risk_threshold(suspicion[rows], wrong[rows], max_risk=0.1, confidence=0.95).value


def test_nothing_of_a_class_without_a_guarantee_is_trusted() -> None:
    # Class 1 has 40 samples of 440, too few for 0.95^n <= 0.025; class 2 was never predicted.
    suspicion = np.concatenate([np.arange(400.0), np.arange(40.0)])
    predicted = np.repeat([0, 1], [400, 40])
    needed = next(n for n in range(1, 1000) if 0.95**n <= 0.025)
    whole = class_thresholds(suspicion, suspicion < 0, predicted, classes=2, max_risk=0.05)
    assert [part.holds for part in whole.classes] == [True, False]
    assert not whole.holds
    assert whole.samples_needed == whole.classes[1].samples_needed == math.ceil(needed * 440 / 40)
    assert whole.remedy.startswith(f"About {whole.samples_needed} calibration samples would do")
    assert whole.trusts([-5.0, -5.0], [0, 1]).tolist() == [True, False]
    absent = class_thresholds(suspicion, suspicion < 0, predicted, classes=3, max_risk=0.05)
    assert absent.classes[2] == Threshold(-math.inf, "guaranteed risk", 0.0, 0.05, 0.95)
    assert absent.samples_needed is None
    nothing = class_thresholds([0.0], [True], [0], classes=1, max_risk=0.05)
    assert (nothing.value, nothing.coverage, nothing.risk) == (-math.inf, 0, None)


@pytest.mark.slow
def test_the_guarantee_holds_in_all_classes_at_once() -> None:
    random, draws, confidence, classes = np.random.default_rng(5), 300, 0.8, 5
    broken = uncorrected = 0
    for _ in range(draws):
        suspicion, wrong = population(random, 1500)
        predicted = random.integers(0, classes, 1500)
        whole = class_thresholds(suspicion, wrong, predicted, classes=classes, max_risk=0.05, confidence=confidence)
        broken += max(map(true_risk, whole.values)) > 0.05
        alone = (
            risk_threshold(suspicion[rows], wrong[rows], max_risk=0.05, confidence=confidence).value
            for rows in (predicted == label for label in range(classes))
        )
        uncorrected += max(map(true_risk, alone)) > 0.05
    assert broken <= most_broken(draws, 1 - confidence)
    assert uncorrected > most_broken(draws, 1 - confidence), "or else this test shows nothing"


# coverage_threshold


def test_coverage_by_hand() -> None:
    suspicion = np.random.default_rng(0).permutation(10).astype(float)
    assert coverage_threshold(suspicion, 0.3) == Threshold(3.0, "coverage", 0.3)
    assert coverage_threshold(suspicion, 0.31).value == 4
    assert coverage_threshold(suspicion, 1.0) == Threshold(math.inf, "coverage", 1.0)
    assert coverage_threshold(suspicion, 1e-9).value == 1
    assert coverage_threshold([2.0, 1.0, 1.0, 1.0], 0.1) == Threshold(2.0, "coverage", 0.75)
    assert coverage_threshold([1.0, 1.0], 0.5) == Threshold(math.inf, "coverage", 1.0)


def test_coverage_is_met_exactly_where_it_can_be() -> None:
    for share in (k / 100 for k in range(1, 101)):
        assert coverage_threshold(np.arange(100), share).coverage == share


# recall_threshold


def test_recall_by_hand() -> None:
    suspicion = np.arange(20.0)
    wrong = np.isin(suspicion, [3, 7, 11, 15, 19])
    found = recall_threshold(suspicion, wrong, recall=0.8)
    assert found == Threshold(7.0, "recall", 7 / 20, risk=1 / 7, recall=0.8)
    for recall, value in ((1.0, 3), (0.81, 3), (0.79, 7), (0.6, 11), (0.2, 19), (0.01, 19)):
        threshold = recall_threshold(suspicion, wrong, recall=recall)
        assert threshold.value == value
        assert (~threshold.trusts(suspicion) & wrong).sum() >= recall * 5
    assert recall_threshold([0.0, 1.0], [True, False], recall=0.5).risk is None


def test_recall_flags_ties_together() -> None:
    found = recall_threshold([0.0, 1.0, 1.0, 1.0], [False, True, True, True], recall=0.4)
    assert (found.value, found.coverage) == (1.0, 0.25)


def test_guaranteed_recall_by_hand() -> None:
    # Of 100 errors at recall 0.9 and 95 %: P(Bin(100, 0.1) <= 4) = 0.024, and up to 5 it is 0.058. Four are missed.
    suspicion = np.arange(1000.0)
    wrong = suspicion % 10 == 0
    assert binom.cdf(4, 100, 0.1) <= 0.05 < binom.cdf(5, 100, 0.1)
    found = recall_threshold(suspicion, wrong, recall=0.9, confidence=0.95)
    assert found == Threshold(40.0, "guaranteed recall", 0.04, None, 0.95, risk=0.1, recall=0.9)


def test_guaranteed_recall_takes_errors() -> None:
    needed = next(n for n in range(1, 100) if 0.9**n <= 0.05)
    for errors, holds in ((needed - 1, False), (needed, True)):
        wrong = np.arange(200) < errors
        found = recall_threshold(np.arange(200.0), wrong, recall=0.9, confidence=0.95)
        assert found.holds is holds
        assert found.samples_needed == (None if holds else math.ceil(needed * 200 / errors))
        assert (found.value == -math.inf) is not holds


def test_a_guaranteed_recall_has_its_confidence() -> None:
    # Of the errors of `population`, a share t⁴ lies below t.
    random, draws = np.random.default_rng(6), 1000
    broken = plain = 0
    for _ in range(draws):
        suspicion, wrong = population(random, 400)
        broken += recall_threshold(suspicion, wrong, recall=0.9, confidence=0.8).value ** 4 > 0.1
        plain += recall_threshold(suspicion, wrong, recall=0.9).value ** 4 > 0.1
    assert draws * 0.1 < broken <= most_broken(draws, 0.2)
    assert plain > most_broken(draws, 0.2), "without a confidence nothing is guaranteed"


# Threshold


def test_disagreement_trusts_zero_and_suspects_all_above() -> None:
    suspicion = np.array([-1.0, -1e-300, -0.0, 0.0, np.nextafter(0.0, 1.0), 1e-18, 1.0])
    assert DISAGREEMENT.trusts(suspicion).tolist() == [True, True, True, True, False, False, False]
    assert DISAGREEMENT.holds
    assert DISAGREEMENT.max_risk is None


def test_holds_where_something_is_trusted() -> None:
    assert Threshold(0.0, "by hand").holds
    assert Threshold(math.inf, "by hand").holds
    assert not Threshold(-math.inf, "by hand").holds
    parts = (Threshold(1.0, "a"), Threshold(-math.inf, "b"))
    assert not Threshold(1.0, "by hand", classes=parts).holds
    assert Threshold(1.0, "by hand", classes=parts[:1]).holds
    assert Threshold(1.0, "by hand", classes=parts).values == (1.0, -math.inf)
    assert Threshold(1.0, "by hand").values == (1.0,)


def test_nan_is_not_trusted() -> None:
    assert Threshold(math.inf, "all").trusts([math.nan, 0.0]).tolist() == [False, True]


def test_tensors_will_do() -> None:
    suspicion, wrong = torch.arange(100.0), torch.arange(100) == 80
    assert risk_threshold(suspicion, wrong, max_risk=0.05) == risk_threshold(
        suspicion.numpy(), wrong.numpy(), max_risk=0.05
    )
    parts = class_thresholds(suspicion, wrong, torch.zeros(100, dtype=torch.int64), classes=1, max_risk=0.05)
    assert parts.trusts(suspicion, torch.zeros(100, dtype=torch.int32)).sum() == 80
    assert coverage_threshold(suspicion, 0.5).value == 50
    assert recall_threshold(suspicion, wrong, recall=1.0).value == 80


@pytest.mark.parametrize(
    "threshold",
    [
        DISAGREEMENT,
        risk_threshold(np.arange(100.0), np.zeros(100, bool), max_risk=0.05),
        risk_threshold([0.1], [True], max_risk=0.05),
        recall_threshold(np.arange(50.0), np.arange(50) > 10, recall=0.9, confidence=0.9),
        class_thresholds(np.arange(100) / 3, np.zeros(100, bool), np.arange(100) // 90, classes=2, max_risk=0.05),
    ],
)
def test_json_gives_the_same_threshold_back(threshold: Threshold) -> None:
    assert Threshold.from_json(Record(json.loads(json.dumps(threshold.as_json(), allow_nan=False)), "f")) == threshold
    assert Threshold(**{**asdict(threshold), "classes": threshold.classes}) == threshold


def test_json_of_a_version_without_classes() -> None:
    assert Threshold.from_json(Record({"value": "-inf", "rule": "by hand"}, "f")) == Threshold(-math.inf, "by hand")


# What is refused


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_levels_outside_their_rule(value: float) -> None:
    for name in ("max_risk", "confidence"):
        arguments = {"max_risk": 0.1, "confidence": 0.9, name: value}
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            risk_threshold([0.0], [False], **arguments)
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            class_thresholds([0.0], [False], [0], classes=1, **arguments)
    for name in ("recall", "confidence"):
        arguments = {"recall": 0.5, "confidence": 0.9, name: value}
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            recall_threshold([0.0], [True], **arguments)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan])
def test_shares_outside_their_rule(value: float) -> None:
    with pytest.raises(ArgumentError, match=r"^coverage:"):
        coverage_threshold([0.0], value)
    with pytest.raises(ArgumentError, match=r"^recall:"):
        recall_threshold([0.0], [True], recall=value)


@pytest.mark.parametrize(("suspicion", "wrong"), [([], []), ([0.1], [True, False]), ([[0.1]], [[True]])])
def test_shapes_outside_their_rule(suspicion: list[float], wrong: list[bool]) -> None:
    with pytest.raises(ArgumentError, match=r"^suspicion:"):
        risk_threshold(suspicion, wrong, max_risk=0.1)
    with pytest.raises(ArgumentError, match=r"^suspicion:"):
        class_thresholds(suspicion, wrong, [0], classes=1, max_risk=0.1)
    with pytest.raises(ArgumentError, match=r"^suspicion:"):
        recall_threshold(suspicion, wrong, recall=0.5)


def test_coverage_needs_one_row() -> None:
    for suspicion in ([], [[0.1]]):
        with pytest.raises(ArgumentError, match=r"^suspicion:"):
            coverage_threshold(suspicion, 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_suspicion_must_be_finite(value: float) -> None:
    message = "^suspicion:"
    with pytest.raises(ArgumentError, match=message):
        risk_threshold([0.0, value], [False, False], max_risk=0.1)
    with pytest.raises(ArgumentError, match=message):
        coverage_threshold([0.0, value], 0.5)


def test_recall_without_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        recall_threshold([0.0, 1.0], [False, False], recall=0.5)


def test_predictions_outside_their_rule() -> None:
    def fit(predicted: list[float]) -> Threshold:
        return class_thresholds([0.0, 1.0], [False, True], predicted, classes=2, max_risk=0.1)

    with pytest.raises(ArgumentError, match=r"^predicted:"):
        fit([0])
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        fit([0.0, 1.0])
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        fit([0, 2])
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        fit([-1, 1])
    parts = fit([0, 1])
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        parts.trusts([0.0])
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        parts.trusts([0.0], [5])
