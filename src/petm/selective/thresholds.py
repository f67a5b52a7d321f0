"""Thresholds on suspicion: with a guaranteed risk, over all or for each class, with a coverage, with a recall."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm._internal.records import Json, Record
from petm.errors import ArgumentError, BundleError
from petm.selective.ranking import calibration_arrays

BEARABLE_ERRORS, FIRST_COVERAGE = 12, 0.3
"""`risk_threshold` begins where its test bears so many errors, or at this coverage if that comes first.

An earlier test falls to a single unlucky error, a later one misses a suspicion that can guarantee little coverage.
Found by simulation, at 300 to 20,000 samples of two trained networks; the guarantee holds for any choice.
"""
FEWEST = 30
"""What `Threshold.samples_needed` takes for an error rate is seen on so many samples, or on half of them, at least."""


@dataclass(frozen=True)
class Threshold:
    """Predictions with a suspicion below ``value`` are trusted.

    Attributes:
        value: The threshold; minus infinity trusts nothing. With ``classes``, the greatest of theirs.
        rule: How it was found, in words.
        coverage: Share of the calibration samples that it trusts; absent where there were none.
        max_risk: The guaranteed largest share of errors among the trusted; absent where none is guaranteed.
        confidence: Of the guarantee; with ``classes``, that all of theirs are kept at once.
        risk: Share of errors among the calibration samples that it trusts. It was chosen on them, so this is what was
            seen and not what is guaranteed; absent where none is trusted.
        recall: The share of the base model's errors that is to be flagged; absent where none was asked for.
        samples_needed: Where the guarantee could not be made: about how many calibration samples would do, if errors
            stayed as frequent as seen; absent where no number would.
        classes: One threshold for each class that the base model may predict; empty where one serves all.
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

    @property
    def holds(self) -> bool:
        """Whether everything that was asked for is guaranteed; where it is not, nothing is trusted (in that class)."""
        return all(part.holds for part in self.classes) if self.classes else self.value > -math.inf

    @property
    def values(self) -> tuple[float, ...]:
        """One value for each class that the base model may predict, or the one value that serves all."""
        return tuple(part.value for part in self.classes) or (self.value,)

    @property
    def remedy(self) -> str:
        """What it would take to make the guarantee, as a sentence; empty where it is made."""
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
            predicted: int ``(N,)``, the classes that the model predicts; needed where there is a threshold for each.

        Raises:
            ArgumentError: ``predicted`` is absent but needed, has another shape, or names a class without a threshold.
        """
        scores = np.asarray(suspicion, np.float64)
        if not self.classes:
            return np.asarray(scores < self.value)
        if predicted is None:
            raise ArgumentError(
                f"predicted: expected the model's predictions, int {scores.shape}, for a threshold with "
                f"{len(self.classes)} "
                f"classes, got none. Pass them."
            )
        return np.asarray(scores < np.array(self.values)[_labels(predicted, scores, len(self.classes))])

    def as_json(self) -> dict[str, Json]:
        """Returns the fields in JSON's types: infinity, which JSON lacks, as text."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        value = self.value if math.isfinite(self.value) else str(self.value)
        return content | {"value": value, "classes": [part.as_json() for part in self.classes]}

    @classmethod
    def from_json(cls, record: Record) -> "Threshold":
        """Returns the threshold that `as_json` has described.

        Raises:
            BundleError: An entry breaks its rule.
        """
        value = record.content.get("value")
        classes = tuple(cls.from_json(part) for part in record.records("classes")) if record.has("classes") else ()
        if any(part.classes for part in classes):
            raise BundleError(f"{record.place}, classes: expected thresholds without classes of their own.")

        def share(name: str) -> float | None:
            return record.number(name, least=0, most=1) if record.has(name) else None

        return cls(
            float(value) if value in ("inf", "-inf") else record.number("value"),
            record.text("rule"),
            share("coverage"),
            share("max_risk"),
            share("confidence"),
            share("risk"),
            share("recall"),
            record.whole("samples_needed") if record.has("samples_needed") else None,
            classes,
        )


