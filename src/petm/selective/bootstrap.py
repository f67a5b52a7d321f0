"""Bootstrap intervals of a metric, and of the difference between two methods on the same samples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.ranking import Metric, RankedRows, Ranking, aligned

AnyMetric = Callable[[NDArray[np.float64], NDArray[np.bool_]], float]
"""A function of ``(suspicion, wrong)``: of `petm.selective.metrics`, a ``partial`` of one, or the user's."""


@dataclass(frozen=True)
class Estimate:
    """A metric, or a difference of two, with its interval, 95 % unless asked otherwise."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: AnyMetric,
    suspicion: ArrayLike,
    wrong: ArrayLike,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns a metric with its percentile interval over samples drawn with replacement.

    Resamples on which the metric is undefined (no error drawn) are left out. Metrics of `petm.selective.metrics` are
    fast, also within a ``functools.partial``: suspicion is sorted once.

    Args:
        metric: A function of ``(suspicion, wrong)``, such as `petm.selective.metrics.auroc`.
        suspicion: float ``(N,)``.
        wrong: bool ``(N,)``, where the base model is wrong.
        resamples: Number of bootstrap samples, at least 1.
        confidence: Level of the interval, between 0 and 1, both excluded.
        seed: Seed of the resampling.

    Reference:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    of_rows = _of_rows(metric, suspicion, wrong)
    return Estimate(*_interval(of_rows, np.size(wrong), resamples=resamples, confidence=confidence, seed=seed))


def paired_bootstrap(
    metric: AnyMetric,
    first: ArrayLike,
    second: ArrayLike,
    wrong: ArrayLike,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns ``metric(first) - metric(second)`` with a percentile interval from the same resamples for both.

    Common rows keep what both methods have in common out of the interval. All else is as in `bootstrap`.

    Args:
        metric: A function of ``(suspicion, wrong)``.
        first: float ``(N,)``, suspicion or flags of one method.
        second: float ``(N,)``, those of the other.
        wrong: bool ``(N,)``, where the base model is wrong.
        resamples: Number of bootstrap samples, at least 1.
        confidence: Level of the interval, between 0 and 1, both excluded.
        seed: Seed of the resampling.
    """
    of_first, of_second = _of_rows(metric, first, wrong), _of_rows(metric, second, wrong)

    def difference(rows: NDArray[np.int64] | None) -> float:
        return of_first(rows) - of_second(rows)

    return Estimate(*_interval(difference, np.size(wrong), resamples=resamples, confidence=confidence, seed=seed))


def _interval(
    of_rows: Callable[[NDArray[np.int64] | None], float], samples: int, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float, float]:
    """The value on all samples, and the ends of its percentile interval; both NaN where no resample defines it."""
    if not samples:
        raise ArgumentError("wrong: expected at least one sample, got none.")
    if resamples < 1:
        raise ArgumentError(f"resamples: expected at least 1, got {resamples}.")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence: expected a number between 0 and 1, got {confidence}.")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, samples, samples) for _ in range(resamples))
    values = np.array([of_rows(rows) for rows in draws])
    values = values[np.isfinite(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
    return of_rows(None), float(low), float(high)


def _of_rows(metric: AnyMetric, suspicion: ArrayLike, wrong: ArrayLike) -> Callable[[NDArray[np.int64] | None], float]:
    """The metric as a function of the rows drawn; None stands for all rows."""
    of_ranking = _of_ranking(metric)
    if of_ranking is not None:
        ranked = RankedRows(suspicion, wrong)
        return lambda rows: of_ranking(ranked.ranking(rows))
    values, errors = aligned(np.asarray(suspicion, np.float64), wrong)
    return lambda rows: metric(values, errors) if rows is None else metric(values[rows], errors[rows])


def _of_ranking(metric: AnyMetric) -> Callable[[Ranking], float] | None:
    """The metric as a function of a ranking, if it is one of petm's."""
    if isinstance(metric, Metric):
        return metric.of_ranking
    if isinstance(metric, partial) and isinstance(metric.func, Metric) and not metric.args:
        return partial(metric.func.of_ranking, **metric.keywords)
    return None
