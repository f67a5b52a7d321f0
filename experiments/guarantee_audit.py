"""Does the guarantee hold where the labels are those of a review queue: all suspects, and an audit of the trusted?

The population is known: suspicion is uniform in [0, 1], and a prediction is wrong with probability suspicion³, so that
the risk below t is t³/4. Each draw grades inputs by an old threshold, labels every suspect and a random share of the
trusted, and calibrates anew on these labels. Two controls: the same labels without their chances, and as many inputs
labelled at random. The estimated risk of the old trusted is compared with the true one.

    python -m experiments.guarantee_audit --draws 1000 -o docs/measured
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import plain, write_json
from petm.selective.metrics import share
from petm.selective.thresholds import Threshold, class_thresholds, risk_threshold

OLD, CONFIDENCE = 0.6, 0.95
INPUTS, AUDITS, RISKS = (5000, 20_000), (0.05, 0.2), (0.02, 0.05, 0.1)
Labels = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def draw(random: np.random.Generator, inputs: int, audit: float) -> Labels:
    """Returns suspicion, errors and chances of the labelled inputs."""
    suspicion = random.random(inputs)
    wrong, chance = random.random(inputs) < suspicion**3, np.where(suspicion < OLD, audit, 1.0)
    drawn = random.random(inputs) < chance
    return suspicion[drawn], wrong[drawn], chance[drawn]


def trusted_share(threshold: Threshold) -> float:
    """Returns the share of the population below a threshold."""
    return min(max(threshold.value, 0.0), 1.0)


def calibrated(inputs: int, audit: float, max_risk: float, draws: int) -> dict[str, Any]:
    """Returns how often the guarantee is violated, and the coverage, by labels of a queue and by random ones."""
    random, found = np.random.default_rng(0), dict[str, list[float]]()
    asked = {"max_risk": max_risk, "confidence": CONFIDENCE}
    broken_classes = 0
    for _ in range(draws):
        suspicion, wrong, chance = draw(random, inputs, audit)
        fresh = random.random(len(suspicion))
        errors = random.random(len(fresh)) < fresh**3
        ways = {
            "queue": risk_threshold(suspicion, wrong, chance=chance, **asked),
            "queue, chances ignored": risk_threshold(suspicion, wrong, **asked),
            "random labels, as many": risk_threshold(fresh, errors, **asked),
        }
        for way, threshold in ways.items():
            found.setdefault(way, []).append(trusted_share(threshold))
        predicted = random.integers(0, 2, len(suspicion))
        each = class_thresholds(suspicion, wrong, predicted, classes=2, chance=chance, **asked)
        broken_classes += max(map(trusted_share, each.classes)) ** 3 / 4 > max_risk
    best = min(1.0, (4 * max_risk) ** (1 / 3))
    rows = {
        way: {"violated": share(sum(each > best for each in shares), draws), "coverage": float(np.mean(shares))}
        for way, shares in found.items()
    }
    rows["queue, in each of 2 classes"] = {"violated": share(broken_classes, draws)}
    return {"inputs": inputs, "audit": audit, "max_risk": max_risk, "best_coverage": best, "ways": rows}


def estimated(inputs: int, audit: float, draws: int) -> dict[str, Any]:
    """Returns the bias of the estimated risk over all predictions, and over those below two thresholds."""
    random, rows = np.random.default_rng(1), []
    places = {"old trusted": OLD, "up to 0.8": 0.8, "all": 1.0}
    for _ in range(draws):
        suspicion, wrong, chance = draw(random, inputs, audit)
        rows.append([np.average(wrong[suspicion < t], weights=1 / chance[suspicion < t]) for t in places.values()])
    bias = np.mean(rows, 0) - np.array([t**3 / 4 for t in places.values()])
    error = np.std(rows, 0, ddof=1) / len(rows) ** 0.5
    found = {
        place: {"bias": float(value), "standard_error_of_one": float(spread * len(rows) ** 0.5),
                "standard_error_of_the_bias": float(spread)}
        for place, value, spread in zip(places, bias, error, strict=True)
    }  # fmt: skip
    return {"inputs": inputs, "audit": audit, "risk_of": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    rows = []
    for inputs, audit, max_risk in itertools.product(INPUTS, AUDITS, RISKS):
        rows.append(calibrated(inputs, audit, max_risk, arguments.draws))
        ways = "; ".join(
            f"{way}: violated {found['violated'].count}, coverage {100 * found.get('coverage', np.nan):.1f} %"
            for way, found in rows[-1]["ways"].items()
        )
        print(f"{inputs} inputs, audit {audit:.0%}, risk {max_risk:.0%}: {ways}", flush=True)
    estimates = [estimated(inputs, audit, arguments.draws) for inputs, audit in itertools.product(INPUTS, AUDITS)]
    for row in estimates:
        print(row, flush=True)
    content = {"old_threshold": OLD, "confidence": CONFIDENCE, "draws": arguments.draws}
    write_json(arguments.output / "guarantee_audit.json", content | {"rows": plain(rows), "estimates": estimates})


if __name__ == "__main__":
    main()
