"""Accuracy without labels: its interval where the probabilities are right, and what labels say of it."""

import math

import numpy as np
import pytest

from petm.selective.estimated import class_figures, estimate_gap, estimated_accuracy


def test_the_interval_covers_the_accuracy_where_the_probabilities_are_right():
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        p = random.random(200) ** 2
        found = estimated_accuracy(p.sum(), (p * (1 - p)).sum(), 200, confidence=0.9)
        assert found.value == pytest.approx(1 - p.mean())
        covered += found.low <= 1 - (random.random(200) < p).mean() <= found.high
    assert 0.84 <= covered / 400 <= 0.96
    assert math.isnan(estimated_accuracy(0, 0, 0).value)


def test_the_gap_is_that_of_all_rows_where_chances_differ():
    random, gaps, covered = np.random.default_rng(1), [], 0
    for _ in range(200):
        p = random.random(4000)
        wrong = random.random(4000) < p**2  # on the average 1/3, told as 1/2: accuracy is estimated 1/6 too low
        chance = np.where(p > 0.7, 1.0, 0.1)
        drawn = random.random(4000) < chance
        found = estimate_gap(p[drawn], wrong[drawn], chance[drawn])
        gaps.append(found.value)
        covered += found.low <= -1 / 6 <= found.high
    assert np.mean(gaps) == pytest.approx(-1 / 6, abs=0.005)
    assert covered / 200 >= 0.88
    assert math.isnan(estimate_gap([math.nan, 0.1], [True, False], [1, 1]).value)


def test_figures_of_classes_are_those_of_the_weighted_confusion():
    predicted = np.array([[10.0, 4.0, 0.0], [2.0, 3.0, 0.0]])
    labels, truth, chance = [0, 0, 0, 1, 1], [0, 0, 1, 1, 0], [0.5, 1, 1, 0.25, 1]
    first, second, third = class_figures(("a", "b", "c"), predicted, labels, truth, chance)
    assert (first.predicted, first.estimated_precision, first.labelled) == (10, 0.8, 4)
    assert (first.precision, first.recall) == pytest.approx((3 / 4, 3 / 4))  # weights 2, 1, 1, 4, 1
    assert (second.precision, second.recall, second.f1) == pytest.approx((4 / 5, 4 / 5, 4 / 5))
    assert second.estimated_precision == pytest.approx(0.25)
    assert all(math.isnan(value) for value in (third.estimated_precision, third.precision, third.recall, third.f1))
