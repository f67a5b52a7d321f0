"""Backward passes in parts: how many samples they take, and that nothing else changes."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.adapter.model import attach_adapter
from petm.data.base import TensorData
from petm.data.fields import in_parts
from petm.models.prediction import BATCH_SIZE
from petm.training.at_once import samples_at_once
from petm.training.error_set import ErrorSet, fgsm
from petm.training.loop import CROSS_ENTROPY, Settings, train
from petm.training.replacement import replace_errors

WIDTH, DEPTH = 16, 32


class Deep(nn.Module):
    """Its graph holds the output of each of its steps, all of one size; it notes the rows of calls with a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.rows = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.rows.append(len(x))
        x = self.first(x)
        for _ in range(DEPTH):
            x = torch.tanh(1.1 * x)
        out: Tensor = self.last(x)
        return out


def samples(n: int = BATCH_SIZE) -> TensorData:
    return TensorData(torch.rand(n, WIDTH, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3)


@pytest.mark.parametrize("depth", [1, 8, 32, 5000])
def test_a_graph_of_many_layers_takes_fewer_samples_than_a_forward_pass(depth: int) -> None:
    weight = torch.eye(WIDTH)  # held too, once for all samples

    def steps(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        for _ in range(depth):
            x = torch.tanh(F.linear(x, weight))
        return x

    assert samples_at_once(steps, samples(1).inputs([0])) == max(1, 2 * BATCH_SIZE // depth)


def test_without_a_graph_it_is_the_batch_of_a_forward_pass() -> None:
    assert samples_at_once(lambda x: x.detach() * 2, samples(1).inputs([0])) == BATCH_SIZE


@pytest.mark.parametrize(("n", "most", "sizes"), [(10, 4, [3, 3, 4]), (9, 5, [4, 5]), (4, 9, [4]), (0, 3, [])])
def test_parts_of_a_batch(n: int, most: int, sizes: list[int]) -> None:
    x = torch.arange(n)
    parts = in_parts(x, most)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat([x[:0], *parts]), x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_adapter_learns_in_parts_what_it_learns_from_whole_batches(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = Deep(), Settings(epochs=2, learning_rate=0.01, batch_size=BATCH_SIZE, precision=precision)
    weights = []
    for whole in (True, False):
        adapted = attach_adapter(copy.deepcopy(model), {"first": 2})
        if whole:
            monkeypatch.setattr("petm.training.loop.samples_at_once", lambda *_: BATCH_SIZE)
        else:
            monkeypatch.undo()
        history = train(adapted, samples(300), CROSS_ENTROPY, settings, device="cpu")
        rows = [count for count in adapted.base.rows if count > 2]
        assert (max(rows) == BATCH_SIZE) if whole else (max(rows) <= 2 * BATCH_SIZE // DEPTH)
        assert sum(rows) == 2 * 300
        weights.append((history.epochs, adapted.adapter_state()))
    (losses, expected), (losses_in_parts, found) = weights
    for one, other in zip(losses, losses_in_parts, strict=True):
        assert one == pytest.approx(other, rel=1e-5 if precision == "float32" else 1e-2)
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], atol=1e-5 if precision == "float32" else 2e-2), name


def test_adversarial_examples_are_made_in_parts() -> None:
    model, data = Deep().eval(), samples(64)
    every = ErrorSet(torch.arange(64), data.labels, 64)
    made = replace_errors(model, data, every, epsilon=0.1).inputs(range(64))
    rows = [count for count in model.rows if count > 2]
    assert max(rows) <= 2 * BATCH_SIZE // DEPTH
    whole = fgsm(model, data.inputs(range(64)), data.labels, epsilon=0.1, value_range=data.value_range)
    torch.testing.assert_close(made, whole, atol=1e-6, rtol=0)
