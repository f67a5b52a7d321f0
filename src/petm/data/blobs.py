"""Encoded images of Parquet files: in memory as long as they are few, else in a temporary file."""

from array import array
from typing import Any

import numpy as np

from petm._internal.spill import ScratchFile

HELD = 32 << 20
"""Bytes up to which encoded images lie in memory."""


class Blobs:
    """Encoded images that are appended, and then read one by one in any order.

    From Parquet, images can be read in groups of rows only: a shuffled batch would take a whole group for each of its
    images. Copied once into a file of its own, every image is one short read away, and memory holds 8 bytes for it.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._file: ScratchFile | None = None
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, images: Any) -> None:
        """Appends a pyarrow array of large_binary without nulls.

        Raises:
            RunError: There is no room for the temporary file.
        """
        _, offsets, content = images.buffers()
        ends = np.frombuffer(offsets, np.int64)[images.offset :][: len(images) + 1]
        self._add(memoryview(content)[ends[0] : ends[-1]])
        self._ends.frombytes((ends[1:] - ends[0] + self._ends[-1]).tobytes())

    def __getitem__(self, row: int) -> bytes:
        start, end = self._ends[row], self._ends[row + 1]
        if self._file is None:
            return bytes(memoryview(self._held)[start:end])
        image = bytearray(end - start)
        self._file.read_into(start, image)
        return bytes(image)

    def _add(self, content: memoryview) -> None:
        if self._file is None and len(self._held) + len(content) > HELD:
            cure = "Free space, or name another folder for temporary files in the environment (TMPDIR)."
            self._file = ScratchFile("the encoded images", cure)
            self._file.write(0, self._held)
            self._held = bytearray()
        if self._file is None:
            self._held += content
        else:
            self._file.write(self._ends[-1], content)
