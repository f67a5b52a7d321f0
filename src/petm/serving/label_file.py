"""Labels that people give to inputs: one line of JSON each, and the inputs beside the file, for the next fit."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from petm._internal.files import to_json, write_atomically
from petm.data.decisions import CANNOT_TELL
from petm.data.labels import folder_name
from petm.data.pixels import formats
from petm.errors import DataError, RunError
from petm.serving.line_file import LineFile

_SUFFIXES = {"JPEG": "jpg", "JPEG2000": "jp2", "MPO": "jpg", "TIFF": "tif"}
_KEPT = re.compile(r"[0-9a-f]{64}\.[a-z0-9]+")


class LabelFile:
    """A JSON Lines file that one process appends to.

    A line is on the disk before its request is answered. Of several lines on one input the last one holds; a label of
    null takes back the one before, unless the ``decision`` is "cannot tell".

    Images are kept in ``NAME.images/CLASS/SHA256.png``, each in the folder of its last
    label: a data set that ``petm fit --data`` reads. Texts are kept in their lines, as ``text``. While the file is
    open, ``NAME.lock`` lies beside it.

    Args:
        path: The file, made where it is absent.

    Attributes:
        lines: All lines, the oldest first.

    Raises:
        DataError: It has other lines.
        RunError: Another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.images = path, path.with_name(f"{path.name}.images")
        self._file = LineFile(path)
        try:
            self.lines = self._read()
        except BaseException:
            self._file.close()
            raise
        self._places: dict[str, str | None] = {line["sha256"]: line.get("path") for line in self.lines}
        self._last = {line["sha256"]: line for line in self.lines}
        self._tidy()

    def check(self, classes: Sequence[str]) -> None:
        """Raises DataError where a line is about another class than the one that now has its number."""
        for line in self.lines:
            number, name = line["label"], line.get("label_name")
            if number is not None and name is not None and name not in classes[number : number + 1]:
                raise DataError(
                    f"{self.path}: expected labels of the grader's classes, got {number} for {name!r}. "
                    f"Choose another file for another grader."
                )

    def has_decision(self, digest: str) -> bool:
        """Returns whether an input of this hash has a label, or the decision that nobody can tell."""
        line = self._last.get(digest)
        return line is not None and (line["label"] is not None or line.get("decision") == CANNOT_TELL)

    @property
    def standing(self) -> list[dict[str, Any]]:
        """The last line on each input, which holds."""
        return list(self._last.values())

    def append(self, record: Mapping[str, Any], raw: bytes, classes: Sequence[str]) -> dict[str, Any]:
        """Returns the line that was written: the record, the hash of the input, its path, and the time.

        ``record`` has a class number or None as ``label``. ``raw`` is the image file; or the text in UTF-8, where
        ``record`` has one as ``text``.

        Raises:
            RunError: The line could not be written; then nothing has changed.
        """
        digest = hashlib.sha256(raw).hexdigest()
        line = {**record, "sha256": digest, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        before, place = self._places.get(digest), None
        if "text" not in record:
            if record["label"] is not None:
                folder = self.images / folder_name(classes[record["label"]])
                place = str((folder / f"{digest}.{_suffix(raw)}").relative_to(self.path.parent))
            line["path"] = place
        if place is not None and place != before:
            write_atomically(self.path.parent / place, lambda temporary: _fill(temporary, raw))
        try:
            self._file.write((to_json(line) + "\n").encode(), sync=True)
        except RunError:
            if place is not None and place != before:
                _remove(self.path.parent / place)
            raise
        if before is not None and before != place:
            _remove(self.path.parent / before)
        self._places[digest], self._last[digest] = place, line
        self.lines.append(line)
        return line

    def close(self) -> None:
        """Closes the file, which another process may then open."""
        self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        self._file.file.seek(0)
        content = self._file.file.read()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if not all(isinstance(line, dict) and isinstance(line.get("label", ""), int | None) for line in lines):
                raise ValueError("a line without the number of a class")
            if not all(isinstance(line.get("sha256"), str) for line in lines):
                raise ValueError("a line without sha256")
        except ValueError as error:
            raise DataError(f"{self.path}: expected lines of labels, got {error}. Choose another file.") from error
        self._file.mend()
        return lines

    def _tidy(self) -> None:
        """Removes images without a line, left by a process that died between an image and its line.

        Where there are no lines at all, the images belong to an older file, and stay.
        """
        known = set(self._places.values())
        for path in self.images.glob("*/*") if known else ():
            if _KEPT.fullmatch(path.name) and str(path.relative_to(self.path.parent)) not in known:
                _remove(path)


def _suffix(raw: bytes) -> str:
    with Image.open(BytesIO(raw), formats=formats()) as image:
        kind = image.format or ""
    return _SUFFIXES.get(kind, kind.lower())


def _remove(path: Path) -> None:
    """Removes an image, and its folder if that is then empty."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)
