"""Chances of being labelled next: their sum, their range, and what labels drawn by them tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petm.errors import ArgumentError
from petm.selective.audit import coins
from petm.selective.next_labels import labelling_chances


@given(st.integers(1, 80), st.integers(1, 5), st.data())
def test_chances_sum_to_the_count_and_none_is_zero(rows, classes, data):
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    count = data.draw(st.integers(1, rows))
    probability = random.random(rows) ** 8 * (random.random(rows) < 0.7)
    predicted = random.integers(classes, size=rows)
    chances = labelling_chances(probability, predicted, count=count)
    assert chances.sum() == pytest.approx(count)
    assert ((chances > 0) & (chances <= 1)).all()
    for label in range(classes):
        mine = predicted == label
        order = np.argsort(probability[mine])
        assert (np.diff(chances[mine][order]) >= -1e-12).all(), "the more doubtful, the more likely"


def test_drawn_labels_tell_the_error_rate_without_bias_and_hold_more_errors():
    random = np.random.default_rng(0)
    probability, predicted = random.beta(0.2, 2, 2_000), random.integers(4, size=2_000)
    wrong = random.random(2_000) < probability
    chances = labelling_chances(probability, predicted, count=150)
    draws = np.array([coins(range(2_000), seed=seed) < chances for seed in range(300)])
    estimates = (draws * (wrong / chances)).sum(1) / 2_000
    assert abs(estimates.mean() - wrong.mean()) < 4 * estimates.std() / 300**0.5
    assert draws.sum(1).mean() == pytest.approx(150, abs=4 * 150**0.5 / 300**0.5)
    frequency, spread = draws.mean(0), np.sqrt(chances * (1 - chances) / 300)
    assert (abs(frequency - chances) <= 5 * spread + 1e-9).all()
    assert (draws & wrong).sum(1).mean() > 2 * 150 * wrong.mean()


def test_what_is_refused():
    for count in (0, 3):
        with pytest.raises(ArgumentError, match=r"^count: expected"):
            labelling_chances([0.1, 0.2], [0, 1], count=count)
    with pytest.raises(ArgumentError, match=r"^probability: expected"):
        labelling_chances([0.1, 1.2], [0, 1], count=1)
