"""Whether labels are those of a model: better than guessing, and no other order of the classes suits them better."""

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

SIGNIFICANCE = 0.05
"""Level of the test against guessing."""
PERMUTED, DOUBTFUL = 0.005, 0.05
"""Levels of the test for another order, which suspects at most so many of the models whose labels are in order."""
WORTHLESS = 0.1
"""Chance-corrected agreement (kappa) below which predictions are worth no more than guesses."""
_TIE = 1e-9
_MOST = 2000
"""Most classes for which another order is sought: the time grows with their cube."""


def guessing_probability(predicted: ArrayLike, labels: ArrayLike, *, classes: int) -> float:
    """Returns the probability that guessing is right as often as the predictions are, exact and one-sided, in [0, 1].

    Guessing is right on a sample with probability ``1/K``. Where all predictions are one class, they are compared with
    the best guess of that kind: right with the share of the commonest label. Elsewhere that share is no measure, as a
    useful model may be right less often than it.

    Args:
        predicted: int ``(N,)``, predicted classes.
        labels: int ``(N,)``, true classes.
        classes: ``K``.

    Example:
        >>> guessing_probability([0, 1, 1, 0], [0, 1, 1, 0], classes=2)
        0.0625
    """
    found, true = np.asarray(predicted, int), np.asarray(labels, int)
    constant = len(found) > 0 and bool((found == found[0]).all())
    chance = np.bincount(true).max() / len(true) if constant else 1 / classes
    return float(scipy.stats.binom.sf(int((found == true).sum()) - 1, len(true), chance))


def pairing_probability(predicted: ArrayLike, labels: ArrayLike, *, classes: int) -> float:
    """Returns the probability that predictions dealt out at random among the samples are right as often, one-sided.

    Guessing then knows how often each class is predicted, but not where. So a detector of something rare may raise so
    many false alarms that it is wrong on most samples, and still is no guess. Exact for two classes; for more, normal
    with the exact variance of a random pairing. 1 where all predictions or all labels are one class.

    Args:
        predicted: int ``(N,)``, predicted classes.
        labels: int ``(N,)``, true classes.
        classes: ``K``.

    Example:
        >>> round(pairing_probability([0, 1, 1, 0], [0, 1, 1, 0], classes=2), 3)
        0.167
    """
    found, true = np.asarray(predicted, int), np.asarray(labels, int)
    n, right = len(true), int((found == true).sum())
    guessed, given = (np.bincount(part, minlength=classes) for part in (found, true))
    if n < 2 or guessed.max() == n or given.max() == n:
        return 1.0
    if classes == 2:
        both = int(((found == 1) & (true == 1)).sum())
        return float(scipy.stats.hypergeom.sf(both - 1, n, given[1], guessed[1]))
    agreed, deviation = _at_random(guessed / n, given / n, n)
    return float(scipy.stats.norm.sf((right - 0.5 - n * agreed) / deviation))


def kappa_limit(predicted: ArrayLike, labels: ArrayLike, *, classes: int, confidence: float = 0.95) -> float:
    """Returns the upper confidence limit of the agreement beyond that of a random pairing; 1 is perfect, 0 guessing.

    Cohen's kappa, ``(right - chance) / (1 - chance)``, with the normal deviation of a random pairing. 1 where all
    predictions or all labels are one class.

    Args:
        predicted: int ``(N,)``, predicted classes.
        labels: int ``(N,)``, true classes.
        classes: ``K``.
        confidence: One-sided confidence of the limit.

    Reference:
        Cohen (1960), A Coefficient of Agreement for Nominal Scales.

    Example:
        >>> round(kappa_limit([0, 1] * 50, [0, 1] * 25 + [1, 0] * 25, classes=2), 2)
        0.17
    """
    found, true = np.asarray(predicted, int), np.asarray(labels, int)
    n, right = len(true), int((found == true).sum())
    one, other = (np.bincount(part, minlength=classes) / max(n, 1) for part in (found, true))
    if n < 2 or one.max() == 1 or other.max() == 1:
        return 1.0
    agreed, deviation = _at_random(one, other, n)
    return float((right / n + scipy.stats.norm.ppf(confidence) * deviation / n - agreed) / (1 - agreed))


