"""Labels that became known later: what is read of each kind of file, and what is refused."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
    read_true_labels,
)
from petm.errors import DataError

CLASSES = ("cat", "dog", "3")
LONG = "a/ü" * 100
FOLDER = class_of_folder(folder_name(LONG))


def test_kinds_of_files(tmp_path):
    (tmp_path / "a.csv").write_text("note,input,label\nx,a.png,0\ny,b.png,1\n")
    (tmp_path / "b.csv").write_text('input,row,label\ntexts.csv,1,dog\n"c, d.png",,cat\n')
    pq.write_table(pa.table({"input": ["e.parquet"] * 2, "row": [7, 8], "label": [2, 0]}), tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text(
        '{"input": "f.png", "label": 1}\n\n{"input": "g.png", "label": "3", "row": null, "confirmed": true}\n'
    )
    assert read_true_labels([tmp_path / "a.csv", tmp_path / "b.csv"], CLASSES) == {
        ("a.png", None): 0,
        ("b.png", None): 1,
        ("texts.csv", 1): 1,
        ("c, d.png", None): 0,
    }
    assert read_true_labels([tmp_path / "c.parquet"], CLASSES) == {("e.parquet", 7): 2, ("e.parquet", 8): 0}
    assert read_true_labels([tmp_path / "d.jsonl"], CLASSES) == {("f.png", None): 1, ("g.png", None): 2}
    assert read_true_labels([tmp_path / "c.parquet"]) == {("e.parquet", 7): 2, ("e.parquet", 8): 0}
    assert read_true_labels([]) == {}


def test_a_number_may_be_a_name_and_an_empty_cell_is_no_label(tmp_path):
    (tmp_path / "a.csv").write_text("input,label\n00123,dog\n00124,\n")
    assert read_true_labels([tmp_path / "a.csv"], CLASSES) == {("00123", None): 1}


def test_what_was_said_last_holds(tmp_path):
    """As in the file of `petm serve`: corrected, taken back, of no named input, and a line that was never finished."""
    said = [("a.png", 0), ("b.png", 1), ("a.png", 1), (None, 1), ("b.png", None), ("c.png", 0)]
    lines = [json.dumps({"input": name, "label": label, "sha256": "0" * 64}) for name, label in said]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines) + '\n{"input": "d.pn')
    assert read_true_labels([tmp_path / "labels.jsonl"], CLASSES) == {("a.png", None): 1, ("c.png", None): 0}
    (tmp_path / "later.csv").write_text("input,label\na.png,0\n")
    later = read_true_labels([tmp_path / "labels.jsonl", tmp_path / "later.csv"], CLASSES)
    assert later["a.png", None] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.txt",
            "input,label\n",
            r"l\.txt: expected labels \(\.csv, .*\), got a file of the kind '\.txt'\. Name such",
        ),
        ("l.csv", "input,class\na,1\n", r"l\.csv: expected a column 'label', got the columns input, class"),
        ("l.csv", "", r"l\.csv: expected a column 'input', got the columns of an empty file"),
        ("l.parquet", "PAR1", r"l\.parquet: expected a whole Parquet file, got: "),
        ("l.csv", "input,label\na,7\n", r"l\.csv:2: expected as label one of cat, dog, 3, or .* below 3, got '7'"),
        (
            "l.csv",
            "input,label\na,0\nb,-1\nc,9\n",
            r"l\.csv:3: expected as label .*, got '-1' \(and 1 more such rows\)",
        ),
        ("l.csv", "input,label\na,0\n\nb,1,2\n", r"l\.csv:4: expected 2 fields as in the header, got 3"),
        ("l.jsonl", '{"input": "a", "label": "cow"}\n', r"l\.jsonl:1: expected as label .*, got 'cow'"),
        ("l.jsonl", '{"input": "a", "label": true}\n', r"l\.jsonl:1: expected .* as label, got True"),
        ("l.jsonl", '{"input": "a"\n{"input": "b", "label": 1}\n', r"l\.jsonl:1: expected a JSON object, got: "),
        ("l.jsonl", "[1]\n", r"l\.jsonl:1: expected a JSON object, got list"),
        ("l.jsonl", '{"input": "a", "row": "x", "label": 1}\n', r"l\.jsonl:1: expected a whole number as row, got 'x'"),
    ],
)
def test_what_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_true_labels([tmp_path / name], CLASSES)


def test_no_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: "):
        read_true_labels([tmp_path / "none.csv"])
    (tmp_path / "l.jsonl").write_bytes(b'{"input": "\xff", "label": 1}\n')
    with pytest.raises(DataError, match=r"l\.jsonl:1: expected text in UTF-8"):
        read_true_labels([tmp_path / "l.jsonl"])
    (tmp_path / "l.csv").write_text("input,label\na,cow\n")
    with pytest.raises(DataError, match=r"l\.csv:2: expected as label a number from 0 on, got 'cow'"):
        read_true_labels([tmp_path / "l.csv"])


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
