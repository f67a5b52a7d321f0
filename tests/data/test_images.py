"""Image folders: what is listed, what the pixels are, and what is refused."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petm.data.labels import UNLABELLED
from petm.data.opening import open_data
from petm.errors import ArgumentError, DataError

RED, GREY = (200, 100, 50), 120


def save(
    path: Path, colour: object = GREY, *, mode: str = "L", size: tuple[int, int] = (4, 6), **options: object
) -> Path:
    """Writes an image of one colour; ``size`` is height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], colour).save(path, **options)  # type: ignore[arg-type]
    return path


def two_classes(root: Path) -> Path:
    for path in ("dog/2.png", "dog/deep/er/1.PNG", "cat/9.png", "cat/10.png"):
        save(root / path)
    return root


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_sub_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / "cat" / "Thumbs.db").write_text("ignored")
    save(tmp_path / ".hidden" / "x.png")
    save(tmp_path / "cat" / "._9.png")
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog", "empty"), "an empty folder is a class"
    assert data.labels.tolist() == [0, 0, 1, 1]
    names = ["cat/10.png", "cat/9.png", "dog/2.png", "dog/deep/er/1.PNG"]
    assert [data.name(index) for index in range(4)] == [str(tmp_path / name) for name in names]
    assert data.inputs([3, 0]).shape == (2, 1, 4, 6)
    assert data.value_range == (0.0, 1.0)
    assert data.skipped == {}


def test_what_windows_puts_into_folders_is_passed_over_without_a_word(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in ("Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_data(tmp_path)) == 1


def test_a_folder_of_images_is_unlabelled(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    data = open_data(tmp_path, classes=["no", "yes"])
    assert data.labels.tolist() == [UNLABELLED, UNLABELLED]
    assert data.name(0) == str(tmp_path / "a.png")
    assert data.classes == ("no", "yes")


def test_a_single_class_and_a_single_file_are_fine(tmp_path: Path) -> None:
    path = save(tmp_path / "cat" / "1.png")
    assert open_data(tmp_path).classes == ("cat",)
    alone = open_data(path)
    assert (alone.name(0), alone.labels.tolist(), alone.classes) == (str(path), [UNLABELLED], ())


def test_opening_decodes_only_the_first_image(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "dog" / "2.png").write_bytes(b"not an image")
    data = open_data(tmp_path)
    assert len(data) == 4
    with pytest.raises(DataError, match=r"2\.png: "):
        data.inputs(range(4))


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_linked_folders_are_classes_and_loops_end(tmp_path: Path) -> None:
    two_classes(tmp_path / "data")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "cat").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    assert len(open_data(tmp_path / "links")) == 2


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255]),
        ("L", GREY, [120]),
        ("LA", (GREY, 0), [255]),
        ("RGB", RED, RED),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), [255] * 3),
    ],
)
def test_pixels_are_scaled_and_lie_on_white(
    tmp_path: Path, mode: str, colour: object, expected: tuple[int, ...]
) -> None:
    save(tmp_path / "x.png", colour, mode=mode)
    pixels = open_data(tmp_path).inputs([0])
    expected_image = (torch.tensor(expected) / 255).reshape(1, -1, 1, 1).expand(1, -1, 4, 6)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected_image)


def test_palettes_become_colours_with_or_without_transparency(tmp_path: Path) -> None:
    half = [round(value * 128 / 255 + 127) for value in (1, 2, 3)]
    for name, transparency, expected in (
        ("a.png", None, (RED, (1, 2, 3))),
        ("b.png", b"\x00\x80", ([255] * 3, half)),
        ("c.png", 0, ([255] * 3, (1, 2, 3))),
    ):
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, 1, 2, 3])
        image.putdata([0, 1])
        image.save(tmp_path / name, **({} if transparency is None else {"transparency": transparency}))
        pixels = open_data(tmp_path / name)[0].inputs
        torch.testing.assert_close(pixels, torch.tensor(expected).T.reshape(3, 1, 2) / 255, atol=0.5 / 255, rtol=0)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_16_bit_grey_keeps_its_precision(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 1, 257], [1000, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    expected = torch.from_numpy(values.astype(np.float32) / 65535)[None]
    torch.testing.assert_close(open_data(tmp_path)[0].inputs, expected, atol=1e-7, rtol=0)
    assert open_data(tmp_path, size=(5, 5), resize="squeeze").inputs([0]).amax() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2), 70000, np.int32), "got: grey values of 32 bits from 70000 to 70000, whose white is unknown"),
        (np.full((2, 2), 0.5, np.float32), "got: floating-point pixels, whose range is unknown"),
    ],
)
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: expected a readable image, {message}"):
        open_data(tmp_path)


def test_the_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter: shown, the stored left edge is on top
    image = Image.fromarray(np.array([[0, 0, 0, 255]], dtype=np.uint8))
    image.save(tmp_path / "x.png", exif=exif)
    data = open_data(tmp_path)
    assert data.form.size == (4, 1)
    assert data[0].inputs.flatten().tolist() == [0, 0, 0, 1]


