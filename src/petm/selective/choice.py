"""The choice among several suspicions on labelled samples, with the softmax as the one to beat."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm._internal.records import Record
from petm.errors import ArgumentError
from petm.selective.audit import inverse_chances
from petm.selective.metrics import aurc, coverage_at_risk
from petm.selective.ranking import RankedRows, Ranking

FEWEST_ERRORS = 10
"""Errors below which nothing can be told to be better than the softmax."""
FEWEST_TO_CHOOSE = 500
"""Held-out samples below which a guarantee needs them all, and nothing is chosen."""
CHOICE_SHARE = 0.4
"""Share of the held-out samples to choose the suspicion on, where the others are for a guarantee."""
LEVEL, _FEW = 0.05, 1.645
"""Probability with which at least one suspicion that is no better passes for better, and the standard errors that the
few which one would try first may be behind: what takes their place must be better than they are by that level."""


@dataclass(frozen=True)
class Compared:
    """One suspicion in a comparison.

    Attributes:
        name: Its name.
        cost: Operations that it adds, over those of a plain forward pass.
        value: AURC, or coverage at the target's risk.
        low: Lower end of the 95 % interval of its paired difference to the softmax.
        high: Upper end.
        better: Whether it is better than the softmax by more than chance, given how many were compared.
        taken: Whether it was chosen.
    """

    name: str
    cost: float
    value: float
    low: float
    high: float
    better: bool
    taken: bool


@dataclass(frozen=True)
class Choice:
    """The result of a comparison.

    Attributes:
        name: The suspicion that was chosen.
        metric: ``aurc``, or ``coverage at risk R``.
        compared: All of them, the first to beat at the head, the others from the best to the worst.
        reason: Why it was chosen, a sentence.
    """

    name: str
    metric: str
    compared: tuple[Compared, ...]
    reason: str

    @classmethod
    def from_json(cls, record: Record) -> "Choice":
        """Returns the choice from a manifest; raises BundleError where an entry breaks its rule."""
        compared = tuple(
            Compared(
                row.text("name"),
                row.number("cost"),
                row.number("value"),
                row.number("low"),
                row.number("high"),
                row.flag("better"),
                row.flag("taken"),
            )
            for row in record.records("compared")
        )
        return cls(record.text("name"), record.text("metric"), compared, record.text("reason"))


def choose(
    suspicions: Mapping[str, ArrayLike],
    costs: Mapping[str, float],
    wrong: ArrayLike,
    *,
    alone: Mapping[str, Sequence[ArrayLike]] | None = None,
    max_risk: float | None = None,
    chance: ArrayLike | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Choice:
    """Returns the cheapest of the suspicions that are as good as the best; the first unless others beat it.

    A suspicion is better than the first where its gain, over its standard deviation on resamples of the rows, exceeds
    the ``1 - LEVEL`` quantile of the greatest gain by chance (White's reality check). The gain is the logarithm of the
    ratio of both AURC, whose distribution is less skewed than that of the difference, or the difference of both
    coverages. The greatest gain is taken over all suspicions; for the few that one would try first, over each alone,
    as many candidates would hide them. Of those that are better, every one within a standard error of the best is as
    good, 1.645 of them for the few, and the cheapest of these is chosen; among equally cheap ones, one of the few.

    Args:
        suspicions: float ``(N,)`` each, by name; the first is the one to beat. None was fitted on the sample it is
            computed for.
        costs: Operations that each adds, over those of a plain forward pass.
        wrong: bool ``(N,)``, where the base model is wrong.
        alone: Names of those that are tested each alone, with suspicions ``(N,)`` that these samples have already left
            out in its favour, such as those of other epochs of a training.
        max_risk: Risk at which the coverage is compared; absent compares AURC.
        chance: float ``(N,)``, with which each sample was drawn to be labelled, in (0, 1]; None for equal chances.
            Samples are weighted by its inverse.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Raises:
        ArgumentError: There is no suspicion, or the names differ.

    Reference:
        White (2000), A Reality Check for Data Snooping; Breiman et al. (1984), section 3.4.3, for one standard error.
    """
    names, errors, alone = list(suspicions), np.asarray(wrong, bool), alone or {}
    if not names or set(names) != set(costs):
        raise ArgumentError(f"costs: expected one for each of {names}, got {list(costs)}.")
    of_ranking = aurc.of_ranking if max_risk is None else partial(_uncovered, risk=max_risk)
    left_out = [each for left in alone.values() for each in left]
    weights = None if chance is None else inverse_chances(chance, len(errors))
    ranked = [RankedRows(each, errors, weights) for each in (*(suspicions[name] for name in names), *left_out)]
    values, drawn = _values(ranked, len(errors), of_ranking, resamples, seed)
    score = np.log if max_risk is None and (values > 0).all() else np.positive
    with np.errstate(divide="ignore", invalid="ignore"):
        gains, by_chance = score(values[0]) - score(values), score(drawn[:, :1]) - score(drawn)
        spread = np.nanstd(np.where(np.isfinite(by_chance), by_chance, np.nan), axis=0)
        lucky = np.where(spread > 0, (by_chance - gains) / spread, -np.inf)
        gain = np.where(spread > 0, gains / spread, -np.inf)
    better, place = gain > _limit(lucky), len(names)
    for name, left in alone.items():
        own = [names.index(name), *range(place, place + len(left))]
        better[own[0]] = gain[own[0]] > _limit(lucky[:, own])
        place += len(left)
    better, values, drawn = better[: len(names)], values[: len(names)], drawn[:, : len(names)]
    count = int(errors.sum())
    if few := min(count, len(errors) - count) < FEWEST_ERRORS:
        better[:] = False
    taken, best = 0, 0
    if better.any():
        best = int(np.where(better, values, np.inf).argmin())
        behind = np.nanstd(drawn - drawn[:, best : best + 1], axis=0)
        allowed = np.where([name in alone for name in names], _FEW, 1.0) * behind
        as_good = np.flatnonzero(better & (values - values[best] <= allowed))
        taken = int(min(as_good, key=lambda each: (costs[names[each]], names[each] not in alone, values[each])))
    rows = _rows(names, costs, values, drawn, better, taken, covered=max_risk is not None)
    order = [0, *sorted(range(1, len(names)), key=lambda each: (values[each], costs[names[each]]))]
    metric = "aurc" if max_risk is None else f"coverage at risk {max_risk:g}"
    reason = _reason(names, taken, best, count, few=few)
    return Choice(names[taken], metric, tuple(rows[each] for each in order), reason)


def _limit(lucky: NDArray[np.float64]) -> float:
    """The gain that chance exceeds with probability `LEVEL`, at least 0, from studentised ones ``(resamples, J)``."""
    greatest = np.nanmax(np.where(np.isfinite(lucky), lucky, -1e300), axis=1)
    return max(0.0, float(np.quantile(greatest, 1 - LEVEL)))


def _rows(
    names: Sequence[str],
    costs: Mapping[str, float],
    values: NDArray[np.float64],
    drawn: NDArray[np.float64],
    better: NDArray[np.bool_],
    taken: int,
    *,
    covered: bool,
) -> list[Compared]:
    low, high = np.nanquantile(drawn - drawn[:, :1], [0.025, 0.975], axis=0)
    if covered:
        values, low, high = 1 - values, -high, -low
    return [
        Compared(
            name,
            costs[name],
            float(values[each]),
            float(low[each]),
            float(high[each]),
            bool(better[each]),
            each == taken,
        )
        for each, name in enumerate(names)
    ]


def _values(
    ranked: Sequence[RankedRows], samples: int, of_ranking: Callable[[Ranking], float], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The metric of each suspicion ``(J,)``, and on resamples of the rows, the same for all, ``(resamples, J)``."""
    generator = np.random.default_rng(seed)
    rows = (generator.integers(0, samples, samples) for _ in range(resamples))
    drawn = np.array([[of_ranking(each.ranking(chosen)) for each in ranked] for chosen in rows])
    return np.array([of_ranking(each.ranking()) for each in ranked]), drawn


def _uncovered(ranking: Ranking, risk: float) -> float:
    return 1 - coverage_at_risk.of_ranking(ranking, risk)


def _reason(names: Sequence[str], place: int, best: int, errors: int, *, few: bool) -> str:
    first, taken = names[0], names[place]
    if len(names) == 1:
        return f"Nothing was compared with the {first}."
    if few:
        return f"The samples to choose on hold {errors} errors, too few to tell whether anything beats the {first}."
    if not place:
        return f"Nothing beats the {first} here by more than chance."
    why = "nothing cheaper is as good" if place == best else f"is the cheapest within a standard error of {names[best]}"
    return f"{taken[:1].upper()}{taken[1:]} beats the {first} by more than chance, and {why}."