DISAGREEMENT = Threshold(math.nextafter(0.0, 1.0), "disagreement, as in the paper")
"""On `opposition`: what lies above 0 is suspect; 0 itself is a tie, in which the second opinion agrees."""


def risk_threshold(suspicion: ArrayLike, wrong: ArrayLike, *, max_risk: float, confidence: float = 0.95) -> Threshold:
    """Returns the greatest threshold found whose error rate among the trusted is guaranteed to be at most ``max_risk``.

    Theorem: let the calibration samples and the later ones be drawn independently from one distribution, whichever it
    is, and let the base model and suspicion be fixed before the calibration samples are looked at. Then, with
    probability at least ``confidence`` over the calibration samples, the probability that a prediction is wrong, given
    that it is trusted, is at most ``max_risk``.

    Method: order the samples by suspicion and let ``K(m)`` be the errors among the first ``m``. The hypothesis that
    these lie below a threshold whose risk exceeds ``max_risk`` has the exact binomial p-value
    ``P(Bin(m, max_risk) <= K(m))``. The counts are tested upwards, one after the other, from a first one that follows
    from ``N`` and the arguments alone, and the tests end with the first p-value above ``1 - confidence``. To break the
    guarantee they would have to pass the first count of too great a risk, which happens with probability
    ``1 - confidence`` at most. So many thresholds are tried, and nothing is paid for it.

    Why the thresholds may be the samples' own: cut the scale of suspicion wherever the risk below a threshold passes
    ``max_risk``, and condition on how many samples lie in each piece. This fixes which count is the first of too great
    a risk. Its errors are ``Bin(m, max_risk)`` or more, since the risk in a whole piece is ``max_risk`` exactly, and
    from a cut up to a threshold of too great a risk it is more. ``docs/guarantee.md`` has the proof in full. Equal
    suspicion is trusted together or not at all; it is tested as a whole, save that the first test may take a part of it
    at random.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        max_risk: Between 0 and 1, both excluded.
        confidence: Between 0 and 1, both excluded.

    Returns:
        The threshold; where none can be guaranteed, one that trusts nothing and says how many samples would be needed.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Angelopoulos, Bates, Candès, Jordan and Lei (2021), Learn then Test, for fixed-sequence testing of thresholds;
        Geifman and El-Yaniv (2017), Selective Classification for Deep Neural Networks, for the task; Clopper and
        Pearson (1934) for the test.
    """
    _check_open(max_risk=max_risk, confidence=confidence)
    return _guarantee(*calibration_arrays(suspicion, wrong), max_risk, confidence, 1 - confidence)


def class_thresholds(
    suspicion: ArrayLike,
    wrong: ArrayLike,
    predicted: ArrayLike,
    *,
    classes: int,
    max_risk: float,
    confidence: float = 0.95,
) -> Threshold:
    """Returns one threshold for each class that the model predicts, so that the risk is guaranteed in each of them.

    With probability at least ``confidence`` over the calibration samples, for all classes at once: the probability that
    a prediction of this class is wrong, given that it is trusted, is at most ``max_risk``. Each class is calibrated by
    `risk_threshold` on the samples predicted as it, at the level ``(1 - confidence) / K``. A class that cannot be
    guaranteed trusts nothing, and says so.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        predicted: int ``(N,)``, the classes that the base model predicts for them.
        classes: ``K``.
        max_risk: Between 0 and 1, both excluded.
        confidence: Between 0 and 1, both excluded.

    Returns:
        A threshold whose ``classes`` holds that of each class; what is needed there is counted over all classes.

    Raises:
        ArgumentError: An argument breaks its rule.
    """
    _check_open(max_risk=max_risk, confidence=confidence)
    scores, errors = calibration_arrays(suspicion, wrong)
    labels = _labels(predicted, scores, classes)
    parts = []
    for label in range(classes):
        rows = labels == label
        part = _guarantee(scores[rows], errors[rows], max_risk, confidence, (1 - confidence) / classes)
        if part.samples_needed is not None:
            part = replace(part, samples_needed=math.ceil(part.samples_needed * len(rows) / rows.sum()))
        parts.append(part)
    whole = Threshold(max(part.value for part in parts), "guaranteed risk in each class", classes=tuple(parts))
    trusted, missing = whole.trusts(scores, labels), [part for part in parts if not part.holds]
    needed = [part.samples_needed for part in missing if part.samples_needed is not None]
    return replace(
        whole,
        coverage=float(trusted.mean()),
        max_risk=max_risk,
        confidence=confidence,
        risk=float(errors[trusted].mean()) if trusted.any() else None,
        samples_needed=max(needed) if needed and len(needed) == len(missing) else None,
    )


