"""Test images that are not as the training images were: noisy, blurred, turned, pale, or made to mislead the model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.detection.scores import read_array, write_array
from petm._internal.files import fingerprint
from petm._internal.progress import track
from petm.data.base import Data, TensorData
from petm.data.fields import one_tensor
from petm.errors import DataError
from petm.models.loading import weights_fingerprint
from petm.models.prediction import BATCH_SIZE, device_of, predict_logits
from petm.training.error_set import fgsm

Range = tuple[float, float]


def noise(images: Tensor, strength: float, value_range: Range, generator: torch.Generator) -> Tensor:
    """Returns the images with normal noise added, clipped to the range.

    Args:
        images: float32 ``(N, C, H, W)``.
        strength: Standard deviation as a share of the range.
        value_range: Least and greatest value.
        generator: Of the noise.
    """
    drawn = torch.randn(images.shape, generator=generator)
    return (images + strength * (value_range[1] - value_range[0]) * drawn).clamp(*value_range)


def blur(images: Tensor, strength: float, value_range: Range, generator: torch.Generator) -> Tensor:
    """Returns the images under a Gaussian kernel, cut off at three standard deviations, borders repeated.

    Args:
        images: float32 ``(N, C, H, W)``.
        strength: Standard deviation of the kernel as a share of the shorter side.
        value_range: Nothing leaves it: a mean of values lies between them.
        generator: Not used.
    """
    sigma = strength * min(images.shape[-2:])
    reach = max(1, math.ceil(3 * sigma))
    distance = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = (-0.5 * (distance / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    for shape, padding in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        weight = kernel.view(1, 1, *shape).expand(channels, 1, *kernel.view(*shape).shape)
        images = F.conv2d(F.pad(images, padding, mode="replicate"), weight, groups=channels)
    return images.clamp(*value_range)


def rotation(images: Tensor, strength: float, value_range: Range, generator: torch.Generator) -> Tensor:
    """Returns the images turned about their middle, half of them to each side; the border goes on in what comes in.

    Args:
        images: float32 ``(N, C, H, W)``.
        strength: Degrees.
        value_range: Nothing leaves it.
        generator: Of the side to which each image is turned.
    """
    side = torch.where(torch.rand(len(images), generator=generator) < 0.5, -1.0, 1.0)
    angle = math.radians(strength) * side
    height, width = images.shape[-2:]
    cos, sin, nothing = angle.cos(), angle.sin(), torch.zeros_like(angle)
    first = torch.stack((cos, -sin * height / width, nothing), 1)
    second = torch.stack((sin * width / height, cos, nothing), 1)
    grid = F.affine_grid(torch.stack((first, second), 1), list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned.clamp(*value_range)


def contrast(images: Tensor, strength: float, value_range: Range, generator: torch.Generator) -> Tensor:
    """Returns the images drawn towards their own mean: ``mean + (1 - strength) (x - mean)``.

    Args:
        images: float32 ``(N, C, H, W)``.
        strength: Share of the contrast that is lost.
        value_range: Nothing leaves it.
        generator: Not used.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + (1 - strength) * (images - mean)).clamp(*value_range)


Change = Callable[[Tensor, float, Range, torch.Generator], Tensor]


@dataclass(frozen=True)
class Shift:
    """A change of the test images at three strengths, of which the least hardly disturbs a person.

    Attributes:
        change: From images and strength to images.
        strengths: In the change's own unit.
        unit: In words.
    """

    change: Change
    strengths: tuple[float, float, float]
    unit: str


SHIFTS = {
    "noise": Shift(noise, (0.05, 0.1, 0.2), "standard deviation over the range of values"),
    "blur": Shift(blur, (0.02, 0.04, 0.06), "standard deviation over the shorter side"),
    "rotation": Shift(rotation, (15.0, 30.0, 45.0), "degrees"),
    "contrast": Shift(contrast, (0.3, 0.5, 0.7), "share of the contrast that is lost"),
}
"""Every change by name."""


def shifted(data: Data, name: str, strength: float, *, seed: int = 0) -> TensorData:
    """Returns the samples with one change made to all images, held in memory; their labels stay.

    Args:
        data: Images ``(N, C, H, W)``.
        name: One of `SHIFTS`.
        strength: In its unit.
        seed: Of the noise, and of the side to which an image is turned.

    Raises:
        DataError: The samples are no images.
    """
    images = one_tensor(data.inputs(range(len(data))), "to shift")
    if images.ndim != 4:
        raise DataError(
            f"{data.source}: expected images (N, C, H, W) to shift, got shape {tuple(images.shape)}. "
            "Leave the shifts out."
        )
    changed = SHIFTS[name].change(images, strength, data.value_range, torch.Generator().manual_seed(seed))
    held = TensorData(
        changed, data.labels, classes=data.classes, source=f"{data.source}, {name}", value_range=data.value_range
    )
    # What it was made from, and not its last bits, which may differ between numbers of threads.
    held.content = fingerprint((data.content, name, str(strength), str(seed)))
    return held


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
        model: The base model.
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
    """Returns the samples after an attack on the base model that knows their labels, held in memory.

    Args:
        model: The base model.
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
    """Returns the least of `EPSILONS` at which FGSM makes the model wrong on a quarter of the samples, or the last.

    A detector can only be judged where the base model is right on some samples and wrong on others, and the step at
    which that is so differs from model to model.

    Args:
        model: The base model.
        data: Labelled images that the attack is not judged on, such as the training data; 500 are looked at.
        seed: Of which.
    """
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:_LOOKED_AT]
    seen = data.subset(rows.sort().values)
    for epsilon in EPSILONS:
        moved = attacked(model, seen, "fgsm", epsilon)
        if (predict_logits(model, moved).argmax(1) != moved.labels).double().mean() >= 0.25:
            return epsilon
    return EPSILONS[-1]
