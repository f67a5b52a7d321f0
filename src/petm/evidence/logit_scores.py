"""Evidence from the base model's logits alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from numpy import exp, log
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from petm.evidence.protocol import Answers, FittedEvidence, Part
from petm.models.scores import energy, entropy, margin, maximum_softmax


@dataclass(frozen=True)
class LogitScore:
    """A formula of the logits, with nothing to fit. See `petm.evidence.protocol.Evidence`.

    Attributes:
        definition: The formula in a sentence.
        formula: A function from logits ``(N, K)`` to float64 ``(N,)``, one of `petm.models.scores`.
    """

    name: str
    title: str
    source: str
    definition: str
    formula: Callable[[Tensor], Tensor] = field(repr=False)

    fitted_on: ClassVar[Part | None] = None

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the formula."""
        return FittedEvidence(lambda graded: self.formula(graded.logits))


SOFTMAX = LogitScore(
    "softmax",
    "Maximum softmax probability",
    "Hendrycks and Gimpel (2017)",
    "Suspicion is ``1 - max p``, the score to beat",
    maximum_softmax,
)
ENTROPY = LogitScore(
    "entropy", "Entropy of the softmax", "Shannon (1948)", "Suspicion is the entropy of ``p``", entropy
)
MARGIN = LogitScore(
    "margin",
    "Margin between the first two classes",
    "Scheffer, Decomain, Wrobel (2001)",
    "Suspicion is minus the lead of the model's class over the runner-up, in logits",
    margin,
)
ENERGY = LogitScore("energy", "Energy", "Liu et al. (2020)", "Suspicion is the free energy ``-log sum exp z``", energy)


@dataclass(frozen=True)
class TemperatureScaling:
    """Suspicion is ``1 - max softmax(z / T)`` with the temperature ``T`` of least cross-entropy.

    For ``K > 2`` a temperature also changes the order of the values, but little.

    Args:
        low: Least ``T``. Where the base model makes no error on the calibration data the lowest fits best; at 0.1
            float64 still distinguishes logits that differ by 70.
        high: Greatest ``T``.

    Reference:
        Guo et al. (2017), On Calibration of Modern Neural Networks, section 4.2.
    """

    low: float = 0.1
    high: float = 100.0

    name: ClassVar[str] = "temperature"
    title: ClassVar[str] = "Temperature scaling"
    source: ClassVar[str] = "Guo et al. (2017)"
    fitted_on: ClassVar[Part | None] = "calibration"

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the score at the ``T`` in [low, high] of least cross-entropy, which has one minimum in ``log T``."""
        exact = answers.logits.double()
        found = minimize_scalar(
            lambda log_temperature: F.cross_entropy(exact / float(exp(log_temperature)), labels).item(),
            bounds=(log(self.low), log(self.high)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        temperature = float(exp(found.x))
        return FittedEvidence(
            lambda graded: maximum_softmax(graded.logits.double() / temperature), 1, {"temperature": temperature}
        )
