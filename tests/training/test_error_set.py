import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError, ModelError
from petm.training.error_set import ErrorSet, fgsm, find_errors
from petm.training.replacement import replace_errors


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
    with pytest.raises(DataError, match=r"tensors: expected labels from 0 to 9, got none for sample 0"):
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
    with pytest.raises(ArgumentError, match=rf"epsilon: expected a finite number of at least 0, got {epsilon}"):
        fgsm(nn.Linear(4, 3), torch.zeros(2, 4), torch.tensor([0, 1]), epsilon=epsilon, value_range=(0, 1))


# replace_errors


@pytest.fixture(scope="module")
def replaced_parts(digits: tuple[Data, ...]) -> tuple[nn.Module, Data, ErrorSet, Data]:
    model = seeded(TinyCNN)
    data = digits[1].in_memory()
    errors = ErrorSet(torch.tensor([3, 5, 100]), torch.tensor([0, 0, 0]), len(data))
    return model, data, errors, replace_errors(model, data, errors, epsilon=0.2, batch_size=2)


def test_only_the_errors_are_replaced_and_keep_their_labels(replaced_parts: tuple) -> None:
    model, data, errors, replaced = replaced_parts
    everything = range(len(data))
    plain, labels = data.__getitems__(everything)
    expected = plain.clone()
    for index in errors.indices.tolist():
        expected[index] = fgsm(
            model, plain[index : index + 1], labels[index : index + 1], epsilon=0.2, value_range=(0, 1)
        )
    found, targets = replaced.__getitems__(everything)
    assert torch.equal(targets, labels)
    assert torch.equal(replaced.labels, data.labels)
    changed = (found != plain).flatten(1).any(1).nonzero().flatten()
    assert changed.tolist() == errors.indices.tolist()
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert (replaced.classes, replaced.value_range, replaced.source) == (data.classes, data.value_range, data.source)
    assert replaced.name(3) == data.name(3)


def test_the_replaced_data_set_is_a_view(replaced_parts: tuple) -> None:
    _, data, errors, replaced = replaced_parts
    before = data.inputs(range(len(data)))
    replaced.inputs(range(len(data)))
    assert torch.equal(data.inputs(range(len(data))), before)
    held = [value for value in vars(replaced).values() if isinstance(value, Tensor) and value.is_floating_point()]
    assert [len(value) for value in held] == [len(errors)]


def test_any_order_any_number(replaced_parts: tuple) -> None:
    _, data, errors, replaced = replaced_parts
    everything = replaced.inputs(range(len(data)))
    for indices in ([5, 5, 4, 3], [7], [], torch.tensor([100, 0])):
        assert torch.equal(replaced.inputs(indices), everything[torch.as_tensor(indices, dtype=torch.int64)])
    assert torch.equal(replaced.subset(errors.indices).inputs([0, 1, 2]), everything[errors.indices])
    assert torch.equal(replaced[5].inputs, everything[5])


class Lending(Data):
    """Hands out its own memory instead of a copy."""

    def __init__(self) -> None:
        self.held = images(4)
        self.labels, self.classes, self.value_range, self.source = torch.arange(4), (), (0.0, 1.0), "lending"

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self.held[: len(indices)]

    content = "held"  # type: ignore[assignment]


def test_data_that_hands_out_its_own_memory_is_not_written_to() -> None:
    data = Lending()
    replaced = replace_errors(seeded(TinyCNN), data, ErrorSet(torch.tensor([1]), torch.tensor([0]), 4), epsilon=0.2)
    assert not torch.equal(replaced.inputs(range(4)), images(4))
    assert torch.equal(data.held, images(4))


def test_the_content_follows_data_errors_epsilon_and_model(replaced_parts: tuple) -> None:
    model, data, errors, replaced = replaced_parts
    fewer = ErrorSet(errors.indices[1:], errors.predictions[1:], errors.total)
    other_data = TensorData(data.inputs(range(len(data))), data.labels.roll(1), value_range=(0, 1))
    others = [
        replace_errors(model, data, errors, epsilon=0.1),
        replace_errors(model, data, fewer, epsilon=0.2),
        replace_errors(seeded(TinyCNN, seed=1), data, errors, epsilon=0.2),
        replace_errors(model, other_data, errors, epsilon=0.2),
    ]
    assert replace_errors(model, data, errors, epsilon=0.2).content == replaced.content
    assert len({other.content for other in [*others, replaced]}) == 5


