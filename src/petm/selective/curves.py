"""What a suspicion is worth at every threshold, and what a probability of error is worth at every level."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.selective.metrics import Share, expected_calibration_error, risk_at_coverage, share
from petm.selective.probability import FOLDS, fit_probability
from petm.selective.ranking import RankedRows, aligned

BINS = 10
"""Of the reliability diagram, with equally many samples each; in few bins each share is told more exactly."""
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""At which the risk is told in figures."""
POINTS = 400
"""A drawn curve has about so many points at most."""


class RiskCurve(NamedTuple):
    """Risk over coverage, float64 ``(n,)`` each, coverage ascending to 1."""

    coverage: NDArray[np.float64]
    """The share of all samples that is accepted."""
    risk: NDArray[np.float64]
    """The share of errors among them."""


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        guaranteed: The mean probability of error of its samples.
        observed: The share of errors among them.
    """

    guaranteed: float
    observed: Share


@dataclass(frozen=True)
class Step:
    """The risk of two orders at one coverage: of the suspicion, and of the plain softmax."""

    coverage: float
    risk: float
    softmax: float


@dataclass(frozen=True)
class Judgement:
    """What a report tells of a suspicion and of its probability of error.

    Attributes:
        bins: The reliability diagram; empty where errors, or right predictions, are too few to cross-validate.
        calibration_error: Over these bins, in [0, 1]; NaN without them.
        coverage: The share that the chosen threshold trusts.
        risk: The share of errors among the trusted, with its interval.
        steps: The risk at the coverages `COVERAGES`.
    """

    bins: tuple[Bin, ...]
    calibration_error: float
    coverage: float
    risk: Share
    steps: tuple[Step, ...]


def judge(suspicion: ArrayLike, softmax: ArrayLike, wrong: ArrayLike, trusted: ArrayLike) -> Judgement:
    """Returns the reliability of a cross-validated probability of error, and risk at coverage beside the softmax's.

    Args:
        suspicion: float ``(N,)``, finite.
        softmax: float ``(N,)``, `petm.models.scores.maximum_softmax` of the base model.
        wrong: bool ``(N,)``, where the base model is wrong.
        trusted: bool ``(N,)``, the grades.

    Raises:
        ArgumentError: The shapes differ, or there is no sample.
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

    Raises:
        ArgumentError: The shapes differ, or suspicion holds NaN.

    Reference:
        El-Yaniv and Wiener (2010), On the Foundations of Noise-free Selective Classification.
    """
    ranking = RankedRows(suspicion, wrong).ranking()
    covered, failed = (ranking.right + ranking.wrong).cumsum(), ranking.wrong.cumsum()
    total = covered[-1] if len(covered) else 0
    kept = np.unique(np.searchsorted(covered, np.linspace(1, total, min(POINTS, total))))
    return RiskCurve(covered[kept] / max(total, 1), failed[kept] / covered[kept])


def reliability(probability: ArrayLike, wrong: ArrayLike, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Returns guaranteed and observed shares of errors over bins of equally many samples, as far as ties allow.

    They are the bins of `expected_calibration_error`: a level goes whole into the bin of its middle rank,
    and bins without samples are left out.

    Args:
        probability: float ``(N,)`` in [0, 1], of error.
        wrong: bool ``(N,)``, where the base model is wrong.
        bins: At least 1.

    Raises:
        ArgumentError: The shapes differ, or probability holds NaN.

    Reference:
        Nguyen and O'Connor (2015), Posterior Calibration and Exploratory Analysis, for bins of equal mass.
    """
    ranking = RankedRows(probability, wrong).ranking()
    samples = ranking.right + ranking.wrong
    chosen = (bins * (samples.cumsum() - samples / 2) / max(samples.sum(), 1)).astype(np.int64)
    held, failed, guaranteed = (
        np.bincount(chosen, weights=weights, minlength=bins)
        for weights in (samples, ranking.wrong, samples * ranking.levels)
    )
    return tuple(
        Bin(float(guaranteed[place] / held[place]), share(int(failed[place]), int(held[place])))
        for place in np.flatnonzero(held)
    )


def cross_validated(suspicion: ArrayLike, wrong: ArrayLike, *, seed: int = 0) -> NDArray[np.float64] | None:
    """Returns for each sample the probability of error by a curve that was fitted without it, float64 ``(N,)``.

    The samples are dealt into folds, stratified by error; `fit_probability`, its choice of method
    included, is fitted on all folds but one and gives the probabilities of that one.

    Args:
        suspicion: float ``(N,)``, finite.
        wrong: bool ``(N,)``, where the base model is wrong.
        seed: Of the folds.

    Returns:
        Nothing where there are fewer than two errors, or fewer than two right predictions.

    Raises:
        ArgumentError: The shapes differ, or a suspicion is not finite.
    """
    scores, errors = aligned(np.asarray(suspicion, np.float64), wrong)
    rarer = int(min(errors.sum(), (~errors).sum()))
    if rarer < 2:
        return None
    from sklearn.model_selection import StratifiedKFold

    found = np.empty(len(scores))
    folds = StratifiedKFold(min(FOLDS, rarer), shuffle=True, random_state=seed)
    for fitted, judged in folds.split(scores[:, None], errors):
        found[judged] = fit_probability(scores[fitted], errors[fitted], seed=seed).probability(scores[judged])
    return found
