"""Files by path on this machine, or by address in a store that Arrow supports: ``s3://bucket/folder``, ``gs://…``.

Keys, regions and endpoints come from the settings of the store's own tools, or from the address.
"""

import io
import re
import stat
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from petm.errors import DataError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_BUCKETS = ("s3", "gs", "gcs")
_KEYS = re.compile(r"//[^/@]*@")
_BUFFER = 1 << 20
"""Bytes of one request, which takes a round trip to the store."""


@dataclass(frozen=True)
class RemotePath:
    """A file or a folder in a store, with some methods of `pathlib.Path`; as text, its address without keys.

    All methods raise `DataError` where the store cannot be reached; only `read_bytes` raises `OSError`.

    Attributes:
        filesystem: A ``pyarrow.fs.FileSystem``.
        key: Path in the file system.
        scheme: Scheme of the address.
    """

    filesystem: Any
    key: str
    scheme: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return PurePosixPath(self.key).suffix

    def __truediv__(self, name: str) -> "RemotePath":
        return replace(self, key=str(PurePosixPath(self.key) / name))

    def exists(self) -> bool:
        """Returns whether it exists."""
        return bool(self.info().type.name != "NotFound")

    def is_dir(self) -> bool:
        """Returns whether it is a folder."""
        return bool(self.info().type.name == "Directory")

    def is_file(self) -> bool:
        """Returns whether it is a file."""
        return bool(self.info().is_file)

    def read_bytes(self) -> bytes:
        """Returns the content of a file."""
        with self.filesystem.open_input_stream(self.key) as file:
            return bytes(file.read())

    def entries(self) -> list[tuple["RemotePath", bool]]:
        """Returns the entries of a folder, ordered by name, each with whether it is a folder."""
        from pyarrow.fs import FileSelector

        try:
            found = self.filesystem.get_file_info(FileSelector(self.key))
        except OSError as error:
            raise _unreachable(self, error) from error
        found.sort(key=lambda info: info.base_name)
        return [(replace(self, key=info.path), not info.is_file) for info in found]

    def matching(self) -> list["RemotePath"]:
        """Returns the paths that match this one, ordered, where ``*`` stands for anything but ``/``."""
        parts = PurePosixPath(self.key).parts
        fixed = next((place for place, part in enumerate(parts) if "*" in part), len(parts))
        found = [(replace(self, key=str(PurePosixPath(*parts[:fixed]))), True)]
        for pattern in parts[fixed:]:
            found = [
                (child, is_folder)
                for folder, opens in found
                if opens
                for child, is_folder in folder.entries()
                if fnmatchcase(child.name, pattern)
            ]
        return [place for place, _ in found]

    def info(self) -> Any:
        """Returns Arrow's ``FileInfo``."""
        try:
            return self.filesystem.get_file_info(self.key)
        except OSError as error:
            raise _unreachable(self, error) from error


Located = Path | RemotePath
"""A file or a folder on this machine or in a store."""


def locate(where: str | Path) -> Located:
    """Returns a path on this machine, or in a store.

    Args:
        where: A path; or an address, ``scheme://…``, percent-encoded, with settings of the store after a ``?``.

    Raises:
        DataError: The scheme is unknown, or the store cannot be reached.
    """
    if isinstance(where, Path) or not _ADDRESS.match(where):
        return Path(where)
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    parts = urlsplit(where)
    try:
        if parts.scheme in _BUCKETS:  # one connection for a bucket, for any number of files
            bucket = parts.netloc.rpartition("@")[2]
            key = unquote(f"{bucket}{parts.path}").rstrip("/")
            return RemotePath(_bucket(parts.scheme, parts.netloc, parts.query), key, parts.scheme)
        filesystem, key = FileSystem.from_uri(where)
        return RemotePath(filesystem, key, parts.scheme)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreachable(f"{parts.scheme}://…", error) from error


@cache
def _bucket(scheme: str, authority: str, settings: str) -> Any:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}://{authority}/?{settings}")[0]


def open_binary(place: Located) -> Any:
    """Returns a file opened for reading at any position; raises OSError where it cannot be, as a pipe or a device."""
    if isinstance(place, Path):
        check_regular(place)
        return place.open("rb")
    return io.BufferedReader(place.filesystem.open_input_file(place.key), _BUFFER)


def check_regular(path: Path, most: int | None = None) -> None:
    """Raises OSError unless a path is that of a file, of at most ``most`` bytes; opening a pipe might never end."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(f"{path}: a folder, a pipe or a device")
    if most is not None and state.st_size > most:
        raise OSError(f"{path}: a file of {state.st_size:,} bytes, more than {most:,}")


def for_arrow(place: Located) -> tuple[str, Any]:
    """Returns path and file system for functions of Arrow."""
    return (str(place), None) if isinstance(place, Path) else (place.key, place.filesystem)


def identity_of(place: Located) -> str:
    """Returns path, size and time of change of a file; raises OSError or DataError without one."""
    if isinstance(place, RemotePath):
        info = place.info()
        return f"{place} {info.size} {info.mtime_ns}"
    state = place.stat()
    return f"{place} {state.st_size} {state.st_mtime_ns}"


def _unreachable(where: object, error: Exception) -> DataError:
    reason = _KEYS.sub("//…@", str(error).splitlines()[0].rstrip("."))
    return DataError(f"{where}: expected a store that can be reached, got: {reason}. Check address, keys and region.")
