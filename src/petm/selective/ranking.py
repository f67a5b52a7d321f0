"""Counts of right and wrong at each level of suspicion, on which the metrics are defined.

A level is one distinct value of the suspicion. Samples of one level are accepted together or not at all, so nothing
depends on the order of rows, and a resample of the rows is other counts at the same levels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError

P = ParamSpec("P")


@dataclass(frozen=True, eq=False)
class Ranking:
    """Numbers of right and wrong predictions, int64 ``(L,)``, at each level of suspicion, float64 ``(L,)``, ascending.

    Both are 0 at a level of which a resample holds no sample. Of weighted samples they are sums of weights, float64.
    """

    levels: NDArray[np.float64]
    right: NDArray[Any]
    wrong: NDArray[Any]

    def binned(self, bins: int) -> NDArray[np.float64]:
        """Returns samples, errors, and the sum of suspicion in bins of equally many samples: float64 ``(3, bins)``.

        A level belongs to the bin of its middle rank, so ties stay together, and a bin may be empty.
        """
        samples = self.right + self.wrong
        chosen = (bins * (samples.cumsum() - samples / 2) / max(samples.sum(), 1)).astype(np.int64)
        weights = (samples, self.wrong, samples * self.levels)
        return np.array([np.bincount(chosen, weights=each, minlength=bins) for each in weights])


class RankedRows:
    """Samples that are sorted once and counted for each resample.

    Made from suspicion, wrong and, if they count differently, positive weights, ``(N,)`` each.
    """

    def __init__(self, suspicion: ArrayLike, wrong: ArrayLike, weights: NDArray[np.float64] | None = None) -> None:
        values, errors = aligned(np.asarray(suspicion, np.float64), wrong)
        missing = int(np.isnan(values).sum())
        if missing:
            raise ArgumentError(
                f"suspicion: expected numbers, got NaN for {missing} of {len(values)} samples. Leave these samples out."
            )
        self.levels, level = np.unique(values, return_inverse=True)
        self.cells = level + len(self.levels) * errors  # int64 (N,): the level, and L more where the model is wrong
        self.weights = weights

    def ranking(self, rows: NDArray[np.int64] | None = None) -> Ranking:
        """Returns the counts of the samples at ``rows``, int64 ``(n,)``, with repetitions; by default of all once."""
        rows = np.arange(len(self.cells)) if rows is None else rows
        weights = None if self.weights is None else self.weights[rows]
        counts = np.bincount(self.cells[rows], weights, minlength=2 * len(self.levels))
        return Ranking(self.levels, counts[: len(self.levels)], counts[len(self.levels) :])


class Metric(Generic[P]):
    """A function of ``(suspicion, wrong)`` that is computed from their ranking.

    Attributes:
        name: Name in files.
        title: Name in the literature.
        higher_is_better: Whether a better suspicion has a higher value.
        of_ranking: The same metric as a function of a `Ranking`.
    """

    def __init__(
        self, of_ranking: Callable[Concatenate[Ranking, P], float], title: str, *, higher_is_better: bool
    ) -> None:
        self.of_ranking = of_ranking
        self.title = title
        self.higher_is_better = higher_is_better
        self.name = of_ranking.__name__
        self.__doc__ = of_ranking.__doc__
        self.__module__ = of_ranking.__module__

    def __call__(self, suspicion: ArrayLike, wrong: ArrayLike, *args: P.args, **kwargs: P.kwargs) -> float:
        """Returns the metric; NaN where it is undefined.

        Args:
            suspicion: float ``(N,)``, higher is more likely wrong.
            wrong: bool ``(N,)``, where the base model is wrong.
            args: Further arguments of the metric.
            kwargs: Further arguments by name.

        Raises:
            ArgumentError: The shapes differ, suspicion holds NaN, or an argument breaks its rule.
        """
        return self.of_ranking(RankedRows(suspicion, wrong).ranking(), *args, **kwargs)

    def __repr__(self) -> str:
        return f"{self.__module__}.{self.name}"

    def __reduce__(self) -> str:
        return self.name  # pickled as its place, like any function


def metric(title: str, *, higher_is_better: bool) -> Callable[[Callable[Concatenate[Ranking, P], float]], Metric[P]]:
    """Returns a decorator that makes a `Metric` of a function of a ranking."""
    return lambda of_ranking: Metric(of_ranking, title, higher_is_better=higher_is_better)


def aligned(values: NDArray[Any], wrong: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns values, of any dtype, and errors, bool, after checking that both have one shape ``(N,)``."""
    errors = np.asarray(wrong, bool)
    if values.ndim != 1 or values.shape != errors.shape:
        raise ArgumentError(
            f"wrong: expected the same shape (N,) as the scores or flags, got {errors.shape} and {values.shape}."
        )
    return values, errors


def calibration_arrays(suspicion: ArrayLike, wrong: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns suspicion, float64 ``(N,)``, and errors, bool ``(N,)``, after checking shapes and values.

    Raises:
        ArgumentError: The shapes differ, there is no sample, or suspicion holds NaN or an infinity.
    """
    scores, errors = np.asarray(suspicion, np.float64), np.asarray(wrong, bool)
    if scores.ndim != 1 or scores.shape != errors.shape or not scores.size:
        raise ArgumentError(f"suspicion: expected shape (N,) as wrong, got {scores.shape} and {errors.shape}.")
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ArgumentError(
            f"suspicion: expected finite numbers, got {scores[first]} for sample {first}. Check the model's logits."
        )
    return scores, errors
