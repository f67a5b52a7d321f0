"""Random changes to images, against slow references and what geometry says."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from networks import TinyCNN, images, seeded, snapshot
from petm._internal.progress import track
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError
from petm.training.augmentation import (
    MILD,
    STRENGTHS,
    WHOLE_PIXELS,
    Augmentation,
    Augmented,
    augment,
    choose_augmentation,
    with_copies,
)


def drawn(**parts: float) -> Tensor:
    """One row of draws, 0 but for those named."""
    names = ("turn", "right", "down", "size", "slant", "flip")
    return torch.tensor([[parts.get(name, 0.0) for name in names]])


def by_loops(image: Tensor, augmentation: Augmentation, draws: list[float]) -> Tensor:
    """The change of one image, pixel by pixel, from its definition: each pixel's place is traced back."""
    turn, right, down, size, slant, flip = draws
    channels, height, width = image.shape
    if augmentation.mirror and flip > 0:
        image = image.flip(-1)
    angle, shear = math.radians(turn * augmentation.rotation), slant * augmentation.shear
    factor = 1 + size * augmentation.scale
    result = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            # Undone in turn, in pixels from the middle: the shift, the scale, the shear, the rotation.
            x = column + 0.5 - width / 2 - right * augmentation.shift * width
            y = row + 0.5 - height / 2 - down * augmentation.shift * height
            x, y = x / factor, y / factor
            x = x + shear * y
            x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
            x, y = min(max(x + width / 2 - 0.5, 0), width - 1), min(max(y + height / 2 - 0.5, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            across, along = x - left, y - top
            for channel in range(channels):
                plane = image[channel]
                upper = plane[top, left] * (1 - across) + plane[top, left + 1] * across
                lower = plane[top + 1, left] * (1 - across) + plane[top + 1, left + 1] * across
                result[channel, row, column] = upper * (1 - along) + lower * along
    return result


@pytest.mark.parametrize(
    "augmentation",
    [
        MILD,
        Augmentation(rotation=180),
        Augmentation(shear=0.5, mirror=True),
        Augmentation(scale=0.5),
        Augmentation(10, 0.3, 0.2, 0.4, True),
    ],
)
def test_every_pixel_comes_from_where_the_definition_says(augmentation: Augmentation) -> None:
    originals = images(5, 2, 7, 10)
    draws = 2 * images(5, 6, seed=3) - 1
    expected = [
        by_loops(image, augmentation, row.tolist())
        for image, row in zip(originals.double(), draws.double(), strict=True)
    ]
    assert torch.allclose(augment(originals, augmentation, draws).double(), torch.stack(expected), atol=1e-4)


def test_nothing_changes_where_no_amount_is_set() -> None:
    originals = images(4, 3, 9, 8)
    assert torch.equal(augment(originals, Augmentation(), torch.ones(4, 6)), originals)


@pytest.mark.parametrize("amounts", [{"shift": 0.5}, {"rotation": 90, "shift": 0.5, "scale": 0.5, "shear": 1}])
def test_nothing_changes_where_nothing_is_drawn(amounts: dict[str, float]) -> None:
    originals = images(4, 3, 9, 8)
    assert torch.allclose(augment(originals, Augmentation(**amounts), torch.zeros(4, 6)), originals, atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-2, 0), (0, 3), (0, -1), (2, -3)])
def test_a_shift_alone_goes_by_whole_pixels_and_repeats_the_border(right: int, down: int) -> None:
    originals = images(1, 2, 8, 10)
    # Half of the size is the most: of 10 pixels in width, 5; of 8 in height, 4. The rest of a pixel is rounded away.
    found = augment(originals, Augmentation(shift=0.5), drawn(right=(right + 0.3) / 5, down=(down - 0.3) / 4))
    for row in range(8):
        for column in range(10):
            source = originals[..., min(max(row - down, 0), 7), min(max(column - right, 0), 9)]
            assert torch.equal(found[..., row, column], source)


def test_the_mirror_exchanges_left_and_right_of_those_drawn() -> None:
    originals = images(2, 1, 5, 6)
    found = augment(originals, Augmentation(mirror=True), torch.cat((drawn(flip=0.5), drawn(flip=-0.5))))
    assert torch.equal(found, torch.stack((originals[0].flip(-1), originals[1])))


@pytest.mark.parametrize(("turn", "times"), [(1, 1), (-1, 3)])
def test_a_quarter_turn_goes_counter_clockwise(turn: float, times: int) -> None:
    originals = images(1, 2, 7, 7)
    found = augment(originals, Augmentation(rotation=90), drawn(turn=turn))
    assert torch.allclose(found, torch.rot90(originals, times, (2, 3)), atol=1e-5)


