"""One image from its encoded bytes, as a viewer shows it: the first page, upright, on white."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's formats that are read. The parsers of others are little reviewed, and some start other programs."""
_SUFFIXES = "apng avif bmp gif ico j2k jfif jp2 jpe jpeg jpf jpg jpx pbm pgm png pnm ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Suffixes of these formats."""
_SUBFILE, _BITS, _PHOTOMETRIC, _MOST, _FORMAT, _MOST_OF_ANY_TYPE = 254, 258, 262, 281, 339, 341
"""Tags of TIFF: kind of page, bits and type of a sample, meaning of the values, and the greatest in two forms."""
_SIGNED = 2
"""Value of `_FORMAT`."""
_SECONDARY = 0b101
"""Bits of `_SUBFILE`: a page is a smaller version or a mask of another one."""
_MOST_PAGES = 64
"""Pages that are looked at, smaller versions of the first among them."""
_STEP = {"L;2": 0x55, "L;4": 0x11}
"""What one step of a grey value of few bits becomes in 8, by the coding of the pixels in a PNG file."""
_FAINT = 3
"""Difference of two values of 255 that nobody sees."""


class TooManyPixelsError(ValueError):
    """An image of more pixels than are allowed."""


class UnclearImageError(ValueError):
    """An image that is whole, and of which viewers show several things, or nothing."""


@cache
def formats() -> tuple[str, ...]:
    """Returns those of `FORMATS` that this Pillow has been built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def as_shown(encoded: bytes, most_pixels: int | None = None) -> Image:
    """Returns one upright image without alpha: mode L or RGB with 8 bits, or F in [0, 1] for deeper grey.

    Colours of another profile become those of sRGB; grey of more than 8 bits stays as it is. Transparent pixels lie on
    white. Of an animation, the first frame is taken.

    Args:
        encoded: An image file.
        most_pixels: The most pixels of an image, checked before one is decoded.

    Raises:
        TooManyPixelsError: The image has more.
        UnclearImageError: It is not clear what the image shows.
        Exception: Of any kind where the image is damaged or of an unknown format.
    """
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(BytesIO(encoded), formats=formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # where warnings are errors
        raise TooManyPixelsError(str(error)) from error
    if most_pixels and image.width * image.height > most_pixels:
        raise TooManyPixelsError(f"more than {most_pixels} pixels: {image.height}×{image.width}")
    tags: Mapping[int, Any] = {}
    if image.format == "TIFF":
        tags = dict(image.tag_v2)  # type: ignore[attr-defined]  # TIFF's images have them
        _expect_one_page(image)
    elif getattr(image, "default_image", False):  # a picture for viewers without animation, before the first frame
        image.seek(1)
    coding = _coding(image)
    _scale_transparent(image, coding)
    image.load()
    if coding == "LA;16B":  # grey, which Pillow takes for colour
        image = image.convert("LA")
    ImageOps.exif_transpose(image, in_place=True)
    if _SIGNED in tags.get(_FORMAT, ()) and tags.get(_BITS, (8,))[0] <= 16:
        raise UnclearImageError("signed values, whose black and white are unknown. Save it without signs")
    if image.mode == "F":
        raise UnclearImageError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # I;16 and its byte orders; I where a 16-bit value is held in 32 bits
        return _deep_grey(image, tags)
    if tags.get(_BITS, (8,))[0] == 16:  # of which Pillow has kept the upper half
        _expect_light(max(high for _, high in _extremes(image)) << 8, tags)
    image = _on_white(_in_srgb(image))
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def encoded(image: Image) -> bytes:
    """Returns an image as a file of the same pixels, profile and orientation, so that it is read as files are."""
    content = BytesIO()
    kept = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    image.save(content, "PNG" if kept else "TIFF", exif=image.getexif(), **({"compress_level": 1} if kept else {}))
    return content.getvalue()


def _expect_one_page(image: Image) -> None:
    """Refuses a TIFF file of several pages, other than smaller versions of the first."""
    try:
        for page in range(1, _MOST_PAGES):
            image.seek(page)
            if not image.tag_v2.get(_SUBFILE, 0) & _SECONDARY:  # type: ignore[attr-defined]
                break
        raise UnclearImageError("several pages. Save each as a file")
    except EOFError:
        image.seek(0)


def _coding(image: Image) -> str:
    """Pillow's name for the pixels of a PNG file that is not loaded yet; empty for others."""
    tiles: Sequence[Any] = getattr(image, "tile", ())
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def _scale_transparent(image: Image, coding: str) -> None:
    """Brings the transparent value of a PNG file, which is not loaded yet, to the 8 bits that Pillow makes of others.

    Of a colour of 16 bits Pillow keeps the upper half, in which others are the same.
    """
    if "transparency" in image.info and coding == "RGB;16B":
        raise UnclearImageError("a transparent colour of 16 bits. Save it with 8 bits, or with a channel for it")
    if "transparency" in image.info and coding in _STEP:
        image.info["transparency"] *= _STEP[coding]


