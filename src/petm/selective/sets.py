"""Prediction sets: the classes that hold the true one with a chosen probability, by split conformal prediction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm._internal.records import Record
from petm.errors import ArgumentError, BundleError
from petm.selective.audit import inverse_chances, thinned
from petm.selective.groups import Values
from petm.selective.thresholds import Threshold

Method = Literal["threshold", "adaptive"]
COVERAGE = 0.95
"""Default probability with which a set holds the true class."""
_ROUNDING = 1e-9
"""Part of a rank that is rounding: ``100 * 0.95`` is 95, not 95.00000000000001."""
_SUM = 1e-3
"""How far probabilities of a sample may be from a sum of one: half precision."""


@dataclass(frozen=True)
class PredictionSets:
    """Sets of classes that hold the true one with the probability ``coverage``, and always the predicted one.

    Attributes:
        coverage: Probability with which a set holds the true class, in each group.
        method: ``threshold``: a class is in the set where its probability is at least 1 less the limit (LAC).
            ``adaptive``: where the more probable classes together have at most the limit (APS without randomisation).
        limits: A row for each group, of one limit, or one for each true class; all in [0, 1]. At 1 every class is in
            the set: there were too few labels.
        samples: Labels that the limits of each group were computed from.
        mean_sizes: Mean number of classes in the sets of these samples, by group; 0 where there are none.
    """

    coverage: float
    method: Method
    limits: tuple[tuple[float, ...], ...]
    samples: tuple[int, ...]
    mean_sizes: tuple[float, ...]

    def sets(
        self, probabilities: ArrayLike, predicted: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> NDArray[np.bool_]:
        """Returns the sets, bool ``(N, K)``: whether each class is in. None is empty.

        Args:
            probabilities: float ``(N, K)``, rows of sum 1.
            predicted: int ``(N,)``, the classes that the base model predicts; absent takes the most probable ones.
            groups: int ``(N,)``, the group of each sample; absent where there is one.

        Raises:
            ArgumentError: A shape or a value is another.
        """
        values = _probabilities(probabilities)
        limits = np.array(self.limits)
        if limits.shape[1] not in (1, values.shape[1]):
            raise ArgumentError(
                f"probabilities: expected (N, {limits.shape[1]}), as for the fit, got {values.shape}. "
                f"Pass the probabilities of the same classes."
            )
        places = _whole("groups", groups, len(values), len(limits))
        return np.asarray(_scores(values, predicted, self.method) <= limits[places])

    def candidates(
        self, probabilities: ArrayLike, predicted: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> NDArray[np.object_]:
        """Returns a tuple of the classes in each set, ``(N,)``, the most probable first; otherwise as `sets`."""
        inside = self.sets(probabilities, predicted, groups)
        order = np.argsort(-np.asarray(probabilities, np.float64), axis=1, kind="stable")
        held = np.take_along_axis(inside, order, 1)
        found = (tuple(row[some].tolist()) for row, some in zip(order, held, strict=True))
        return np.fromiter(found, object, len(order))

    @classmethod
    def from_json(cls, record: Record) -> "PredictionSets":
        """Returns the sets from a manifest; raises BundleError where an entry breaks its rule."""
        method = record.text("method")
        rows = [Record({"limits": row}, record.place).numbers("limits") for row in record.sequence("limits")]
        samples, sizes = record.numbers("samples"), record.numbers("mean_sizes")
        if method not in get_args(Method):
            raise BundleError(f"{record.place}, method: expected one of {', '.join(get_args(Method))}, got {method!r}.")
        alike = len({len(row) for row in rows}) == 1 and len(rows) == len(samples) == len(sizes)
        if not alike or not all(row and min(row) >= 0 and max(row) <= 1 for row in rows):
            raise BundleError(f"{record.place}, limits: expected rows of numbers from 0 to 1, got {str(rows)!r:.60}.")
        coverage = record.number("coverage", least=0, most=1)
        return cls(coverage, method, tuple(rows), tuple(map(int, samples)), sizes)  # type: ignore[arg-type]


def fit_sets(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    coverage: float = COVERAGE,
    method: Method = "threshold",
    predicted: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    per_class: bool = False,
    chance: ArrayLike | None = None,
) -> PredictionSets:
    """Returns prediction sets that hold the true class of a later sample with probability ``coverage``.

    Split conformal prediction: each class of a sample has a score, higher where the class is less probable; the limit
    is the ``ceil((n + 1) coverage)``-th least score of the true classes of ``n`` calibration samples. Where these and a
    later sample are exchangeable, its true class has a score of at most the limit with that probability, on average
    over the calibration samples. The probability is above ``coverage`` by less than ``1 / (n + 1)`` plus what comes of
    equal scores and of the predicted class, which has the least score and so is in every set.

    Args:
        probabilities: float ``(N, K)``, the probability of each class by any model that has not seen the samples;
            rows of sum 1.
        labels: int ``(N,)``, the true classes.
        coverage: Probability between 0 and 1, both excluded.
        method: ``threshold`` has the least mean size; ``adaptive`` gives larger sets to the samples that need them.
        predicted: int ``(N,)``, the classes that the base model predicts; absent takes the most probable ones.
        groups: int ``(N,)``, the group of each sample, from 0; each has its own limit and the coverage in it. What
            makes a group must be known of later samples.
        per_class: Whether each true class has its own limit and the coverage in it (Mondrian). With fewer than
            ``1 / (1 - coverage) - 1`` labels of a class, it is in every set.
        chance: float ``(N,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for equal chances.
            The samples are then thinned to the least one (`petm.selective.audit.thinned`).

    Raises:
        ArgumentError: An argument has another shape or is out of its range.

    Reference:
        Sadinle, Lei and Wasserman (2019), Least Ambiguous Set-Valued Classifiers, for ``threshold``; Romano, Sesia and
        Candès (2020), Classification with Valid and Adaptive Coverage, for ``adaptive``; Vovk (2012), Conditional
        Validity of Inductive Conformal Predictors, for groups and classes.
    """
    values = _probabilities(probabilities)
    check_coverage(coverage)
    if method not in get_args(Method):
        raise ArgumentError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r:.80}.")
    n, classes = values.shape
    truth = _whole("labels", labels, n, classes, needed=True)
    places = _whole("groups", groups, n)
    scores = _scores(values, predicted, method)
    of_truth = scores[np.arange(n), truth]
    kept = thinned(inverse_chances(chance, n))
    limits, samples, sizes = list[tuple[float, ...]](), list[int](), list[float]()
    for group in range(1 + int(places.max(initial=0))):
        mine = kept & (places == group)
        parts = [mine & (truth == each) for each in range(classes)] if per_class else [mine]
        limits.append(tuple(_quantile(of_truth[part], coverage) for part in parts))
        samples.append(int(mine.sum()))
        sizes.append(float((scores[mine] <= np.array(limits[-1])).sum(1).mean()) if mine.any() else 0.0)
    return PredictionSets(coverage, method, tuple(limits), tuple(samples), tuple(sizes))


def class_probabilities(base: ArrayLike, second: ArrayLike, second_share: float) -> NDArray[np.float64]:
    """Returns ``(1 - w) softmax(base) + w softmax(second)``, float64 ``(N, K)``; equal ones where a logit is none.

    Args:
        base: Logits of the base model, ``(N, K)``.
        second: Logits of the second opinion, ``(N, K)``.
        second_share: ``w``, from 0 to 1.
    """
    of_base, of_second = (scipy.special.softmax(np.asarray(each, np.float64), axis=1) for each in (base, second))
    found = (1 - second_share) * of_base + second_share * of_second
    return np.asarray(np.where(np.isnan(found).any(1, keepdims=True), 1 / found.shape[1], found))


def fit_grade_sets(
    probabilities: ArrayLike,
    labels: ArrayLike,
    predicted: ArrayLike,
    suspicion: ArrayLike,
    threshold: Threshold,
    *,
    coverage: float = COVERAGE,
    chance: ArrayLike | None = None,
    groups: Mapping[str, Values] | None = None,
) -> PredictionSets | None:
    """Returns prediction sets of two groups, 0 trusted and 1 suspect; None where too few labels are suspect.

    Over all predictions at once, the sets of suspects would hold the true class far less often than asked, as those of
    the trusted hold it more often. The grades may be set on the same labels: a threshold of `risk_threshold` is found
    upwards, and of `coverage_threshold` by rank, so that the labels above it are, given all up to it, independent draws
    from the distribution above it, as a later suspect is. The label at the threshold itself is known to be wrong, and
    left out. Other thresholds are off by terms of the order of one over the number of errors.

    Args:
        probabilities: float ``(N, K)``, as for `fit_sets`.
        labels: int ``(N,)``, the true classes; -1 where nobody can tell, which are left out.
        predicted: int ``(N,)``, the classes that the base model predicts.
        suspicion: float ``(N,)``, finite.
        threshold: What grades by it.
        coverage: As of `fit_sets`.
        chance: As of `fit_sets`.
        groups: The values of group columns, ``(N,)`` each by name, where the threshold has groups.

    Raises:
        ArgumentError: An argument has another shape or is out of its range.
    """
    truth, first, scores = np.asarray(labels), np.asarray(predicted), np.asarray(suspicion, np.float64)
    parts = threshold.groups.places(groups or {}) if threshold.groups else first
    suspect = ~threshold.trusts(scores, parts)
    limits = np.array(threshold.values)[threshold.places(parts, scores.shape)]
    some = (truth >= 0) & (scores != limits)
    found = fit_sets(
        np.asarray(probabilities)[some],
        truth[some],
        coverage=coverage,
        predicted=first[some],
        groups=suspect[some].astype(np.int64),
        chance=None if chance is None else np.asarray(chance)[some],
    )
    return found if len(found.samples) == 2 and found.samples[1] >= fewest_labels(coverage) else None


def sets_of_grades(record: Record) -> PredictionSets:
    """Returns the sets of `fit_grade_sets` from a bundle or graph; raises BundleError where they are others."""
    found = PredictionSets.from_json(record)
    if [len(row) for row in found.limits] != [1, 1]:
        raise BundleError(f"{record.place}, limits: expected one for each of two grades, got {len(found.limits)}.")
    return found


def check_coverage(coverage: float, name: str = "coverage") -> None:
    """Raises ArgumentError, with the argument's name, where a probability of sets is not between 0 and 1."""
    if isinstance(coverage, bool) or not 0 < coverage < 1:
        raise ArgumentError(f"{name}: expected a probability between 0 and 1, got {coverage}. Pass {COVERAGE}, say.")


def fewest_labels(coverage: float) -> int:
    """Returns the fewest labels from which a set can leave out a class: 19 for a coverage of 0.95."""
    return math.ceil(coverage / (1 - coverage) - _ROUNDING)


def _quantile(scores: NDArray[np.float64], coverage: float) -> float:
    rank = math.ceil((len(scores) + 1) * coverage - _ROUNDING)
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else 1.0


def _scores(probabilities: NDArray[np.float64], predicted: ArrayLike | None, method: Method) -> NDArray[np.float64]:
    """The score of each class, float64 ``(N, K)`` in [0, 1]: 0 for the predicted one."""
    n, classes = probabilities.shape
    found = 1 - probabilities
    if method == "adaptive":  # the sum of the more probable classes, alike for equally probable ones
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, 1)
        before = ranked.cumsum(1) - ranked
        new = np.diff(ranked, axis=1, prepend=np.inf) != 0
        found = np.empty_like(found)
        np.put_along_axis(found, order, np.maximum.accumulate(np.where(new, before, 0), 1), 1)
    first = probabilities.argmax(1) if predicted is None else _whole("predicted", predicted, n, classes)
    found[np.arange(n), first] = 0
    return np.clip(found, 0, 1)


