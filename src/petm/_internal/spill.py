"""Room for what may be too large for memory: a temporary file, and rows of numbers in memory or in such a file."""

import ctypes
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from petm.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class ScratchFile:
    """A temporary file without a name, which is gone when it is closed, or forgotten, or the process ends.

    Its content lies in the system's cache as far as there is room, and on disk. It is not mapped into memory: pages of
    a mapped file count as the process's own, and a full disk would end the process instead of raising an error.

    Args:
        what: It is to hold, in words for a message.
        cure: What to do where there is no room for it, a sentence for the message.
        folder: Where it lies; absent takes the system's folder for temporary files.
        reserve: Bytes to reserve at once, where the system can.

    Raises:
        RunError: The folder is not there, or has no room.
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
        """Writes bytes, or whatever gives its own as a buffer, from a position on.

        Raises:
            RunError: There is no room.
        """
        left = memoryview(content).cast("B")
        while left:
            try:
                done = _write_at(self._descriptor, left, position)
            except OSError as error:
                self._refuse(error)
            left, position = left[done:], position + done

    def read_into(self, position: int, buffer: Any) -> None:
        """Fills a buffer with what stands from a position on.

        Raises:
            RunError: Nothing was written there.
        """
        done, left = _read_at(self._descriptor, buffer, position), memoryview(buffer).cast("B")
        while left := left[done:]:  # a single call reads 2 GiB at most
            done, position = _read_at(self._descriptor, left, position + done), position + done
            if not done:
                raise RunError(f"{self.folder}: expected {self.what} at {position:,}, got the end of the file.")

    def _refuse(self, error: OSError) -> NoReturn:
        raise RunError(f"{self.folder}: expected room for {self.what}, got {error.strerror}. {self.cure}") from error


_moving = threading.Lock()
"""Held where a file's position is moved, which all threads share: on Windows there is no other way."""


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


class RowStore(Protocol):
    """Room for ``N`` rows of ``F`` numbers."""

    def write(self, start: int, rows: "Tensor") -> None:
        """Writes rows ``(n, F)``, on any device and of any float type, from row ``start`` on."""

    def read(self, indices: "Sequence[int] | Tensor") -> "Tensor":
        """Returns the rows at ``indices``, ``(n, F)``, in that order, on the CPU."""


@contextmanager
def row_store(
    samples: int, width: int, dtype: "torch.dtype", *, budget: int, folder: str | Path | None = None
) -> Iterator[RowStore]:
    """Yields room for rows of features, which is gone at the end of the block.

    In a file a row is read by a system call of its own, straight into the tensor that is returned: what the system has
    in its cache comes as fast as from memory, and no page of the file counts as the process's memory.

    Args:
        samples: ``N``.
        width: ``F``, at least 1.
        dtype: Of the numbers.
        budget: Bytes that may lie in memory; more goes into a temporary file.
        folder: Where that file goes; absent takes the system's folder for temporary files.

    Raises:
        RunError: The folder has no room for the file, all of which is reserved at once.
    """
    import torch

    size = dtype.itemsize * samples * width
    if size <= budget:
        yield _InMemory(torch.empty(samples, width, dtype=dtype))
        return
    cure = "Free space, name another cache_folder, or raise cache_budget to keep them in memory."
    file = ScratchFile(f"{size:,} bytes of features", cure, folder=folder, reserve=size)
    try:
        yield _InFile(file, width, dtype)
    finally:
        file.close()


class _InMemory:
    def __init__(self, rows: "Tensor") -> None:
        self.rows = rows

    def write(self, start: int, rows: "Tensor") -> None:
        self.rows[start : start + len(rows)] = rows

    def read(self, indices: "Sequence[int] | Tensor") -> "Tensor":
        import torch

        return self.rows[torch.as_tensor(indices, dtype=torch.int64)]


class _InFile:
    def __init__(self, file: ScratchFile, width: int, dtype: "torch.dtype") -> None:
        self.file, self.width, self.dtype = file, width, dtype
        self.row_bytes = width * dtype.itemsize

    def write(self, start: int, rows: "Tensor") -> None:
        self.file.write(start * self.row_bytes, _bytes_of(rows.to("cpu", self.dtype).contiguous()))

    def read(self, indices: "Sequence[int] | Tensor") -> "Tensor":
        import torch

        wanted: list[int] = torch.as_tensor(indices, dtype=torch.int64).tolist()
        rows = torch.empty(len(wanted), self.width, dtype=self.dtype)
        for index, row in zip(wanted, _bytes_of(rows), strict=True):
            self.file.read_into(index * self.row_bytes, row)
        return rows


def _bytes_of(rows: "Tensor") -> "NDArray[np.uint8]":
    """The memory of rows as ``(n, bytes of a row)``; NumPy itself has no bfloat16."""
    import torch

    return rows.view(torch.uint8).numpy()


def give_back_blocks() -> None:
    """Gives freed memory back to the system between two computations of different kinds, where the C library is glibc.

    What one of them has used and freed, in blocks of its own sizes, the next can rarely use: their peaks would add up.
    """
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
