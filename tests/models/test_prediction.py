import contextlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData
from petm.errors import DataError, ModelError
from petm.models.prediction import (
    batches,
    check_labels,
    choose_device,
    device_of,
    evaluating,
    in_eval_mode,
    in_fast_layout,
    predict_classes,
    predict_logits,
)


class Lazy(Data):
    """Data whose values nobody has seen before they are read."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.labels = values, torch.zeros(len(values), dtype=torch.int64)
        self.classes, self.value_range, self.source = (), (0.0, 1.0), "lazy"

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self.values[torch.as_tensor(indices)]

    content = "lazy"  # type: ignore[assignment]


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert choose_device("auto").type == (accelerator or torch.device("cpu")).type
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_logits_are_those_of_the_model_in_eval_mode() -> None:
    model = seeded(ResidualNet).train()
    model.block.eval()
    before = snapshot(model)
    logits = predict_logits(model, TensorData(images(7)), batch_size=3)
    assert snapshot(model) == before
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(images(7)[start : start + 3]) for start in (0, 3, 6)])
    assert torch.equal(logits, expected)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    logits += 1  # an ordinary tensor, which may be changed


def test_low_precision_logits_come_back_as_float32() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).expand(-1, 2).bfloat16()

    assert predict_logits(Half(), TensorData(images(3))).dtype == torch.float32


def test_further_arguments_reach_the_model() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, alpha: float = 1.0) -> Tensor:
            return alpha * x.flatten(1)

    inputs = images(3)
    assert torch.equal(predict_logits(Scaled(), TensorData(inputs), alpha=3.0), 3 * inputs.flatten(1))


def test_modes_come_back_after_a_failure() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 2)).train()
    model[0].eval()
    with pytest.raises(ModelError, match=r"model: "):
        predict_logits(model, TensorData(images(2, 4)))
    assert [module.training for module in model.modules()] == [True, False, True]
    assert torch.is_grad_enabled()
    with contextlib.suppress(KeyboardInterrupt), in_eval_mode(model):
        assert not model.training
        raise KeyboardInterrupt
    assert model.training


def test_evaluating_leaves_no_gradient_and_no_tensor_that_forbids_one() -> None:
    model = nn.Linear(2, 2)
    with evaluating(model):
        kept = model(torch.ones(1, 2))
    assert not kept.requires_grad
    (kept * model.weight).sum().backward()  # what a model caches while it is graded may be trained through later
    assert model.weight.grad is not None


def test_no_samples() -> None:
    with pytest.raises(DataError, match=r"tensors: "):
        predict_logits(seeded(TinyCNN), TensorData(images(0)))


def test_a_sample_that_is_not_finite_is_named() -> None:
    values = images(5)
    values[4, 0, 3, 3] = torch.nan
    with pytest.raises(DataError, match=r"lazy, samples from 3: .* in 1 of 2 samples \(the first is sample 1\)"):
        predict_logits(seeded(TinyCNN), Lazy(values), batch_size=3)


def test_batches_keep_order_and_cover_all() -> None:
    data = TensorData(images(7), torch.arange(7))
    found = list(batches(data, torch.device("cpu"), 3))
    assert [len(batch.inputs) for batch in found] == [3, 3, 1]
    assert torch.cat([batch.targets for batch in found]).tolist() == list(range(7))
    assert torch.equal(torch.cat([batch.inputs for batch in found]), images(7))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, -1, 1], r"mine: expected labels from 0 to 2, got none for sample 1, the first of 2 such"),
        ([0, 1, 3], r"mine: expected labels from 0 to 2, got 3 for sample 2, the first of 1 such"),
        ([1, 1, 1], "mine: expected samples of at least two classes, got only class 1"),
    ],
)
def test_labels_outside_their_rule(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels(torch.tensor(labels), 3, "mine")


def test_labels_within_their_rule() -> None:
    check_labels(torch.tensor([2, 0, 2]), 3, "mine")


class ByView(nn.Module):
    """Flattens by ``view``, which no image that lies channels last allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


def test_the_fast_layout_copies_frozen_convolutions_alone() -> None:
    model = seeded(ResidualNet).eval().requires_grad_(False)
    model.block[0].weight.requires_grad_()
    before, fast = snapshot(model), in_fast_layout(model, images(2))
    assert snapshot(model) == before
    assert fast is not model
    assert fast.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    same = {
        name
        for name, tensor in fast.state_dict(keep_vars=True).items()
        if tensor is model.state_dict(keep_vars=True)[name]
    }
    assert set(model.state_dict()) - same == {"conv1.weight"}
    assert torch.allclose(fast(images(7)), model(images(7)), atol=1e-6)


def test_predicted_classes_are_those_of_the_logits() -> None:
    model, data = seeded(ResidualNet), TensorData(images(11))
    expected = predict_logits(model, data).argmax(1)
    assert model.training
    assert torch.equal(predict_classes(model, data, batch_size=4), expected)
    with pytest.raises(DataError, match="tensors: "):
        predict_classes(model, TensorData(images(0)))


@pytest.mark.parametrize("model", [ByView(), nn.Sequential(nn.Flatten(), nn.Linear(48, 3))], ids=["view", "linear"])
def test_a_model_that_gains_nothing_keeps_its_layout(model: nn.Module) -> None:
    model = model.eval().requires_grad_(False)
    x = images(2, 3, 6, 6) if isinstance(model, ByView) else images(2, 3, 4, 4)
    assert in_fast_layout(model, x) is model
