"""The benchmark of speed: contenders side by side, in one process, in turn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from experiments.machine import (
    LEAST_ROUNDS,
    Call,
    can_measure,
    describe_machine,
    interleave,
    ratio_spread,
    spread,
    warm_up,
)
from experiments.speed.contenders import CONTENDERS, ONE, PLAIN, TWO, Forward, LeftOutError, Setup
from experiments.speed.fitting import FitSettings, measure_fit
from experiments.speed.memory import measure_memory
from experiments.speed.networks import Case
from petm._internal.operations import count_operations
from petm._internal.progress import track
from petm.cli.process import keep_large_blocks
from petm.errors import ArgumentError, RunError
from petm.models.loading import count_parameters
from petm.models.prediction import choose_device

AT_MOST = 600.0
"""A batch size whose three rounds would take longer than these seconds is left out."""

_FORWARDS = {TWO: 2, ONE: 2, "mixed_batch": 2}
"""Plain forwards that a call takes at most, where they are not equal parts: to foresee how long the rounds take."""

_WARMING = 3
"""Calls before the rounds: two to warm up and one to count."""

_SHARES = 100
"""Steps of the progress bar."""


@dataclass(frozen=True)
class SpeedSettings:
    """How the contenders are timed.

    Attributes:
        batches: Batch sizes.
        seconds: For all rounds of one network at one batch size.
        memory: Measure peak memory too, in a process for each contender.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    batches: tuple[int, ...] = (1, 32, 256)
    seconds: float = 20.0
    memory: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ArgumentError(f"batches: expected sizes of at least 1, got {self.batches}. Name one such as 32.")
        if not 0 < self.seconds < math.inf:
            raise ArgumentError(f"seconds: expected a finite number above 0, got {self.seconds}. Try 20.")


