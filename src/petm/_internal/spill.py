"""Data that may be too large for memory: temporary files, and rows of numbers in memory or in such a file."""

import ctypes
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from petm.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class ScratchFile:
    """A temporary file without a name, removed when it is closed or collected, or when the process ends.

    It is not mapped into memory: pages of a mapped file count as the process's own, and a full disk would end the
    process instead of raising an error. All methods raise `RunError` where the folder is missing or full.

    Args:
        what: Name of the content in messages.
        cure: Next step in messages about a full folder, a sentence.
        folder: Folder of the file; absent takes the system's folder for temporary files.
        reserve: Bytes to reserve at once, where the system can.
    """

    def __init__(self, what: str, cure: str, *, folder: str | Path | None = None, reserve: int = 0) -> None:
        self.folder, self.what, self.cure = Path(folder or tempfile.gettempdir()), what, cure
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="petm-") as file:
                if reserve and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, reserve)
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            self._refuse(error)
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def write(self, position: int, content: Any) -> None:
        """Writes bytes, or a buffer of them, from a position on."""
        left = memoryview(content).cast("B")
        while left:
            try:
                done = _write_at(self._descriptor, left, position)
            except OSError as error:
                self._refuse(error)
            left, position = left[done:], position + done

    def read_into(self, position: int, buffer: Any) -> None:
        """Fills a buffer with the content from a position on."""
        done, left = _read_at(self._descriptor, buffer, position), memoryview(buffer).cast("B")
        while left := left[done:]:  # a single call reads 2 GiB at most
            done, position = _read_at(self._descriptor, left, position + done), position + done
            if not done:
                raise RunError(f"{self.folder}: expected {self.what} at {position:,}, got the end of the file.")

    def _refuse(self, error: OSError) -> NoReturn:
        raise RunError(f"{self.folder}: expected room for {self.what}, got {error.strerror}. {self.cure}") from error


_moving = threading.Lock()
"""Lock for Windows, where reading and writing move the position that all threads share."""


def _write_at(descriptor: int, content: memoryview, position: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, position)
    with _moving:
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.write(descriptor, content)


def _read_at(descriptor: int, buffer: Any, position: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, (buffer,), position)
    view = memoryview(buffer).cast("B")
    with _moving:
        os.lseek(descriptor, position, os.SEEK_SET)
        content = os.read(descriptor, len(view))
    view[: len(content)] = content
    return len(content)


class RowStore:
    """Storage for ``N`` rows of ``F`` numbers, in memory or in a temporary file.

    Args:
        samples: Number of rows ``N``.
        width: Numbers in a row ``F``, at least 1.
        dtype: Type of the numbers.
        budget: Most bytes to keep in memory; above, a temporary file is used.

    Attributes:
        held_bytes: Bytes in memory; 0 where a file is used.

    Raises:
        RunError: The folder has no room for the file, which is reserved as a whole.
    """

    def __init__(self, samples: int, width: int, dtype: "torch.dtype", *, budget: int) -> None:
        import torch

        self._row_bytes = dtype.itemsize * width
        size = samples * self._row_bytes
        self._file: ScratchFile | None = None
        if size > budget:
            cure = "Free space, name another folder by TMPDIR, or raise cache_budget to keep them in memory."
            self._file = ScratchFile(f"{size:,} bytes of features", cure, reserve=size)
        self._rows = torch.empty(0 if self._file else samples, width, dtype=dtype)
        self.held_bytes = 0 if self._file else size

    def write(self, start: int, rows: "Tensor") -> None:
        """Writes rows ``(n, F)``, on any device and of any float type, from row ``start`` on."""
        if self._file is None:
            self._rows[start : start + len(rows)] = rows
        else:
            self._file.write(start * self._row_bytes, _bytes_of(rows.to("cpu", self._rows.dtype).contiguous()))

    def read(self, indices: "Sequence[int] | Tensor") -> "Tensor":
        """Returns the rows at ``indices``, ``(n, F)``, in that order, on the CPU."""
        import torch

        wanted = torch.as_tensor(indices, dtype=torch.int64)
        if self._file is None:
            return self._rows[wanted]
        rows = self._rows.new_empty(len(wanted), self._rows.shape[1])
        for index, row in zip(wanted.tolist(), _bytes_of(rows), strict=True):
            self._file.read_into(index * self._row_bytes, row)
        return rows

    def close(self) -> None:
        """Removes the file, if there is one."""
        if self._file is not None:
            self._file.close()


def _bytes_of(rows: "Tensor") -> "NDArray[np.uint8]":
    """The memory of rows as ``(n, bytes of a row)``; NumPy has no bfloat16."""
    import torch

    return rows.view(torch.uint8).numpy()


def give_back_blocks() -> None:
    """Returns freed memory to the system between two computations, with glibc; otherwise their peaks may add up."""
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
