import numpy as np
import pytest

from experiments import prediction_sets
from experiments.prediction_sets_coverage import draw, measured


def test_the_sets_of_suspects_cover_in_a_small_simulation() -> None:
    found = measured("recall 0.9", 300, 40, 0.9)
    for grade in ("suspects", "trusted", "all"):
        row = found[f"by grade, {grade}"]
        assert row["mean"] > 0.9 - 4 * row["standard_error"]
    at_once = found["at once, suspects"]
    assert at_once["mean"] < found["by grade, suspects"]["mean"]
    assert found["fitted"]["mean"] == 1


def test_better_probabilities_have_smaller_sets_at_the_same_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_sets, "SPLITS", 8)
    random = np.random.default_rng(0)
    values, truth, predicted, suspicion = draw(random, 4000)
    blurred = np.exp(np.log(values) + 0.7 * random.normal(size=values.shape))
    worse = blurred / blurred.sum(1, keepdims=True)
    held = {"truth": truth, "predicted": predicted, "suspect": suspicion > 0.5, "sets": None}
    found = prediction_sets.judged(held | {"grader": values, "softmax": worse})
    better, plain = (found["kinds"][f"{kind}, by grade"] for kind in ("grader", "softmax, threshold"))
    assert better["size_of_suspects"] < plain["size_of_suspects"]
    assert better["coverage_of_suspects"] == pytest.approx(0.95, abs=0.015)
    assert found["one_split"]["by grade, grader - softmax, threshold, suspects"]["high"] < 0
    same = prediction_sets.judged(held | {"grader": values, "softmax": values})
    assert same["kinds"]["grader, at once"] == same["kinds"]["softmax, threshold, at once"]
    assert same["one_split"]["at once, grader - softmax, threshold, all"] == {"value": 0, "low": 0, "high": 0}
