"""Texts as tokens: what a text classifier takes."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from petm._internal.files import fingerprint
from petm.data.base import Data
from petm.data.fields import Fields
from petm.data.text import Texts
from petm.errors import ArgumentError, DataError

_TEXTS = 1024
"""Texts that are encoded at a time."""


class Encoder(Protocol):
    """What turns texts into tokens, such as `petm.models.hf_tokenizer.Tokenizer`."""

    @property
    def maximum(self) -> int | None:
        """The most tokens that the model takes; None where there is no limit."""

    @property
    def padding(self) -> Mapping[str, int]:
        """What the fields are filled up with, by name; those that are not named, with 0."""

    @property
    def pads_left(self) -> bool:
        """Whether they are filled up on the left."""

    def encode(self, texts: Sequence[str], limit: int | None) -> Mapping[str, Sequence[Sequence[int]]]:
        """Returns ``input_ids`` and the other fields of each text, one number a token, of at most ``limit`` tokens."""


class Tokenized(Data):
    """Texts as tokens, encoded once, held without padding and padded as they are read.

    All samples have one length ``L``, that of the longest text or the one that is asked for.

    Args:
        texts: ``N`` texts with labels.
        encoder: What makes tokens of them.
        length: ``L``, to which every text is padded or cut; absent means that of the longest text, at most what the
            model takes.

    Attributes:
        texts: The texts.
        length: ``L``.
        skipped: Names of the texts that were left out when they were read.

    Raises:
        ArgumentError: ``length`` is less than 1 or more than the model takes.
        DataError: A text has no token.
    """

    value_range = (-float("inf"), float("inf"))  # tokens are numbers without an order, which no attack may move

    def __init__(self, texts: Texts, encoder: Encoder, *, length: int | None = None) -> None:
        self.texts, self.labels, self.classes, self.source = texts, texts.labels, texts.classes, texts.source
        self.skipped = texts.skipped
        most = encoder.maximum
        if length is not None and not 1 <= length <= (length if most is None else most):
            rule = "of at least 1" if most is None else f"from 1 to {most}, the most that the model takes"
            raise ArgumentError(f"length: expected a number of tokens {rule}, got {length}.")
        self._tokens, self._counts = _encode(texts, encoder, most if length is None else length)
        self._starts = self._counts.cumsum(0) - self._counts
        self._padding, self._pads_left = encoder.padding, encoder.pads_left
        empty = (self._counts == 0).nonzero().flatten()
        if len(empty):
            raise DataError(
                f"{self.source}: expected at least one token in every text, got none in {len(empty)} of {len(self)} "
                f"(the first is {self.name(int(empty[0]))}). Remove them."
            )
        self.length = length or int(self._counts.max())

    def inputs(self, indices: Sequence[int] | Tensor) -> Fields:
        """Returns int64 ``(n, L)`` fields by name: ``input_ids``, ``attention_mask`` and what the encoder has more."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        starts, counts = self._starts[rows, None], self._counts[rows, None]
        places = torch.arange(self.length) - (self.length - counts if self._pads_left else 0)
        real = (places >= 0) & (places < counts)
        fields = {
            name: tokens[(starts + places).clamp(0, len(tokens) - 1)].long().where(real, self._padding.get(name, 0))
            for name, tokens in self._tokens.items()
        }
        return Fields({**fields, "attention_mask": real.long()})

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the tokens, their counts, the labels and the length."""
        tokens = (part for name, held in sorted(self._tokens.items()) for part in (name, held))
        return fingerprint((*tokens, self._counts, self.labels, str(self.length)))

    def name(self, index: int) -> str:
        """Returns where text ``index`` stands."""
        return self.texts.name(index)

    def text(self, index: int) -> str:
        """Returns text ``index``."""
        return self.texts.text(index)

    def in_memory(self, budget: int = 1 << 30) -> "Tokenized":
        """Returns itself, as tokens are held in memory."""
        return self


def pad_batch(encoder: Encoder, encoded: Mapping[str, Sequence[Sequence[int]]], length: int | None = None) -> Fields:
    """Returns encoded texts as int64 ``(n, L)`` fields by name, padded to one length.

    Args:
        encoder: What has encoded them.
        encoded: One row of numbers a text, of at least one token, for each field.
        length: ``L``; absent takes the longest's.
    """
    counts = torch.tensor([len(tokens) for tokens in encoded["input_ids"]])
    most = length or int(counts.max())
    places = torch.arange(most) - ((most - counts[:, None]) if encoder.pads_left else 0)
    real = (places >= 0) & (places < counts[:, None])
    fields = {}
    for name, rows in encoded.items():
        if name != "attention_mask":
            filled = torch.full((len(rows), most), encoder.padding.get(name, 0))
            fields[name] = filled.masked_scatter(real, torch.tensor([token for row in rows for token in row]))
    return Fields({**fields, "attention_mask": real.long()})


def _encode(texts: Texts, encoder: Encoder, limit: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """The tokens of all texts in a row for each field, in as few bytes as they need, and their counts ``(N,)``."""
    from petm._internal.progress import track

    parts: dict[str, list[Tensor]] = {}
    counts: list[int] = []
    with track("tokenize", len(texts)) as progress:
        for start in range(0, len(texts), _TEXTS):
            chunk = texts.texts.slice(start, _TEXTS).to_pylist()
            encoded = encoder.encode(chunk, limit)
            counts += [len(tokens) for tokens in encoded["input_ids"]]
            for name, rows in encoded.items():
                if name != "attention_mask":  # follows from the counts
                    parts.setdefault(name, []).append(_compact([token for row in rows for token in row]))
            progress.advance(len(chunk))
    return {name: torch.cat(held) for name, held in parts.items()}, torch.tensor(counts)


def _compact(numbers: Sequence[int]) -> Tensor:
    """The numbers in the smallest of PyTorch's integer types that holds them all."""
    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    greatest = max(numbers, default=0)
    return torch.tensor(numbers, dtype=next(kind for kind in kinds if greatest <= torch.iinfo(kind).max))
