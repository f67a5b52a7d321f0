"""The most suspect samples, with what both opinions say of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from petm.data.base import Data
from petm.data.fields import Inputs


@dataclass(frozen=True, eq=False)
class Suspect:
    """One of the most suspect samples, with both opinions.

    Attributes:
        name: How a person finds it again.
        image: float32 ``(C, H, W)``, or an input of another shape where the samples are no images; empty where an
            input is several tensors.
        text: What a person would read of it; empty where the samples are no texts.
        label: Its true class.
        base: float64 ``(K,)``, the base model's probabilities.
        second: float64 ``(K,)``, those of the second opinion.
        suspicion: As the grader has it.
    """

    name: str
    image: Tensor
    text: str
    label: int
    base: Tensor
    second: Tensor
    suspicion: float


def gather_suspects(
    base: Tensor, second: Tensor, suspicion: Tensor, data: Data, *, count: int = 12
) -> tuple[Suspect, ...]:
    """Returns the ``count`` samples of highest suspicion, most suspect first, the earlier of equal ones first.

    Args:
        base: the base model's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.
        suspicion: float ``(N,)``.
        data: The ``N`` samples, labelled.
        count: All of them where there are fewer.
    """
    return tuple(
        Suspect(
            name=data.name(index),
            image=_image(data.inputs([index])),
            text=data.text(index),
            label=int(data.labels[index]),
            base=base[index].double().softmax(0),
            second=second[index].double().softmax(0),
            suspicion=float(suspicion[index]),
        )
        for index in suspicion.argsort(descending=True, stable=True)[:count].tolist()
    )


def _image(sample: Inputs) -> Tensor:
    return sample[0] if isinstance(sample, Tensor) else torch.empty(0)
