import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtri
from scipy.stats import rankdata

from petm.combination import KNOTS, Combination, NormalScale, fit_combination
from petm.errors import ArgumentError
from petm.metrics import auroc, brier

NAMES = ("first", "second")


def samples(seed: int = 0, count: int = 4000) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Two views of one doubt, each with a noise of its own; every sixth or so is an error."""
    random = np.random.default_rng(seed)
    doubt = random.normal(size=count)
    wrong = random.random(count) < expit(2 * doubt - 2.5)
    return np.stack((doubt + random.normal(0, 1, count), doubt + random.normal(0, 1, count)), axis=1), wrong


def test_the_combination_is_better_than_either_on_new_samples() -> None:
    combination = fit_combination(*samples(), names=NAMES)
    scores, wrong = samples(1)
    best = max(auroc(scores[:, 0], wrong), auroc(scores[:, 1], wrong))
    assert auroc(combination(scores), wrong) > best + 0.03
    assert combination.weights[0] == pytest.approx(combination.weights[1], rel=0.2)
    assert brier(expit(combination(scores)), wrong) < np.var(wrong)
    assert expit(combination(scores)).mean() == pytest.approx(wrong.mean(), abs=0.02)


def test_the_regression_against_its_objective() -> None:
    scores, wrong = samples(2, 300)
    # Where every value has a knot of its own, the scale is the normal quantile of the mid-rank.
    scores = scores.round(0)
    combination = fit_combination(scores, wrong, names=NAMES, inverse_penalty=0.5)
    scaled = ndtri((rankdata(scores, axis=0) - 0.5) / 300)

    def loss(w: NDArray[np.float64]) -> float:
        odds = scaled @ w[:2] + w[2]
        return float(np.logaddexp(0, np.where(wrong, -odds, odds)).sum() + w[:2] @ w[:2])

    expected = minimize(loss, np.zeros(3), tol=1e-10).x
    assert (*combination.weights, combination.intercept) == pytest.approx(expected, abs=2e-3)


def test_a_scale_is_the_normal_quantile_of_the_rank() -> None:
    scores, wrong = samples()
    for column, scale in zip(scores.T, fit_combination(scores, wrong, names=NAMES).scales, strict=True):
        assert len(scale.values) <= KNOTS
        np.testing.assert_allclose(scale(column), ndtri((rankdata(column) - 0.5) / len(column)), atol=0.15)
        assert bool((np.diff(scale(np.sort(column))) > 0).all())


@pytest.mark.parametrize("transform", [np.exp, lambda score: expit(8 * score - 40), lambda score: 1e6 * score - 3])
def test_how_a_score_is_written_hardly_matters(transform: Any) -> None:
    scores, wrong = samples()
    other = np.stack((transform(scores[:, 0]), scores[:, 1]), axis=1)
    plain = fit_combination(scores, wrong, names=NAMES)(scores)
    written = fit_combination(other, wrong, names=NAMES)(other)
    np.testing.assert_allclose(rankdata(written), rankdata(plain), atol=0.02 * len(plain))


def test_two_levels() -> None:
    # 3/4 at 0 and 1/4 at 1: mid-ranks 3/8 and 7/8.
    flags = np.tile([0.0, 0.0, 0.0, 1.0], 25)
    wrong = (flags == 1) ^ (np.arange(100) < 5)
    (scale,) = fit_combination(flags[:, None], wrong, names=["flag"]).scales
    assert scale.values == (0, 1)
    assert scale.quantiles == pytest.approx((ndtri(3 / 8), ndtri(7 / 8)))


def test_a_score_that_never_varies_has_no_say() -> None:
    scores, wrong = samples()
    scores[:, 1] = 7
    combination = fit_combination(scores, wrong, names=NAMES)
    assert combination.weights[1] == 0
    assert combination.scales[1](np.array([1.0, 7.0, 9.0])).tolist() == [0, 0, 0]


def test_beyond_the_fit_a_scale_goes_on_with_its_slope_and_ever_slower() -> None:
    scale = NormalScale((0.0, 1.0, 3.0), (-1.0, 0.0, 1.0))
    x = np.array([-1e12, -100.0, -1.0, 0.0, 0.5, 2.0, 3.0, 4.0, 100.0, 1e12])
    found = scale(x)
    assert bool((np.diff(found) > 0).all())
    assert found[[3, 4, 5, 6]].tolist() == [-1, -0.5, 0.5, 1]
    assert found[2] == pytest.approx(-1 - np.log(2))
    assert found[7] == pytest.approx(1 + np.log(1.5))
    step = 1e-6
    assert (scale(np.array([3 + step])) - 1) / step == pytest.approx(0.5, rel=1e-4)
    assert abs(found).max() < 35


def test_numbers_next_to_nothing() -> None:
    scale = NormalScale((0.0, 1e-320, 1e-300, 1.0), (-2.0, -1.0, 0.0, 1.0))
    assert np.isfinite(scale(np.array([-1.0, 0.0, 1e-320, 1e-310, 1e-300, 1e-5, 1.0, 2.0]))).all()


def test_json_keeps_every_bit() -> None:
    scores, wrong = samples()
    combination = fit_combination(scores, wrong, names=NAMES)
    again = Combination.from_json(json.loads(json.dumps(asdict(combination))))
    assert again == combination
    assert again(scores).tolist() == combination(scores).tolist()


def test_a_fitted_combination_needs_no_scikit_learn() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from petm.combination import Combination, NormalScale\n"
        "made = Combination(('a',), (NormalScale((0.0, 1.0), (-1.0, 1.0)),), (2.0,), 0.5)\n"
        "assert made([[0.0], [0.5]]).tolist() == [-1.5, 0.5]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("scores", "wrong", "message"),
    [
        (np.zeros((4, 3)), [True, False] * 2, r"scores: expected shape \(N, 2\), a column for each name, got \(4, 3\)"),
        (np.zeros(4), [True, False] * 2, r"scores: expected shape \(N, 2\), a column for each name, got \(4,\)"),
        (np.full((4, 2), np.inf), [True, False] * 2, "scores: expected finite numbers, got 8 NaN or infinite ones"),
        (np.zeros((4, 2)), [True], r"wrong: expected shape \(N,\) for scores \(N, S\), got \(1,\) and \(4, 2\)"),
        (np.zeros((4, 2)), [False] * 4, "wrong: expected errors and right predictions, got 0 errors in 4 samples. Add"),
        (np.zeros((4, 2)), [True] * 4, "wrong: expected errors and right predictions, got 4 errors in 4 samples. Add"),
    ],
)
def test_refused_samples(scores: NDArray[Any], wrong: list[bool], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        fit_combination(scores, wrong, names=NAMES)


@pytest.mark.parametrize("inverse_penalty", [0, -1, float("nan")])
def test_the_penalty_is_positive(inverse_penalty: float) -> None:
    with pytest.raises(ArgumentError, match="inverse_penalty: expected a number above 0, got"):
        fit_combination(*samples(count=50), names=NAMES, inverse_penalty=inverse_penalty)


def test_a_combination_takes_as_many_columns_as_it_was_fitted_to() -> None:
    combination = fit_combination(*samples(count=200), names=NAMES)
    with pytest.raises(ArgumentError, match=r"scores: expected shape \(N, 2\), a column for each name, got \(5, 1\)"):
        combination(np.zeros((5, 1)))
    assert combination(np.zeros((0, 2))).shape == (0,)
