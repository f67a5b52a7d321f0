"""Checks before training: the base model's errors on its training data, and whether the labels are its own."""

import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor, nn

from petm.data.base import Data, as_data
from petm.errors import DataError, PetmWarning
from petm.models.prediction import predict_logits
from petm.selective.label_order import (
    DOUBTFUL,
    PERMUTED,
    SIGNIFICANCE,
    WORTHLESS,
    better_order,
    guessing_probability,
    kappa_limit,
    pairing_probability,
)
from petm.selective.metrics import Share, share
from petm.training.error_set import find_errors

CHECKED = 10_000
"""Most samples on which the base model's errors are counted where none of them is replaced."""
ENOUGH, ENOUGH_SHARE = 100, 0.005
"""Least number of errors, and least share of the samples, to learn from: 507 of 60,000 sufficed, 9 did not."""
_MINE = "mine errors from another source (hardest, augmented, out-of-fold)"

FAR = 0.15
"""Difference of the accuracies on data and calibration set that is warned of."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The base model's predictions on labelled samples.

    Attributes:
        predicted: int64 ``(N,)``, predicted classes.
        labels: int64 ``(N,)``, true classes.
        classes: Number of outputs, ``K``.
        names: ``K`` class names of the labels; empty where they have none.
        source: Origin of the samples, for messages.
    """

    predicted: Tensor
    labels: Tensor
    classes: int
    names: tuple[str, ...]
    source: str

    @property
    def accuracy(self) -> Share:
        """The share of right predictions, with its 95 % Wilson interval."""
        return share(int((self.predicted == self.labels).sum()), len(self.labels))

    def check(self, argument: str, *, like: "Answers | None" = None) -> None:
        """Checks that the labels are those of the model: right more often than guessing, and in the model's order.

        What is doubtful is said in a warning.

        Args:
            argument: The argument that the samples were passed as, for messages.
            like: Answers on other samples that have passed. Few samples, as right as those within the error of their
                number, are then no guesses, though alone they could not be told from it.

        Raises:
            DataError: Another order of the classes suits the labels better, or guessing is right as often.
        """
        predicted, labels = self.predicted.numpy(), self.labels.numpy()
        right = self.accuracy
        got = f"{right.count:,} of {right.of:,} right ({self.source})"
        orders = (better_order(predicted, labels, classes=self.classes, level=level) for level in (PERMUTED, DOUBTFUL))
        clear = next(orders)
        if (order := next(orders) if clear is None else clear) is not None:
            moved = [f"{self._called(int(output))} is labelled {self._name(int(order[output]))}"
                     for output in np.unique(predicted) if order[output] != output]  # fmt: skip
            after = int((order[predicted] == labels).sum())
            more = ", ..." if len(moved) > 12 else ""
            _refuse(
                f"{argument}: expected labels in the order of the model's outputs, got {got}, and {after:,} where the "
                f"model's class {', '.join(moved[:12])}{more}. Name the classes in the model's order (classes, "
                f"--classes)",
                clear=clear is not None,
            )
        if like is not None and right.high >= like.accuracy.low:
            return
        if pairing_probability(predicted, labels, classes=self.classes) < SIGNIFICANCE:
            return
        by_chance = guessing_probability(predicted, labels, classes=self.classes)
        if by_chance < SIGNIFICANCE:  # but not more often than at random with the same classes
            if (labels != labels[0]).any():
                _refuse(
                    f"{argument}: expected predictions that follow the labels, right more often than the "
                    f"same classes dealt out at random, got {got}. Check the weights, the labels, and how inputs are "
                    f"read and scaled",
                    clear=kappa_limit(predicted, labels, classes=self.classes) < WORTHLESS,
                )
            return
        if (predicted == predicted[0]).all():
            raise DataError(
                f"{argument}: expected predictions of more than one class, got {self._name(int(predicted[0]))} for all "
                f"{right.of:,} samples, {right.count:,} of them right ({self.source}). Check the weights, and how "
                f"inputs are read and scaled; or go on with force=True (--force) where the model is meant to answer so."
            )
        by_luck = f", as guessing has in {by_chance:.0%} of cases" if right.value > 1 / self.classes else ""
        raise DataError(
            f"{argument}: expected predictions that are right more often than guessing among {self.classes} "
            f"classes, got {got}{by_luck}. Check the weights, the labels, and how inputs are read and scaled"
            f"{', or pass more samples' if by_luck else ''}; or go on with force=True (--force)."
        )

    def _name(self, label: int) -> str:
        return repr(self.names[label]) if self.names else str(label)

    def _called(self, output: int) -> str:
        """An output of the model, with the name that it was given."""
        return f"{output} (named {self.names[output]!r})" if self.names else str(output)


def _refuse(message: str, *, clear: bool) -> None:
    """Raises DataError where a fault is clear, and warns of it otherwise."""
    if clear:
        raise DataError(f"{message}, or go on with force=True (--force).")
    warnings.warn(f"{message}.", PetmWarning, stacklevel=4)


def compare_answers(data: Answers, calibration: Answers) -> None:
    """Warns where the accuracies on training data and calibration set lie far apart."""
    one, other = data.accuracy, calibration.accuracy
    if abs(one.value - other.value) > FAR and (one.low > other.high or other.low > one.high):
        learned = ", unless the model has learned its training data by heart" if one.value > other.value else ""
        warnings.warn(
            f"calibration: expected samples like the data, got an accuracy of {other.value:.1%} on them and of "
            f"{one.value:.1%} on the data. Check that both have the same labels, and are read and scaled "
            f"alike{learned}.",
            PetmWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class Preflight:
    """The base model's errors on its training data.

    Attributes:
        samples: ``N``.
        errors: Number of samples that the base model gets wrong.
        error_rate: Their share, with its 95 % Wilson interval.
        verdict: ``none``, ``too few``, ``enough`` or ``too many``.
        advice: What to do, in one sentence.
        answers: The base model's predictions.
    """

    samples: int
    errors: int
    error_rate: Share
    verdict: Literal["none", "too few", "enough", "too many"]
    advice: str
    answers: "Answers" = field(repr=False, compare=False)

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
    found = find_errors(model, data)
    errors, rate = len(found), share(len(found), len(data))
    classes = predict_logits(model, data.subset([0])).shape[1]
    predicted = data.labels.clone()
    predicted[found.indices] = found.predictions
    answers = Answers(predicted, data.labels, classes, data.classes, data.source)
    if not errors:
        return Preflight(len(data), errors, rate, "none", f"There is nothing to learn from: {_MINE}.", answers)
    if rate.high >= 1 - 1 / classes:
        advice = (
            f"The model cannot be told from guessing among its {classes} classes: check the order of the classes, the "
            f"labels, and how the inputs are read and scaled."
        )
        return Preflight(len(data), errors, rate, "too many", advice, answers)
    if errors >= ENOUGH and rate.value >= ENOUGH_SHARE:
        advice = "These are enough to learn from as they are."
        return Preflight(len(data), errors, rate, "enough", advice, answers)
    return Preflight(len(data), errors, rate, "too few", f"These are too few to learn from: {_MINE}.", answers)
