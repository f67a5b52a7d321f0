"""Whether a threshold's guarantee still holds, by the exact interval of the error rate among labelled predictions.

    check = check_guarantee(threshold, trusted, wrong, labels)         # bool (n,), bool (n,), int (n,) or None
    check = LabelledCounts(threshold).add(trusted, wrong, labels)... .check()   # the same in pieces

Only rows whose true label is known go in, the suspects among them too. ``labels`` are the base model's predictions,
needed where the guarantee is made in each class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from petm.errors import ArgumentError
from petm.selective.metrics import Share
from petm.selective.thresholds import Threshold

Verdict = Literal["holds", "cannot tell", "broken", "nothing guaranteed"]

MOST_SAMPLES = 10**9
"""Beyond so many labelled samples it is said that no number would do."""


@dataclass(frozen=True)
class GuaranteeCheck:
    """What labelled predictions say of a guarantee.

    Attributes:
        verdict: ``holds`` where the whole interval keeps the limit, ``broken`` where the whole of it exceeds the limit,
            ``cannot tell`` where the limit lies within; ``nothing guaranteed`` where there is no limit.
        of: What the limit is on: ``wrong among the trusted``; where a recall was guaranteed, ``trusted among the
            wrong``.
        limit: The greatest share that was guaranteed; absent where nothing was.
        confidence: Of the interval; in a class, what leaves that of the guarantee over all of them.
        found: The share seen, with its Clopper-Pearson interval.
        labelled_trusted: Trusted predictions with a known label.
        labelled_suspects: Suspects with a known label; they say nothing of the trusted.
        samples_needed: Where it cannot be told: about how many labelled samples of the kind that is counted in
            ``found.of`` would do, if the share stayed as seen, or as seen in calibration where none is; absent where no
            number would.
        classes: The check of each class that is ever trusted, by its number; empty where one threshold serves all.
    """

    verdict: Verdict
    of: str
    limit: float | None
    confidence: float
    found: Share
    labelled_trusted: int
    labelled_suspects: int
    samples_needed: int | None = None
    classes: tuple[tuple[int, "GuaranteeCheck"], ...] = ()

    @property
    def only_suspects(self) -> bool:
        """Whether labels were given to suspects alone, which says nothing of the trusted."""
        return self.labelled_suspects > 0 and self.labelled_trusted == 0


class LabelledCounts:
    """Right and wrong among labelled predictions, counted as they come.

    Args:
        threshold: Whose guarantee is to be checked.

    Attributes:
        trusted: int64 ``(K,)``, labelled and trusted, for each class with a threshold of its own; ``(1,)`` for all.
        wrong: int64 ``(K,)``, how many of these are wrong.
        suspects: Labelled suspects.
        found: How many of these are wrong.
    """

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self.trusted = np.zeros(len(threshold.values), np.int64)
        self.wrong = np.zeros_like(self.trusted)
        self.suspects, self.found = 0, 0

    def add(self, trusted: ArrayLike, wrong: ArrayLike, labels: ArrayLike | None = None) -> "LabelledCounts":
        """Counts some labelled predictions, and returns itself.

        Args:
            trusted: bool ``(n,)``, their grades.
            wrong: bool ``(n,)``, where the base model is wrong.
            labels: int ``(n,)``, the base model's predictions; needed where there is a threshold for each class.

        Raises:
            ArgumentError: Shapes differ, or ``labels`` is absent but needed or outside 0..K-1.
        """
        grades, errors = np.asarray(trusted, bool), np.asarray(wrong, bool)
        if grades.ndim != 1 or grades.shape != errors.shape:
            raise ArgumentError(
                f"wrong: expected one entry for each of trusted, got shapes {errors.shape} and {grades.shape}."
            )
        kinds = len(self.trusted)
        classes = np.zeros(grades.shape, np.int64)
        if kinds > 1:
            if labels is None:
                raise ArgumentError(
                    f"labels: expected the model's predictions, int {grades.shape}, for a guarantee in each of "
                    f"{kinds} classes, "
                    f"got none. Pass them."
                )
            classes = np.asarray(labels, np.int64)
            if classes.shape != grades.shape or (classes.size and not 0 <= classes.min() <= classes.max() < kinds):
                raise ArgumentError(
                    f"labels: expected {len(grades)} classes from 0 to {kinds - 1}, got {classes.shape} "
                    f"from {classes.min(initial=0)} to {classes.max(initial=0)}."
                )
        self.trusted += np.bincount(classes[grades], minlength=kinds)
        self.wrong += np.bincount(classes[grades & errors], minlength=kinds)
        self.suspects += int((~grades).sum())
        self.found += int((~grades & errors).sum())
        return self

    def check(self, *, confidence: float | None = None) -> GuaranteeCheck:
        """Returns what the counted say of the guarantee; as `check_guarantee`."""
        threshold, level = self.threshold, _level(self.threshold, confidence)
        total, errors = int(self.trusted.sum()), int(self.wrong.sum())
        if threshold.classes:
            return self._in_each_class(level)
        limit: float | None
        expected: float | None
        if threshold.recall is not None and threshold.confidence is not None:
            # Of labelled errors, wherever they are: those that were trusted have been missed.
            limit, expected = 1 - threshold.recall, 1 - threshold.recall
            counts, of = (errors, errors + self.found), "trusted among the wrong"
        else:
            limit, expected = threshold.max_risk, threshold.risk
            counts, of = (errors, total), "wrong among the trusted"
        guaranteed = limit if threshold.holds and threshold.confidence is not None else None
        return _judge(counts, of, guaranteed, level, expected, total, self.suspects)

    def _in_each_class(self, level: float) -> GuaranteeCheck:
        parts = self.threshold.classes
        kept = [label for label, part in enumerate(parts) if part.holds]
        each = 1 - (1 - level) / max(1, len(kept))
        of, limit = "wrong among the trusted", self.threshold.max_risk
        checks = []
        for label in kept:
            counts = int(self.wrong[label]), int(self.trusted[label])
            checks.append((label, _judge(counts, of, limit, each, parts[label].risk, counts[1], 0)))
        total, errors = int(self.trusted.sum()), int(self.wrong.sum())
        verdict: Verdict = "holds"
        for worse in ("cannot tell", "broken"):
            if any(check.verdict == worse for _, check in checks):
                verdict = worse
        return GuaranteeCheck(
            verdict if kept and limit is not None else "nothing guaranteed",
            of,
            limit if kept else None,
            level,
            exact_share(errors, total, confidence=level),
            total,
            self.suspects,
            _needed_over_all(checks, total) if verdict == "cannot tell" else None,
            tuple(checks),
        )


def check_guarantee(
    threshold: Threshold,
    trusted: ArrayLike,
    wrong: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    confidence: float | None = None,
) -> GuaranteeCheck:
    """Returns whether a threshold's guarantee holds on labelled predictions, is broken, or cannot be told from so few.

    The errors among ``n`` trusted predictions drawn at random from all are binomial, so the interval of Clopper and
    Pearson holds the error rate with probability ``confidence`` at least, however small ``n`` is. The guarantee holds
    where the interval ends at the guaranteed risk or below, and is broken where it begins above. A guarantee that is
    kept is called broken with probability ``(1 - confidence) / 2`` at most, and one that is broken is called held no
    more often. Where it was made in each class, the intervals of all classes hold together.

    This assumes that the labelled are a random part of the trusted. Labels of suspects alone say nothing of the
    trusted, and then it cannot be told.

    Args:
        threshold: From `petm.selective.thresholds`; what it guarantees is checked.
        trusted: bool ``(n,)``, the grades of predictions whose true label is known.
        wrong: bool ``(n,)``, where the base model is wrong on them.
        labels: int ``(n,)``, the base model's predictions; needed where there is a threshold for each class.
        confidence: Of the interval, between 0 and 1; absent takes that of the guarantee, or 0.95 where there is none.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Clopper and Pearson (1934), The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial.
    """
    return LabelledCounts(threshold).add(trusted, wrong, labels).check(confidence=confidence)


def exact_share(count: int, of: int, *, confidence: float = 0.95) -> Share:
    """Returns ``count / of`` with its Clopper-Pearson interval, which holds its level for every count.

    Args:
        count: 0 to ``of``.
        of: Trials; without any the interval is [0, 1].
        confidence: Level of the interval, between 0 and 1.
    """
    if not of:
        return Share(math.nan, 0, 0, 0.0, 1.0)
    ends = scipy.stats.binomtest(count, of).proportion_ci(confidence, method="exact")
    return Share(count / of, count, of, float(ends.low), float(ends.high))


def samples_to_tell(rate: float, limit: float, confidence: float) -> int | None:
    """Returns about how many trials show on which side of ``limit`` a share lies that stays at ``rate``.

    The least ``n`` (within a hundredth) whose Clopper-Pearson interval leaves out the limit, with ``rate n`` counted,
    rounded towards the limit. Absent where ``rate`` is the limit itself, or too near to it.

    Args:
        rate: In [0, 1].
        limit: Between 0 and 1.
        confidence: Of the interval.
    """
    steps = math.ceil(math.log(MOST_SAMPLES, 1.01))
    trials, tail = np.unique(np.ceil(1.01 ** np.arange(steps + 1))), (1 - confidence) / 2
    if rate <= limit:
        counts = np.minimum(np.ceil(trials * rate - 1e-9), trials)
        told = (counts < trials) & (scipy.stats.beta.ppf(1 - tail, counts + 1, np.maximum(trials - counts, 1)) <= limit)
    else:
        counts = np.floor(trials * rate + 1e-9)
        told = (counts > 0) & (scipy.stats.beta.ppf(tail, np.maximum(counts, 1), trials - counts + 1) > limit)
    return int(trials[told][0]) if told.any() else None


def _level(threshold: Threshold, confidence: float | None) -> float:
    level = confidence if confidence is not None else threshold.confidence or 0.95
    if not 0 < level < 1:
        raise ArgumentError(f"confidence: expected a number between 0 and 1, got {level}.")
    return level


def _judge(
    counts: tuple[int, int],
    of: str,
    limit: float | None,
    level: float,
    expected: float | None,
    labelled_trusted: int,
    suspects: int,
) -> GuaranteeCheck:
    found = exact_share(*counts, confidence=level)
    needed, verdict = None, _verdict(found, limit, labelled_trusted)
    if verdict == "cannot tell" and limit is not None:
        needed = samples_to_tell(found.value if found.of else expected or 0.0, limit, level)
    return GuaranteeCheck(verdict, of, limit, level, found, labelled_trusted, suspects, needed)


def _verdict(found: Share, limit: float | None, labelled_trusted: int) -> Verdict:
    if limit is None:
        return "nothing guaranteed"
    if not labelled_trusted:
        return "cannot tell"
    if found.high <= limit:
        return "holds"
    return "broken" if found.low > limit else "cannot tell"


def _needed_over_all(checks: Sequence[tuple[int, GuaranteeCheck]], total: int) -> int | None:
    """How many labelled trusted samples of all classes would tell in every class, drawn as the present ones are."""
    needed = []
    for _, check in checks:
        if check.verdict == "cannot tell":
            if check.samples_needed is None or not check.found.of:
                return None
            needed.append(math.ceil(check.samples_needed * total / check.found.of))
    return max(needed, default=None)
