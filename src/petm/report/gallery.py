"""The most suspect samples, and how a page shows them: the image, both answers, the most probable classes."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from petm.data.base import Data
from petm.report.pages import data_uri
from petm.report.tables import percent

MOST_BARS = 10
"""Classes whose probabilities are drawn for one sample; more bars would be too thin to read."""
LONGEST = 300
"""Characters of a text."""
LARGEST = 168
"""Pixels of an image's longer side, twice its size on the page."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """One of the most suspect samples, with both opinions, or the base model's alone.

    Attributes:
        name: The name by which a person finds the sample.
        image: float32 ``(C, H, W)``, or an input of another shape; empty if an input is several tensors.
        text: The readable text; empty if the samples are not texts.
        label: The true class.
        base: float64 ``(K,)``, the base model's probabilities.
        second: float64 ``(K,)``, the second opinion's probabilities; absent without one.
        suspicion: Suspicion by the grader's score.
        unasked: Whether a cascade asked for no second opinion.
    """

    name: str
    image: Tensor
    text: str
    label: int
    base: Tensor
    second: Tensor | None
    suspicion: float
    unasked: bool = False


def gather_suspects(
    base: Tensor,
    second: Tensor | None,
    suspicion: Tensor,
    data: Data,
    *,
    asked: Tensor | None = None,
    count: int = 12,
    among: Tensor | None = None,
) -> tuple[Suspect, ...]:
    """Returns the ``count`` labelled samples of highest suspicion (all if there are fewer), most suspect first.

    Args:
        base: The base model's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``; absent without one.
        suspicion: float ``(N,)``.
        data: The ``N`` samples.
        asked: bool ``(N,)``, where a second opinion was asked for; absent means for all.
        count: Number of samples.
        among: bool ``(N,)``, where to take them from; absent takes them from all.
    """
    found, order = [], suspicion.argsort(descending=True, stable=True)
    order = order if among is None else order[among[order]]
    for index in order[:count].tolist():
        sample, ours = data.inputs([index]), base[index].double().softmax(0)
        unasked = second is not None and asked is not None and not asked[index]
        theirs = None if second is None or unasked else second[index].double().softmax(0)
        image = sample[0] if isinstance(sample, Tensor) else torch.empty(0)
        label = int(data.labels[index])
        held = (data.name(index), image, data.text(index), label, ours, theirs)
        found.append(Suspect(*held, float(suspicion[index]), unasked))
    return tuple(found)


def shown(suspect: Suspect, classes: Sequence[str], measure: str) -> dict[str, Any]:
    """Returns what the macro ``gallery`` of ``parts.jinja`` shows of a suspect; probabilities are in percent.

    A class without a name is named by its number; ``image`` and ``text`` are empty if the sample has none.

    Args:
        suspect: The sample.
        classes: Class names.
        measure: Its suspicion in words.
    """

    def name(index: int) -> str:
        return classes[index] if index < len(classes) else str(index)

    def answer(probabilities: Tensor) -> dict[str, str]:
        top = int(probabilities.argmax())
        return {"name": name(top), "probability": percent(float(probabilities[top]))}

    opinions = {"base": suspect.base} | ({} if suspect.second is None else {"second": suspect.second})
    heights = {kind: (100 * opinion).tolist() for kind, opinion in opinions.items()}
    most = torch.stack([*opinions.values()]).amax(0)
    likely = most.topk(min(MOST_BARS, len(most))).indices.sort().values
    return {
        "name": suspect.name,
        "image": png(suspect.image) if suspect.image.ndim == 3 else "",
        "text": textwrap.shorten(suspect.text, LONGEST, placeholder=" …"),
        "truth": name(suspect.label),
        "unasked": suspect.unasked,
        "answers": {kind: answer(opinion) for kind, opinion in opinions.items()},
        "wrong": int(suspect.base.argmax()) != suspect.label,
        "measure": measure,
        "bars": [
            {"name": name(index), "heights": {kind: round(each[index], 1) for kind, each in heights.items()}}
            for index in likely.tolist()
        ],
    }


def png(image: Tensor) -> str:
    """Returns an image, float ``(C, H, W)``, as a data URI: three channels in colour, else the mean of all in grey.

    Values outside [0, 1], as of normalised data, are rescaled to it. A large image is made smaller.
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
    return data_uri(held.getvalue(), "png")
