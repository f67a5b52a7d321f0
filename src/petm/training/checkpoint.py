"""The checkpoint of a training, and random numbers that follow from the seed and the step alone.

A checkpoint is one safetensors file, tensors with a JSON header, whole or absent.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Sampler

from petm._internal.files import fingerprint, write_atomically
from petm.data.fields import length_groups
from petm.errors import RunError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training.

    Attributes:
        identity: Settings and fingerprints that identify the training.
        progress: Numbers, in JSON's types.
        tensors: Tensors by ``PART.NAME``.
    """

    identity: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors of one part, by their names without the prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: a crash leaves the one before it. Raises `RunError` where that fails."""
    header = json.dumps({"identity": checkpoint.identity, "progress": checkpoint.progress})
    # A copy each: safetensors refuses tensors that share memory, as one mask in several modules does.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"petm": header}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint in a file, or raises `RunError` where the file is no whole checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["petm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Checkpoint(header["identity"], header["progress"], tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(f"{path}: expected a whole checkpoint, got a damaged file ({error}). Remove it.") from error


class ShuffledBatches(Sampler[list[int]]):
    """The batches of one epoch from batch ``first`` on, in an order that depends on seed and epoch alone.

    Texts share a batch with others of their padded length, and the batches of all lengths are mixed.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, lengths: Tensor | None = None) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.groups = length_groups(lengths, samples)
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return sum(-(-len(each) // self.batch_size) for each in self.groups) - self.first

    def __iter__(self) -> Iterator[list[int]]:
        yield from (indices.tolist() for indices in self.all()[self.first :])

    def all(self) -> list[Tensor]:
        """Returns the batches of the epoch, int64 ``(n,)`` each."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        shuffled = (each[torch.randperm(len(each), generator=generator)] for each in self.groups)
        found = [indices for each in shuffled for indices in each.split(self.batch_size)]
        if len(self.groups) == 1:
            return found
        return [found[place] for place in torch.randperm(len(found), generator=generator).tolist()]


def seed_of(*numbers: int) -> int:
    """Returns a 60-bit seed that differs for different numbers."""
    return int(fingerprint(str(number) for number in numbers)[:15], 16)
