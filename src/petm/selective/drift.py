"""Drift of suspicion: production against calibration, at the quantiles that a bundle holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.sequential import over_beginnings

QUANTILES = 21
"""Number of quantiles, at 0, 5, ..., 100 % of the calibration samples."""
RESOLUTION = 1e-5
"""Relative difference up to which two suspicions count as equal: batch sizes and onnxruntime change the last digits."""
DRAWS = 9_999
"""Draws of the statistic without drift; a p-value is a multiple of 1 / (DRAWS + 1)."""
FEWEST_IN_BIN = 5
"""Least expected count in each bin of the chi-square test."""
TILTS, SIZES = (0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 4.0, -4.0), (20.0, 200.0, 2000.0)
"""Alternatives of `log_drift`: how far shares are tilted to high suspicion, and how closely they lie about that."""


@dataclass(frozen=True)
class SuspicionProfile:
    """The distribution of suspicion in calibration, as a bundle holds it.

    Attributes:
        edges: float64 ``(J,)``, ascending: the distinct quantiles.
        ranks: int64 ``(J,)``, ascending: how many calibration samples lie up to each, ties included.
    """

    edges: NDArray[np.float64]
    ranks: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """Number of calibration samples."""
        return int(self.ranks[-1])

    @classmethod
    def from_measured(cls, measured: Mapping[str, Any]) -> "SuspicionProfile | None":
        """Returns the profile in a grader's measured figures, or None where the bundle is too old to have one."""
        quantiles, ranks = measured.get("suspicion_quantiles"), measured.get("suspicion_ranks")
        if not quantiles or not ranks:
            return None
        # Of quantiles up to which equally many samples lie, one is enough.
        edges = dict(zip(ranks, _upper(quantiles), strict=True))
        return cls(np.array(list(edges.values()), np.float64), np.array(list(edges), np.int64))

    def counts(self, suspicion: ArrayLike) -> NDArray[np.int64]:
        """Returns how many lie up to the first edge, between each two, and beyond the last: int64 ``(J + 1,)``."""
        bins = np.searchsorted(self.edges, np.asarray(suspicion, np.float64), side="left")
        return np.bincount(bins, minlength=len(self.edges) + 1)


@dataclass(frozen=True)
class Drift:
    """How far the suspicion of production lies from that of calibration.

    Attributes:
        samples: Number of samples in production.
        calibration_samples: Number of samples in calibration.
        distance: The Kolmogorov-Smirnov statistic at the quantiles, in [0, 1].
        p_value: Probability of this distance or more by chance alone.
        at: The suspicion where the distance is largest.
        more_suspect: Whether production lies above calibration there.
    """

    samples: int
    calibration_samples: int
    distance: float
    p_value: float
    at: float
    more_suspect: bool


def suspicion_profile(suspicion: ArrayLike) -> dict[str, list[Any]]:
    """Returns what a bundle holds of calibration suspicion: 21 quantiles, and how many samples lie up to each.

    A quantile is the least suspicion of a sample up to which at least that share of the samples lies.

    Args:
        suspicion: float ``(N,)``, at least one, finite.
    """
    values = np.sort(np.asarray(suspicion, np.float64))
    quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES), method="inverted_cdf")
    ranks = np.searchsorted(values, _upper(quantiles), side="right")
    return {"suspicion_quantiles": quantiles.tolist(), "suspicion_ranks": ranks.tolist()}


def drift_of(profile: SuspicionProfile, counts: ArrayLike) -> Drift:
    """Returns the two-sample Kolmogorov-Smirnov test of production against calibration, at the quantiles.

    ``D = max_j |C_j / n - R_j / N|``, where ``C_j`` of ``n`` production and ``R_j`` of ``N`` calibration samples lie
    up to the ``j``-th quantile. Without drift, and for a continuous suspicion of whatever distribution, the
    probabilities between the quantiles are Dirichlet (spacings of order statistics) and the counts multinomial given
    these, so the distribution of ``D`` follows from ``n`` and the ranks alone. It is drawn 9,999 times, from a fixed
    seed: the p-value ``(1 + #{D' >= D}) / (1 + 9999)`` is exact, not asymptotic. A difference between two quantiles,
    of less than 5 % of the mass, may stay hidden.

    Args:
        profile: Profile of the calibration samples.
        counts: int ``(J + 1,)``, from `SuspicionProfile.counts`, summed over batches.

    Reference:
        Smirnov (1939) for the statistic; Wilks (1962), Mathematical Statistics, section 8.7, for the spacings;
        Phipson and Smyth (2010), Permutation P-values Should Never Be Zero, for the p-value.
    """
    differences, total = differences_of(profile, counts), int(np.sum(counts))
    ranks, expected = profile.ranks, profile.ranks / profile.samples
    largest = int(abs(differences).argmax())
    distance = float(abs(differences[largest]))
    generator = np.random.default_rng(0)
    spacings = np.diff(ranks, prepend=0, append=profile.samples + 1)
    drawn = generator.multinomial(total, generator.dirichlet(spacings, DRAWS))[:, :-1].cumsum(1) / total
    as_far = int((abs(drawn - expected).max(1) >= distance - 1e-12).sum())
    return Drift(
        total,
        profile.samples,
        distance,
        (1 + as_far) / (1 + DRAWS),
        float(profile.edges[largest]),
        bool(differences[largest] < 0),
    )


