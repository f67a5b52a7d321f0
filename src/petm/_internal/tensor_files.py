"""Safetensors files of strangers: their list of tensors, checked against the file before anything is read or hashed."""

import json
import math
from pathlib import Path

from petm._internal.records import LONGEST_FILE

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}
_SURELY_DENSE, _FEWEST_HELD = 1 << 30, 1 / 16


def tensors_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of each tensor in a safetensors file, by name.

    Raises:
        ValueError: It is no file, or not a whole one; its list of tensors is too long or says other sizes than the
            file has; or the disk holds next to nothing of it (a file of holes may have any size).
    """
    check_dense(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_FILE:
            raise ValueError(f"a list of tensors of {length:,} bytes")
        listed = file.read(length)
    try:
        content = json.loads(listed)
    except RecursionError as error:
        raise ValueError("too deep a list of tensors") from error
    if not isinstance(content, dict):
        raise ValueError("no list of tensors")
    found = {name: _tensor(name, entry) for name, entry in content.items() if name != "__metadata__"}
    size = 8 + length + sum(_BITS[kind] // 8 * math.prod(shape) for kind, shape in found.values())
    if size != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size:,} bytes where its tensors take {size:,}")
    return found


def check_dense(path: Path) -> None:
    """Raises ValueError where ``path`` is no regular file, or is a large one that is nearly all holes."""
    if not path.is_file():
        raise ValueError("no file")
    held = path.stat()
    on_disk = getattr(held, "st_blocks", 0) * 512  # 0 where the system does not say
    if held.st_size > _SURELY_DENSE and 0 < on_disk < held.st_size * _FEWEST_HELD:
        raise ValueError(f"{held.st_size:,} bytes, of which the disk holds {on_disk:,}")


def _tensor(name: str, entry: object) -> tuple[str, tuple[int, ...]]:
    kind, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    sides = [side for side in shape if type(side) is int and side >= 0] if isinstance(shape, list) else None
    if not isinstance(kind, str) or kind not in _BITS or sides is None or sides != shape:
        raise ValueError(f"the tensor {name!a:.100} of dtype {kind!a:.20} and shape {shape!a:.60}")
    return kind, tuple(sides)
