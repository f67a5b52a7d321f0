"""The base model's errors, and their adversarial examples by FGSM."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.data.base import Data, as_data
from petm.data.fields import Inputs
from petm.errors import ArgumentError, ModelError
from petm.models.answers import reading_of
from petm.models.loading import call_model
from petm.models.prediction import BATCH_SIZE, check_labels, in_eval_mode, predict_classes, predict_logits
from petm.models.probe import probe
from petm.models.reading import Reading

Direction = Literal["gradient", "random"]
"""The direction in which an error is moved: that of the greatest loss, or a random one as the control."""


@dataclass(frozen=True, eq=False)
class ErrorSet:
    """The samples that the base model gets wrong, or those of another source of errors (`petm.training.mining`).

    Attributes:
        indices: int64 ``(E,)``, ascending positions in the data set.
        predictions: int64 ``(E,)``, the wrong class of each, by the base model or by the source.
        total: ``N``, the size of the data set.
        source: ``plain`` for the base model's own errors, else a name in `petm.training.mining.SOURCES`.
    """

    indices: Tensor
    predictions: Tensor
    total: int
    source: str = "plain"

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        found = "" if self.source == "plain" else f", {self.source}"
        return f"ErrorSet({len(self)} of {self.total} samples{found})"


class Mined(NamedTuple):
    """The result of a source of errors: ``N`` labelled samples, those passed in or more, and the errors among them."""

    data: Data
    errors: ErrorSet


def find_errors(model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE) -> ErrorSet:
    """Returns the samples that the base model gets wrong by plain prediction.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on; or whatever
            `petm.data.base.as_data` takes.
        batch_size: Samples in one forward pass.

    Raises:
        DataError: A label is missing or outside 0..K-1, only one class is present, or a sample is not finite.
        ModelError: The model cannot take the samples, does not return ``(N, K)``, or is refused by the probe.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310; LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    if len(data) and reading_of(model) == Reading():  # else it has been probed
        probe(model, data)
    classes = predict_logits(model, data.subset(range(min(1, len(data))))).shape[1]
    check_labels(data.labels, classes, data.source)
    predictions = predict_classes(model, data, batch_size=batch_size, title="find errors")
    indices = (predictions != data.labels).nonzero().flatten()
    return ErrorSet(indices, predictions[indices], len(data))


def fgsm(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, epsilon: float, value_range: tuple[float, float]
) -> Tensor:
    """Returns adversarial examples of the fast gradient sign method, float32 ``(n, C, H, W)``.

    ``clip(x + epsilon * sign(grad_x CE(A(x), y)))``: the step of size epsilon in every pixel that raises the base
    model's loss fastest to first order. The base model runs in eval mode and is left as it was, gradients included.

    Args:
        model: The base model.
        inputs: float32 ``(n, C, H, W)``.
        labels: int64 ``(n,)``, the true classes.
        epsilon: Step in units of the inputs, at least 0.
        value_range: Least and greatest value of the result.

    Raises:
        ArgumentError: ``epsilon`` is negative or not finite, or the inputs are no floats.

    Reference:
        Goodfellow, Shlens, Szegedy (2015), Explaining and Harnessing Adversarial Examples, section 4.
    """
    check_step(inputs, epsilon)
    with in_eval_mode(model, freeze=True), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        loss = F.cross_entropy(call_model(model, inputs), labels, reduction="sum")
        gradient = gradient_of(loss, inputs, "its input")
    return (inputs.detach() + epsilon * gradient.sign()).clamp(*value_range)


def gradient_of(loss: Tensor, x: Tensor, what: str) -> Tensor:
    """Returns the gradient of a loss; raises ModelError where the model lets none through to ``what``."""
    try:
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True) if loss.requires_grad else (None,)
    except (RuntimeError, AssertionError) as error:  # of the model's own backward, such as Reformer's in eval mode
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ModelError(
            f"model: expected one with a gradient to {what} in eval mode, got: {reason}. Take a recipe without FGSM."
        ) from error
    if gradient is None:
        raise ModelError(
            f"model: expected one that lets a gradient through to {what}, got none (no_grad, detach or argmax on the "
            f"way). FGSM needs it: take a recipe without FGSM, or a model without such a step."
        )
    return gradient


def check_step(inputs: Inputs, epsilon: float) -> None:
    """Raises `ArgumentError` where a step is negative or not finite, or a single tensor of inputs holds no floats."""
    if not 0 <= epsilon < float("inf"):
        raise ArgumentError(f"epsilon: expected a finite number of at least 0, got {epsilon}.")
    if isinstance(inputs, Tensor) and not inputs.is_floating_point():
        raise ArgumentError(f"inputs: expected floats, which can be moved by a step, got {inputs.dtype}.")
