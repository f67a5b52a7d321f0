"""Is the guaranteed risk kept, what coverage does it leave, and how well calibrated is the probability of error?

Every model's test samples are a population whose risk below any threshold is known exactly. Two ways of drawing
calibration samples from it, half as many as there are:

- *independent*, with replacement: what the theorem speaks of; a draw breaks the guarantee where the risk of the trusted
  in the population exceeds `max_risk`.
- *halves*, without replacement: calibrated on one half, judged on the whole and on the other half. The error rate of
  the other half is an estimate with an error of its own, and a lucky calibration half leaves an unlucky other one, so
  its share of draws above `max_risk` is no measure of the guarantee; see docs/concepts/guarantee.md.

    python -m experiments.guarantee --data-dir DIR --models-dir DIR -o docs/measured
    python -m experiments.guarantee --scores mine.npz --scores runs/cifar/scores/second_opinion_fast-0 -o runs/guarantee

the base model scores file holds `suspicion` (N,) and `wrong` (N,); a folder is one of `python -m experiments
detection`. Written are guarantee.json and guarantee.md.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from petm._internal.files import write_json, write_text
from petm.data.base import Data
from petm.data.digits import load_mnist
from petm.data.opening import open_data
from petm.models.loading import load_model
from petm.models.prediction import predict_logits
from petm.models.scores import maximum_softmax
from petm.selective.metrics import share
from petm.selective.probability import fit_probability
from petm.selective.thresholds import risk_threshold

RISKS, CONFIDENCES = (0.01, 0.02, 0.05), (0.9, 0.95)
BINS = 15


class Population:
    """Samples whose every one is known: suspicion in rising order, and where the base model is wrong."""

    def __init__(self, suspicion: NDArray[Any], wrong: NDArray[Any]) -> None:
        order = np.argsort(suspicion, kind="stable")
        self.suspicion, self.wrong = np.asarray(suspicion, float)[order], np.asarray(wrong, bool)[order]
        self._errors = np.append(0, self.wrong.cumsum())

    def __len__(self) -> int:
        return len(self.wrong)

    def trusted(self, value: float) -> tuple[int, int]:
        """How many lie below a threshold, and how many of them are wrong."""
        count = int(np.searchsorted(self.suspicion, value))
        return count, int(self._errors[count])

    def best_coverage(self, max_risk: float) -> float:
        """Of the thresholds that keep the risk, the greatest coverage: what one could do who knew every answer."""
        counts = np.flatnonzero(np.append(self.suspicion[:-1] < self.suspicion[1:], True)) + 1
        kept = counts[self._errors[counts] <= max_risk * counts]
        return int(kept[-1]) / len(self) if kept.size else 0.0


def judge(population: Population, draws: int, max_risk: float, confidence: float) -> dict[str, Any]:
    size, random = len(population) // 2, np.random.default_rng(0)
    rows = []
    for _ in range(draws):
        independent = random.integers(0, len(population), size)
        shuffled = random.permutation(len(population))
        half, other = shuffled[:size], shuffled[size:]
        first, second = (
            risk_threshold(population.suspicion[some], population.wrong[some], max_risk=max_risk, confidence=confidence)
            for some in (independent, half)
        )
        rest = Population(population.suspicion[other], population.wrong[other])
        rows.append((*_judged(population, first.value, max_risk), *_judged(population, second.value, max_risk),
                     *_judged(rest, second.value, max_risk), rest.best_coverage(max_risk)))  # fmt: skip
    broken, coverage, _, broken_whole, _, _, broken_rest, coverage_rest, beyond, best_rest = np.array(rows).T
    return {
        "max_risk": max_risk,
        "confidence": confidence,
        "independent": {
            "broken": share(int(broken.sum()), draws),
            "coverage": coverage.mean(),
            "best_coverage": population.best_coverage(max_risk),
            "nothing_trusted": (coverage == 0).mean(),
        },
        "halves": {
            "broken_on_the_whole": share(int(broken_whole.sum()), draws),
            "above_on_the_other_half": share(int(broken_rest.sum()), draws),
            "above_beyond_chance": share(int(beyond.sum()), draws),
            "coverage": coverage_rest.mean(),
            "best_coverage": best_rest.mean(),
            "nothing_trusted": (coverage_rest == 0).mean(),
        },
    }


def _judged(population: Population, value: float, max_risk: float) -> tuple[bool, float, bool]:
    """Whether the risk is exceeded, the coverage, and whether it is by more than chance explains at the 5 % level."""
    count, errors = population.trusted(value)
    return errors > max_risk * count, count / len(population), bool(binom.sf(errors - 1, count, max_risk) < 0.05)


def calibration(population: Population, splits: int) -> dict[str, Any]:
    """Calibration error on the other half, beside that of a perfect probability on as many samples."""
    random, rows, methods = np.random.default_rng(0), [], []
    for _ in range(splits):
        half, other = np.split(random.permutation(len(population)), [len(population) // 2])
        fitted = fit_probability(population.suspicion[half], population.wrong[half])
        found, wrong = fitted.probability(population.suspicion[other]), population.wrong[other]
        perfect = random.random(len(found)) < found
        rows.append(
            (calibration_error(found, wrong), calibration_error(found, perfect), abs(found.mean() - wrong.mean()))
        )
        methods.append(fitted.method)
    error, floor, bias = np.mean(rows, axis=0)
    return {
        "splits": splits,
        "calibration_error": error,
        "of_a_perfect_probability": floor,
        "mean_difference": bias,
        "chosen": {method: methods.count(method) / splits for method in sorted(set(methods))},
    }


def calibration_error(probability: NDArray[Any], wrong: NDArray[Any]) -> float:
    """The expected calibration error: |share of errors - mean probability|, weighted, over 15 bins of equal width."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, wrong - probability, BINS)).sum() / len(wrong))


