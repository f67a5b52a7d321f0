"""Texts with and without padding: many models make a mask only where there is some, and then hand it to every block."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import hf_folders
from experiments.breadth_models import WORDS, model_of
from networks import randomise
from petm.adapter.model import AdaptedModel, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.prefix_features import FeatureStudent, cached_features
from petm.adapter.split_point import holds, split_point_of
from petm.data.base import TensorData
from petm.data.fields import Fields, lengths_of, paddings
from petm.fitting import fit
from petm.models.label_words import LabelWords
from petm.selective.targets import Recall
from petm.training.recipes import Recipe

LENGTHS, LENGTH = (12, 3, 7, 5, 12, 9, 4, 10), 12


def some(lengths: tuple[int, ...], *, left: bool = False, seed: int = 1) -> Fields:
    """Texts of these lengths, padded with 0; id 3 ends each."""
    ids = torch.randint(5, WORDS, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(seed))
    places, counts = torch.arange(LENGTH), torch.tensor(lengths)[:, None]
    mask = places >= LENGTH - counts if left else places < counts
    ends = (places == LENGTH - 1) if left else places == counts - 1
    return Fields({"input_ids": ids.masked_fill(ends, 3) * mask, "attention_mask": mask.long()})


def classifier(kind: str) -> Callable[[], nn.Module]:
    return lambda: model_of(kind, "SequenceClassification")


def label_words() -> nn.Module:
    return LabelWords(hf_folders.llama(), {"good": 7, "bad": 9, "neither": 11}).eval()


BERT = {f"bert.encoder.layer.{block}.attention.self.{name}": 2 for block in (0, 1) for name in ("query", "value")}
LATE_BERT = {name: rank for name, rank in BERT.items() if ".1." in name}
ROBERTA = {f"roberta{name.removeprefix('bert')}": rank for name, rank in LATE_BERT.items()}
DISTILBERT = {f"distilbert.transformer.layer.1.attention.{name}_lin": 2 for name in "qv"}
LLAMA = {f"model.layers.1.self_attn.{name}_proj": 2 for name in "qv"}
KINDS = {
    "BERT": (classifier("bert"), BERT, False),
    "BERT, last block": (classifier("bert"), LATE_BERT, False),
    "RoBERTa": (classifier("roberta"), ROBERTA, False),
    "DistilBERT": (classifier("distilbert"), DISTILBERT, False),
    "LUKE": (
        classifier("luke"),
        {f"luke.{name.removeprefix('bert.')}": rank for name, rank in LATE_BERT.items()},
        False,
    ),
    "GPT-2, padded left": (classifier("gpt2"), {"transformer.h.1.attn.c_attn": 2}, True),
    "Llama, padded left": (classifier("llama"), LLAMA, True),
    "label words, padded left": (label_words, {f"model.{name}": rank for name, rank in LLAMA.items()}, True),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[AdaptedModel, bool]:
    make, layers, left = KINDS[request.param]
    return randomise(attach_adapter(make(), layers), scale=0.3), left


def apart(adapted: AdaptedModel, x: Fields) -> Tensor:
    with torch.no_grad():
        return torch.cat((adapted(x, alpha=0), adapted(x, alpha=1)))


def test_one_pass_over_texts_with_padding_after_texts_without(kind: tuple[AdaptedModel, bool]) -> None:
    adapted, left = kind
    whole, padded = some((LENGTH,) * 8), some(LENGTHS, left=left)
    split_point = split_point_of(adapted, whole)
    for x in (whole, padded, padded[:1], padded[1:2]):
        assert torch.allclose(torch.cat(dual_logits(adapted, x)), apart(adapted, x), rtol=0, atol=1e-4)
    without_mask = apart(adapted, padded.masked(torch.full((8,), LENGTH)))
    assert not torch.allclose(without_mask, apart(adapted, padded), atol=1e-2), "the mask matters"
    adapted.split_point = None
    assert split_point_of(adapted, padded) == split_point, "which texts come first decides nothing"


def test_a_saved_split_point_that_knows_no_mask_is_searched_anew() -> None:
    whole = some((LENGTH,) * 8)
    adapted = randomise(attach_adapter(model_of("bert", "SequenceClassification"), LATE_BERT))
    found = split_point_of(adapted, whole)
    (module, *_), first = found.repeated, {found.module: found.repeated[found.module][:1]}
    assert module == found.module
    assert holds(adapted, found, whole)
    assert not holds(adapted, replace(found, repeated=first), whole)


def test_features_of_texts_whose_first_ones_have_no_padding(kind: tuple[AdaptedModel, bool]) -> None:
    """The features are proven on the first samples; the texts behind them have masks."""
    adapted, left = kind
    texts = some((LENGTH,) * 4 + LENGTHS, left=left)
    data = TensorData(texts, torch.arange(12) % 3)
    data.lengths = lengths_of(texts)
    with cached_features(adapted, data, budget=1 << 24) as (student, rows):
        for length in (LENGTH, 8):
            places = [row for row, text in enumerate((LENGTH,) * 4 + LENGTHS) if (text > 8) == (length > 8)]
            x = texts[places].cut(slice(LENGTH - length, LENGTH) if left else slice(0, length))
            given = rows.inputs(places) if isinstance(student, FeatureStudent) else x
            with torch.no_grad():
                assert torch.allclose(student(given), adapted(x), rtol=0, atol=1e-4)


def test_both_forms_of_texts() -> None:
    for left in (False, True):
        whole, padded = paddings(some((5, 6, 12), left=left))
        assert isinstance(whole, Fields)
        assert isinstance(padded, Fields)
        assert whole["attention_mask"].tolist() == [[1] * 12] * 3
        rows = [[1] * (12 - row) + [0] * row for row in range(3)]
        assert padded["attention_mask"].tolist() == ([row[::-1] for row in rows] if left else rows)
        assert torch.equal(padded["input_ids"], some((5, 6, 12), left=left)["input_ids"])
    for other in (torch.ones(3, 4), Fields({"input_ids": torch.ones(3, 4)})):
        assert paddings(other) == [other]


@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_a_fit_of_texts_whose_first_ones_are_the_longest() -> None:
    """As documents are that fill the model's length."""
    model = model_of("bert", "SequenceClassification")
    parts = []
    for seed in (1, 2):
        texts = some((LENGTH,) * 4 + 8 * LENGTHS, seed=seed)
        with torch.no_grad():
            labels = model(**texts).logits.argmax(1)
        labels[::3] = (labels[::3] + 1) % 3
        parts.append(TensorData(texts, labels))
        parts[-1].lengths = lengths_of(texts)
    recipe = Recipe("an adapter", epsilon=0.1, max_ratio=1.9, epochs=1, max_extra_parameters=0.5)
    grader = fit(model, parts[0], calibration=parts[1], recipe=recipe, target=Recall(0.8), device="cpu", force=True)
    assert len(grader.grade(parts[1]).trusted) == len(parts[1])
