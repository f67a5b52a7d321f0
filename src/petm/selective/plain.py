"""Predictions as plain numbers: class probabilities or scores, and the suspicions that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.groups import Coded, Values, coded

TOLERANCE = 0.01
"""How far from 1 the sum of class probabilities may be, such as those of three digits."""
CLASSES_READ = "probabilities"
_TINY = 1e-300


@dataclass(frozen=True)
class Columns:
    """The columns that a suspicion is computed from.

    Attributes:
        probabilities: Names of the columns of class probabilities, in the order of the classes; empty without.
        prediction: Name of the column of predicted classes, where there are no probabilities.
        scores: Names of the columns of scores.
        higher_is_suspect: Whether a higher score is less sure.
        groups: Names of the columns whose values are groups.
    """

    probabilities: tuple[str, ...] = ()
    prediction: str | None = None
    scores: tuple[str, ...] = ()
    higher_is_suspect: bool = False
    groups: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of class probabilities and of scores."""
        return len(self.probabilities), len(self.scores)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of numbers, in the order of their arrays."""
        return (*self.probabilities, *self.scores)

    @property
    def all(self) -> tuple[str, ...]:
        """All columns: numbers, the prediction, groups."""
        return (*self.numbers, *([self.prediction] if self.prediction else []), *self.groups)

    @property
    def told(self) -> str:
        """What is read, in words."""
        parts = [f"probabilities of {len(self.probabilities)} classes"] if self.probabilities else ["predictions"]
        parts += [f"scores of {', '.join(self.scores)}"] if self.scores else []
        return " and ".join(parts) + (f" in groups of {', '.join(self.groups)}" if self.groups else "")

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the suspicions that follow from the columns, the one to beat first; of two classes only one."""
        of_classes = ("softmax", "margin", "entropy")[: 3 if len(self.probabilities) > 2 else 1]
        names = of_classes if self.probabilities else ()
        return (*names, *(f"score {name}" if name in names else name for name in self.scores))


