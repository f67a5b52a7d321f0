"""Which inputs to label next: doubtful ones of all classes, each by a coin of its own with a known chance."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError

_EVEN = 0.2
"""Share of the labels that is spread evenly, so that no chance is so small that one label weighs more than many."""


def labelling_chances(probability: ArrayLike, predicted: ArrayLike, *, count: int) -> NDArray[np.float64]:
    """Returns the chance of each of ``N`` inputs to be labelled, float64 ``(N,)`` in (0, 1], with the sum ``count``.

    A fifth of the labels is spread evenly, four fifths by the probability of error, a class's share of which is the
    root of its sum: classes with few doubtful inputs are asked for, too. Chances above 1 are cut, and the others grow
    in their place (Poisson sampling). Labels that are drawn so tell about all inputs where they weigh the inverse of
    their chance (Horvitz and Thompson, 1952).

    Args:
        probability: float ``(N,)`` in [0, 1], of an error.
        predicted: int ``(N,)`` from 0, the predicted classes.
        count: Number of labels to expect, from 1 to ``N``.

    Raises:
        ArgumentError: The shapes differ, a probability is none, or ``count`` is out of its range.
    """
    doubt, of = np.asarray(probability, np.float64), np.asarray(predicted, np.int64)
    if doubt.ndim != 1 or of.shape != doubt.shape or not ((doubt >= 0) & (doubt <= 1)).all():
        raise ArgumentError(f"probability: expected one in [0, 1] for each of {of.shape} predictions, got others.")
    if not 1 <= count <= len(doubt):
        raise ArgumentError(f"count: expected from 1 to {len(doubt)} inputs, got {count}.")
    sums = np.bincount(of, doubt)
    asked = doubt / np.sqrt(np.maximum(sums, 1e-12))[of]
    score = np.full(len(doubt), _EVEN / len(doubt))
    score += (1 - _EVEN) * (asked / asked.sum() if asked.sum() else 1 / len(doubt))
    chances, certain = np.ones(len(doubt)), np.zeros(len(doubt), bool)
    while not certain.all():
        chances[~certain] = score[~certain] * ((count - certain.sum()) / score[~certain].sum())
        if not (more := ~certain & (chances >= 1)).any():
            break
        certain |= more
        chances[certain] = 1.0
    return chances
