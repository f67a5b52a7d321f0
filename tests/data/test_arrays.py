"""NumPy archives: layouts, values and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from petm.data.labels import UNLABELLED
from petm.data.opening import open_data
from petm.data.reader import Reader
from petm.data.sources import open_sources
from petm.errors import DataError


def save(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
    return folder / "samples.npz"


BYTES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (BYTES[..., 0], BYTES[..., 0][:, None]),
        (BYTES, BYTES.transpose(0, 3, 1, 2)),
        (BYTES[..., :1], BYTES[..., :1].transpose(0, 3, 1, 2)),
        (BYTES.transpose(0, 3, 1, 2), BYTES.transpose(0, 3, 1, 2)),
    ],
    ids=["N,H,W", "N,H,W,3", "N,H,W,1", "N,C,H,W"],
)
def test_bytes_are_brought_into_one_layout(tmp_path: Path, images: np.ndarray, expected: np.ndarray) -> None:
    data = open_data(save(tmp_path, images=images))
    assert data.images.dtype == torch.uint8
    np.testing.assert_array_equal(data.inputs([0, 1]), expected.astype(np.float32) / 255)
    assert data.value_range == (0.0, 1.0)
    assert data.labels.tolist() == [UNLABELLED, UNLABELLED]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 8)])
def test_floats_keep_their_values(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.linspace(-1, 2, int(np.prod(shape))).reshape(shape)
    data = open_data(save(tmp_path, x=values, y=np.array([1, 0], np.uint8)), classes=["no", "yes"])
    np.testing.assert_array_equal(data.inputs([0, 1]), values.astype(np.float32))
    assert data.value_range == (-1.0, 2.0)
    assert data.labels.tolist() == [1, 0]
    assert data.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("name", "shape"), [("inputs", (4, 2, 50)), ("inputs", (4, 7)), ("x", (4, 1, 3, 5, 6)), ("inputs", (4, 9, 9, 3))]
)
def test_signals_and_volumes_keep_their_shape_for_fit_and_grade(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = save(tmp_path, **{name: values, "y": [0, 1, 1, 0]})
    np.testing.assert_array_equal(open_data(path).inputs(range(4)), values)
    (source,) = open_sources([path])
    (rows,) = source.rows(0, 4, 4)
    np.testing.assert_array_equal(Reader().read(rows).inputs, values)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": BYTES, "y": [0, 1]}, "expected an array 'images', 'x' or 'inputs', got pictures, y"),
        ({}, "expected an array 'images', 'x' or 'inputs', got nothing"),
        ({"x": BYTES, "y": [0.0, 0.5]}, "expected a class number or a name as label, got 0.5 for sample 1"),
        ({"x": BYTES, "y": [0, 1, 2]}, "expected labels for 2 samples, got those of shape"),
        ({"x": BYTES.astype(np.int32)}, "expected images of dtype uint8 or float, got int32"),
        ({"inputs": np.zeros(3)}, r"expected images \(N, H, W\), .* got 1 dimensions"),
        ({"inputs": np.zeros((3, 2, 2), np.int64)}, "expected images of dtype uint8 or float, got int64"),
        ({"x": np.zeros(3)}, r"expected images \(N, H, W\), .* got 1 dimensions"),
        ({"x": BYTES[:0]}, "expected at least one image, got none"),
        ({"x": np.full((1, 2, 2), np.nan)}, "expected finite values, got NaN or infinity in 1 of 1"),
        ({"x": np.full((1, 2, 2), 1e300)}, "expected finite values, got NaN or infinity in 1 of 1"),
        (
            {"x": np.array([{}], dtype=object)},
            "expected an npz archive of plain arrays, .* nothing is loaded through pi",
        ),
        ({"x": BYTES, "y": np.array(["a", None])}, "expected an npz archive of plain arrays"),
        ({"x": BYTES, "y": [0, 5]}, r"expected labels from 0 to 1 \(or -1 for none\), got 5"),
    ],
)
def test_unsuitable_arrays_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"samples.npz: {message}"):
        open_data(save(tmp_path, **arrays), classes=["a", "b"])


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    whole = save(tmp_path, x=BYTES).read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"samples\.npz: "):
            open_data(path)


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, x=BYTES)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected an npz archive of plain arrays"):
        open_data(path)
