"""Test images that are not as the training images were: noisy, blurred, turned, pale."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from petm._internal.files import fingerprint
from petm.data.base import Data, TensorData
from petm.data.fields import one_tensor
from petm.errors import DataError

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
