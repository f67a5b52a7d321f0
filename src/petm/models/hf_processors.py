"""The tokenizer or the image processor of a Hugging Face folder, which prepares a model's inputs."""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm.data.images import ImageProcessor as ImageProcessor
from petm.data.sound import as_heard
from petm.errors import ArgumentError, ModelError, PetmError
from petm.models.hf_adapter import is_adapter, read_adapter
from petm.models.hf_folder import (
    Task,
    check_files,
    check_numbers,
    read_config,
    read_json,
    refuse_custom_code,
    transformers_reading,
)
from petm.models.hf_tokenizer import Tokenizer, has_vocabulary, load_tokenizer
from petm.models.prompt import Prompt
from petm.models.timm_images import timm_processor

if TYPE_CHECKING:
    from PIL.Image import Image

_NO_CONFIG: Any = SimpleNamespace(pad_token_id=None, eos_token_id=None, model_type="")
_CONFIGS = ("preprocessor_config.json", "processor_config.json")
_SIZES, _LARGEST = re.compile("(.*_)?(size|height|width|edge)"), 4096
"""Entries of an image processor that say a size in pixels, and the largest that petm makes images of."""
_SQUARE, _WIDE = (64, 64), (96, 40)
"""Width and height of the images on which the processor is tried."""
TOLERANCE = 1e-5
"""Largest difference of a value of a plain form from the processor's, for a range of 1."""
_TRIED = (_SQUARE, _WIDE, (33, 57), (7, 9))
"""Width and height of the noise on which both are compared."""


def load_processor(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
    prompt: Prompt | None = None,
    length: int | None = None,
) -> Tokenizer | ImageProcessor:
    """Returns the tokenizer of a folder, its image processor, or its feature extractor of sounds.

    The model's ``config.json`` decides, if it names a classifier; otherwise a tokenizer is preferred. Beside a LoRA
    adapter without either, it is that of the base model.

    Args:
        folder: With the files of a tokenizer or an image processor, as ``save_pretrained`` writes them; best beside the
            ``config.json`` of their model, which has the most tokens and the padding token.
        base: The folder of the model that an adapter there was trained on, if not the one that its settings name.
        trust_remote_code: Whether to run the folder's own code, if there is any.
        prompt: The prompt in which a language model is asked about each text.
        length: Samples to which each sound is padded or cut, where the feature extractor does not say it.

    Raises:
        ArgumentError: The prompt is for a chat, and the tokenizer has no template of one; or a length is needed.
        ModelError: The files are missing or cannot be used; the images have no fixed size; no token can pad; or the
            folder has code of its own that is not trusted.
    """
    told, folder = {"processor": str(folder), "base": base and str(base), "prompt": prompt}, Path(folder)
    config: Any = _NO_CONFIG
    task: Task | None = None
    if is_adapter(folder):
        adapter = read_adapter(folder, base, trust_remote_code=trust_remote_code)
        config, task = adapter.config, adapter.task
        here = has_vocabulary(folder) if task == "SequenceClassification" else any(map(Path.is_file, _in(folder)))
        folder = folder if here else adapter.base
    elif (folder / "config.json").is_file():
        config, task = read_config(folder, trust_remote_code=trust_remote_code)
    elif not folder.is_dir():
        wanted = "the folder of a tokenizer or image processor"
        raise ModelError(f"processor: expected {wanted}, got {folder}, which is no folder. Name it (--processor).")
    else:
        check_files(folder)
    if task is None:
        task = "SequenceClassification" if has_vocabulary(folder) else "ImageClassification"
    if task == "AudioClassification":
        heard = load_feature_extractor(folder, length, trust_remote_code=trust_remote_code)
        return replace(heard, told=told | {"length": length})
    if prompt is None and task == "ImageClassification":
        return replace(load_image_processor(folder, config, trust_remote_code=trust_remote_code), told=told)
    return replace(load_tokenizer(folder, config, trust_remote_code=trust_remote_code, prompt=prompt), told=told)


def as_processor(given: Any, model: Any = None) -> Tokenizer | ImageProcessor:
    """Returns a tokenizer or image processor of transformers, as it is in memory, in the form that petm uses.

    Args:
        given: One of transformers, or what `load_processor` returns.
        model: The model whose inputs it prepares; its ``config`` has the most tokens, and the padding token.

    Raises:
        ArgumentError: It is neither.
        ModelError: As `load_processor`.
    """
    if isinstance(given, Tokenizer | ImageProcessor):
        return given
    if not hasattr(given, "save_pretrained"):
        raise ArgumentError(
            f"processor: expected a tokenizer or image processor of transformers, got {type(given).__name__}. "
            f"Pass one, such as pipeline.tokenizer."
        )
    config = getattr(model, "config", _NO_CONFIG)
    own = copy.deepcopy(given)
    if backend := getattr(own, "backend_tokenizer", None):  # calls leave their settings in it
        backend.no_truncation()
        backend.no_padding()
    found: Tokenizer | ImageProcessor
    with TemporaryDirectory() as name:
        own.save_pretrained(name)
        if has_vocabulary(Path(name)):
            found = load_tokenizer(Path(name), config, trust_remote_code=False)
        else:
            found = load_image_processor(Path(name), config, trust_remote_code=False)
    folder = getattr(given, "name_or_path", "")
    with suppress(PetmError):
        if folder and Path(folder).is_dir() and load_processor(folder).fingerprint == found.fingerprint:
            return replace(found, told={"processor": str(folder)})
    return found


