"""Image files, alone, in folders, or in a list of paths."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from petm.data.image_folder import is_image
from petm.errors import DataError
from petm.sources.base import Rows, Source, chunks

Found = tuple[str, str | None]
"""A path, and the name of its class folder, if any."""


class ImageFiles(Source):
    """Image files in a fixed order, of which only the paths under way are held.

    Args:
        name: Of the folder or the list.
        find: What goes through all of them, each time in the same order.
    """

    def __init__(self, name: str, find: Callable[[], Iterator[Found]]) -> None:
        self.name, self._find = name, find

    def count(self) -> int:
        """Returns how many there are."""
        return self._seen[0]

    def identity(self) -> str:
        """Returns a SHA-256 over all paths."""
        return self._seen[1]

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the files from ``start`` to before ``stop``, up to ``size`` at a time."""
        found = islice(self._find(), start, stop)
        yield from chunks(((path, None, Path(path), label) for path, label in found), size)

    def part(self, start: int, stop: int) -> "ImageFiles":
        """Returns some of the files as a list of their paths, which nobody has to look for again."""
        return listed(tuple(islice(self._find(), start, stop)), self.name)

    @cached_property
    def _seen(self) -> tuple[int, str]:
        count, digest = 0, hashlib.sha256()
        for path, _ in self._find():
            count += 1
            digest.update(os.fsencode(path) + b"\0")
        return count, digest.hexdigest()


def listed(paths: Sequence[Found], name: str = "images") -> ImageFiles:
    """Returns the files of a list."""
    return ImageFiles(name, lambda: iter(paths))


def in_folder(folder: Path) -> ImageFiles:
    """Returns the images below a folder in the order of their paths; hidden ones are left out.

    An image in a sub-folder bears the name of the outermost one as its label. Links to folders are not followed.

    Raises:
        DataError: The folder cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, got none. Check the path.")
    return ImageFiles(str(folder), lambda: _below(str(folder), None))


def _below(folder: str, label: str | None) -> Iterator[Found]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder of images, got: {error.strerror}. Check the path.") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, label or entry.name)
        elif is_image(entry.name) and entry.is_file():
            yield entry.path, label
