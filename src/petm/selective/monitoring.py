"""Whether a threshold's guarantee still holds, by the exact interval of the error rate among labelled predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm.selective.audit import inverse_chances
from petm.selective.metrics import Share
from petm.selective.ranking import aligned
from petm.selective.thresholds import Threshold, check_share

Verdict = Literal["holds", "cannot tell", "violated", "nothing guaranteed"]

MOST_SAMPLES = 10**9
"""Greatest number of labelled samples that is proposed."""


@dataclass(frozen=True)
class GuaranteeCheck:
    """A guarantee, checked on labelled predictions.

    Attributes:
        verdict: ``holds`` where the whole interval is within the limit, ``violated`` where the whole of it exceeds the
            limit, ``cannot tell`` where the limit lies inside; ``nothing guaranteed`` where there is no limit.
        of: The share that is limited: ``wrong among the trusted`` or, for a recall, ``trusted among the wrong``.
        limit: The greatest share that was guaranteed; None where nothing was.
        confidence: Confidence of the interval; in a class, that which gives the overall one.
        found: The share seen, with its Clopper-Pearson interval.
        labelled_trusted: Number of trusted predictions with a known label.
        labelled_suspects: Number of suspect predictions with a known label.
        samples_needed: With ``cannot tell``: about how many labelled samples of the kind in ``found.of`` would do, if
            the share stayed as seen (or as in calibration where none is seen); None where no number would.
        classes: Class number and check of each class with trusted predictions; empty where one threshold serves all.
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


