"""Rows of an array in a NumPy archive, read from the file as they come."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from petm._internal.storage import Located, identity_of, open_binary
from petm.data.npz import IMAGE_NAMES, LABEL_NAMES, with_channels
from petm.data.source import Rows, Source
from petm.errors import DataError


class ArrayFile(Source):
    """The rows of the array ``images`` or ``x`` of a NumPy archive, numbered from 0, as `load_npz` has them.

    Args:
        path: The ``.npz`` file; pickled arrays in it are refused.
        labelled: Whether labels are read.

    Raises:
        DataError: The file is no such archive, or has no such array.
    """

    def __init__(self, path: Located, *, labelled: bool) -> None:
        self.name, self.path = str(path), path
        try:
            with open_binary(path) as file, zipfile.ZipFile(file) as archive:
                names = [Path(name).stem for name in archive.namelist()]
                found = next((name for name in IMAGE_NAMES if name in names), None)
                if found is None:
                    raise DataError(
                        f"{path}: expected an array 'images' or 'x', got {', '.join(names) or 'nothing'}. "
                        f"Rename the array of images."
                    )
                self.member = f"{found}.npy"
                with archive.open(self.member) as stream:
                    self.shape, self.in_rows, self.dtype = _header(stream)
                label = next((name for name in LABEL_NAMES if name in names and labelled), None)
                self.labels = _whole(archive, f"{label}.npy") if label else None
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise self._broken(error) from error
        if self.dtype.hasobject or not self.shape:
            raise self._broken(ValueError(f"an array of {self.dtype} with shape {self.shape}"))
        with_channels(np.empty((0, *self.shape[1:]), self.dtype), str(path))
        if self.labels is not None and self.labels.shape != self.shape[:1]:
            raise DataError(f"{path}: expected one label for each of {self.shape[0]} images, got {self.labels.shape}.")

    def count(self) -> int:
        """Returns how many rows there are."""
        return int(self.shape[0])

    def identity(self) -> str:
        """Returns path, size and time of change."""
        return identity_of(self.path)

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the rows from ``start`` to before ``stop``, up to ``size`` at a time: uint8 or float32 arrays.

        Raises:
            DataError: The file is damaged.
        """
        try:
            with open_binary(self.path) as file, zipfile.ZipFile(file) as archive, archive.open(self.member) as stream:
                _header(stream)
                whole = None if self.in_rows else _whole(archive, self.member)  # by columns: no row stands together
                each = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
                if whole is None:
                    _skip(stream, start * each)
                for first in range(start, min(stop, self.count()), size):
                    count = min(size, min(stop, self.count()) - first)
                    part = whole[first : first + count] if whole is not None else self._read(stream, count, each)
                    yield self._as_rows(first, part)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._broken(error) from error

    def _read(self, stream: Any, count: int, each: int) -> NDArray[Any]:
        content = stream.read(count * each)
        if len(content) != count * each:
            raise EOFError("the end of the file in the middle of the array")
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])

    def _as_rows(self, first: int, part: NDArray[Any]) -> Rows:
        images, n = with_channels(part, str(self.path)), len(part)
        labels = self.labels[first : first + n].tolist() if self.labels is not None else [None] * n
        return Rows([str(self.path)] * n, list(range(first, first + n)), list(images), labels, [None] * n)

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: expected an npz archive of plain arrays, got: {str(error).rstrip('.')}. Save it again."
        )


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether rows stand together, and dtype of an array, after which its content begins."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    return shape, not by_columns or len(shape) < 2, dtype


def _whole(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    with archive.open(member) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array


def _skip(stream: Any, count: int) -> None:
    while count > 0:
        read = len(stream.read(min(count, 1 << 20)))
        if not read:
            raise EOFError("the end of the file before the row to go on with")
        count -= read