def test_a_half_turn_of_an_oblong_image() -> None:
    originals = images(1, 2, 5, 9)
    found = augment(originals, Augmentation(rotation=180), drawn(turn=1))
    assert torch.allclose(found, torch.rot90(originals, 2, (2, 3)), atol=1e-5)


def test_twice_the_size_shows_the_middle_at_half_the_steps() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    found = augment(ramp, Augmentation(scale=0.9), drawn(size=1))
    assert torch.allclose(found[0, 0, 3].diff(), torch.full((15,), 1 / 1.9), atol=1e-4)


def test_values_stay_between_those_of_the_image() -> None:
    originals = images(50, 1, 9, 9) + 2
    found = augment(originals, MILD, 2 * images(50, 6, seed=1) - 1)
    assert found.min() >= originals.min() - 1e-5
    assert found.max() <= originals.max() + 1e-5


def test_no_image_is_nothing_to_change() -> None:
    assert augment(images(3)[:0], MILD, torch.zeros(0, 6)).shape == (0, 1, 28, 28)


# Augmentation


def test_strengths_are_relative() -> None:
    half = replace(MILD, mirror=True).times(0.5)
    assert (half.rotation, half.shift, half.scale, half.shear, half.mirror) == (7.5, 0.06, 0.075, 0.1, True)


