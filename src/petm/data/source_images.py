"""Image files, alone, in folders, or in a list of paths."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path

from petm._internal.storage import Located, RemotePath
from petm.data.image_folder import is_image
from petm.data.source import Rows, Source, chunks
from petm.errors import DataError

Found = tuple[str | RemotePath, str | None]
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
        """Returns a SHA-256 over all paths, and on this machine over sizes and times of change."""
        return self._seen[1]

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the files from ``start`` to before ``stop``, up to ``size`` at a time."""
        found = islice(self._find(), start, stop)
        yield from chunks(((str(path), None, _located(path), label) for path, label in found), size)

    def part(self, start: int, stop: int) -> "ImageFiles":
        """Returns some of the files as a list of their paths, which nobody has to look for again."""
        return listed(tuple(islice(self._find(), start, stop)), self.name)

    def parts(self, size: int) -> Iterator[Source]:
        """Yields all files in lists of up to ``size``, found in one go."""
        found = self._find()
        while some := tuple(islice(found, size)):
            yield listed(some, self.name)

    @cached_property
    def _seen(self) -> tuple[int, str]:
        count, digest = 0, hashlib.sha256()
        for path, _ in self._find():
            count += 1
            digest.update(os.fsencode(str(path)) + b"\0")
            with suppress(OSError):
                state = os.stat(path) if isinstance(path, str) else None
                digest.update(f"{state and (state.st_size, state.st_mtime_ns)}\0".encode())
        return count, digest.hexdigest()


def listed(paths: Sequence[Found], name: str = "images") -> ImageFiles:
    """Returns the files of a list."""
    return ImageFiles(name, lambda: iter(paths))


def in_folder(folder: Located) -> ImageFiles:
    """Returns the images below a folder in the order of their paths; hidden ones are left out.

    An image in a sub-folder bears the name of the outermost one as its label. Links to folders are not followed.

    Raises:
        DataError: The folder cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, got none. Check the path.")
    return ImageFiles(str(folder), lambda: _below(held(folder), None))


def _below(folder: str | RemotePath, label: str | None) -> Iterator[Found]:
    for name, path, is_folder in _entries(folder):
        if is_folder:
            try:
                yield from _below(path, label or name)
            except DataError:  # a row with a reason, as of a file that cannot be read
                yield path, label or name
        elif is_image(name):
            yield path, label


def _entries(folder: str | RemotePath) -> Iterator[tuple[str, str | RemotePath, bool]]:
    """Name, path and whether it is a folder, of what is not hidden, in the order of the names."""
    if isinstance(folder, RemotePath):
        yield from ((path.name, path, is_folder) for path, is_folder in folder.entries() if path.name[0] != ".")
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder of images, got: {error.strerror}. Check the path.") from error
    for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder or entry.is_file():
            yield entry.name, entry.path, is_folder


def held(place: Located) -> str | RemotePath:
    """Returns a path as a list of `Found` holds it: on this machine as text, of which there may be millions."""
    return place if isinstance(place, RemotePath) else str(place)


def _located(path: str | RemotePath) -> Located:
    return Path(path) if isinstance(path, str) else path
