"""Texts as tokens: padding, length, views, and what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import hf_folders
from petm.data.base import Data, Subset
from petm.data.text import Texts, read_texts
from petm.data.tokenized import Tokenized
from petm.errors import ArgumentError, DataError
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer


@dataclass(frozen=True)
class Letters:
    """A text's letters as their codes, ``^`` in front of them; digits make tokens of another type."""

    maximum: int | None = 6
    pads_left: bool = False
    padding: Mapping[str, int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", {"input_ids": 9})

    def encode(self, texts: Sequence[str], limit: int | None) -> dict[str, list[list[int]]]:
        kept = [f"^{text}"[:limit].replace("^^", "") for text in texts]
        return {
            "input_ids": [[ord(letter) for letter in text] for text in kept],
            "token_type_ids": [[int(letter.isdigit()) for letter in text] for text in kept],
            "attention_mask": [[1] * len(text) for text in kept],
        }


def texts_of(folder: Path, *texts: str) -> Texts:
    path = folder / "x.csv"
    path.write_text("text,label\n" + "".join(f"{text},{number % 3}\n" for number, text in enumerate(texts)))
    return read_texts(path, classes=["zero", "one", "two"])


def rows(data: Data, name: str = "input_ids") -> list[list[int]]:
    fields = data.inputs(range(len(data)))
    return fields[name].tolist()  # type: ignore[union-attr, no-any-return]


def test_texts_are_padded_to_the_longest(tmp_path: Path) -> None:
    data = Tokenized(texts_of(tmp_path, "a", "b1c", "dé"), Letters())
    caret, accent = ord("^"), ord("é")
    assert data.length == 4
    assert rows(data) == [[caret, 97, 9, 9], [caret, 98, 49, 99], [caret, 100, accent, 9]]
    assert rows(data, "token_type_ids") == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert rows(data, "attention_mask") == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert {tensor.dtype for tensor in data.inputs([0]).values()} == {torch.int64}
    assert (data.labels.tolist(), data.classes) == ([0, 1, 2], ("zero", "one", "two"))
    assert data.name(1) == f"{tmp_path / 'x.csv'}:3"
    assert data.in_memory() is data


def test_padding_on_the_left(tmp_path: Path) -> None:
    data = Tokenized(texts_of(tmp_path, "a", "bc"), Letters(pads_left=True))
    assert rows(data) == [[9, 94, 97], [94, 98, 99]]
    assert rows(data, "attention_mask") == [[0, 1, 1], [1, 1, 1]]


def test_a_length_of_the_callers_pads_and_cuts(tmp_path: Path) -> None:
    texts = texts_of(tmp_path, "a", "bcdefghijk")
    assert Tokenized(texts, Letters()).inputs([1])["input_ids"].shape == (1, 6), "no more than the model takes"
    assert Tokenized(texts, Letters(maximum=None)).length == 11
    assert rows(Tokenized(texts, Letters(), length=3)) == [[94, 97, 9], [94, 98, 99]]
    assert Tokenized(texts_of(tmp_path, "a"), Letters(), length=5).inputs([0])["input_ids"].shape == (1, 5)
    with pytest.raises(ArgumentError, match=r"length: expected a number of tokens from 1 to 6, the most .* got 7"):
        Tokenized(texts, Letters(), length=7)
    with pytest.raises(ArgumentError, match=r"length: expected a number of tokens of at least 1, got 0"):
        Tokenized(texts, Letters(maximum=None), length=0)


def test_a_text_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least one token in every text, got none in 1 of 2 \(the first is .*csv:3"):
        Tokenized(texts_of(tmp_path, "a", "^"), Letters())


def test_views_batches_and_splits(tmp_path: Path) -> None:
    data = Tokenized(texts_of(tmp_path, *"abcdefghi"), Letters())
    view = data.subset([4, 1])
    assert isinstance(view, Subset)
    assert rows(view) == [[94, 101], [94, 98]]
    assert view.name(0) == data.name(4)
    assert view.in_memory() is view
    batch = data.__getitems__([8, 0])
    assert batch.inputs["input_ids"].tolist() == [[94, 105], [94, 97]]  # type: ignore[call-overload]
    assert batch.targets.tolist() == [2, 0]
    parts = data.split((2 / 3, 1 / 3))
    assert sorted(row[1] for part in parts for row in rows(part)) == list(range(97, 106))
    assert rows(data.subset([-1])) == [[94, 105]]
    assert data.inputs([])["input_ids"].shape == (0, 2)


def test_content_follows_texts_labels_and_length(tmp_path: Path) -> None:
    same = [Tokenized(texts_of(tmp_path, "a", "b"), Letters()).content for _ in range(2)]
    others = [
        Tokenized(texts_of(tmp_path, "a", "c"), Letters()).content,
        Tokenized(texts_of(tmp_path, "a", "b"), Letters(), length=5).content,
        Tokenized(texts_of(tmp_path, "b", "a"), Letters()).content,
    ]
    (tmp_path / "x.csv").write_text("text,label\na,2\nb,1\n")
    others.append(Tokenized(read_texts(tmp_path / "x.csv"), Letters()).content)
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5


@pytest.mark.parametrize(("letter", "bytes_a_token"), [("a", 1), ("ё", 2), ("😀", 4)])
def test_tokens_are_held_in_as_few_bytes_as_they_need(tmp_path: Path, letter: str, bytes_a_token: int) -> None:
    data = Tokenized(texts_of(tmp_path, *[letter] * 2000), Letters())
    assert data.inputs([1999])["input_ids"].tolist() == [[94, ord(letter)]]
    held = sum(value.nbytes for name, value in data._tokens.items() if name == "input_ids")
    assert held == 2000 * 2 * bytes_a_token


def test_a_real_tokenizer_pads_as_transformers_does(tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path / "bert", hf_folders.bert(), hf_folders.word_tokenizer())
    encoder = load_processor(folder)
    assert isinstance(encoder, Tokenizer)
    written = [text.replace(",", "") for text, _ in hf_folders.QUESTIONS]
    data = Tokenized(texts_of(tmp_path, *written), encoder)
    expected = hf_folders.word_tokenizer()(written, padding=True, return_tensors="pt")
    for name, tensor in data.inputs(range(len(data))).items():
        assert torch.equal(tensor, expected[name])
