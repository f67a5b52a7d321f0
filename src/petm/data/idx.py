"""Files in the idx format of MNIST: a magic number, big-endian sizes, then unsigned bytes; plain or gzip."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from petm.errors import DataError

_KINDS = {1: "labels", 3: "images"}  # by the number of dimensions


def read_idx_images(path: Path) -> Tensor:
    """Returns uint8 ``(N, H, W)``: the images of an idx3 file; raises DataError when it is damaged or no such file."""
    return _read_idx(path, 3)


def read_idx_labels(path: Path) -> Tensor:
    """Returns uint8 ``(N,)``: the labels of an idx1 file; raises DataError when it is damaged or no such file."""
    return _read_idx(path, 1)


def read_content(path: Path) -> bytes:
    """Returns the uncompressed bytes of a file that is plain or gzip, whatever its name says.

    Raises:
        DataError: The file cannot be read, or its gzip stream is truncated or damaged.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a readable file, got: {error}. Fetch it again.") from error


def sha256_of_content(content: bytes) -> str:
    """Returns the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _read_idx(path: Path, dimensions: int) -> Tensor:
    content = read_content(path)
    kind, header = _KINDS[dimensions], 4 + 4 * dimensions
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(
            f"{path}: expected an idx file of unsigned bytes (it starts with 00 00 08), "
            f"got {content[:4].hex(' ') or 'an empty file'}. Fetch it again."
        )
    if content[3] != dimensions:
        other = f", as a file of {_KINDS[content[3]]} has: are the two swapped?" if content[3] in _KINDS else "."
        raise DataError(
            f"{path}: expected idx {kind} with {dimensions} dimensions, got {content[3]}{other} Check the file names."
        )
    if len(content) < header:
        raise DataError(f"{path}: expected a header of {header} bytes, got {len(content)}. Fetch it again.")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    expected, got = math.prod(sizes), len(content) - header
    if got != expected:
        fault = "truncated" if got < expected else "trailing bytes"
        raise DataError(
            f"{path}: expected {'×'.join(map(str, sizes))} = {expected} bytes of {kind}, got {got} ({fault}). "
            f"Fetch it again."
        )
    if not expected:
        raise DataError(f"{path}: expected at least one sample, got sizes {'×'.join(map(str, sizes))}. Fetch it again.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(sizes)
