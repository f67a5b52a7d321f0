"""What a grader brings beside the softmax, on its calibration samples: risk over coverage, and the user's units."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from petm._internal.records import Record
from petm.errors import BundleError
from petm.selective.bootstrap import Estimate
from petm.selective.targets import Coverage, Disagreement, Target
from petm.selective.thresholds import Threshold
from petm.selective.trade_off import Coverages, TradeOff, trade_off
from petm.selective.worth import Answer, Worth, worth

_NUMBERS = ("reviewed", "missed", "softmax_reviewed", "softmax_missed", "confidence")


@dataclass(frozen=True)
class Outcome:
    """The result of a grader.

    Attributes:
        trade_off: The coverage at each risk.
        worth: Of 1,000 predictions, the work and the errors that are left, by thresholds on the same samples.
        softmax_alone: Whether suspicion is the softmax itself.
    """

    trade_off: tuple[TradeOff, ...]
    worth: Worth
    softmax_alone: bool

    @property
    def sentences(self) -> tuple[str, ...]:
        """The work and the errors that are left, and whether the grader is worth it against the softmax."""
        return (f"{self.worth.own}.",) if self.softmax_alone else (self.worth.summary, self.worth.sentence)

    @classmethod
    def from_json(cls, record: Record) -> "Outcome":
        """Returns the outcome from a manifest; raises BundleError where an entry breaks its rule."""
        rows = tuple(
            TradeOff(
                row.number("max_risk", least=0, most=1),
                row.number("confidence", least=0, most=1),
                _coverages(row.record("chosen")),
                _coverages(row.record("softmax")),
            )
            for row in record.records("trade_off")
        )
        held = record.record("worth")
        if (answer := held.text("answer")) not in get_args(Answer):
            known = ", ".join(get_args(Answer))
            raise BundleError(f"{held.place}, answer: expected one of {known}, got {answer!r:.80}.")
        told: dict[str, Any] = {name: held.number(name) for name in _NUMBERS}
        told |= {name: _estimate(held.record(name)) for name in ("reviewed_more", "missed_more")}
        return cls(rows, Worth(**told, answer=answer), record.flag("softmax_alone"))  # type: ignore[arg-type]


def outcome_of(
    suspicion: ArrayLike,
    softmax: ArrayLike,
    wrong: ArrayLike,
    predicted: ArrayLike,
    *,
    threshold: Threshold,
    target: Target,
    classes: int,
    chance: ArrayLike | None = None,
) -> Outcome:
    """Returns what a grader brings beside the softmax, whose threshold has the same target on the same samples.

    For the paper's flag, which the softmax lacks, it is the softmax that trusts as many.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        softmax: float ``(N,)``, the suspicion of the base model alone, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        predicted: int ``(N,)``, the classes that it predicts.
        threshold: The grader's threshold.
        target: Its target.
        classes: Number of classes, ``K``.
        chance: float ``(N,)``, the chance with which each was drawn to be labelled; None for equal chances.
    """
    confidence = getattr(target, "confidence", None) or 0.95
    like = Coverage(threshold.coverage) if isinstance(target, Disagreement) and threshold.coverage else target
    other = like.threshold(softmax, wrong, predicted, classes=classes, chance=chance)
    trusted, theirs = threshold.trusts(suspicion, predicted), other.trusts(softmax, predicted)
    return Outcome(
        tuple(trade_off(suspicion, softmax, wrong, confidence=confidence, chance=chance)),
        worth(trusted, theirs, wrong, chance=chance),
        bool(np.array_equal(suspicion, softmax)),
    )


def _coverages(record: Record) -> Coverages:
    return Coverages(*(record.number(name, least=0, most=1) for name in ("guaranteed", "seen", "twice", "ten_times")))


def _estimate(record: Record) -> Estimate:
    return Estimate(*map(record.number, ("value", "low", "high")))
