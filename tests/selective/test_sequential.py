"""Evidence at any time: its value by definition, martingales by enumeration, false alarms and delay by simulation."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from petm.selective import sequential
from petm.selective.drift import SuspicionProfile, log_drift, suspicion_profile
from petm.selective.monitoring import LabelledCounts, exact_share
from petm.selective.sequential import (
    log_evidence,
    log_violation,
    over_beginnings,
    sequential_difference,
    sequential_share,
)
from petm.selective.thresholds import Threshold

RISK = Threshold(0.3, "guaranteed risk", 0.9, max_risk=0.05, confidence=0.95, risk=0.02)


def bets(count, of, limit, sign):
    """A bettor's wealth, trial by trial, as the likelihood ratio of shares with the odds that each bet says."""
    wealth = 0.0
    for bet, weight in zip(sequential._BETS, np.exp(sequential._LOG_WEIGHTS), strict=True):
        odds = limit / (1 - limit) * math.exp(sign * bet)
        other, one = odds / (1 + odds), weight
        for trial in range(of):
            one *= other / limit if trial < count else (1 - other) / (1 - limit)
        wealth += one
    return wealth


@pytest.mark.parametrize(("count", "of", "limit"), [(0, 0, 0.1), (0, 30, 0.1), (3, 7, 0.2), (9, 40, 0.05), (5, 5, 0.5)])
@pytest.mark.parametrize("sign", [1, -1])
def test_evidence_is_a_mixture_of_likelihood_ratios(count, of, limit, sign):
    found = math.exp(log_evidence(count, of, limit, above=sign > 0))
    assert found == pytest.approx(bets(count, of, limit, sign), rel=1e-9)


def expected(values, chances):
    """The mean over all outcomes of trials with these chances."""
    return sum(
        values(outcome) * math.prod(p if hit else 1 - p for hit, p in zip(outcome, chances, strict=True))
        for outcome in product((0, 1), repeat=len(chances))
    )


@pytest.mark.parametrize("chances", [[0.2] * 6, [0.4, 0.0, 0.3, 0.1, 0.0, 0.4], [0.1] * 6])
def test_the_mean_of_evidence_is_at_most_1_where_the_mean_chance_is_within_the_limit(chances):
    """Exactly, over all outcomes: also where single chances exceed it."""
    mean = expected(lambda x: math.exp(log_evidence(sum(x), 6, 0.2, above=True)), chances)
    assert mean <= 1 + 1e-12
    flipped = [1 - p for p in chances]
    assert expected(lambda x: math.exp(log_evidence(sum(x), 6, 0.8, above=False)), flipped) <= 1 + 1e-12
    if set(chances) == {0.2}:
        assert mean == pytest.approx(1)


def test_the_evidence_of_several_beginnings_is_a_martingale_too():
    chances, steps = [0.2] * 6, [(0, 1), (1, 3), (3, 6)]
    mean = expected(lambda x: math.exp(log_violation([(sum(x[a:b]), b - a) for a, b in steps], 0.2)[0]), chances)
    assert mean == pytest.approx(1)
    assert over_beginnings([]) == (0.0, 0)
    assert over_beginnings([0.0] * 7)[0] == pytest.approx(0), "what nobody has won is what was paid"


