"""The data set in which its errors are replaced by adversarial examples: held, or made whenever they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from petm._internal.distributed import gathered, group
from petm._internal.files import fingerprint
from petm._internal.progress import track
from petm.data.base import Data, as_data
from petm.data.fields import Fields, Inputs, filled_up, one_tensor
from petm.errors import ArgumentError
from petm.models.loading import ADDED, weights_fingerprint
from petm.models.prediction import BATCH_SIZE, device_of
from petm.training.checkpoint import seed_of
from petm.training.embeddings import answer_spread, embedding_of, fgsm_step
from petm.training.error_set import Direction, ErrorSet, check_error_set, check_step, fgsm, random_signs

BACKWARD = 64
"""Samples in one backward pass to the inputs, which holds what all layers answer, where a forward pass holds what two
or three do: a quarter of the samples take about the same memory, and on a CPU no more time each."""

Make = Callable[[Tensor, Inputs], Tensor]
"""From places in an error set, int64 ``(n,)``, and the inputs there to what takes the place of these."""


class Replaced(Data):
    """A view of a data set in which some inputs are replaced; the replacements alone are held, or not even they.

    Args:
        data: The samples.
        indices: int64 ``(E,)``, which inputs are replaced.
        replacements: ``(E, C, H, W)``; or what makes some of them whenever they are read.
        origin: What made the replacements, in words or as a hash; it enters `content`.
        added: Where inputs are several tensors, the name under which replacements are added to them as a further one, 0
            where nothing is replaced.
    """

    def __init__(
        self, data: Data, indices: Tensor, replacements: Tensor | Make, *, origin: str, added: str = ""
    ) -> None:
        self.data, self.indices, self.replacements, self.origin = data, indices, replacements, origin
        self.added = added
        self.labels, self.classes = data.labels, data.classes
        self.value_range, self.source = data.value_range, data.source
        self._place = torch.full((len(data),), -1)
        self._place[indices] = torch.arange(len(indices))

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns the inputs at ``indices``, replaced where they are to be."""
        place = self._place[torch.as_tensor(indices, dtype=torch.int64)]
        (replaced,) = (place >= 0).nonzero(as_tuple=True)
        read, places = self.data.inputs(indices), place[replaced]
        held = self.replacements
        chosen = held[places] if isinstance(held, Tensor) else held(places, read[replaced])
        if isinstance(read, Tensor):
            return read.index_copy(0, replaced, chosen)
        steps = chosen.new_zeros((len(read), *chosen.shape[1:])).index_copy(0, replaced, chosen)
        return Fields({**dict(read.items()), self.added: steps})

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content, the replaced positions and what made the replacements."""
        return fingerprint((self.data.content, self.indices, self.origin))

    def name(self, index: int) -> str:
        """Returns the sample's name in the data set that this is a view of."""
        return self.data.name(index)


