"""Parquet files of encoded images: columns, shards, class names, and what is refused."""

import json
import os
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from petm.data import image_data
from petm.data.base import Data
from petm.data.labels import UNLABELLED
from petm.data.opening import open_data
from petm.errors import DataError


def png(value: int, size: tuple[int, int] = (4, 6)) -> bytes:
    """A grey image of one value; ``size`` is height and width."""
    stream = BytesIO()
    Image.new("L", size[::-1], value).save(stream, "png")
    return stream.getvalue()


def table(values: range, *, names: list[str] | None = None) -> pa.Table:
    """Images of the given grey values in the Hugging Face layout, labelled by value modulo 2."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": png(value), "path": f"{value}.png"} for value in values], kind)
    made = pa.table({"image": images, "label": pa.array([value % 2 for value in values], pa.int64())})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


def greys(data: Data) -> list[int]:
    return (data.inputs(range(len(data)))[:, 0, 0, 0] * 255).round().long().tolist()


def test_a_file_in_the_hugging_face_layout(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pq.write_table(table(range(5), names=["even", "odd"]), path, row_group_size=2)
    data = open_data(path)
    assert greys(data) == [0, 1, 2, 3, 4]
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert data.classes == ("even", "odd")
    assert data.name(4) == f"{path} row 5"
    assert data.inputs([3, 1]).shape == (2, 1, 4, 6)
    assert open_data(path, size=(2, 2), channels=3, resize="squeeze").inputs([0]).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_binary_columns(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"image": pa.array([png(7), png(8)], kind), "label": pa.array([3, 1], pa.int8()), "id": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    data = open_data(tmp_path / "x.parquet")
    assert greys(data) == [7, 8]
    assert data.labels.tolist() == [3, 1]
    assert data.classes == ()
    pq.write_table(pa.table({"image": columns["image"]}), tmp_path / "x.parquet")
    assert open_data(tmp_path / "x.parquet").labels.tolist() == [UNLABELLED] * 2


def test_shards_of_a_folder_or_a_glob(tmp_path: Path) -> None:
    for number, values in enumerate((range(3), range(0), range(3, 5))):
        pq.write_table(table(values), tmp_path / f"train-0000{number}-of-00003.parquet")
    for path in (tmp_path, tmp_path / "train-*.parquet"):
        data = open_data(path)
        assert greys(data) == [0, 1, 2, 3, 4]
        assert data.name(2) == f"{tmp_path / 'train-00000-of-00003.parquet'} row 3"
        assert data.name(3) == f"{tmp_path / 'train-00002-of-00003.parquet'} row 1"


def test_several_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(table(range(2)), tmp_path / f"{name}.parquet")
    with pytest.raises(
        DataError, match=r"expected the files of one part of a data set, got test, train.*test\*.parquet"
    ):
        open_data(tmp_path)
    assert len(open_data(tmp_path / "test*.parquet")) == 2


def test_class_names_map_to_the_expected_classes(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table(range(3), names=["even", "odd"]), path)
    data = open_data(path, classes=["odd", "even"])
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("odd", "even"))
    with pytest.raises(DataError, match=r"x.parquet: "):
        open_data(path, classes=["odd", "prime"])


def test_shards_must_agree_on_the_classes(tmp_path: Path) -> None:
    pq.write_table(table(range(2), names=["even", "odd"]), tmp_path / "a.parquet")
    pq.write_table(table(range(2), names=["odd", "even"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: "):
        open_data(tmp_path)


@pytest.mark.parametrize("metadata", [b"not json", b"{}", b"[]", b'{"info": {"features": {"label": {"names": null}}}}'])
def test_metadata_without_class_names_are_ignored(tmp_path: Path, metadata: bytes) -> None:
    pq.write_table(table(range(2)).replace_schema_metadata({"huggingface": metadata}), tmp_path / "x.parquet")
    assert open_data(tmp_path / "x.parquet").classes == ()


def test_files_that_are_not_whole_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table(range(50)), path)
    whole = path.read_bytes()
    for content in (b"", b"this is text, not a table", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.parquet: "):
            open_data(path)
    with pytest.raises(DataError, match=r"absent\.parquet: "):
        open_data(tmp_path / "absent.parquet")


GOOD = {"image": [png(1), png(2)], "label": [0, 1]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": [0]}, "expected a column 'image', got the columns text, label"),
        ({"image": ["a.png"]}, r"expected encoded images .*in column 'image', got string"),
        ({"image": [{"path": "a.png"}]}, "expected encoded images .*in column 'image', got struct<path: string>"),
        ({**GOOD, "label": [0.0, 1.5]}, r"row 2: expected a class number .*, got 1\.5"),
        ({**GOOD, "image": [png(1), None]}, r"row 2: expected an image in column 'image', got nothing.*--skip-bad"),
        ({"image": [{"bytes": None, "path": "a.png"}]}, "column 'image'"),
        ({"image": pa.array([], pa.binary())}, "expected at least one image, got none"),
        ({**GOOD, "label": [0, -5]}, "expected labels of at least 0 .* got -5"),
    ],
)
def test_unsuitable_columns_are_refused(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"x\.parquet.*{message}"):
        open_data(tmp_path / "x.parquet")


def test_a_null_inside_the_struct_is_a_missing_image(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(1), "path": None}, {"bytes": None, "path": "far.png"}, None])
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet row 2: "):
        open_data(tmp_path / "x.parquet")
    data = open_data(tmp_path / "x.parquet", skip_bad=True)
    assert list(data.skipped) == [f"{tmp_path / 'x.parquet'} row 2", f"{tmp_path / 'x.parquet'} row 3"]


def test_unreadable_images_are_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [png(5), b"no image", png(6)[:40], png(7)], "label": [0, 1, 2, 3]}), path)
    with pytest.raises(DataError, match=r"x\.parquet row 2: "):
        open_data(path).inputs([1])
    data = open_data(path, skip_bad=True)
    assert greys(data) == [5, 7]
    assert data.labels.tolist() == [0, 3]
    assert data.name(1) == f"{path} row 4"
    assert list(data.skipped) == [f"{path} row 2", f"{path} row 3"]
    assert all("expected a readable image, got: " in reason for reason in data.skipped.values())
    assert data.content != open_data(path).content


def test_labels_may_be_names_and_may_be_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({**GOOD, "label": ["dog", None]}), tmp_path / "x.parquet")
    data = open_data(tmp_path / "x.parquet", classes=["cat", "dog"])
    assert (data.labels.tolist(), data.classes) == ([1, UNLABELLED], ("cat", "dog"))


def test_another_size_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(5), png(5, (2, 3))]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet row 2: "):
        open_data(tmp_path / "x.parquet").inputs([0, 1])


IMAGES = [b"one", b"", b"three" * 20, b"4", b"five5", b"six" * 50]


@pytest.mark.parametrize(("held", "written"), [(1 << 20, 0), (5, 0), (0, 1 << 20), (0, 7)])
def test_encoded_images_are_read_in_any_order(held: int, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_data, "_HELD", held)
    monkeypatch.setattr(image_data, "_WRITTEN", written)
    found = image_data.Blobs()
    for image in IMAGES:
        found.append(image)
    assert len(found) == len(IMAGES)
    assert [found[row] for row in (5, 0, 1, 4, 2, 3, 0)] == [IMAGES[row] for row in (5, 0, 1, 4, 2, 3, 0)]


def test_content_follows_the_file_and_the_form(tmp_path: Path) -> None:
    for name, values in (("a", range(3)), ("b", range(3)), ("c", range(1, 4))):
        pq.write_table(table(values), tmp_path / f"{name}.parquet")
    first, second, third = (open_data(tmp_path / f"{name}.parquet").content for name in "abc")
    assert first == second != third
    assert first != open_data(tmp_path / "a.parquet", channels=3).content


def test_the_real_cifar10() -> None:
    root = os.environ.get("PETM_DATA_DIR")
    if not root:
        pytest.skip("PETM_DATA_DIR is not set: CIFAR-10 in Parquet files is read from there")
    data = open_data(Path(root) / "cifar10" / "test.parquet")
    assert torch.bincount(data.labels).tolist() == [500] * 10
    assert data.inputs([0, 4999]).shape == (2, 3, 32, 32)
