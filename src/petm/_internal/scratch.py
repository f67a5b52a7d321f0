"""A temporary file that is read and written by position, in plain system calls."""

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, NoReturn

from petm.errors import RunError


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
                done = os.pwrite(self._descriptor, left, position)
            except OSError as error:
                self._refuse(error)
            left, position = left[done:], position + done

    def read_into(self, position: int, buffer: Any) -> None:
        """Fills a buffer with what stands from a position on.

        Raises:
            RunError: Nothing was written there.
        """
        done = os.preadv(self._descriptor, (buffer,), position)
        left = memoryview(buffer).cast("B")[done:]
        while left:  # a single call reads 2 GiB at most
            done, position = os.preadv(self._descriptor, (left,), position + done), position + done
            if not done:
                raise RunError(f"{self.folder}: expected {self.what} at {position:,}, got the end of the file.")
            left = left[done:]

    def _refuse(self, error: OSError) -> NoReturn:
        raise RunError(f"{self.folder}: expected room for {self.what}, got {error.strerror}. {self.cure}") from error
