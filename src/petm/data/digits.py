"""Handwritten digits: those of scikit-learn, and MNIST from a folder or a mirror."""

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from torch.nn import functional as F

from petm._internal.files import write_atomically
from petm._internal.progress import track
from petm.data.arrays import read_idx
from petm.data.base import Data, TensorData
from petm.data.labels import match_classes
from petm.errors import DataError

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the uncompressed files: mirrors compress them differently."""

DATA_DIR_VARIABLE = "PETM_DATA_DIR"


def load_digits(*, splits: Sequence[float] = (0.4, 0.1, 0.5), seed: int = 0) -> tuple[Data, ...]:
    """Returns stratified parts of scikit-learn's 1,797 handwritten digits, enlarged to the shape of MNIST.

    The 8×8 images with values 0 to 16 are divided by 16 and resized bilinearly to the 28×28 of the paper's CNN.

    Args:
        splits: The share of the samples of each class in each part; by default train, calibration and test. Half is
            for the test because misclassifications are rare, and few of them make every measure noisy.
        seed: Seed of the split.

    Returns:
        One `Data` for each share; inputs float32 ``(n, 1, 28, 28)`` in [0, 1], classes "0" to "9".

    Raises:
        ArgumentError: ``splits`` are not positive numbers with a sum of at most 1.

    Example:
        >>> train, calibration, test = load_digits()
        >>> len(train), len(calibration), len(test)
        (719, 179, 899)
    """
    from sklearn.datasets import load_digits as load_small_digits

    pixels, labels = load_small_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().div_(16).reshape(-1, 1, 8, 8)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels, classes = torch.from_numpy(labels), list("0123456789")
    digits = TensorData(images, labels, classes=classes, source="digits", value_range=(0.0, 1.0))
    return digits.split(splits, seed=seed)


def load_mnist(data_dir: str | Path | None = None, *, download: bool = False) -> tuple[TensorData, TensorData]:
    """Returns the training and the test samples of MNIST: 60,000 and 10,000 handwritten digits.

    The four idx files, plain or gzip, are looked for in ``data_dir``, ``data_dir/mnist`` and ``data_dir/MNIST/raw``.
    Present files are read as they are, Fashion-MNIST in the same layout too; downloaded files must be the original.

    Args:
        data_dir: The folder; None means the environment variable ``PETM_DATA_DIR``, or else the user's cache folder.
        download: Fetch absent files into ``data_dir/mnist``.

    Returns:
        Train and test; uint8 images ``(N, 1, 28, 28)`` in memory, read as float32 in [0, 1]; classes "0" to "9".

    Raises:
        DataError: Files are absent, cannot be fetched, or are damaged.
        RunError: A fetched file could not be written.
    """
    root = Path(data_dir) if data_dir is not None else default_data_dir()
    places = (root, root / "mnist", root / "MNIST" / "raw")
    found = next((files for place in places if len(files := _find_files(place)) == len(SHA256)), None)
    if found is None:
        folder = root / "mnist"
        if not download:
            raise DataError(
                f"data_dir: expected the four MNIST files ({', '.join(SHA256)}; plain or .gz) in {root}, {folder} or "
                f"{root / 'MNIST' / 'raw'}, got none or not all of them. "
                f"Fetch them with download=True (--download), or name the folder that has them."
            )
        present = _find_files(folder)
        for name in SHA256:
            if name not in present:
                _fetch(name, folder / name)
        found = _find_files(folder)
    return _read_part(found, "train"), _read_part(found, "t10k")


def default_data_dir() -> Path:
    """Returns the folder that the environment variable ``PETM_DATA_DIR`` names, or else the user's cache folder."""
    if named := os.environ.get(DATA_DIR_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "petm" / "petm" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "petm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "petm"


def _find_files(folder: Path) -> dict[str, Path]:
    """Those of the four files that are in ``folder``, in any spelling, by name."""
    found = {}
    for name in SHA256:
        for spelling in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
            if name not in found and (folder / spelling).is_file():
                found[name] = folder / spelling
    return found


def _read_part(files: Mapping[str, Path], part: str) -> TensorData:
    images_file, labels_file = files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"]
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    numbers, classes = match_classes(labels.astype(np.int64), "0123456789", None, str(labels_file))
    held = torch.from_numpy(images).unsqueeze(1)
    return TensorData(held, torch.from_numpy(numbers), classes=classes, source=str(images_file))


def _fetch(name: str, path: Path) -> None:
    """Writes the uncompressed file ``name`` to ``path`` from the first mirror that has the right bytes."""
    failures = []
    for mirror in MIRRORS:
        try:
            content = _download(f"{mirror}{name}.gz", SHA256[name])
        except (OSError, EOFError, zlib.error, HTTPException, DataError) as error:
            failures.append(f"{mirror} ({str(error)[:300]})")
            continue
        write_atomically(path, partial(_write, content))
        return
    raise DataError(
        f"download: expected {name} with SHA-256 {SHA256[name][:12]}… from one of {len(MIRRORS)} mirrors, "
        f"got {'; '.join(failures) or 'nothing'}. Check the network, or put the four files into {path.parent} by hand."
    )


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _download(address: str, sha256: str) -> bytes:
    """The uncompressed bytes at ``address``; raises DataError when their hash differs."""
    packed = bytearray()
    with urlopen(address, timeout=30) as answer, track("download", 0) as progress:
        while part := answer.read(1 << 16):
            packed += part
            progress.advance(len(part))
    content = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else bytes(packed)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"other bytes, with SHA-256 {found[:12]}…")
    return content
