"""Risk-coverage curve of a suspicion, and reliability diagram of a probability of error."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.selective.metrics import Share, expected_calibration_error, risk_at_coverage, share
from petm.selective.probability import fit_probability, folds
from petm.selective.ranking import RankedRows, aligned

BINS = 10
"""Bins of the reliability diagram, with equally many samples each; few, so that each share is precise."""
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Coverages at which reports give the risk."""
POINTS = 400
"""Points of a drawn curve, about, at most."""


class RiskCurve(NamedTuple):
    """Risk, the share of errors among the accepted, over coverage, ascending to 1; float64 ``(n,)`` each."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: the mean probability of error of its samples, and their share of errors."""

    predicted: float
    observed: Share


@dataclass(frozen=True)
class Step:
    """The risk at one coverage by suspicion, and by the softmax alone."""

    coverage: float
    risk: float
    softmax: float


@dataclass(frozen=True)
class Judgement:
    """Quality of a suspicion and of its probability of error, for reports.

    Attributes:
        bins: The reliability diagram; empty where errors, or right predictions, are too few to cross-validate.
        calibration_error: The mean distance from the diagonal over these bins, in [0, 1]; NaN without them.
        coverage: The share that is trusted.
        risk: The share of errors among the trusted, with its interval.
        steps: The risk at the coverages `COVERAGES`.
    """

    bins: tuple[Bin, ...]
    calibration_error: float
    coverage: float
    risk: Share
    steps: tuple[Step, ...]


def judge(suspicion: ArrayLike, softmax: ArrayLike, wrong: ArrayLike, trusted: ArrayLike) -> Judgement:
    """Returns the reliability of the probability of error, cross-validated, and the risk at several coverages.

    Args:
        suspicion: float ``(N,)``, finite.
        softmax: float ``(N,)``, `petm.models.scores.maximum_softmax` of the base model.
        wrong: bool ``(N,)``, where the base model is wrong.
        trusted: bool ``(N,)``, the grades.
    """
    kept, errors = aligned(np.asarray(trusted, bool), wrong)
    probability = cross_validated(suspicion, errors)
    return Judgement(
        bins=() if probability is None else reliability(probability, errors),
        calibration_error=np.nan if probability is None else expected_calibration_error(probability, errors, bins=BINS),
        coverage=float(kept.mean()),
        risk=share(int(errors[kept].sum()), int(kept.sum())),
        steps=tuple(
            Step(part, risk_at_coverage(suspicion, errors, part), risk_at_coverage(softmax, errors, part))
            for part in COVERAGES
        ),
    )


def risk_coverage(suspicion: ArrayLike, wrong: ArrayLike) -> RiskCurve:
    """Returns the risk at each coverage that a threshold reaches, thinned to about `POINTS` equal steps of coverage.

    Args:
        suspicion: float ``(N,)``.
        wrong: bool ``(N,)``, where the base model is wrong.

    Reference:
        El-Yaniv and Wiener (2010), On the Foundations of Noise-free Selective Classification.
    """
    ranking = RankedRows(suspicion, wrong).ranking()
    covered, failed = (ranking.right + ranking.wrong).cumsum(), ranking.wrong.cumsum()
    total = covered[-1] if len(covered) else 0
    kept = np.unique(np.searchsorted(covered, np.linspace(1, total, min(POINTS, total))))
    return RiskCurve(covered[kept] / max(total, 1), failed[kept] / covered[kept])


def reliability(probability: ArrayLike, wrong: ArrayLike, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Returns predicted and observed shares of errors in bins of equally many samples, as far as ties allow.

    The bins are those of `expected_calibration_error`; bins without samples are left out.

    Args:
        probability: float ``(N,)``, probability of error in [0, 1].
        wrong: bool ``(N,)``, where the base model is wrong.
        bins: Number of bins, at least 1.

    Reference:
        Nguyen and O'Connor (2015), Posterior Calibration and Exploratory Analysis, for bins of equal mass.
    """
    return tuple(
        Bin(float(predicted / held), share(int(failed), int(held)))
        for held, failed, predicted in RankedRows(probability, wrong).ranking().binned(bins).T
        if held
    )


def cross_validated(suspicion: ArrayLike, wrong: ArrayLike, *, seed: int = 0) -> NDArray[np.float64] | None:
    """Returns the probability of error of each sample by `fit_probability` on the other folds, float64 ``(N,)``.

    The folds are stratified by error. None where there are fewer than two errors, or two right predictions.

    Args:
        suspicion: float ``(N,)``, finite.
        wrong: bool ``(N,)``, where the base model is wrong.
        seed: Seed of the folds.
    """
    scores, errors = aligned(np.asarray(suspicion, np.float64), wrong)
    if min(errors.sum(), (~errors).sum()) < 2:
        return None
    found = np.empty(len(scores))
    for fitted, judged in folds(errors, seed):
        found[judged] = fit_probability(scores[fitted], errors[fitted], seed=seed).probability(scores[judged])
    return found
