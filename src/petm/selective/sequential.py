"""Evidence about a share that may be looked at after every trial, with one probability of error for all looks."""

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm.selective.metrics import Share

FROM_START = 0.8
"""Weight of the evidence of all trials; the rest is that of the trials since each later block."""

# Bets on the log-odds ratio: half of the weight on ratios near 2, half on ratios from 1.02 to 20,000.
_BETS = np.geomspace(0.02, 10, 48)
_NEAR_2 = np.exp(-0.5 * (np.log(_BETS / math.log(2)) / 0.2) ** 2)
_LOG_WEIGHTS = np.log(0.5 * _NEAR_2 / _NEAR_2.sum() + 0.5 / len(_BETS))


def log_evidence(count: ArrayLike, of: ArrayLike, limit: ArrayLike, *, above: bool) -> NDArray[np.float64]:
    """Returns the logarithm of an e-value against the hypothesis that a share is at most (at least) ``limit``.

    ``E = sum_j w_j exp(b_j k - n log(1 - m + m exp(b_j)))`` for ``k`` of ``n`` trials and the limit ``m``: a bettor who
    pays 1 and splits it over fixed bets ``b_j`` has ``E`` at trial ``n``. Its bets are log-odds ratios, positive with
    ``above`` and else negative. While the mean chance of the trials so far is within the limit, ``E`` is at most a
    martingale that begins at 1, whatever the single chances are. So the probability that it ever reaches ``1 / a``
    there is ``a`` at most (Ville), for any number of looks. It depends on the counts alone. Arguments broadcast.

    Args:
        count: int, the trials with the property, ``k``.
        of: int, all trials, ``n``.
        limit: The hypothetical share ``m``, in [0, 1].
        above: True tests against shares up to the limit, False against those from the limit on.

    Returns:
        float64 of the broadcast shape.

    Reference:
        Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting; Robbins (1970),
        Statistical Methods Related to the Law of the Iterated Logarithm, for mixtures; Ville (1939).
    """
    k, n, m = (np.asarray(value, np.float64)[..., None] for value in (count, of, limit))
    bets = _BETS if above else -_BETS
    return np.asarray(scipy.special.logsumexp(_LOG_WEIGHTS + bets * k - n * np.log1p(m * np.expm1(bets)), axis=-1))


def log_violation(blocks: ArrayLike, limit: float) -> tuple[float, int]:
    """Returns the logarithm of an e-value against "the share was never above ``limit``", and where it rose from.

    The evidence of all trials has the weight 0.8. The rest is split over later beginnings, ``1 / (s (s + 1))`` to the
    trials from the block ``s`` on, so that a share that rises late is not hidden by the good trials before. A bettor
    who has not begun holds what was paid.

    Args:
        blocks: int ``(B, 2)``, of each block the trials with the property and all trials, in the order of time.
        limit: The limit, between 0 and 1.

    Returns:
        The logarithm, and the first block of the beginning that has most of the evidence.
    """
    since = np.asarray(blocks, np.int64).reshape(-1, 2)[::-1].cumsum(0)[::-1]
    return over_beginnings(log_evidence(since[:, 0], since[:, 1], limit, above=True))


def over_beginnings(since: ArrayLike) -> tuple[float, int]:
    """Returns one log e-value from those of the trials since each block, float ``(B,)``, and the block that leads."""
    terms = np.asarray(since, np.float64)
    starts = np.arange(1, len(terms))
    weights = np.concatenate([[FROM_START], (1 - FROM_START) / (starts * (starts + 1))])[: len(terms)]
    weighted = np.log(weights) + terms
    waiting = (1 - FROM_START) / max(len(terms), 1) if len(terms) else 1.0
    return float(np.logaddexp.reduce([*weighted, math.log(waiting)])), int(weighted.argmax()) if len(terms) else 0


def sequential_share(count: int, of: int, *, confidence: float = 0.95) -> Share:
    """Returns ``count / of`` with an interval that holds after every trial at once, with ``confidence``.

    Its ends are the shares that `log_evidence` just does not exclude, each side at ``(1 - confidence) / 2``; the lower
    one leaves room for `log_violation`. It covers the mean chance of the trials so far, also where the chance changes.
    """
    if not of:
        return Share(math.nan, 0, 0, 0.0, 1.0)
    level = math.log(2 / (1 - confidence))
    ends = []
    for above, enough, free in ((True, level - math.log(FROM_START), count == 0), (False, level, count == of)):
        low, high = (0.0, count / of) if above else (count / of, 1.0)
        for _ in range(0 if free else 60):
            middle = (low + high) / 2
            excluded = float(log_evidence(count, of, middle, above=above)) >= enough
            low, high = (middle, high) if excluded == above else (low, middle)
        ends.append((0.0 if above else 1.0) if free else low if above else high)
    return Share(count / of, count, of, *ends)


def sequential_difference(before: tuple[int, int], after: tuple[int, int], *, confidence: float = 0.95) -> Share:
    """Returns the share after less the share before, with an interval that holds after every trial at once.

    The product of the evidence against "at least ``p`` before" and of that against "at most ``p + d`` after" is
    evidence against both; a difference ``d`` is excluded where no ``p`` is left. ``count`` and ``of`` are those after.

    Args:
        before: Trials with the property, and all trials.
        after: The same of later trials.
        confidence: Of the interval, for all looks at once.
    """
    if not before[1] or not after[1]:
        return Share(math.nan, *after, -1.0, 1.0)
    level, shares = math.log(2 / (1 - confidence)), np.linspace(0, 1, 401) ** 2  # finer where shares are small

    def end(first: tuple[int, int], second: tuple[int, int], sign: int) -> float:
        known = log_evidence(*first, shares, above=sign < 0)
        low, high = -1.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            other = shares + middle
            inside = (other >= 0) & (other <= 1)
            left = known[inside] + log_evidence(*second, other[inside], above=sign > 0)
            excluded = not (left < level).any()
            low, high = (middle, high) if excluded == (sign > 0) else (low, middle)
        return low if sign > 0 else high

    value = after[0] / after[1] - before[0] / before[1]
    return Share(value, *after, min(end(before, after, 1), value), max(end(before, after, -1), value))
