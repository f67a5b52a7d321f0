"""The same label is the same class, wherever it is read: in memory, in files, in folders, from people."""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, TensorDataset
from torch.utils.data import Subset as TorchSubset

from image_files import write_images
from petm.data.base import Data, TensorData, as_data
from petm.data.decisions import read_decided
from petm.data.labels import UNLABELLED, class_numbers, in_order, plain_label
from petm.data.opening import open_data
from petm.data.sources import open_sources
from petm.data.texts import read_texts
from petm.errors import ArgumentError, DataError, PetmWarning
from petm.serving.label_file import LabelFile

STARS = ("1", "2", "3")
"""Classes that are named by numbers, which are not their own."""


def table(path: Path, **columns: Sequence[Any]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), quoting=csv.QUOTE_MINIMAL)
            writer.writeheader()
            writer.writerows(rows)
    return path


def told_to_fit(path: Path, labels: Sequence[Any], classes: Sequence[str], **more: Sequence[Any]) -> list[int]:
    table(path, text=[f"text {row}" for row in range(len(labels))], label=labels, **more)
    return read_texts(path, classes=classes).labels.tolist()


def told_to_grade(path: Path, labels: Sequence[Any], classes: Sequence[str], **more: Sequence[Any]) -> list[int]:
    table(path, text=[f"text {row}" for row in range(len(labels))], label=labels, **more)
    (source,) = open_sources([path], text_column="text", label_column="label")
    found = [plain_label(row.label) for rows in source.rows(0, 99, 99) for row in rows]
    try:
        numbers = class_numbers({label for label in found if label is not None}, classes)
    except ValueError as error:
        raise DataError(str(error)) from error
    return [UNLABELLED if label is None else numbers[label] for label in found]


def told_to_monitor(path: Path, labels: Sequence[Any], classes: Sequence[str], **more: Sequence[Any]) -> list[int]:
    table(path, input=[str(row) for row in range(len(labels))], label=labels, **more)
    found = read_decided([path], classes, fewest=1)
    assert found.places == tuple((str(row), None) for row in range(len(labels)))
    return found.labels.tolist()


READERS = [told_to_fit, told_to_grade, told_to_monitor]
SUFFIXES = [".csv", ".jsonl", ".parquet"]
Reading = Callable[..., list[int]]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("labels", "classes", "wanted"),
    [
        ([1, 2, 3], STARS, [0, 1, 2]),  # 3 is no class number, so all are names
        ([0, 1, 2], STARS, [0, 1, 2]),  # 0 is no name
        (["cat", "dog"], ("dog", "cat"), [1, 0]),
        ([0, 9], tuple("0123456789"), [0, 9]),
        ([10, 2], tuple(map(str, range(12))), [10, 2]),
        ([2.0, 0.0], ("a", "b", "c"), [2, 0]),
        ([1.0, 3.0], STARS, [0, 2]),
        ([1, 3], ("1.0", "2.0", "3.0"), [0, 2]),
        (["null", "nan", "true", "1"], ("1", "true", "nan", "null"), [3, 2, 1, 0]),
        ([" a", "a"], ("a", " a"), [1, 0]),
    ],
)
def test_names_and_numbers(tmp_path: Path, read: Reading, suffix: str, labels: Any, classes: Any, wanted: Any) -> None:
    assert read(tmp_path / f"x{suffix}", labels, classes) == wanted


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [([1, 2], STARS), ([2], STARS), ([0, 3], STARS), ([1], ("cat", "dog", "1"))],
)
def test_what_may_be_two_classes_is_refused(
    tmp_path: Path, read: Reading, suffix: str, labels: Any, classes: Any
) -> None:
    with pytest.raises(DataError, match="label_name"):
        read(tmp_path / f"x{suffix}", labels, classes)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_beside_a_number_decides(tmp_path: Path, read: Reading, suffix: str) -> None:
    assert read(tmp_path / f"x{suffix}", [1, 0], STARS, label_name=["2", "1"]) == [1, 0]
    assert read(tmp_path / f"x{suffix}", [2, 1], STARS, label_name=["2", "1"]) == [1, 0]
    foreign: Any = {"label_name": ["an animal", "an animal"]}
    if read is told_to_monitor:  # whose labels name the classes of the grader
        with pytest.raises(DataError, match="an animal"):
            read(tmp_path / f"x{suffix}", [1, 0], ("cat", "dog"), **foreign)
    else:
        assert read(tmp_path / f"x{suffix}", [1, 0], ("cat", "dog"), **foreign) == [1, 0]
    with pytest.raises((DataError, KeyError)):
        read(tmp_path / f"x{suffix}", [0, 1], ("cat", "dog"), label_name=["dog", "dog"])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("read", READERS)
