"""The most suspect samples as a page shows them: the image, both answers, the likeliest classes."""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from petm.grading.suspects import Suspect
from petm.report.tables import percent

MOST_BARS = 10
"""Classes whose probabilities are drawn for one sample; more would be too thin to read."""
LONGEST = 300
"""Characters of a text."""
LARGEST = 168
"""Pixels of an image's longer side, twice what it takes on the page."""


@dataclass(frozen=True)
class Answer:
    """What one opinion says of an image."""

    name: str
    probability: str


@dataclass(frozen=True)
class Bar:
    """Both opinions' probabilities of one class, in percent."""

    name: str
    base: float
    second: float


@dataclass(frozen=True)
class Shown:
    """A suspect as the gallery shows it; ``image`` and ``text`` are empty where the sample is none."""

    name: str
    image: str
    text: str
    truth: str
    base: Answer
    second: Answer
    wrong: bool
    measure: str
    bars: tuple[Bar, ...]


def shown(suspect: Suspect, classes: Sequence[str], measure: str) -> Shown:
    """Returns a suspect in the form of the gallery.

    Args:
        suspect: The sample with both opinions.
        classes: Class names; a class without one is called by its number.
        measure: How suspect it is, in words.
    """

    def name(index: int) -> str:
        return classes[index] if index < len(classes) else str(index)

    def answer(probabilities: Tensor) -> Answer:
        top = int(probabilities.argmax())
        return Answer(name(top), percent(float(probabilities[top])))

    likely = suspect.base.maximum(suspect.second).topk(min(MOST_BARS, len(suspect.base))).indices.sort().values
    return Shown(
        name=suspect.name,
        image=png(suspect.image) if suspect.image.ndim == 3 else "",
        text=textwrap.shorten(suspect.text, LONGEST, placeholder=" …"),
        truth=name(suspect.label),
        base=answer(suspect.base),
        second=answer(suspect.second),
        wrong=int(suspect.base.argmax()) != suspect.label,
        measure=measure,
        bars=tuple(
            Bar(name(index), round(100 * float(suspect.base[index]), 1), round(100 * float(suspect.second[index]), 1))
            for index in likely.tolist()
        ),
    )


def png(image: Tensor) -> str:
    """Returns an image as a data URI: three channels in colour, any other number as the grey mean.

    Values outside [0, 1], as of normalised data, are stretched to it. A large image is made smaller.

    Args:
        image: float ``(C, H, W)``.
    """
    values = image.detach().cpu().double()
    if values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    values = values if len(values) == 3 else values.mean(0, keepdim=True)
    pixels = (255 * values).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    held = io.BytesIO()
    drawn = Image.fromarray(pixels)
    drawn.thumbnail((LARGEST, LARGEST))
    drawn.save(held, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
