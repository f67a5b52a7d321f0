"""The teacher: the base model's architecture, trained on data whose errors are replaced by adversarial examples."""

from copy import deepcopy
from typing import Literal

import torch
from torch import nn

from petm.data.base import Data, as_data
from petm.errors import ArgumentError, ModelError, NothingToLearnError
from petm.models.placing import check_teachable
from petm.models.prediction import Precision
from petm.training.error_set import ErrorSet
from petm.training.loop import CROSS_ENTROPY, Settings, Storage, train
from petm.training.replacement import replace_errors


def train_teacher(
    model: nn.Module,
    data: Data,
    errors: ErrorSet,
    *,
    epsilon: float = 0.1,
    start: Literal["base", "scratch"] = "base",
    samples: Literal["replaced", "errors"] = "replaced",
    epochs: int = 2,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    precision: Precision = "float32",
    storage: Storage | None = None,
    device: str = "auto",
    title: str = "teacher",
) -> nn.Module:
    """Returns the teacher, in eval mode.

    Trained by cross-entropy on the data set in which each of the base model's errors ``(x, y)`` is replaced by
    ``(clip(x + epsilon * sign(grad_x CE(A(x), y))), y)``.

    Args:
        model: The base model; it stays as it is.
        data: ``N`` labelled samples, those that the base model was trained on.
        errors: The base model's errors in ``data``.
        epsilon: FGSM step in units of the inputs; the authors' public code uses 0.1 of a range of 1. 0 replaces each
            error by itself: the control, which shows the effect of further training alone.
        start: The first weights: the base model's, as in the authors' code, or fresh ones.
        samples: The whole replaced data set, as in the papers, or its errors alone, as in the authors' code.
        epochs: Passes over the samples; 2 suffice on the whole data, and more only train the base model further.
        learning_rate: Learning rate of Adam.
        batch_size: Samples in one step.
        seed: Seed of the order of samples, and of fresh weights.
        precision: Precision of the matrix products, as in `petm.training.loop.Settings`.
        storage: Place of the checkpoints.
        device: ``auto``, ``cpu``, ``cuda``, ...
        title: Title of the progress bar.

    Raises:
        NothingToLearnError: ``errors`` is empty.
        ArgumentError: An argument breaks its rule.
        ModelError: The model cannot be copied, or has weights that cannot be made afresh.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310; LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    if start not in ("base", "scratch"):
        raise ArgumentError(f"start: expected 'base' or 'scratch', got {start!r}.")
    if samples not in ("replaced", "errors"):
        raise ArgumentError(f"samples: expected 'replaced' or 'errors', got {samples!r}.")
    require_errors(errors)
    check_teachable(model)
    seen: Data = replace_errors(model, data, errors, epsilon=epsilon)
    if samples == "errors":
        seen = seen.subset(errors.indices)
    try:
        teacher = deepcopy(model).requires_grad_()
    except Exception as error:
        raise ModelError(f"model: cannot be copied ({type(error).__name__}: {error}). Remove what holds it.") from error
    if start == "scratch":
        _initialise(teacher, seed)
    settings = Settings(epochs, learning_rate, batch_size, seed=seed, precision=precision)
    train(teacher, seen, CROSS_ENTROPY, settings, storage=storage, device=device, title=title)
    return teacher


def require_errors(errors: ErrorSet) -> None:
    """Raises `NothingToLearnError` where an error set is empty."""
    if not len(errors):
        raise NothingToLearnError(
            f"errors: expected at least one sample that the model gets wrong, got none of {errors.total}. The "
            f"method learns from the model's errors: pass labelled data that the model was not trained on, or a model "
            f"whose training was stopped earlier."
        )


def _initialise(model: nn.Module, seed: int) -> None:
    """Draws every weight afresh, by each module's own ``reset_parameters``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ModelError(
                    f"start: {name or 'the model'} ({type(module).__name__}) has weights but no reset_parameters, so "
                    f"it cannot be made afresh. Use start='base'."
                )
