"""Arrays in files: NumPy archives of images and labels, and the idx files of MNIST."""

import gzip
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from petm._internal.storage import Located, open_binary
from petm.errors import DataError

_BROKEN = (
    OSError, ValueError, TypeError, EOFError, RuntimeError, NotImplementedError, KeyError, SyntaxError, MemoryError,
    OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile and NumPy raise for a damaged archive."""
_CHUNK = 1 << 20
"""Bytes that are read at a time."""


class ArrayArchive:
    """The array ``images``, ``x`` or ``inputs`` of a NumPy archive, and ``labels`` or ``y`` if it is there.

    Grey images ``(N, H, W)`` get a channel, uint8 images ``(N, H, W, C)`` with 1 or 3 channels become ``(N, C, H, W)``,
    and others keep their shape; ``inputs`` keep it in any case, such as signals ``(N, C, L)``. ``labels`` are None, or
    ``(N,)`` or ``(N, K)`` of any dtype. No array is unpickled.

    Raises:
        DataError: The file is no such archive or is damaged, the array of images is missing or of an unsuitable dtype
            or shape, or there is not one label for each image.
    """

    def __init__(self, path: Located) -> None:
        self.path = path
        try:
            with open_binary(path) as file, zipfile.ZipFile(file) as archive:
                names = [Path(name).stem for name in archive.namelist()]
                found = next((name for name in ("images", "x", "inputs") if name in names), None)
                label = next((name for name in ("labels", "y") if name in names), None)
                self.labels = _whole(archive, f"{label}.npy") if label else None
                if found is not None:
                    self._member = f"{found}.npy"
                    with archive.open(self._member) as stream:
                        self._shape, self._in_rows, self._dtype = _header(stream)
        except _BROKEN as error:
            raise self._broken(error) from error
        if found is None:
            wanted, got = "an array 'images', 'x' or 'inputs'", ", ".join(names) or "nothing"
            raise DataError(f"{path}: expected {wanted}, got {got}. Rename the array of images.")
        if self._dtype.hasobject:
            raise self._broken(ValueError(f"an array of {self._dtype}"))
        self._as_is = found == "inputs"
        self._shaped(np.empty((0, *self._shape[1:]) if self._shape else (), self._dtype))
        if self.labels is not None and (self.labels.shape[:1] != self._shape[:1] or self.labels.ndim > 2):
            raise DataError(f"{path}: expected labels for {len(self)} samples, got those of shape {self.labels.shape}.")

    def __len__(self) -> int:
        return int(self._shape[0])

    def images(self, start: int, stop: int, size: int) -> Iterator[tuple[int, NDArray[np.generic]]]:
        """Yields uint8 or float32 ``(n, ...)``, ``n <= size``, each with the row of its first image.

        Raises:
            DataError: The file is damaged.
        """
        stop = min(stop, len(self))
        try:
            with open_binary(self.path) as file, zipfile.ZipFile(file) as archive, archive.open(self._member) as stream:
                _header(stream)
                whole = None if self._in_rows else _whole(archive, self._member)  # by columns: no row stands together
                if whole is None:
                    stream.seek(start * self._dtype.itemsize * math.prod(self._shape[1:]), os.SEEK_CUR)
                for first in range(start, stop, size):
                    count = min(size, stop - first)
                    part = whole[first : first + count] if whole is not None else self._read(stream, count)
                    yield first, self._shaped(part)
        except _BROKEN as error:
            raise self._broken(error) from error

    def _read(self, stream: IO[bytes], count: int) -> NDArray[np.generic]:
        part = np.empty((count, *self._shape[1:]), self._dtype)
        left = part.reshape(-1).view(np.uint8).data
        while left:
            read = stream.readinto(left[:_CHUNK])  # type: ignore[attr-defined]  # zipfile's stream has it
            if not read:
                raise EOFError("the end of the file in the middle of the array")
            left = left[read:]
        return part

    def _shaped(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        if not self._as_is or part.ndim < 2:
            return with_channels(part, str(self.path))
        return with_channels(part.reshape(len(part), math.prod(part.shape[1:])), str(self.path)).reshape(part.shape)

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: expected an npz archive of plain arrays, got: {str(error).rstrip('.')}. "
            f"Save images and labels as numbers with numpy.savez; nothing is loaded through pickle."
        )


def with_channels(images: NDArray[np.generic], source: str) -> NDArray[np.generic]:
    """Returns uint8 or float32 ``(N, C, H, W)``, ``(N, C, D, H, W)`` or ``(N, D)``, contiguous.

    Raises:
        DataError: The dtype or the shape is another one.
    """
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{source}: expected images of dtype uint8 or float, got {images.dtype}. Convert them.")
    if images.ndim not in (2, 3, 4, 5):
        wanted = "images (N, H, W), (N, H, W, C), (N, C, H, W), volumes (N, C, D, H, W) or features (N, D)"
        raise DataError(f"{source}: expected {wanted}, got {images.ndim} dimensions. Reshape them.")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused by name later
        return np.ascontiguousarray(images, dtype=np.uint8 if images.dtype == np.uint8 else np.float32)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Returns the images of an idx3 file, uint8 ``(N, H, W)``, or the labels of an idx1 file, uint8 ``(N,)``.

    The format is a magic number, big-endian sizes, then unsigned bytes; plain or gzip.

    Raises:
        DataError: The file is damaged, or is no such file.
    """
    content = read_content(path)
    start, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if not content.startswith(start) or len(content) < header:
        got = content[:header].hex(" ") or "an empty file"
        wanted = f"an idx file of bytes in {dimensions} dimensions (it starts with {start.hex(' ')}, and sizes)"
        raise DataError(f"{path}: expected {wanted}, got {got}. Check that images and labels are not swapped.")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if not len(content) - header == math.prod(sizes) > 0:
        wanted = f"{'×'.join(map(str, sizes))} = {math.prod(sizes)} bytes, at least one"
        raise DataError(f"{path}: expected {wanted}, got {len(content) - header}. Fetch it again.")
    return np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(sizes)


def read_content(path: Path) -> bytes:
    """Returns the uncompressed bytes of a file that is plain or gzip; raises DataError where it cannot be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a readable file, got: {error}. Fetch it again.") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Shape, whether rows stand together, and dtype of an array, after which its content begins."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    return shape, not by_columns or len(shape) < 2, dtype


def _whole(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    with archive.open(member) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array
