"""NumPy archives: arrays of images and labels in one file."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from petm.data.base import TensorData
from petm.data.classes import match_classes
from petm.errors import DataError

IMAGE_NAMES = ("images", "x")
LABEL_NAMES = ("labels", "y")


def load_npz(path: str | Path, *, classes: Sequence[str] | None = None) -> TensorData:
    """Returns the samples of a NumPy archive: the array ``images`` or ``x``, and ``labels`` or ``y`` if it is there.

    Grey images ``(N, H, W)`` get a channel, uint8 images ``(N, H, W, C)`` with 1 or 3 channels last are turned to
    ``(N, C, H, W)``, and everything else keeps its shape. Bytes are divided by 255 when read; floats stay as they are.

    Args:
        path: The archive; pickled arrays in it are refused.
        classes: The class names that the labels count in.

    Returns:
        uint8 or float32 images and int64 labels, in memory.

    Raises:
        DataError: The file is no such archive or is damaged, an array is missing, or has an unsuitable dtype, shape,
            length or value.
    """
    path, source = Path(path), str(path)
    try:
        with path.open("rb") as file:  # NumPy itself leaves a damaged file open
            if not zipfile.is_zipfile(file):
                raise ValueError("a truncated file, or one of another kind")
            file.seek(0)
            archive: NpzFile = np.load(file, allow_pickle=False)
            found = ", ".join(archive.files) or "nothing"
            images = next((archive[name] for name in IMAGE_NAMES if name in archive), None)
            labels = next((archive[name] for name in LABEL_NAMES if name in archive), None)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{source}: expected an npz archive of plain arrays, got: {str(error).rstrip('.')}. "
            f"Save images and labels as numbers with numpy.savez; nothing is loaded through pickle."
        ) from error
    if images is None:
        raise DataError(f"{source}: expected an array 'images' or 'x', got {found}. Rename the array of images.")
    if not len(images := with_channels(images, source)):
        raise DataError(f"{source}: expected at least one image, got none. Name other data.")
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{source}: expected integer labels, got {labels.dtype}. Save the class numbers.")
    data = TensorData(
        torch.from_numpy(images), None if labels is None else torch.from_numpy(labels.astype(np.int64)), source=source
    )
    data.labels, data.classes = match_classes(data.labels, (), classes, source)
    return data


def with_channels(images: NDArray[np.generic], source: str) -> NDArray[np.generic]:
    """Returns uint8 or float32 ``(N, C, H, W)`` or ``(N, D)``, contiguous."""
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{source}: expected images of dtype uint8 or float, got {images.dtype}. Convert them.")
    if images.ndim not in (2, 3, 4):
        raise DataError(
            f"{source}: expected images (N, H, W), (N, H, W, C), (N, C, H, W) or features (N, D), "
            f"got the shape {images.shape}. Reshape them."
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused by name later
        return np.ascontiguousarray(images, dtype=np.uint8 if images.dtype == np.uint8 else np.float32)
