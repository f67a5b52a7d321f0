"""Evidence by a formula of the opinions: of the base model's logits alone, or of all ensemble members'."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from numpy import exp, log
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from petm.adapter.one_pass import Answers
from petm.evidence.protocol import FittedEvidence, Need, Part
from petm.models.scores import (
    energy,
    entropy,
    largest_logit,
    margin,
    maximum_softmax,
    mean_of_both,
    opposition,
    second_opinion,
)


@dataclass(frozen=True)
class Formula:
    """A formula with nothing to fit. See `petm.evidence.protocol.Evidence`.

    Attributes:
        definition: The formula in a sentence.
        formula: A function from answers to ``N`` samples to float64 ``(N,)``; higher is more likely wrong.
    """

    name: str
    title: str
    source: str
    definition: str
    formula: Callable[[Answers], Tensor] = field(repr=False)
    needs: Need = "logits"

    fitted_on: ClassVar[Part | None] = None

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the formula."""
        return FittedEvidence(self)

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the value of the formula."""
        return self.formula(answers)

    def operations(self, classes: int, features: int) -> int:
        """Returns 0, as a formula costs next to nothing."""
        return 0


def _mean_opinion(answers: Answers) -> Tensor:
    """``1 - mean p(c)`` over the base model and all members, equally weighted."""
    return torch.stack([maximum_softmax(answers.base), *_oppositions(answers, second_opinion)]).mean(0)


def _dissent(answers: Answers) -> Tensor:
    """The share of the opinions that prefer another class, and below that of any further one the mean opinion."""
    votes = (answers.opinions.argmax(2) != answers.predicted[:, None]).double().sum(1)
    return (votes + _mean_opinion(answers)) / (1 + len(answers.members))


def _oppositions(answers: Answers, score: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    return [score(answers.base, opinion) for opinion in answers.opinions.unbind(1)]


SOFTMAX = Formula(
    "softmax",
    "Maximum softmax probability",
    "Hendrycks and Gimpel (2017)",
    "Suspicion is ``1 - max p``, the score to beat",
    lambda answers: maximum_softmax(answers.base),
)
ENTROPY = Formula(
    "entropy",
    "Entropy of the softmax",
    "Shannon (1948)",
    "Suspicion is the entropy of ``p``",
    lambda answers: entropy(answers.base),
)
MARGIN = Formula(
    "margin",
    "Margin between the first two classes",
    "Scheffer, Decomain, Wrobel (2001)",
    "Suspicion is minus the lead of the model's class over the runner-up, in logits",
    lambda answers: margin(answers.base),
)
LARGEST_LOGIT = Formula(
    "largest_logit",
    "Largest logit",
    "Hendrycks et al. (2022)",
    "Suspicion is ``-max z``",
    lambda answers: largest_logit(answers.base),
)
ENERGY = Formula(
    "energy",
    "Energy",
    "Liu et al. (2020)",
    "Suspicion is the free energy ``-log sum exp z``",
    lambda answers: energy(answers.base),
)
MEAN_OPINION = Formula(
    "mean_opinion",
    "Mean of all opinions",
    "Lakshminarayanan et al. (2017)",
    "Suspicion is ``1 - mean p(c)`` over the base model and all ensemble members",
    _mean_opinion,
    "opinions",
)
MEAN_OF_BOTH = Formula(
    "mean_of_both",
    "Mean of both opinions",
    "Lakshminarayanan et al. (2017)",
    "Suspicion is ``1 - (p(c) + p'(c)) / 2``",
    lambda answers: mean_of_both(answers.base, answers.second),
    "opinions",
)
SECOND_OPINION = Formula(
    "second_opinion",
    "Second opinion alone",
    "Lee et al. (2025)",
    "Suspicion is ``1 - p'(c)``",
    lambda answers: second_opinion(answers.base, answers.second),
    "opinions",
)
DISSENT = Formula(
    "dissent",
    "Votes for another class",
    "Breiman (1996)",
    "Suspicion is the share of the opinions that prefer another class, and below that the mean opinion",
    _dissent,
    "opinions",
)
OPPOSITION = Formula(
    "opposition",
    "How much the second opinion prefers another class",
    "Lee et al. (2025)",
    "Suspicion is ``max_{k != c} z'(k) - z'(c)``, above 0 where both disagree",
    lambda answers: opposition(answers.base, answers.second),
    "opinions",
)


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
    needs: ClassVar[Need] = "logits"
    fitted_on: ClassVar[Part | None] = "calibration"

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the score at the ``T`` in [low, high] of least cross-entropy, which has one minimum in ``log T``."""
        exact = answers.base.double()
        found = minimize_scalar(
            lambda log_temperature: F.cross_entropy(exact / float(exp(log_temperature)), labels).item(),
            bounds=(log(self.low), log(self.high)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return FittedEvidence(self, {"temperature": torch.tensor(float(exp(found.x)), dtype=torch.float64)})

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns ``1 - max softmax(z / T)``."""
        return maximum_softmax(answers.base.double() / state["temperature"])

    def operations(self, classes: int, features: int) -> int:
        """Returns the divisions."""
        return classes
