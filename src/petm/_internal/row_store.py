"""Rows of numbers that are written once and read many times: in memory within a budget, else in a temporary file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petm._internal.scratch import ScratchFile


class RowStore(Protocol):
    """Room for ``N`` rows of ``F`` numbers."""

    def write(self, start: int, rows: Tensor) -> None:
        """Writes rows ``(n, F)``, on any device and of any float type, from row ``start`` on."""

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns the rows at ``indices``, ``(n, F)``, in that order, on the CPU."""


@contextmanager
def row_store(
    samples: int,
    width: int,
    dtype: torch.dtype,
    *,
    budget: int,
    folder: str | Path | None = None,
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
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def write(self, start: int, rows: Tensor) -> None:
        self.rows[start : start + len(rows)] = rows

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self.rows[torch.as_tensor(indices, dtype=torch.int64)]


class _InFile:
    def __init__(self, file: ScratchFile, width: int, dtype: torch.dtype) -> None:
        self.file, self.width, self.dtype = file, width, dtype
        self.row_bytes = width * dtype.itemsize

    def write(self, start: int, rows: Tensor) -> None:
        self.file.write(start * self.row_bytes, _bytes_of(rows.to("cpu", self.dtype).contiguous()))

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted: list[int] = torch.as_tensor(indices, dtype=torch.int64).tolist()
        rows = torch.empty(len(wanted), self.width, dtype=self.dtype)
        for index, row in zip(wanted, _bytes_of(rows), strict=True):
            self.file.read_into(index * self.row_bytes, row)
        return rows


def _bytes_of(rows: Tensor) -> NDArray[np.uint8]:
    """The memory of rows as ``(n, bytes of a row)``; NumPy itself has no bfloat16."""
    return rows.view(torch.uint8).numpy()