def test_grey_is_repeated_and_colour_becomes_luma(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", RED, mode="RGB")
    grey, colour = open_data(tmp_path, channels=3).inputs([0, 1])
    assert torch.equal(grey, torch.full((3, 4, 6), 120 / 255))
    assert torch.equal(colour[:, 0, 0], torch.tensor(RED) / 255)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert abs(open_data(tmp_path, channels=1).inputs([1])[0, 0, 0, 0] * 255 - luma) <= 0.5


def test_colour_after_a_grey_first_image_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", RED, mode="RGB")
    with pytest.raises(DataError, match=r"b\.png: "):
        open_data(tmp_path).inputs([0, 1])


def test_a_size_resizes_with_antialiasing(tmp_path: Path) -> None:
    columns = np.tile(np.array([0, 255], dtype=np.uint8), (8, 4))  # columns alternate: their mean is a half
    Image.fromarray(columns).save(tmp_path / "x.png")
    save(tmp_path / "y.png", size=(9, 3))
    images = open_data(tmp_path, size=(2, 2), resize="squeeze").inputs([0, 1])
    assert images.shape == (2, 1, 2, 2)
    assert (images[0] - 0.5).abs().max() < 0.08
    assert torch.equal(images[1], torch.full((1, 2, 2), 120 / 255))


def test_another_size_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", size=(6, 4))
    with pytest.raises(DataError, match=r"b\.png: "):
        open_data(tmp_path).inputs([0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, r"size: expected a positive height and width in pixels, got \(0, 4\)"),
        ({"size": (4, 4, 3)}, r"size: expected a positive height and width in pixels, got \(4, 4, 3\)"),
        ({"channels": 4}, "channels: expected 1, 3 or None, got 4"),
    ],
)
def test_options_follow_their_rules(tmp_path: Path, options: dict[str, object], message: str) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match=message):
        open_data(tmp_path, **options)  # type: ignore[arg-type]


def damaged(root: Path) -> Path:
    """Two good images of class cat, and four that cannot be read."""
    two_classes(root)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dog" / "truncated.jpg")
    content = (root / "dog" / "truncated.jpg").read_bytes()
    (root / "dog" / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (root / "cat" / "0.png").write_bytes(b"")
    (root / "dog" / "2.png").write_text("text")
    content = bytearray((root / "dog" / "deep" / "er" / "1.PNG").read_bytes())
    content[30] ^= 0xFF  # in the header's checksum
    (root / "dog" / "deep" / "er" / "1.PNG").write_bytes(content)
    return root


def test_unreadable_images_are_skipped_on_request(tmp_path: Path) -> None:
    data = open_data(damaged(tmp_path), skip_bad=True)
    assert [Path(name).name for name in data.skipped] == ["0.png", "2.png", "1.PNG", "truncated.jpg"]
    assert data.labels.tolist() == [0, 0]
    assert data.classes == ("cat", "dog")
    assert data.inputs([0, 1]).shape == (2, 1, 4, 6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat/0.png", "an empty or unknown format"),
        ("dog/truncated.jpg", "image file is truncated"),
        ("dog/deep/er/1.PNG", "."),
    ],
)
def test_unreadable_images_are_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"{name}: expected a readable image, got: {reason}.*skip_bad=True"):
        open_data(damaged(tmp_path) / name)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected at least one image, got none \(1 unreadable ones were skipped\)"):
        open_data(tmp_path, skip_bad=True)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png: "):
        open_data(tmp_path)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    data = open_data(two_classes(tmp_path))
    (tmp_path / "dog" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: "):
        data.inputs([2])


def test_a_mix_of_images_and_class_folders_is_refused(tmp_path: Path) -> None:
    save(two_classes(tmp_path) / "stray.png")
    with pytest.raises(
        DataError, match=r"expected images or class folders, got both \(stray.png beside the folder cat"
    ):
        open_data(tmp_path)


def test_parts_of_a_data_set_are_not_classes(tmp_path: Path) -> None:
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "Test")
    with pytest.raises(DataError, match=r"expected one folder for each class, got parts of a data set: Test, train\."):
        open_data(tmp_path)


def test_empty_and_absent_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="expected at least one image, got none"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=r"absent: "):
        open_data(tmp_path / "absent")


def test_folder_names_map_to_the_expected_classes(tmp_path: Path) -> None:
    two_classes(tmp_path)
    data = open_data(tmp_path, classes=["dog", "bird", "cat"])
    assert data.labels.tolist() == [2, 2, 0, 0]
    assert data.classes == ("dog", "bird", "cat")
    with pytest.raises(DataError, match="expected the classes dog, bird, got cat as well"):
        open_data(tmp_path, classes=["dog", "bird"])


def test_content_follows_paths_sizes_labels_and_form(tmp_path: Path) -> None:
    two_classes(tmp_path / "a")
    two_classes(tmp_path / "b")
    first = open_data(tmp_path / "a")
    assert first.content == open_data(tmp_path / "b").content == open_data(tmp_path / "a", size=(4, 6)).content
    assert first.content != open_data(tmp_path / "a", size=(5, 5)).content
    assert first.content != open_data(tmp_path / "a", classes=["dog", "cat"]).content
    (tmp_path / "b" / "cat" / "9.png").rename(tmp_path / "b" / "cat" / "8.png")
    assert first.content != open_data(tmp_path / "b").content
    save(tmp_path / "a" / "cat" / "9.png", size=(40, 60))
    assert first.content != open_data(tmp_path / "a").content


def test_order_is_kept_whatever_the_number_of_threads(tmp_path: Path) -> None:
    for number in range(30):
        save(tmp_path / f"{number:02}.png", number)
    data = open_data(tmp_path)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert (data.inputs(order)[:, 0, 0, 0] * 255).round().long().tolist() == order.tolist()
    assert data.inputs([]).shape == (0, 1, 4, 6)
    assert torch.equal(data.in_memory().inputs(range(30)), data.inputs(range(30)))
    assert data.in_memory().name(3) == data.name(3)


def test_it_travels_to_the_workers_of_a_data_loader(tmp_path: Path) -> None:
    data = open_data(two_classes(tmp_path))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.inputs([1]), data.inputs([1]))