@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95, 0.999]))
def test_the_interval_is_where_the_evidence_stays_below_its_level(of, data, confidence):
    count = data.draw(st.integers(0, of))
    found = sequential_share(count, of, confidence=confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    exact = exact_share(count, of, confidence=confidence)
    assert found.low <= exact.low + 1e-9
    assert found.high >= exact.high - 1e-9, "all looks cost more than one"
    level = math.log(2 / (1 - confidence))
    if count and found.low > 1e-9:  # the greatest bet bounds what one trial can say
        assert log_evidence(count, of, found.low, above=True) == pytest.approx(level - math.log(0.8), abs=1e-6)
    if count < of and found.high < 1 - 1e-9:
        assert log_evidence(count, of, found.high, above=False) == pytest.approx(level, abs=1e-6)


def test_without_a_trial_nothing_is_known():
    assert (sequential_share(0, 0).low, sequential_share(0, 0).high) == (0, 1)
    assert (sequential_difference((0, 0), (1, 5)).low, sequential_difference((0, 0), (1, 5)).high) == (-1, 1)


def test_false_alarms_of_200_looks_with_the_risk_at_the_limit():
    """300 streams; the script has 2,000. One look after the other at 95 % would alarm in a quarter of them."""
    random, limit = np.random.default_rng(0), 0.05
    counts = random.binomial(25, limit, (300, 200)).cumsum(1)
    of = 25 * np.arange(1, 201)
    allowed = binom.ppf(0.9999, 300, 0.025) / 300
    for above in (True, False):
        assert (log_evidence(counts, of, limit, above=above) >= math.log(40)).any(1).mean() <= allowed
    assert (binom.sf(counts - 1, of, limit) <= 0.025).any(1).mean() > 2 * allowed, "the test can tell"


def test_a_doubled_risk_is_seen_within_one_and_a_half_times_the_exact_test():
    limit, level = 0.05, 0.025
    size = next(n for n in range(50, 1000) if binom.sf(binom.isf(level, n, limit), n, 2 * limit) >= 0.8)
    wrong = np.random.default_rng(0).random((400, 8 * size)) < 2 * limit
    at = np.arange(4, 8 * size, 5)
    seen = math.log(0.8) + log_evidence(wrong.cumsum(1)[:, at], at + 1, limit, above=True) >= -math.log(level)
    assert seen.any(1).all()
    assert at[seen.argmax(1)].mean() + 1 <= 1.5 * size


def test_a_late_rise_is_seen_and_placed():
    good, bad = [(1, 100)] * 60, [(12, 100)] * 4
    assert sum(k for k, _ in good + bad) / 6400 < 0.02
    found, since = log_violation(good + bad, 0.05)
    assert (found > math.log(40), since) == (True, 60)
    assert log_evidence(108, 6400, 0.05, above=True) < 0, "all trials together say nothing"


def test_the_difference_covers_the_true_one_and_finds_a_rise():
    random, missed = np.random.default_rng(1), 0
    for _ in range(40):
        before, after = random.binomial(400, 0.02), random.binomial(300, 0.05)
        found = sequential_difference((before, 400), (after, 300), confidence=0.9)
        assert found.low <= found.value <= found.high
        missed += not found.low <= 0.03 <= found.high
    assert missed <= binom.ppf(0.9999, 40, 0.1)
    assert sequential_difference((0, 400), (40, 400)).low > 0 > sequential_difference((40, 400), (0, 400)).high
    one, other = sequential_difference((5, 90), (17, 70)), sequential_difference((17, 70), (5, 90))
    assert one.low == pytest.approx(-other.high, abs=1e-3)


# in the check of a guarantee


def labelled(*blocks):
    counts = LabelledCounts(RISK)
    for block, (wrong, of) in enumerate(blocks):
        counts.add(np.ones(of, bool), np.arange(of) < wrong, block=block)
    return counts


def test_verdicts_at_any_time_follow_the_evidence():
    check = labelled((10, 100), (14, 100)).check(at_any_time=True)
    assert check.evidence == pytest.approx(math.exp(log_violation([(10, 100), (14, 100)], 0.05)[0]))
    assert (check.verdict, check.evidence > 40) == ("violated", True)
    assert labelled((88, 1000)).check().verdict == labelled((88, 1000)).check(at_any_time=True).verdict == "violated"
    assert labelled((9, 100)).check().evidence is None
    few = labelled((0, 72))
    assert (few.check().verdict, few.check(at_any_time=True).verdict) == ("holds", "cannot tell")
    needed = few.check(at_any_time=True).samples_needed
    assert labelled((0, needed)).check(at_any_time=True).verdict == "holds"
    assert labelled((0, int(0.97 * needed))).check(at_any_time=True).verdict == "cannot tell"
    late = labelled(*[(1, 100)] * 60, *[(12, 100)] * 4).check(at_any_time=True)
    assert (late.verdict, late.since) == ("violated", 60)
    assert late.found.high < 0.05, "the mean of all is within the limit"


def test_chances_may_differ_between_blocks_and_are_thinned_within_one():
    counts = LabelledCounts(RISK)
    counts.add(np.ones(100, bool), np.zeros(100, bool), chance=np.full(100, 0.5))
    counts.add(np.ones(100, bool), np.zeros(100, bool), chance=np.full(100, 0.1), block=1)
    assert counts.check(at_any_time=True).found.of == 200
    coins = np.linspace(0, 0.99, 100)
    counts.add(np.ones(100, bool), np.zeros(100, bool), chance=np.full(100, 0.2), coins=coins, block=1)
    assert counts.check().found.of == 250, "half of what had twice the least chance, by its coins"


# drift


def profile(random, samples=2000):
    return SuspicionProfile.from_measured(suspicion_profile(random.random(samples)))


def test_evidence_of_drift_is_a_martingale():
    """Exactly: the mean over all ways in which three samples fall into the bins is 1, in one block or in three."""
    small = SuspicionProfile(np.array([0.3, 0.6]), np.array([2, 5]))
    spacings = np.array([2, 3, 1])
    for split in ([3], [1, 2], [1, 1, 1]):
        mean = 0.0
        for bins in product(range(3), repeat=3):
            held, chance = spacings.astype(float), 1.0
            for one in bins:
                chance *= held[one] / held.sum()
                held[one] += 1
            ends = np.cumsum(split)
            blocks = [np.bincount(bins[end - size : end], minlength=3) for size, end in zip(split, ends, strict=True)]
            mean += chance * math.exp(log_drift(small, blocks)[0])
        assert mean == pytest.approx(1)


def test_no_drift_gives_no_alarm_over_looks_and_a_shift_does():
    random, alarms, found = np.random.default_rng(0), 0, 0
    for _ in range(60):
        calibrated = profile(random, 300)
        counts = np.array([calibrated.counts(random.random(40)) for _ in range(60)])
        alarms += any(log_drift(calibrated, counts[:end])[0] >= math.log(20) for end in (1, 2, 5, 10, 20, 40, 60))
        shifted = calibrated.counts(random.random(300) ** 0.6)
        found += log_drift(calibrated, [shifted])[0] >= math.log(100)
    assert alarms <= binom.ppf(0.9999, 60, 0.05)
    assert found >= 50
    calibrated = profile(random)
    blocks = [calibrated.counts(random.random(100)) for _ in range(30)]
    blocks += [calibrated.counts(random.random(100) ** 0.4) for _ in range(3)]
    evidence, since = log_drift(calibrated, blocks)
    assert (evidence > math.log(100), since) == (True, 30)
