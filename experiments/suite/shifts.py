"""Production data that differ from the training data: images that are dimmed, blurred and the like; texts mistyped."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.detection.conditions import contrast, noise, rotation
from petm.data.base import Data, TensorData
from petm.data.fields import one_tensor
from petm.data.texts import Texts

RANGE = (0.0, 1.0)


def dim(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns ``clip((x - 0.5) * 0.5 + 0.35 + 0.03 * noise)`` for pixels in [0, 1]."""
    return ((images - 0.5) * 0.5 + 0.35 + 0.03 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the mean over 3×3 pixels, with a reflected border."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


SHIFTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda images, _: images,
    "dimmed": dim,
    "blurred": blur,
    "noise": lambda images, generator: noise(images, 0.05, RANGE, generator),
    "rotation": lambda images, generator: rotation(images, 30.0, RANGE, generator),
    "contrast": lambda images, generator: contrast(images, 0.5, RANGE, generator),
}
"""The shifts of images with pixels in [0, 1], by name."""


def shifted(data: Data, name: str, *, seed: int = 0) -> TensorData:
    """Returns images under a shift, in memory, with their labels."""
    images = one_tensor(data.inputs(range(len(data))), "to shift")
    changed = SHIFTS[name](images, torch.Generator().manual_seed(seed))
    return TensorData(changed, data.labels, source=f"{data.source}, {name}", value_range=RANGE)


TYPING_ERRORS = {"none": 0.0, "typing errors": 0.05}
"""The shifts of texts: the chance of a typing error at each letter."""

_BESIDE = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioplsdfghjkl;xcvbnm,", strict=True))


def mistyped_texts(texts: Texts, share: float, *, seed: int = 0) -> Texts:
    """Returns the same texts with typing errors."""
    import pyarrow as pa

    generator = torch.Generator().manual_seed(seed)
    changed = [mistyped(text, share, generator) for text in texts.texts.to_pylist()]
    return replace(texts, texts=pa.chunked_array([pa.array(changed, pa.large_string())]))


def mistyped(text: str, share: float, generator: torch.Generator) -> str:
    """Returns a text with typing errors: a letter is left out, doubled, exchanged with the next or hit beside its key.

    Args:
        text: Any text.
        share: Chance of an error at each letter.
        generator: Of the errors.
    """
    letters, place = list(text), 0
    while place < len(letters):
        if letters[place].isalpha() and float(torch.rand((), generator=generator)) < share:
            letter = letters[place]
            kind = int(torch.randint(4, (), generator=generator))
            after = letters[place + 1 : place + 2]
            made = ([], [letter, letter], [*after, letter], [_BESIDE.get(letter.lower(), letter)])[kind]
            letters[place : place + (2 if kind == 2 else 1)] = made
            place += max(0, len(made) - 1)
        place += 1
    return "".join(letters)
