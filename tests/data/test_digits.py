"""scikit-learn's digits in the shape of MNIST; the four idx files of MNIST, their mirrors, and damaged ones."""

import gzip
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from sklearn.datasets import load_digits as load_small_digits
from torch import Tensor

from petm.data import digits
from petm.data.arrays import read_content
from petm.data.base import TensorData
from petm.data.digits import SHA256, default_data_dir, load_digits, load_mnist
from petm.errors import DataError


def enlarge(small: Tensor) -> Tensor:
    """Slow reference: bilinear interpolation 8×8 to 28×28, pixel centres aligned, edges repeated."""
    places = ((torch.arange(28) + 0.5) * 8 / 28 - 0.5).clamp(0, 7)
    low = places.floor().long().clamp(max=6)
    weights = torch.zeros(28, 8)
    weights[torch.arange(28), low] = 1 - (places - low)
    weights[torch.arange(28), low + 1] = places - low
    return weights @ small @ weights.T


def test_the_parts_hold_all_digits_in_order_of_their_shares() -> None:
    parts = load_digits()
    assert sum(len(part) for part in parts) == 1797
    counts = torch.bincount(torch.from_numpy(load_small_digits().target))
    for part, share in zip(parts, (0.4, 0.1, 0.5), strict=True):
        assert part.classes == tuple("0123456789")
        assert (torch.bincount(part.labels) - share * counts).abs().max() <= 1
        assert part.value_range == (0.0, 1.0)
        assert part.inputs(range(len(part))).aminmax() == (0.0, 1.0)


def test_images_are_enlarged_bilinearly() -> None:
    (whole,) = load_digits(splits=(1.0,))
    small = load_small_digits()
    images = whole.inputs([0, 1000])
    assert images.shape == (2, 1, 28, 28)
    for image, index in zip(images, (0, 1000), strict=True):
        expected = enlarge(torch.from_numpy(small.images[index]).float() / 16)
        torch.testing.assert_close(image[0], expected, atol=1e-6, rtol=0)
    assert whole.labels.tolist() == small.target.tolist()


def idx(*sizes: int, values: bytes | None = None) -> bytes:
    """An idx file of unsigned bytes that count up, or of the given ones."""
    total = int(torch.tensor(sizes).prod())
    body = bytes(number % 256 for number in range(total)) if values is None else values
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + body


