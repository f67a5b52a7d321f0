import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError, ModelError
from petm.training.error_set import ErrorSet, fgsm, find_errors


class Failing(nn.Module):
    """Fails after its children have run."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        raise RuntimeError("by design")


# find_errors


def test_errors_are_those_of_a_sample_by_sample_pass(model: nn.Module, digits: tuple[Data, ...]) -> None:
    data = digits[0].subset(range(200)).in_memory()
    errors = find_errors(model, data, batch_size=100)
    predictions = {}
    with torch.no_grad():
        for index in range(len(data)):
            inputs, label = data[index]
            predicted = int(model(inputs.unsqueeze(0)).argmax())
            if predicted != int(label):
                predictions[index] = predicted
    assert len(predictions) > 3, "the network of the tests ought to make some errors"
    assert errors.indices.tolist() == list(predictions)
    assert errors.predictions.tolist() == list(predictions.values())
    assert errors.total == len(data)
    assert len(errors) == len(predictions)
    assert repr(errors) == f"ErrorSet({len(predictions)} of {len(data)} samples)"


def test_errors_take_a_pair_of_tensors_and_leave_the_model_alone() -> None:
    model = seeded(ResidualNet).train()
    model.bn1.eval()
    before = snapshot(model)
    inputs = images(12)
    with torch.no_grad():
        predictions = copy.deepcopy(model).eval()(inputs).argmax(1)
    labels = predictions.clone()
    labels[[2, 7]] = (labels[[2, 7]] + 1) % 10
    assert find_errors(model, (inputs, labels)).indices.tolist() == [2, 7]
    assert snapshot(model) == before


def test_errors_want_labels() -> None:
    with pytest.raises(DataError, match="tensors:"):
        find_errors(seeded(TinyCNN), TensorData(images(3)))


# fgsm


@pytest.mark.parametrize(("epsilon", "low", "high"), [(0.1, -10.0, 10.0), (0.3, 0.0, 1.0), (0.0, 0.0, 1.0)])
def test_fgsm_of_a_linear_softmax_in_closed_form(epsilon: float, low: float, high: float) -> None:
    model = nn.Linear(12, 5)
    nn.init.normal_(model.weight)
    with torch.no_grad():
        model.weight[:, 3] = 0  # the loss does not depend on this input, so it stays as it is
    inputs, labels = images(40, 12), torch.arange(40) % 5
    W, b = (value.detach().double().numpy() for value in (model.weight, model.bias))
    logits = inputs.double().numpy() @ W.T + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (p - np.eye(5)[labels]) @ W
    expected = np.clip(inputs.numpy() + np.float32(epsilon) * np.sign(gradient).astype(np.float32), low, high)
    found = fgsm(model, inputs, labels, epsilon=epsilon, value_range=(low, high))
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
    assert torch.equal(found[:, 3], inputs[:, 3])


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_fgsm_of_a_network_by_hand(network: type[nn.Module]) -> None:
    model = seeded(network)
    inputs, labels = images(16), torch.arange(16) % 10
    by_hand = inputs.clone().requires_grad_()
    F.cross_entropy(copy.deepcopy(model).eval()(by_hand), labels).backward()
    assert by_hand.grad is not None
    expected = torch.clip(inputs + 0.07 * torch.sign(by_hand.grad), 0, 1)
    assert torch.equal(fgsm(model, inputs, labels, epsilon=0.07, value_range=(0, 1)), expected)
    assert expected.min() == 0
    assert expected.max() == 1
    assert not inputs.requires_grad


def test_fgsm_raises_the_loss(model: nn.Module, digits: tuple[Data, ...]) -> None:
    inputs, labels = digits[2].__getitems__(range(200))
    harder = fgsm(model, inputs, labels, epsilon=0.05, value_range=(0, 1))
    with torch.no_grad():
        before, after = (F.cross_entropy(model(x), labels, reduction="none") for x in (inputs, harder))
    assert (after > before).float().mean() > 0.95


def test_fgsm_leaves_the_model_as_it_was() -> None:
    model = seeded(ResidualNet).train()
    model.block.eval()
    model.fc.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = snapshot(model)
    with torch.no_grad():  # gradients are computed all the same
        found = fgsm(model, images(4), torch.arange(4), epsilon=0.1, value_range=(0, 1))
    assert not torch.equal(found, images(4))
    assert not found.requires_grad
    after = snapshot(model)
    assert torch.equal(before.pop("gradients")["conv1.weight"], after["gradients"].pop("conv1.weight"))
    assert all(gradient is None for gradient in after.pop("gradients").values())
    assert after == before


def test_fgsm_restores_the_modes_when_the_model_fails() -> None:
    model = Failing().train()
    model.inner.eval()
    with pytest.raises(ModelError, match=r"by design"):
        fgsm(model, torch.zeros(2, 4), torch.tensor([0, 1]), epsilon=0.1, value_range=(0, 1))
    assert model.training
    assert not model.inner.training


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf])
def test_fgsm_refuses_an_epsilon(epsilon: float) -> None:
    with pytest.raises(ArgumentError, match="epsilon:"):
        fgsm(nn.Linear(4, 3), torch.zeros(2, 4), torch.tensor([0, 1]), epsilon=epsilon, value_range=(0, 1))


def test_an_error_set_says_how_it_was_found() -> None:
    errors = ErrorSet(torch.tensor([3]), torch.tensor([0]), 10, "hardest")
    assert errors.source == "hardest"
    assert repr(errors) == "ErrorSet(1 of 10 samples, hardest)"
    assert ErrorSet(torch.tensor([3]), torch.tensor([0]), 10).source == "plain"


def test_errors_are_not_sought_by_a_model_that_depends_on_other_samples() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    data = TensorData(torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
    with pytest.raises(ModelError, match="depends on its sample alone"):
        find_errors(Centred(), data)
