"""Views of an image that keep its label."""

import re
from collections.abc import Callable
from functools import reduce

from torch import Tensor
from torch.nn import functional as F

from petm.errors import ArgumentError

SAME, MIRROR = "same", "mirror"
_SHIFT = re.compile(r"shift ([+-]?\d{1,9}) ([+-]?\d{1,9})")


def view(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the view of that name, a function of images ``(N, C, H, W)`` to images of the same shape.

    ``same`` is the image itself, ``mirror`` exchanges left and right, ``shift X Y`` moves it by X pixels to the right
    and Y down (whole numbers) and repeats the pixels at the border. Several with commas between them are applied in
    order: ``mirror, shift 2 0``.

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
        return lambda images: images
    if name == MIRROR:
        return lambda images: images.flip(-1)
    found = _SHIFT.fullmatch(name)
    if found is None:
        raise ArgumentError(f"view: expected 'same', 'mirror' or 'shift X Y', got {name!r}.")
    x, y = int(found[1]), int(found[2])

    def shifted(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        right, down = max(-width, min(x, width)), max(-height, min(y, height))  # farther, nothing changes any more
        left, up = max(-right, 0), max(-down, 0)
        padding = (max(right, 0), left, max(down, 0), up)
        return F.pad(images, padding, mode="replicate")[..., up : up + height, left : left + width]

    return shifted
