"""Wrong labels of texts, found by the features of a model."""

import json

import numpy as np
import pytest

import hf_folders
from petm.data.texts import Tokenized, read_texts
from petm.grading.label_errors import find_label_errors
from petm.models.hf_classifier import load_classifier
from petm.models.hf_processors import load_processor


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_labels_of_texts_come_first_with_text_row_and_class(tmp_path, seed):
    random = np.random.default_rng(seed)
    texts, right = map(list, zip(*hf_folders.QUESTIONS, strict=True))
    kinds, flipped = list(right), sorted(random.choice(90, 4, replace=False))
    for row in flipped:
        kinds[row] = hf_folders.KINDS[(hf_folders.KINDS.index(right[row]) + random.integers(1, 3)) % 3]
    twin = next(row for row in range(90) if row not in flipped)
    other = next(kind for kind in hf_folders.KINDS if kind != right[twin])
    rows = [*zip(texts, kinds, strict=True), (texts[twin], other), ("Who knows ?", None)]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": kind}) + "\n" for text, kind in rows)
    )
    folder = hf_folders.save(tmp_path / "bert", hf_folders.bert(), hf_folders.word_tokenizer())
    data = Tokenized(read_texts(tmp_path / "texts.jsonl", classes=hf_folders.KINDS), load_processor(folder))
    found = find_label_errors(load_classifier(folder), data)
    table = found.table(6).to_pylist()
    expected = {row + 1: right[row] for row in flipped} | {91: right[twin]}
    told = {row["row"]: row["suggested_name"] for row in table}
    assert len(expected.keys() & told.keys()) >= 4  # of 5, among 91
    assert sum(told.get(row) == kind for row, kind in expected.items()) >= 4
    assert all(row["text"] == rows[row["row"] - 1][0] for row in table)
    assert len(found.labels) == 91  # the one without a label is left out
    assert (found.copies == 2).nonzero()[0].tolist() == [twin, 90]
    assert all(row["label_name"] == rows[row["row"] - 1][1] for row in table)
