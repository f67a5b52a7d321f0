"""Evidence: one number about each prediction, computed from the base model's logits and features."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from petm._internal.progress import track
from petm.data.base import Data
from petm.errors import ModelError
from petm.models.loading import call_model, share_weights
from petm.models.penultimate import LastLinear
from petm.models.prediction import BATCH_SIZE, batches, device_of

Part = Literal["training", "calibration"]


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits and features of ``N`` samples.

    Attributes:
        logits: float32 ``(N, K)``, on the CPU.
        layer_input: float32 ``(N, D)``, the features; None where the model has none.
        fault: Why it has none.
    """

    logits: Tensor
    layer_input: Tensor | None = None
    fault: str = "features: expected features of the model, got none."

    @property
    def features(self) -> Tensor:
        """The input of the base model's last linear layer, float32 ``(N, D)``; raises `ModelError` without one."""
        if self.layer_input is None:
            raise ModelError(f"{self.fault} Use evidence that needs no features.")
        return self.layer_input

    @cached_property
    def predicted(self) -> Tensor:
        """The class ``c`` that the base model predicts, int64 ``(N,)``."""
        return self.logits.argmax(1)


@dataclass(frozen=True, eq=False)
class FittedEvidence:
    """Evidence fitted to one base model.

    Attributes:
        score: Function from `Answers` of ``N`` samples to float64 ``(N,)``; higher is more likely wrong.
        parameters: Number of fitted parameters.
        chosen: Fitted settings by name.
    """

    score: Callable[[Answers], Tensor]
    parameters: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)


class Evidence(Protocol):
    """One number about each prediction; an implementation is a frozen dataclass of hyperparameters.

    Attributes:
        name: Short name in tables and files.
        title: Name in words.
        source: Author and year.
        fitted_on: Labelled samples to fit on: the base model's training data or fresh samples; None without a fit.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - the class says it

    @property
    def title(self) -> str: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def fitted_on(self) -> Part | None: ...  # noqa: D102

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the evidence fitted to labelled samples.

        Args:
            answers: Answers of the base model for ``N`` samples.
            labels: int64 ``(N,)``, the true classes, in 0..K-1.
            seed: Seed of everything random.

        Raises:
            DataError: Samples that are needed are missing.
            ModelError: Features are needed and the model has none.
        """


def compute_answers(model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE) -> Answers:
    """Returns logits and features of a data set, in one pass that leaves the base model as it is.

    The features are the input of the linear layer that is called last. Memory: ``4 N (K + D)`` bytes.

    Args:
        model: The base model.
        data: ``N`` samples, at least one.
        batch_size: Samples in one forward pass.
    """
    network = share_weights(model)
    last = LastLinear(network)
    logits, features, fault = [], [], ""
    with torch.no_grad(), track("answers", len(data)) as progress:
        for inputs, _ in batches(data, device_of(network), batch_size):
            logits.append(call_model(network, inputs).float().cpu())
            fault = fault or last.fault(len(inputs))
            if not fault:
                # A copy, since a view would keep the whole tensor behind it in memory.
                features.append(last.input.detach().float().cpu().clone())
            progress.advance(len(inputs))
    return Answers(torch.cat(logits), None if fault else torch.cat(features), fault)