def test_text_where_numbers_have_types_is_a_name(tmp_path: Path, suffix: str, read: Reading) -> None:
    assert read(tmp_path / f"x{suffix}", ["2", "1"], STARS) == [1, 0]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("label", [1.5, True, "9" * 5000, float("nan"), -3, 7, "cow", [0.5, 0.5], [0, 0]])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_no_label_is_refused(tmp_path: Path, suffix: str, read: Reading, label: object) -> None:
    with pytest.raises((DataError, ValueError, KeyError)):
        read(tmp_path / f"x{suffix}", [label], ("a", "b"))


def test_a_number_of_five_thousand_digits_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\na,0\nb," + "9" * 5000 + "\n")
    for classes in (None, ("a", "b")):
        with pytest.raises(DataError, match=r"x\.csv: expected "):
            read_texts(tmp_path / "x.csv", classes=classes)


# in memory


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2.0, 0.0, 1.0]),
        np.eye(3)[[2, 0, 1]],
        np.eye(3, dtype=bool)[[2, 0, 1]],
        np.array([[2], [0], [1]]),
        np.array([2, 0, 1], np.uint16),
        torch.eye(3)[[2, 0, 1]],
        torch.tensor([2.0, 0.0, 1.0]),
        [2, np.int8(0), torch.tensor(1)],
        ["c", "a", "b"],
        np.array(["c", "a", "b"]),
    ],
)
def test_labels_of_every_type_in_memory_and_in_an_archive(tmp_path: Path, labels: Any) -> None:
    x = torch.rand(3, 1, 2, 2)
    assert as_data((x, labels)).labels.tolist() == [2, 0, 1]
    assert as_data([(image, label) for image, label in zip(x, labels, strict=True)]).labels.tolist() == [2, 0, 1]  # type: ignore[arg-type]
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.asarray(labels))
    assert open_data(tmp_path / "x.npz", classes=("a", "b", "c")).labels.tolist() == [2, 0, 1]