def replace_errors(
    model: nn.Module,
    data: Data,
    errors: ErrorSet,
    *,
    epsilon: float,
    direction: Direction = "gradient",
    at: str | None = None,
    seed: int = 0,
    batch_size: int = BACKWARD,
    budget: int | None = None,
) -> Replaced:
    """Returns a view of ``data`` in which each of the model's errors is replaced by its FGSM example, label unchanged.

    The view with only the errors in it is ``replace_errors(...).subset(errors.indices)``. Text is moved where tokens
    have become numbers: at the output of a named module, as further field of the inputs (`petm.training.embeddings`).

    Args:
        model: The base model.
        data: The samples in which ``errors`` were found.
        errors: What `find_errors` or a source of `petm.training.mining` returned.
        epsilon: FGSM step in units of the inputs; at a module, in standard deviations of what it answers.
        direction: ``gradient``, the sign of the gradient of the base model's loss, which is FGSM; or ``random``, a
            random sign for
            every number of the input: the control, whose samples lie as far away, but in no direction that the base
                model minds.
        at: The module whose output is moved where the inputs are several tensors; absent takes the embedding that the
            base model calls first.
        seed: Of the random signs.
        batch_size: Samples in one backward pass.
        budget: Bytes of memory for the examples. Where they take more, they are not held: each is made anew whenever
            it is read, the same but for rounding, which costs a pass forwards and one backwards. Absent: any number.

    Raises:
        ArgumentError: ``errors`` belongs to another data set, or another argument breaks its rule.

    Reference:
        LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    check_error_set(errors, data, direction)
    first = data.inputs([0])
    if isinstance(first, Fields):
        way = _at_module(model, data, errors, epsilon, direction, at, seed, batch_size)
    else:
        way = _at_inputs(model, data, errors, epsilon, direction, seed, batch_size, first)
    each = way.like.itemsize * prod(way.like.shape[1:])
    held = budget is None or len(errors) * each <= budget
    examples = _held(way, data, errors, batch_size) if held else way.make
    return Replaced(data, errors.indices, examples, origin=way.origin, added=way.added)


@dataclass(frozen=True)
class _Way:
    """How errors are replaced.

    Attributes:
        make: Makes replacements, on the CPU.
        like: None of them, ``(0, ...)``.
        origin: What makes them.
        added: The field under which they are added to the inputs; empty where they take their place.
    """

    make: Make
    like: Tensor
    origin: str
    added: str = ""


def _held(way: _Way, data: Data, errors: ErrorSet, batch_size: int) -> Tensor:
    """All replacements, ``(E, ...)``; of several processes each makes its share."""
    own = torch.tensor(group().own(len(errors)), dtype=torch.int64)
    examples = way.like.new_empty((len(own), *way.like.shape[1:]))
    with track("adversarial examples", len(own)) as progress:
        for rows, part in zip(own.split(batch_size), examples.split(batch_size), strict=True):
            part.copy_(way.make(rows, data.inputs(errors.indices[rows])))
            progress.advance(len(rows))
    return gathered(examples, len(errors))


def _at_inputs(
    model: nn.Module,
    data: Data,
    errors: ErrorSet,
    epsilon: float,
    direction: Direction,
    seed: int,
    batch_size: int,
    first: Tensor,
) -> _Way:
    """One tensor moves itself."""
    check_step(first, epsilon)
    labels, limits = data.labels[errors.indices], data.value_range

    def move(x: Inputs, y: Tensor) -> Tensor:
        return fgsm(model, one_tensor(x, "like the first"), y, epsilon=epsilon, value_range=limits)

    def against(rows: Tensor, inputs: Inputs) -> Tensor:
        return _by_parts(move, inputs, labels[rows], device_of(model), batch_size, first[:0])

    def anywhere(rows: Tensor, inputs: Inputs) -> Tensor:
        signs = _signs(rows, first.shape[1:], seed)
        return (one_tensor(inputs, "like the first") + epsilon * signs).clamp(*limits)

    if direction == "random":
        return _Way(anywhere, first[:0], f"random {epsilon}, seed {seed}")
    return _Way(against, first[:0], f"FGSM {epsilon} on {weights_fingerprint(model)}")


def _at_module(
    model: nn.Module,
    data: Data,
    errors: ErrorSet,
    epsilon: float,
    direction: Direction,
    at: str | None,
    seed: int,
    batch_size: int,
) -> _Way:
    """Several tensors get one more: steps to add to the output of a module."""
    if not 0 <= epsilon < float("inf"):
        raise ArgumentError(f"epsilon: expected a finite number of at least 0, got {epsilon}.")
    labels, device = data.labels[errors.indices], device_of(model)
    some = _fields(data.inputs(range(min(BATCH_SIZE, len(data))))).to(device)
    module = at or embedding_of(model, some[:1])
    step = epsilon * answer_spread(model, some, module)
    like = fgsm_step(model, some[:1], data.labels[:1].to(device), at=module, epsilon=step)[:0].cpu()

    def move(x: Inputs, y: Tensor) -> Tensor:
        return fgsm_step(model, _fields(x), y, at=module, epsilon=step)

    def against(rows: Tensor, inputs: Inputs) -> Tensor:
        return _by_parts(move, inputs, labels[rows], device_of(model), batch_size, like)

    def anywhere(rows: Tensor, _: Inputs) -> Tensor:
        return (step * _signs(rows, like.shape[1:], seed)).to(like.dtype)

    if direction == "random":
        return _Way(anywhere, like, f"random {epsilon}, seed {seed}, at {module}", f"{ADDED}{module}")
    return _Way(against, like, f"FGSM {epsilon} at {module} of {weights_fingerprint(model)}", f"{ADDED}{module}")


def _by_parts(
    move: Callable[[Inputs, Tensor], Tensor],
    inputs: Inputs,
    labels: Tensor,
    device: torch.device,
    size: int,
    none: Tensor,
) -> Tensor:
    """What is made of samples, ``size`` of them at a time; nothing where there are none, which no model need take."""

    def made(part: slice) -> Tensor:
        x, y = inputs[part].to(device), labels[part].to(device)
        filled = filled_up(x)
        return move(filled, y[torch.arange(len(filled)).clamp(max=len(y) - 1)])[: len(y)].cpu()

    parts = [made(slice(start, start + size)) for start in range(0, len(labels), size)]
    return torch.cat(parts) if parts else none


def _fields(inputs: Inputs) -> Fields:
    assert isinstance(inputs, Fields)
    return inputs


def _signs(rows: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """The random signs of some errors, int8 ``(n, *shape)``: those of each follow from the seed and its place alone."""
    drawn = [random_signs(1, shape, seed=seed_of(seed, row)) for row in rows.tolist()]
    return torch.cat(drawn) if drawn else torch.empty((0, *shape), dtype=torch.int8)
