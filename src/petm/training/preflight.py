"""A check before training: how many errors the base model makes on its training data, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from petm.data.base import Data, as_data
from petm.models.prediction import predict_logits
from petm.selective.metrics import Share, share
from petm.training.error_set import find_errors

CHECKED = 10_000
"""Most samples on which the base model's errors are counted where none of them is replaced."""
ENOUGH, ENOUGH_SHARE = 100, 0.005
"""Least number of errors, and least share of the samples, to learn from: 507 of 60,000 sufficed, 9 did not."""
_MINE = "mine errors from another source (hardest, augmented, out-of-fold)"


@dataclass(frozen=True)
class Preflight:
    """The base model's errors on its training data.

    Attributes:
        samples: ``N``.
        errors: Number of samples that the base model gets wrong.
        error_rate: Their share, with its 95 % Wilson interval.
        verdict: ``none``, ``too few``, ``enough`` or ``too many``.
        advice: What to do, in one sentence.
    """

    samples: int
    errors: int
    error_rate: Share
    verdict: Literal["none", "too few", "enough", "too many"]
    advice: str

    def __str__(self) -> str:
        rate, low, high = (100 * value for value in (self.error_rate.value, self.error_rate.low, self.error_rate.high))
        count = f"{self.errors:,} {'error' if self.errors == 1 else 'errors'} of {self.samples:,} samples"
        return f"{count} ({rate:.3g} %, 95 % interval {low:.2g} to {high:.2g} %). {self.advice}"


def preflight(model: nn.Module, data: Data) -> Preflight:
    """Returns how many errors the base model makes on its training data, and what that means for the method.

    Enough are at least 100 and 0.5 % of the samples. Too many are as many as guessing may make: the interval of the
    error rate reaches ``1 - 1/K``.

    Args:
        model: The base model.
        data: ``N`` labelled samples, those that the base model was trained on.

    Raises:
        DataError: A label is missing or outside 0..K-1, only one class is present, or there is no sample.
        ModelError: The model cannot take the samples, or does not return ``(N, K)``.
    """
    data = as_data(data)
    errors = len(find_errors(model, data))
    classes = predict_logits(model, data.subset([0])).shape[1]
    rate = share(errors, len(data))
    if not errors:
        return Preflight(len(data), errors, rate, "none", f"There is nothing to learn from: {_MINE}.")
    if rate.high >= 1 - 1 / classes:
        advice = (
            f"The model cannot be told from guessing among its {classes} classes: check the order of the classes, the "
            f"labels, and how the inputs are read and scaled."
        )
        return Preflight(len(data), errors, rate, "too many", advice)
    if errors >= ENOUGH and rate.value >= ENOUGH_SHARE:
        return Preflight(len(data), errors, rate, "enough", "These are enough to learn from as they are.")
    return Preflight(len(data), errors, rate, "too few", f"These are too few to learn from: {_MINE}.")
