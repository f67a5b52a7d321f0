"""What every data set does: splits, views, batches, and the checks of tensors in memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from networks import images
from petm.data.base import Data, Joined, Subset, TensorData, WithTargets, as_data, as_is, check_finite
from petm.data.labels import UNLABELLED
from petm.errors import ArgumentError, DataError


def numbered(count: int, labels: Tensor | None = None, **keywords: object) -> TensorData:
    """Samples of shape (1, 2, 2) whose every value is their own number."""
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return TensorData(images, labels, **keywords)  # type: ignore[arg-type]


def numbers(data: Data) -> list[int]:
    return [int(data[index].inputs[0, 0, 0]) for index in range(len(data))]


LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)


def test_split_is_stratified_disjoint_and_ordered() -> None:
    data = numbered(70, LABELS)
    parts = data.split((0.5, 0.2, 0.3))
    assert [torch.bincount(part.labels, minlength=3).tolist() for part in parts] == [[20, 10, 5], [8, 4, 2], [12, 6, 3]]
    members = [numbers(part) for part in parts]
    assert sorted(number for part in members for number in part) == list(range(70))
    assert all(part == sorted(part) for part in members)


def test_split_is_reproducible_and_depends_on_the_seed() -> None:
    data = numbered(70, LABELS)
    assert numbers(data.split((0.5, 0.5), seed=3)[0]) == numbers(data.split((0.5, 0.5), seed=3)[0])
    assert numbers(data.split((0.5, 0.5), seed=3)[0]) != numbers(data.split((0.5, 0.5), seed=4)[0])


def test_split_may_leave_samples_over() -> None:
    (part,) = numbered(70, LABELS).split((0.1,))
    assert torch.bincount(part.labels).tolist() == [4, 2, 1]


@pytest.mark.parametrize("shares", [(0.5, 0.6), (0.5, 0.0), (-0.1,), (float("nan"),)])
def test_split_refuses_shares_outside_their_rule(shares: tuple[float, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"shares: "):
        numbered(70, LABELS).split(shares)


def test_subset_keeps_order_labels_and_names() -> None:
    data = numbered(6, torch.arange(6), classes="abcdef", value_range=(0, 9))
    data.names = tuple("uvwxyz")
    view = data.subset([4, 1, 1])
    assert isinstance(view, Subset)
    assert numbers(view) == view.labels.tolist() == [4, 1, 1]
    assert (view.classes, view.value_range, view.name(0)) == (tuple("abcdef"), (0, 9), "y")
    assert numbers(view.subset([1, 0])) == [1, 4]
    assert view.content not in (data.content, data.subset([1, 4, 1]).content)
    assert len(data.subset([])) == 0
    assert data.subset([]).inputs([]).shape == (0, 1, 2, 2)


def test_subset_takes_a_mask() -> None:
    data = numbered(4, torch.tensor([0, 1, 0, 1]))
    assert numbers(data.subset(data.labels == 1)) == [1, 3]


class Doubled(Data):
    """Data that are computed when read."""

    def __init__(self) -> None:
        self.labels, self.classes, self.value_range, self.source = torch.arange(5), (), (0.0, 8.0), "doubled"

    def inputs(self, indices: object) -> Tensor:
        return torch.as_tensor(indices).float().mul(2).reshape(-1, 1, 1, 1)

    content = "one of a kind"  # type: ignore[assignment]


def test_in_memory_holds_the_same_samples() -> None:
    data = Doubled()
    held = data.in_memory()
    assert isinstance(held, TensorData)
    assert torch.equal(held.inputs(range(5)), torch.tensor([0.0, 2, 4, 6, 8]).reshape(5, 1, 1, 1))
    assert torch.equal(held.labels, data.labels)
    assert (held.content, held.value_range, held.name(3)) == ("one of a kind", (0.0, 8.0), "3")
    assert held.in_memory() is held


def test_in_memory_respects_its_budget() -> None:
    data = Doubled()
    assert data.in_memory(budget=5 * 4 - 1) is data
    assert data.in_memory(budget=5 * 4) is not data


def test_with_targets_replaces_targets_and_keeps_them_in_views() -> None:
    targets = torch.arange(8.0).reshape(4, 2)
    data = WithTargets(numbered(4, torch.arange(4)), targets, origin="a teacher")
    assert torch.equal(data[2].targets, targets[2])
    assert torch.equal(data.labels, torch.arange(4))
    for view in (data.subset([3, 0]), data.in_memory().subset([3, 0]), data.subset(data.labels == 3).subset([0, 0])):
        assert torch.equal(view[0].targets, targets[3])
    assert data.content != WithTargets(data.data, targets, origin="another teacher").content
    assert data.name(1) == "1"


def test_tensor_data_divides_bytes_by_255() -> None:
    data = TensorData(torch.tensor([[0], [51], [255]], dtype=torch.uint8))
    assert torch.equal(data.inputs([2, 1, 0]), torch.tensor([[1.0], [0.2], [0.0]]))
    assert data.value_range == (0.0, 1.0)
    assert data.labels.tolist() == [UNLABELLED] * 3


def test_tensor_data_finds_the_range_of_floats() -> None:
    assert TensorData(torch.tensor([[-1.5], [2.0]], dtype=torch.float64)).value_range == (-1.5, 2.0)
    assert TensorData(torch.empty(0, 1)).value_range == (0.0, 1.0)


def test_tensor_data_content_follows_images_and_labels() -> None:
    data = numbered(3, torch.tensor([0, 1, 0]))
    assert data.content == numbered(3, torch.tensor([0, 1, 0])).content
    assert data.content != numbered(3, torch.tensor([0, 1, 1])).content
    assert data.content != numbered(4).subset([0, 1, 2]).content


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2), r"mine: expected one label for each of 3 samples, got labels of shape \(2"),
        (torch.zeros(3, 2, dtype=torch.int64), None, "mine: expected inputs of dtype float or uint8, got torch.int64"),
        (torch.tensor([[0.0], [float("nan")]]), None, r"NaN or infinity in 1 of 2 samples \(the first is sample 1\)"),
        (torch.tensor([[float("inf")], [0.0]]), None, r"mine: expected finite values, got NaN or infinity in 1 of 2"),
    ],
)
def test_tensor_data_refuses(images: Tensor, labels: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TensorData(images, labels, source="mine")


def test_check_finite_lets_finite_values_pass() -> None:
    check_finite(torch.tensor([[1e30], [-1e30]]), "mine")


def test_as_data_returns_data_itself() -> None:
    data = numbered(2)
    assert as_data(data) is data


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
def test_as_data_takes_a_pair_of_arrays(convert: object) -> None:
    data = as_data((convert([[0.5], [1.5]]), convert([1, 0])), source="pair")  # type: ignore[operator]
    assert isinstance(data, TensorData)
    assert data.labels.tolist() == [1, 0]
    assert data.inputs([1]).tolist() == [[1.5]]
    assert data.inputs([1]).dtype == torch.float32


class Pairs:
    """A map-style dataset; `reads` counts what is read."""

    classes = ("even", "odd")

    def __init__(self, count: int = 4) -> None:
        self.reads, self.count = 0, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.full((1, 2, 2), float(index)), index % 2


def test_as_data_takes_a_map_style_dataset() -> None:
    data = as_data(Pairs(), source="pairs")
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.classes == ("even", "odd")
    assert data.value_range == (0.0, 3.0)
    assert numbers(data) == [0, 1, 2, 3]
    assert data.content == as_data(Pairs(), source="pairs").content


def test_as_data_spares_the_pass_over_labels_where_there_are_targets() -> None:
    pairs = Pairs(1_000)
    pairs.targets = [0, 1] * 500  # type: ignore[attr-defined]
    assert as_data(pairs).labels.tolist() == [0, 1] * 500
    assert pairs.reads < 25, "one item of each class, and some others"


@pytest.mark.parametrize("samples", [3, None, torch.zeros(3)])
def test_as_data_refuses_other_things(samples: object) -> None:
    with pytest.raises(ArgumentError, match=f"data: expected petm Data, .* got {type(samples).__name__}"):
        as_data(samples)


def test_a_data_loader_reads_whole_batches() -> None:
    data = numbered(5, torch.arange(5))
    batches = list(DataLoader(data, batch_size=2, collate_fn=as_is))
    assert [batch.inputs.shape for batch in batches] == [(2, 1, 2, 2), (2, 1, 2, 2), (1, 1, 2, 2)]
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch.inputs[:, 0, 0, 0] for batch in batches]).tolist() == [0, 1, 2, 3, 4]


def test_indexing_and_iterating_follow_sequences() -> None:
    data = numbered(3, torch.arange(3))
    assert int(data[-1].targets) == 2
    assert [int(sample.targets) for sample in data] == [0, 1, 2]
    with pytest.raises(IndexError):
        data[3]


def part(count: int, first: int, *, classes: tuple[str, ...] = (), **keywords: object) -> TensorData:
    """Samples of shape (1, 2, 2) that hold their own number, counted from ``first``; labels 0, 1, 2, 0, ..."""
    held = (first + torch.arange(count, dtype=torch.float32)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    data = TensorData(held, torch.arange(count) % 3, classes=classes, source=f"from {first}", **keywords)  # type: ignore[arg-type]
    data.names = tuple(f"sample {first + index}" for index in range(count))
    return data


@pytest.fixture
def joined() -> Joined:
    return Joined(part(4, 0), part(0, 50), part(1, 100), part(5, 200).subset([4, 2, 0]))


NUMBERS = [0, 1, 2, 3, 100, 204, 202, 200]


def values(inputs: Tensor) -> list[int]:
    return [int(value) for value in inputs[:, 0, 1, 1]]


def test_the_samples_of_all_parts_in_their_order(joined: Joined) -> None:
    assert len(joined) == 8
    assert values(joined.inputs(range(8))) == NUMBERS
    assert joined.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert [joined.name(index) for index in range(8)] == [f"sample {number}" for number in NUMBERS]
    assert joined.source == "from 0 + from 50 + from 100 + from 200"
    assert joined[7].inputs[0, 0, 0] == 200
    assert joined[-1].inputs[0, 0, 0] == 200


@pytest.mark.parametrize("indices", [[7, 0, 4, 4, 5], [1, 2], [6], [], [-1, -8], torch.tensor([5, 3])])
def test_any_order_any_number(joined: Joined, indices: list[int] | Tensor) -> None:
    wanted = [NUMBERS[index] for index in torch.as_tensor(indices, dtype=torch.int64).tolist()]
    found = joined.inputs(indices)
    assert values(found) == wanted
    assert found.shape == (len(wanted), 1, 2, 2)


def test_there_is_no_sample_behind_the_last(joined: Joined) -> None:
    with pytest.raises(IndexError):
        joined.inputs([8])


def test_views_of_the_whole(joined: Joined) -> None:
    assert values(joined.subset([6, 0]).inputs([0, 1])) == [202, 0]
    held = joined.in_memory()
    assert torch.equal(held.inputs(range(8)), joined.inputs(range(8)))
    assert held.name(5) == "sample 204"
    everything = sorted(number for half in joined.split((0.5, 0.5)) for number in values(half.inputs(range(len(half)))))
    assert everything == sorted(NUMBERS)


def test_the_content_follows_the_parts_and_their_order() -> None:
    one, two = part(3, 0), part(3, 10)
    assert Joined(one, two).content == Joined(part(3, 0), part(3, 10)).content
    contents = [data.content for data in (Joined(one, two), Joined(two, one), Joined(one), Joined(one, one), one)]
    assert len(set(contents)) == 5


def test_the_range_spans_all_parts() -> None:
    assert Joined(part(2, 3, value_range=(0, 9)), part(2, 5, value_range=(-1, 7))).value_range == (-1, 9)


def test_joining_joined_data(joined: Joined) -> None:
    assert values(Joined(joined, part(2, 7)).inputs([8, 0, 9])) == [7, 0, 8]


def test_somebody_elses_data_set() -> None:
    foreign: Data = as_data([(torch.full((1, 2, 2), 9.0), 1)])
    assert values(Joined(part(2, 0), foreign).inputs([2, 1])) == [9, 1]


def test_classes_are_those_that_have_names() -> None:
    names = ("a", "b", "c")
    assert Joined(part(2, 0), part(2, 0, classes=names), part(2, 0, classes=names)).classes == names
    with pytest.raises(DataError, match=r"parts: "):
        Joined(part(2, 0, classes=names), part(2, 5, classes=("a", "c", "b")))


@pytest.mark.parametrize("other", [images(2, 1, 2, 3), images(2, 3, 2, 2), images(2, 1, 2, 2).double()])
def test_samples_of_another_form(other: Tensor) -> None:
    class Raw(TensorData):
        def inputs(self, indices: object) -> Tensor:
            return self.images[torch.as_tensor(indices)]

    with pytest.raises(DataError, match=r"parts: "):
        Joined(part(2, 0), Raw(other, source="other"))


def test_parts_that_cannot_be_joined() -> None:
    with pytest.raises(ArgumentError, match="parts: "):
        Joined()
    with pytest.raises(ArgumentError, match="parts: "):
        Joined(part(2, 0), WithTargets(part(2, 0), torch.zeros(2, 3), origin="a teacher"))


def test_importing_is_light() -> None:
    code = (
        "import sys, petm.data; print([m for m in ('PIL', 'pyarrow', 'sklearn', 'pooch', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
