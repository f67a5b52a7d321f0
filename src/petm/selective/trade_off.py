"""The trade-off of risk and coverage: what labels can guarantee, what they show, and what more of them would bring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.selective.audit import inverse_chances, thinned
from petm.selective.ranking import calibration_arrays
from petm.selective.thresholds import Ordered, check_share

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

    weights = inverse_chances(chance, np.size(wrong))
    alone = suspicion is softmax or np.array_equal(suspicion, softmax)
    both = [_Shares(scores, wrong, weights) for scores in ((suspicion,) if alone else (suspicion, softmax))]
    rows = [[each.at(risk, confidence) for each in both] for risk in risks]
    return [TradeOff(risk, confidence, row[0], row[-1]) for risk, row in zip(risks, rows, strict=True)]


class _Shares:
    """Samples that are sorted once, and the shares of them below a threshold, weighted; ties go together."""

    def __init__(self, suspicion: ArrayLike, wrong: ArrayLike, weights: NDArray[np.float64]) -> None:
        scores, errors = calibration_arrays(suspicion, wrong)
        kept = thinned(weights)
        self.ordered = Ordered.of(scores[kept], errors[kept])
        self.levels, level = np.unique(scores, return_inverse=True)
        self.covered = np.bincount(level, weights, len(self.levels)).cumsum()
        self.failed = np.bincount(level, weights * errors, len(self.levels)).cumsum()

    def at(self, risk: float, confidence: float) -> Coverages:
        guaranteed, twice, ten_times = (
            self._below(self.ordered.threshold(risk, confidence, 1 - confidence, copies).value) for copies in (1, 2, 10)
        )
        seen = self.covered[self.failed / self.covered <= risk].max(initial=0)
        return Coverages(guaranteed, float(seen / self.covered[-1]), twice, ten_times)

    def _below(self, value: float) -> float:
        place = int(np.searchsorted(self.levels, value))
        return float(self.covered[place - 1] / self.covered[-1]) if place else 0.0
