"""A check before the flight: how many errors the base model makes on its training data, and what follows from that."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from petm.data.base import Data, as_data
from petm.models.prediction import predict_logits
from petm.selective.metrics import Share, share
from petm.training.error_set import ErrorSet, check_error_set, find_errors

CHECKED = 10_000
"""Samples at most on which the errors of the base model are counted where none of them is replaced."""
ENOUGH, ENOUGH_SHARE = 100, 0.005
"""Errors, and their share of the samples, from which on the base model's own suffice: 507 of 60,000 did, 9 did not."""

Verdict = Literal["none", "too few", "enough", "too many"]
_MINE = "mine errors from another source (hardest, augmented, out-of-fold)"


@dataclass(frozen=True)
class Preflight:
    """How many errors the base model makes on its training data, and what follows from that.

    Attributes:
        samples: ``N``.
        errors: How many of them the base model gets wrong.
        accuracy: Share of the others, in [0, 1].
        error_rate: With its 95 % Wilson interval.
        verdict: ``none``, ``too few``, ``enough`` or ``too many``.
        advice: What to do, in one sentence.
    """

    samples: int
    errors: int
    accuracy: float
    error_rate: Share
    verdict: Verdict
    advice: str

    def __str__(self) -> str:
        rate, low, high = (100 * value for value in (self.error_rate.value, self.error_rate.low, self.error_rate.high))
        count = f"{self.errors:,} {'error' if self.errors == 1 else 'errors'} of {self.samples:,} samples"
        return f"{count} ({rate:.3g} %, 95 % interval {low:.2g} to {high:.2g} %). {self.advice}"


def preflight(model: nn.Module, data: Data, *, errors: ErrorSet | None = None) -> Preflight:
    """Returns how many errors the base model makes on its training data, and what that means for the method.

    Enough are at least 100 and 0.5 % of the samples. Too many are so many that the base model cannot be told from
    guessing: the interval of its error rate reaches ``1 - 1/K``.

    Args:
        model: The base model.
        data: ``N`` labelled samples, those that the base model was trained on.
        errors: the base model's errors in ``data``, where they are known already; this spares the pass over the data.

    Raises:
        ArgumentError: ``errors`` belongs to other data.
        DataError: A label is missing or outside 0..K-1, only one class is present, or there is no sample.
        ModelError: The model cannot take the samples, or does not return ``(N, K)``.
    """
    data = as_data(data)
    found = find_errors(model, data) if errors is None else errors
    check_error_set(found, data)
    classes = predict_logits(model, data.subset([0])).shape[1]
    rate = share(len(found), len(data))
    verdict: Verdict = "too few"
    advice = f"These are too few to learn from: {_MINE}."
    if not len(found):
        verdict, advice = "none", f"There is nothing to learn from: {_MINE}."
    elif rate.high >= 1 - 1 / classes:
        verdict = "too many"
        advice = (
            f"A cannot be told from guessing among its {classes} classes: check the order of the classes, the labels, "
            f"and how the inputs are read and scaled."
        )
    elif len(found) >= ENOUGH and rate.value >= ENOUGH_SHARE:
        verdict, advice = "enough", "These are enough to learn from as they are."
    return Preflight(len(data), len(found), 1 - rate.value, rate, verdict, advice)
