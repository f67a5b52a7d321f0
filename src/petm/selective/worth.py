"""The result in the user's units: what goes to a person and which errors stay, beside the softmax."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.audit import inverse_chances, thinned
from petm.selective.bootstrap import Estimate
from petm.selective.monitoring import exact_share
from petm.selective.ranking import aligned

PER = 1000
Answer = Literal["better", "worse", "mixed", "cannot tell"]


@dataclass(frozen=True)
class Worth:
    """Of `PER` predictions: the work left to people and the errors left among the trusted.

    Attributes:
        reviewed: Predictions that go to a person, as they are suspect.
        missed: Errors that stay among the trusted.
        softmax_reviewed: The same as ``reviewed``, with the softmax.
        softmax_missed: The same as ``missed``, with the softmax.
        reviewed_more: ``reviewed`` less ``softmax_reviewed``, with its interval on the same samples.
        missed_more: ``missed`` less ``softmax_missed``, with its interval on the same samples.
        confidence: Confidence of both intervals together.
        answer: ``better`` (or ``worse``) where one of the intervals lies below (above) 0 and the other holds 0 or lies
            there as well; ``mixed`` where one lies below and one above; else ``cannot tell``.
    """

    reviewed: float
    missed: float
    softmax_reviewed: float
    softmax_missed: float
    reviewed_more: Estimate
    missed_more: Estimate
    confidence: float
    answer: Answer

    @property
    def own(self) -> str:
        """The grader's two numbers as a sentence without its full stop."""
        left = f"{_count(self.reviewed)} go to a person and {_errors(self.missed)} among the trusted"
        return f"Of {PER:,} predictions {left}"

    @property
    def summary(self) -> str:
        """The four numbers as a sentence."""
        return f"{self.own}; with the softmax {_count(self.softmax_reviewed)} and {_count(self.softmax_missed)}."

    @property
    def sentence(self) -> str:
        """Whether the grader is worth it against the softmax, as a sentence with the intervals."""
        work, errors = _more(self.reviewed_more, "to review"), _more(self.missed_more, "errors among the trusted")
        told = {
            "better": "Worth it",
            "worse": "Not worth it, the softmax does better",
            "mixed": "Worth it only where one side counts more than the other",
            "cannot tell": "Not shown to be worth it: these labels show no difference from the softmax",
        }
        return (
            f"{told[self.answer]}: of {PER:,} predictions {work}, {errors}."
            if self.answer != "cannot tell"
            else (f"{told[self.answer]} ({work}, {errors}, of {PER:,}).")
        )


def cost_of(measured: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what grading takes, as one sentence, by a grader's figures; none where these do not say it."""
    extra = measured.get("extra_operations")
    if not isinstance(extra, float | int):
        return ()
    return (f"Grading takes {1 + extra:.2f} × the operations of the model alone, on the calibration samples.",)


def worth(
    trusted: ArrayLike,
    softmax_trusted: ArrayLike,
    wrong: ArrayLike,
    *,
    confidence: float = 0.95,
    chance: ArrayLike | None = None,
) -> Worth:
    """Returns what two grades of the same samples cost and leave, and whether the first is better.

    The intervals are paired: among the samples on which just one of the two says so, the share of the first has an
    exact interval (Clopper and Pearson), and its centre 1/2 is no difference, as in McNemar's exact test. Each interval
    has the error probability ``(1 - confidence) / 2`` given the number of such samples, whose own chance is left out:
    the side of 0 on which it lies is exact, its length a little short. They hold for grades by thresholds that were set
    on other samples; on the calibration samples themselves they look a little too good for both.

    Args:
        trusted: bool ``(N,)``, the grades.
        softmax_trusted: bool ``(N,)``, the grades by the softmax, with the same target.
        wrong: bool ``(N,)``, where the base model is wrong.
        confidence: Confidence of both intervals together, between 0 and 1.
        chance: float ``(N,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for equal chances.

    Raises:
        ArgumentError: Shapes differ, there is no sample, or a chance is outside its range.
    """
    ours, errors = aligned(np.asarray(trusted, bool), wrong)
    theirs, _ = aligned(np.asarray(softmax_trusted, bool), wrong)
    if not errors.size:
        raise ArgumentError("wrong: expected at least one sample, got none.")
    weights = inverse_chances(chance, len(errors))
    kept = thinned(weights)

    def of_all(flags: NDArray[np.bool_]) -> float:
        return PER * float(np.average(flags, weights=weights))

    def more(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
        only_first, either = int((first & ~second & kept).sum()), int(((first != second) & kept).sum())
        found = exact_share(only_first, either, confidence=(1 + confidence) / 2)
        apart = PER * either / int(kept.sum())
        value = of_all(first) - of_all(second)
        low, high = (apart * (2 * end - 1) for end in (found.low, found.high))
        return Estimate(value, min(low, value), max(high, value))

    reviewed, missed = more(~ours, ~theirs), more(ours & errors, theirs & errors)
    signs = {_side(reviewed), _side(missed)} - {0}
    answer: Answer = (
        "mixed" if len(signs) == 2 else "cannot tell" if not signs else "better" if -1 in signs else "worse"
    )
    return Worth(
        of_all(~ours),
        of_all(ours & errors),
        of_all(~theirs),
        of_all(theirs & errors),
        reviewed,
        missed,
        confidence,
        answer,
    )


def _side(difference: Estimate) -> int:
    """On which side of 0 the interval lies; 0 where it holds 0."""
    return int(difference.low > 0) - int(difference.high < 0)


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= 9.5 or value == 0 else f"{value:.1f}"


def _errors(value: float) -> str:
    return f"{_count(value)} errors stay"


def _more(difference: Estimate, what: str) -> str:
    few = difference.value < 0
    low, high = (-difference.high, -difference.low) if few else (difference.low, difference.high)
    return f"{_count(abs(difference.value))} {'fewer' if few else 'more'} {what} ({low + 0.0:.1f} to {high + 0.0:.1f})"
