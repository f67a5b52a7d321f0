"""Views of an image that keep its label."""

import re
from collections.abc import Callable
from functools import reduce

from torch import Tensor
from torch.nn import functional as F

from petm.errors import ArgumentError

SAME, MIRROR = "same", "mirror"
_SHIFT = re.compile(r"shift ([+-]?\d+) ([+-]?\d+)")


def view(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the view of that name, a function of images ``(N, C, H, W)`` to images of the same shape.

    ``same`` is the image itself, ``mirror`` its left and right exchanged, ``shift X Y`` the image moved by X pixels to
    the right and Y down, the pixels at the border repeated in what becomes free. Several with commas between them are
    applied one after the other.

    Args:
        name: ``same``, ``mirror`` or ``shift X Y`` with whole numbers, or several of these: ``mirror, shift 2 0``.

    Raises:
        ArgumentError: There is no view of that name.

    Example:
        >>> import torch
        >>> view("shift 1 0")(torch.arange(4.0).view(1, 1, 1, 4)).flatten().tolist()
        [0.0, 0.0, 1.0, 2.0]
    """
    if ", " in name:
        steps = [view(part) for part in name.split(", ")]
        return lambda images: reduce(lambda seen, step: step(seen), steps, images)
    if name == SAME:
        return _same
    if name == MIRROR:
        return _mirror
    found = _SHIFT.fullmatch(name)
    if found is None:
        raise ArgumentError(f"view: expected 'same', 'mirror' or 'shift X Y', got {name!r}.")
    right, down = int(found[1]), int(found[2])
    return lambda images: _shift(images, right, down)


def _same(images: Tensor) -> Tensor:
    return images


def _mirror(images: Tensor) -> Tensor:
    return images.flip(-1)


def _shift(images: Tensor, right: int, down: int) -> Tensor:
    height, width = images.shape[-2:]
    padding = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    grown = F.pad(images, padding, mode="replicate")
    return grown[..., max(-down, 0) : max(-down, 0) + height, max(-right, 0) : max(-right, 0) + width]
