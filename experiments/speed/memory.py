"""Peak memory of a contender, each in a fresh process, so that none inherits what another has left behind."""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from experiments.machine import in_a_process, process_peak, process_reset
from experiments.speed.contenders import CONTENDERS, Setup
from experiments.speed.networks import Case
from petm.cli.process import keep_large_blocks

_CALLS = 3


@dataclass(frozen=True)
class Memory:
    """What a contender's process, or its device, held at one batch size.

    Attributes:
        peak: Bytes at most during the calls, above what the libraries took: weights, activations and all else.
        resident: Bytes between the calls, counted the same way: weights, mostly.
    """

    peak: int
    resident: int


def measure_memory(setup: Setup, contender: str, parts_by_batch: dict[int, int], *, threads: int) -> dict[int, Memory]:
    """Returns what a contender holds at each batch size, from a fresh process of its own.

    On a CPU the figures are the process's resident set less what it was with all libraries loaded and no network
    built. Before the calls that count, the contender has been called once, and what the C library had kept was given
    back. On CUDA they are what PyTorch's allocator has handed out.

    Args:
        setup: The network and the device.
        contender: By name.
        parts_by_batch: How many of the contender's equal forwards are run, by batch size.
        threads: Of PyTorch.

    Raises:
        RunError: The process failed, for want of memory most likely.
    """
    found: dict[int, Memory] = in_a_process(
        _measure, setup.case, setup.device, setup.folder, contender, parts_by_batch, threads
    )
    return found


def _measure(
    case: Case, device: torch.device, folder: Path, contender: str, parts_by_batch: dict[int, int], threads: int
) -> dict[int, Memory]:
    """Runs in the child."""
    warnings.simplefilter("ignore")  # the parent has shown them
    torch.set_num_threads(threads)
    keep_large_blocks()
    # The first product and the first convolution load and build kernels, which belong to no contender.
    F.conv2d(torch.rand(1, 3, 8, 8), torch.rand(3, 3, 3, 3)).flatten(1) @ torch.rand(108, 2)
    peak, reset = (_cuda_peak, _cuda_reset) if device.type == "cuda" else (process_peak, process_reset)
    with torch.no_grad():
        # Nothing here keeps the setup alive, which holds more than most contenders need.
        return _by_batch(Setup(case, device, folder), contender, parts_by_batch, peak, reset)


def _by_batch(
    setup: Setup,
    contender: str,
    parts_by_batch: dict[int, int],
    peak: Callable[[], tuple[int, int]],
    reset: Callable[[], None],
) -> dict[int, Memory]:
    reset()
    _, libraries = peak()
    forward, case, device = CONTENDERS[contender].make(setup), setup.case, setup.device
    del setup  # the call holds what it needs, and no more
    found = {}
    for batch, parts in sorted(parts_by_batch.items()):
        x = case.inputs(batch).to(device)
        forward(x, parts)
        gc.collect()
        reset()
        _, resident = peak()
        for _ in range(_CALLS):
            forward(x, parts)
        found[batch] = Memory(peak()[0] - libraries, resident - libraries)
    return found


def _cuda_peak() -> tuple[int, int]:
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()


def _cuda_reset() -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