def coverage_threshold(suspicion: ArrayLike, coverage: float) -> Threshold:
    """Returns the least threshold that trusts at least a share ``coverage`` of the calibration samples.

    It needs no labels and guarantees nothing about errors. Among later samples the share that is trusted varies about
    ``coverage`` with a standard deviation of about ``sqrt(coverage (1 - coverage) / N)``.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        coverage: Above 0, at most 1.

    Raises:
        ArgumentError: An argument breaks its rule.
    """
    if not 0 < coverage <= 1:
        raise ArgumentError(f"coverage: expected a number above 0 and at most 1, got {coverage}.")
    scores, _ = calibration_arrays(suspicion, np.zeros(np.shape(suspicion), bool))
    last = np.sort(scores)[math.ceil(round(coverage * len(scores), 9)) - 1]
    value = float(min(scores[scores > last], default=math.inf))
    return Threshold(value, "coverage", float((scores < value).mean()))


def recall_threshold(
    suspicion: ArrayLike, wrong: ArrayLike, *, recall: float, confidence: float | None = None
) -> Threshold:
    """Returns the greatest threshold at which at least a share ``recall`` of the model's errors is flagged as suspect.

    Without ``confidence`` this holds on the calibration samples and is no guarantee: of later errors a smaller share is
    flagged about as often as not. With it, and calibration and later samples drawn independently from one distribution:
    with probability at least ``confidence`` over the calibration samples, an error is flagged with probability at least
    ``recall``. Of ``E`` errors, ``j`` are then missed, the most with ``P(Bin(E, 1 - recall) <= j) <= 1 - confidence``:
    a one-sided tolerance limit, exact for a continuous suspicion and on the safe side with ties. Only one threshold is
    tried, so there is nothing to correct.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them; at least once.
        recall: Above 0, at most 1; below 1 with ``confidence``.
        confidence: Between 0 and 1, both excluded; absent, nothing is guaranteed.

    Returns:
        The threshold; where none can be guaranteed, one that trusts nothing and says how many samples would be needed.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Wilks (1941), Determination of Sample Sizes for Setting Tolerance Limits.
    """
    if confidence is not None:
        _check_open(recall=recall, confidence=confidence)
    elif not 0 < recall <= 1:
        raise ArgumentError(f"recall: expected a number above 0 and at most 1, got {recall}.")
    scores, errors = calibration_arrays(suspicion, wrong)
    missed, bad = np.sort(scores[errors]), int(errors.sum())
    if not bad:
        raise ArgumentError(f"wrong: expected at least one error, got none in {len(scores)}. Add calibration samples.")
    rule = "recall" if confidence is None else "guaranteed recall"
    if confidence is None:
        misses = math.floor(round((1 - recall) * bad, 9))
    else:
        misses = int((scipy.stats.binom.cdf(np.arange(bad), bad, 1 - recall) <= 1 - confidence).sum()) - 1
        if misses < 0:
            needed = math.ceil(math.log(1 - confidence) / math.log(recall))
            total = math.ceil(needed * len(scores) / bad)
            return Threshold(-math.inf, rule, 0.0, None, confidence, recall=recall, samples_needed=total)
    value = float(missed[misses])
    trusted = scores < value
    seen = float(errors[trusted].mean()) if trusted.any() else None
    return Threshold(value, rule, float(trusted.mean()), None, confidence, seen, recall)


