"""From a model's answer to logits ``(N, K)``: where they stand, what they are, and how the model is to be called."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from petm.data.fields import Fields, Inputs, width_of
from petm.errors import ModelError
from petm.models.reading import Kind, Reading

_NAMES = ("logits", "output", "out")
_FEWEST_SURE = 32
"""Samples from which numbers that all lie in [0, 1], from end to end, are no logits by chance."""
_NEAR = 0.05
"""Distance from an end of [0, 1] within which sigmoids of a trained network come."""
_LINEAR = ("Addmm", "Mm", "Linear", "Convolution", "MkldnnLinear")
_FORMS = ("View", "UnsafeView", "Reshape", "Squeeze", "Select", "Slice", "ToCopy", "Clone", "Expand", "TBackward")
"""Beginnings of PyTorch's names of linear operations, and of those that leave the numbers as they are."""
_READING, _PLAIN = "_petm_reading", Reading()


def reading_of(model: nn.Module) -> Reading:
    """Returns how a model's answer is read: as logits, unless another reading was remembered."""
    found: Reading = vars(model).get(_READING, _PLAIN)
    return found


def remember(model: nn.Module, reading: Reading) -> None:
    """Notes how a model's answer is read, in an attribute, so that copies of the model are read alike."""
    vars(model).pop(_READING, None)
    if reading != _PLAIN:
        vars(model)[_READING] = reading


def find_answer(output: Any, rows: int, place: str = "") -> tuple[str, Tensor]:
    """Returns the tensor of the classes in a model's answer and its place, as in `Reading`.

    It is the answer itself, else what is called ``logits``, ``output`` or ``out``, else the only float tensor
    ``(N, K)`` or, where there is none, ``(N, 1)`` or ``(N,)``.

    Raises:
        ModelError: There is no such tensor, or several; the answer is described.
    """
    if isinstance(output, Tensor):
        parts = {"": output}
    elif isinstance(output, Mapping):
        parts = {str(name): part for name, part in output.items() if isinstance(part, Tensor)}
    elif isinstance(output, Sequence) and not hasattr(output, "logits"):
        parts = {str(place): part for place, part in enumerate(output) if isinstance(part, Tensor)}
    else:
        parts = {name: part for name in _NAMES if isinstance(part := getattr(output, name, None), Tensor)}
    for several in (True, False):
        fit = {name: part for name, part in parts.items() if _fits(part, rows, several)}
        chosen = place if place in fit else next((name for name in _NAMES if name in fit), None)
        if chosen is None and len(fit) == 1:
            (chosen,) = fit
        if chosen is not None:
            return chosen, fit[chosen]
        if fit:
            break
    got = type(output).__name__
    if isinstance(output, Tensor):
        got = f"{tuple(output.shape)}{'' if output.is_floating_point() else f' of {output.dtype}'}"
    elif parts:
        got = f"a {got} of {', '.join(f'{name} {tuple(part.shape)}' for name, part in parts.items())}"
    raise ModelError(
        f"model: expected logits of shape ({rows}, K) with K of at least 2, got {got}. "
        f"Wrap the model in a module that returns its logits alone."
    )


def _fits(part: Tensor, rows: int, several: bool) -> bool:
    if not part.is_floating_point() or not part.ndim or part.shape[0] != rows:
        return False
    classes = part.shape[1] if part.ndim == 2 else 1
    return part.ndim <= 2 and (classes > 1 if several else classes == 1)


def as_logits(answer: Tensor, kind: Kind) -> Tensor:
    """Returns logits ``(N, K)``: of one logit ``z`` they are ``(0, z)``, of probabilities their logarithms."""
    if kind == "logits":
        return answer
    held = answer if answer.dtype == torch.float64 else answer.float()
    if kind == "logit":
        logit = held.reshape(held.shape[0], 1)
        return torch.cat((torch.zeros_like(logit), logit), 1)
    if kind == "probability":
        held = held.reshape(held.shape[0], 1)
        held = torch.cat((1 - held, held), 1)
    return held.clamp_min(torch.finfo(torch.float32).tiny).log()


