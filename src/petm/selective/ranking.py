"""Samples in the order of their suspicion, as counts of right and wrong at each level: what the metrics read.

A level is one distinct value of the suspicion. Samples of one level are accepted together or not at all, so nothing
depends on the order of rows, and a resample of the rows is nothing but other counts at the same levels.
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
    """How many predictions of the base model are right and wrong at each level of suspicion, from the least suspect up.

    Attributes:
        levels: float64 ``(L,)``, ascending.
        right: int64 ``(L,)``.
        wrong: int64 ``(L,)``. Right and wrong may both be 0, at a level of which a resample holds no sample.
    """

    levels: NDArray[np.float64]
    right: NDArray[np.int64]
    wrong: NDArray[np.int64]


class RankedRows:
    """Samples that are sorted once, and counted as often as needed; made from suspicion and wrong, ``(N,)`` each.

    Attributes:
        levels: float64 ``(L,)``, the distinct values of the suspicion, ascending.
        cells: int64 ``(N,)``, the level of each sample, and ``L`` more where the base model is wrong.
    """

    def __init__(self, suspicion: ArrayLike, wrong: ArrayLike) -> None:
        values, errors = aligned(np.asarray(suspicion, np.float64), wrong)
        missing = int(np.isnan(values).sum())
        if missing:
            raise ArgumentError(
                f"suspicion: expected numbers, got NaN for {missing} of {len(values)} samples. Leave these samples out."
            )
        self.levels, level = np.unique(values, return_inverse=True)
        self.cells = level + len(self.levels) * errors

    def ranking(self, rows: NDArray[np.int64] | None = None) -> Ranking:
        """Returns the counts of all samples, or of some, each as often as its row is named.

        Args:
            rows: int64 ``(n,)``; absent, every sample once.
        """
        cells = self.cells if rows is None else self.cells[rows]
        counts = np.bincount(cells, minlength=2 * len(self.levels))
        return Ranking(self.levels, counts[: len(self.levels)], counts[len(self.levels) :])


class Metric(Generic[P]):
    """A function of ``(suspicion, wrong)`` that is computed from their ranking.

    Attributes:
        name: As in tables and files.
        title: As a reader knows it.
        higher_is_better: Whether a better suspicion has a higher value.
        of_ranking: The same metric as a function of a `Ranking`, which a bootstrap calls on each resample.
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
            args: What else the metric takes.
            kwargs: The same by name.

        Raises:
            ArgumentError: The shapes differ, suspicion holds NaN, or an argument breaks its rule.
        """
        return self.of_ranking(RankedRows(suspicion, wrong).ranking(), *args, **kwargs)

    def __repr__(self) -> str:
        return f"{self.__module__}.{self.name}"

    def __reduce__(self) -> str:
        return self.name  # pickled as its place, like any function


def metric(title: str, *, higher_is_better: bool) -> Callable[[Callable[Concatenate[Ranking, P], float]], Metric[P]]:
    """Returns a decorator that makes a `Metric` of a function of a ranking.

    Args:
        title: As a reader knows the metric.
        higher_is_better: Whether a better suspicion has a higher value.
    """
    return lambda of_ranking: Metric(of_ranking, title, higher_is_better=higher_is_better)


def aligned(values: NDArray[Any], wrong: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns scores or flags, and where the base model is wrong, after checking that both have one shape ``(N,)``.

    Args:
        values: Any dtype, ``(N,)``.
        wrong: bool ``(N,)``.

    Raises:
        ArgumentError: The shapes differ.
    """
    errors = np.asarray(wrong, bool)
    if values.ndim != 1 or values.shape != errors.shape:
        raise ArgumentError(
            f"wrong: expected the same shape (N,) as the scores or flags, got {errors.shape} and {values.shape}."
        )
    return values, errors


def calibration_arrays(suspicion: ArrayLike, wrong: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns suspicion, float64 ``(N,)``, and errors, bool ``(N,)``, of a calibration set that was checked.

    Args:
        suspicion: float ``(N,)``, higher is more likely wrong.
        wrong: bool ``(N,)``.

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
