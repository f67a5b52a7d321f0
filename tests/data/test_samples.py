"""Data sets of a user's own for a fit: items by name, texts, images of Pillow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import hf_folders
from petm.data.base import TensorData, as_data
from petm.data.fields import Fields
from petm.data.texts import Tokenized
from petm.errors import ArgumentError, DataError
from petm.grading.provenance import InputOrigin
from petm.models.hf_processors import as_processor, load_processor

TEXTS = [text for text, _ in hf_folders.QUESTIONS][:6]
KINDS = [kind for _, kind in hf_folders.QUESTIONS][:3] * 2


class Table:
    """A ``datasets.Dataset`` as petm sees it."""

    def __init__(self, classes: tuple[str, ...] = (), **columns: list[Any]) -> None:
        self.columns, self.column_names, self.read = columns, list(columns), 0
        self.features = {"label": type("ClassLabel", (), {"names": list(classes) or None})()}

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, key: int | str) -> Any:
        self.read += isinstance(key, int)
        return self.columns[key] if isinstance(key, str) else {name: held[key] for name, held in self.columns.items()}


@pytest.mark.parametrize("form", ["pair", "items", "rows", "sentences"])
def test_texts_become_tokens(form: str) -> None:
    tokenizer = hf_folders.word_tokenizer()
    numbers = [0, 1, 2, 0, 1, 2]
    samples: Any = {
        "pair": (TEXTS, torch.tensor(numbers)),
        "items": list(zip(TEXTS, numbers, strict=True)),
        "rows": Table(("a", "b", "c"), text=TEXTS, title=["x"] * 6, label=numbers),
        "sentences": Table(sentence=TEXTS, labels=numbers),
    }[form]
    data = as_data(samples, processor=as_processor(tokenizer))
    assert isinstance(data, Tokenized)
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = data.inputs(range(6))
    for name in ("input_ids", "attention_mask"):
        torch.testing.assert_close(found[name], expected[name])
    assert data.labels.tolist() == numbers
    assert data.classes == (("a", "b", "c") if form == "rows" else ())
    assert (data.text(2), data.name(2)) == (TEXTS[2], "2")


def test_tokens_are_padded_as_the_tokenizer_pads() -> None:
    tokenizer = hf_folders.word_tokenizer()
    rows = {name: list(values) for name, values in tokenizer(TEXTS).items()}
    data = as_data(Table(text=TEXTS, idx=[9] * 6, label=[0, 1] * 3, **rows), processor=as_processor(tokenizer))
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = data.inputs(range(6))
    assert isinstance(found, Fields)
    assert set(found.keys()) == set(rows)
    for name in rows:
        torch.testing.assert_close(found[name], expected[name])
    assert data.lengths is not None
    assert data.lengths.tolist() == [len(each) for each in rows["input_ids"]]
    with pytest.raises(ArgumentError, match=r"^processor: expected a tokenizer"):
        as_data(Table(label=[0, 1] * 3, **rows))


def test_arrays_by_name_are_read_when_asked_for() -> None:
    x = np.random.default_rng(0).random((6, 3, 4, 4), np.float32)
    table = Table(("b", "a"), pixel_values=list(x), label=[0, 1] * 3)
    data = as_data(table)
    assert table.read == 1, "the labels are a column"
    np.testing.assert_array_equal(data.inputs([4, 1]), x[[4, 1]])
    assert (data.labels.tolist(), data.classes) == ([0, 1] * 3, ("b", "a"))
    assert data.value_range == (x.min(), x.max())
    several = as_data(Table(left=list(x), right=list(x + 1), labels=[0, 1] * 3))
    assert several.inputs([2])["right"].tolist() == (x[[2]] + 1).tolist()
    assert several.content != as_data(Table(left=list(x), right=list(x), labels=[0, 1] * 3)).content


def test_images_are_prepared_by_the_processor(tmp_path: Path) -> None:
    processor = load_processor(hf_folders.save(tmp_path, hf_folders.vit(), hf_folders.image_processor()))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)
    pictures = [Image.fromarray(each) for each in pixels]
    expected = np.stack([processor.prepare(each) for each in pictures])
    for samples in (Table(image=pictures, label=[0, 1, 0, 1]), list(zip(pictures, [0, 1, 0, 1], strict=True))):
        data = as_data(samples, processor=processor)
        np.testing.assert_array_equal(data.inputs(range(4)), expected)
        assert data.value_range == processor.value_range
        assert InputOrigin.of_data(data.subset([0])) == InputOrigin(
            processor=str(tmp_path), fingerprint=processor.fingerprint
        )
    same = as_processor(hf_folders.image_processor(), hf_folders.vit())
    np.testing.assert_array_equal(same.prepare(pictures[0]), expected[0])
    assert same.fingerprint == processor.fingerprint


def test_a_tokenizer_from_a_folder_is_remembered(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    hf_folders.save(tmp_path, hf_folders.word_tokenizer())
    processor = as_processor(AutoTokenizer.from_pretrained(tmp_path))
    data = as_data((TEXTS, KINDS), processor=processor)
    found = InputOrigin.of_data(data)
    assert (found.processor, found.fingerprint, found.text_column) == (str(tmp_path), processor.fingerprint, "text")
    assert data.classes == tuple(sorted(set(KINDS)))
    in_memory = as_data((TEXTS, KINDS), processor=as_processor(hf_folders.word_tokenizer()))
    assert InputOrigin.of_data(in_memory) == InputOrigin()
    assert InputOrigin.of_data(TensorData(torch.zeros(2, 1, 8, 9, dtype=torch.uint8))) == InputOrigin((8, 9), 1)
    assert InputOrigin.of_data(TensorData(torch.zeros(2, 1, 8, 9))) == InputOrigin()


def test_several_texts_of_an_item_are_named() -> None:
    samples = Table(premise=TEXTS, hypothesis=TEXTS, label=[0, 1] * 3)
    with pytest.raises(DataError, match="premise, hypothesis"):
        as_data(samples, processor=as_processor(hf_folders.word_tokenizer()))


def test_a_loader_is_no_data_set() -> None:
    with pytest.raises(ArgumentError, match=r"^data: expected petm Data, .* got DataLoader\. Pass its dataset\."):
        as_data(DataLoader([(torch.zeros(1), 0)]))  # type: ignore[arg-type]


def test_the_real_package_is_read_as_rows_by_name() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 3}, features=features)
    tokenizer = hf_folders.word_tokenizer()
    processor = as_processor(tokenizer)
    data = as_data(table, processor=processor)
    assert (data.classes, data.labels.tolist(), data.text(1)) == (("no", "yes"), [0, 1] * 3, TEXTS[1])
    encoded = table.map(lambda row: tokenizer(row["text"])).with_format("torch", columns=["input_ids", "label"])
    tokens = as_data(encoded, processor=processor)
    torch.testing.assert_close(tokens.inputs(range(6))["input_ids"], data.inputs(range(6))["input_ids"])
