"""Evidence: one number about each prediction, computed from what the networks answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from petm.adapter.model import views_alone
from petm.adapter.one_pass import Answers, find_feature_layer, predict_answers
from petm.data.base import Data
from petm.models.prediction import BATCH_SIZE, device_of

Part = Literal["training", "calibration"]
Need = Literal["logits", "opinions", "features"]
"""What evidence is computed from, besides the base model's logits: the ensemble members, or the features."""


class Evidence(Protocol):
    """One number about each prediction; an implementation is a frozen dataclass of hyperparameters.

    Attributes:
        name: Short name in tables and files.
        title: Name in words.
        source: Author and year.
        needs: What it is computed from.
        fitted_on: Labelled samples to fit on: the base model's training data or fresh samples; None without a fit.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - the class says it

    @property
    def title(self) -> str: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def needs(self) -> Need: ...  # noqa: D102

    @property
    def fitted_on(self) -> Part | None: ...  # noqa: D102

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> "FittedEvidence":
        """Returns the evidence fitted to labelled samples.

        Args:
            answers: Answers to ``N`` samples.
            labels: int64 ``(N,)``, the true classes, in 0..K-1.
            seed: Seed of everything random.

        Raises:
            DataError: Samples that are needed are missing.
            ModelError: Features are needed and the model has none.
        """

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns float64 ``(N,)``; higher is more likely wrong.

        Args:
            answers: Answers to ``N`` samples.
            state: Tensors of a fit, by name.
        """

    def operations(self, classes: int, features: int) -> int:
        """Returns multiply-adds a sample, besides those of the networks.

        Args:
            classes: Number of classes ``K``.
            features: Number of features ``D``; 0 without.
        """


@dataclass(frozen=True, eq=False)
class FittedEvidence:
    """Evidence fitted to one base model.

    Attributes:
        evidence: What was fitted.
        state: Its tensors by name; single numbers are settings that were chosen.
    """

    evidence: Evidence
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def score(self, answers: Answers) -> Tensor:
        """Returns float64 ``(N,)``; higher is more likely wrong."""
        return self.evidence.compute(answers, self.state)

    @property
    def parameters(self) -> int:
        """Number of fitted parameters."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def chosen(self) -> dict[str, float]:
        """Fitted settings by name."""
        return {name: tensor.item() for name, tensor in self.state.items() if not tensor.ndim}


def compute_answers(model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE) -> Answers:
    """Returns logits and features of a base model for a data set, in one pass that leaves the model as it is.

    Memory: ``4 N (K + D)`` bytes.

    Args:
        model: The base model.
        data: ``N`` samples, at least one.
        batch_size: Samples in one forward pass.
    """
    adapted = views_alone(model, ())
    try:
        first = data.inputs(torch.arange(min(2, len(data)))).to(device_of(model))
        adapted.take_features(find_feature_layer(adapted, first))
        return predict_answers(adapted, data, batch_size=batch_size, title="answers")
    finally:
        adapted.detach()