def test_no_errors_replace_nothing(replaced_parts: tuple) -> None:
    model, data, _, _ = replaced_parts
    none = torch.empty(0, dtype=torch.int64)
    replaced = replace_errors(model, data, ErrorSet(none, none, len(data)), epsilon=0.2)
    assert torch.equal(replaced.inputs(range(9)), data.inputs(range(9)))


def test_errors_of_another_data_set(replaced_parts: tuple) -> None:
    model, data, errors, _ = replaced_parts
    with pytest.raises(
        ArgumentError, match=r"errors: expected an error set of these 10 samples, got ErrorSet\(3 of 179 samples\)"
    ):
        replace_errors(model, data.subset(range(10)), errors, epsilon=0.1)


# the source of an error set


def test_an_error_set_says_how_it_was_found() -> None:
    errors = ErrorSet(torch.tensor([3]), torch.tensor([0]), 10, "hardest")
    assert errors.source == "hardest"
    assert repr(errors) == "ErrorSet(1 of 10 samples, hardest)"
    assert ErrorSet(torch.tensor([3]), torch.tensor([0]), 10).source == "plain"


# the random direction


def test_random_signs_go_as_far_as_fgsm_but_elsewhere(replaced_parts: tuple) -> None:
    model, data, errors, _ = replaced_parts
    wide = TensorData(data.inputs(range(len(data))), data.labels, value_range=(-9, 9))  # so that nothing is clipped
    plain = wide.inputs(errors.indices)
    steps = {}
    for direction in ("gradient", "random"):
        moved = replace_errors(model, wide, errors, epsilon=0.2, direction=direction)
        steps[direction] = moved.inputs(errors.indices) - plain
        others = torch.tensor([index for index in range(len(wide)) if index not in errors.indices])
        assert torch.equal(moved.inputs(others), wide.inputs(others))
    assert torch.allclose(steps["random"].abs(), torch.full_like(plain, 0.2), atol=1e-6)
    assert steps["gradient"].abs().max() == pytest.approx(0.2, abs=1e-6)
    count = plain.numel()
    assert abs(float(steps["random"].sign().mean())) < 4 / math.sqrt(count)
    assert abs(float((steps["random"] * steps["gradient"]).mean()) / 0.04) < 4 / math.sqrt(count)


def test_random_signs_follow_the_seed_and_stay_in_the_range(replaced_parts: tuple) -> None:
    model, data, errors, _ = replaced_parts

    def moved(seed: int, **keywords: object) -> Data:
        return replace_errors(model, data, errors, epsilon=0.2, direction="random", seed=seed, **keywords)  # type: ignore[arg-type]

    one, again, other = moved(1), moved(1, batch_size=1), moved(2)
    assert torch.equal(one.inputs(errors.indices), again.inputs(errors.indices))
    assert not torch.equal(one.inputs(errors.indices), other.inputs(errors.indices))
    assert (float(one.inputs(errors.indices).min()), float(one.inputs(errors.indices).max())) == (0, 1)
    assert len({view.content for view in (one, again, other, replace_errors(model, data, errors, epsilon=0.2))}) == 3


def test_directions_have_names(replaced_parts: tuple) -> None:
    model, data, errors, _ = replaced_parts
    with pytest.raises(ArgumentError, match="direction: expected 'gradient' or 'random', got 'up'"):
        replace_errors(model, data, errors, epsilon=0.2, direction="up")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="epsilon: expected a finite number of at least 0, got -1"):
        replace_errors(model, data, errors, epsilon=-1, direction="random")


@pytest.mark.parametrize("direction", ["gradient", "random"])
def test_what_is_no_float_cannot_be_moved(direction: str) -> None:
    class Tokens(TensorData):
        def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
            return torch.zeros(len(indices), 5, dtype=torch.int64)

    data = Tokens(torch.zeros(4, 5), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ArgumentError, match=r"inputs: expected floats, which can be moved by a step, got torch.int64"):
        replace_errors(
            nn.Embedding(3, 3),
            data,
            ErrorSet(torch.tensor([1]), torch.tensor([0]), 4),
            epsilon=0.1,
            direction=direction,  # type: ignore[arg-type]
        )