def log_drift(profile: SuspicionProfile, blocks: ArrayLike) -> tuple[float, int]:
    """Returns the logarithm of an e-value against "no drift", for any number of looks, and since which block it rose.

    Without drift the counts between the quantiles are those of `drift_of`: given the ranks, Dirichlet-multinomial with
    the spacings as parameters, which allows for the finite calibration. Their probability under a mixture of drifts,
    over that, is a martingale that begins at 1 and depends on the counts alone. The drifts are Dirichlet-multinomial
    about calibration's shares, tilted to higher or lower suspicion or not; they begin at the first block or, against
    calibration and all before, at a later one. The e-value ever reaches ``1 / a`` with probability ``a`` at most.

    Args:
        profile: Profile of the calibration samples.
        blocks: int ``(B, J + 1)``, from `SuspicionProfile.counts`, of each block in the order of time.

    Reference:
        Ville (1939); Vovk, Gammerman and Shafer (2022), Algorithmic Learning in a Random World, chapter 8, for testing
        exchangeability by betting; Wilks (1962), Mathematical Statistics, section 8.7, for the spacings.
    """
    counts = np.asarray(blocks, np.int64).reshape(-1, len(profile.edges) + 1)
    spacings = np.diff(profile.ranks, prepend=0, append=profile.samples + 1).astype(np.float64)
    places = 2 * (spacings.cumsum() - spacings / 2) / spacings.sum() - 1
    shares = spacings * np.exp(np.outer(TILTS, places))
    shares /= shares.sum(1, keepdims=True)
    drifts = (np.array(SIZES)[:, None, None] * shares).reshape(-1, len(spacings))
    since = counts[::-1].cumsum(0)[::-1]
    before = spacings + counts.cumsum(0) - counts
    drifted = _log_beta(drifts + since[:, None]) - _log_beta(drifts)
    mixed = scipy.special.logsumexp(drifted, axis=1) - np.log(len(drifts))
    return over_beginnings(mixed - _log_beta(before + since) + _log_beta(before))


def _log_beta(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the multivariate beta function over the last axis."""
    ends = scipy.special.gammaln(parameters).sum(-1) - scipy.special.gammaln(parameters.sum(-1))
    return np.asarray(ends)


def differences_of(profile: SuspicionProfile, counts: ArrayLike) -> NDArray[np.float64]:
    """Returns ``C_j / n - R_j / N`` of `drift_of` at each edge, float64 ``(J,)``; its arguments are the same."""
    held, edges = np.asarray(counts, np.int64), len(profile.edges)
    total = int(held.sum())
    if held.shape != (edges + 1,) or not total:
        raise ArgumentError(
            f"counts: expected {edges + 1} counts of at least one sample, got shape {held.shape} of {total}."
        )
    return np.asarray(held[:-1].cumsum() / total - profile.ranks / profile.samples)


def alike(first: ArrayLike, second: ArrayLike) -> float | None:
    """Returns the p-value of Pearson's chi-square test that two histograms are drawn from one distribution.

    Bins with an expected count below 5 are merged with the next; None where fewer than two bins are left.

    Args:
        first: int ``(B,)``, counts.
        second: int ``(B,)``, counts in the same bins.
    """
    table = np.array([first, second], np.int64)
    total = table.sum()
    if not table.sum(1).all():
        return None
    least = table.sum(1).min() / total
    ends, held = [0], 0.0
    for end, expected in enumerate(table.sum(0) * least, 1):
        held += expected
        if held >= FEWEST_IN_BIN:
            ends.append(end)
            held = 0.0
    if len(ends) < 3:
        return None
    merged = np.add.reduceat(table, ends[:-1], axis=1)  # what is left over joins the last bin
    return float(scipy.stats.chi2_contingency(merged, correction=False).pvalue)


def _upper(quantiles: ArrayLike) -> NDArray[np.float64]:
    """The largest suspicion that counts as equal to each quantile."""
    values = np.asarray(quantiles, np.float64)
    return values + RESOLUTION * abs(values)