def _probabilities(given: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(given, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ArgumentError(f"probabilities: expected (N, K) of two classes or more, got shape {values.shape}.")
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~((values >= 0).all(1) & (np.abs(values.sum(1) - 1) <= _SUM)))
    if bad.size:
        row = int(bad[0])
        raise ArgumentError(
            f"probabilities: expected numbers from 0 to 1 of sum 1, got a sum of {values[row].sum():.6g} for sample "
            f"{row}. Pass the softmax of logits."
        )
    return values


def _whole(
    name: str, given: ArrayLike | None, samples: int, below: int | None = None, *, needed: bool = False
) -> NDArray[np.int64]:
    """Whole numbers from 0, int64 ``(N,)``; zeros where none are given or needed."""
    if given is None and not needed and below in (None, 1):
        return np.zeros(samples, np.int64)
    values: NDArray[Any] = np.asarray(given)
    fits = values.shape == (samples,) and (values.dtype.kind in "iub" or not samples)
    most = math.inf if below is None else below - 1
    if not fits or ((values < 0) | (values > most)).any():
        got = f"{values.dtype} {values.shape}" if not fits else f"{values.min()} to {values.max()}"
        end = "" if below is None else f" to {below - 1}"
        raise ArgumentError(f"{name}: expected whole numbers from 0{end}, shape ({samples},), got {got}.")
    return values.astype(np.int64)


def candidates_in_words(sets: PredictionSets | None) -> str:
    """Returns what the sets of `fit_grade_sets` are, a sentence."""
    if sets is None:
        return "No candidates: too few labels of suspects."
    sizes = zip(("the trusted", "suspects"), sets.mean_sizes, strict=True)
    means = " and ".join(f"{size:.2g} for {grade}" for grade, size in sizes if size)
    return f"Candidates hold the true class with probability {sets.coverage:g}; on average these are {means}."
