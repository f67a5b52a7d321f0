"""Inputs that people have labelled are read again: where they were graded, or from the copies of the page."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from image_files import write_images
from petm.data.decisions import read_decided
from petm.data.labelled_inputs import read_labelled
from petm.data.reader import Reader
from petm.errors import DataError

READER = Reader(size=(28, 28), channels=1)
CLASSES = tuple("0123456789")


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def images(digits, tmp_path):
    write_images(digits[2], range(30), tmp_path / "in", flat=True)
    return [str(tmp_path / "in" / f"{row:04d}.png") for row in range(30)]


def pixels(digits, rows):
    return (digits[2].inputs(rows) * 255).round() / 255


def test_images_by_path(digits, images, tmp_path):
    rows = list(range(29, 4, -1))
    labels = write(tmp_path / "l.csv", [{"path": images[row], "label": int(digits[2].labels[row])} for row in rows])
    found = read_labelled(read_decided([labels], CLASSES), [labels], READER, CLASSES)
    assert torch.allclose(found.data.inputs(range(25)), pixels(digits, rows))
    assert torch.equal(found.data.labels, digits[2].labels[rows])
    assert found.data.name(0) == images[29]
    assert (found.chance == 1).all()


def test_rows_of_a_table(digits, images, tmp_path):
    table = pa.table({"image": [Path(path).read_bytes() for path in images]})
    pq.write_table(table, tmp_path / "graded.parquet")
    rows = list(range(3, 28))
    told = [
        {"input": str(tmp_path / "graded.parquet"), "row": row + 1, "label": int(digits[2].labels[row])} for row in rows
    ]
    labels = write(tmp_path / "l.csv", told)
    found = read_labelled(read_decided([labels], CLASSES), [labels], READER, CLASSES)
    assert torch.allclose(found.data.inputs(range(25)), pixels(digits, rows))


def test_copies_of_the_page_and_what_nobody_can_tell(digits, images, tmp_path):
    folder = tmp_path / "labels.jsonl.images"
    folder.mkdir()
    lines = []
    for row in range(25):
        raw = Path(images[row]).read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        (folder / f"{digest}.png").write_bytes(raw)
        label = None if row == 2 else int(digits[2].labels[row])
        lines.append({"sha256": digest, "label": label, "confirmed": row != 2, "suspicion": 0.5, "input": "upload.png",
                      "path": label if label is None else f"{folder.name}/{digest}.png"})  # fmt: skip
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_labelled(read_decided([labels], CLASSES), [labels], READER, CLASSES)
    rows = [row for row in range(25) if row != 2]
    assert torch.allclose(found.data.inputs(range(24)), pixels(digits, rows))
    assert np.isnan(found.chance).all()


def test_inputs_that_are_gone_are_one_line_or_left_out(digits, images, tmp_path):
    told = [{"path": path, "label": int(digits[2].labels[row])} for row, path in enumerate(images)]
    labels = write(tmp_path / "l.csv", [*told, {"path": str(tmp_path / "gone.png"), "label": 3}])
    decided = read_decided([labels], CLASSES)
    with pytest.raises(DataError, match=r"gone\.png"):
        read_labelled(decided, [labels], READER, CLASSES)
    found = read_labelled(decided, [labels], READER, CLASSES, skip_bad=True)
    assert len(found.data) == 30
    assert (list(found.skipped), found.gone) == ([str(tmp_path / "gone.png")], 1)
    Path(images[3]).write_bytes(b"no image")
    found = read_labelled(decided, [labels], READER, CLASSES, skip_bad=True)
    assert (len(found.data), len(found.skipped), found.gone) == (29, 2, 1)


def test_a_label_on_an_input_without_a_chance_has_an_unknown_one(digits, images, tmp_path):
    labels = write(tmp_path / "l.csv", [{"path": path, "label": row % 3} for row, path in enumerate(images)])
    decided = read_decided([labels], CLASSES)
    found = read_labelled(replace(decided, chance=np.arange(30) / 30), [labels], READER, CLASSES)
    assert np.array_equal(found.chance, [np.nan, *np.arange(1, 30) / 30], equal_nan=True)


def test_an_input_that_was_changed_after_it_was_graded_has_no_label(digits, images, tmp_path):
    labels = write(tmp_path / "l.csv", [{"path": path, "label": row % 3} for row, path in enumerate(images)])
    hashes = tuple(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in images)
    decided = replace(read_decided([labels], CLASSES), sha256=hashes)
    assert len(read_labelled(decided, [labels], READER, CLASSES).data) == 30
    Path(images[4]).write_bytes(Path(images[5]).read_bytes())
    with pytest.raises(DataError, match=r"0004\.png: expected the content"):
        read_labelled(decided, [labels], READER, CLASSES)
    found = read_labelled(decided, [labels], READER, CLASSES, skip_bad=True)
    assert found.data.labels.tolist() == [row % 3 for row in range(30) if row != 4]
