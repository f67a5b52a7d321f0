"""Labels that became known later: what is read of each kind of file, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petm.data.true_labels import read_true_labels
from petm.errors import DataError

CLASSES = ("cat", "dog", "3")


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
        ("l.csv", "input,class\na,1\n", r"l\.csv: expected the column 'label', got input, class\. Name it so"),
        ("l.csv", "", r"l\.csv: expected a whole file of labels, got: .*\. Write it again"),
        ("l.parquet", "PAR1", r"l\.parquet: expected a whole file of labels, got: .*\. Write it again"),
        ("l.csv", "input,label\na,7\n", r"l\.csv: entry 1: expected as label one of cat, dog, 3, or .* below 3, got 7"),
        ("l.csv", "input,label\na,0\nb,-1\n", r"l\.csv: entry 2: expected as label .*, got -1\. Correct it"),
        ("l.jsonl", '{"input": "a", "label": "cow"}\n', r"entry 1: expected as label .*, got 'cow'"),
        ("l.jsonl", '{"input": "a", "label": true}\n', r"entry 1: expected as label .*, got True"),
        ("l.jsonl", '{"input": "a"\n{"input": "b", "label": 1}\n', r"l\.jsonl: expected JSON in line 1, got .*\. Corr"),
        ("l.jsonl", "[1]\n", r"l\.jsonl: expected an object in line 1, got \[1\]\. Correct it"),
        ("l.jsonl", '{"input": "a", "row": "x", "label": 1}\n', r"expected a whole number as row, got 'x' in entry 1"),
    ],
)
def test_what_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_true_labels([tmp_path / name], CLASSES)


def test_no_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: expected labels .*, got no file there\. Name such a file"):
        read_true_labels([tmp_path / "none.csv"])
    (tmp_path / "l.jsonl").write_bytes(b'{"input": "\xff", "label": 1}\n')
    with pytest.raises(DataError, match=r"l\.jsonl: expected a whole file of labels, got: 'utf-8' codec"):
        read_true_labels([tmp_path / "l.jsonl"])
    (tmp_path / "l.csv").write_text("input,label\na,cow\n")
    with pytest.raises(DataError, match=r"l\.csv: entry 1: expected as label a number from 0 on, got 'cow'"):
        read_true_labels([tmp_path / "l.csv"])
