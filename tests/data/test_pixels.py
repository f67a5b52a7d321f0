"""Images as viewers show them: transparency, depths, colour models, orientation, pages; and what is never opened."""

import struct
import subprocess
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch.utils.data import TensorDataset

from petm.data.base import Data, as_data
from petm.data.images import ImageError, read_image
from petm.data.opening import open_data
from petm.data.pixels import FORMATS, IMAGE_SUFFIXES
from petm.errors import ArgumentError, DataError, PetmWarning

DEEP = np.array([[0, 1000], [2000, 4095]], np.uint16)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def shown(content: bytes) -> np.ndarray:
    return np.asarray(read_image(content, "x"))


def test_a_digit_drawn_in_alpha_alone_says_so_and_one_in_black_is_read(digits: tuple[Data, ...]) -> None:
    stroke = Image.fromarray((digits[2].inputs([0])[0, 0] * 255).byte().numpy())
    black, white = (Image.new("L", stroke.size, value) for value in (0, 255))
    expected = 255 - np.asarray(stroke)
    assert abs(shown(encoded(Image.merge("LA", (black, stroke)), "PNG")).astype(int) - expected).max() <= 1
    for bands in ((white, stroke), (white, white, white, stroke)):
        image = Image.merge("LA" if len(bands) == 2 else "RGBA", bands)
        with pytest.raises(ImageError, match="transparency alone"):
            shown(encoded(image, "PNG"))
    assert (shown(encoded(Image.new("LA", (3, 3), (7, 0)), "PNG")) == 255).all(), "nothing is drawn at all"


def test_a_gif_lies_on_white_too() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert shown(encoded(image, "GIF", transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_a_picture_that_is_transparent_everywhere_says_so() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = np.arange(48).reshape(4, 4, 3) * 5
    assert shown(encoded(Image.new("RGBA", (4, 4)), "PNG")).min() == 255, "an empty canvas is white"
    with pytest.raises(ImageError, match="behind it"):
        shown(encoded(Image.fromarray(pixels), "PNG"))
    pixels[..., 3] = 255
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(pixels), "PNG")), pixels[..., :3])