def measure_speed(
    cases: Sequence[Case],
    settings: SpeedSettings,
    *,
    fit: FitSettings | None = None,
    on_result: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Returns times, ratios, counted operations and peak memory of all contenders, as ``speed.json`` holds them.

    Args:
        cases: The networks.
        settings: How they are timed.
        fit: Time the fitting too, in this way.
        on_result: Told the result so far, whenever a part of it is there.

    Raises:
        ArgumentError: A layer that is to be adapted is not there.
        ModelError: A network cannot be built, or does not take its inputs.
    """
    keep_large_blocks()  # as in all of petm: the plain forward gains from it too
    device = choose_device(settings.device)
    result: dict[str, Any] = {
        "benchmark": "speed",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        "settings": asdict(settings),
        "contenders": {name: {"title": one.title, "definition": one.definition} for name, one in CONTENDERS.items()},
        "cases": [],
        "fit": None,
    }
    with track("speed", len(cases)) as progress:
        for case in cases:
            result["cases"].append(measure_case(case, settings, device))
            on_result(result)
            progress.advance()
    if fit is not None:
        result["fit"] = measure_fit(fit, device)
        on_result(result)
    return result


def measure_case(case: Case, settings: SpeedSettings, device: torch.device) -> dict[str, Any]:
    """Returns what was measured of one network."""
    with TemporaryDirectory() as folder:
        setup = Setup(case, device, Path(folder))
        forwards: dict[str, Forward] = {}
        left_out: dict[str, str] = {}
        for name, contender in CONTENDERS.items():
            try:
                forwards[name] = contender.make(setup)
            except LeftOutError as error:
                left_out[name] = str(error)
        with torch.no_grad():
            batches = [_measure_batch(forwards, setup, batch, settings) for batch in sorted(settings.batches)]
        described = {
            "name": case.name,
            "title": case.title,
            "shape": case.shape,
            "ranks": setup.adapted.ranks,
            "parameters": count_parameters(setup.model),
            "adapter_parameters": setup.adapted.adapter_parameters(),
            "left_out": left_out,
            "batches": batches,
        }
        names = list(forwards)
        forwards.clear()  # the processes that follow need the memory
        setup = Setup(case, device, Path(folder))
        wanted = settings.memory and any(entry["rows"] for entry in batches) and can_measure(device)
        return described | {"memory_left_out": _add_memory(setup, batches, names) if wanted else {}}


def _measure_batch(
    forwards: Mapping[str, Forward], setup: Setup, batch: int, settings: SpeedSettings
) -> dict[str, Any]:
    """Times of all contenders at one batch size, or the reason why there are none."""
    x = setup.inputs(batch)

    def call_of(name: str, parts: int) -> Call:
        return partial(_call, forwards[name], x, parts)

    alone = warm_up(call_of(PLAIN, 1))
    whole = sum(_FORWARDS.get(name, CONTENDERS[name].parts) for name in forwards) * alone * LEAST_ROUNDS
    in_parts = whole > settings.seconds
    parts = {name: 1 if in_parts else CONTENDERS[name].parts for name in forwards}
    least = sum(_FORWARDS.get(name, parts[name]) for name in forwards) * alone * (LEAST_ROUNDS + _WARMING)
    if in_parts and least > AT_MOST:
        reason = f"{LEAST_ROUNDS} rounds would take about {least:.0f} s, more than {AT_MOST:g} s."
        return {"batch": batch, "rounds": 0, "rows": [], "left_out": reason}
    calls = {name: call_of(name, parts[name]) for name in forwards}
    expected = {name: warm_up(call) for name, call in calls.items()}
    operations = {name: count_operations(call) for name, call in calls.items() if not CONTENDERS[name].counted_as}
    with track(f"{setup.case.name}, batch {batch}", _SHARES) as progress:
        done = 0

        def show(rounds: int, spent: float) -> None:
            nonlocal done
            now = min(_SHARES, int(_SHARES * min(spent / settings.seconds, rounds / LEAST_ROUNDS)))
            progress.advance(now - done)
            progress.show(rounds=rounds)
            done = now

        times = interleave(calls, settings.seconds, expected=expected, on_round=show)
    rows = [_row(name, times, operations, parts) for name in calls]
    return {"batch": batch, "rounds": len(times[PLAIN]), "rows": rows, "left_out": None}


def _call(forward: Forward, x: Tensor, parts: int) -> None:
    forward(x, parts)
    if x.device.type != "cpu":
        torch.accelerator.synchronize()


def _row(
    name: str, times: Mapping[str, list[float]], operations: Mapping[str, int], parts: Mapping[str, int]
) -> dict[str, Any]:
    """One contender's times, and what they are of a plain forward's; forwards not timed are multiplied in."""

    def seconds(of: str) -> list[float]:
        return [CONTENDERS[of].parts / parts[of] * value for value in times[of]]

    contender = CONTENDERS[name]
    counted = operations[contender.counted_as or name] * contender.parts // parts[name]
    return {
        "contender": name,
        "title": contender.title,
        "seconds": asdict(spread(seconds(name))),
        "ratio": asdict(ratio_spread(seconds(name), seconds(PLAIN))),
        "ratio_to_two_models": asdict(ratio_spread(seconds(name), seconds(TWO))),
        "operations": counted,
        "counted_ratio": counted / operations[PLAIN] if operations[PLAIN] else None,
        "parts": contender.parts,
        "parts_timed": parts[name],
        "memory": None,
    }


def _add_memory(setup: Setup, batches: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """Adds peak memory to the rows; returns for which contenders there is none, and why."""
    missing = {}
    with track(f"{setup.case.name}, memory", len(names)) as progress:
        for name in names:
            rows = {entry["batch"]: row for entry in batches for row in entry["rows"] if row["contender"] == name}
            parts = {batch: row["parts_timed"] for batch, row in rows.items()}
            try:
                found = measure_memory(setup, name, parts, threads=torch.get_num_threads())
            except RunError as error:
                missing[name] = str(error)
            else:
                for batch, memory in found.items():
                    rows[batch]["memory"] = asdict(memory)
            progress.advance()
    for entry in batches:
        plain = next((row["memory"] for row in entry["rows"] if row["contender"] == PLAIN), None)
        for row in entry["rows"]:
            if plain is not None and row["memory"] is not None:
                row["memory"]["ratio"] = row["memory"]["peak"] / max(plain["peak"], 1)
    return missing
