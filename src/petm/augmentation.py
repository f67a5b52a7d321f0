"""Random changes to an image that keep its label: where a converged A still makes errors."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.data import Data
from petm.errors import ArgumentError
from petm.files import fingerprint
from petm.inference import predict_logits


@dataclass(frozen=True)
class Augmentation:
    """How far each change may go, to either side; 0 leaves it out.

    Attributes:
        rotation: Degrees.
        shift: Share of width and of height.
        scale: Share of the size.
        shear: Pixels to the side for each pixel down.
        mirror: Whether half of the images have left and right exchanged.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    mirror: bool = False

    def __post_init__(self) -> None:
        for name, most in (("rotation", 180.0), ("shift", 1.0), ("scale", 0.9), ("shear", 2.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ArgumentError(f"{name}: expected a number from 0 to {most}, got {getattr(self, name)}.")

    def times(self, strength: float) -> "Augmentation":
        """Returns the same changes, each going ``strength`` times as far."""
        amounts = {name: strength * getattr(self, name) for name in ("rotation", "shift", "scale", "shear")}
        return replace(self, **amounts)


MILD = Augmentation(rotation=15.0, shift=0.12, scale=0.15, shear=0.2)
"""The most that is tried where nothing is said; digits, products and organs keep their class under it."""
STRENGTHS = (1.0, 0.75, 0.5, 0.25)


def choose_augmentation(
    model: nn.Module, data: Data, *, most_errors: float = 0.1, samples: int = 2000, seed: int = 0
) -> Augmentation:
    """Returns the strongest augmentation under which A still recognises its own training samples.

    What keeps the label is not known to petm, but A knows it: a change that leaves A's error rate on samples that it
    was trained on within ``most_errors`` of the plain one has kept their labels. The mirror is tried by itself, then
    `MILD` at falling strengths.

    Args:
        model: A.
        data: Labelled images ``(N, C, H, W)``, best those that A was trained on.
        most_errors: How much the error rate may rise, between 0 and 1.
        samples: At most this many are looked at.
        seed: Of which, and of the changes.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = data.subset(torch.randperm(len(data), generator=generator)[:samples])

    def errors(augmentation: Augmentation) -> float:
        logits = predict_logits(model, Augmented(seen, augmentation, seed=seed), title="augmentation")
        return float((logits.argmax(1) != seen.labels).double().mean())

    allowed = errors(Augmentation()) + most_errors
    # Half of the images are mirrored, so that half of the harm is seen.
    mirror = errors(Augmentation(mirror=True)) <= allowed - most_errors / 2
    for strength in STRENGTHS:
        found = replace(MILD.times(strength), mirror=mirror)
        if errors(found) <= allowed:
            return found
    return Augmentation(mirror=mirror)


class Augmented(Data):
    """A view of a data set in which each image is changed at random, always in the same way for the same seed.

    Args:
        data: Images ``(N, C, H, W)``.
        augmentation: How far.
        seed: Of the changes.
    """

    def __init__(self, data: Data, augmentation: Augmentation, *, seed: int) -> None:
        self.data, self.augmentation, self.seed = data, augmentation, seed
        self.labels, self.classes, self.value_range = data.labels, data.classes, data.value_range
        self.source = f"{data.source}, augmented"
        generator = torch.Generator().manual_seed(seed)
        self._draws = 2 * torch.rand(len(data), 6, generator=generator) - 1

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns float32 ``(n, C, H, W)``: the changed images at ``indices``, in that order."""
        images = self.data.inputs(indices)
        if images.ndim != 4:
            raise ArgumentError(f"data: expected images (N, C, H, W) to augment, got shape {tuple(images.shape)}.")
        return augment(images, self.augmentation, self._draws[torch.as_tensor(indices, dtype=torch.int64)])

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content, the augmentation and the seed."""
        return fingerprint((self.data.content, str(asdict(self.augmentation)), str(self.seed)))

    def name(self, index: int) -> str:
        """Returns the sample's name in the data set that this is a view of."""
        return self.data.name(index)


def augment(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Returns changed images, float32 ``(n, C, H, W)``; what comes in from outside continues the border.

    A shift alone moves by whole pixels, so that no image is blurred by it.

    Args:
        images: float32 ``(n, C, H, W)``.
        augmentation: How far.
        draws: float32 ``(n, 6)`` in [-1, 1]: rotation, shift to the right, shift down, scale, shear, mirror.
    """
    turn, right, down, size, slant, flip = draws.to(images.device).unbind(1)
    angle = turn * math.radians(augmentation.rotation)
    factor, shear = 1 + size * augmentation.scale, slant * augmentation.shear
    x, y = 2 * augmentation.shift * right, 2 * augmentation.shift * down
    if not (augmentation.rotation or augmentation.scale or augmentation.shear):
        height, width = images.shape[-2:]
        x, y = (x * width / 2).round() * 2 / width, (y * height / 2).round() * 2 / height
    if augmentation.mirror:
        images = torch.where((flip > 0).view(-1, 1, 1, 1), images.flip(-1), images)
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack((cos / factor, (shear * cos - sin) / factor, -x), 1)]
    rows += [torch.stack((sin / factor, (shear * sin + cos) / factor, -y), 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