def png(bits: int, colour: int, rows: list[bytes], width: int, transparent: bytes) -> bytes:
    """A PNG file with a transparent value, of depths that Pillow does not write."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)), (b"tRNS", transparent)]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, 0b01000000, 0, [255, 255, 255]),
        (2, 0b00011011, 1, [0, 255, 170, 255]),
        (2, 0b00011011, 0, [255, 85, 170, 255]),
        (4, 0x0F, 0, [255, 255]),
        (4, 0x27, 7, [34, 255]),
        (8, 0x27, 7, [0x27]),
        (8, 0x27, 0x27, [255]),
    ],
)
def test_the_transparent_grey_of_a_png_is_that_of_the_file(
    bits: int, row: int, transparent: int, expected: list[int]
) -> None:
    content = png(bits, 0, [bytes([row])] * 2, len(expected), struct.pack(">H", transparent))
    if min(expected) == 255 and bits < 8:
        with pytest.raises(ImageError, match="transparency"):
            shown(content)
    else:
        assert shown(content).tolist() == [expected] * 2


def test_a_transparent_colour_of_16_bits_says_so() -> None:
    """Pillow keeps 8 of them, in which another colour may be the same."""
    row = struct.pack(">6H", 256, 512, 768, 257, 512, 768)
    with pytest.raises(ImageError, match="16 bits"):
        shown(png(16, 2, [row], 2, row[:6]))


@pytest.mark.parametrize(("kind", "bits"), [(np.int8, 8), (np.int16, 16)])
def test_signed_values_say_so(kind: type[np.generic], bits: int) -> None:
    """Of positive ones as well: whether white is 32767 or 65535 is unknown, and Pillow reads -1 in 8 bits as 255."""
    values = np.array([[1, 100], [127, 3]], kind)
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: 1, 273: 134, 277: 1, 278: 2, 279: values.nbytes, 339: 2}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values.tobytes()
    with pytest.raises(ImageError, match="signed"):
        shown(content)


@pytest.mark.parametrize("tag", [281, 341])
def test_12_bits_in_16_are_as_light_as_12_bits(tag: int) -> None:
    content = encoded(Image.fromarray(DEEP), "TIFF", tiffinfo={tag: 4095})
    np.testing.assert_allclose(shown(content), DEEP / 4095, atol=1e-6)


def test_12_bits_in_a_container_of_12() -> None:
    packed = bytes([0x00, 0x03, 0xE8, 0x7D, 0x0F, 0xFF])  # 0, 1000, 2000, 4095
    content = encoded(Image.new("L", (2, 2)), "TIFF")
    image = Image.open(BytesIO(content))
    assert image.tag_v2[258] == (8,)  # type: ignore[attr-defined]
    start = image.tag_v2[273][0]  # type: ignore[attr-defined]
    changed = bytearray(content[:start] + packed)
    place = changed.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x08\x00")
    changed[place + 8] = 12
    place = changed.index(b"\x17\x01\x04\x00\x01\x00\x00\x00")  # bytes of the strip
    changed[place + 8] = len(packed)
    np.testing.assert_allclose(shown(bytes(changed)), DEEP / 4095, atol=1e-6)


def test_12_bits_that_may_be_16_say_so() -> None:
    with pytest.raises(ImageError, match="whose white is unknown"):
        shown(encoded(Image.fromarray(DEEP), "TIFF"))
    for tag, value in ((281, 4000), (262, 1)):  # a statistic of the image; another tag
        with pytest.raises(ImageError, match="whose white is unknown"):
            shown(encoded(Image.fromarray(DEEP), "TIFF", tiffinfo={tag: value}))
    assert (shown(encoded(Image.fromarray(np.full_like(DEEP, 9)), "TIFF")) < 0.001).all(), "a black frame is black"
    np.testing.assert_allclose(shown(encoded(Image.fromarray(DEEP), "PNG")), DEEP / 65535, atol=1e-6)


def test_white_is_zero_where_the_file_says_so() -> None:
    values = np.array([[0, 65535, 30000]], np.uint16)
    content = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(shown(content), 1 - values / 65535, atol=1e-6)


def test_16_bits_of_a_jpeg_2000() -> None:
    values = np.array([[0, 65535, 30000, 9]] * 4, np.uint16)
    np.testing.assert_allclose(shown(encoded(Image.fromarray(values), "JPEG2000")), values / 65535, atol=1e-4)


def test_grey_of_16_bits_with_alpha_is_grey() -> None:
    row = struct.pack(">6H", 0, 65535, 32768, 65535, 65535, 0)
    assert shown(png(16, 4, [row], 3, b"")).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_read_in_its_colours(kind: str) -> None:
    image = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    assert abs(shown(encoded(image, kind)).astype(int) - (255, 0, 0)).max() <= 3


def profile(space: bytes, **tags: bytes) -> bytes:
    """An ICC profile of version 2 for the space ``RGB `` or ``GRAY`` with some tags, white at D50."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    entries, content, at = b"", b"", 128 + 4 + 12 * (len(tags) + 1)
    for name, tag in {"wtpt": white, **tags}.items():
        tag += bytes(-len(tag) % 4)
        entries += struct.pack(">4s2I", name.encode(), at + len(content), len(tag))
        content += tag
    kinds = b"lcms", 0x02400000, b"mntr", space, b"XYZ ", b"acsp"
    head = struct.pack(">I4sI4s4s4s12x4s28x3i", 0, *kinds, 63190, 65536, 54061)
    whole = bytearray(head.ljust(128, b"\0") + struct.pack(">I", len(tags) + 1) + entries + content)
    whole[:4] = struct.pack(">I", len(whole))
    return bytes(whole)


LINEAR = struct.pack(">4s4xIH", b"curv", 1, 256)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
"""A profile whose red is the blue of sRGB."""


def test_colours_of_another_profile_are_those_of_a_viewer() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0])
    for image in (red, palette):
        assert shown(encoded(image, "PNG", icc_profile=SWAPPED))[0, 0].tolist() == [0, 0, 255]
    half = red.copy()
    half.putalpha(128)
    assert shown(encoded(half, "PNG", icc_profile=SWAPPED))[0, 0].tolist() == [127, 127, 255]
    two = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8))
    keyed = encoded(two, "PNG", icc_profile=SWAPPED, transparency=(255, 0, 0))
    assert shown(keyed).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_grey_of_a_linear_profile_is_lighter() -> None:
    grey = encoded(Image.new("L", (4, 4), 55), "PNG", icc_profile=profile(b"GRAY", kTRC=LINEAR))
    expected = 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)
    assert shown(grey).shape == (4, 4)
    assert abs(shown(grey).astype(float) - expected).max() <= 1


