import math
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, ModelError, NothingToLearnError
from petm.training.error_set import ErrorSet, find_errors
from petm.training.loop import CROSS_ENTROPY, Settings, train
from petm.training.teacher import require_errors, train_teacher


@pytest.fixture(scope="module")
def part(digits: tuple[Data, ...]) -> TensorData:
    data = digits[0].subset(range(200)).in_memory()
    assert isinstance(data, TensorData)
    return data


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def replaced_by_hand(model: nn.Module, data: TensorData, errors: ErrorSet, epsilon: float) -> TensorData:
    """The data of which the paper speaks, all in memory, made without petm's FGSM."""
    inputs = data.inputs(range(len(data))).clone()
    wrong = inputs[errors.indices].requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(wrong), data.labels[errors.indices]), wrong)
    inputs[errors.indices] = (wrong.detach() + epsilon * gradient.sign()).clip(0, 1)
    return TensorData(inputs, data.labels, value_range=(0, 1))


@pytest.mark.parametrize("samples", ["replaced", "errors"])
def test_the_teacher_is_the_base_model_trained_further_on_the_replaced_data(
    model: nn.Module, part: TensorData, samples: Any
) -> None:
    before = snapshot(model)
    errors = find_errors(model, part)
    teacher = train_teacher(
        model, part, errors, epsilon=0.15, samples=samples, epochs=2, batch_size=32, seed=4, device="cpu"
    )
    assert snapshot(model) == before
    assert not teacher.training
    by_hand = replaced_by_hand(model, part, errors, 0.15)
    seen = by_hand.subset(errors.indices) if samples == "errors" else by_hand
    train(model, seen, CROSS_ENTROPY, Settings(epochs=2, learning_rate=1e-3, batch_size=32, seed=4), device="cpu")
    assert bits(teacher) == bits(model)
    assert bits(teacher) != before["bits"]


def test_the_control_is_a_further_trained_on_the_same_data(model: nn.Module, part: TensorData) -> None:
    control = train_teacher(model, part, find_errors(model, part), epsilon=0, epochs=1, seed=4, device="cpu")
    train(model, part, CROSS_ENTROPY, Settings(epochs=1, learning_rate=1e-3, seed=4), device="cpu")
    assert bits(control) == bits(model)


def test_a_pair_of_tensors_will_do(model: nn.Module) -> None:
    inputs = images(20)
    labels = (model(inputs).argmax(1) + (torch.arange(20) % 2)) % 10
    errors = find_errors(model, (inputs, labels))
    assert len(errors) == 10
    assert bits(train_teacher(model, (inputs, labels), errors, epochs=1, device="cpu")) != bits(model)  # type: ignore[arg-type]


def test_a_frozen_base_has_a_teacher_that_learns(model: nn.Module, part: TensorData) -> None:
    model.requires_grad_(False)
    teacher = train_teacher(model, part, find_errors(model, part), epochs=1, device="cpu")
    assert all(bits(teacher)[name] != value for name, value in bits(model).items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_from_scratch_every_weight_is_fresh(network: type[nn.Module]) -> None:
    model = seeded(network).eval()
    data = TensorData(images(20), torch.arange(20) % 10)
    errors = find_errors(model, data)
    state = torch.get_rng_state()
    keywords: dict[str, Any] = {"start": "scratch", "epochs": 1, "learning_rate": 1e-12, "device": "cpu"}
    first, same, other = (train_teacher(model, data, errors, seed=seed, **keywords) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert bits(first) == bits(same)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and "bn" not in name:
            fresh = first.get_parameter(name)
            assert not torch.allclose(fresh, parameter, atol=1e-3), name
            assert not torch.allclose(fresh, other.get_parameter(name), atol=1e-3), name
            bound = 1 / math.sqrt(parameter[0].numel())  # PyTorch's own initialisation of both kinds of layer
            assert fresh.abs().max() <= bound * (1 + 1e-5), name


def test_no_errors_nothing_to_learn(model: nn.Module, part: TensorData) -> None:
    none = torch.empty(0, dtype=torch.int64)
    message = "errors:"
    with pytest.raises(NothingToLearnError, match=message):
        train_teacher(model, part, ErrorSet(none, none, 200))
    with pytest.raises(NothingToLearnError, match=message):
        require_errors(ErrorSet(none, none, 200))
    require_errors(ErrorSet(torch.tensor([3]), torch.tensor([1]), 200))


def test_choices_outside_their_rule(model: nn.Module, part: TensorData) -> None:
    errors = find_errors(model, part)
    with pytest.raises(ArgumentError, match="start:"):
        train_teacher(model, part, errors, start="zero")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="samples:"):
        train_teacher(model, part, errors, samples="all")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="epsilon:"):
        train_teacher(model, part, errors, epsilon=-1)
    with pytest.raises(ArgumentError, match="epochs:"):
        train_teacher(model, part, errors, epochs=0)


def test_a_model_that_cannot_be_copied(model: nn.Module, part: TensorData) -> None:
    errors = find_errors(model, part)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="model:"):
        train_teacher(model, part, errors)


def test_a_weight_that_cannot_be_made_afresh(part: TensorData) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * (x.flatten(1)[:, :10] - 0.5)

    for model in (nn.Sequential(Scale()), Scale()):
        with pytest.raises(ModelError, match="start:"):
            train_teacher(model, part, find_errors(model, part), start="scratch")
        train_teacher(model, part, find_errors(model, part), start="base", epochs=1, device="cpu")
