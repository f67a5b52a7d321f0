"""Several data sets as one: every sample against the part that it comes from."""

import pytest
import torch
from torch import Tensor

from networks import images
from petm.data.base import (
    Data,
    TensorData,
    WithTargets,
    as_data,
)
from petm.data.joined import Joined
from petm.errors import ArgumentError, DataError


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


def numbers(inputs: Tensor) -> list[int]:
    return [int(value) for value in inputs[:, 0, 1, 1]]


def test_the_samples_of_all_parts_in_their_order(joined: Joined) -> None:
    assert len(joined) == 8
    assert numbers(joined.inputs(range(8))) == NUMBERS
    assert joined.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert [joined.name(index) for index in range(8)] == [f"sample {number}" for number in NUMBERS]
    assert joined.source == "from 0 + from 50 + from 100 + from 200"
    assert joined[7].inputs[0, 0, 0] == 200
    assert joined[-1].inputs[0, 0, 0] == 200


@pytest.mark.parametrize("indices", [[7, 0, 4, 4, 5], [1, 2], [6], [], [-1, -8], torch.tensor([5, 3])])
def test_any_order_any_number(joined: Joined, indices: list[int] | Tensor) -> None:
    wanted = [NUMBERS[index] for index in torch.as_tensor(indices, dtype=torch.int64).tolist()]
    found = joined.inputs(indices)
    assert numbers(found) == wanted
    assert found.shape == (len(wanted), 1, 2, 2)


def test_there_is_no_sample_behind_the_last(joined: Joined) -> None:
    with pytest.raises(IndexError):
        joined.inputs([8])


def test_views_of_the_whole(joined: Joined) -> None:
    assert numbers(joined.subset([6, 0]).inputs([0, 1])) == [202, 0]
    held = joined.in_memory()
    assert torch.equal(held.inputs(range(8)), joined.inputs(range(8)))
    assert held.name(5) == "sample 204"
    everything = sorted(
        number for half in joined.split((0.5, 0.5)) for number in numbers(half.inputs(range(len(half))))
    )
    assert everything == sorted(NUMBERS)


def test_the_content_follows_the_parts_and_their_order() -> None:
    one, two = part(3, 0), part(3, 10)
    assert Joined(one, two).content == Joined(part(3, 0), part(3, 10)).content
    contents = [data.content for data in (Joined(one, two), Joined(two, one), Joined(one), Joined(one, one), one)]
    assert len(set(contents)) == 5


def test_the_range_spans_all_parts() -> None:
    assert Joined(part(2, 3, value_range=(0, 9)), part(2, 5, value_range=(-1, 7))).value_range == (-1, 9)


def test_joining_joined_data(joined: Joined) -> None:
    assert numbers(Joined(joined, part(2, 7)).inputs([8, 0, 9])) == [7, 0, 8]


def test_somebody_elses_data_set() -> None:
    foreign: Data = as_data([(torch.full((1, 2, 2), 9.0), 1)])
    assert numbers(Joined(part(2, 0), foreign).inputs([2, 1])) == [9, 1]


def test_classes_are_those_that_have_names() -> None:
    names = ("a", "b", "c")
    assert Joined(part(2, 0), part(2, 0, classes=names), part(2, 0, classes=names)).classes == names
    with pytest.raises(
        DataError, match=r"parts: expected the same classes everywhere, got a, b, c in from 0 and a, c, b in from 5"
    ):
        Joined(part(2, 0, classes=names), part(2, 5, classes=("a", "c", "b")))


@pytest.mark.parametrize("other", [images(2, 1, 2, 3), images(2, 3, 2, 2), images(2, 1, 2, 2).double()])
def test_samples_of_another_form(other: Tensor) -> None:
    class Raw(TensorData):
        def inputs(self, indices: object) -> Tensor:
            return self.images[torch.as_tensor(indices)]

    with pytest.raises(
        DataError, match=r"parts: expected samples of one shape and type, got \(1, 2, 2\) torch.float32"
    ):
        Joined(part(2, 0), Raw(other, source="other"))


def test_parts_that_cannot_be_joined() -> None:
    with pytest.raises(ArgumentError, match="parts: expected at least one data set, got none"):
        Joined()
    with pytest.raises(ArgumentError, match="parts: expected data sets with labels, got one with other targets"):
        Joined(part(2, 0), WithTargets(part(2, 0), torch.zeros(2, 3), origin="a teacher"))
