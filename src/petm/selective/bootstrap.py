"""Bootstrap intervals of a metric, and of the difference between two methods on the same samples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.audit import inverse_chances
from petm.selective.ranking import Metric, RankedRows, Ranking, aligned
from petm.selective.thresholds import check_share

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
    minus: ArrayLike | None = None,
    chance: ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns a metric, or its difference between two methods, with the percentile interval over resamples.

    Samples are drawn with replacement; for a difference the same rows for both methods, which keeps what they have in
    common out of the interval. Resamples on which the metric is undefined (no error drawn) are left out; the ends are
    NaN where none is left. Metrics of `petm.selective.metrics` are fast, also within a ``functools.partial``: suspicion
    is sorted once.

    Args:
        metric: A function of ``(suspicion, wrong)``, such as `petm.selective.metrics.auroc`.
        suspicion: float ``(N,)``, suspicion or flags.
        wrong: bool ``(N,)``, where the base model is wrong; at least one sample.
        minus: float ``(N,)``, suspicion or flags of another method, whose metric is subtracted.
        chance: float ``(N,)``, with which each sample was drawn to be labelled (`petm.selective.audit`); None for equal
            chances. Others need a metric of `petm.selective.metrics`, in which samples are weighted by the inverse.
        resamples: Number of bootstrap samples, at least 1.
        confidence: Level of the interval, between 0 and 1, both excluded.
        seed: Seed of the resampling.

    Reference:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    samples = np.size(wrong)
    if not samples:
        raise ArgumentError("wrong: expected at least one sample, got none.")
    if resamples < 1:
        raise ArgumentError(f"resamples: expected at least 1, got {resamples}.")
    check_share("confidence", confidence, below_1=True)
    weights = None if chance is None else inverse_chances(chance, samples)
    of_rows = _of_rows(metric, suspicion, wrong, weights)
    of_others = None if minus is None else _of_rows(metric, minus, wrong, weights)

    def value(rows: NDArray[np.int64] | None) -> float:
        return of_rows(rows) - (of_others(rows) if of_others else 0.0)

    generator, tail = np.random.default_rng(seed), (1 - confidence) / 2
    values = np.array([value(generator.integers(0, samples, samples)) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
    return Estimate(value(None), float(low), float(high))


def _of_rows(
    metric: AnyMetric, suspicion: ArrayLike, wrong: ArrayLike, weights: NDArray[np.float64] | None
) -> Callable[[NDArray[np.int64] | None], float]:
    """The metric as a function of the rows drawn; None stands for all rows."""
    of_ranking = _of_ranking(metric)
    if of_ranking is not None:
        ranked = RankedRows(suspicion, wrong, weights)
        return lambda rows: of_ranking(ranked.ranking(rows))
    if weights is not None:
        raise ArgumentError("metric: expected one of petm.selective.metrics beside chance, got another.")
    values, errors = aligned(np.asarray(suspicion, np.float64), wrong)
    return lambda rows: metric(values, errors) if rows is None else metric(values[rows], errors[rows])


def _of_ranking(metric: AnyMetric) -> Callable[[Ranking], float] | None:
    """The metric as a function of a ranking, if it is one of petm's."""
    if isinstance(metric, Metric):
        return metric.of_ranking
    if isinstance(metric, partial) and isinstance(metric.func, Metric) and not metric.args:
        return partial(metric.func.of_ranking, **metric.keywords)
    return None
