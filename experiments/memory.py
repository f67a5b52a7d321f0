"""Peak memory of a contender, each in a fresh process, so that none inherits what another has left behind."""

import ctypes
import gc
import multiprocessing
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from experiments.contenders import CONTENDERS, Setup
from experiments.networks import Case
from petm.cli.process import keep_large_blocks
from petm.errors import PetmError, RunError

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
        setup: The network, device and seed.
        contender: By name.
        parts_by_batch: How many of the contender's equal forwards are run, by batch size.
        threads: Of PyTorch.

    Raises:
        RunError: The process failed, for want of memory most likely.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, setup.case, setup.device, setup.seed, setup.folder, contender, parts_by_batch, threads)
    process = context.Process(target=_measure, args=arguments, daemon=True)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = None
    finally:
        process.join()
    if not isinstance(answer, dict):
        reason = answer or f"it ended with exit code {process.exitcode}"
        raise RunError(f"memory: {CONTENDERS[contender].title} could not be measured, {reason}. Use a smaller batch.")
    return answer


def can_measure(device: torch.device) -> bool:
    """Returns whether peak memory can be read here: on CUDA, and on Linux with its process files."""
    return device.type == "cuda" or (device.type == "cpu" and os.access(_CLEAR, os.W_OK))


def _measure(
    sender: Connection,
    case: Case,
    device: torch.device,
    seed: int,
    folder: Path,
    contender: str,
    parts_by_batch: dict[int, int],
    threads: int,
) -> None:
    """Runs in the child: sends what was measured, or the reason why not."""
    try:
        warnings.simplefilter("ignore")  # the parent has shown them
        torch.set_num_threads(threads)
        keep_large_blocks()
        _load_libraries()
        peak, reset = (_cuda_peak, _cuda_reset) if device.type == "cuda" else (process_peak, process_reset)
        with torch.no_grad():
            # Nothing here keeps the setup alive, which holds more than most contenders need.
            sender.send(_by_batch(Setup(case, device, seed, folder), contender, parts_by_batch, peak, reset))
    except (PetmError, RuntimeError, MemoryError) as error:
        sender.send(str(error))


def _by_batch(
    setup: Setup,
    contender: str,
    parts_by_batch: dict[int, int],
    peak: Callable[[], tuple[int, int]],
    reset: Callable[[], None],
) -> dict[int, Memory]:
    reset()
    _, libraries = peak()
    forward, case, device, seed = CONTENDERS[contender].make(setup), setup.case, setup.device, setup.seed
    del setup  # the call holds what it needs, and no more
    found = {}
    for batch, parts in sorted(parts_by_batch.items()):
        x = case.inputs(batch, seed).to(device)
        forward(x, parts)
        gc.collect()
        reset()
        _, resident = peak()
        for _ in range(_CALLS):
            forward(x, parts)
        found[batch] = Memory(peak()[0] - libraries, resident - libraries)
    return found


def _load_libraries() -> None:
    """All of them in every child, so that none of them counts for a contender."""
    import_module("transformers.modeling_utils")
    if find_spec("onnxruntime") is not None:
        import_module("onnxruntime")
        import_module("experiments.onnx")
    # The first product and the first convolution load and build kernels, which belong to no contender either.
    torch.nn.functional.conv2d(torch.rand(1, 3, 8, 8), torch.rand(3, 3, 3, 3)).flatten(1) @ torch.rand(108, 2)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def process_peak() -> tuple[int, int]:
    """The greatest resident set since the last reset, and the present one, in bytes."""
    # Not ru_maxrss: a child starts with its parent's, and it cannot be reset.
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    peak, now = (int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
    return peak, now


def process_reset() -> None:
    """Gives back what the C library keeps, and starts the greatest resident set anew from the present one."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    _CLEAR.write_text("5")


def _cuda_peak() -> tuple[int, int]:
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()


def _cuda_reset() -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
