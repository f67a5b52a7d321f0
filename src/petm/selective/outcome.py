"""What a grader brings beside the softmax, on its calibration samples: risk over coverage, and the user's units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from petm._internal.records import Record
from petm.errors import BundleError
from petm.selective.bootstrap import Estimate
from petm.selective.groups import Values
from petm.selective.targets import Coverage, Disagreement, Target
from petm.selective.thresholds import Threshold
from petm.selective.trade_off import Coverages, TradeOff, trade_off
from petm.selective.worth import Answer, Worth, worth

_OPTIMISTIC = "Suspicion was chosen on these labels, so it looks a little better here than on later inputs."
_NUMBERS = ("reviewed", "missed", "softmax_reviewed", "softmax_missed", "confidence")


@dataclass(frozen=True)
class Outcome:
    """The result of a grader.

    Attributes:
        trade_off: The coverage at each risk.
        worth: Of 1,000 predictions, the work and the errors that are left, by thresholds on the same samples.
        softmax_alone: Whether suspicion is the softmax itself.
        chosen_here: Whether suspicion was chosen on the same samples, so that only as many fresh ones would guarantee
            what `trade_off` says.
        against: What is compared, where it is not the softmax of a network: a column of scores.
    """

    trade_off: tuple[TradeOff, ...]
    worth: Worth
    softmax_alone: bool
    chosen_here: bool = False
    against: str = "softmax"

    @property
    def sentences(self) -> tuple[str, ...]:
        """The work and the errors that are left, and whether the grader is worth it against the softmax."""
        if self.softmax_alone:
            return (f"{self.worth.own}.",)
        told = (self.worth.summary, self.worth.sentence)
        named = (each.replace("the softmax", f"the {self.against}") for each in told)
        return (*named, *((_OPTIMISTIC,) if self.chosen_here else ()))

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
        brought = Worth(**told, answer=answer)  # type: ignore[arg-type]
        return cls(
            rows,
            brought,
            record.flag("softmax_alone"),
            record.flag("chosen_here"),
            record.text_or_none("against") or cls.against,
        )


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
    groups: Mapping[str, Values] | None = None,
    chosen_here: bool = False,
    against: str = Outcome.against,
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
        groups: The values of group columns, ``(N,)`` each by name, where there are some.
        chosen_here: Whether suspicion was chosen on these samples.
        against: The name of ``softmax``, where that is a column of scores.
    """
    confidence = getattr(target, "confidence", None) or 0.95
    like = Coverage(threshold.coverage) if isinstance(target, Disagreement) and threshold.coverage else target
    other = like.threshold(softmax, wrong, predicted, classes=classes, chance=chance, groups=groups)
    trusted, theirs = (
        each.trusts(values, predicted, groups) for each, values in ((threshold, suspicion), (other, softmax))
    )
    return Outcome(
        tuple(trade_off(suspicion, softmax, wrong, confidence=confidence, chance=chance)),
        worth(trusted, theirs, wrong, chance=chance),
        bool(np.array_equal(suspicion, softmax)),
        chosen_here,
        against,
    )


def _coverages(record: Record) -> Coverages:
    return Coverages(*(record.number(name, least=0, most=1) for name in ("guaranteed", "seen", "twice", "ten_times")))


def _estimate(record: Record) -> Estimate:
    return Estimate(*map(record.number, ("value", "low", "high")))
