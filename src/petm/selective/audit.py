"""Labels that were drawn with unequal chances, such as all suspects and a random part of the trusted.

Whatever has a guarantee is computed on labels that are thinned to equal chances, where the exact tests hold as they
are. Whatever is an estimate weighs each label by the inverse of its chance (Horvitz and Thompson, 1952).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError


def check_audit(share: float | None) -> None:
    """Raises ArgumentError where the share of the trusted that is drawn for an audit is none."""
    if share is not None and not 0 < share <= 1:
        raise ArgumentError(
            f"audit: expected a share of the trusted, above 0 and at most 1, got {share}. For about 200 of 10,000, "
            f"pass 0.02."
        )


def drawn(identities: Sequence[object], share: float, *, seed: int = 0) -> NDArray[np.bool_]:
    """Returns which samples are drawn, bool ``(N,)``: each by a coin of its own, a hash of seed and identity.

    A sample's coin depends on nothing but its identity, so that any process draws the same ones in any order.

    Args:
        identities: ``N`` values, whose representation tells one sample from another.
        share: The chance of each, from 0 to 1.
        seed: Another seed draws others.
    """
    return coins(identities, seed=seed) < share


def coins(identities: Sequence[object], *, seed: int = 0) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each identity, float64 ``(N,)``, as random as the SHA-256 of it and the seed."""
    keys = (f"{seed} {each!r}".encode("utf-8", "surrogatepass") for each in identities)
    return np.array([int.from_bytes(hashlib.sha256(key).digest()[:6], "big") for key in keys], np.float64) / 2**48


def inverse_chances(chance: ArrayLike | None, samples: int) -> NDArray[np.float64]:
    """Returns the weight of each label, least chance over chance, float64 ``(N,)`` in (0, 1]; 1 where all are equal.

    Args:
        chance: float ``(N,)``, the chance with which each sample was drawn to be labelled, in (0, 1]; None stands for
            equal chances.
        samples: ``N``.

    Raises:
        ArgumentError: The shape is another, or a chance is outside its range.
    """
    if chance is None:
        return np.ones(samples)
    values = np.asarray(chance, np.float64)
    if values.shape != (samples,):
        raise ArgumentError(f"chance: expected one for each of {samples} samples, got shape {values.shape}.")
    bad = np.flatnonzero(~((values > 0) & (values <= 1)))
    if bad.size:
        raise ArgumentError(
            f"chance: expected chances of being labelled, above 0 and at most 1, got {values[bad[0]]} for sample "
            f"{bad[0]}. Draw some of the trusted at random (an audit), and label these."
        )
    return np.asarray(values.min(initial=1.0) / values)


def thinned(weights: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.bool_]:
    """Returns the samples that are kept, bool ``(N,)``: each with its weight as probability.

    The kept ones were all drawn with the least chance, so that they are independent draws from the distribution of all
    inputs if these are: what holds for such draws holds for them, exactly and for chances of any kind. Of the samples
    with the least chance none is lost; these are all that say something about the trusted of a review queue.
    """
    return np.random.default_rng(seed).random(len(weights)) < weights
