"""How well suspicion finds A's errors: pure functions of arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score

from petm.errors import ArgumentError


@dataclass(frozen=True)
class Share:
    """A share with its counts and its 95 % Wilson interval; ``value`` is NaN where ``of`` is 0.

    Attributes:
        value: ``count / of``, in [0, 1].
        count: How many.
        of: Out of how many.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    count: int
    of: int
    low: float
    high: float


def share(count: int, of: int, *, confidence: float = 0.95) -> Share:
    """Returns ``count / of`` with its Wilson score interval, which holds its level for small counts and near 0 and 1.

    ``(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``; without any trial the interval is [0, 1].

    Args:
        count: Successes, 0 to ``of``.
        of: Trials.
        confidence: Level of the interval, between 0 and 1.

    Reference:
        Wilson (1927), Probable Inference, the Law of Succession, and Statistical Inference.
    """
    if of == 0:
        return Share(float("nan"), 0, 0, 0.0, 1.0)
    z, p = float(norm.ppf((1 + confidence) / 2)), count / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    # At 0 and 1 an end of the interval is p itself, which rounding must not pass.
    return Share(p, count, of, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


@dataclass(frozen=True)
class Detection:
    """What a yes-or-no flag finds.

    Attributes:
        recall: Of A's errors, the share that is flagged.
        precision: Of the flagged, the share that are A's errors.
        flagged: How many are flagged.
        errors: How many errors A makes.
        caught: How many of A's errors are flagged.
    """

    recall: Share
    precision: Share
    flagged: int
    errors: int
    caught: int


def detection(flagged: ArrayLike, wrong: ArrayLike) -> Detection:
    """Returns recall and precision of a flag, with counts and 95 % Wilson intervals.

    Args:
        flagged: bool ``(N,)``.
        wrong: bool ``(N,)``, where A is wrong.

    Raises:
        ArgumentError: The shapes differ.

    Example:
        >>> found = detection([True, True, False, False], [True, False, True, False])
        >>> found.recall.value, found.precision.value
        (0.5, 0.5)
    """
    flags, errors = _aligned(np.asarray(flagged, bool), wrong)
    caught = int((flags & errors).sum())
    return Detection(
        recall=share(caught, int(errors.sum())),
        precision=share(caught, int(flags.sum())),
        flagged=int(flags.sum()),
        errors=int(errors.sum()),
        caught=caught,
    )


def fidelity(first: ArrayLike, second: ArrayLike) -> float:
    """Returns the share of samples where two models predict the same class, in [0, 1].

    Args:
        first: int ``(N,)``, predicted classes.
        second: int ``(N,)``, predicted classes.

    Raises:
        ArgumentError: The shapes differ or there are no samples.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or not a.size:
        raise ArgumentError(f"fidelity: expected two equal shapes of at least one sample, got {a.shape} and {b.shape}.")
    return float((a == b).mean())


def most_suspect(suspicion: ArrayLike, count: int) -> NDArray[np.bool_]:
    """Returns bool ``(N,)``: the ``count`` samples of highest suspicion, the earlier of equal ones first.

    It turns a score into a flag of a given size, so that two detectors are compared at the same number of flags.
    """
    order = np.argsort(-np.asarray(suspicion, float), kind="stable")
    flags = np.zeros(len(order), bool)
    flags[order[:count]] = True
    return flags


def auroc(suspicion: ArrayLike, wrong: ArrayLike) -> float:
    """Returns the probability that an error is more suspect than a right prediction, ties counted half, in [0, 1].

    The Mann–Whitney statistic from mid-ranks: a plateau of equal scores does not depend on row order. NaN where A is
    always right or always wrong.

    Args:
        suspicion: float ``(N,)``.
        wrong: bool ``(N,)``, where A is wrong.

    Raises:
        ArgumentError: The shapes differ.

    Reference:
        Hanley and McNeil (1982), The Meaning and Use of the Area under a ROC Curve.
    """
    scores, errors = _aligned(np.asarray(suspicion, float), wrong)
    bad, good = int(errors.sum()), int((~errors).sum())
    if not bad or not good:
        return float("nan")
    return float((rankdata(scores)[errors].sum() - bad * (bad + 1) / 2) / (bad * good))


def aupr_error(suspicion: ArrayLike, wrong: ArrayLike) -> float:
    """Returns the average precision with A's errors as the positive class, in [0, 1]; NaN where there is no error.

    Args:
        suspicion: float ``(N,)``.
        wrong: bool ``(N,)``, where A is wrong.

    Raises:
        ArgumentError: The shapes differ.
    """
    scores, errors = _aligned(np.asarray(suspicion, float), wrong)
    return float(average_precision_score(errors, scores)) if errors.any() else float("nan")


@dataclass(frozen=True)
class Difference:
    """A difference between two methods on the same samples, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(
    metric: Callable[[NDArray[np.float64], NDArray[np.bool_]], float],
    first: ArrayLike,
    second: ArrayLike,
    wrong: ArrayLike,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Returns ``metric(first) - metric(second)`` with a percentile interval from samples drawn for both at once.

    Resampling the same rows for both methods keeps what they have in common out of the interval, which two separate
    intervals would not. Resamples on which the metric is undefined (no error drawn) are left out.

    Args:
        metric: A function of ``(suspicion, wrong)``, such as `auroc`.
        first: float ``(N,)``, one method's suspicion (or its flags).
        second: float ``(N,)``, the other's.
        wrong: bool ``(N,)``, where A is wrong.
        resamples: Number of bootstrap samples.
        confidence: Level of the interval.
        seed: Seed of the resampling.

    Raises:
        ArgumentError: The shapes differ.

    Reference:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    a, errors = _aligned(np.asarray(first, float), wrong)
    b, _ = _aligned(np.asarray(second, float), wrong)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(errors), len(errors)) for _ in range(resamples))
    differences = np.array([metric(a[rows], errors[rows]) - metric(b[rows], errors[rows]) for rows in draws])
    differences = differences[np.isfinite(differences)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]) if len(differences) else (float("nan"), float("nan"))
    return Difference(metric(a, errors) - metric(b, errors), float(low), float(high))


def _aligned(values: NDArray[Any], wrong: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    errors = np.asarray(wrong, bool)
    if values.ndim != 1 or values.shape != errors.shape:
        raise ArgumentError(
            f"wrong: expected the same shape (N,) as the scores or flags, got {errors.shape} and {values.shape}."
        )
    return values, errors
