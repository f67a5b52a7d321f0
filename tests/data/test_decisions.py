"""Decisions in files of labels: what is read of each kind of file, and what is refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petm.data.decisions import read_decided
from petm.errors import DataError

CLASSES = ("cat", "dog", "3")


def labels_of(*paths, classes=CLASSES):
    found = read_decided(paths, classes, fewest=1)
    return dict(zip(found.places, found.labels.tolist(), strict=True))


def test_kinds_of_files(tmp_path):
    (tmp_path / "a.csv").write_text("note,input,label\nx,a.png,0\ny,b.png,1\n")
    (tmp_path / "b.csv").write_text('input,row,label\ntexts.csv,1,dog\n"c, d.png",,cat\n')
    pq.write_table(pa.table({"input": ["e.parquet"] * 2, "row": [7, 8], "label": [2, 0]}), tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text(
        '{"input": "f.png", "label": 1}\n\n{"input": "g.png", "label": "3", "row": null, "confirmed": true}\n'
    )
    assert labels_of(tmp_path / "a.csv", tmp_path / "b.csv") == {
        ("a.png", None): 0,
        ("b.png", None): 1,
        ("texts.csv", 1): 1,
        ("c, d.png", None): 0,
    }
    assert labels_of(tmp_path / "c.parquet") == {("e.parquet", 7): 2, ("e.parquet", 8): 0}
    assert labels_of(tmp_path / "d.jsonl") == {("f.png", None): 1, ("g.png", None): 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "input,label\n", r"l\.txt: expected a table \(\.csv, .*\), got a file of the kind '\.txt'"),
        ("l.csv", "input,class\na,1\n", r"l\.csv: expected a column 'label', got the columns input, class"),
        ("l.csv", "", r"l\.csv: expected a column 'label', got the columns of an empty file"),
        ("l.parquet", "PAR1", r"l\.parquet: expected a whole Parquet file, got: "),
        (
            "l.csv",
            "input,label\na,7\n",
            r"l\.csv:2: expected as label one of the grader's classes cat, dog, 3, or .* below 3, got 7",
        ),
        (
            "l.csv",
            "input,label\na,0\nb,-1\nc,9\n",
            r"l\.csv:3: expected as label .*, got -1 \(and 1 more such rows\)",
        ),
        ("l.csv", "input,label\na,0\n\nb,1,2\n", r"l\.csv:4: expected 2 fields as in the header, got 3"),
        ("l.jsonl", '{"input": "a", "label": "cow"}\n', r"l\.jsonl:1: expected as label .*, got cow"),
        ("l.jsonl", '{"input": "a", "label": true}\n', r"l\.jsonl:1: expected .* as label, got True"),
        ("l.jsonl", '{"input": "a"\n{"input": "b", "label": 1}\n', r"l\.jsonl:1: expected a JSON object, got: "),
        ("l.jsonl", "[1]\n", r"l\.jsonl:1: expected a JSON object, got list"),
        ("l.jsonl", '{"input": "a", "row": "x", "label": 1}\n', r"l\.jsonl:1: expected a whole number as row, got 'x'"),
    ],
)
def test_what_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path / name)


def test_no_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: "):
        labels_of(tmp_path / "none.csv")
    (tmp_path / "l.jsonl").write_bytes(b'{"input": "\xff", "label": 1}\n')
    with pytest.raises(DataError, match=r"l\.jsonl:1: expected text in UTF-8"):
        labels_of(tmp_path / "l.jsonl")