def _in(folder: Path) -> list[Path]:
    return [folder / name for name in _CONFIGS]


def _present(folder: Path, what: str) -> list[Path]:
    found = [path for path in _in(folder) if path.is_file()]
    if not found:
        raise ModelError(
            f"model: expected {what} ({_CONFIGS[0]}) in {folder}, got none. Write it with processor.save_pretrained."
        )
    return found


def load_image_processor(folder: Path, config: Any, *, trust_remote_code: bool) -> ImageProcessor:
    """Returns the image processor of a folder, in the form that needs Pillow only; raises as `load_processor`."""
    from PIL import Image

    if not any(map(Path.is_file, _in(folder))) and (found := timm_processor(folder)):
        return found
    for path in _present(folder, "an image processor"):
        content = read_json(path)
        refuse_custom_code(folder, content, trust_remote_code=trust_remote_code)
        check_numbers(folder, content, "pixels a side", _LARGEST, _SIZES)
    with transformers_reading(folder) as transformers:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code, backend="pil"
        )
    channels = getattr(config, "num_channels", 3)
    tried = [Image.new("L", size, value) for size, value in ((_SQUARE, 0), (_SQUARE, 255), (_WIDE, 0))]
    with transformers_reading(folder), np.errstate(all="ignore"):  # what is not finite is refused below
        black, white, wide = (_process(processor, channels, image) for image in tried)
    if black.ndim != 3 or black.shape != wide.shape:
        raise ModelError(
            f"model: expected an image processor that makes images of one size in {folder}, got {black.shape} from a "
            f"square and {wide.shape} from a wide one. Give it a height and a width."
        )
    if not np.isfinite([black, white]).all() or (black == white).all((1, 2)).any():
        raise ModelError(
            f"model: expected an image processor that makes black and white finite and different in {folder}, got "
            f"{black.min()} and {white.max()}. Correct its rescale_factor, image_mean and image_std."
        )
    span = (float(min(black.min(), white.min())), float(max(black.max(), white.max())))
    shape, prepare = (channels, black.shape[1], black.shape[2]), partial(_process, processor, channels)
    return ImageProcessor(shape, span, processor.to_json_string(), prepare)


def load_feature_extractor(folder: Path, length: int | None, *, trust_remote_code: bool) -> ImageProcessor:
    """Returns the feature extractor of a folder for sounds of one length; raises as `load_processor`."""
    for path in _present(folder, "a feature extractor"):
        refuse_custom_code(folder, read_json(path), trust_remote_code=trust_remote_code)
    with transformers_reading(folder) as transformers:
        made = transformers.AutoFeatureExtractor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    rate, name = int(made.sampling_rate), made.model_input_names[0]
    padded = {"padding": "max_length", "max_length": length, "truncation": True} if length else {}

    def prepare(sound: NDArray[np.float32]) -> NDArray[np.float32]:
        found = made(sound, sampling_rate=rate, return_tensors="np", **padded)[name][0]
        return np.asarray(found, np.float32)

    noise = np.random.default_rng(0).uniform(-1, 1, rate).astype(np.float32)
    with transformers_reading(folder), np.errstate(all="ignore"):
        whole, half = prepare(noise), prepare(noise[: rate // 2])
    if whole.shape != half.shape:
        raise ArgumentError(
            f"length: expected the samples to which each sound is padded or cut, at {rate:,} a second, as the feature "
            f"extractor of {folder} keeps their lengths, got {length}. Name it (--length {rate})."
        )
    span, settings = (float(whole.min()), float(whole.max())), made.to_json_string()
    return ImageProcessor(whole.shape, span, f"{settings} {length}", prepare, partial(as_heard, rate=rate))


def _process(processor: Any, channels: int, image: Image) -> NDArray[np.float32]:
    from PIL import Image

    if image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)
    made = processor(images=pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    return np.asarray(made, dtype=np.float32)


@dataclass(frozen=True)
class PlainForm:
    """Resizes an image, scales it, subtracts the mean and divides by the standard deviation.

    Attributes:
        size: Height and width in pixels.
        channels: 1 for grey, 3 for colour.
        resample: Pillow's filter, in small letters.
        scale: Factor of the pixels, which are from 0 to 255.
        mean: Subtracted then, one for each channel.
        std: Divisor then, one for each channel.
    """

    size: tuple[int, int]
    channels: int
    resample: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """Returns float32 ``(C, H, W)`` for an image with 8 bits."""
        from PIL.Image import Resampling

        height, width = self.size
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = image.resize((width, height), Resampling[self.resample.upper()])
        values = np.asarray(image, np.float32).reshape(height, width, self.channels) * np.float32(self.scale)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        made: NDArray[np.float32] = (values - mean) / std
        return made.transpose(2, 0, 1)


def plain_form(processor: ImageProcessor) -> PlainForm | None:
    """Returns a processor's plain form, checked on noise of several sizes.

    None where it takes sounds or does anything else: cropping, padding, keeping the ratio of the sides, other colours.
    """
    from PIL import Image

    if processor.hear is not None:
        return None
    settings: dict[str, Any] = json.loads(processor.settings)
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
        if not abs(form(image) - processor.prepare(image)).max() <= allowed:
            return None
    return form


def _each(value: float | list[float], channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * channels
    if len(values) != channels:
        raise ValueError(f"{len(values)} values for {channels} channels")
    return tuple(map(float, values))
