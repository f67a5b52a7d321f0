"""What an image processor does, as a few numbers that Pillow and NumPy can do alone, where that is all it does."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petm.models.hf_image_processor import ImageProcessor

TOLERANCE = 1e-5
"""Largest difference of a value from the processor's, beside a range of 1."""
_TRIED = ((64, 64), (96, 40), (33, 57), (7, 9))
"""Width and height of the noise on which both are compared."""


@dataclass(frozen=True)
class PlainForm:
    """Resize to a size, scale, subtract the mean, divide by the deviation.

    Attributes:
        size: Height and width in pixels.
        channels: 1 for grey, 3 for colour; the image is turned into these first.
        resample: Pillow's filter, in small letters.
        scale: Factor of the pixels, which are from 0 to 255.
        mean: Then subtracted, for each channel.
        std: Then divided by, for each channel.
    """

    size: tuple[int, int]
    channels: int
    resample: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Returns float32 ``(C, H, W)`` for an image with 8 bits."""
        height, width = self.size
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = image.resize((width, height), Image.Resampling[self.resample.upper()])
        values = np.asarray(image, np.float32).reshape(height, width, self.channels) * np.float32(self.scale)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        made: NDArray[np.float32] = (values - mean) / std
        return made.transpose(2, 0, 1)


def plain_form(processor: ImageProcessor) -> PlainForm | None:
    """Returns a processor's plain form, proven on noise of several sizes, or none where it does anything else.

    Cropping, padding, keeping the sides' ratio and other colours are something else.

    Args:
        processor: From `petm.models.hf_processors.load_processor`.
    """
    settings = processor.settings_by_name
    channels, height, width = processor.shape
    try:
        normal = settings.get("do_normalize", False)
        form = PlainForm(
            (height, width),
            channels,
            Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR)).name.lower(),
            float(settings["rescale_factor"]) if settings.get("do_rescale", False) else 1.0,
            _each(settings["image_mean"] if normal else 0.0, channels),
            _each(settings["image_std"] if normal else 1.0, channels),
        )
    except (KeyError, TypeError, ValueError):
        return None
    noise = np.random.default_rng(0)
    for wide, high in _TRIED:
        image = Image.fromarray(noise.integers(0, 256, (high, wide, 3), np.uint8))
        allowed = TOLERANCE * max(1.0, processor.value_range[1] - processor.value_range[0])
        # Not the other way round: a comparison with NaN must fail.
        if not abs(form(image) - processor(image)).max() <= allowed:
            return None
    return form


def _each(value: float | list[float], channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * channels
    if len(values) != channels:
        raise ValueError(f"{len(values)} values for {channels} channels")
    return tuple(map(float, values))
