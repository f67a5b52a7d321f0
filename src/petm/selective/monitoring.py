"""Whether a threshold's guarantee still holds, by an interval of the error rate among labelled predictions."""

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
from petm.selective.sequential import FROM_START, log_evidence, log_violation, sequential_share
from petm.selective.thresholds import Threshold, check_share

Verdict = Literal["holds", "cannot tell", "violated", "nothing guaranteed"]

MOST_SAMPLES = 10**9
"""Greatest number of labelled samples that is proposed."""

_ROW = np.dtype([("place", "<i4"), ("block", "<i4"), ("chance", "<f8"), ("coin", "<f8")])
"""A labelled prediction: right, then wrong; of each, the places of `Threshold.values`, then suspects."""


@dataclass(frozen=True)
class GuaranteeCheck:
    """A guarantee, checked on labelled predictions.

    Attributes:
        verdict: ``holds`` where the whole interval is within the limit, ``violated`` where the whole of it exceeds the
            limit, ``cannot tell`` where the limit lies inside; ``nothing guaranteed`` where there is no limit.
            Checked at any time, it is ``violated`` also where only the latest blocks exceed the limit.
        of: The share that is limited: ``wrong among the trusted`` or, for a recall, ``trusted among the wrong``.
        limit: The greatest share that was guaranteed; None where nothing was.
        confidence: Confidence of the interval; in a class, that which gives the overall one.
        found: The share seen, with its Clopper-Pearson interval; at any time, with that of a confidence sequence.
        labelled_trusted: Number of trusted predictions with a known label.
        labelled_suspects: Number of suspect predictions with a known label.
        samples_needed: With ``cannot tell``: about how many labelled samples of the kind in ``found.of`` would do, if
            the share stayed as seen (or as in calibration where none is seen); None where no number would.
        classes: Class number and check of each class with trusted predictions, or with groups the place in
            `Groups.members` and the check of each group with a guarantee; empty where one threshold serves all.
        evidence: At any time: the e-value against the guarantee, 1 at the beginning; ``violated`` from
            ``2 / (1 - confidence)`` on. None for one look.
        since: At any time: the block, from 0, since which the evidence is greatest.
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
    evidence: float | None = None
    since: int = 0


class LabelledCounts:
    """Labelled predictions, right and wrong, which may come in pieces and over time.

    Attributes:
        threshold: The threshold whose guarantee is checked.
    """

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self._pieces: list[NDArray[np.void]] = []

    @property
    def trusted(self) -> NDArray[np.int64]:
        """Number of labelled and trusted predictions, int64 ``(K,)``, or ``(1,)`` where one threshold serves all."""
        return np.asarray(self._count(self._rows).sum((0, 1))[:-1])

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Number of wrong ones among `trusted`, of the same shape."""
        return np.asarray(self._count(self._rows).sum(0)[1, :-1])

    @property
    def suspects(self) -> int:
        """Number of labelled suspects."""
        return int(self._count(self._rows)[:, :, -1].sum())

    @property
    def found(self) -> int:
        """Number of wrong ones among these."""
        return int(self._count(self._rows)[:, 1, -1].sum())

    def add(
        self,
        trusted: ArrayLike,
        wrong: ArrayLike,
        predicted: ArrayLike | None = None,
        *,
        chance: ArrayLike | None = None,
        coins: ArrayLike | None = None,
        block: ArrayLike = 0,
    ) -> "LabelledCounts":
        """Adds predictions whose true label is known, about 20 bytes each, and returns itself.

        Args:
            trusted: bool ``(n,)``, the grades.
            wrong: bool ``(n,)``, where the base model is wrong.
            predicted: int ``(n,)``, the classes that the base model predicts; needed with a threshold for each class.
            chance: float ``(n,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for 1.
            coins: float ``(n,)`` in [0, 1), a random number that belongs to each, by which it is kept where chances
                differ; None draws some.
            block: int, or int ``(n,)``, the block of time that each belongs to, from 0.
        """
        grades, errors = aligned(np.asarray(trusted, bool), wrong)
        rows = np.empty(len(grades), _ROW)
        inverse_chances(chance, len(grades))  # checks them
        rows["chance"] = 1.0 if chance is None else chance
        drawn = np.random.default_rng(sum(map(len, self._pieces))).random(len(grades)) if coins is None else coins
        kinds = len(self.threshold.values)
        places = np.where(grades, self.threshold.places(predicted, grades.shape), kinds)
        rows["place"], rows["coin"], rows["block"] = places + (kinds + 1) * errors, drawn, block
        self._pieces.append(rows)
        return self

    def check(self, *, confidence: float | None = None, at_any_time: bool = False) -> GuaranteeCheck:
        """Returns whether the threshold's guarantee holds on the labelled, is violated, or cannot be told.

        The errors among ``n`` trusted predictions drawn at random are binomial, so the interval of Clopper and Pearson
        covers the error rate with probability ``confidence`` at least, for every ``n``. The guarantee holds where the
        interval ends at the guaranteed risk or below, and is violated where it begins above. Either verdict is false
        with probability ``(1 - confidence) / 2`` at most; with a guarantee in each class, over all classes at once.
        That is for one look. With ``at_any_time``, by confidence sequences (`petm.selective.sequential`), it is so for
        all looks together at labels that grow.

        The labelled must be a random part of the trusted; labels of suspects alone do not tell. Where chances differ
        in a block, its predictions are thinned to the least chance in it, as by `petm.selective.audit.thinned`, each by
        its coin: ``found`` counts those kept.

        Args:
            confidence: Confidence of the interval, between 0 and 1; None for that of the guarantee, or 0.95 without.
            at_any_time: Whether the labels may be looked at again and again.

        Reference:
            Clopper and Pearson (1934), The Use of Confidence or Fiducial Limits Illustrated in the Case of the
            Binomial; Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting.
        """
        threshold = self.threshold
        level = confidence if confidence is not None else threshold.confidence or 0.95
        check_share("confidence", level, below_1=True)
        used, counts = self._used()
        limit, expected, of = threshold.max_risk, threshold.risk, "wrong among the trusted"
        if self._of_recall and threshold.recall is not None:
            limit = expected = 1 - threshold.recall
            of = "trusted among the wrong"
        guaranteed = limit if threshold.holds and threshold.confidence is not None else None
        labelled = int(self.trusted.sum())
        whole = _judge(counts, of, guaranteed, level, expected, labelled, self.suspects, at_any_time)
        return self._in_each_class(whole, used, at_any_time) if threshold.classes else whole

    def blocks(self) -> NDArray[np.int64]:
        """Returns the share that `check` looks at by block, int64 ``(B, 2)``: those with the property, all of them."""
        return self._used()[1]

    @property
    def _of_recall(self) -> bool:
        """Whether a recall is guaranteed, and not a risk."""
        return self.threshold.recall is not None and self.threshold.confidence is not None

    def _used(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The thinned counts, as of `_count`, and those of `blocks`."""
        rows, kinds = self._rows, len(self.threshold.values)
        if not self._of_recall:  # suspects say nothing
            rows = rows[rows["place"] % (kinds + 1) < kinds]
        used = self._count(_thinned(rows))
        errors = used[:, 1, :-1].sum(1)
        return used, np.stack([errors, used[:, 1].sum(1) if self._of_recall else used[:, :, :-1].sum((1, 2))], 1)

    @property
    def _rows(self) -> NDArray[np.void]:
        """All predictions, of the type `_ROW`."""
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate([np.empty(0, _ROW), *self._pieces])]
        return self._pieces[0]

    def _count(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """Counts by block, right and wrong, and place, int64 ``(B, 2, K + 1)``; the last place is that of suspects."""
        kinds = len(self.threshold.values) + 1
        blocks = int(rows["block"].max(initial=0)) + 1
        places = rows["block"].astype(np.int64) * 2 * kinds + rows["place"]
        return np.bincount(places, minlength=2 * kinds * blocks).reshape(blocks, 2, kinds)

    def _in_each_class(self, whole: GuaranteeCheck, used: NDArray[np.int64], at_any_time: bool) -> GuaranteeCheck:
        """The check of a guarantee in each class, from the check of all together."""
        limit, parts = self.threshold.max_risk, self.threshold.classes
        groups = self.threshold.groups
        of_parts = list(groups.members.values()) if groups else [(label,) for label in range(len(parts))]
        kept = [(label, places) for label, places in enumerate(of_parts) if any(parts[each].holds for each in places)]
        if not kept or limit is None:
            return whole
        each, checks = 1 - (1 - whole.confidence) / len(kept), []
        for label, places in kept:
            mine = used[:, :, list(places)].sum(2)
            counts = np.stack([mine[:, 1], mine.sum(1)], 1)
            trusted = int(counts[:, 1].sum())
            risk = parts[places[0]].risk if len(places) == 1 else None
            part = _judge(counts, whole.of, limit, each, risk, trusted, 0, at_any_time)
            checks.append((label, part))
        verdicts: tuple[Verdict, ...] = ("violated", "cannot tell")
        verdict: Verdict = next((one for one in verdicts if any(check.verdict == one for _, check in checks)), "holds")
        needed = _needed_over_all(checks, whole.labelled_trusted) if verdict == "cannot tell" else None
        return replace(whole, verdict=verdict, limit=limit, samples_needed=needed, classes=tuple(checks))


def _thinned(rows: NDArray[np.void]) -> NDArray[np.void]:
    """The predictions whose coin lies below the least chance of their block over their own."""
    least = np.ones(int(rows["block"].max(initial=0)) + 1)
    np.minimum.at(least, rows["block"], rows["chance"])
    return np.asarray(rows[rows["coin"] < least[rows["block"]] / rows["chance"]])


def exact_share(count: int, of: int, *, confidence: float = 0.95) -> Share:
    """Returns ``count / of`` with its Clopper-Pearson interval at level ``confidence``; [0, 1] without any trial."""
    if not of:
        return Share(math.nan, 0, 0, 0.0, 1.0)
    ends = scipy.stats.binomtest(count, of).proportion_ci(confidence, method="exact")
    return Share(count / of, count, of, float(ends.low), float(ends.high))


def samples_to_tell(rate: float, limit: float, confidence: float, *, at_any_time: bool = False) -> int | None:
    """Returns about how many trials show on which side of ``limit`` a share lies that stays at ``rate``.

    The least ``n`` (within a hundredth) whose Clopper-Pearson interval, or with ``at_any_time`` confidence sequence, at
    level ``confidence`` excludes the limit, with ``rate n`` counted, rounded towards the limit. None where ``rate`` is
    the limit, or too near to it.
    """
    steps = math.ceil(math.log(MOST_SAMPLES, 1.01))
    trials, tail, above = np.unique(np.ceil(1.01 ** np.arange(steps + 1))), (1 - confidence) / 2, rate > limit
    counts = np.floor(trials * rate + 1e-9) if above else np.minimum(np.ceil(trials * rate - 1e-9), trials)
    if at_any_time:
        told = log_evidence(counts, trials, limit, above=above) >= -math.log(tail * (FROM_START if above else 1))
    elif above:
        told = (counts > 0) & (scipy.stats.beta.ppf(tail, np.maximum(counts, 1), trials - counts + 1) > limit)
    else:
        told = (counts < trials) & (scipy.stats.beta.ppf(1 - tail, counts + 1, np.maximum(trials - counts, 1)) <= limit)
    return int(trials[told][0]) if told.any() else None


def _judge(
    blocks: NDArray[np.int64],
    of: str,
    limit: float | None,
    level: float,
    expected: float | None,
    labelled_trusted: int,
    suspects: int,
    at_any_time: bool,
) -> GuaranteeCheck:
    """The check from ``(B, 2)`` counts: with the property, and all."""
    interval = sequential_share if at_any_time else exact_share
    count, total = blocks.sum(0).tolist()
    found = interval(count, total, confidence=level)
    if limit is None:
        return GuaranteeCheck("nothing guaranteed", of, limit, level, found, labelled_trusted, suspects)
    verdict: Verdict = "cannot tell"
    needed, since, evidence = None, 0, None
    if at_any_time:
        logarithm, since = log_violation(blocks, limit)
        evidence = math.exp(min(logarithm, 600))  # within a float
    if labelled_trusted and (found.low > limit or (evidence is not None and evidence >= 2 / (1 - level))):
        verdict = "violated"
    elif labelled_trusted and found.high <= limit:
        verdict = "holds"
    else:
        rate = found.value if found.of else expected or 0.0
        needed = samples_to_tell(rate, limit, level, at_any_time=at_any_time)
    return GuaranteeCheck(
        verdict, of, limit, level, found, labelled_trusted, suspects, needed, evidence=evidence, since=since
    )


def _needed_over_all(checks: Sequence[tuple[int, GuaranteeCheck]], total: int) -> int | None:
    """About how many labelled trusted samples of all classes would tell in every class."""
    needed = []
    for _, check in checks:
        if check.verdict == "cannot tell":
            if check.samples_needed is None or not check.found.of:
                return None
            needed.append(math.ceil(check.samples_needed * total / check.found.of))
    return max(needed, default=None)
