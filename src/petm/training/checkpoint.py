"""What lets a training go on to the bit: its checkpoint, and randomness that nothing has to remember.

A checkpoint is one safetensors file, tensors beside a JSON header, whole or absent. The order of samples and the seed
of a step follow from the training's seed and the place in it alone.
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
from petm.errors import RunError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a training needs to go on.

    Attributes:
        identity: What makes it this training and no other.
        progress: Numbers, as JSON has them.
        tensors: Tensors; the part of a name before the first dot says what they belong to.
    """

    identity: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors of one part, by their names without the prefix."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: a crash meanwhile leaves the one before it.

    Raises:
        RunError: The file could not be written.
    """
    header = json.dumps({"identity": checkpoint.identity, "progress": checkpoint.progress})
    # A copy each: safetensors refuses tensors that share memory, as one mask in several modules does.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"petm": header}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint in a file.

    Raises:
        RunError: The file is no whole checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["petm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Checkpoint(header["identity"], header["progress"], tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(f"{path}: expected a whole checkpoint, got a damaged file ({error}). Remove it.") from error


class ShuffledBatches(Sampler[list[int]]):
    """The batches of one epoch, in an order that depends on seed and epoch alone, from any batch on."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size) - self.first

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.samples, generator=generator)
        yield from (indices.tolist() for indices in order.split(self.batch_size)[self.first :])


def seed_of(*numbers: int) -> int:
    """A 60-bit seed that differs for different numbers."""
    return int(fingerprint(str(number) for number in numbers)[:15], 16)