@pytest.mark.parametrize("of", [SRGB, b"no profile", profile(b"GRAY", kTRC=LINEAR)])
def test_srgb_and_what_is_no_profile_of_the_image_change_nothing(of: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(pixels), "PNG", icc_profile=of)), pixels)


def test_ycbcr_and_lab_are_read_in_their_colours() -> None:
    red = Image.new("RGB", (8, 8), (200, 40, 30))
    assert abs(shown(encoded(red.convert("YCbCr"), "TIFF")).astype(int) - (200, 40, 30)).max() <= 3
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    assert lab is not None
    assert abs(shown(encoded(lab, "TIFF")).astype(int) - (200, 40, 30)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_orientation_is_applied_once(kind: str) -> None:
    values = np.zeros((16, 32), np.uint8)
    values[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.asarray(read_image(encoded(Image.fromarray(values), kind, exif=exif), "x").convert("L"))
    assert image.shape == (32, 16)
    assert (image[:12].max(), image[20:].min()) == pytest.approx((0, 255), abs=8)


def test_pages() -> None:
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    with pytest.raises(ImageError, match="several pages"):
        shown(encoded(first, "TIFF", save_all=True, append_images=[second]))
    for kind in ("GIF", "PNG", "WEBP"):
        content = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
        assert np.unique(shown(content)).tolist() == [10], kind
    animated = encoded(first, "PNG", save_all=True, append_images=[second], default_image=True)
    assert np.unique(shown(animated)).tolist() == [200], "the first frame, not the picture for viewers without frames"
    icon = encoded(Image.new("RGB", (48, 48), (9, 8, 7)), "ICO", sizes=[(16, 16), (48, 48)])
    assert shown(icon).shape == (48, 48, 3)


def test_a_smaller_version_is_no_page() -> None:
    smaller = Image.new("L", (2, 2), 200)
    smaller.encoderinfo = {"tiffinfo": {254: 1}}
    content = encoded(Image.new("L", (4, 4), 10), "TIFF", save_all=True, append_images=[smaller])
    assert np.unique(shown(content)).tolist() == [10]
    many = encoded(Image.new("L", (4, 4), 10), "TIFF", save_all=True, append_images=[smaller] * 64)
    with pytest.raises(ImageError, match="several pages"):
        shown(many)


def test_a_png_that_is_postscript_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **_: object) -> None:
        raise AssertionError(f"started {arguments}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, start)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    for name, content in (("a.png", postscript), ("b.png", b"%PDF-1.4\n"), ("c.jpg", b"\xd7\xcd\xc6\x9a" + bytes(80))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: expected a readable image, got: an empty or unknown format"):
            open_data(tmp_path / name)


def test_each_suffix_of_the_formats_is_read_in_folders(tmp_path: Path) -> None:
    kinds = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "jp2": "JPEG2000", "jpx": "JPEG2000", "j2k": "JPEG2000"}
    kinds |= {"apng": "PNG", "png": "PNG", "avif": "AVIF", "ico": "ICO", "webp": "WEBP", "tiff": "TIFF", "tif": "TIFF"}
    kinds |= {"ppm": "PPM", "pgm": "PPM", "pnm": "PPM", "pbm": "PPM", "gif": "GIF", "bmp": "BMP", "jpeg": "JPEG"}
    kinds |= {"jpf": "JPEG2000"}
    assert {f".{suffix}" for suffix in kinds} == IMAGE_SUFFIXES
    assert set(kinds.values()) == set(FORMATS)
    for suffix, kind in kinds.items():
        options = {"no_jp2": True} if suffix == "j2k" else {}
        content = encoded(Image.new("RGB", (16, 16), (90, 90, 90)), kind, **options)
        (tmp_path / f"{suffix}.{suffix}").write_bytes(content)
    data = open_data(tmp_path, channels=1)
    assert len(data) == len(kinds)
    torch.testing.assert_close(
        data.inputs(range(len(data))), torch.full((len(data), 1, 16, 16), 90 / 255), atol=0.02, rtol=0
    )