class LabelledCounts:
    """Counts of right and wrong among labelled predictions, which may come in pieces.

    Attributes:
        threshold: The threshold whose guarantee is checked.
        drawn: By the chance with which predictions were drawn to be labelled, int64 ``(2, K + 1)``: right and wrong
            ones; trusted in each class with a threshold of its own (one column where one serves all), then suspects.
    """

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self.drawn: dict[float, NDArray[np.int64]] = {}

    @property
    def trusted(self) -> NDArray[np.int64]:
        """Number of labelled and trusted predictions, int64 ``(K,)``, or ``(1,)`` where one threshold serves all."""
        return np.asarray(self._all().sum(0)[:-1])

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Number of wrong ones among `trusted`, of the same shape."""
        return self._all()[1, :-1]

    @property
    def suspects(self) -> int:
        """Number of labelled suspects."""
        return int(self._all()[:, -1].sum())

    @property
    def found(self) -> int:
        """Number of wrong ones among these."""
        return int(self._all()[1, -1])

    def add(
        self,
        trusted: ArrayLike,
        wrong: ArrayLike,
        predicted: ArrayLike | None = None,
        *,
        chance: ArrayLike | None = None,
    ) -> "LabelledCounts":
        """Counts predictions whose true label is known, and returns the counts themselves.

        Args:
            trusted: bool ``(n,)``, the grades.
            wrong: bool ``(n,)``, where the base model is wrong.
            predicted: int ``(n,)``, the classes that the base model predicts; needed with a threshold for each class.
            chance: float ``(n,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for 1.
        """
        grades, errors = aligned(np.asarray(trusted, bool), wrong)
        chances = np.ones(len(grades)) if chance is None else np.asarray(chance, np.float64)
        inverse_chances(chances, len(grades))
        kinds = len(self.threshold.values)
        places = np.where(grades, self.threshold.places(predicted, grades.shape), kinds) + (kinds + 1) * errors
        for value in np.unique(chances).tolist():
            counts = np.bincount(places[chances == value], minlength=2 * (kinds + 1)).reshape(2, -1)
            self.drawn[value] = self.drawn.get(value, 0) + counts
        return self

    def check(self, *, confidence: float | None = None) -> GuaranteeCheck:
        """Returns whether the threshold's guarantee holds on the labelled, is violated, or cannot be told.

        The errors among ``n`` trusted predictions drawn at random are binomial, so the interval of Clopper and Pearson
        covers the error rate with probability ``confidence`` at least, for every ``n``. The guarantee holds where the
        interval ends at the guaranteed risk or below, and is violated where it begins above. Either verdict is false
        with probability ``(1 - confidence) / 2`` at most; with a guarantee in each class, over all classes at once.

        The labelled must be a random part of the trusted; labels of suspects alone do not tell. Where chances differ,
        the counts are thinned to the least chance, as by `petm.selective.audit.thinned`: ``found`` counts those kept.

        Args:
            confidence: Confidence of the interval, between 0 and 1; None for that of the guarantee, or 0.95 without.

        Reference:
            Clopper and Pearson (1934), The Use of Confidence or Fiducial Limits Illustrated in the Case of the
            Binomial.
        """
        threshold = self.threshold
        level = confidence if confidence is not None else threshold.confidence or 0.95
        check_share("confidence", level, below_1=True)
        used = self._thinned()
        trusted, wrong, found = used.sum(0)[:-1], used[1, :-1], int(used[1, -1])
        total, errors = int(trusted.sum()), int(wrong.sum())
        limit, expected = threshold.max_risk, threshold.risk
        counts, of = (errors, total), "wrong among the trusted"
        if threshold.recall is not None and threshold.confidence is not None:
            limit = expected = 1 - threshold.recall
            counts, of = (errors, errors + found), "trusted among the wrong"
        guaranteed = limit if threshold.holds and threshold.confidence is not None else None
        labelled = int(self.trusted.sum())
        whole = _judge(counts, of, guaranteed, level, expected, labelled, self.suspects)
        return self._in_each_class(whole, trusted, wrong) if threshold.classes else whole

    def _all(self) -> NDArray[np.int64]:
        """The counts over all chances."""
        return sum(self.drawn.values(), np.zeros((2, len(self.threshold.values) + 1), np.int64))

    def _thinned(self) -> NDArray[np.int64]:
        """The counts, each prediction kept with the least chance over its own as probability."""
        random, least = np.random.default_rng(0), min(self.drawn, default=1.0)
        kept = (random.binomial(counts, least / chance) for chance, counts in sorted(self.drawn.items()))
        return sum(kept, np.zeros_like(self._all()))

    def _in_each_class(
        self, whole: GuaranteeCheck, trusted: NDArray[np.int64], wrong: NDArray[np.int64]
    ) -> GuaranteeCheck:
        """The check of a guarantee in each class, from the check of all together."""
        limit, parts = self.threshold.max_risk, self.threshold.classes
        kept = [label for label, part in enumerate(parts) if part.holds]
        if not kept or limit is None:
            return whole
        each, checks = 1 - (1 - whole.confidence) / len(kept), []
        for label in kept:
            counts = int(wrong[label]), int(trusted[label])
            checks.append((label, _judge(counts, whole.of, limit, each, parts[label].risk, counts[1], 0)))
        verdicts: tuple[Verdict, ...] = ("violated", "cannot tell")
        verdict: Verdict = next((one for one in verdicts if any(check.verdict == one for _, check in checks)), "holds")
        needed = _needed_over_all(checks, whole.labelled_trusted) if verdict == "cannot tell" else None
        return replace(whole, verdict=verdict, limit=limit, samples_needed=needed, classes=tuple(checks))


def exact_share(count: int, of: int, *, confidence: float = 0.95) -> Share:
    """Returns ``count / of`` with its Clopper-Pearson interval at level ``confidence``; [0, 1] without any trial."""
    if not of:
        return Share(math.nan, 0, 0, 0.0, 1.0)
    ends = scipy.stats.binomtest(count, of).proportion_ci(confidence, method="exact")
    return Share(count / of, count, of, float(ends.low), float(ends.high))


def samples_to_tell(rate: float, limit: float, confidence: float) -> int | None:
    """Returns about how many trials show on which side of ``limit`` a share lies that stays at ``rate``.

    The least ``n`` (within a hundredth) whose Clopper-Pearson interval at level ``confidence`` excludes the limit, with
    ``rate n`` counted, rounded towards the limit. None where ``rate`` is the limit, or too near to it.
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
    if limit is None:
        return GuaranteeCheck("nothing guaranteed", of, limit, level, found, labelled_trusted, suspects)
    verdict: Verdict = "cannot tell"
    needed = None
    if labelled_trusted and found.high <= limit:
        verdict = "holds"
    elif labelled_trusted and found.low > limit:
        verdict = "violated"
    else:
        needed = samples_to_tell(found.value if found.of else expected or 0.0, limit, level)
    return GuaranteeCheck(verdict, of, limit, level, found, labelled_trusted, suspects, needed)


def _needed_over_all(checks: Sequence[tuple[int, GuaranteeCheck]], total: int) -> int | None:
    """About how many labelled trusted samples of all classes would tell in every class."""
    needed = []
    for _, check in checks:
        if check.verdict == "cannot tell":
            if check.samples_needed is None or not check.found.of:
                return None
            needed.append(math.ceil(check.samples_needed * total / check.found.of))
    return max(needed, default=None)
