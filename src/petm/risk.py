"""Thresholds on suspicion that come with a guarantee."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from petm.errors import ArgumentError

COVERAGES = tuple(step / 10 for step in range(1, 11))
"""The coverages tried. Each further one costs every other a little of its confidence, and ten are fine enough."""


@dataclass(frozen=True)
class Threshold:
    """Predictions with a suspicion below ``value`` are trusted.

    Attributes:
        value: The threshold; minus infinity trusts nothing.
        rule: How it was found, in words.
        coverage: Share of the calibration samples that it trusts; absent where there were none.
        max_risk: The promised largest share of errors among the trusted; absent where nothing is promised.
        confidence: Of the promise.
        risk_bound: Upper bound on the risk, at that confidence, that the calibration samples prove.
        samples_needed: Where the promise could not be made: how many calibration samples, trusted without a single
            error among them, would be the least to make it.
    """

    value: float
    rule: str
    coverage: float | None = None
    max_risk: float | None = None
    confidence: float | None = None
    risk_bound: float | None = None
    samples_needed: int | None = None

    @property
    def holds(self) -> bool:
        """Whether everything that was asked for is promised."""
        return self.samples_needed is None


DISAGREEMENT = Threshold(math.nextafter(0.0, 1.0), "disagreement, as in the paper")
"""On `petm.scores.opposition`: what lies above 0 is suspect; 0 itself is a tie, in which the second opinion agrees."""


def risk_threshold(suspicion: ArrayLike, wrong: ArrayLike, *, max_risk: float, confidence: float = 0.95) -> Threshold:
    """Returns the threshold of greatest coverage whose error rate among the trusted is at most ``max_risk``.

    Theorem: let the calibration samples and the later ones be drawn independently from one distribution. Then, with
    probability at least ``confidence`` over the calibration samples, the probability of error of a prediction given
    that it is trusted is at most ``max_risk``. Proof: for a coverage fixed beforehand, the threshold ``t`` is an order
    statistic of the suspicion. Given ``t`` and the number ``n`` of samples strictly below it, these are independent
    draws from the distribution of the trusted, so their errors are binomial, and the Clopper–Pearson bound at level
    ``(1 - confidence) / M`` fails with at most that probability. The union over the ``M`` coverages tried is at most
    ``1 - confidence``. Ties are safe: equal suspicion is trusted together or not at all.

    Args:
        suspicion: float ``(N,)`` of the calibration samples.
        wrong: bool ``(N,)``, where A is wrong on them.
        max_risk: Between 0 and 1, both excluded.
        confidence: Between 0 and 1, both excluded.

    Returns:
        The threshold; where none can be guaranteed, one that trusts nothing and says how many samples would be needed.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Geifman and El-Yaniv (2017), Selective Classification for Deep Neural Networks, theorem 3.2; Clopper and
        Pearson (1934).
    """
    for name, value in (("max_risk", max_risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ArgumentError(f"{name}: expected a number between 0 and 1, got {value}.")
    scores, errors = np.asarray(suspicion, float), np.asarray(wrong, bool)
    if scores.ndim != 1 or scores.shape != errors.shape or not scores.size:
        raise ArgumentError(f"suspicion: expected shape (N,) as wrong, got {scores.shape} and {errors.shape}.")
    level = (1 - confidence) / len(COVERAGES)
    ordered, best = np.sort(scores), None
    for coverage in COVERAGES:
        position = math.ceil(coverage * len(scores))
        value = ordered[position] if position < len(scores) else math.inf
        trusted = scores < value
        count, failures = int(trusted.sum()), int(errors[trusted].sum())
        bound = float(beta.ppf(1 - level, failures + 1, count - failures)) if failures < count else 1.0
        if bound <= max_risk:
            best = Threshold(
                float(value), "guaranteed risk", count / len(scores), max_risk, confidence, risk_bound=bound
            )
    if best is not None:
        return best
    needed = math.ceil(math.log(level) / math.log1p(-max_risk))
    return Threshold(-math.inf, "guaranteed risk", 0.0, max_risk, confidence, samples_needed=needed)
