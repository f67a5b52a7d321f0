"""The data set in which the base model's errors are replaced by adversarial examples: held, or made at each reading."""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from math import prod
from typing import get_args

import torch
from torch import Tensor, nn

from petm._internal.distributed import gathered, group
from petm._internal.files import fingerprint
from petm._internal.progress import track
from petm._internal.spill import give_back_blocks
from petm.data.base import Data, Subset, as_data
from petm.data.fields import Fields, Inputs, filled_up, length_groups
from petm.errors import ArgumentError
from petm.models.answers import same_length
from petm.models.loading import ADDED, call_model, weights_fingerprint
from petm.models.prediction import BATCH_SIZE, device_of, in_eval_mode
from petm.training.at_once import samples_at_once
from petm.training.checkpoint import seed_of
from petm.training.embeddings import embedding_of, fgsm_step, output_of, output_spread
from petm.training.error_set import Direction, ErrorSet, check_step, fgsm

BACKWARD = 64
"""Most samples in one backward pass to the inputs; of deep networks fewer (`petm.training.at_once`)."""

Make = Callable[[Tensor, Inputs], Tensor]
"""From positions in an error set, int64 ``(n,)``, and the inputs there to their replacements, on the CPU."""


class Replaced(Subset):
    """A view of a data set in which some inputs are replaced; at most the replacements are held in memory.

    Args:
        data: The samples.
        indices: int64 ``(E,)``, the positions of the replaced inputs.
        replacements: ``(E, C, H, W)``, or a function that makes some of them at each reading.
        origin: What made the replacements, in words or as a hash; part of `content`.
        added: For inputs of several tensors, the name of the further field that holds the replacements, 0 for the
            other samples.
    """

    def __init__(
        self, data: Data, indices: Tensor, replacements: Tensor | Make, *, origin: str, added: str = ""
    ) -> None:
        super().__init__(data, torch.arange(len(data)))
        self.replaced, self.replacements, self.origin, self.added = indices, replacements, origin, added
        self._place = torch.full((len(data),), -1)
        self._place[indices] = torch.arange(len(indices))

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns the inputs at ``indices``, with their replacements."""
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
        """A SHA-256 over the data set's content, the replaced positions and the origin of the replacements."""
        return fingerprint((self.data.content, self.replaced, self.origin))


def replace_errors(
    model: nn.Module,
    data: Data,
    errors: ErrorSet,
    *,
    epsilon: float,
    direction: Direction = "gradient",
    at: str | None = None,
    seed: int = 0,
    budget: int | None = None,
) -> Replaced:
    """Returns a view of ``data`` in which each error is replaced by its FGSM example, with the same label.

    ``replace_errors(...).subset(errors.indices)`` holds the errors only. Text is moved at the output of a named module,
    as a further field of the inputs (`petm.training.embeddings`).

    Args:
        model: The base model.
        data: The samples in which ``errors`` were found.
        errors: Result of `find_errors` or of a source in `petm.training.mining`.
        epsilon: FGSM step in units of the inputs; at a module, in standard deviations of its output.
        direction: ``gradient``, the sign of the gradient of the base model's loss, which is FGSM; or ``random``, a
            random sign for every number of the input: the control, just as far away.
        at: The module whose output is moved where the inputs are several tensors; absent takes the embedding that the
            base model calls first.
        seed: Seed of the random signs.
        budget: Bytes of memory for the examples. Larger ones are made anew at each reading, the same but for rounding,
            at the cost of a forward and a backward pass. Absent sets no limit.

    Raises:
        ArgumentError: ``errors`` belongs to another data set, or another argument breaks its rule.

    Reference:
        LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    if errors.total != len(data):
        raise ArgumentError(f"errors: expected an error set of these {len(data)} samples, got {errors}.")
    if direction not in get_args(Direction):
        raise ArgumentError(f"direction: expected 'gradient' or 'random', got {direction!r}.")
    first, labels = data.inputs([0]), data.labels[errors.indices]
    module = added = ""
    check_step(first, epsilon)
    give_back_blocks()
    if isinstance(first, Fields):
        some = data.inputs(range(min(BATCH_SIZE, len(data)))).to(device_of(model))
        assert isinstance(some, Fields)
        module = at or embedding_of(model, some[:1])
        added, step = f"{ADDED}{module}", epsilon * output_spread(model, some, module)
        like = fgsm_step(model, some[:1], data.labels[:1].to(device_of(model)), at=module, epsilon=step)[:0].cpu()
    else:
        like, step = first[:0], epsilon

    def move(x: Inputs, y: Tensor) -> Tensor:
        filled = filled_up(x.to(device_of(model)))
        y = y[torch.arange(len(filled)).clamp(max=len(y) - 1)].to(device_of(model))
        if isinstance(filled, Fields):
            return fgsm_step(model, filled, y, at=module, epsilon=step)
        return fgsm(model, filled, y, epsilon=step, value_range=data.value_range)

    def logits(x: Inputs) -> Tensor:
        with in_eval_mode(model, freeze=True):
            if isinstance(x, Tensor):
                return call_model(model, x.detach().clone().requires_grad_())
            return output_of(model, x, module)[0]

    @cache
    def at_once() -> int:
        return min(BACKWARD, samples_at_once(logits, same_length(model, data.inputs([0]).to(device_of(model)))))

    def against(rows: Tensor, inputs: Inputs) -> Tensor:
        parts = [slice(start, start + at_once()) for start in range(0, len(rows), at_once())]
        # Without errors there is no call of the model.
        return torch.cat([like, *(move(inputs[part], labels[rows[part]])[: len(rows[part])].cpu() for part in parts)])

    def anywhere(rows: Tensor, inputs: Inputs) -> Tensor:
        steps = step * _signs(rows, like.shape[1:], seed)
        return steps.to(like.dtype) if isinstance(inputs, Fields) else (inputs + steps).clamp(*data.value_range)

    if direction == "random":
        make, origin = anywhere, f"random {epsilon}, seed {seed}{f', at {module}' * bool(module)}"
    else:
        make, origin = against, f"FGSM {epsilon} {f'at {module} of' if module else 'on'} {weights_fingerprint(model)}"
    held = budget is None or len(errors) * like.itemsize * prod(like.shape[1:]) <= budget
    examples = _held(make, like, data, errors) if held else make
    return Replaced(data, errors.indices, examples, origin=origin, added=added)


def _held(make: Make, like: Tensor, data: Data, errors: ErrorSet) -> Tensor:
    """All replacements, ``(E, ...)``; each of several processes makes its shard. ``like`` is none of them."""
    own = torch.tensor(group().own(len(errors)), dtype=torch.int64)
    lengths = None if data.lengths is None else data.lengths[errors.indices[own]]
    examples = like.new_empty((len(own), *like.shape[1:]))
    give_back_blocks()
    with track("adversarial examples", len(own)) as progress:
        for places in (part for group_ in length_groups(lengths, len(own)) for part in group_.split(BACKWARD)):
            rows = own[places]
            examples[places] = make(rows, data.inputs(errors.indices[rows]))
            progress.advance(len(rows))
    return gathered(examples, len(errors))


def _signs(rows: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """The random signs of some errors, int8 ``(n, *shape)``; each error's follow from the seed and its position."""
    signs = torch.empty((len(rows), *shape), dtype=torch.int8)
    for sign, row in zip(signs, rows.tolist(), strict=True):
        sign.random_(0, 2, generator=torch.Generator().manual_seed(seed_of(seed, row))).mul_(2).sub_(1)
    return signs
