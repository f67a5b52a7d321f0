"""Do the candidates of suspects hold the true class as often as asked, though grades are set on the same labels?

The population is known: a sample has a difficulty, uniform in [0, 1], which is its suspicion; the model's probabilities
are too sure of it by a factor in the logits. Each draw sets a threshold by a target on N labels, fits the sets in each
grade on the same labels, and is judged on 2,000 other samples. A control: sets fitted on all labels at once.

    python -m experiments.prediction_sets_coverage --draws 1000 -o docs/measured
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import plain, write_json
from petm.selective.sets import fit_grade_sets, fit_sets
from petm.selective.targets import Coverage, MaxRisk, Recall, Target

CLASSES, SIZES, LATER = 5, (300, 1000, 5000), 2000
TARGETS: dict[str, Target] = {
    "max_risk 0.02": MaxRisk(0.02),
    "max_risk 0.1": MaxRisk(0.1),
    "max_risk 0.05 in each class": MaxRisk(0.05, per="class"),
    "recall 0.9": Recall(0.9),
    "coverage 0.7": Coverage(0.7),
}
Drawn = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def draw(random: np.random.Generator, n: int) -> Drawn:
    """Returns probabilities ``(N, K)``, true and predicted classes, and suspicions."""
    difficulty = random.random(n)
    logits = random.normal(size=(n, CLASSES))
    logits[np.arange(n), random.integers(0, CLASSES, n)] += 8 * (1 - difficulty)
    truth = (_softmax(logits).cumsum(1) > random.random((n, 1))).argmax(1)
    values = _softmax(1.5 * logits)
    return values, truth, values.argmax(1), difficulty


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def measured(name: str, n: int, draws: int, coverage: float) -> dict[str, Any]:
    """Returns mean coverage and size in each grade, and the standard error of the coverage over draws."""
    random = np.random.default_rng(n)
    target = TARGETS[name]
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        values, truth, predicted, suspicion = draw(random, n)
        later, later_truth, later_predicted, later_suspicion = draw(random, LATER)
        threshold = target.threshold(suspicion, predicted != truth, predicted, classes=CLASSES)
        held = fit_grade_sets(values, truth, predicted, suspicion, threshold, coverage=coverage)
        suspect = ~threshold.trusts(later_suspicion, later_predicted)
        at_once = fit_sets(values, truth, coverage=coverage, predicted=predicted).sets(later, later_predicted)
        ways = {"at once": at_once}
        if held is not None:
            ways["by grade"] = held.sets(later, later_predicted, suspect.astype(int))
        found.setdefault("fitted", []).append(held is not None)
        for way, inside in ways.items():
            covered = inside[np.arange(len(later)), later_truth]
            for grade, some in (("suspects", suspect), ("trusted", ~suspect), ("all", np.ones_like(suspect))):
                if some.any():
                    found.setdefault(f"{way}, {grade}", []).append(covered[some].mean())
                    found.setdefault(f"{way}, {grade}, size", []).append(inside[some].sum(1).mean())
    row: dict[str, Any] = {"target": name, "labels": n, "coverage": coverage, "draws": draws}
    for key, numbers in found.items():
        row[key] = {"mean": float(np.mean(numbers)), "standard_error": float(np.std(numbers) / len(numbers) ** 0.5)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--coverage", type=float, default=0.95)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    told = parser.parse_args()
    rows = []
    for name in TARGETS:
        for n in SIZES:
            rows.append(measured(name, n, told.draws, told.coverage))
            shown = "; ".join(f"{key} {each['mean']:.4f}" for key, each in rows[-1].items() if isinstance(each, dict))
            print(f"{name}, {n} labels: {shown}", flush=True)
    write_json(told.output / "prediction_sets_coverage.json", {"rows": plain(rows)})


if __name__ == "__main__":
    main()
