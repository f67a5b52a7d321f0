"""Randomness that nothing has to remember: it follows from the seed and the place in the training alone."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from petm._internal.files import fingerprint


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
