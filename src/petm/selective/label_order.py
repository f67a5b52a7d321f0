"""Whether labels are those of a model: better than guessing, and no other order of the classes suits them better."""

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

SIGNIFICANCE = 0.05
"""Level of the test against guessing."""
PERMUTED = 0.001
"""Level of the test for another order: about so many of the models whose labels are in order are suspected wrongly."""
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
    one, other = guessed / n, given / n
    agreed = one @ other
    # The variance of a sum over a random pairing: of the table of agreement, without the means of its rows and columns.
    spread = agreed + agreed**2 - one @ other**2 - one**2 @ other
    deviation = n * np.sqrt(max(float(spread), _TIE) / (n - 1))
    return float(scipy.stats.norm.sf((right - 0.5 - n * agreed) / deviation))


def better_order(predicted: ArrayLike, labels: ArrayLike, *, classes: int, seed: int = 0) -> NDArray[np.int64] | None:
    """Returns the order of the classes that suits the labels better than their own, or None where none does.

    The order of the greatest balanced accuracy is found on a random half of the samples, by the Hungarian method on the
    confusion matrix, and tested on the other half: of the samples on which just one of the two orders is right, by an
    exact sign test at the level `PERMUTED`; and its balanced accuracy must be better by two standard errors. So a weak
    model on few samples raises no false alarm, nor one whose classes are more or less frequent than the labels'.

    Args:
        predicted: int ``(N,)``, predicted classes.
        labels: int ``(N,)``, true classes.
        classes: ``K``.
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
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (found[one], true[one]), 1)
    balanced = counts / np.maximum(counts.sum(0), 1)
    # Among equally good orders the one that moves fewest classes.
    order = scipy.optimize.linear_sum_assignment(balanced + _TIE * np.eye(classes), maximize=True)[1]
    as_is, moved = found[other] == true[other], order[found[other]] == true[other]
    gained, lost = int((moved & ~as_is).sum()), int((as_is & ~moved).sum())
    if scipy.stats.binom.sf(gained - 1, gained + lost, 0.5) >= PERMUTED:
        return None
    gain = (moved.astype(float) - as_is) / np.bincount(true[other], minlength=classes)[true[other]]
    if gain.sum() <= 2 * np.sqrt((gain**2).sum()):
        return None
    return np.asarray(order, np.int64)
