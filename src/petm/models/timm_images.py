"""The images of timm's models: what their ``pretrained_cfg`` says, done with Pillow, as timm does it at evaluation."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.records import Record
from petm.data.images import ImageProcessor
from petm.errors import BundleError, ModelError
from petm.models.hf_folder import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST = 4096
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""timm's defaults, those of ImageNet; so are bicubic, 0.875 and the centre."""


@dataclass(frozen=True)
class TimmForm:
    """Resizes the shorter side of an image, crops its centre to a square, and normalises it.

    Attributes:
        side: Height and width of the crop, in pixels.
        channels: 1 for grey, 3 for colour.
        shorter: The shorter side before the crop.
        resample: Pillow's filter.
        mean: Subtracted from pixels from 0 to 1, one for each channel.
        std: Divisor then, one for each channel.
    """

    side: int
    channels: int
    shorter: int
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: "Image") -> NDArray[np.float32]:
        """Returns float32 ``(C, H, W)`` for an image."""
        from PIL import Image

        if image.mode == "F":
            image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
        image = image.convert("L" if self.channels == 1 else "RGB")
        least = min(image.size)
        size = [self.shorter if side == least else int(self.shorter * side / least) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling[self.resample.upper()])
        left, top = (round((side - self.side) / 2) for side in image.size)
        image = image.crop((left, top, left + self.side, top + self.side))
        pixels = np.asarray(image, np.float32).reshape(self.side, self.side, self.channels) / 255
        made = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return made.transpose(2, 0, 1).astype(np.float32)


def timm_processor(folder: Path) -> ImageProcessor | None:
    """Returns how the images of a folder's timm model are prepared; None where its ``config.json`` has none of timm's.

    Raises:
        ModelError: It asks for what is not done here: sides that differ, another crop than the centre, another filter.
    """
    path = folder / "config.json"
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, Mapping) or not isinstance(content.get("pretrained_cfg"), Mapping):
        return None
    form = _form(dict(content["pretrained_cfg"]), str(path))
    ends = [(bound - mean) / std for mean, std in zip(form.mean, form.std, strict=True) for bound in (0, 1)]
    settings = json.dumps({"timm": asdict(form)}, sort_keys=True)
    return ImageProcessor((form.channels, form.side, form.side), (min(ends), max(ends)), settings, form)


def _form(given: dict[str, Any], place: str) -> TimmForm:
    record = Record(given, f"{place}: pretrained_cfg")
    try:
        channels, height, width = map(int, record.numbers("input_size") if record.has("input_size") else (3, 224, 224))
        mean = record.numbers("mean") if record.has("mean") else _MEAN
        std = record.numbers("std") if record.has("std") else _STD
        share = record.number("crop_pct", least=0.01, most=1) if record.has("crop_pct") else 0.875
    except (BundleError, ValueError) as error:
        raise ModelError(f"model: expected settings of timm's images, got {error}") from error
    crop, resample = given.get("crop_mode") or "center", given.get("interpolation") or "bicubic"
    rules = {
        "a square of at most 4,096 pixels a side": height == width and 1 <= height <= _LARGEST,
        "1 or 3 channels with a mean and a std above 0 each": channels in (1, 3)
        and len(mean) == len(std) == channels
        and min(std) > 0,
        "a crop of the centre": crop == "center",
        f"one of the filters {', '.join(_FILTERS)}": resample in _FILTERS,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ModelError(
                f"model: expected {rule} in {place}, pretrained_cfg, got another setting. Prepare the images yourself, "
                f"and pass arrays (.npz)."
            )
    return TimmForm(height, channels, math.floor(height / share), resample, tuple(mean), tuple(std))