def _at_random(one: NDArray[np.float64], other: NDArray[np.float64], n: int) -> tuple[float, float]:
    """The expected share, and the deviation of the number, of equal classes where two sets are paired at random."""
    agreed = float(one @ other)
    # The variance of a sum over a random pairing: of the table of agreement, without the means of its rows and columns.
    spread = agreed + agreed**2 - float(one @ other**2 + one**2 @ other)
    return agreed, n * float(np.sqrt(max(spread, _TIE) / (n - 1)))


def better_order(
    predicted: ArrayLike, labels: ArrayLike, *, classes: int, level: float = PERMUTED, seed: int = 0
) -> NDArray[np.int64] | None:
    """Returns the order of the classes that suits the labels better than their own, or None where none does.

    The order of the greatest balanced accuracy is found by the Hungarian method on the confusion matrix. Each cycle of
    classes in it is tested on the samples on which just one of the two orders is right, by an exact sign test at
    ``level`` over the number of all cycles of its length, so that two classes in the other's place are found among
    many. Besides, the best order on a random half of the samples is tested on the other half. In both, the balanced
    accuracy must be better by two standard errors. So a weak model on few samples raises no false alarm, nor one whose
    classes are more or less frequent than the labels'.

    Args:
        predicted: int ``(N,)``, predicted classes.
        labels: int ``(N,)``, true classes.
        classes: ``K``.
        level: Level of both tests together.
        seed: Seed of the halves.

    Returns:
        int64 ``(K,)``: the label that stands for each output of the model.

    Reference:
        Kuhn (1955), The Hungarian Method for the Assignment Problem.
    """
    found, true = np.asarray(predicted, int), np.asarray(labels, int)
    if classes > _MOST:
        return None
    shuffled = np.random.default_rng(seed).permutation(len(true))
    one, other = shuffled[: len(true) // 2], shuffled[len(true) // 2 :]
    order = _best_order(found[one], true[one], classes)
    if _is_better(order, found[other], true[other], level / 2):
        return order
    suited, rest = np.arange(classes), _best_order(found, true, classes)
    while (moved := np.flatnonzero(rest != np.arange(classes))).size:
        cycle = [int(moved[0])]
        while (following := int(rest[cycle[-1]])) != cycle[0]:
            cycle.append(following)
        alone = np.arange(classes)
        alone[cycle] = rest[cycle]
        rest[cycle] = cycle
        others = float(scipy.special.poch(classes - len(cycle) + 1, len(cycle))) / len(cycle)
        if _is_better(alone, found, true, level / 2 / others):
            suited[cycle] = alone[cycle]
    return suited if (suited != np.arange(classes)).any() else None


def _best_order(found: NDArray[np.int64], true: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The order of the greatest balanced accuracy; among equally good ones that which moves fewest classes."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (found, true), 1)
    balanced = counts / np.maximum(counts.sum(0), 1)
    order = scipy.optimize.linear_sum_assignment(balanced + _TIE * np.eye(classes), maximize=True)[1]
    return np.asarray(order, np.int64)


def _is_better(order: NDArray[np.int64], found: NDArray[np.int64], true: NDArray[np.int64], level: float) -> bool:
    """Whether an order is right more often than the classes' own, and more by two errors of the balanced accuracy."""
    as_is, moved = found == true, order[found] == true
    gained, lost = int((moved & ~as_is).sum()), int((as_is & ~moved).sum())
    if scipy.stats.binom.sf(gained - 1, gained + lost, 0.5) >= level:
        return False
    gain = (moved.astype(float) - as_is) / np.bincount(true)[true]
    return bool(gain.sum() > 2 * np.sqrt((gain**2).sum()))
