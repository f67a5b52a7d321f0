"""Labels: class numbers from values of any kind, and what is refused."""

from decimal import Decimal

import numpy as np
import pytest

from petm.data.labels import (
    UNLABELLED,
    LabelColumn,
    Name,
    Named,
    class_numbers,
    class_of_folder,
    folder_name,
    match_classes,
)
from petm.errors import DataError

CLASSES = ("cat", "dog", "3")
LONG = "a/ü" * 100
FOLDER = class_of_folder(folder_name(LONG))


def test_match_classes_goes_by_name_where_there_are_names() -> None:
    labels = np.array([0, 1, 2, UNLABELLED])
    assert match_classes(labels, "abc", None, "mine")[1] == ("a", "b", "c")
    matched, classes = match_classes(labels, "abc", "xcba", "mine")
    assert (matched.tolist(), classes) == ([3, 2, 1, UNLABELLED], ("x", "c", "b", "a"))
    matched, classes = match_classes(np.array([2]), "abc", "c", "mine")  # a and b are named but never used
    assert (matched.tolist(), classes) == ([0], ("c",))
    matched, classes = match_classes(labels, (), "abc", "mine")
    assert (matched.tolist(), classes) == ([0, 1, 2, UNLABELLED], ("a", "b", "c"))


@pytest.mark.parametrize(
    ("labels", "names", "classes", "message"),
    [
        ([0, 1], "ab", "ac", "mine: expected the classes a, c, got b as well. Rename or remove"),
        ([0], ["z"], [str(number) for number in range(20)], "10, 11 and 8 more, got z as well"),
        ([0, 3], "abc", None, r"mine: expected labels from 0 to 2 \(or -1 for none\), got 3"),
        ([0, 2], "", "ab", r"mine: expected labels from 0 to 1 \(or -1 for none\), got 2"),
        ([-2], "", None, r"mine: expected labels of at least 0 \(or -1 for none\), got -2"),
    ],
)
def test_match_classes_refuses(labels: list[int], names: list[str], classes: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        match_classes(np.array(labels), names, classes, "mine")


@pytest.mark.parametrize(
    ("label", "classes", "number"),
    [
        ("dog", CLASSES, 1), (" dog ", CLASSES, 1), ("3", CLASSES, 2), ("1", CLASSES, 1), (1, CLASSES, 1),
        (3, CLASSES, 2), ("4", CLASSES, None), (-1, CLASSES, None), ("-1", CLASSES, None), ("1.0", CLASSES, 1),
        ("1.5", CLASSES, None), ("9" * 5000, CLASSES, None), ("cow", CLASSES, None), ("7", (), 7), ("cow", (), None),
        (Name("1"), CLASSES, None), (Name("3"), CLASSES, 2), (Named(1, "dog"), CLASSES, 1),
        (Named(1, "cat"), CLASSES, None), (Named(1, "an animal"), CLASSES, 1), (Named("cat", "cat"), CLASSES, 0),
        ("e\u0301", ("a", "\xe9"), 1),
        (FOLDER, ("a", LONG), 1), (FOLDER, ("a", LONG[:-1]), None),
        ("a/b", ("a", "a%2Fb"), 1), ("a%2Fb", ("a%2Fb", "a/b"), 0), (" a", ("a", " a"), 1), ("a", ("a", "a"), None),
    ],
)  # fmt: skip
def test_the_number_of_a_class(label, classes, number):
    assert class_numbers([label], classes).get(label) == number


def test_a_column_of_labels_refuses_other_types():
    column = LabelColumn()
    decimals = Decimal("1.00"), Decimal("1.5"), Decimal("NaN"), Decimal("1E+50")
    assert [column.add(label) is None for label in (2, None, True, 0.5, 1 << 2000, -1, [1, 1], *decimals)] == [
        True, True, False, False, False, True, False, True, False, False, False,
    ]  # fmt: skip
    labels, classes = column.numbers((), "abc", "mine")
    assert (labels.tolist(), classes) == ([2, UNLABELLED, UNLABELLED, 1], ("a", "b", "c"))


def test_a_name_of_any_length_is_a_folder(tmp_path):
    names = [LONG, LONG[:-1], "\U0001f600" * 90, "x" * 255]
    folders = [tmp_path / folder_name(name) for name in names]
    for folder in folders:
        folder.mkdir()
    assert [folder_name(class_of_folder(folder.name)) for folder in folders] == [folder.name for folder in folders]
    numbers = class_numbers([Name(class_of_folder(folder.name)) for folder in folders], names)
    assert list(numbers.values()) == [0, 1, 2, 3]