class Part(NamedTuple):
    """Texts of one length without their padding."""

    rows: Tensor
    """int64 ``(n,)``, their places in the batch."""
    place: slice
    """Where their tokens stood."""
    inputs: Fields


def of_one_length(model: nn.Module, inputs: Inputs) -> list[Part]:
    """Returns texts by their length, without padding; nothing where the model takes them as they are."""
    if not reading_of(model).by_length or not isinstance(inputs, Fields):
        return []
    parts = parts_by_length(model, inputs)
    return parts if len(parts) > 1 or any(part.place != slice(0, width_of(inputs)) for part in parts) else []


def parts_by_length(model: nn.Module, inputs: Fields) -> list[Part]:
    """Returns texts by the place of their first and last token; nothing where neither mask nor padding id says it."""
    real = _real(model, inputs)
    if real is None:
        return []
    width = width_of(inputs)
    first, last = real.int().argmax(1), width - real.int().flip(1).argmax(1)
    parts = []
    for start, stop in torch.stack((first, last), 1).unique(dim=0).tolist():
        rows = ((first == start) & (last == stop)).nonzero().flatten()
        place = slice(start, stop)
        parts.append(Part(rows, place, inputs[rows].cut(place)))
    return parts


def same_length(model: nn.Module, inputs: Inputs) -> Inputs:
    """Returns a batch as it is, or the first of its parts where the model takes texts one length at a time."""
    return next((part.inputs for part in of_one_length(model, inputs)), inputs)


def joined(parts: Sequence[Part], answers: Sequence[Tensor]) -> Tensor:
    """Returns the answers for all parts in the order of the batch."""
    return torch.cat(list(answers))[torch.cat([part.rows for part in parts]).argsort()]


def _real(model: nn.Module, inputs: Fields) -> Tensor | None:
    """Which tokens are no padding, bool ``(N, L)``; a row without any counts as whole."""
    held = dict(inputs.items())
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    if "attention_mask" in held:
        real = held["attention_mask"] != 0
    elif padding is not None and "input_ids" in held:
        real = held["input_ids"] != padding
    else:
        return None
    return real | ~real.any(1, keepdim=True) if real.ndim == 2 and len(real) else None


def with_kind(reading: Reading, answer: Tensor, operation: str = "") -> Reading:
    """Returns the reading with the kind of an answer, told by its values: ``N`` samples, best many.

    Rows of probabilities have no negative number and a sum of 1; a single one lies in [0, 1]. What a linear layer gives
    is logits, wherever it lies: those of an untrained network are small.

    Args:
        reading: How the model is called.
        answer: ``(N, K)``, or ``(N,)``.
        operation: PyTorch's name of what made the answer, as `last_operation` returns it.

    Raises:
        ModelError: Several numbers for each sample come from a sigmoid, or all lie in [0, 1] for at least 32 samples,
            some near either end, and they are no probabilities of one class out of ``K``.
    """
    held = answer.detach().double()
    least, most = float(held.min()), float(held.max())
    linear, within = operation.startswith(_LINEAR), 0 <= least <= most <= 1
    if held.ndim == 1 or held.shape[1] == 1:
        return replace(reading, kind="probability" if within and not linear else "logit")
    tolerance = max(1e-3, 4 * torch.finfo(answer.dtype).eps)
    sums = bool(((held.sum(1) - 1).abs() <= tolerance).all()) and not linear
    ends = len(held) >= _FEWEST_SURE and least < _NEAR < 1 - _NEAR < most and not linear
    if within and not sums and (ends or "Sigmoid" in operation):
        raise ModelError(
            f"model: expected logits, or probabilities that sum to 1, got numbers in [0, 1] with sums up to "
            f"{float(held.sum(1).max()):.3g}, as of {held.shape[1]} sigmoids. Return what stands before the sigmoid; "
            f"a model that gives several labels to a sample is not what petm grades."
        )
    return replace(reading, kind="probabilities" if within and sums else "logits")


def last_operation(answer: Tensor) -> str:
    """Returns PyTorch's name of the operation that made an answer with a gradient, changes of form left out."""
    made: Any = answer.grad_fn
    while made is not None and made.name().startswith(_FORMS):
        made = made.next_functions[0][0]
    return made.name() if made is not None else ""
