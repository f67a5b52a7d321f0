"""The choice among several suspicions on labelled samples, with the softmax as the one to beat."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.audit import inverse_chances
from petm.selective.metrics import aurc, coverage_at_risk
from petm.selective.ranking import RankedRows, Ranking

FEWEST_ERRORS = 10
"""Errors below which nothing can be told to be better than the softmax."""
LEVEL = 0.05
"""Probability with which at least one suspicion that is no better passes for better."""


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


def choose(
    suspicions: Mapping[str, ArrayLike],
    costs: Mapping[str, float],
    wrong: ArrayLike,
    *,
    max_risk: float | None = None,
    chance: ArrayLike | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Choice:
    """Returns the cheapest of the suspicions that are as good as the best; the first unless others beat it.

    A suspicion is better than the first where its studentised gain exceeds the ``1 - LEVEL`` quantile of the greatest
    gain over all of them by chance, which resamples of the rows give (White's reality check). Of those that are better,
    every one within a standard error of the best is as good, and the cheapest of these is chosen.

    Args:
        suspicions: float ``(N,)`` each, by name; the first is the one to beat. None was fitted on the sample it is
            computed for.
        costs: Operations that each adds, over those of a plain forward pass.
        wrong: bool ``(N,)``, where the base model is wrong.
        max_risk: Risk at which the coverage is compared; absent compares AURC.
        chance: float ``(N,)``, with which each sample was drawn to be labelled, in (0, 1]; None for equal chances.
            Samples are weighted by its inverse.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Raises:
        ArgumentError: There is no suspicion, or the names differ.

    Reference:
        White (2000), A Reality Check for Data Snooping; Breiman et al. (1984), section 3.4.3, one standard error.
    """
    names, errors = list(suspicions), np.asarray(wrong, bool)
    if not names or set(names) != set(costs):
        raise ArgumentError(f"costs: expected one for each of {names}, got {list(costs)}.")
    of_ranking = aurc.of_ranking if max_risk is None else partial(_uncovered, risk=max_risk)
    weights = None if chance is None else inverse_chances(chance, len(errors))
    ranked = [RankedRows(suspicions[name], errors, weights) for name in names]
    values, drawn = _values(ranked, len(errors), of_ranking, resamples, seed)
    gains, chance = values[0] - values, drawn[:, :1] - drawn
    spread = np.nanstd(chance, axis=0)
    known = spread > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        greatest = np.nanmax(np.where(known, (chance - gains) / spread, -np.inf), axis=1)
        better = known & (gains / spread > max(0.0, float(np.quantile(greatest, 1 - LEVEL))))
    count = int(errors.sum())
    if few := min(count, len(errors) - count) < FEWEST_ERRORS:
        better[:] = False
    place, best = 0, 0
    if better.any():
        best = int(np.where(better, values, np.inf).argmin())
        behind = np.nanstd(drawn - drawn[:, best : best + 1], axis=0)
        as_good = np.flatnonzero(better & (values - values[best] <= behind))
        place = int(min(as_good, key=lambda each: (costs[names[each]], values[each])))
    low, high = np.nanquantile(-chance, [0.025, 0.975], axis=0)
    sign = 1.0 if max_risk is None else -1.0
    rows = [
        Compared(
            name,
            costs[name],
            float(values[each]) if max_risk is None else 1 - float(values[each]),
            min(sign * float(low[each]), sign * float(high[each])),
            max(sign * float(low[each]), sign * float(high[each])),
            bool(better[each]),
            each == place,
        )
        for each, name in enumerate(names)
    ]
    order = [0, *sorted(range(1, len(names)), key=lambda each: (values[each], costs[names[each]]))]
    metric = "aurc" if max_risk is None else f"coverage at risk {max_risk:g}"
    reason = _reason(names, place, best, count, few=few)
    return Choice(names[place], metric, tuple(rows[each] for each in order), reason)


def _values(
    ranked: Sequence[RankedRows], samples: int, of_ranking: Callable[[Ranking], float], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The metric of each suspicion ``(J,)``, and on resamples of the rows, the same for all, ``(resamples, J)``."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, samples, samples) for _ in range(resamples)]
    drawn = np.array([[of_ranking(each.ranking(chosen)) for each in ranked] for chosen in rows])
    return np.array([of_ranking(each.ranking()) for each in ranked]), drawn


def _uncovered(ranking: Ranking, risk: float) -> float:
    return 1 - coverage_at_risk.of_ranking(ranking, risk)


def _reason(names: Sequence[str], place: int, best: int, errors: int, *, few: bool) -> str:
    first, taken = names[0], names[place]
    if few:
        return (
            f"The samples to choose on hold {errors} errors, too few to tell whether anything is better than {first}. "
            f"Pass more labelled samples that the model has not seen."
        )
    if not place:
        return f"Nothing beats {first} here by more than chance."
    if place == best:
        return f"{taken} beats {first} by more than chance, and nothing cheaper is as good."
    return f"{taken} beats {first} by more than chance, and is the cheapest within a standard error of {names[best]}."
