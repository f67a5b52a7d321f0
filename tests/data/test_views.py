import pytest
import torch

from petm.data.views import view
from petm.errors import ArgumentError

IMAGE = torch.arange(12.0).view(1, 1, 3, 4)


def test_the_same_view_is_the_image_itself() -> None:
    assert view("same")(IMAGE) is IMAGE


def test_the_mirror_exchanges_left_and_right() -> None:
    assert view("mirror")(IMAGE)[0, 0, 0].tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "first_row", "first_column"),
    [
        ("shift 0 0", [0, 1, 2, 3], [0, 4, 8]),
        ("shift 2 0", [0, 0, 0, 1], [0, 4, 8]),
        ("shift -1 0", [1, 2, 3, 3], [1, 5, 9]),
        ("shift 0 1", [0, 1, 2, 3], [0, 0, 4]),
        ("shift +1 -2", [8, 8, 9, 10], [8, 8, 8]),
    ],
)
def test_a_shift_moves_the_image_and_repeats_its_border(
    name: str, first_row: list[int], first_column: list[int]
) -> None:
    moved = view(name)(IMAGE)
    assert moved.shape == IMAGE.shape
    assert moved[0, 0, 0].tolist() == first_row
    assert moved[0, 0, :, 0].tolist() == first_column


def test_views_one_after_the_other() -> None:
    assert view("mirror, shift 1 0")(IMAGE)[0, 0, 0].tolist() == [3, 3, 2, 1]
    assert view("shift 1 0, mirror")(IMAGE)[0, 0, 0].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize(
    "name", ["", "flip", "mirror,mirror", "mirror, flip", "shift", "shift 1", "shift 1.5 0", "mirror "]
)
def test_an_unknown_view_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="view: "):
        view(name)
