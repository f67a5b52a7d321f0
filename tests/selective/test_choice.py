import numpy as np
import pytest
from numpy.typing import NDArray

from petm.errors import ArgumentError
from petm.selective.choice import choose
from petm.selective.metrics import aurc, coverage_at_risk


def drawn(count: int = 600, *, errors: float = 0.15, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Noise that errors are a little higher in, and where they are."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(count) < errors
    return generator.normal(size=(12, count)), wrong


def test_what_is_better_by_more_than_chance_is_taken() -> None:
    noise, wrong = drawn()
    offered = {"softmax": wrong + noise[0], "good": 3 * wrong + noise[1], "noise": noise[2]}
    choice = choose(offered, {"softmax": 0.0, "good": 0.2, "noise": 0.0}, wrong)
    assert choice.name == "good"
    assert [row.name for row in choice.compared] == ["softmax", "good", "noise"]
    for row in choice.compared:
        assert row.value == aurc(offered[row.name], wrong)
        assert (row.better, row.taken) == ((row.name == "good"),) * 2
    softmax, good, _ = choice.compared
    assert (softmax.low, softmax.high) == (0, 0)
    assert good.low < good.value - softmax.value < good.high < 0


def test_the_cheapest_within_a_standard_error_of_the_best_is_taken() -> None:
    noise, wrong = drawn()
    offered = {"softmax": wrong + noise[0], "best": 3.05 * wrong + noise[1], "cheap": 3.3 * wrong + noise[4]}
    offered["worse"] = 1.8 * wrong + noise[3]
    choice = choose(offered, {"softmax": 0.0, "best": 1.0, "cheap": 0.1, "worse": 0.0}, wrong)
    assert choice.name == "cheap"
    assert "best" in choice.reason
    assert [row.name for row in choice.compared if row.better] == ["best", "cheap", "worse"]


def test_equals_do_not_beat_the_first() -> None:
    noise, wrong = drawn()
    same = wrong + noise[0]
    offered = {"softmax": same, "again": same, "other": 5 * same + 1}
    choice = choose(offered, dict.fromkeys(offered, 0.0), wrong)
    assert choice.name == "softmax"
    assert not any(row.better for row in choice.compared)


def test_too_few_errors_decide_nothing() -> None:
    noise, wrong = drawn()
    wrong = np.arange(600) < 9
    choice = choose({"softmax": noise[0], "perfect": wrong.astype(float)}, {"softmax": 0.0, "perfect": 0.0}, wrong)
    assert choice.name == "softmax"
    assert "9 errors" in choice.reason


def test_no_error_at_all() -> None:
    noise, _ = drawn()
    wrong = np.zeros(600, bool)
    choice = choose({"softmax": noise[0], "other": noise[1]}, {"softmax": 0.0, "other": 0.0}, wrong)
    assert choice.name == "softmax"
    assert all(np.isfinite([row.value, row.low, row.high]).all() for row in choice.compared)


def test_coverage_at_a_risk_is_compared_where_one_is_given() -> None:
    _, wrong = drawn(2000)
    noise = np.random.default_rng(3).normal(size=(2, 2000))
    offered = {"softmax": wrong + noise[0], "good": 4 * wrong + noise[1]}
    choice = choose(offered, {"softmax": 0.0, "good": 0.0}, wrong, max_risk=0.05)
    assert choice.name == "good"
    for row in choice.compared:
        assert row.value == pytest.approx(coverage_at_risk(offered[row.name], wrong, risk=0.05))
    assert choice.compared[1].low > 0


@pytest.mark.slow
def test_suspicions_that_are_no_better_are_seldom_taken() -> None:
    taken = 0
    for seed in range(100):
        noise, wrong = drawn(400, seed=seed)
        offered = {f"{place}": 0.8 * wrong + row for place, row in enumerate(noise)}
        taken += choose(offered, dict.fromkeys(offered, 0.0), wrong, resamples=100, seed=seed).name != "0"
    assert taken <= 5 + 2.6 * np.sqrt(100 * 0.05 * 0.95)  # 5 % are allowed; a chance of 1 in 200 beyond


def test_costs_of_other_names() -> None:
    noise, wrong = drawn()
    with pytest.raises(ArgumentError, match=r"^costs:"):
        choose({"softmax": noise[0]}, {"other": 0.0}, wrong)


def test_labels_of_unequal_chance_count_as_often_as_the_rows_that_they_stand_for() -> None:
    noise, wrong = drawn(300)
    often = np.where(noise[5] > 0, 1, 4)
    offered = {"softmax": wrong + noise[0], "good": 3 * wrong + noise[1]}
    choice = choose(offered, {"softmax": 0.0, "good": 0.0}, wrong, chance=1 / often)
    for row in choice.compared:
        assert row.value == pytest.approx(aurc(np.repeat(offered[row.name], often), np.repeat(wrong, often)))
    assert choice.name == "good"
