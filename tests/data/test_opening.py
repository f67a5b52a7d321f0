"""Opening data of any known kind by path."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from petm.data.base import TensorData
from petm.data.image_data import ImageData
from petm.data.opening import open_data
from petm.errors import DataError


def encoded() -> bytes:
    stream = BytesIO()
    Image.new("L", (6, 4), 9).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One of each kind."""
    for name in ("labelled/cat/1.png", "labelled/dog/1.png", "flat/1.png", "shards/a.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    pq.write_table(pa.table({"image": [encoded()], "label": [1]}), tmp_path / "shards" / "a.parquet")
    np.savez(tmp_path / "some.npz", x=np.zeros((2, 4, 6), np.uint8), y=[0, 1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        ("labelled", ImageData, [0, 1]),
        ("flat", ImageData, [-1]),
        ("flat/1.png", ImageData, [-1]),
        ("shards", ImageData, [1]),
        ("shards/a.parquet", ImageData, [1]),
        ("shards/*.parquet", ImageData, [1]),
        ("some.npz", TensorData, [0, 1]),
    ],
)
def test_each_kind_is_recognised(root: Path, name: str, kind: type, labels: list[int]) -> None:
    data = open_data(str(root / name), size=(4, 6), channels=1, classes=["cat", "dog"], skip_bad=True)
    assert type(data) is kind
    assert data.labels.tolist() == labels
    assert data.inputs([0]).shape == (1, 1, 4, 6)
    assert data.classes == ("cat", "dog")
    assert str(root) in data.source


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("notes.txt", "a file of the kind '.txt'"),
        ("absent", "a path that does not exist"),
        ("absent.npz", "a path that does not exist"),
        ("absent.png", "a path that does not exist"),
    ],
)
def test_other_kinds_are_refused(root: Path, name: str, got: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: expected a folder .*\*\.parquet .* or \*\.npz, got {got}"):
        open_data(root / name)


def test_nothing_in_it_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match="empty: "):
        open_data(root / "empty")
    with pytest.raises(DataError, match=r"absent\.parquet: "):
        open_data(root / "absent.parquet")


@pytest.mark.parametrize(
    ("options", "rule"),
    [({"size": (8, 8)}, r"\?×8×8"), ({"channels": 3, "size": (4, 6)}, "3×4×6"), ({"channels": 3}, "3×.×")],
)
def test_arrays_are_not_resized(root: Path, options: dict[str, object], rule: str) -> None:
    with pytest.raises(DataError, match=rf"some\.npz: expected images of {rule}.* got 1×4×6. Arrays are not resized"):
        open_data(root / "some.npz", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_texts_are_refused_with_the_way_to_read_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\nWho?,1\n" if name.endswith("csv") else '{"text": "Who?", "label": 1}\n')
    with pytest.raises(DataError, match=r"got texts\. Name a text classifier \(--model hf:DIR\)"):
        open_data(tmp_path / name)