def test_bytes_are_divided_by_255_however_they_come(tmp_path: Path) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected, labels = pixels / 255, torch.tensor([0])

    class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return pixels[index].numpy(), 0

    np.savez(tmp_path / "x.npz", x=pixels.numpy(), y=labels.numpy())
    Image.fromarray(pixels[0, 0].numpy()).save(tmp_path / "x.png")
    ways = {
        "pair": as_data((pixels, labels)),
        "arrays": as_data((pixels.numpy(), labels.numpy())),
        "tensor data set": as_data(TensorDataset(pixels, labels)),
        "items": as_data(Items()),
        "npz": open_data(tmp_path / "x.npz"),
        "file": open_data(tmp_path / "x.png"),
    }
    for name, data in ways.items():
        torch.testing.assert_close(data.inputs([0]), expected, msg=name)
        assert data.value_range == pytest.approx((0, 1)), name


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool])
def test_other_whole_numbers_are_refused(dtype: torch.dtype) -> None:
    pixels = torch.zeros(1, 1, 2, 2, dtype=dtype)
    with pytest.raises(DataError, match="expected inputs of dtype float or uint8"):
        as_data((pixels, torch.tensor([0])))
    with pytest.raises(DataError, match="expected inputs of dtype float or uint8"):
        as_data(TensorDataset(pixels, torch.tensor([0]))).inputs([0])


def test_floats_are_taken_as_they_are_in_any_byte_order() -> None:
    values = np.array([[[[-1.5, 300.0]]]], ">f8")
    for array in (values, values[..., ::-1], values.astype(np.longdouble)):
        assert as_data((array, np.array([0]))).inputs([0]).tolist() == array.tolist()
    with pytest.raises(ArgumentError, match=r"inputs: "):
        as_data((np.array(["a"]), np.array([0])))
    with pytest.raises(ArgumentError, match=r"inputs: "):
        as_data((torch.ones(1, 1, 2, 2).to_sparse(), torch.tensor([0])))
    with pytest.raises(DataError, match="infinity in 1 of 1 samples"):
        as_data((values * 1e300, np.array([0])))  # finite in 64 bits, and not in the 32 of a model


def test_items_that_are_no_tensors_say_so() -> None:
    with pytest.raises(DataError, match="expected samples that are tensors or arrays, got Image"):
        as_data([(Image.new("L", (2, 2)), 0)]).inputs([0])


def test_mean_and_std_and_crop(tmp_path: Path) -> None:
    values = np.zeros((4, 8, 3), np.uint8)
    values[:, 2:6] = (51, 102, 204)
    Image.fromarray(values).save(tmp_path / "x.png")
    data = open_data(tmp_path, size=(4, 4), channels=3, resize="crop", mean=(0.1, 0.2, 0.3), std=(0.5,))
    expected = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor([0.1, 0.2, 0.3])) / 0.5
    torch.testing.assert_close(data.inputs([0]), expected.reshape(1, 3, 1, 1).expand(1, 3, 4, 4))
    assert data.value_range == pytest.approx((-0.6, 1.8))
    squeezed = open_data(tmp_path, size=(4, 4), channels=3, resize="squeeze")
    assert squeezed.inputs([0])[0, 0, :, 0].max() < 0.05, "nothing is cut off"
    assert len({data.content, squeezed.content, open_data(tmp_path, size=(4, 4), channels=3, mean=(0.5,)).content}) == 3
    np.savez(tmp_path / "x.npz", x=values[None])
    with pytest.raises(DataError, match="expected floats as they are prepared for the model, got bytes"):
        open_data(tmp_path / "x.npz", mean=(0.5,))


@pytest.mark.parametrize(
    ("argument", "given"),
    [("mean", (123.7,)), ("mean", (0.1, 0.2)), ("std", (0.0,)), ("std", (58.4,)), ("resize", "stretch")],
)
def test_wrong_preparations_are_refused(tmp_path: Path, argument: str, given: object) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        open_data(tmp_path, **{argument: given})  # type: ignore[arg-type]


def test_a_squeezed_ratio_is_said_once(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("L", (20, 40 + number)).save(tmp_path / f"{number}.png")
    with pytest.warns(PetmWarning, match=r"^resize: ") as said:
        open_data(tmp_path, size=(8, 8)).inputs(range(20))
    assert len(said) == 1
    Image.new("L", (41, 40)).save(tmp_path / "alone.png")
    open_data(tmp_path / "alone.png", size=(8, 8)).inputs([0])  # nearly a square
