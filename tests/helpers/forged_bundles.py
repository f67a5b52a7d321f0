"""Bundles as a forger would write them: any entry, and a checksum that fits."""

import hashlib
import json
from pathlib import Path
from typing import Any


def forge(bundle: Path, where: str, value: Any) -> None:
    """Puts a value into the manifest, or takes an entry out of it where it is ..., and makes the checksum fit."""
    content: dict[str, Any] = json.loads((bundle / "petm.json").read_text())
    del content["checksum"]
    *path, last = where.split("/")
    entry: Any = content
    for step in path:
        entry = entry[int(step) if isinstance(entry, list) else step]
    at: Any = int(last) if isinstance(entry, list) else last
    if value is ...:
        del entry[at]
    else:
        entry[at] = value
    seal(bundle, content)


def seal(bundle: Path, content: dict[str, Any]) -> None:
    """Writes a manifest with a checksum that fits."""
    text = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(f"text {len(text)}\n{text}\n".encode()).hexdigest()
    (bundle / "petm.json").write_text(json.dumps(content | {"checksum": checksum}))


def seal_files(bundle: Path) -> None:
    """Makes the hashes of the manifest fit the files."""
    content: dict[str, Any] = json.loads((bundle / "petm.json").read_text())
    del content["checksum"]
    content["files"] = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in content["files"]}
    seal(bundle, content)
