"""Does the guarantee hold in each group at once, where groups overlap and have 50 to 5,000 samples?

The population is known: each input has a site and a device, suspicion is uniform in [0, 1], and a prediction is wrong
with probability ``min(1, h s²)``, whose ``h`` depends on both. So the risk of each group below any thresholds is known
exactly. A draw violates the guarantee where the risk of any group that is said to have one exceeds `max_risk`. The
control is one threshold over all, as without groups.

    python -m experiments.guarantee_groups --draws 1000 -o docs/measured
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import plain, write_json
from petm.selective.group_thresholds import group_thresholds
from petm.selective.metrics import share
from petm.selective.thresholds import Threshold, risk_threshold

SITES = {"a": (5000, 0.6), "b": (1500, 1.0), "c": (500, 1.3), "d": (150, 0.8), "e": (50, 1.0)}
DEVICES = {"x": (0.6, 0.4), "y": (0.3, 0.5), "z": (0.1, 0.8)}
"""Expected samples, or share, and how often a prediction is wrong in comparison."""
CONFIDENCE, RISKS = 0.95, (0.02, 0.05, 0.1)
SAMPLES = sum(size for size, _ in SITES.values())
_SHARE = np.outer([size / SAMPLES for size, _ in SITES.values()], [part for part, _ in DEVICES.values()])
_HARD = np.outer([each for _, each in SITES.values()], [each for _, each in DEVICES.values()])
Values = dict[str, NDArray[Any]]


def draw(random: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], Values]:
    """Returns suspicion, errors and the groups of calibration samples."""
    cells = random.choice(_SHARE.size, SAMPLES, p=_SHARE.ravel())
    suspicion = random.random(SAMPLES)
    wrong = random.random(SAMPLES) < np.minimum(1, _HARD.ravel()[cells] * suspicion**2)
    places = np.unravel_index(cells, _SHARE.shape)
    names = (np.array(list(SITES)), np.array(list(DEVICES)))
    return suspicion, wrong, {"site": names[0][places[0]], "device": names[1][places[1]]}


def below(value: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns, for a threshold in each cell, the shares of the population that are trusted, and trusted and wrong."""
    ends = np.clip(value, 0, 1)
    clipped = np.minimum(ends, 1 / np.sqrt(_HARD))  # from there on every prediction is wrong
    return _SHARE * ends, _SHARE * (_HARD * clipped**3 / 3 + ends - clipped)


def cutoffs(threshold: Threshold, columns: tuple[str, ...]) -> NDArray[Any]:
    """Returns the threshold of each site and device."""
    if threshold.groups is None:
        return np.full(_SHARE.shape, threshold.value)
    sites, devices = np.meshgrid(list(SITES), list(DEVICES), indexing="ij")
    values = {"site": sites.ravel(), "device": devices.ravel()}
    places = threshold.groups.places({column: values[column] for column in columns})
    return np.array(threshold.values)[places].reshape(_SHARE.shape)


def risks(trusted: NDArray[Any], wrong: NDArray[Any]) -> dict[tuple[str, str], float]:
    """Returns the risk of each group; 0 where nothing is trusted."""
    found: dict[tuple[str, str], float] = {}
    for column, names, axis in (("site", SITES, 1), ("device", DEVICES, 0)):
        bad, all_ = wrong.sum(axis), trusted.sum(axis)
        found |= {(column, name): float(bad[i] / all_[i]) if all_[i] else 0.0 for i, name in enumerate(names)}
    return found


def judged(columns: tuple[str, ...], max_risk: float, draws: int) -> dict[str, Any]:
    """Returns how often any group is violated, and the coverage, beside those of one threshold over all."""
    random, rows = np.random.default_rng(0), []
    guaranteed: list[int] = []
    for _ in range(draws):
        suspicion, wrong, values = draw(random)
        own = {column: values[column] for column in columns}
        threshold = group_thresholds(suspicion, wrong, own, max_risk=max_risk, confidence=CONFIDENCE)
        pooled = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=CONFIDENCE)
        named = set(threshold.groups.members()) if threshold.groups else set()
        shares = below(cutoffs(threshold, columns))
        plain_shares = below(cutoffs(pooled, columns))
        violated = [group for group, risk in risks(*shares).items() if group in named and risk > max_risk]
        plainly = [group for group, risk in risks(*plain_shares).items() if group in named and risk > max_risk]
        rows.append((bool(violated), shares[0].sum(), bool(plainly), plain_shares[0].sum()))
        guaranteed.append(len(named))
    broken, coverage, broken_plainly, coverage_plainly = np.array(rows, float).T
    return {
        "columns": list(columns),
        "max_risk": max_risk,
        "groups_with_a_guarantee": float(np.mean(guaranteed)),
        "violated": share(int(broken.sum()), draws),
        "coverage": float(coverage.mean()),
        "one_threshold": {
            "violated": share(int(broken_plainly.sum()), draws),
            "coverage": float(coverage_plainly.mean()),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    rows = []
    for columns in (("site",), ("site", "device")):
        for max_risk in RISKS:
            rows.append(row := judged(columns, max_risk, arguments.draws))
            print(row, flush=True)
    content = {"confidence": CONFIDENCE, "draws": arguments.draws, "samples": SAMPLES}
    write_json(arguments.output / "guarantee_groups.json", content | {"rows": plain(rows)})


if __name__ == "__main__":
    main()
