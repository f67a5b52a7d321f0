"""False alarms, delay and power of monitoring that is looked at again and again, beside tests for one look.

    python -m experiments.monitor_false_alarms -o docs/measured

Streams of labelled trusted predictions whose risk lies exactly at the limit: 200 looks, at growing data and at windows.
Then streams of twice the risk, against the exact test of the same level whose size gives it a power of 80 %. Then the
drift of suspicion, without a shift and with one. Writes ``monitor_anytime.json``.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from petm._internal.files import plain, write_json
from petm.selective.drift import SuspicionProfile, drift_of, log_drift, suspicion_profile
from petm.selective.metrics import share
from petm.selective.sequential import FROM_START, log_evidence, log_violation

LOOKS, EACH = 200, 50
"""Looks at a stream, and labelled trusted predictions between two."""
CONFIDENCE = 0.95
SIGNIFICANCE = 0.01
LIMITS = (0.01, 0.05)


def exact_alarm(wrong: NDArray[Any], of: NDArray[Any] | int, limit: float, confidence: float) -> NDArray[np.bool_]:
    """Where the Clopper-Pearson interval begins above the limit."""
    return np.asarray(scipy.stats.binom.sf(wrong - 1, of, limit) <= (1 - confidence) / 2)


def false_alarms(limit: float, streams: int) -> dict[str, Any]:
    """Returns how many streams with the risk at the limit are ever called violated, or held, in 200 looks."""
    wrong = np.random.default_rng(0).binomial(EACH, limit, (streams, LOOKS))
    growing, of = wrong.cumsum(1), EACH * np.arange(1, LOOKS + 1)
    level, alarms = math.log(2 / (1 - CONFIDENCE)), 0
    for stream in wrong:
        blocks = np.stack([stream, np.full(LOOKS, EACH)], 1)
        alarms += any(log_violation(blocks[:end], limit)[0] >= level for end in range(1, LOOKS + 1))
    held = (log_evidence(growing, of, limit, above=False) >= level).any(1)
    ways = {
        "violated, at any time": alarms,
        "held, at any time": int(held.sum()),
        "violated, exact interval of growing data": int(exact_alarm(growing, of, limit, CONFIDENCE).any(1).sum()),
        "violated, exact interval of each window": int(exact_alarm(wrong, EACH, limit, CONFIDENCE).any(1).sum()),
    }
    return {"limit": limit, **{way: share(count, streams) for way, count in ways.items()}}


def size_of_exact_test(limit: float, level: float, power: float) -> int:
    """Returns the least number of trials at which the exact test sees twice the limit with this power."""
    for size in range(5, 10**6):
        if scipy.stats.binom.sf(scipy.stats.binom.isf(level, size, limit), size, 2 * limit) >= power:
            return size
    raise ValueError("no size")


def delays(limit: float, confidence: float, streams: int) -> dict[str, Any]:
    """Returns the labels until a doubled risk is seen, over the size of the exact test."""
    level = (1 - confidence) / 2
    size = size_of_exact_test(limit, level, 0.8)
    random, at, labels = (
        np.random.default_rng(1),
        np.arange(0, 16 * size, max(1, size // 100)),
        np.full(streams, np.inf),
    )
    for stream in range(streams):
        wrong = (random.random(16 * size) < 2 * limit).cumsum()[at]
        seen = math.log(FROM_START) + log_evidence(wrong, at + 1, limit, above=True) >= -math.log(level)
        labels[stream] = at[seen.argmax()] + 1 if seen.any() else np.inf
    return {
        "limit": limit,
        "confidence": confidence,
        "size_of_exact_test": size,
        "mean": float(labels.mean() / size),
        "median": float(np.median(labels) / size),
    }


def late_rise(limit: float, streams: int) -> dict[str, Any]:
    """Returns the labels until a risk is seen that doubles the limit after 100 looks at half the limit."""
    random, before, level = np.random.default_rng(2), 100, math.log(2 / (1 - CONFIDENCE))
    labels, growing = [], []
    for _ in range(streams):
        wrong = np.concatenate([random.binomial(EACH, limit / 2, before), random.binomial(EACH, 2 * limit, 400)])
        blocks, of = np.stack([wrong, np.full(len(wrong), EACH)], 1), EACH * np.arange(1, len(wrong) + 1)
        ends = range(before + 1, len(wrong) + 1)
        first = next((end for end in ends if log_violation(blocks[:end], limit)[0] >= level), math.inf)
        labels.append((first - before) * EACH)
        exact = exact_alarm(wrong.cumsum(), of, limit, CONFIDENCE)[before:]
        growing.append((int(exact.argmax()) + 1) * EACH if exact.any() else math.inf)
    return {
        "limit": limit,
        "median, at any time": float(np.median(labels)),
        "median, exact interval of growing data": float(np.median(growing)),
    }


def suspicion_of(kind: str, count: int, random: np.random.Generator, shift: float = 0.0) -> NDArray[np.float64]:
    """Returns ``count`` suspicions, continuous, rounded or nearly constant."""
    values = random.normal(size=count) + shift
    kinds = {"continuous": values, "rounded": values.round(1), "nearly constant": 1.0 * (values > 2)}
    return np.asarray(kinds[kind], np.float64)


def drift_alarms(kind: str, streams: int) -> dict[str, Any]:
    """Returns how many streams without drift are ever called drifted; looked at after each fifth of 200 days."""
    random, alarms = np.random.default_rng(3), 0
    for _ in range(streams):
        profile = profile_of(suspicion_of(kind, 300, random))
        counts = np.array([profile.counts(suspicion_of(kind, EACH, random)) for _ in range(LOOKS)])
        level = -math.log(SIGNIFICANCE)
        alarms += any(log_drift(profile, counts[:end])[0] >= level for end in range(5, LOOKS + 1, 5))
    return {"suspicion": kind, "drifted": share(alarms, streams)}


def drift_power(shift: float, samples: int, draws: int) -> dict[str, Any]:
    """Returns how often one look sees a shift, in standard deviations, with as many samples in calibration."""
    random, found = np.random.default_rng(4), np.zeros(2, int)
    for _ in range(draws):
        profile = profile_of(suspicion_of("continuous", samples, random))
        counts = profile.counts(suspicion_of("continuous", samples, random, shift))
        found += (
            log_drift(profile, [counts])[0] >= -math.log(SIGNIFICANCE),
            (drift_of(profile, counts).p_value <= SIGNIFICANCE),
        )
    return {
        "shift": shift,
        "samples": samples,
        "at any time": share(int(found[0]), draws),
        "one look": share(int(found[1]), draws),
    }


def profile_of(suspicion: NDArray[np.float64]) -> SuspicionProfile:
    """Returns the profile of calibration."""
    found = SuspicionProfile.from_measured(suspicion_profile(suspicion))
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    streams = arguments.streams
    content: dict[str, Any] = {"looks": LOOKS, "labels_a_look": EACH, "streams": streams, "confidence": CONFIDENCE}
    content["significance"] = SIGNIFICANCE
    parts = {
        "delay_of_a_doubled_risk": [
            delays(limit, confidence, streams // 4)
            for limit in (0.005, 0.01, 0.02, 0.05, 0.1)
            for confidence in (0.9, 0.95, 0.99)
        ],
        "late_rise": [late_rise(limit, streams // 20) for limit in LIMITS],
        "drift_power": [
            drift_power(shift, samples, streams // 10)
            for shift, samples in ((0.25, 300), (0.5, 300), (0.1, 2000), (0.2, 2000))
        ],
        "drift_false_alarms": [
            drift_alarms(kind, streams // 4) for kind in ("continuous", "rounded", "nearly constant")
        ],
        "false_alarms": [false_alarms(limit, streams) for limit in LIMITS],
    }
    for rows in parts.values():
        for row in rows:
            print(plain(row), flush=True)
    write_json(arguments.output / "monitor_anytime.json", plain(content | parts))


if __name__ == "__main__":
    main()
