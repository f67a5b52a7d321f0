"""Thresholds on suspicion, set by a guaranteed risk (over all or in each class), a coverage or a recall."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm._internal.records import Json, Record
from petm.errors import ArgumentError, BundleError
from petm.selective.audit import inverse_chances, thinned
from petm.selective.groups import Groups
from petm.selective.ranking import calibration_arrays

BEARABLE_ERRORS, FIRST_COVERAGE = 12, 0.3
"""`risk_threshold` starts at the count whose test allows so many errors, or at this coverage if that comes first.

Found by simulation, at 300 to 20,000 samples of two trained networks; the guarantee holds for any choice. An earlier
start fails by a single unlucky error, a later one where suspicion is weak.
"""
FEWEST = 30
"""Fewest samples (or half of all) on which `Threshold.samples_needed` takes an error rate."""


@dataclass(frozen=True)
class Threshold:
    """Predictions with a suspicion below ``value`` are trusted.

    Attributes:
        value: The threshold; minus infinity trusts nothing. With ``classes``, the greatest of theirs.
        rule: How it was found, in words.
        coverage: Share of the calibration samples that is trusted; None where there were none.
        max_risk: Greatest share of errors among the trusted; None where the target is another.
        confidence: Confidence of the guarantee; with ``classes``, of all their guarantees at once.
        risk: Share of errors among the trusted calibration samples, as seen and not guaranteed; None where none is.
        recall: Share of the base model's errors to flag; None where the target is another.
        samples_needed: About how many calibration samples a guarantee that could not be made would need, at the error
            rates seen; None where no number suffices.
        classes: One threshold for each class that the base model may predict; empty where one serves all.
        groups: For a guarantee in each group, the place in ``classes`` of each sample; None where there are no groups.
        stated: Whether the base model has not seen the calibration samples by the user's word alone: they were held out
            of the data of the fit.
    """

    value: float
    rule: str
    coverage: float | None = None
    max_risk: float | None = None
    confidence: float | None = None
    risk: float | None = None
    recall: float | None = None
    samples_needed: int | None = None
    classes: tuple["Threshold", ...] = ()
    groups: Groups | None = None
    stated: bool = False

    @property
    def holds(self) -> bool:
        """Whether the target is reached; where it is not, nothing is trusted (in that class)."""
        parts = self.classes[: len(self.groups.cells)] if self.groups else self.classes
        return all(part.holds for part in parts) if parts else self.value > -math.inf

    @property
    def values(self) -> tuple[float, ...]:
        """One value for each class that the base model may predict, or the one value that serves all."""
        return tuple(part.value for part in self.classes) or (self.value,)

    @property
    def remedy(self) -> str:
        """The next step where the guarantee could not be made, as a sentence; else empty."""
        if self.holds:
            return ""
        if self.samples_needed is None:
            return "At the error rates seen no number of calibration samples would do: allow more errors."
        return (
            f"About {self.samples_needed} calibration samples would do at the error rates seen: add some, or ask less."
        )

    def trusts(self, suspicion: ArrayLike, predicted: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Returns the grades, bool ``(N,)``; a suspicion that is NaN is not trusted.

        Args:
            suspicion: float ``(N,)``.
            predicted: int ``(N,)``, the classes that the base model predicts; needed with ``classes``. With ``groups``,
                the places that `Groups.places` gives.

        Raises:
            ArgumentError: ``predicted`` is absent but needed, has another shape, or names a class without a threshold.
        """
        scores = np.asarray(suspicion, np.float64)
        return np.asarray(scores < np.array(self.values)[self.places(predicted, scores.shape)])

    def places(self, predicted: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Returns the place in `values` of each sample's threshold, int64; arguments and errors as in `trusts`."""
        if not self.classes:
            return np.zeros(shape, np.int64)
        if predicted is None:
            raise ArgumentError(
                f"predicted: expected the model's predictions, int {shape}, for a threshold in each of "
                f"{len(self.classes)} classes, got none. Pass them."
            )
        return _labels(predicted, shape, len(self.classes))

    def as_json(self) -> dict[str, Json]:
        """Returns the fields in JSON's types: infinity, which JSON lacks, as text."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        value = self.value if math.isfinite(self.value) else str(self.value)
        return content | {
            "value": value,
            "classes": [part.as_json() for part in self.classes],
            "groups": self.groups.as_json() if self.groups else None,
        }

    @classmethod
    def from_json(cls, record: Record) -> "Threshold":
        """Returns the threshold that `as_json` wrote.

        Raises:
            BundleError: An entry breaks its rule.
        """
        value = record.content.get("value")
        classes = tuple(cls.from_json(part) for part in record.records("classes")) if record.has("classes") else ()
        if any(part.classes for part in classes):
            raise BundleError(f"{record.place}, classes: expected thresholds without classes of their own.")
        groups = Groups.from_json(record.record("groups")) if record.has("groups") else None
        if groups is not None and len(classes) != len(groups.cells) + 2:
            raise BundleError(f"{record.place}, classes: expected one for each cell of the groups and two more.")
        shares = filter(record.has, ("coverage", "max_risk", "confidence", "risk", "recall"))
        return cls(
            float(value) if value in ("inf", "-inf") else record.number("value"),
            record.text("rule"),
            **{name: record.number(name, least=0, most=1) for name in shares},
            samples_needed=record.whole("samples_needed") if record.has("samples_needed") else None,
            classes=classes,
            groups=groups,
            stated=record.flag("stated"),
        )


DISAGREEMENT = Threshold(math.nextafter(0.0, 1.0), "disagreement, as in the paper")
"""Threshold on `petm.models.scores.opposition`: above 0 is suspect; at 0, a tie, the second opinion agrees."""


def risk_threshold(
    suspicion: ArrayLike,
    wrong: ArrayLike,
    *,
    max_risk: float,
    confidence: float = 0.95,
    chance: ArrayLike | None = None,
) -> Threshold:
    """Returns the greatest threshold found whose error rate among the trusted is guaranteed to be at most ``max_risk``.

    Theorem: let the calibration samples and the later ones be drawn independently from one distribution, and let base
    model and suspicion be fixed before. Then, with probability at least ``confidence`` over the calibration samples,
    the probability that a prediction is wrong, given that it is trusted, is at most ``max_risk``.

    Method: order the samples by suspicion and let ``K(m)`` be the errors among the first ``m``. The hypothesis that
    these lie below a threshold whose risk exceeds ``max_risk`` has the exact binomial p-value
    ``P(Bin(m, max_risk) <= K(m))``. The counts are tested upwards from a first one that follows from ``N`` and the
    arguments alone, and the tests end with the first p-value above ``1 - confidence``. To violate the guarantee they
    would have to pass the first count of too great a risk, which has probability ``1 - confidence`` at most; so the
    number of thresholds costs nothing. ``docs/concepts/guarantee.md`` has the proof, also for thresholds at the samples
    themselves. Equal suspicion is tested and trusted as a whole; only the first test may take a random part of it.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        max_risk: Greatest share of errors among the trusted, between 0 and 1, both excluded.
        confidence: Confidence of the guarantee, between 0 and 1, both excluded.
        chance: float ``(N,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for equal chances.
            Every input must have had a chance; the samples are then thinned to the least one (`thinned`).

    Returns:
        The threshold; where none can be guaranteed, one that trusts nothing, with `Threshold.samples_needed`.

    Reference:
        Angelopoulos, Bates, Candès, Jordan and Lei (2021), Learn then Test, for fixed-sequence testing of thresholds;
        Geifman and El-Yaniv (2017), Selective Classification for Deep Neural Networks, for the task; Clopper and
        Pearson (1934) for the test.
    """
    check_share("max_risk", max_risk, below_1=True)
    check_share("confidence", confidence, below_1=True)
    scores, errors = calibration_arrays(suspicion, wrong)
    weights = inverse_chances(chance, len(scores))
    kept = thinned(weights)
    found = guaranteed_part(scores[kept], errors[kept], max_risk, confidence, 1 - confidence)
    return _as_seen(found, scores, errors, weights)


def guaranteed_coverage(
    suspicion: ArrayLike,
    wrong: ArrayLike,
    *,
    max_risk: float,
    confidence: float = 0.95,
    chance: ArrayLike | None = None,
    copies: int = 1,
) -> float:
    """Returns the coverage of `risk_threshold` if there were ``copies`` times as many samples like these; 0 for none.

    The arguments are those of `risk_threshold`. With more than one copy it is an estimate: errors would have to stay as
    frequent at each suspicion.
    """
    scores, errors = calibration_arrays(suspicion, wrong)
    weights = inverse_chances(chance, len(scores))
    kept = thinned(weights)
    found = guaranteed_part(scores[kept], errors[kept], max_risk, confidence, 1 - confidence, copies)
    return float(np.average(scores < found.value, weights=weights))


def class_thresholds(
    suspicion: ArrayLike,
    wrong: ArrayLike,
    predicted: ArrayLike,
    *,
    classes: int,
    max_risk: float,
    confidence: float = 0.95,
    chance: ArrayLike | None = None,
) -> Threshold:
    """Returns one threshold for each class that the base model predicts, with the risk guaranteed in each of them.

    With probability at least ``confidence`` over the calibration samples, for all classes at once: the probability that
    a prediction of this class is wrong, given that it is trusted, is at most ``max_risk``. Each class is calibrated by
    `risk_threshold` on the samples predicted as it, at the level ``(1 - confidence) / K``. Without a guarantee, nothing
    of a class is trusted.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        predicted: int ``(N,)``, the classes that the base model predicts for them.
        classes: Number of classes ``K``.
        max_risk: Greatest share of errors among the trusted, between 0 and 1, both excluded.
        confidence: Confidence of all guarantees at once, between 0 and 1, both excluded.
        chance: As in `risk_threshold`.

    Returns:
        A threshold with ``classes``, whose ``samples_needed`` count samples of all classes.
    """
    check_share("max_risk", max_risk, below_1=True)
    check_share("confidence", confidence, below_1=True)
    scores, errors = calibration_arrays(suspicion, wrong)
    labels = _labels(predicted, scores.shape, classes)
    weights = inverse_chances(chance, len(scores))
    kept = thinned(weights)
    parts: list[Threshold] = []
    for label in range(classes):
        rows = labels == label
        used = rows & kept
        part = guaranteed_part(scores[used], errors[used], max_risk, confidence, (1 - confidence) / classes)
        if part.samples_needed is not None:
            part = replace(part, samples_needed=math.ceil(part.samples_needed * kept.sum() / used.sum()))
        parts.append(_as_seen(part, scores[rows], errors[rows], weights[rows]))
    whole = Threshold(math.inf, "guaranteed risk in each class", None, max_risk, confidence, classes=tuple(parts))
    return lower_of(whole, whole, scores, errors, labels, chance=chance)


def lower_of(
    one: Threshold,
    other: Threshold,
    suspicion: ArrayLike,
    wrong: ArrayLike,
    predicted: ArrayLike,
    *,
    chance: ArrayLike | None = None,
) -> Threshold:
    """Returns the lower of two thresholds, class by class where they have classes, with its figures on some samples.

    Args:
        one: A threshold.
        other: Another for the same target.
        suspicion: float ``(N,)`` of the samples.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        predicted: int ``(N,)``, the classes that the base model predicts for them.
        chance: As in `risk_threshold`.
    """
    found = min(one, other, key=lambda each: each.value)
    if one.classes:
        parts = tuple(min(pair, key=lambda each: each.value) for pair in zip(one.classes, other.classes, strict=True))
        missing = [part for part in parts if not part.holds]
        needed = [part.samples_needed for part in missing if part.samples_needed is not None]
        samples_needed = max(needed) if needed and len(needed) == len(missing) else None
        value = max(part.value for part in parts)
        found = replace(found, value=value, samples_needed=samples_needed, classes=parts)
    errors = np.asarray(wrong, bool)
    return with_shares(found, found.trusts(suspicion, predicted), errors, inverse_chances(chance, len(errors)))


def coverage_threshold(suspicion: ArrayLike, coverage: float, *, chance: ArrayLike | None = None) -> Threshold:
    """Returns the least threshold that trusts at least a share ``coverage`` of the calibration samples.

    It guarantees nothing about errors. The share of trusted later samples varies about ``coverage`` with a standard
    deviation of about ``sqrt(coverage (1 - coverage) / N)``.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        coverage: Share to trust, above 0, at most 1.
        chance: As in `risk_threshold`; samples are weighted by its inverse.
    """
    check_share("coverage", coverage)
    scores, _ = calibration_arrays(suspicion, np.zeros(np.shape(suspicion), bool))
    weights, order = inverse_chances(chance, len(scores)), np.argsort(scores)
    place = np.searchsorted(weights[order].cumsum(), round(coverage * weights.sum(), 9))
    last = scores[order][min(place, len(scores) - 1)]
    value = float(min(scores[scores > last], default=math.inf))
    return Threshold(value, "coverage", float(np.average(scores < value, weights=weights)))


def recall_threshold(
    suspicion: ArrayLike,
    wrong: ArrayLike,
    *,
    recall: float,
    confidence: float | None = None,
    chance: ArrayLike | None = None,
) -> Threshold:
    """Returns the greatest threshold at which at least a share ``recall`` of the model's errors is flagged as suspect.

    Without ``confidence`` this holds on the calibration samples alone: of later errors a smaller share is flagged about
    as often as not. With ``confidence``, and samples drawn independently from one distribution: with that probability
    at least over the calibration samples, an error is flagged with probability at least ``recall``. Of ``E`` errors,
    ``j`` are then missed, the most with ``P(Bin(E, 1 - recall) <= j) <= 1 - confidence``: a one-sided tolerance limit,
    exact for a continuous suspicion and conservative with ties.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them; at least once.
        recall: Share of errors to flag, above 0, at most 1; below 1 with ``confidence``.
        confidence: Confidence of the guarantee, between 0 and 1, both excluded; None for no guarantee.
        chance: As in `risk_threshold`; without ``confidence``, errors are weighted by its inverse.

    Returns:
        The threshold; where none can be guaranteed, one that trusts nothing, with `Threshold.samples_needed`.

    Reference:
        Wilks (1941), Determination of Sample Sizes for Setting Tolerance Limits.
    """
    check_share("recall", recall, below_1=confidence is not None)
    if confidence is not None:
        check_share("confidence", confidence, below_1=True)
    scores, errors = calibration_arrays(suspicion, wrong)
    weights = inverse_chances(chance, len(scores))
    used = errors if confidence is None else errors & thinned(weights)
    order = np.argsort(scores[used])
    missed, bad = scores[used][order], int(used.sum())
    if not errors.any():
        raise ArgumentError(f"wrong: expected at least one error, got none in {len(scores)}. Add calibration samples.")
    rule = "recall" if confidence is None else "guaranteed recall"
    if confidence is None:
        found = weights[used][order].cumsum()
        misses = min(int(np.searchsorted(found, round((1 - recall) * found[-1], 9), side="right")), bad - 1)
    else:
        misses = int((scipy.stats.binom.cdf(np.arange(bad), bad, 1 - recall) <= 1 - confidence).sum()) - 1
        if misses < 0:
            needed = math.ceil(math.log(1 - confidence) / math.log(recall))
            total = math.ceil(needed * weights.sum() / weights[errors].sum())
            return Threshold(-math.inf, rule, 0.0, None, confidence, recall=recall, samples_needed=total)
    found_value = Threshold(float(missed[misses]), rule, None, None, confidence, recall=recall)
    return _as_seen(found_value, scores, errors, weights)


def _as_seen(
    found: Threshold, scores: NDArray[np.float64], errors: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Threshold:
    """A threshold for all, with coverage and risk as the weighted samples show them; unchanged if it trusts nothing."""
    return with_shares(found, scores < found.value, errors, weights) if found.holds else found


def with_shares(
    found: Threshold, trusted: NDArray[np.bool_], errors: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Threshold:
    """Returns a threshold with coverage and risk of the weighted samples that it trusts."""
    share, failed = (float(weights[each].sum()) for each in (trusted, trusted & errors))
    return replace(found, coverage=share / float(weights.sum()), risk=failed / share if share else None)


def guaranteed_part(
    scores: NDArray[np.float64],
    errors: NDArray[np.bool_],
    max_risk: float,
    confidence: float,
    level: float,
    copies: int = 1,
    *,
    first: float | None = None,
) -> Threshold:
    """Returns the threshold whose guarantee is violated with probability ``level`` at most.

    The arrays are those of `risk_threshold`; ``confidence`` is only recorded. With ``copies``, what so many times the
    samples would give if errors stayed as frequent; this guarantees nothing. The tests begin at the count that the
    level ``first`` gives.
    """
    total, rule = copies * len(scores), "guaranteed risk"
    if not total:
        return Threshold(-math.inf, rule, 0.0, max_risk, confidence)
    # Within equal suspicion the order must not depend on the labels; that of the samples may.
    order = np.lexsort((np.random.default_rng(0).permutation(len(scores)), scores))
    counts, failures = copies * np.arange(1, len(scores) + 1), copies * errors[order].cumsum()
    start = int(_first_counts(total, max_risk, first or level))
    following = np.append(scores[order][1:], math.inf)
    ends = (scores[order] < following) & (counts >= start)  # of runs of equal suspicion
    tested = ends | (counts == start)
    passed = np.logical_and.accumulate(~tested | (scipy.stats.binom.cdf(failures, counts, max_risk) <= level))
    found = np.flatnonzero(passed & ends)
    if not found.size:
        needed = _samples_needed(failures, max_risk, level)
        return Threshold(-math.inf, rule, 0.0, max_risk, confidence, samples_needed=needed)
    last = found[-1]
    coverage, risk = float(counts[last] / total), float(failures[last] / counts[last])
    return Threshold(float(following[last]), rule, coverage, max_risk, confidence, risk)


def fewest_without_errors(max_risk: float, level: float) -> int:
    """Returns the least number of samples that show a risk of at most ``max_risk`` where none of them is wrong."""
    return _least_count(0, max_risk, level)


def _least_count(failures: int, max_risk: float, level: float) -> int:
    """The least ``m`` with ``P(Bin(m, max_risk) <= failures) <= level``."""
    return int(scipy.stats.nbinom.isf(level, failures + 1, max_risk)) + failures + 1


def _first_counts(totals: ArrayLike, max_risk: float, level: float) -> NDArray[np.int64]:
    """The first count tested, for each number of samples; greater than that number where no test can pass."""
    robust = np.minimum(_least_count(BEARABLE_ERRORS, max_risk, level), np.ceil(FIRST_COVERAGE * np.asarray(totals)))
    return np.maximum(_least_count(0, max_risk, level), robust).astype(np.int64)


def _samples_needed(failures: NDArray[np.int64], max_risk: float, level: float) -> int | None:
    """About how many samples would pass the first test at the error rates seen; None if no number would."""
    seen, fewest = len(failures), min(FEWEST, math.ceil(len(failures) / 2))
    start = max(seen + 1, _least_count(0, max_risk, level))
    limit = seen * _least_count(BEARABLE_ERRORS, max_risk, level) / fewest
    steps = np.arange(max(0, math.ceil(math.log(limit / start, 1.01))) + 1)
    totals = np.ceil(start * 1.01**steps).astype(np.int64)
    firsts = _first_counts(totals, max_risk, level)
    # The samples seen that correspond to the first test, and the errors expected in it.
    alike = np.ceil(seen * firsts / totals).astype(np.int64)
    expected = np.ceil(failures[np.minimum(alike, seen) - 1] * firsts / alike)
    enough = (scipy.stats.binom.cdf(expected, firsts, max_risk) <= level) & (seen * firsts >= totals * fewest)
    return int(totals[enough][0]) if enough.any() else None


def _labels(predicted: ArrayLike, shape: tuple[int, ...], classes: int) -> NDArray[np.int64]:
    labels = np.asarray(predicted)
    if labels.shape != shape or not np.issubdtype(labels.dtype, np.integer):
        raise ArgumentError(
            f"predicted: expected one integer for each sample, {shape}, got {labels.dtype} of {labels.shape}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ArgumentError(
            f"predicted: expected classes from 0 to {classes - 1}, got {labels.min()} to {labels.max()}."
        )
    return labels.astype(np.int64)


def check_share(name: str, value: object, *, below_1: bool = False) -> None:
    """Raises `ArgumentError` unless ``value`` is a number above 0 and at most 1, or below 1."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < value <= 1 or (below_1 and value == 1):  # type: ignore[operator]
        rule = "between 0 and 1" if below_1 else "above 0 and at most 1"
        raise ArgumentError(f"{name}: expected a number {rule}, got {value!r}.")
