"""Times of several calls, taken in turn so that whatever else the machine does befalls all of them alike."""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_ROUNDS = 3
_SLICE = 0.02
"""Seconds that one contender keeps the machine in a round: long enough for the clock, and for warm caches to count."""

Call = Callable[[], object]


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
