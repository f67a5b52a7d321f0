"""An ONNX file of a stranger, looked through without onnxruntime: what no graph of petm has is refused."""

import mmap
from collections.abc import Iterator
from pathlib import Path

from petm.errors import BundleError

_DEEPEST = 32
_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
_LOOPS = frozenset(("Loop", "Scan"))
_BELOW = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""ONNX's messages, by the numbers of the fields in which they lie."""
_TEXTS = {("node", 4): "operator", ("node", 7): "domain", ("function", 10): "own domain", ("entry", 2): "entry"}


def check_graph(path: Path) -> None:
    """Raises BundleError where a graph has operators of others, a loop, or data outside ``NAME.onnx.data``."""
    own, used = {*_DOMAINS}, set[str]()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for kind, text in _texts(content, 0, len(content), "model", _DEEPEST):
                if kind == "own domain":
                    own.add(text)
                elif kind == "domain":
                    used.add(text)
                elif kind == "operator" and text in _LOOPS:
                    raise ValueError(f"a {text}, which may never end")
                elif kind == "entry" and not text.isdecimal() and text != f"{path.name}.data":
                    raise ValueError(f"weights in {text!a:.100}")
        if strange := sorted(used - own):
            raise ValueError(f"operators of {strange[0]!a:.100}")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected an ONNX graph, got {error}. Export it again.") from error


def _texts(content: mmap.mmap, at: int, end: int, kind: str, depth: int) -> Iterator[tuple[str, str]]:
    """The texts that matter in a message, with what each is."""
    if not depth:
        raise ValueError("messages too deep")
    while at < end:
        key, at = _number(content, at, end)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _number(content, at, end)
            continue
        size, at = _number(content, at, end) if wire == 2 else ({1: 8, 5: 4}.get(wire, end), at)
        if size > end - at:
            raise ValueError("a damaged file")
        if wire == 2 and (below := _BELOW.get(kind, {}).get(field)):
            yield from _texts(content, at, at + size, below, depth - 1)
        elif wire == 2 and (text := _TEXTS.get((kind, field))):
            yield text, content[at : at + min(size, 1000)].decode()
        at += size


def _number(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and the place behind it."""
    number = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return number, at
    raise ValueError("a damaged file")