def test_pandas_categories() -> None:
    pandas = pytest.importorskip("pandas")
    x = torch.rand(3, 1, 2, 2)
    column = pandas.Series(["10", "9", "10"], dtype="category")
    assert (as_data((x, column)).labels.tolist(), as_data((x, column)).classes) == ([10, 9, 10], ())
    assert as_data((x, pandas.Categorical(["dog", "cat", "dog"]))).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([True, False, True]),
        np.array([0.5, 1.0, 0.0]),
        np.array([0.0, np.nan, 1.0]),
        np.array([[1, 1, 0]] * 3),
        np.array([0, -3, 1]),
        [1, 0, 10**5000],
        ["a", 1, 2],
        torch.zeros(3, 1, 2),
        torch.tensor(1),
    ],
)
def test_labels_in_memory_that_are_none(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(DataError, match="label"):
        TensorData(torch.rand(3, 1, 2, 2), labels)


# torch data sets


class Pictures(Dataset[tuple[Tensor, Any]]):
    """As torchvision's data sets: ``targets`` and ``classes`` are those before ``target_transform``."""

    def __init__(self, data: Data, target_transform: Callable[[int], Any] | None = None) -> None:
        self.data, self.target_transform = data, target_transform
        self.targets, self.classes = data.labels.tolist(), list(data.classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        label = self.targets[index]
        image = self.data.inputs([index])
        assert isinstance(image, Tensor)
        return image[0], self.target_transform(label) if self.target_transform else label


def test_the_label_is_that_of_the_item(digits: tuple[Data, ...]) -> None:
    plain = Pictures(digits[2])
    assert as_data(plain).labels.tolist() == digits[2].labels.tolist()
    assert as_data(plain).classes == digits[2].classes
    changed = as_data(Pictures(digits[2], lambda label: (label + 3) % 10))
    assert changed.labels.tolist() == ((digits[2].labels + 3) % 10).tolist()
    assert changed.classes == (), "the names are those before the transform"
    one_class = as_data(Pictures(digits[2], lambda label: 0 if label == 7 else label))
    assert one_class.labels.tolist() == digits[2].labels.where(digits[2].labels != 7, 0).tolist()
    with pytest.raises(DataError, match="label"):
        as_data(Pictures(digits[2], lambda label: label + 0.5))


def test_views_of_torch_data_sets(digits: tuple[Data, ...]) -> None:
    labels = digits[2].labels
    x = torch.as_tensor(digits[2].inputs(range(40)))  # type: ignore[arg-type]
    tensors = TensorDataset(x, labels[:40])
    view = TorchSubset(Pictures(digits[2]), [5, 3, 30])
    view.targets = labels[:3].tolist()  # type: ignore[attr-defined]  # as wrappers do that forward attributes
    assert as_data(tensors).labels.tolist() == labels[:40].tolist()
    assert as_data(view).labels.tolist() == labels[[5, 3, 30]].tolist()
    assert as_data(ConcatDataset([tensors, view])).labels.tolist() == labels[[*range(40), 5, 3, 30]].tolist()


def test_items_that_are_no_pairs() -> None:
    with pytest.raises(ArgumentError, match="data: expected items"):
        as_data([{"image": torch.zeros(1), "class": 0}])


# folders


def test_class_folders_keep_their_places(tmp_path: Path, digits: tuple[Data, ...]) -> None:
    test = digits[2].subset(range(60))
    write_images(test, range(60), tmp_path / "ten")
    for row in tmp_path.glob("ten/3/*"):
        row.unlink()
    found = open_data(tmp_path / "ten")
    kept = test.labels[test.labels != 3]
    assert (found.classes, found.labels.tolist()) == (tuple("0123456789"), kept.sort().values.tolist())


def test_folders_named_by_numbers_are_in_their_order(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        Image.new("L", (2, 2), 20 * number).save(tmp_path / str(number) / "x.png")
    data = open_data(tmp_path)
    pixels = torch.as_tensor(data.inputs(range(12))).mean((1, 2, 3)) * 255  # type: ignore[arg-type]
    assert data.classes == tuple(map(str, range(12)))
    assert data.labels.tolist() == (pixels / 20).round().long().tolist()
    backwards = open_data(tmp_path, classes=data.classes[::-1])
    assert backwards.labels.tolist() == (11 - data.labels).tolist()
    assert in_order(["LABEL_10", "LABEL_9"]) == ("LABEL_9", "LABEL_10")
    assert in_order(["b10", "b9"]) == ("b10", "b9"), "as a model that torchvision's ImageFolder has fed"


def test_linked_class_folders_are_the_same_in_fit_and_grade(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "data" / "b").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "data" / "b" / "x.png")
    for name in ("a", "c"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    data = open_data(tmp_path / "data")
    (source,) = open_sources([tmp_path / "data"], label_column="label")
    graded = [(row.path, row.label) for rows in source.rows(0, 9, 9) for row in rows]
    assert [(data.name(row), data.classes[int(data.labels[row])]) for row in range(3)] == graded
    assert [label for _, label in graded] == ["a", "b", "c"]
    (tmp_path / "data" / "d").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match=r"d: expected a folder of images, got a link"):
        open_data(tmp_path / "data")
    assert open_data(tmp_path / "data", skip_bad=True).classes == ("a", "b", "c")
    assert [row.fault is None for rows in source.rows(0, 9, 9) for row in rows] == [True, True, True, False]


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "x.png")
    for name in ("a.heic", "b.heic", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.warns(PetmWarning, match=r"2 of \.heic, 1 of \.txt"):
        assert len(open_data(tmp_path)) == 1
    with pytest.warns(PetmWarning, match=r"2 of \.heic, 1 of \.txt"):
        assert open_sources([tmp_path])[0].count() == 1


def test_tables_beside_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "cat" / "x.png")
    table(tmp_path / "more.parquet", image=[(tmp_path / "cat" / "x.png").read_bytes()], label=[0])
    for read in (open_data, lambda path: open_sources([path])):
        with pytest.raises(DataError, match=r"got both \(more\.parquet beside .*x\.png\)"):
            read(tmp_path)
    assert len(open_data(tmp_path / "*.parquet")) == len(open_data(tmp_path / "cat")) == 1


# laws

ALPHABET = [
    "a",
    "b",
    "é",
    "e\u0301",
    "漢",
    "😀",
    " ",
    ",",
    '"',
    "d'e",
    "/",
    "%",
    "2F",
    ".",
    "-",
    "1",
    "0",
    "10",
    "nan",
    "null",
]


names = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=4).map("".join).filter(str.strip)
class_names = st.lists(names, min_size=2, max_size=12, unique=True).map(tuple)
"""Different class names of awkward parts, none of them blank."""


