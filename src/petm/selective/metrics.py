"""How well a flag or a suspicion finds the base model's errors: pure functions of arrays.

The metrics of a suspicion are called with ``(suspicion, wrong)``: float ``(N,)``, higher is more likely wrong, and bool
``(N,)``, where the base model is wrong. They are written on the `Ranking` of these two, in which equal suspicion is one
level: its samples are accepted together or not at all, and the order of rows has no effect. Without any sample all are
NaN.

Accepting the samples up to a level gives a *coverage*, the share of all samples that is accepted, and a *risk*, the
share of errors among the accepted; the *generalised risk* is the share of accepted errors among all samples.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.ranking import Metric, Ranking, aligned, metric


@dataclass(frozen=True)
class Share:
    """A share with its counts and its 95 % Wilson interval; ``value`` is NaN where ``of`` is 0.

    Attributes:
        value: ``count / of``, in [0, 1].
        count: Number counted.
        of: Number of trials.
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
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), count / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    # At 0 and 1 an end of the interval is p itself, which rounding must not pass.
    return Share(p, count, of, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


@dataclass(frozen=True)
class Detection:
    """Quality of a flag.

    Attributes:
        coverage: Share of samples that is trusted, which are those not flagged.
        risk: Share of errors among the trusted.
        recall: Share of the base model's errors that is flagged.
        precision: Share of errors among the flagged.
        flagged: Number of flagged samples.
        errors: Number of errors of the base model.
        caught: Number of flagged errors.
    """

    coverage: Share
    risk: Share
    recall: Share
    precision: Share
    flagged: int
    errors: int
    caught: int


def detection(flagged: ArrayLike, wrong: ArrayLike) -> Detection:
    """Returns coverage, risk, recall and precision of a flag, with counts and 95 % Wilson intervals.

    Args:
        flagged: bool ``(N,)``.
        wrong: bool ``(N,)``, where the base model is wrong.

    Example:
        >>> found = detection([True, True, False, False], [True, False, True, False])
        >>> found.recall.value, found.precision.value
        (0.5, 0.5)
    """
    flags, errors = aligned(np.asarray(flagged, bool), wrong)
    caught, trusted = int((flags & errors).sum()), int((~flags).sum())
    return Detection(
        coverage=share(trusted, len(flags)),
        risk=share(int(errors.sum()) - caught, trusted),
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
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or not a.size:
        raise ArgumentError(f"fidelity: expected two equal shapes of at least one sample, got {a.shape} and {b.shape}.")
    return float((a == b).mean())


def most_suspect(suspicion: ArrayLike, count: int) -> NDArray[np.bool_]:
    """Returns bool ``(N,)``: the ``count`` samples of highest suspicion, the earlier of equal ones first."""
    order = np.argsort(-np.asarray(suspicion, float), kind="stable")
    flags = np.zeros(len(order), bool)
    flags[order[:count]] = True
    return flags


@metric("AUROC", higher_is_better=True)
def auroc(ranking: Ranking) -> float:
    """Returns the probability that an error is more suspect than a right prediction, ties counted half, in [0, 1].

    NaN where the base model is always right or always wrong.

    Reference:
        Hanley and McNeil (1982), The Meaning and Use of the Area under a ROC Curve.
    """
    less_suspect = ranking.right.cumsum() - ranking.right / 2
    return _ratio(ranking.wrong @ less_suspect, float(ranking.right.sum()) * float(ranking.wrong.sum()))


@metric("AUPR-Error", higher_is_better=True)
def aupr_error(ranking: Ranking) -> float:
    """Returns the average precision with errors as the positive class, in [0, 1]; NaN where there is no error.

    With right predictions as the positive class it is ``aupr_error(-suspicion, ~wrong)``.
    """
    wrong, right = ranking.wrong[::-1], ranking.right[::-1]
    held = np.flatnonzero(wrong)
    found, taken = wrong.cumsum(), (wrong + right).cumsum()
    return _ratio(wrong[held] @ (found[held] / taken[held]), wrong.sum())


@metric("FPR95", higher_is_better=False)
def fpr95(ranking: Ranking) -> float:
    """Returns the share of errors that are accepted where at least 95 % of the right predictions are, in [0, 1].

    The convention of the papers on error detection: right predictions are the positive class, and the threshold is
    the strictest that accepts 95 % of them. With errors as the positive class it is ``fpr95(-suspicion, ~wrong)``.
    NaN where the base model is always right or always wrong.

    Reference:
        Corbière et al. (2019), Addressing Failure Prediction by Learning Model Confidence.
    """
    right = int(ranking.right.sum())
    if not right:
        return float("nan")
    level = np.searchsorted(ranking.right.cumsum(), -(-95 * right // 100))  # in whole numbers, without rounding
    return _ratio(ranking.wrong[: level + 1].sum(), ranking.wrong.sum())


@metric("AURC", higher_is_better=False)
def aurc(ranking: Ranking) -> float:
    """Returns the area under the risk over coverage, by the trapezoid rule between levels, in [0, 1].

    Before the first level the risk is taken as there, so that without any order the area is the model's error rate.

    Reference:
        Geifman et al. (2019), Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers; with ties as
        Traub et al. (2024), Overcoming Common Flaws in the Evaluation of Selective Classification Systems.
    """
    covered, failed = _accepted(ranking)
    risk = failed / covered
    inner = np.diff(covered) @ (risk[1:] + risk[:-1]) / 2
    return _ratio(failed[:1].sum() + inner, covered[-1:].sum())


@metric("E-AURC", higher_is_better=False)
def eaurc(ranking: Ranking) -> float:
    """Returns the AURC in excess of ``e + (1 - e) ln(1 - e)``, the least possible at the model's error rate ``e``.

    That least is the area for infinitely many samples with all errors above all right predictions. With few levels the
    trapezoid rule can lie below it, so a perfect score of two levels has an E-AURC below 0.

    Reference:
        Geifman et al. (2019), Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers.
    """
    error_rate = _ratio(ranking.wrong.sum(), ranking.wrong.sum() + ranking.right.sum())
    return aurc.of_ranking(ranking) - error_rate - float(scipy.special.xlogy(1 - error_rate, 1 - error_rate))


@metric("AUGRC", higher_is_better=False)
def augrc(ranking: Ranking) -> float:
    """Returns the area under the generalised risk over coverage, in [0, 1/2]: the mean risk of undetected errors.

    Unlike the AURC it weighs every error alike. ``AUGRC = (1 - AUROC) a (1 - a) + (1 - a)² / 2`` at accuracy ``a``.

    Reference:
        Traub et al. (2024), Overcoming Common Flaws in the Evaluation of Selective Classification Systems.
    """
    samples = ranking.right + ranking.wrong
    failed = ranking.wrong.cumsum() - ranking.wrong / 2
    return _ratio(samples @ failed, float(samples.sum()) ** 2)


@metric("AURC, achievable", higher_is_better=False)
def aurc_achievable(ranking: Ranking) -> float:
    """Returns the area under the least risk at each coverage that thresholds drawn at random can reach, in [0, 1].

    Mixing two thresholds reaches any point between them in generalised risk and coverage, so the lower convex hull
    there is reached. Its slopes are the isotonic regression of the error rate on suspicion, and over a piece of the
    hull the risk ``s + b / coverage`` is integrated exactly.

    Reference:
        Traub et al. (2024), Overcoming Common Flaws in the Evaluation of Selective Classification Systems.
    """
    samples = ranking.right + ranking.wrong
    held = samples > 0
    if not held.any():
        return float("nan")
    width = samples[held] / samples.sum()
    slope = scipy.optimize.isotonic_regression(ranking.wrong[held] / samples[held], weights=width).x
    covered, failed = width.cumsum(), (slope * width).cumsum()
    offset = failed[:-1] - slope[1:] * covered[:-1]
    return float(slope @ width + offset @ np.log(covered[1:] / covered[:-1]))


@metric("Coverage at risk", higher_is_better=True)
def coverage_at_risk(ranking: Ranking, risk: float) -> float:
    """Returns the greatest coverage of a threshold with at most this ``risk``, in [0, 1]; 0 where none has.

    It describes these samples and guarantees nothing for others: `risk_threshold` does.
    """
    if not 0 <= risk <= 1:
        raise ArgumentError(f"risk: expected a number from 0 to 1, got {risk}.")
    covered, failed = _accepted(ranking)
    return _ratio(covered[failed / covered <= risk].max(initial=0), covered[-1:].sum())


@metric("Risk at coverage", higher_is_better=False)
def risk_at_coverage(ranking: Ranking, coverage: float) -> float:
    """Returns the risk of the strictest threshold that accepts at least the share ``coverage``, in (0, 1]."""
    if not 0 < coverage <= 1:
        raise ArgumentError(f"coverage: expected a number above 0 and at most 1, got {coverage}.")
    covered, failed = _accepted(ranking)
    if not len(covered):
        return float("nan")
    level = np.searchsorted(covered / covered[-1], coverage)
    return float(failed[level] / covered[level])


@metric("Calibration error", higher_is_better=False)
def expected_calibration_error(ranking: Ranking, bins: int = 15) -> float:
    """Returns the mean distance between the predicted and the observed share of errors over ``bins`` bins, in [0, 1].

    Suspicion must be a probability of error, in [0, 1]. Bins hold equally many samples as far as ties allow: with equal
    widths, nearly all samples of a good classifier would share the lowest bin. A level belongs to the bin of its middle
    rank. The estimate is biased upwards, more so with fewer samples in a bin.

    Reference:
        Naeini et al. (2015), Obtaining Well Calibrated Probabilities Using Bayesian Binning; Nguyen and O'Connor
        (2015), Posterior Calibration and Exploratory Analysis, for bins of equal mass.
    """
    if bins < 1:
        raise ArgumentError(f"bins: expected at least 1, got {bins}.")
    levels = ranking.levels
    if len(levels) and not (levels[0] >= 0 and levels[-1] <= 1):
        raise ArgumentError(
            f"probability: expected numbers from 0 to 1, got {levels[0]:.3g} to {levels[-1]:.3g}. "
            "Turn the suspicion into a probability of error first."
        )
    samples, wrong, predicted = ranking.binned(bins)
    return _ratio(np.abs(wrong - predicted).sum(), samples.sum())


METRICS: dict[str, Metric[[]]] = {
    chosen.name: chosen for chosen in (auroc, aupr_error, fpr95, aurc, eaurc, augrc, aurc_achievable)
}
"""The metrics without further arguments, by name, in the order of a table's columns."""


def _ratio(count: Any, of: Any) -> float:
    return float(count / of) if of else float("nan")


def _accepted(ranking: Ranking) -> tuple[NDArray[Any], NDArray[Any]]:
    """How many samples, and how many errors, are accepted up to each level, from the first that holds a sample."""
    covered, failed = (ranking.right + ranking.wrong).cumsum(), ranking.wrong.cumsum()
    first = np.searchsorted(covered, 0, side="right")
    return covered[first:], failed[first:]
