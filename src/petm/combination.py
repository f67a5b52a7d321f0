"""A small fitted combination of suspicion scores: a logistic regression on their ranks, as plain numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from petm.errors import ArgumentError

KNOTS = 33
"""Points that hold a scale: a quarter of a standard deviation apart for 10,000 samples."""


@dataclass(frozen=True)
class NormalScale:
    """An increasing map of a score to where it lies among the samples of the fit, as a standard normal quantile.

    Scores come as probabilities down to 1e-30, as logits, or as entropies; what they have in common is their order.
    Between its knots the map is linear. Beyond them it goes on with the last slope and then ever slower, so that no two
    samples become alike and an outlier does not decide alone.

    Attributes:
        values: Ascending values of the score, at most `KNOTS`.
        quantiles: Their standard normal quantiles, ascending.
    """

    values: tuple[float, ...]
    quantiles: tuple[float, ...]

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the quantile of each score, float64 of the same shape; 0 everywhere if the fit saw but one value.

        Args:
            scores: float64, any shape, finite.
        """
        if len(self.values) == 1:
            return np.zeros_like(scores)
        below = _beyond(self.values[0] - scores, self.values[:2], self.quantiles[:2])
        above = _beyond(scores - self.values[-1], self.values[-2:], self.quantiles[-2:])
        return np.asarray(np.interp(scores, self.values, self.quantiles) - below + above)


@dataclass(frozen=True)
class Combination:
    """A combination of ``S`` scores, called with float ``(N, S)`` in the order of ``names``.

    Attributes:
        names: Which scores, by name.
        scales: One for each score.
        weights: One for each score, on its scale.
        intercept: The log-odds of an error where every score is at its median.
    """

    names: tuple[str, ...]
    scales: tuple[NormalScale, ...]
    weights: tuple[float, ...]
    intercept: float

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Returns the log-odds of an error, float64 ``(N,)``, any real number: higher is more likely wrong.

        Args:
            scores: float ``(N, S)``, finite.

        Raises:
            ArgumentError: Another shape, or a number that is not finite.
        """
        columns = _columns(scores, len(self.names))
        scaled = [scale(column) for scale, column in zip(self.scales, columns.T, strict=True)]
        return np.asarray(np.stack(scaled, axis=1) @ np.array(self.weights) + self.intercept)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Combination":
        """Returns the combination whose ``dataclasses.asdict`` went through JSON.

        Args:
            content: The fields by name.
        """
        scales = [NormalScale(tuple(scale["values"]), tuple(scale["quantiles"])) for scale in content["scales"]]
        return cls(tuple(content["names"]), tuple(scales), tuple(content["weights"]), float(content["intercept"]))


def fit_combination(
    scores: ArrayLike, wrong: ArrayLike, *, names: Sequence[str], inverse_penalty: float = 1.0
) -> Combination:
    """Returns the logistic regression of A's errors on the ranks of the scores, with a penalty on squared weights.

    Each score is first put on its `NormalScale`. Scores of one prediction resemble each other, and errors are few: the
    penalty shares the weight among them instead of playing one against the other.

    Args:
        scores: float ``(N, S)`` of calibration samples, finite.
        wrong: bool ``(N,)``, where A is wrong on them.
        names: ``S`` names, for whoever reads the combination later.
        inverse_penalty: scikit-learn's ``C``, above 0; 1 is a standard normal prior on each weight.

    Raises:
        ArgumentError: A shape does not fit, a number is not finite, or A is always right or always wrong.
    """
    columns, errors = _columns(scores, len(names)), np.asarray(wrong, bool)
    if errors.shape != columns.shape[:1]:
        raise ArgumentError(f"wrong: expected shape (N,) for scores (N, S), got {errors.shape} and {columns.shape}.")
    if not inverse_penalty > 0:
        raise ArgumentError(f"inverse_penalty: expected a number above 0, got {inverse_penalty}.")
    if errors.all() or not errors.any():
        raise ArgumentError(
            f"wrong: expected errors and right predictions, got {int(errors.sum())} errors in {len(errors)} samples. "
            "Add calibration samples."
        )
    from sklearn.linear_model import LogisticRegression  # here, so that a fitted combination runs without it

    scales = [_normal_scale(column) for column in columns.T]
    scaled = np.stack([scale(column) for scale, column in zip(scales, columns.T, strict=True)], axis=1)
    fitted = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(scaled, errors)
    return Combination(tuple(names), tuple(scales), tuple(fitted.coef_[0].tolist()), float(fitted.intercept_[0]))


def _normal_scale(column: NDArray[np.float64]) -> NormalScale:
    """The scale of one score: knots evenly apart in quantiles, so that the tail of errors has its share."""
    levels, counts = np.unique(column, return_counts=True)
    quantiles = ndtri((counts.cumsum() - counts / 2) / len(column))
    places = np.searchsorted(quantiles, np.linspace(quantiles[0], quantiles[-1], KNOTS))
    knots = np.unique(places.clip(max=len(levels) - 1))
    return NormalScale(tuple(levels[knots].tolist()), tuple(quantiles[knots].tolist()))


def _columns(scores: ArrayLike, width: int) -> NDArray[np.float64]:
    columns = np.asarray(scores, np.float64)
    if columns.ndim != 2 or columns.shape[1] != width or not width:
        raise ArgumentError(f"scores: expected shape (N, {width}), a column for each name, got {columns.shape}.")
    if not np.isfinite(columns).all():
        raise ArgumentError(
            f"scores: expected finite numbers, got {int((~np.isfinite(columns)).sum())} NaN or infinite ones."
        )
    return columns


def _beyond(
    excess: NDArray[np.float64], values: tuple[float, ...], quantiles: tuple[float, ...]
) -> NDArray[np.float64]:
    """How far quantiles go on beyond two knots at an end: with their slope at first, then as its logarithm."""
    width = max(values[1] - values[0], 1e-200)  # so that nothing overflows where both are nearly 0
    return np.asarray(np.log1p((quantiles[1] - quantiles[0]) * (np.maximum(excess, 0) / width)))
