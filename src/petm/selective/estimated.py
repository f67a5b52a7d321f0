"""Accuracy without labels, from probabilities of error; it is as good as these, so true labels stand beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm.selective.bootstrap import Estimate
from petm.selective.ranking import aligned


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class; NaN where there is nothing to compute them from.

    Attributes:
        name: Name of the class.
        predicted: Number of rows that the base model predicts as the class.
        estimated_precision: 1 - the mean probability of error among these.
        labelled: Number of labelled rows that are predicted as the class or belong to it.
        precision: Share of right ones among the labelled that are predicted as it, each weighted by 1 / chance.
        recall: Share of them among the labelled that belong to it.
        f1: Harmonic mean of both.
    """

    name: str
    predicted: int
    estimated_precision: float
    labelled: int
    precision: float
    recall: float
    f1: float


def estimated_accuracy(total: float, variance: float, samples: int, *, confidence: float = 0.95) -> Estimate:
    """Returns the estimated accuracy of ``samples`` predictions, 1 - the mean of their probabilities of error ``p``.

    If the probabilities are right, errors are independent with these chances, and the accuracy lies in the interval
    ``1 - mean(p) ± z sqrt(sum(p (1 - p))) / N``. The interval says nothing about wrong probabilities, as after a shift.

    Args:
        total: Sum of ``p``.
        variance: Sum of ``p (1 - p)``.
        samples: ``N``; 0 gives NaN and [0, 1].
        confidence: Of the interval.

    Reference:
        Guillory, Shankar, Ebrahimi, Darrell and Schmidt (2021), Predicting with Confidence on Unseen Distributions.
    """
    if not samples:
        return Estimate(float("nan"), 0.0, 1.0)
    value = 1 - total / samples
    reach = float(scipy.stats.norm.isf((1 - confidence) / 2)) * variance**0.5 / samples
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


def estimate_gap(probability: ArrayLike, wrong: ArrayLike, chance: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Returns estimated less true accuracy on labelled predictions, each weighted by 1 / chance, with its interval.

    The interval is that of a ratio of weighted sums (Hájek, 1971), normal; NaN and [-1, 1] without two predictions.

    Args:
        probability: float ``(n,)``, probabilities of error; those that are NaN are left out.
        wrong: bool ``(n,)``, where the base model is wrong.
        chance: float ``(n,)``, the chance with which each was drawn to be labelled, in (0, 1].
        confidence: Of the interval.
    """
    p, errors = aligned(np.asarray(probability, np.float64), wrong)
    known = ~np.isnan(p)
    if known.sum() < 2:
        return Estimate(float("nan"), -1.0, 1.0)
    weights = 1 / np.asarray(chance, np.float64)[known]
    differences = errors[known] - p[known]
    value = float(np.average(differences, weights=weights))
    deviation = float(np.sqrt((weights**2 * (differences - value) ** 2).sum()) / weights.sum())
    reach = float(scipy.stats.norm.isf((1 - confidence) / 2)) * deviation
    return Estimate(value, max(-1.0, value - reach), min(1.0, value + reach))


def class_figures(
    names: Sequence[str],
    predicted: NDArray[np.float64],
    labels: ArrayLike,
    truth: ArrayLike,
    chance: ArrayLike,
) -> tuple[ClassFigures, ...]:
    """Returns precision of each class without labels, and precision, recall and F1 from labelled predictions.

    A probability of error says how often a prediction is right, and not what is right instead: recall and F1 need the
    true class, so they are those of the labelled.

    Args:
        names: ``K`` names.
        predicted: float ``(2, K)``: predictions of each class, and the sum of their probabilities of error.
        labels: int ``(n,)``, predictions of the labelled.
        truth: int ``(n,)``, their true classes.
        chance: float ``(n,)``, the chance with which each was drawn to be labelled.
    """
    mine, true = np.asarray(labels, np.int64), np.asarray(truth, np.int64)
    weights, found = 1 / np.asarray(chance, np.float64), []
    for place, name in enumerate(names):
        said, is_ = mine == place, true == place
        right, all_said, all_is = (float(weights[rows].sum()) for rows in (said & is_, said, is_))
        with np.errstate(invalid="ignore"):
            ratios = np.divide([right, right, 2 * right], [all_said, all_is, all_said + all_is]).tolist()
            estimate = float(1 - predicted[1, place] / np.float64(predicted[0, place]))
        found.append(ClassFigures(name, int(predicted[0, place]), estimate, int((said | is_).sum()), *ratios))
    return tuple(found)
