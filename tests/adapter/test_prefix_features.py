import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masked import Masked
from networks import ResidualNet, TinyCNN, images, randomise, seeded
from petm.adapter.model import AdaptedModel, attach_adapter
from petm.adapter.prefix_features import FeatureStudent, cached_features
from petm.adapter.split_point import AROUND, split_point_of
from petm.data.base import Data, TensorData
from petm.data.fields import Fields
from petm.errors import RunError
from petm.models.paper import PaperCNN
from petm.training.distillation import distill
from petm.training.loop import CROSS_ENTROPY, Storage
from petm.training.tuning import tune


class Viewed(nn.Module):
    """Flattens by ``view``, which cannot tell how to reshape an empty batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(1, 4, 5, stride=4), nn.Linear(144, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head(F.relu(self.fc(x.view(x.size(0), -1))))


LATE: list[Any] = [
    (TinyCNN, {"fc1": 3, "fc2": 2}, 72 + 16),
    (ResidualNet, {"block.conv1": 2, "fc": 3}, 6 * 6 * 6),  # parts before bn1: conv1's 6 maps of 6 × 6
    (Viewed, {"fc": 3, "head": 2}, 144 + 16),
]


def adapt(network: type[nn.Module], layers: dict[str, int]) -> AdaptedModel:
    return attach_adapter(seeded(network).eval(), layers)


def teacher() -> nn.Module:
    return seeded(TinyCNN, seed=5).eval()


@pytest.fixture(scope="module")
def part(digits: tuple[Data, ...]) -> Data:
    return digits[0].subset(range(150)).in_memory()


@pytest.mark.parametrize(("network", "layers", "width"), [*LATE, (Masked, {"blocks.1.down": 2}, 28 * 16 + 28)])
def test_a_student_on_features_answers_as_the_second_opinion(
    network: type[nn.Module], layers: dict[str, int], width: int
) -> None:
    adapted, x = randomise(adapt(network, layers)), images(9)
    with cached_features(adapted, TensorData(x), budget=1 << 20) as (student, rows):
        assert isinstance(student, FeatureStudent)
        assert student.width == rows.inputs([0]).shape[1] == width
        indices = [4, 0, 8]
        assert torch.allclose(student(rows.inputs(indices)), adapted(x[indices]), atol=1e-6)
        assert rows.content != TensorData(x).content


class MasksLate(Masked):
    """The last block has a mask of its own."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        early, late = (rows.sum(2) < limit for limit in (13.5, 14.0))
        x = self.embed(rows)
        for block in self.blocks[:2]:
            x = block(x, extra={"masks": [early]})
        return self.head(self.blocks[2](x, extra={"masks": [late]})[:, 0])


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (PaperCNN, {"conv1": 2, "fc1": 2}),  # the first layer is 2 % of the work
        (MasksLate, {"blocks.1.down": 2}),  # the mask of the last block goes round the split_point
    ],
)
def test_where_features_spare_little_or_do_not_suffice_nothing_is_cached(
    network: type[nn.Module], layers: dict[str, int]
) -> None:
    adapted, data = adapt(network, layers), TensorData(images(9))
    with cached_features(adapted, data, budget=1 << 30) as (student, seen):
        assert isinstance(student, AdaptedModel)
        assert seen is data


def test_no_budget_no_cache() -> None:
    adapted, data = adapt(TinyCNN, {"fc1": 2}), TensorData(images(9))
    with cached_features(adapted, data, budget=0) as (student, seen):
        assert isinstance(student, AdaptedModel)
        assert seen is data


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("network", "layers", "width"), LATE)
@pytest.mark.parametrize("budget", [1 << 30, 1000], ids=["memory", "file"])
def test_training_on_features_equals_training_without(
    network: type[nn.Module], layers: dict[str, int], width: int, budget: int, part: Data, temporary: Path
) -> None:
    keywords: dict[str, Any] = {"teacher": teacher(), "data": part, "epochs": 3, "batch_size": 32, "device": "cpu"}
    plain, cached = adapt(network, layers), adapt(network, layers)
    expected = distill(plain, cache_budget=0, **keywords)
    found = distill(cached, cache_budget=budget, **keywords)
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert expected.epochs[-1]["loss"] < expected.epochs[0]["loss"]
    for name, tensor in cached.adapter_state().items():
        assert torch.allclose(tensor, plain.adapter_state()[name], atol=1e-5), name
    assert not list(temporary.iterdir()), "the file is gone"