def _deep_grey(image: Image, tags: Mapping[int, Any]) -> Image:
    """Grey of more than 8 bits, as mode F in [0, 1]."""
    from PIL import Image

    values, bits = np.asarray(image).astype(np.float32), tags.get(_BITS, (16,))[0]
    low, high, white = values.min(), values.max(), float(2 ** (_depth(tags) or bits) - 1)
    if low < 0 or high > white or bits > 16:
        raise UnclearImageError(f"grey values of {bits} bits from {low:.0f} to {high:.0f}, whose white is unknown")
    if bits == 16 and low < high:
        _expect_light(int(high), tags)
    if tags.get(_PHOTOMETRIC) == 0:
        values = white - values
    elif isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = white
    return Image.fromarray(values / np.float32(white))


def _depth(tags: Mapping[int, Any]) -> int | None:
    """The bits that are used of each sample, where a file says that they are fewer than it holds."""
    most = next((int(tags[tag][0]) for tag in (_MOST_OF_ANY_TYPE, _MOST) if tag in tags), 0)
    depth = most.bit_length()
    return depth if 8 <= depth < 16 and most == 2**depth - 1 else None  # another one is a statistic of the image


def _expect_light(most: int, tags: Mapping[int, Any]) -> None:
    """Refuses a TIFF file of 16 bits that may hold 12, which is 16 times as dark as it should be."""
    if tags and 0 < most < 4096 and _depth(tags) is None:
        raise UnclearImageError(
            f"values up to {most} in 16 bits, whose white is unknown. Save it in the range 0 to 65535, or with "
            f"MaxSampleValue 4095"
        )


def _in_srgb(image: Image) -> Image:
    """The image in the colours of sRGB, where it has a colour profile that shows others."""
    profile, mode = image.info.get("icc_profile"), image.mode
    if not profile or mode not in ("L", "LA", "P", "RGB", "RGBA", "CMYK"):
        return image
    kind = "L" if mode in ("L", "LA") else "CMYK" if mode == "CMYK" else "RGB"
    shown = _profile_to_srgb(profile, kind)
    if shown is None:
        return image
    clear = mode in ("LA", "RGBA") or "transparency" in image.info
    whole = image.convert("RGBA") if clear else image
    colours = shown(whole.convert(kind))
    if clear:
        colours.putalpha(whole.getchannel("A"))
    return colours


@lru_cache(16)
def _profile_to_srgb(profile: bytes, mode: str) -> Callable[[Image], Image] | None:
    """Brings colours of a profile to sRGB; None where they look the same, or the profile cannot be used."""
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        change = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):  # viewers pass over it
        return None

    def shown(image: Image.Image) -> Image.Image:
        made = change.apply(image)
        return made.convert("L") if mode == "L" else made

    steps = range(0, 256, 51)
    colours = np.array([*product(*[steps] * (1 if mode == "L" else 3))], np.uint8)[None]
    if mode != "CMYK":
        plain = Image.fromarray(colours[..., 0] if mode == "L" else colours)
        if np.abs(np.asarray(shown(plain)).astype(int) - np.asarray(plain)).max() <= _FAINT:
            return None
    return shown


def _on_white(image: Image) -> Image:
    """The image without alpha, on white."""
    from PIL import Image

    if "transparency" not in image.info and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L" if grey else "RGB")
    if _is_plain(shown) and not _is_plain(image):
        raise UnclearImageError(
            "a picture in its transparency alone, or behind it, of which nothing is seen on white. Save it without"
        )
    return shown


def _is_plain(image: Image) -> bool:
    """Whether all pixels look the same."""
    return all(high - low <= _FAINT for low, high in _extremes(image))


def _extremes(image: Image) -> list[tuple[int, int]]:
    """The least and the greatest value of each band."""
    return [band.getextrema() for band in image.split()]  # type: ignore[misc]