FILES = {
    "train-images-idx3-ubyte": idx(3, 4, 5),
    "train-labels-idx1-ubyte": idx(3, values=bytes([7, 0, 9])),
    "t10k-images-idx3-ubyte": idx(2, 4, 5),
    "t10k-labels-idx1-ubyte": idx(2, values=bytes([1, 2])),
}
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def write(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(changed.get(name.split("-idx")[0].replace("-", "_"), content))
    return folder


@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("spelling", ["-idx", ".idx"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_files_are_found_and_read(tmp_path: Path, place: str, spelling: str, packed: bool) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        path = folder / (name.replace("-idx", spelling) + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
    train, test = load_mnist(tmp_path)
    assert train.images.dtype == torch.uint8
    torch.testing.assert_close(train.inputs([0, 1, 2]), torch.arange(60).reshape(3, 1, 4, 5) / 255)
    assert (train.labels.tolist(), test.labels.tolist()) == ([7, 0, 9], [1, 2])
    assert train.classes == tuple("0123456789")
    assert train.value_range == (0.0, 1.0)


def test_the_folder_comes_from_the_environment_or_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mnist")
    monkeypatch.setenv("PETM_DATA_DIR", str(tmp_path))
    assert len(load_mnist()[0]) == 3
    monkeypatch.delenv("PETM_DATA_DIR")
    assert default_data_dir().name == "petm"


def test_absent_files_are_reported(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=f"data_dir: expected the four MNIST files .* in {tmp_path}, .*download=True"):
        load_mnist(tmp_path)


HEADER = idx(3, 4, 5)[:16]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": b""}, "train-images-idx3-ubyte: expected an idx file .* got an empty file"),
        ({"train_images": b"GIF89a.."}, r"train-images-idx3-ubyte: expected an idx file .* got 47 49 46 38"),
        ({"train_labels": struct.pack(">BBBBI3f", 0, 0, 13, 1, 3, 1, 2, 3)}, "labels-idx1-ubyte: .* got 00 00 0d 01"),
        ({"train_images": idx(3, values=b"abc")}, r"in 3 dimensions .* got 00 00 08 01 .* are not swapped"),
        ({"t10k_labels": idx(2, 4, 5)}, "t10k-labels.*in 1 dimensions .* got 00 00 08 03 .* are not swapped"),
        ({"train_images": idx(3, 4)}, "train-images-idx3-ubyte: expected an idx file .*, got 00 00 08 02"),
        ({"train_images": HEADER[:9]}, "train-images-idx3-ubyte: expected .*, and sizes.*, got 00 00 08 03 "),
        ({"train_images": idx(3, 4, 5)[:-1]}, "expected 3×4×5 = 60 bytes, .* got 59"),
        ({"t10k_labels": idx(2) + b"!"}, "t10k-labels-.*: expected 2 = 2 bytes, .* got 3"),
        ({"train_images": gzip.compress(idx(3, 4, 5))[:-9]}, "train-images-idx3-ubyte: expected a readable file"),
        ({"train_images": b"\x1f\x8bnot gzip at all"}, "train-images-idx3-ubyte: expected a readable file, got"),
        ({"train_labels": idx(2)}, r"train-images-.*: expected one label for each of 3 samples, got .*\(2,\)"),
        ({"train_labels": idx(3, values=bytes([0, 1, 10]))}, r"train-labels-.*: expected labels from 0 to 9 .* got 10"),
        ({"train_images": idx(0, 4, 5)}, "train-images-.*: expected 0×4×5 = 0 bytes, at least one, got 0"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, changed: dict[str, bytes], message: str) -> None:
    write(tmp_path, **changed)
    with pytest.raises(DataError, match=message):
        load_mnist(tmp_path)


@contextmanager
def mirrors() -> Iterator[list[str]]:
    """Three mirrors on the loopback: one has nothing, one has wrong bytes, one has the files. Two more are variants."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, mirror, name = self.path.split("/")
            content = gzip.compress(FILES[name.removesuffix(".gz")])
            if mirror == "absent":
                return self.send_error(404)
            content = {"wrong": gzip.compress(b"wrong"), "short": content[:-4]}.get(mirror, content)
            self.send_response(200)
            if mirror == "unpacking":  # such a server makes the client unpack the file on the way
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            names = ("absent", "wrong", "right", "short", "unpacking")
            yield [f"http://127.0.0.1:{server.server_port}/{name}/" for name in names]
        finally:
            server.shutdown()
            thread.join()


def fetch(monkeypatch: pytest.MonkeyPatch, folder: Path, given: list[str]) -> tuple[TensorData, TensorData]:
    monkeypatch.setattr(digits, "MIRRORS", tuple(given))
    monkeypatch.setattr(digits, "SHA256", HASHES)
    return load_mnist(folder, download=True)


def test_a_download_tries_the_next_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mirrors() as (absent, wrong, right, _, unpacking):
        for folder, given in (("a", [absent, wrong, right]), ("b", [unpacking])):
            train, test = fetch(monkeypatch, tmp_path / folder, given)
            assert (train.labels.tolist(), test.labels.tolist()) == ([7, 0, 9], [1, 2])
    for folder in ("a", "b"):
        assert {path.name: path.read_bytes() for path in (tmp_path / folder / "mnist").iterdir()} == FILES
    assert len(fetch(monkeypatch, tmp_path / "a", [])[0]) == 3


def test_a_download_that_fails_names_each_mirror_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        r"download: expected train-images-idx3-ubyte with SHA-256 .* from one of 4 mirrors, "
        r"got .*/absent/ \(.*404.*/wrong/ \(other bytes.*/short/ \(.*127.0.0.1:1/ \(.*"
        r"Check the network"
    )
    with mirrors() as (absent, wrong, _, short, _), pytest.raises(DataError, match=message):
        fetch(monkeypatch, tmp_path, [absent, wrong, short, "http://127.0.0.1:1/"])
    assert list(tmp_path.rglob("*")) == []


def test_a_download_fetches_only_what_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = idx(3, values=bytes([4, 4, 4]))
    write(tmp_path / "mnist", train_labels=own)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with mirrors() as (_, _, right, _, _):
        train, _ = fetch(monkeypatch, tmp_path, [right])
    assert train.labels.tolist() == [4, 4, 4]


def test_the_real_mnist_has_its_counts_and_hashes() -> None:
    root = os.environ.get("PETM_DATA_DIR")
    if not root:
        pytest.skip("PETM_DATA_DIR is not set: the real MNIST files are read from there")
    train, test = load_mnist(root)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for name, sha256 in SHA256.items():
        path = next(path for path in Path(root).rglob(f"{name}*"))
        assert hashlib.sha256(read_content(path)).hexdigest() == sha256
