import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import TinyCNN, images, seeded
from petm.adapter.model import attach_adapter
from petm.data.base import Data, TensorData
from petm.data.fields import Fields
from petm.errors import ArgumentError
from petm.models.loading import ADDED
from petm.training.error_set import ErrorSet, fgsm
from petm.training.replacement import BACKWARD, replace_errors
from petm.training.tuning import tune


@pytest.fixture(scope="module")
def replaced_parts(digits: tuple[Data, ...]) -> tuple[nn.Module, Data, ErrorSet, Data]:
    model = seeded(TinyCNN)
    data = digits[1].in_memory()
    errors = ErrorSet(torch.tensor([3, 5, 100]), torch.tensor([0, 0, 0]), len(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petm.training.replacement.BACKWARD", 2)
        return model, data, errors, replace_errors(model, data, errors, epsilon=0.2)


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
    with pytest.raises(ArgumentError, match="errors:"):
        replace_errors(model, data.subset(range(10)), errors, epsilon=0.1)


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


def test_random_signs_follow_the_seed_and_stay_in_the_range(
    replaced_parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, errors, _ = replaced_parts

    def moved(seed: int) -> Data:
        return replace_errors(model, data, errors, epsilon=0.2, direction="random", seed=seed)

    one, other = moved(1), moved(2)
    monkeypatch.setattr("petm.training.replacement.BACKWARD", 1)
    again = moved(1)
    assert torch.equal(one.inputs(errors.indices), again.inputs(errors.indices))
    assert not torch.equal(one.inputs(errors.indices), other.inputs(errors.indices))
    assert (float(one.inputs(errors.indices).min()), float(one.inputs(errors.indices).max())) == (0, 1)
    assert len({view.content for view in (one, again, other, replace_errors(model, data, errors, epsilon=0.2))}) == 3


def test_directions_have_names(replaced_parts: tuple) -> None:
    model, data, errors, _ = replaced_parts
    with pytest.raises(ArgumentError, match="direction:"):
        replace_errors(model, data, errors, epsilon=0.2, direction="up")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="epsilon:"):
        replace_errors(model, data, errors, epsilon=-1, direction="random")


@pytest.mark.parametrize("direction", ["gradient", "random"])
def test_what_is_no_float_cannot_be_moved(direction: str) -> None:
    class Tokens(TensorData):
        def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
            return torch.zeros(len(indices), 5, dtype=torch.int64)

    data = Tokens(torch.zeros(4, 5), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ArgumentError, match="inputs:"):
        replace_errors(
            nn.Embedding(3, 3),
            data,
            ErrorSet(torch.tensor([1]), torch.tensor([0]), 4),
            epsilon=0.1,
            direction=direction,  # type: ignore[arg-type]
        )


# examples that are not held


def test_within_the_budget_examples_are_held_and_beyond_it_they_are_not() -> None:
    model, data = seeded(TinyCNN), TensorData(images(4), torch.arange(4))
    errors = ErrorSet(torch.tensor([1, 3]), torch.tensor([0, 0]), 4)
    size = 2 * 28 * 28 * 4
    for budget, held in ((None, True), (size, True), (size - 1, False)):
        replaced = replace_errors(model, data, errors, epsilon=0.2, budget=budget)
        assert any(isinstance(value, Tensor) and value.is_floating_point() for value in vars(replaced).values()) == held


@pytest.mark.parametrize("direction", ["gradient", "random"])
def test_examples_made_when_read_are_those_that_would_be_held(replaced_parts: tuple, direction: str) -> None:
    model, data, _, _ = replaced_parts
    every = ErrorSet(torch.arange(len(data)), data.labels, len(data))
    how: dict[str, Any] = {"epsilon": 0.2, "direction": direction}
    held, made = (replace_errors(model, data, every, budget=budget, **how) for budget in (None, 0))
    assert held.content == made.content
    torch.testing.assert_close(made.inputs(range(len(data))), held.inputs(range(len(data))), atol=1e-6, rtol=0)
    for indices in ([7], [], [5, 5, 4, 150], range(BACKWARD + 3)):
        found = made.inputs(indices)
        assert torch.equal(found, made.inputs(indices)), "read twice, the same"
        torch.testing.assert_close(found, held.inputs(indices), atol=1e-6, rtol=0)


class Sized(TinyCNN):
    """Remembers the sizes of the batches that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.add(len(x))
        return super().forward(x)


def test_examples_made_when_read_are_made_in_batches_of_few_sizes() -> None:
    model, data = Sized(), TensorData(images(150), torch.arange(150) % 4)
    every = ErrorSet(torch.arange(150), data.labels, 150)
    held = replace_errors(model, data, every, epsilon=0.2).inputs(range(150))
    model.sizes.clear()
    made = replace_errors(model, data, every, epsilon=0.2, budget=0)
    for count in range(17, 130):
        torch.testing.assert_close(made.inputs(range(count)), held[:count], atol=1e-6, rtol=0)
    assert {size for size in model.sizes if size >= 16} <= {16, 32, 48, 64}


def test_only_errors_are_made_when_read(replaced_parts: tuple) -> None:
    model, data, errors, held = replaced_parts
    made = replace_errors(model, data, errors, epsilon=0.2, budget=0)
    assert torch.equal(made.inputs([0, 1, 2]), data.inputs([0, 1, 2]))
    torch.testing.assert_close(made.inputs([100, 0, 5]), held.inputs([100, 0, 5]), atol=1e-6, rtol=0)
    others = ErrorSet(errors.indices, errors.predictions, errors.total, "other")
    wrong = TensorData(data.inputs(range(len(data))), data.labels.roll(1), value_range=(0, 1))
    labelled = replace_errors(model, wrong, others, epsilon=0.2, budget=0)
    assert not torch.equal(labelled.inputs([3, 5, 100]), made.inputs([3, 5, 100])), "each against its own label"


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(words)).mean(1))


@pytest.mark.parametrize("direction", ["gradient", "random"])
def test_steps_for_text_are_made_when_read(direction: str) -> None:
    model = seeded(Words)
    words = torch.randint(9, (20, 4), generator=torch.Generator().manual_seed(0))
    data, errors = TensorData(Fields({"words": words}), torch.arange(20) % 3), ErrorSet(torch.arange(10, 20), words, 20)
    how: dict[str, Any] = {"epsilon": 0.3, "direction": direction}
    held, made = (replace_errors(model, data, errors, budget=budget, **how) for budget in (None, 10 * 4 * 5 * 2 - 1))
    for indices in (range(20), [12, 3, 12], [0, 1], []):
        found, expected = made.inputs(indices), held.inputs(indices)
        assert isinstance(found, Fields)
        assert isinstance(expected, Fields)
        assert torch.equal(found["words"], words[list(indices)])
        assert torch.equal(found[f"{ADDED}embed"], expected[f"{ADDED}embed"])
        assert found[f"{ADDED}embed"].shape == (len(indices), 4, 5)
    assert bool(made.inputs([15])[f"{ADDED}embed"].any())  # type: ignore[index]


@pytest.mark.parametrize("cache_budget", [0, 1, 1 << 30], ids=["uncached", "file", "memory"])
def test_training_has_the_losses_of_held_examples(replaced_parts: tuple, cache_budget: int) -> None:
    model, data, _, _ = replaced_parts
    every = ErrorSet(torch.arange(len(data)), data.labels, len(data))
    histories = []
    for budget in (None, 0):
        adapted = attach_adapter(model, {"fc1": 4, "fc2": 2})
        moved = replace_errors(model, data, every, epsilon=0.1, budget=budget)
        how: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 50, "device": "cpu"}
        histories.append(tune(adapted, moved, cache_budget=cache_budget, **how)["default"].epochs)
    for found, expected in zip(*histories, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert histories[0][1]["loss"] < histories[0][0]["loss"]
