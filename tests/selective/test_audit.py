"""Labels of unequal chances: exact guarantees on thinned samples, unbiased estimates by weights."""

import numpy as np
import pytest
from scipy.stats import binom

from petm.errors import ArgumentError
from petm.selective.audit import drawn, inverse_chances, thinned
from petm.selective.monitoring import LabelledCounts
from petm.selective.probability import fit_probability
from petm.selective.targets import Coverage, Disagreement, MaxRisk, Recall
from petm.selective.thresholds import (
    Threshold,
    class_thresholds,
    coverage_threshold,
    recall_threshold,
    risk_threshold,
)

OLD, AUDIT = 0.6, 0.05


def graded(random: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion uniform in [0, 1] and wrong with probability its cube, so that the risk below t is t³/4."""
    suspicion = random.random(samples)
    return suspicion, random.random(samples) < suspicion**3


def queue(random: np.random.Generator, samples: int, *, audit: float = AUDIT) -> tuple[np.ndarray, ...]:
    """The labels of a review queue: all suspects (from 0.6 on), and a random part of the trusted."""
    suspicion, wrong = graded(random, samples)
    chance = np.where(suspicion < OLD, audit, 1.0)
    drawn = random.random(samples) < chance
    return suspicion[drawn], wrong[drawn], chance[drawn]


@pytest.mark.parametrize("chance", [0.0, -0.1, 1.1, np.nan, np.inf])
def test_a_chance_outside_its_range_is_refused(chance):
    arrays = np.array([0.1, 0.2]), np.array([False, True])
    for call in (
        lambda given: risk_threshold(*arrays, max_risk=0.1, chance=given),
        lambda given: class_thresholds(*arrays, [0, 1], classes=2, max_risk=0.1, chance=given),
        lambda given: coverage_threshold(arrays[0], 0.5, chance=given),
        lambda given: recall_threshold(*arrays, recall=0.5, chance=given),
        lambda given: fit_probability(*arrays, chance=given),
        lambda given: LabelledCounts(Threshold(0.3, "x")).add(*arrays, chance=given),
    ):
        for given in ([1.0, chance], [1.0]):
            with pytest.raises(ArgumentError, match="chance"):
                call(given)


def test_equal_chances_change_nothing():
    suspicion, wrong = graded(np.random.default_rng(0), 2000)
    predicted = np.arange(2000) % 2
    for target in (MaxRisk(0.05), MaxRisk(0.1, per="class"), Recall(0.8), Recall(0.8, confidence=0.9), Coverage(0.7)):
        alone = target.threshold(suspicion, wrong, predicted, classes=2)
        assert alone.holds
        for chance in (1.0, 0.05):
            given = np.full(2000, chance)
            assert target.threshold(suspicion, wrong, predicted, classes=2, chance=given) == alone
            assert fit_probability(suspicion, wrong, chance=given) == fit_probability(suspicion, wrong)


def test_thinning_loses_no_sample_of_the_least_chance_and_keeps_others_in_proportion():
    chance = np.repeat([0.05, 0.1, 1.0], [100, 4000, 40_000])
    kept = thinned(inverse_chances(chance, len(chance)))
    assert kept[:100].all()
    assert kept[100:4100].mean() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    assert kept[4100:].mean() == pytest.approx(0.05, abs=4 * (0.05 / 40_000) ** 0.5)


@pytest.mark.parametrize("max_risk", [0.05, 0.1])  # below and above the old threshold
def test_the_guarantee_from_a_review_queue_has_its_confidence(max_risk):
    random, draws, broken, naive = np.random.default_rng(1), 300, 0, 0
    for _ in range(draws):
        suspicion, wrong, chance = queue(random, 12_000)
        found = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=0.8, chance=chance)
        broken += min(found.value, 1) ** 3 / 4 > max_risk
        # Without the chances the many suspects are taken for the rule, and far too little is trusted.
        naive += found.value > risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=0.8).value
    assert broken <= binom.ppf(0.9999, draws, 0.2)
    assert naive >= (0.9 * draws if max_risk > OLD**3 / 4 else 0)


def test_the_guarantee_in_each_class_thins_a_class_without_audited_rows_as_well():
    random = np.random.default_rng(2)
    suspicion, wrong, chance = queue(random, 20_000)
    predicted = (suspicion >= OLD).astype(int)  # class 1 has suspects alone, each with chance 1
    found = class_thresholds(suspicion, wrong, predicted, classes=2, max_risk=0.1, chance=chance)
    kept = thinned(inverse_chances(chance, len(chance)))
    alone = class_thresholds(suspicion[kept], wrong[kept], predicted[kept], classes=2, max_risk=0.1)
    assert found.values == alone.values


def test_estimates_of_a_review_queue_are_unbiased():
    random, rows = np.random.default_rng(3), []
    for _ in range(400):
        suspicion, wrong, chance = queue(random, 12_000)
        found = risk_threshold(suspicion, wrong, max_risk=0.24, confidence=0.5, chance=chance)
        cut = coverage_threshold(suspicion, 0.7, chance=chance)
        caught = recall_threshold(suspicion, wrong, recall=0.8, chance=chance)
        rows.append((found.coverage - min(found.value, 1), cut.value - 0.7, caught.value - 0.2**0.25))
    mean, error = np.mean(rows, 0), np.std(rows, 0) / len(rows) ** 0.5
    assert (np.abs(mean) < 4 * error + 0.002).all()


def test_a_guaranteed_recall_from_a_review_queue_has_its_confidence():
    random, draws, broken = np.random.default_rng(4), 300, 0
    for _ in range(draws):
        suspicion, wrong, chance = queue(random, 8000)
        found = recall_threshold(suspicion, wrong, recall=0.8, confidence=0.8, chance=chance)
        broken += max(found.value, 0) ** 4 > 0.2  # of the errors, t⁴ lie below t
    assert broken <= binom.ppf(0.9999, draws, 0.2)


def test_disagreement_has_the_weighted_coverage():
    found = Disagreement().threshold([-1.0, 1.0], [False, True], [0, 0], classes=2, chance=[0.25, 1.0])
    assert found.coverage == pytest.approx(0.8)


def test_the_probability_of_error_is_that_of_all_inputs():
    random = np.random.default_rng(5)
    suspicion, wrong = graded(random, 40_000)
    chance = np.where(wrong, 1.0, 0.1)  # the worst case: what is wrong is always labelled
    drawn = random.random(40_000) < chance
    found = fit_probability(suspicion[drawn], wrong[drawn], chance=chance[drawn])
    places = np.linspace(0.1, 0.9, 9)
    wanted = fit_probability(suspicion, wrong).probability(places)
    assert found.probability(places) == pytest.approx(wanted, abs=0.07)  # other curves may win
    assert np.abs(fit_probability(suspicion[drawn], wrong[drawn]).probability(places) - wanted).max() > 0.2


def test_monitoring_counts_thin_to_the_least_chance():
    threshold = Threshold(0.5, "guaranteed risk", max_risk=0.05, confidence=0.95)
    counts = LabelledCounts(threshold)
    counts.add(np.ones(1000, bool), np.arange(1000) < 20, chance=np.full(1000, 0.05))
    alone = counts.check()
    counts.add(np.zeros(500, bool), np.ones(500, bool), chance=np.ones(500))  # suspects say nothing of the trusted
    assert counts.check().found == alone.found
    assert (alone.found.count, alone.found.of, alone.verdict) == (20, 1000, "holds")
    counts.add(np.ones(20_000, bool), np.zeros(20_000, bool), chance=np.ones(20_000))  # what was labelled more often
    both = counts.check()
    assert both.labelled_trusted == 21_000
    assert both.found.of == pytest.approx(2000, abs=150)
    assert both.found.count == 20


def test_the_check_of_a_recall_from_a_review_queue_is_right():
    threshold = Threshold(OLD, "guaranteed recall", confidence=0.9, recall=0.8)
    random, draws, covered = np.random.default_rng(6), 300, 0
    for _ in range(draws):
        suspicion, wrong, chance = queue(random, 8000)
        found = LabelledCounts(threshold).add(suspicion < OLD, wrong, chance=chance).check().found
        covered += found.low <= OLD**4 <= found.high
    assert draws - covered <= binom.ppf(0.9999, draws, 0.1)


def test_each_sample_is_drawn_by_a_coin_of_its_own():
    places = [(f"{number}.png", None) for number in range(20_000)]
    found = drawn(places, AUDIT)
    assert abs(found.sum() - 1000) < 5 * np.sqrt(1000 * 0.95)
    order = np.random.default_rng(0).permutation(len(places))
    assert (drawn([places[place] for place in order], AUDIT) == found[order]).all()
    both = (found & drawn(places, AUDIT, seed=1)).sum()
    assert abs(both - 50) < 5 * np.sqrt(50)
    assert drawn(places[:100], 1.0).all()
    assert not (found & ~drawn(places, 2 * AUDIT)).any(), "a greater share holds the smaller one"
