"""The trade-off of risk and coverage: what labels can guarantee, what they show, and what more of them would bring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.selective.audit import inverse_chances
from petm.selective.ranking import calibration_arrays
from petm.selective.thresholds import check_share, guaranteed_coverage

RISKS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Greatest shares of errors among the trusted that are compared."""


@dataclass(frozen=True)
class Coverages:
    """Shares of all predictions that may be trusted at one risk; 0 where none may.

    Attributes:
        guaranteed: With the guarantee that `risk_threshold` gives on these labels.
        seen: Greatest one whose risk on these labels is as asked; guarantees nothing.
        twice: Guaranteed with twice the labels, if errors stay as frequent as seen; an estimate.
        ten_times: The same with ten times the labels.
    """

    guaranteed: float
    seen: float
    twice: float
    ten_times: float


@dataclass(frozen=True)
class TradeOff:
    """Coverage at one risk.

    Attributes:
        max_risk: Greatest share of errors among the trusted.
        confidence: Confidence of each guarantee by itself: a risk chosen by looking at the table spends it again.
        chosen: By the grader's suspicion.
        softmax: By 1 less the base model's greatest probability.
    """

    max_risk: float
    confidence: float
    chosen: Coverages
    softmax: Coverages


def trade_off(
    suspicion: ArrayLike,
    softmax: ArrayLike,
    wrong: ArrayLike,
    *,
    risks: Sequence[float] = RISKS,
    confidence: float = 0.95,
    chance: ArrayLike | None = None,
) -> list[TradeOff]:
    """Returns the coverage at each risk, by the grader's suspicion and by the softmax.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        softmax: float ``(N,)``, the suspicion of the base model alone, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        risks: Greatest shares of errors among the trusted, each between 0 and 1, both excluded.
        confidence: Confidence of each guarantee, between 0 and 1, both excluded.
        chance: float ``(N,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for equal chances.

    Raises:
        ArgumentError: Shapes differ, or a value is outside its range.
    """
    check_share("confidence", confidence, below_1=True)
    for risk in risks:
        check_share("risks", risk, below_1=True)

    def coverages(scores: ArrayLike, max_risk: float) -> Coverages:
        guaranteed, twice, ten_times = (
            guaranteed_coverage(scores, wrong, max_risk=max_risk, confidence=confidence, chance=chance, copies=copies)
            for copies in (1, 2, 10)
        )
        checked, errors = calibration_arrays(scores, wrong)
        seen = _coverage_at_risk(checked, errors, max_risk, inverse_chances(chance, len(checked)))
        return Coverages(guaranteed, seen, twice, ten_times)

    return [TradeOff(risk, confidence, coverages(suspicion, risk), coverages(softmax, risk)) for risk in risks]


def _coverage_at_risk(
    scores: NDArray[np.float64], errors: NDArray[np.bool_], risk: float, weights: NDArray[np.float64]
) -> float:
    """The greatest weighted share below a threshold with at most this weighted risk; ties go together."""
    levels, level = np.unique(scores, return_inverse=True)
    covered = np.bincount(level, weights, len(levels)).cumsum()
    failed = np.bincount(level, weights * errors, len(levels)).cumsum()
    return float(covered[failed / covered <= risk].max(initial=0) / covered[-1])
