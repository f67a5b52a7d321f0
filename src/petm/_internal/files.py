"""Files that are either whole or absent: atomic writing, and the hashes that identify content."""

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from petm.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

REPLACE = "replace it with overwrite=True (--overwrite)"
"""The end of a message about something that exists; the command line shows the option alone."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that a reader, or a crash, sees either the old content or the whole new one.

    Args:
        path: The file to write; its folder is made when absent.
        write: Function that fills the temporary file, in the same folder, whose path it gets.

    Raises:
        RunError: The file could not be written (no space, no permission); the old content is kept.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("xb").close()
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: could not be written ({reason}). Free space or choose another folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically; raises as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` as indented JSON, atomically; raises as `write_atomically` does."""
    write_text(path, to_json(content, indent=2) + "\n")


def check_new_file(path: Path, *suffixes: str, overwrite: bool) -> None:
    """Raises `RunError` unless a file of one of these kinds may be written to ``path``."""
    if path.suffix.lower() not in suffixes:
        raise RunError(f"{path}: expected a name that ends in {', '.join(suffixes)}. Choose another name.")
    if path.is_dir():
        raise RunError(f"{path}: expected a file to write, got a folder. Choose another name.")
    if path.exists() and not overwrite:
        raise RunError(f"{path}: expected no such file yet. Choose another name, or {REPLACE}.")


def check_room(folder: Path, size: int, what: str) -> None:
    """Raises `RunError` unless ``size`` bytes fit onto the disk of a folder, which need not exist yet."""
    there = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    if free < size:
        raise RunError(f"{folder}: expected room for {size:,} bytes of {what}, got {free:,}. Free space.")


def to_json(content: Any, *, indent: int | None = None) -> str:
    """Returns `plain` content as JSON that every parser reads: RFC 8259 has no NaN and no infinity."""
    try:  # most content is plain already
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(plain(content), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Returns ``value`` in JSON's types: data classes as objects, paths as text, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: "Iterable[str | Tensor]") -> str:
    """Returns the SHA-256 of texts, and of tensors on any device, as 64 hexadecimal digits.

    Each part enters with its kind, shape and length, so that moving a boundary between two parts changes the result.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"text {len(part.encode())}\n{part}\n".encode())
        else:
            import torch

            digest.update(f"tensor {part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def written_alone(path: Path) -> Iterator[None]:
    """Holds a lock beside ``path`` while the block writes it; raises RunError where another process does so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        release = take_lock(path.with_name(f".{path.name}.lock"))
    except BlockingIOError as error:
        raise RunError(f"{path}: is being written by another process. Wait for it, or choose another name.") from error
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror}). Choose another folder.") from error
    try:
        yield
    finally:
        release()


def take_lock(path: Path) -> Callable[[], None]:
    """Takes a lock, held by one process at a time, in a file; returns the function that releases it.

    Releasing removes the file. The lock of a killed process is free, though its file remains.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{path} is locked") from error

    def release() -> None:
        with suppress(OSError):  # before the release, so that nobody has just opened it; Windows keeps an open file
            path.unlink()
        lock.release()

    return release
