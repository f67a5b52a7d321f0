"""Baselines that need A's logits and nothing else, and temperature scaling, which changes the order they give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from numpy import exp, log
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from petm.evidence.protocol import Baseline, Learned, Part
from petm.evidence.seen import Seen
from petm.models.scores import (
    energy,
    entropy,
    margin,
    maximum_softmax,
)


class LogitScore(Baseline):
    """A formula of A's logits, with nothing to fit."""

    formula: Callable[[Tensor], Tensor]

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        return Learned(lambda seen: type(self).formula(seen.logits))


@dataclass(frozen=True)
class Softmax(LogitScore):
    """Suspicion is ``1 - max p``: what A offers by itself, the score to beat."""

    name = "softmax"
    title = "Maximum softmax probability"
    source = "Hendrycks and Gimpel (2017)"
    formula = staticmethod(maximum_softmax)


@dataclass(frozen=True)
class Entropy(LogitScore):
    """Suspicion is the entropy of ``p``."""

    name = "entropy"
    title = "Entropy of the softmax"
    source = "Shannon (1948)"
    formula = staticmethod(entropy)


@dataclass(frozen=True)
class Margin(LogitScore):
    """Suspicion is minus the lead of A's class over the runner-up, in logits."""

    name = "margin"
    title = "Margin between the first two classes"
    source = "Scheffer, Decomain, Wrobel (2001)"
    formula = staticmethod(margin)


@dataclass(frozen=True)
class Energy(LogitScore):
    """Suspicion is the free energy ``-log sum exp z``."""

    name = "energy"
    title = "Energy"
    source = "Liu et al. (2020)"
    formula = staticmethod(energy)


@dataclass(frozen=True)
class TemperatureScaling(Baseline):
    """Suspicion is ``1 - max softmax(z / T)`` with the ``T`` that makes A's labels likeliest.

    For ``K > 2`` a temperature changes not only the values but also their order. One number for a whole data set, so
    the order changes little.

    Args:
        low: Least ``T``. Where A makes no error on the calibration data, ever lower ones fit ever better; at 0.1
            float64 still keeps apart logits that differ by 70.
        high: Greatest ``T``.

    Reference:
        Guo et al. (2017), On Calibration of Modern Neural Networks, section 4.2.
    """

    low: float = 0.1
    high: float = 100.0

    name = "temperature"
    title = "Temperature scaling"
    source = "Guo et al. (2017)"
    fitted_on: ClassVar[tuple[Part, ...]] = ("calibration",)

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        temperature = fit_temperature(calibration.logits, calibration.labels, low=self.low, high=self.high)
        return Learned(
            lambda seen: maximum_softmax(seen.logits.double() / temperature), 1, {"temperature": temperature}
        )


def fit_temperature(logits: Tensor, labels: Tensor, *, low: float, high: float) -> float:
    """Returns the ``T`` in [low, high] that minimises the cross-entropy of ``softmax(z / T)``.

    Cross-entropy is convex in ``1 / T``, so it has one minimum in ``log T`` as well, which a bounded search finds.

    Args:
        logits: ``(N, K)``.
        labels: int64 ``(N,)``.
        low: Least ``T``, above 0.
        high: Greatest ``T``.
    """
    exact = logits.double()
    found = minimize_scalar(
        lambda log_temperature: F.cross_entropy(exact / float(exp(log_temperature)), labels).item(),
        bounds=(log(low), log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(exp(found.x))
