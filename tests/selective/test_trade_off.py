"""The trade-off table: each number against the function or the definition that it stands for."""

from statistics import mean

import numpy as np
import pytest

from petm.errors import ArgumentError
from petm.selective.metrics import coverage_at_risk
from petm.selective.thresholds import risk_threshold
from petm.selective.trade_off import RISKS, trade_off


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A good suspicion, one that is half noise, and errors."""
    random = np.random.default_rng(seed)
    good = random.random(count)
    return good, np.round((good + random.random(count)) / 2, 2), random.random(count) < good**3


def test_each_number_is_what_it_says():
    good, poor, wrong = samples(3000)
    rows = trade_off(good, poor, wrong)
    assert [row.max_risk for row in rows] == list(RISKS)
    for row in rows:
        for scores, found in ((good, row.chosen), (poor, row.softmax)):
            assert found.guaranteed == risk_threshold(scores, wrong, max_risk=row.max_risk).coverage
            assert found.seen == pytest.approx(coverage_at_risk(scores, wrong, row.max_risk))
            assert found.guaranteed <= found.twice <= found.ten_times <= found.seen + 1e-9
    assert rows[3].chosen.guaranteed > rows[3].softmax.guaranteed + 0.1


def test_more_labels_bring_what_was_estimated():
    few = mean(trade_off(*samples(400, seed), risks=[0.1])[0].chosen.ten_times for seed in range(20))
    many = mean(trade_off(*samples(4000, seed), risks=[0.1])[0].chosen.guaranteed for seed in range(20))
    assert few == pytest.approx(many, abs=0.03)


def test_labels_of_a_review_queue_are_weighted():
    good, poor, wrong = samples(40_000)
    chance = np.where(good < 0.6, 0.1, 1.0)
    drawn = np.random.default_rng(1).random(40_000) < chance
    row = trade_off(good[drawn], poor[drawn], wrong[drawn], risks=[0.1], chance=chance[drawn])[0]
    assert row.chosen.seen == pytest.approx(0.4 ** (1 / 3), abs=0.05)
    assert 0.65 < row.chosen.guaranteed < row.chosen.seen


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="risks"):
        trade_off([0.1], [0.1], [False], risks=[0])
    with pytest.raises(ArgumentError, match="confidence"):
        trade_off([0.1], [0.1], [False], confidence=1)