def test_a_file_is_gone_after_a_failure(temporary: Path) -> None:
    data = TensorData(images(9))
    with (
        pytest.raises(KeyboardInterrupt),
        cached_features(adapt(TinyCNN, {"fc1": 2}), data, budget=1) as (student, _),
    ):
        assert isinstance(student, FeatureStudent)
        raise KeyboardInterrupt
    assert not list(temporary.iterdir())


def test_no_room_for_the_file(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = rf"{temporary}: expected room for {9 * 4 * (72 + 16):,} bytes of features, got No space left on device"
    adapted = adapt(TinyCNN, {"fc1": 2})
    with (
        pytest.raises(RunError, match=message),
        cached_features(adapted, TensorData(images(9)), budget=1),
    ):
        pass
    assert not list(temporary.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "absent"))
    with (
        pytest.raises(RunError, match=r"absent: "),
        cached_features(adapted, TensorData(images(9)), budget=1),
    ):
        pass


def test_the_frozen_part_runs_once_over_the_data(part: Data) -> None:
    adapted = adapt(TinyCNN, {"fc1": 3, "fc2": 2})
    seen = 0

    def count(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(arguments[0])

    adapted.base.get_submodule("conv1").register_forward_pre_hook(count)
    distill(adapted, teacher=teacher(), data=part, epochs=4, device="cpu")
    assert len(part) <= seen < len(part) + 100  # and the probes


def test_an_interrupted_training_on_features_resumes(part: Data, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"teacher": teacher(), "data": part, "patience": None, "device": "cpu", "epochs": 3}
    whole = adapt(TinyCNN, {"fc1": 3, "fc2": 2})
    expected = distill(whole, **keywords)
    storage = Storage(tmp_path / "state.safetensors", resume=True, every=0.0)
    stopped = adapt(TinyCNN, {"fc1": 3, "fc2": 2})
    count = 0

    def stop(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    handle = stopped.adapter.layer("default", "fc2").register_full_backward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        distill(stopped, storage=storage, **keywords)
    handle.remove()
    again = adapt(TinyCNN, {"fc1": 3, "fc2": 2})
    assert distill(again, storage=storage, **keywords).epochs == expected.epochs
    for name, tensor in again.adapter_state().items():
        assert torch.equal(tensor, whole.adapter_state()[name])


class MaskedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + F.gelu(self.up(x)) * mask.unsqueeze(-1)


class LastToken(nn.Module):
    """Answers at the last token of each text, as decoders do: it needs the whole batch from its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(70_000, 16)
        self.blocks = nn.ModuleList(MaskedBlock() for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, attention_mask)
        last = (torch.arange(input_ids.shape[1]) * (input_ids > 0)).argmax(1)
        return self.head(x)[torch.arange(input_ids.shape[0]), last]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_blocks_of_a_decoder_run_once_over_the_data(precision: Any) -> None:
    model = seeded(LastToken).eval()
    ids = torch.randint(1, 70_000, (60, 9), generator=torch.Generator().manual_seed(0))
    texts = TensorData(Fields({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), torch.arange(60) % 3)
    losses, rows = [], [0, 0]
    for cached in (False, True):
        adapted = attach_adapter(model, {"blocks.3.up": 2, "head": 1})
        assert split_point_of(adapted, texts.inputs(range(4))).kind == AROUND

        def count(_: nn.Module, arguments: tuple[Tensor, ...], *, cached: int = cached) -> None:
            rows[cached] += len(arguments[0])

        handle = model.blocks[0].register_forward_pre_hook(count)
        how: Any = {"objective": CROSS_ENTROPY, "epochs": 3, "batch_size": 20, "learning_rate": 1e-2, "device": "cpu"}
        history = tune(adapted, texts, cache_budget=cached << 20, precision=precision, **how)["default"]
        handle.remove()
        adapted.detach()
        losses.append([epoch["loss"] for epoch in history.epochs])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if precision == "float32" else 1e-3)
    assert rows[0] >= 3 * 60
    assert 60 <= rows[1] < 2 * 60, "once, and some in trials"
