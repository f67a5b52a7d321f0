"""The image processor of a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import fingerprint
from petm.errors import ModelError
from petm.models.hf_folder import read_json, refuse_custom_code, transformers_reading

if TYPE_CHECKING:
    from PIL.Image import Image

_CONFIGS = ("preprocessor_config.json", "processor_config.json")
_SQUARE, _WIDE = (64, 64), (96, 40)
"""Width and height of the images that the processor is tried on."""


@dataclass(frozen=True, eq=False)
class ImageProcessor:
    """The image processor of an image classifier: its size, its cropping and its normalisation.

    Attributes:
        shape: ``(C, H, W)`` of what it makes of an image.
        value_range: The least and the greatest value that it makes of black and white.
        settings: All of its settings as text, which identifies it.
    """

    shape: tuple[int, int, int]
    value_range: tuple[float, float]
    settings: str
    _processor: Any

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its settings."""
        return fingerprint((self.settings,))

    @property
    def settings_by_name(self) -> dict[str, Any]:
        """All of its settings."""
        settings: dict[str, Any] = json.loads(self.settings)
        return settings

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """Returns float32 ``(C, H, W)`` for an image of mode L, RGB or, with values in [0, 1], F."""
        return _process(self._processor, self.shape[0], image)


def load_image_processor(folder: Path, config: Any, *, trust_remote_code: bool) -> ImageProcessor:
    """Returns the image processor of a folder, in the form that needs Pillow only.

    Raises:
        ModelError: There is none, it cannot be read, its images have no fixed size, or it has code of its own that is
            not trusted.
    """
    from PIL import Image

    present = [folder / name for name in _CONFIGS if (folder / name).is_file()]
    if not present:
        raise ModelError(
            f"model: expected an image processor ({_CONFIGS[0]}) in {folder}, got none. "
            f"Write it with processor.save_pretrained."
        )
    for path in present:
        refuse_custom_code(folder, read_json(path), trust_remote_code=trust_remote_code)
    with transformers_reading(folder) as transformers:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code, backend="pil"
        )
    channels = getattr(config, "num_channels", 3)
    tried = [Image.new("L", size, value) for size, value in ((_SQUARE, 0), (_SQUARE, 255), (_WIDE, 0))]
    with transformers_reading(folder):
        black, white, wide = (_process(processor, channels, image) for image in tried)
    if black.ndim != 3 or black.shape != wide.shape:
        raise ModelError(
            f"model: expected an image processor that makes images of one size in {folder}, got {black.shape} from a "
            f"square and {wide.shape} from a wide one. Give it a height and a width."
        )
    span = (float(min(black.min(), white.min())), float(max(black.max(), white.max())))
    return ImageProcessor((channels, black.shape[1], black.shape[2]), span, processor.to_json_string(), processor)


def _process(processor: Any, channels: int, image: Image) -> NDArray[np.float32]:
    from PIL import Image

    if image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)
    made = processor(images=pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    return np.asarray(made, dtype=np.float32)
