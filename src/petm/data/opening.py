"""Opening data by path, whatever of the known kinds it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from petm.data.base import Data, TensorData
from petm.data.decoding import Channels, Processor
from petm.data.image_folder import ImageFolder, is_image
from petm.data.npz import load_npz
from petm.data.parquet import ParquetImages, find_shards
from petm.data.text import TEXT_SUFFIXES
from petm.errors import DataError

UNDERSTOOD = (
    "a folder with one sub-folder of images for each class, a folder of images, an image file, "
    "*.parquet (a file, a folder of shards or a glob) or *.npz"
)


def open_data(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    channels: Channels | None = None,
    classes: Sequence[str] | None = None,
    skip_bad: bool = False,
    processor: Processor | None = None,
) -> Data:
    """Returns the samples at ``path``: an image folder, an image, Parquet shards or an npz archive.

    Args:
        path: A file, a folder, or a glob of Parquet files.
        size: Height and width to resize images to; arrays in an npz archive must have them already.
        channels: 1 or 3; arrays in an npz archive must have them already.
        classes: The expected class names in order, such as a model's.
        skip_bad: Leave unreadable images out; their names are in the result's ``skipped``.
        processor: What prepares images for a model, in place of ``size`` and ``channels``; arrays in an npz archive
            must be prepared already.

    Raises:
        ArgumentError: ``size`` or ``channels`` breaks its rule.
        DataError: There is nothing at ``path``, it is of no known kind, holds no samples, or cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    form: Any = {"size": size, "channels": channels, "skip_bad": skip_bad, "processor": processor}
    if suffix == ".parquet" or (path.is_dir() and find_shards(path)):
        return ParquetImages(path, classes=classes, **form)
    if path.is_dir() or (path.is_file() and is_image(path.name)):
        return ImageFolder(path, classes=classes, **form)
    if path.is_file() and suffix == ".npz":
        data = load_npz(path, classes=classes)
        if processor is not None and data.images.dtype == torch.uint8:
            raise DataError(
                f"{path}: expected floats that the model's processor has made, got bytes. "
                f"Save what the processor makes of the images, or name image files."
            )
        _check_form(data, *((processor.shape[1:], processor.shape[0]) if processor else (size, channels)))
        return data
    if suffix in TEXT_SUFFIXES and path.exists():
        raise DataError(
            f"{path}: expected {UNDERSTOOD}, got texts. Name a text classifier (--model hf:DIR), whose tokenizer reads "
            f"them; or read them with petm.data.text.read_texts and petm.data.tokenized.Tokenized."
        )
    got = f"a file of the kind '{suffix or path.name}'" if path.exists() else "nothing there"
    raise DataError(f"{path}: expected {UNDERSTOOD}, got {got}. Check the path.")


def _check_form(data: TensorData, size: tuple[int, int] | None, channels: int | None) -> None:
    """Raises DataError unless the arrays already have the asked-for size and channels."""
    shape = tuple(data.images.shape[1:])
    if (size and shape[1:] != tuple(size)) or (channels and shape[0] != channels):
        rule = "×".join(str(number or "?") for number in (channels, *(size or (None, None))))
        raise DataError(
            f"{data.source}: expected images of {rule} (channels × height × width), "
            f"got {'×'.join(str(number) for number in shape)}. Arrays are not resized: save them in that shape."
        )
