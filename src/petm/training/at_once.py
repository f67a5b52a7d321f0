"""How many samples a backward pass takes at once, so that it holds no more memory than a forward pass."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from petm.data.fields import Inputs
from petm.models.prediction import BATCH_SIZE

_ALIVE = 2
"""Tensors as large as the largest that are alive together in a forward pass, at least."""


class _Held(NamedTuple):
    """Bytes that a graph holds for each further sample: all, and those of the largest tensor."""

    all: int
    largest: int


def samples_at_once(loss: Callable[[Inputs], Tensor], x: Inputs) -> int:
    """Returns how many samples one backward pass takes, at least 1.

    They hold about as much as a forward pass of `BATCH_SIZE` samples: that has a few tensors at a time, where a graph
    keeps those of all layers that a gradient passes. Weights do not count, as they do not grow with the samples.

    Args:
        loss: From samples to a tensor with a graph.
        x: At least one sample.
    """
    one, two = (_storages(loss, x[torch.zeros(count, dtype=torch.int64)]) for count in (1, 2))
    grown = [after - before for before, after in zip(one, two, strict=False)]
    held = _Held(sum(grown), max(grown, default=0))
    return max(1, BATCH_SIZE * _ALIVE * held.largest // held.all) if held.all > 0 else BATCH_SIZE


def _storages(loss: Callable[[Inputs], Tensor], x: Inputs) -> list[int]:
    """The bytes of each storage that the graph holds, in the order in which it came to hold them."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        whole = loss(x)
    del whole  # until here all that is held has an address of its own
    return list(sizes.values())