@dataclass(frozen=True, eq=False)
class Predictions:
    """``N`` predictions with checked numbers.

    Attributes:
        predicted: int64 ``(N,)``.
        probabilities: float64 ``(N, K)``, rows that sum to 1; ``(N, 0)`` without.
        scores: float64 ``(N, J)``, finite.
        columns: Names.
        groups: ``(N,)`` for each group column.
    """

    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    scores: NDArray[np.float64]
    columns: Columns
    groups: Mapping[str, Coded] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        probabilities: ArrayLike | None,
        predicted: ArrayLike | None,
        scores: ArrayLike | Mapping[str, ArrayLike] | None,
        *,
        classes: Sequence[str] = (),
        higher_is_suspect: bool = False,
        groups: Mapping[str, Values] | None = None,
    ) -> "Predictions":
        """Returns predictions after checking arrays; arguments and errors are those of `calibrate`."""
        if (probabilities is None) == (predicted is None) or (probabilities is None and scores is None):
            raise ArgumentError(
                "probabilities: expected them, or predicted with scores in their place. Pass one of both."
            )
        held = dict(scores) if isinstance(scores, Mapping) else {}
        numbers = np.asarray(list(held.values()) if held else ([] if scores is None else scores), np.float64)
        numbers = numbers.T if held else numbers[:, None] if numbers.ndim == 1 else numbers
        found = np.asarray(np.empty((len(numbers), 0)) if probabilities is None else probabilities, np.float64)
        if scores is None:
            numbers = np.empty((len(found), 0))
        if numbers.ndim != 2 or (scores is not None and not numbers.shape[1]):
            raise ArgumentError(f"scores: expected shape (N,) or (N, J), got {numbers.shape}.")
        if found.ndim != 2 or found.shape[1] == 1 or (classes and found.shape[1] not in (0, len(classes))):
            rule = f"(N, {len(classes)})" if classes else "(N, K) with at least two classes"
            raise ArgumentError(f"probabilities: expected shape {rule}, got {found.shape}.")
        labels = found.argmax(1) if predicted is None else np.asarray(predicted)
        if labels.shape != (len(numbers),) or len(found) != len(numbers) or labels.dtype.kind not in "iu":
            rule = "one integer for each row, as many as scores and probabilities"
            raise ArgumentError(f"predicted: expected {rule}, got {labels.dtype} {labels.shape}.")
        if labels.size and not 0 <= labels.min() <= labels.max() < (len(classes) or labels.max() + 1):
            raise ArgumentError(f"predicted: expected classes of {len(classes)}, got {labels.min()} to {labels.max()}.")
        names = tuple(classes) if found.shape[1] and classes else tuple(map(str, range(found.shape[1])))
        several = ["score"] if numbers.shape[1] == 1 else [f"score {each + 1}" for each in range(numbers.shape[1])]
        prediction = None if predicted is None else "prediction"
        told = {column: coded(groups or {}, column) for column in groups or {}}
        for column, values in told.items():
            if len(values.codes) != len(numbers):
                raise ArgumentError(f"groups: expected {len(numbers)} values of {column!r}, got {len(values.codes)}.")
        named = tuple(map(str, held or several[: numbers.shape[1]]))
        columns = Columns(names, prediction, named, higher_is_suspect, tuple(told))
        if faults := number_faults(np.hstack([found, numbers]), columns):
            row, (name, reason) = next(iter(faults.items()))
            raise ArgumentError(f"{name}: {reason} in row {row}. Leave it out.")
        return cls.checked(labels, found, numbers, columns, told)

    @classmethod
    def checked(
        cls,
        predicted: NDArray[Any] | None,
        probabilities: NDArray[np.float64],
        scores: NDArray[np.float64],
        columns: Columns,
        groups: Mapping[str, Coded],
    ) -> "Predictions":
        """Returns predictions whose numbers have no fault; of probabilities the greatest, where none are given."""
        labels = probabilities.argmax(1) if predicted is None else predicted
        if probabilities.shape[1]:
            probabilities = probabilities / probabilities.sum(1, keepdims=True)
        return cls(np.asarray(labels, np.int64), probabilities, scores, columns, groups)

    def suspicions(self, columns: Columns) -> dict[str, NDArray[np.float64]]:
        """Returns float64 ``(N,)`` for each of `Columns.candidates`, higher is more likely wrong, all finite."""
        sign = 1.0 if columns.higher_is_suspect else -1.0
        signed = (sign * self.scores[:, place] + 0.0 for place in range(self.scores.shape[1]))
        return dict(zip(columns.candidates, (*self._of_classes, *signed), strict=True))

    @cached_property
    def _of_classes(self) -> tuple[NDArray[np.float64], ...]:
        """The softmax ``1 - max p``, summed over the others; ``ln(p2 / p1)``; and the entropy in nats."""
        p = self.probabilities
        if not p.shape[1]:
            return ()
        best = np.take_along_axis(p, self.predicted[:, None], 1)[:, 0]
        others = p.copy()
        np.put_along_axis(others, self.predicted[:, None], 0.0, 1)
        softmax = others.sum(1)
        if p.shape[1] == 2:
            return (softmax,)
        margin = np.log(np.maximum(others.max(1), _TINY)) - np.log(best)
        entropy = np.asarray(scipy.special.entr(others).sum(1)) - best * np.log1p(-softmax)
        return softmax, margin, entropy

    def rows(self, kept: NDArray[Any]) -> "Predictions":
        """Returns the predictions at some places, or where a mask is true."""
        groups = {name: column.rows(kept) for name, column in self.groups.items()}
        return Predictions(self.predicted[kept], self.probabilities[kept], self.scores[kept], self.columns, groups)

    def shown(self, name: str) -> str:
        """Returns the first value of a column, as it was given."""
        value = self.suspicions(self.columns)[name][0]
        given = name in self.columns.candidates[len(self._of_classes) :] and not self.columns.higher_is_suspect
        return f"{-value + 0.0 if given else value:.6g}"


def number_faults(values: NDArray[np.float64], columns: Columns) -> dict[int, tuple[str, str]]:
    """Returns the rows with numbers that cannot be used: which argument, and why, by place.

    Args:
        values: float64 ``(N, K + J)``, class probabilities and scores.
        columns: Their names.
    """
    kinds, names = columns.shape[0], columns.numbers
    of_classes = values[:, :kinds]
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(values)
        bad[:, :kinds] |= of_classes < 0
        apart = abs(of_classes.sum(1) - 1) > TOLERANCE if kinds else np.zeros(len(values), bool)
    found: dict[int, tuple[str, str]] = {}
    for row in np.flatnonzero(bad.any(1) | apart).tolist():
        place = int(bad[row].argmax()) if bad[row].any() else kinds
        if not bad[row].any():
            reason = f"expected probabilities that sum to 1, got a sum of {of_classes[row].sum():.6g}"
            found[row] = CLASSES_READ, reason
            continue
        what = "a probability of 0 or more" if place < kinds else "a finite number"
        got = "nothing" if np.isnan(values[row, place]) else f"{values[row, place]:.6g}"
        hint = " (of a log-probability, take the exponential)" if place < kinds and values[row, place] < 0 else ""
        argument = CLASSES_READ if place < kinds else "scores"
        found[row] = argument, f"expected {what} in column '{names[place]}', got {got}{hint}"
    return found