@pytest.mark.parametrize(
    ("name", "value"), [("rotation", 181), ("shift", 1.1), ("scale", 1), ("shear", -0.1), ("shift", math.nan)]
)
def test_an_amount_has_its_limits(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{name}:"):
        Augmentation(**{name: value})


# Augmented


@pytest.fixture
def data() -> TensorData:
    held = TensorData(images(20), torch.arange(20) % 10, classes=tuple("abcdefghij"), value_range=(0, 1))
    held.names = tuple(f"picture {index}" for index in range(20))
    return held


def test_each_image_is_changed_alike_however_it_is_read(data: TensorData) -> None:
    view = Augmented(data, MILD, seed=4)
    everything = view.inputs(range(20))
    for indices in ([3], [19, 0, 0, 7], torch.tensor([5, 4])):
        assert torch.allclose(view.inputs(indices), everything[torch.as_tensor(indices)], atol=1e-6)
    assert torch.allclose(view.subset([9, 2]).inputs([0, 1]), everything[[9, 2]], atol=1e-6)
    assert view.inputs([]).shape == (0, 1, 28, 28)
    assert torch.equal(Augmented(data, MILD, seed=4).inputs(range(20)), everything)
    differs = (everything - data.inputs(range(20))).abs().flatten(1).amax(1)
    assert (differs > 0.1).all()


def test_another_seed_makes_other_changes(data: TensorData) -> None:
    one, other = (Augmented(data, MILD, seed=seed).inputs(range(20)) for seed in (0, 1))
    assert ((one - other).abs().flatten(1).amax(1) > 0.1).all()


def test_half_of_the_images_are_mirrored() -> None:
    ramp = TensorData(torch.arange(4.0).expand(2000, 1, 3, 4).contiguous())
    mirrored = Augmented(ramp, Augmentation(mirror=True), seed=0).inputs(range(2000))[:, 0, 0, 0] == 3
    assert abs(mirrored.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_what_is_said_of_the_samples_stays(data: TensorData) -> None:
    view = Augmented(data, MILD, seed=0)
    assert torch.equal(view.labels, data.labels)
    assert (view.classes, view.value_range, view.name(3)) == (data.classes, (0, 1), "picture 3")
    assert view.source == "tensors, augmented"


def test_the_content_follows_data_augmentation_and_seed(data: TensorData) -> None:
    others = [
        Augmented(data, MILD, seed=0),
        Augmented(data, MILD, seed=1),
        Augmented(data, MILD.times(0.5), seed=0),
        Augmented(TensorData(images(20, seed=1)), MILD, seed=0),
        data,
    ]
    assert len({other.content for other in others}) == len(others)
    assert Augmented(data, MILD, seed=0).content == others[0].content


@pytest.mark.parametrize("held", [images(3, 12), torch.zeros(3, 1, 4, 4, dtype=torch.int64)])
def test_only_images_can_be_augmented(held: Tensor) -> None:
    class Raw(TensorData):
        def inputs(self, indices: object) -> Tensor:
            return held[torch.as_tensor(indices)]

    with pytest.raises(ArgumentError, match="data:"):
        Augmented(Raw(images(3)), MILD, seed=0).inputs(range(3))


# with_copies


def test_copies_lie_behind_the_data_and_differ(data: TensorData) -> None:
    joined = with_copies(data, MILD, copies=2, seed=3)
    assert len(joined) == 60
    assert torch.equal(joined.labels, data.labels.repeat(3))
    assert torch.equal(joined.inputs(range(20)), data.inputs(range(20)))
    first, second = joined.inputs(range(20, 40)), joined.inputs(range(40, 60))
    assert ((first - second).abs().flatten(1).amax(1) > 0.1).all()
    assert joined.name(47) == "picture 7"
    assert joined.content != with_copies(data, MILD, copies=2, seed=4).content


def test_at_least_one_copy(data: TensorData) -> None:
    with pytest.raises(ArgumentError, match="copies:"):
        with_copies(data, MILD, copies=0)


# choose_augmentation


class Bright(nn.Module):
    """Says where the brightest quarter of an image lies: class 0 for left and 1 for right."""

    def forward(self, x: Tensor) -> Tensor:
        middle = x.shape[-1] // 2
        return torch.stack((x[..., :middle].sum((1, 2, 3)), x[..., middle:].sum((1, 2, 3))), 1)


class Symmetric(Bright):
    """Says whether the middle is brighter than the border, whichever side is which."""

    def forward(self, x: Tensor) -> Tensor:
        inner = x[..., 8:20, 8:20].mean((1, 2, 3))
        return torch.stack((inner, x.mean((1, 2, 3))), 1)


def halves(count: int = 60) -> TensorData:
    labels = torch.arange(count) % 2
    held = torch.zeros(count, 1, 28, 28)
    held[labels == 0, :, 8:20, 2:12] = 1
    held[labels == 1, :, 8:20, 16:26] = 1
    return TensorData(held, labels)


def centres(count: int = 60) -> TensorData:
    labels = torch.arange(count) % 2
    held = torch.zeros(count, 1, 28, 28)
    held[labels == 0, :, 10:18, 10:18] = 1
    held[labels == 1, :, :2] = held[labels == 1, :, -2:] = 1
    return TensorData(held, labels)


def test_a_mirror_that_exchanges_classes_is_not_chosen() -> None:
    assert not choose_augmentation(Bright(), halves()).mirror
    assert choose_augmentation(Symmetric(), centres()).mirror


@pytest.mark.parametrize(("network", "make"), [(Bright, halves), (Symmetric, centres)])
@pytest.mark.parametrize("most_errors", [0.05, 0.3])
@pytest.mark.parametrize("mirrored", [MILD, WHOLE_PIXELS])
def test_the_strongest_that_keeps_the_labels_is_chosen(
    network: type[nn.Module],
    make: Callable[[], Data],
    most_errors: float,
    mirrored: Augmentation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("petm.training.augmentation.MOST_ERRORS", most_errors)
    model, data = network(), make()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    labels = data.labels[order]

    def errors(augmentation: Augmentation) -> float:
        view = Augmented(data.subset(order), augmentation, seed=0)
        return float((model(view.inputs(range(len(data)))).argmax(1) != labels).double().mean())

    mirror = errors(Augmentation(mirror=True)) <= most_errors / 2  # both networks are right on the images themselves
    tried = [replace((mirrored if mirror else MILD).times(strength), mirror=mirror) for strength in STRENGTHS]
    allowed = [augmentation for augmentation in tried if errors(augmentation) <= most_errors]
    chosen = choose_augmentation(model, data, mirrored=mirrored)
    assert chosen == (allowed[0] if allowed else Augmentation(mirror=mirror))


class Exact(nn.Module):
    """Recognises one image to the bit, and takes every other for class 1."""

    def forward(self, x: Tensor) -> Tensor:
        same = ((x - images(1)).abs().amax((1, 2, 3)) < 1e-6).float()
        return torch.stack((same, 0.5 + 0 * same), 1)


def test_nothing_is_chosen_where_every_change_makes_errors() -> None:
    data = TensorData(images(1).repeat(40, 1, 1, 1), torch.tensor([0] * 39 + [1]))
    assert choose_augmentation(Exact(), data) == Augmentation()


def test_the_choice_leaves_the_model_alone(model: nn.Module, digits: tuple[Data, ...]) -> None:
    before = snapshot(model)
    part = digits[0].subset(range(200))
    assert choose_augmentation(model, part) == choose_augmentation(model, part)
    assert snapshot(model) == before


def test_the_choice_needs_labels() -> None:
    with pytest.raises(DataError, match="expected labels from 0 to 1, got none"):
        choose_augmentation(Bright(), TensorData(images(4)))


def test_each_bar_names_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = list[str]()
    monkeypatch.setattr(
        "petm.models.prediction.track", lambda title, total: titles.append(title) or track(title, total)
    )
    monkeypatch.setattr("petm.training.augmentation.MOST_ERRORS", -1.0)  # nothing keeps the labels
    choose_augmentation(seeded(TinyCNN), TensorData(images(20), torch.arange(20) % 10))
    assert titles == [
        f"augmentation, {what}"
        for what in ("none", "horizontal flip", *(f"strength {strength:g}" for strength in STRENGTHS))
    ]
