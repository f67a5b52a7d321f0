"""Test images that were made to mislead A: FGSM, and PGD within the same distance."""

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.detection_scores import read_array, write_array
from petm._internal.files import fingerprint
from petm._internal.progress import track
from petm.data.base import Data, TensorData
from petm.data.fields import one_tensor
from petm.models.loading import call_model, weights_fingerprint
from petm.models.prediction import BATCH_SIZE, device_of
from petm.training.error_set import fgsm

PGD_STEPS = 10
EPSILONS = tuple(2.0**power / 255 for power in range(-3, 7))
"""Shares of the range of values, from an eighth of a grey level to 64."""
ATTACKS = ("fgsm", "pgd")
_LOOKED_AT = 500


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    value_range: tuple[float, float],
    steps: int = PGD_STEPS,
) -> Tensor:
    """Returns adversarial examples of projected gradient descent, float32 ``(n, C, H, W)``, from the inputs themselves.

    Each step is one of FGSM of size ``2.5 epsilon / steps``, after which every value is brought back to within
    epsilon of where it was.

    Args:
        model: A.
        inputs: float32 ``(n, C, H, W)``.
        labels: int64 ``(n,)``, the true classes.
        epsilon: Greatest change of a value, at least 0.
        value_range: Least and greatest value that the result may take.
        steps: How many.

    Raises:
        ArgumentError: ``epsilon`` is negative or not finite.

    Reference:
        Madry et al. (2018), Towards Deep Learning Models Resistant to Adversarial Attacks, section 2.1.
    """
    moved = inputs
    for _ in range(steps):
        moved = fgsm(model, moved, labels, epsilon=2.5 * epsilon / steps, value_range=value_range)
        moved = torch.minimum(torch.maximum(moved, inputs - epsilon), inputs + epsilon)
    return moved


def attacked(
    model: nn.Module,
    data: Data,
    name: str,
    epsilon: float,
    *,
    batch_size: int = BATCH_SIZE,
    folder: Path | None = None,
) -> TensorData:
    """Returns the samples after an attack on A that knows their labels, held in memory.

    Args:
        model: A.
        data: Labelled images.
        name: ``fgsm`` or ``pgd``.
        epsilon: Greatest change of a value, as a share of the range of values.
        batch_size: Samples in one backward pass.
        folder: Where the result is kept, and read from where it is there already.
    """
    content = fingerprint((data.content, name, str(epsilon), weights_fingerprint(model)))
    path = folder and folder / f"{name}-{content[:12]}.npz"
    kept = read_array(path) if path else None
    images = torch.from_numpy(kept) if kept is not None else _attacked(model, data, name, epsilon, batch_size)
    if path and kept is None:
        write_array(path, images.numpy())
    held = TensorData(
        images, data.labels, classes=data.classes, source=f"{data.source}, {name}", value_range=data.value_range
    )
    held.content = content
    return held


def _attacked(model: nn.Module, data: Data, name: str, epsilon: float, batch_size: int) -> Tensor:
    attack, device, parts = {"fgsm": fgsm, "pgd": pgd}[name], device_of(model), []
    low, high = data.value_range
    with track(name, len(data)) as progress:
        for rows in torch.arange(len(data)).split(batch_size):
            inputs, labels = one_tensor(data.inputs(rows), "to attack").to(device), data.labels[rows].to(device)
            moved = attack(model, inputs, labels, epsilon=epsilon * (high - low), value_range=data.value_range)
            parts.append(moved.cpu())
            progress.advance(len(rows))
    return torch.cat(parts)


def choose_epsilon(model: nn.Module, data: Data, *, seed: int = 0) -> float:
    """Returns the least of `EPSILONS` at which FGSM makes A wrong on a quarter of the samples, else the greatest.

    A detector can only be judged where A is right on some samples and wrong on others, and the step at which that
    is so differs from model to model.

    Args:
        model: A.
        data: Labelled images that the attack is not judged on, such as the training data; 500 are looked at.
        seed: Of which.
    """
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:_LOOKED_AT]
    seen = data.subset(rows.sort().values)
    for epsilon in EPSILONS:
        moved = attacked(model, seen, "fgsm", epsilon)
        if _error_rate(model, moved) >= 0.25:
            return epsilon
    return EPSILONS[-1]


def _error_rate(model: nn.Module, data: TensorData) -> float:
    wrong = 0
    for rows in torch.arange(len(data)).split(BATCH_SIZE):
        inputs, labels = data.inputs(rows).to(device_of(model)), data.labels[rows]
        with torch.no_grad():
            wrong += int((call_model(model, inputs).argmax(1).cpu() != labels).sum())
    return wrong / len(data)