@given(classes=class_names)
def test_a_name_that_is_written_is_the_class_that_is_read(
    tmp_path_factory: pytest.TempPathFactory, classes: tuple[str, ...]
) -> None:
    tmp_path, wanted = tmp_path_factory.mktemp("names"), list(range(len(classes)))
    numbers = any(name.strip().lstrip("-").isdigit() for name in classes)
    for suffix in SUFFIXES:
        for read in READERS:
            if not (numbers and suffix == ".csv"):
                assert read(tmp_path / f"x{suffix}", classes, classes) == wanted
            else:
                with suppress(DataError, KeyError):
                    assert read(tmp_path / f"x{suffix}", classes, classes) == wanted
            assert read(tmp_path / f"x{suffix}", wanted, classes, label_name=classes) == wanted


@given(classes=class_names)
@settings(max_examples=15)
def test_what_people_label_in_the_service_is_read_by_fit_and_monitor(
    tmp_path_factory: pytest.TempPathFactory, classes: tuple[str, ...]
) -> None:
    tmp_path = tmp_path_factory.mktemp("labels")
    pictures, texts = LabelFile(tmp_path / "images.jsonl"), LabelFile(tmp_path / "texts.jsonl")
    for number, name in enumerate(classes):
        place = tmp_path / f"{number}.png"
        Image.new("L", (2, 2), number).save(place)
        said = {"input": place.name, "label": number, "label_name": name}
        pictures.append(said, place.read_bytes(), classes)
        texts.append({**said, "text": f"text {number}"}, f"text {number}".encode(), classes)
    pictures.close()
    texts.close()
    wanted = list(range(len(classes)))
    assert read_decided([tmp_path / "images.jsonl"], classes, fewest=1).labels.tolist() == wanted
    assert read_texts(tmp_path / "texts.jsonl", classes=classes).labels.tolist() == wanted
    data = open_data(tmp_path / "images.jsonl.images", classes=classes)
    pixels = torch.as_tensor(data.inputs(range(len(data)))).mean((1, 2, 3)) * 255  # type: ignore[arg-type]
    assert data.labels.tolist() == pixels.round().long().tolist()
    assert sorted(data.labels.tolist()) == wanted
    assert open_data(tmp_path / "images.jsonl.images").classes == in_order(classes), (
        "in the order of names, not folders"
    )
