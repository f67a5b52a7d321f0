"""Files of lines that one process appends to, and the one that keeps grades."""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from petm._internal.files import take_lock, to_json
from petm.errors import DataError, RunError
from petm.grading.grade_table import SCHEMA

_BLOCK = 1 << 16


class LineFile:
    """A file of lines that is locked by ``NAME.lock`` while it is open.

    Args:
        path: The file, made where it is absent.

    Raises:
        RunError: Another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as opened:
                opened.callback(take_lock(path.with_name(f"{path.name}.lock")))
                self.file = opened.enter_context(path.open("a+b", buffering=0))
                self._opened = opened.pop_all()
        except BlockingIOError as error:
            raise RunError(f"{path}: another process writes it. Wait for it, or choose another file.") from error
        except OSError as error:
            raise RunError(f"{path}: could not be opened ({error.strerror}). Choose another file.") from error

    def mend(self) -> None:
        """Removes a last line without an end, which was cut off before its request was answered."""
        size = end = self.file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            self.file.seek(start)
            at = self.file.read(end - start).rfind(b"\n")
            end = start + at + 1 if at >= 0 else start
            if at >= 0:
                break
        if end < size:
            self.file.truncate(end)

    def write(self, lines: bytes, *, sync: bool) -> None:
        """Appends whole lines; with ``sync`` they are on the disk behind. Nothing changes where it raises RunError."""
        size = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self.file.fileno())
        except OSError as error:
            os.ftruncate(self.file.fileno(), size)
            raise RunError(f"{self.path}: could not be written ({error.strerror}). Free space.") from error

    def close(self) -> None:
        """Closes the file, which another process may then open."""
        self._opened.close()


class GradesFile:
    """JSON Lines of what a service grades, in the columns of ``petm grade`` and with the time.

    A killed service loses no line of an answered request; one that was cut off is removed at the next start.

    Args:
        path: The file, made where it is absent, with the suffix ``.jsonl``.

    Raises:
        DataError: It holds other lines.
        RunError: Another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)
        self._lines.file.seek(0)
        first = self._lines.file.read(_BLOCK).partition(b"\n")
        try:
            row = json.loads(first[0]) if first[1] else {}
            if first[1] and not (isinstance(row, dict) and row.keys() >= {"input", "grade", "suspicion"}):
                raise ValueError("others")
        except ValueError as error:
            self._lines.close()
            raise DataError(f"{path}: expected lines of grades, got others. Choose another file.") from error
        self._lines.mend()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows of grades; raises RunError where they cannot be written, and then changes nothing."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        whole = (_columns(row) | {"time": time} for row in rows)
        self._lines.write("".join(to_json(row) + "\n" for row in whole).encode(), sync=False)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row of `SCHEMA`, candidates as text as there."""
    names = row.get("candidates")
    held = {name: row.get(name) for name in SCHEMA.names}
    return held if names is None else held | {"candidates": json.dumps(names, ensure_ascii=False)}