def of_file(path: Path) -> Population:
    """From an archive of `suspicion` and `wrong`."""
    with np.load(path) as scores:
        return Population(scores["suspicion"], scores["wrong"])


def of_benchmark(folder: Path) -> Population:
    """From what `python -m experiments detection` writes of a method and a seed: its plain test samples."""
    with np.load(folder / "raw_logits.npz") as raw, np.load(folder / "external_confids.npz") as confidence:
        rows, trust = raw["arr_0"], confidence["arr_0"]
    test = rows[:, -1] == 0
    return Population(-trust[test], rows[test, :-2].argmax(1) != rows[test, -2])


def populations(arguments: argparse.Namespace) -> dict[str, Population]:
    found = {}
    for path in arguments.scores:
        found[path.stem] = of_benchmark(path) if path.is_dir() else of_file(path)
    if arguments.models_dir is None:
        return found
    test: dict[str, Data] = {"mnist": load_mnist(arguments.data_dir)[1]}
    test["cifar10"] = open_data(arguments.data_dir / "cifar10" / "test.parquet")
    for name, reference in (
        ("mnist_converged", "petm.models:PaperCNN"),
        ("mnist_early", "petm.models:PaperCNN"),
        ("cifar10_resnet9", f"{arguments.models_dir / 'resnet9.py'}:build"),
    ):
        data = test[name.split("_")[0]]
        logits = predict_logits(load_model(reference, arguments.models_dir / f"{name}.safetensors"), data)
        wrong = (logits.argmax(1) != data.labels).numpy()
        found[f"{name}, softmax"] = Population(maximum_softmax(logits).numpy(), wrong)
    return found


def table(results: dict[str, Any]) -> str:
    lines = [
        "| suspicion | risk | confidence | broken (95 % interval) | coverage | best possible "
        "| halves: broken on the whole | above on the other half | beyond chance | coverage | best possible |",
        "|" + "---|" * 11,
    ]
    for name, result in results.items():
        for row in result["guarantee"]:
            one, two = row["independent"], row["halves"]
            shares = (two["broken_on_the_whole"], two["above_on_the_other_half"], two["above_beyond_chance"])
            coverages = (two["coverage"], two["best_coverage"])
            cells = (
                name,
                f"{row['max_risk']:.0%}",
                f"{row['confidence']:.0%}",
                f"{one['broken'].value:.1%} ({one['broken'].low:.1%}–{one['broken'].high:.1%})",
                f"{one['coverage']:.1%}",
                f"{one['best_coverage']:.1%}",
                *(f"{part.value:.1%}" for part in shares),
                *(f"{coverage:.1%}" for coverage in coverages),
            )
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| suspicion | calibration error | of a perfect probability | difference of the means | chosen |"]
    lines.append("|" + "---|" * 5)
    for name, result in results.items():
        row = result["probability"]
        figures = (row["calibration_error"], row["of_a_perfect_probability"], row["mean_difference"])
        chosen = ", ".join(f"{method} {part:.0%}" for method, part in row["chosen"].items())
        lines.append("| " + " | ".join((name, *(f"{figure:.4f}" for figure in figures), chosen)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with mnist/ and cifar10/")
    parser.add_argument("--models-dir", type=Path, help="folder with the weights and resnet9.py")
    parser.add_argument(
        "--scores", type=Path, action="append", default=[], help=".npz file, or folder of a method; any number of times"
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--splits", type=int, default=100, help="for the probability of error")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    if (arguments.data_dir is None) != (arguments.models_dir is None) or not (arguments.scores or arguments.data_dir):
        parser.error("give --data-dir together with --models-dir, or --scores, or all of them")

    results: dict[str, Any] = {}
    for name, population in populations(arguments).items():
        results[name] = {
            "samples": len(population),
            "errors": int(population.wrong.sum()),
            "draws": arguments.draws,
            "guarantee": [
                judge(population, arguments.draws, risk, confidence)
                for risk, confidence in itertools.product(RISKS, CONFIDENCES)
            ],
            "probability": calibration(population, arguments.splits),
        }
        print(name, flush=True)
        write_json(arguments.output / "guarantee.json", results)
        write_text(arguments.output / "guarantee.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