def _guarantee(
    scores: NDArray[np.float64], errors: NDArray[np.bool_], max_risk: float, confidence: float, level: float
) -> Threshold:
    """The threshold whose guarantee may be broken with probability ``level``; ``confidence`` is for the record."""
    total, rule = len(scores), "guaranteed risk"
    if not total:
        return Threshold(-math.inf, rule, 0.0, max_risk, confidence)
    # Within equal suspicion any order will do that has nothing to do with the labels; the samples' own may have.
    order = np.lexsort((np.random.default_rng(0).permutation(total), scores))
    counts, failures = np.arange(1, total + 1), errors[order].cumsum()
    start = int(_first_counts(total, max_risk, level))
    following = np.append(scores[order][1:], math.inf)
    ends = (scores[order] < following) & (counts >= start)  # of runs of equal suspicion
    tested = ends | (counts == start)
    passed = np.logical_and.accumulate(~tested | (scipy.stats.binom.cdf(failures, counts, max_risk) <= level))
    found = np.flatnonzero(passed & ends)
    if not found.size:
        needed = _samples_needed(failures, max_risk, level)
        return Threshold(-math.inf, rule, 0.0, max_risk, confidence, samples_needed=needed)
    last = found[-1]
    return Threshold(
        float(following[last]),
        rule,
        float(counts[last] / total),
        max_risk,
        confidence,
        risk=float(failures[last] / counts[last]),
    )


def _least_count(failures: int, max_risk: float, level: float) -> int:
    """The least ``m`` at which so many errors prove the risk: ``P(Bin(m, max_risk) <= failures) <= level``."""
    return int(scipy.stats.nbinom.isf(level, failures + 1, max_risk)) + failures + 1


def _first_counts(totals: ArrayLike, max_risk: float, level: float) -> NDArray[np.int64]:
    """The counts at which the tests begin, for so many samples; above their number where no test can pass."""
    robust = np.minimum(_least_count(BEARABLE_ERRORS, max_risk, level), np.ceil(FIRST_COVERAGE * np.asarray(totals)))
    return np.maximum(_least_count(0, max_risk, level), robust).astype(np.int64)


def _samples_needed(failures: NDArray[np.int64], max_risk: float, level: float) -> int | None:
    """About how many samples would pass the first test at the error rates seen, or none if no number would."""
    seen, fewest = len(failures), min(FEWEST, math.ceil(len(failures) / 2))
    start = max(seen + 1, _least_count(0, max_risk, level))
    limit = seen * _least_count(BEARABLE_ERRORS, max_risk, level) / fewest
    steps = np.arange(max(0, math.ceil(math.log(limit / start, 1.01))) + 1)
    totals = np.ceil(start * 1.01**steps).astype(np.int64)
    firsts = _first_counts(totals, max_risk, level)
    # Of the samples seen, those that the first test would be about, and the errors to be expected in it.
    alike = np.ceil(seen * firsts / totals).astype(np.int64)
    expected = np.ceil(failures[np.minimum(alike, seen) - 1] * firsts / alike)
    enough = (scipy.stats.binom.cdf(expected, firsts, max_risk) <= level) & (seen * firsts >= totals * fewest)
    return int(totals[enough][0]) if enough.any() else None


def _labels(predicted: ArrayLike, scores: NDArray[np.float64], classes: int) -> NDArray[np.int64]:
    labels = np.asarray(predicted)
    if labels.shape != scores.shape or not np.issubdtype(labels.dtype, np.integer):
        raise ArgumentError(
            f"predicted: expected integers of shape {scores.shape} as suspicion, got {labels.dtype} of {labels.shape}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ArgumentError(
            f"predicted: expected classes from 0 to {classes - 1}, got {labels.min()} to {labels.max()}."
        )
    return labels.astype(np.int64)


def _check_open(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < 1:
            raise ArgumentError(f"{name}: expected a number between 0 and 1, got {value}.")
