"""The machine that a measurement was taken on, its clock and its memory."""

import ctypes
import gc
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petm.errors import PetmError, RunError
from petm.grading.provenance import library_versions

LEAST_ROUNDS = 3
_SLICE = 0.02
"""Seconds that one contender keeps the machine in a round: long enough for the clock, and for warm caches to count."""

Call = Callable[[], object]


_FURTHER = ("onnxruntime", "transformers")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns device, threads, system and versions; nothing that names the machine or its user."""
    versions = library_versions()
    for name in _FURTHER:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@dataclass(frozen=True)
class Spread:
    """Where the middle half of the values lies.

    Attributes:
        median: Half of the values are below.
        low: A quarter of the values are below.
        high: A quarter of the values are above.
    """

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Returns median and quartiles of at least one value."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75)).tolist()
    return Spread(median, low, high)


def ratio_spread(times: Sequence[float], reference: Sequence[float]) -> Spread:
    """Returns median and quartiles of the ratio, taken round by round: what slows a whole round cancels out.

    Args:
        times: Seconds of each round.
        reference: Those of the contender that it is held against, in the same rounds.
    """
    return spread([time / other for time, other in zip(times, reference, strict=True)])


def warm_up(call: Call, clock: Callable[[], float] = time.perf_counter) -> float:
    """Calls once for whatever is done only once, then again, and returns the seconds of the second call."""
    call()
    start = clock()
    call()
    return clock() - start


def interleave(
    calls: Mapping[str, Call],
    seconds: float,
    *,
    expected: Mapping[str, float],
    on_round: Callable[[int, float], object] = lambda rounds, spent: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the seconds of one call by contender and round.

    In each round every contender is called for about 20 ms, after one call that does not count and finds the caches
    and threads as another left them; or once where a call takes longer. The order moves on by one from round to round
    and turns round every other time, so that none always follows the same other. The garbage collector waits
    meanwhile. Rounds go on until the time is spent, three at least.

    Args:
        calls: What to time, by name, warmed up.
        seconds: For all rounds together.
        expected: Seconds of one call, by name, as far as known from warming up.
        on_round: Told the number of rounds and the seconds spent.
        clock: Seconds from any start.
    """
    share = min(_SLICE, seconds / (2 * LEAST_ROUNDS * len(calls)))
    repeats = {name: max(1, math.ceil(share / max(expected[name], 1e-7))) for name in calls}
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds, start, collecting = 0, clock(), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while rounds < LEAST_ROUNDS or clock() - start < seconds:
            for name in order(list(calls), rounds):
                call = calls[name]
                if repeats[name] > 1:
                    call()
                begin = clock()
                for _ in range(repeats[name]):
                    call()
                times[name].append((clock() - begin) / repeats[name])
            rounds += 1
            on_round(rounds, clock() - start)
    finally:
        if collecting:
            gc.enable()
    return times


def order(names: Sequence[str], round_: int) -> list[str]:
    """Returns the names in the order of a round, counted from 0."""
    start = (round_ // 2) % len(names)
    turned = [*names[start:], *names[:start]]
    return turned if round_ % 2 == 0 else turned[::-1]


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


def can_measure(device: torch.device) -> bool:
    """Returns whether peak memory can be read here: on CUDA, and on Linux with its process files."""
    return device.type == "cuda" or (device.type == "cpu" and os.access(_CLEAR, os.W_OK))


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Returns what a function returns in a fresh process, which inherits nothing that others have left behind.

    Raises:
        RunError: The function raised, or the process ended before, for want of memory most likely.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RunError("memory: the process ended before its answer. Use a smaller batch.") from error
        except (PetmError, RuntimeError, MemoryError) as error:
            raise RunError(f"memory: could not be measured, {error}") from error
