"""Texts are batched by their length: results equal those of padding, and the order is kept."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from petm.adapter.model import attach_adapter, views_alone
from petm.adapter.one_pass import find_feature_layer, predict_answers
from petm.adapter.prefix_features import FeatureStudent, cached_features
from petm.data.base import Joined, TensorData
from petm.data.fields import Fields, lengths_of, padded_lengths, trimmed
from petm.errors import ArgumentError
from petm.evidence.features import Mahalanobis
from petm.models.prediction import predict_logits
from petm.training.checkpoint import ShuffledBatches
from petm.training.error_set import ErrorSet
from petm.training.loop import CROSS_ENTROPY, Settings, Storage, train
from petm.training.replacement import replace_errors
from petm.training.tuning import tune

WIDTH = 64


class Reader(nn.Module):
    """Attention over the tokens that are no padding; makes no mask where there is none, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.early = nn.Embedding(50, 16), nn.Linear(16, 64)
        self.block, self.head = Block(), nn.Linear(16, 3)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.seen.append(tuple(input_ids.shape))
        h = self.words(input_ids)
        for _ in range(6):
            h = h + self.early(h).relu() @ self.early.weight
        mask = None if bool(attention_mask.all()) else (attention_mask[:, None] != 0).expand(-1, h.shape[1], -1)
        return self.head(self.block(h, mask))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.key(h) @ h.transpose(1, 2)
        scores = scores if mask is None else scores.masked_fill(~mask, -1e4)
        h = h + self.out(scores.softmax(2) @ h)
        real = torch.ones_like(h) if mask is None else mask[:, 0, :, None].float()
        return (h * real).sum(1) / real.sum(1)


def model() -> Reader:
    torch.manual_seed(0)
    return Reader().eval()


def texts(n: int = 90, *, left: bool = False) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 20, (n,), generator=generator)
    lengths[0], lengths[7] = WIDTH, 40  # a long tail
    places = torch.arange(WIDTH)
    mask = places >= WIDTH - lengths[:, None] if left else places < lengths[:, None]
    ids = torch.randint(1, 50, (n, WIDTH), generator=generator) * mask
    return TensorData(Fields({"input_ids": ids, "attention_mask": mask.long()}), torch.arange(n) % 3)


def padded(data: TensorData) -> TensorData:
    """The same samples, batched without regard to their length."""
    data.lengths = None
    return data


def test_padded_lengths() -> None:
    given = torch.tensor([1, 8, 9, 12, 13, 17, 24, 25, 33, 512])
    assert padded_lengths(given).tolist() == [8, 8, 12, 12, 16, 24, 24, 32, 48, 512]


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_cut_on_its_side(left: bool) -> None:
    data = texts(left=left)
    x = data.inputs([3, 5])
    assert isinstance(x, Fields)
    cut, lengths = trimmed(x), x["attention_mask"].sum(1)
    assert torch.equal(lengths_of(x), lengths)
    assert isinstance(cut, Fields)
    assert cut["input_ids"].shape[1] == padded_lengths(lengths).max() < WIDTH
    assert cut["input_ids"].sum() == x["input_ids"].sum()


@pytest.mark.parametrize("left", [False, True])
def test_predictions_equal_those_of_padding_in_their_order(left: bool) -> None:
    network, data = model(), texts(left=left)
    found = predict_logits(network, data)
    computed = sum(n * length for n, length in network.seen)
    torch.testing.assert_close(found, predict_logits(network, padded(texts(left=left))))
    assert computed < 0.5 * len(data) * WIDTH


@pytest.mark.parametrize("left", [False, True])
def test_evidence_on_features_does_not_depend_on_who_is_in_the_batch(left: bool) -> None:
    data, adapted = texts(left=left), views_alone(model(), ())
    adapted.take_features(find_feature_layer(adapted, data.inputs([0, 1])))
    assert adapted.feature_layer == "head"
    answers = predict_answers(adapted, data)
    fitted = Mahalanobis().fit(answers, data.labels)
    alone = [fitted.score(predict_answers(adapted, data.subset([index]))) for index in range(len(data))]
    torch.testing.assert_close(fitted.score(answers), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_every_batch_is_of_one_length_and_every_text_in_one() -> None:
    lengths = texts().lengths
    assert lengths is not None
    order = ShuffledBatches(90, 8, 0, lengths)
    batches = list(order)
    assert len(batches) == len(order)
    assert sorted(index for batch in batches for index in batch) == list(range(90))
    assert all(len(padded_lengths(lengths[torch.tensor(batch)]).unique()) == 1 for batch in batches)
    order.epoch = 1
    assert list(order) != batches
    order.epoch, order.first = 0, 3
    assert list(order) == batches[3:]


def test_fgsm_steps_equal_those_of_padding() -> None:
    network, found = model(), []
    for data in (texts(), padded(texts())):
        every = ErrorSet(torch.arange(90), data.labels, 90, "every sample")
        found.append(replace_errors(network, data, every, epsilon=0.1).inputs(range(90)))
    one, other = (each["+words"].float() for each in found if isinstance(each, Fields))
    assert one.shape == (90, WIDTH, 16)
    real = (texts().inputs(range(90))["attention_mask"] != 0)[..., None]
    assert ((one == other) | ~real).float().mean() > 0.999


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("budget", [1 << 30, 20_000, 1], ids=["memory", "both", "file"])
def test_features_of_texts_take_rows_of_their_length(left: bool, budget: int) -> None:
    data = texts(left=left)
    adapted = attach_adapter(model(), {"block.out": 2, "head": 2})
    with torch.no_grad():
        for parameter in adapted.adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = predict_answers(adapted, padded(texts(left=left))).second
    with cached_features(adapted, data, budget=budget) as (student, seen):
        assert isinstance(student, FeatureStudent)
        torch.testing.assert_close(predict_logits(student, seen), expected, rtol=1e-4, atol=1e-5)
        assert student.numbers(data) < 0.5 * len(data) * student.width
        with pytest.raises(ArgumentError, match="indices:"):
            seen.inputs([0, 1])


def test_training_on_features_equals_training_without() -> None:
    found = []
    for budget in (0, 1 << 30):
        adapted, data = attach_adapter(model(), {"block.out": 2, "head": 2}), texts()
        tune(adapted, Joined(data, data), epochs=3, batch_size=16, cache_budget=budget, device="cpu")
        found.append(predict_answers(adapted, data).second)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_an_interrupted_training_by_length_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def trained(storage: Storage | None, stop: int | None = None) -> list[bytes]:
        network, calls = model(), 0

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return CROSS_ENTROPY.loss(logits, targets)

        objective = type(CROSS_ENTROPY)(loss, CROSS_ENTROPY.agrees, "accuracy", "cross-entropy")
        train(network, texts(), objective, Settings(3, 1e-2, 8), storage=storage, device="cpu")
        return [weight.detach().numpy().tobytes() for weight in network.parameters()]

    with pytest.raises(KeyboardInterrupt):
        trained(Storage(tmp_path / "checkpoint", every=0.0), stop=20)
    assert trained(Storage(tmp_path / "checkpoint", resume=True)) == trained(None)
