"""Random changes to an image that keep its label, on which a converged model still makes errors."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm._internal.files import fingerprint
from petm.data.base import Data, Joined, Subset, as_data
from petm.data.fields import one_tensor
from petm.errors import ArgumentError
from petm.models.prediction import check_labels, predict_logits


@dataclass(frozen=True)
class Augmentation:
    """The greatest amount of each change, to either side; 0 leaves it out.

    Attributes:
        rotation: Angle in degrees, 0 to 180.
        shift: Share of width and of height, 0 to 1.
        scale: Share of the size, 0 to 0.9.
        shear: Pixels to the side for each pixel down, 0 to 2.
        mirror: Whether half of the images are flipped horizontally.

    Raises:
        ArgumentError: An amount breaks its rule.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    mirror: bool = False

    def __post_init__(self) -> None:
        for name, most in (("rotation", 180), ("shift", 1), ("scale", 0.9), ("shear", 2)):
            if not 0 <= getattr(self, name) <= most:
                raise ArgumentError(f"{name}: expected a number from 0 to {most}, got {getattr(self, name)}.")

    def times(self, strength: float) -> "Augmentation":
        """Returns the amounts multiplied by ``strength``, and the same flip."""
        amounts = {name: strength * getattr(self, name) for name in ("rotation", "shift", "scale", "shear")}
        return replace(self, **amounts)


MILD = Augmentation(rotation=15.0, shift=0.12, scale=0.15, shear=0.2)
"""The strongest augmentation that is tried; digits, products and organs keep their class under it."""
WHOLE_PIXELS = Augmentation(shift=0.12)
"""One that resamples no pixel, and so blurs nothing."""
STRENGTHS = (1.0, 0.75, 0.5, 0.25)
SAMPLES = 2000
"""Most samples that are tried."""
MOST_ERRORS = 0.05
"""Greatest rise of the base model's error rate under changes that keep the labels."""


def choose_augmentation(model: nn.Module, data: Data, *, mirrored: Augmentation = MILD, seed: int = 0) -> Augmentation:
    """Returns the strongest augmentation under which the base model still recognises its own training samples.

    Changes keep the labels if the base model's error rate on at most `SAMPLES` training samples rises by at most
    `MOST_ERRORS`. The horizontal flip is tried first, then `MILD` at falling strengths.

    Args:
        model: The base model.
        data: Labelled images ``(N, C, H, W)``, best those that the base model was trained on.
        mirrored: What is tried instead of `MILD` where the flip keeps the labels.
        seed: Seed of the choice of samples and of the changes.

    Raises:
        ArgumentError: The samples are no images.
        DataError: A label is missing or outside 0..K-1, only one class is present, or there is no sample.
    """
    data = as_data(data)
    generator = torch.Generator().manual_seed(seed)
    seen = data.subset(torch.randperm(len(data), generator=generator)[:SAMPLES]).in_memory()

    def errors(augmentation: Augmentation, what: str) -> float:
        logits = predict_logits(model, Augmented(seen, augmentation, seed=seed), title=f"augmentation, {what}")
        check_labels(data.labels, logits.shape[1], data.source)
        return float((logits.argmax(1) != seen.labels).double().mean())

    allowed = errors(Augmentation(), "none") + MOST_ERRORS
    # Half of the images are flipped, so half of the harm is seen.
    mirror = errors(Augmentation(mirror=True), "horizontal flip") <= allowed - MOST_ERRORS / 2
    for strength in STRENGTHS:
        found = replace((mirrored if mirror else MILD).times(strength), mirror=mirror)
        if errors(found, f"strength {strength:g}") <= allowed:
            return found
    return Augmentation(mirror=mirror)


class Augmented(Subset):
    """A view of images ``(N, C, H, W)`` in which each is changed at random, in the same way for the same seed."""

    def __init__(self, data: Data, augmentation: Augmentation, *, seed: int) -> None:
        super().__init__(data, torch.arange(len(data)))
        self.augmentation, self.seed = augmentation, seed
        self.source = f"{data.source}, augmented"
        generator = torch.Generator().manual_seed(seed)
        self._draws = 2 * torch.rand(len(data), 6, generator=generator) - 1

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns float32 ``(n, C, H, W)``: the changed images at ``indices``, in that order.

        Raises:
            ArgumentError: The samples are no images.
        """
        images = one_tensor(self.data.inputs(indices), "to augment")
        if images.ndim != 4 or not images.is_floating_point():
            raise ArgumentError(
                f"data: expected images (N, C, H, W) to augment, got {images.dtype} of shape {tuple(images.shape)}. "
                f"For other samples mine the hardest instead: petm.training.mining.hardest_samples."
            )
        return augment(images, self.augmentation, self._draws[torch.as_tensor(indices, dtype=torch.int64)])

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content, the augmentation and the seed."""
        return fingerprint((self.data.content, str(asdict(self.augmentation)), str(self.seed)))


def with_copies(data: Data, augmentation: Augmentation, *, copies: int = 1, seed: int = 0) -> Joined:
    """Returns the data followed by changed copies of all their images.

    Args:
        data: ``N`` images ``(N, C, H, W)``.
        augmentation: Greatest amounts of change.
        copies: Number of copies, at least 1; sample ``i`` of copy ``k``, from 1, is sample ``k N + i`` of the result.
        seed: Seed of the changes, which differ between copies.

    Raises:
        ArgumentError: An argument breaks its rule, or the samples are no images.
    """
    if copies < 1:
        raise ArgumentError(f"copies: expected at least 1, got {copies}.")
    data = as_data(data)
    return Joined(data, *(Augmented(data, augmentation, seed=seed * copies + copy) for copy in range(copies)))


def augment(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Returns changed images, float32 ``(n, C, H, W)``, with the border repeated outside.

    In this order: the flip; rotation, shear and scale about the middle; the shift. A shift alone is by whole pixels,
    which blurs no image.

    Args:
        images: float32 ``(n, C, H, W)``.
        augmentation: Greatest amounts of change.
        draws: float32 ``(n, 6)`` in [-1, 1], the share of each amount: rotation (positive is counter-clockwise), shift
            to the right, shift down, scale (positive enlarges), shear (positive moves lower rows to the left), and the
            flip, which is done where positive.
    """
    turn, right, down, size, slant, flip = draws.to(images.device).unbind(1)
    if not len(images):
        return images
    height, width = images.shape[-2:]
    if augmentation.mirror:
        images = torch.where((flip > 0).view(-1, 1, 1, 1), images.flip(-1), images)
    x, y = augmentation.shift * width * right, augmentation.shift * height * down  # in pixels
    if not (augmentation.rotation or augmentation.scale or augmentation.shear):
        return _shift(images, x.round().long(), y.round().long()) if augmentation.shift else images
    angle, factor = turn * math.radians(augmentation.rotation), 1 + size * augmentation.scale
    shear = slant * augmentation.shear
    cos, sin = angle.cos() / factor, angle.sin() / factor
    # The source of each pixel, in pixels from the middle; a grid counts in halves of width and of height.
    a, b, c, d = cos, shear * cos - sin, sin, shear * sin + cos
    across = torch.stack((a, b * height / width, -(a * x + b * y) * 2 / width), 1)
    along = torch.stack((c * width / height, d, -(c * x + d * y) * 2 / height), 1)
    grid = F.affine_grid(torch.stack((across, along), 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _shift(images: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Each image moved by whole pixels, int64 ``(n,)`` each, with the border repeated outside."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down.unsqueeze(1)).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right.unsqueeze(1)).clamp(0, width - 1)
    moved = images.gather(2, rows.view(-1, 1, height, 1).expand_as(images))
    return moved.gather(3, columns.view(-1, 1, 1, width).expand_as(images))
