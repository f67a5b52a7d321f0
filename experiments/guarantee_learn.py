"""How often the guarantee is violated after `petm.learn`, and after `petm.recalibrate` on what it has made.

A small network meets inputs of another scale than those that it was trained on. Each draw grades inputs, labels all
suspects and a quarter of the trusted, and learns from them with a guarantee; then the same is done with fresh inputs
for `recalibrate`. The true risk of each threshold is known from 40,000 further samples. Graders that trust nothing
violate nothing.

    python -m experiments.guarantee_learn --draws 1000 -o docs/measured
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petm._internal import progress
from petm._internal.files import plain, write_json
from petm.adapter.model import views_alone
from petm.data.base import TensorData
from petm.errors import PetmWarning
from petm.grading.grader import Grader, fit_grader
from petm.learning import PRESENT, learned
from petm.recalibration import recalibrated
from petm.selective.metrics import share
from petm.selective.targets import MaxRisk
from petm.training import from_labels

CLASSES, FEATURES, SHIFT = 4, 8, 0.7
AUDIT, CONFIDENCE, POPULATION = 0.25, 0.9, 40_000
EPOCHS = 2


class Network(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits ``(N, 4)`` for features ``(N, 8)``."""
        logits: Tensor = self.last(torch.relu(self.first(x)))
        return logits


def draw(truth: Tensor, n: int, random: torch.Generator, scale: float = 1.0) -> TensorData:
    """Returns samples whose label is the greatest of noisy linear functions; the inputs are scaled afterwards."""
    x = torch.randn(n, FEATURES, generator=random)
    y = (x @ truth + 0.9 * torch.randn(n, CLASSES, generator=random)).argmax(1)
    return TensorData(scale * x, y, classes=tuple("abcd"))


def trained(data: TensorData) -> Network:
    """Returns the network, trained on samples of the first scale."""
    torch.manual_seed(0)
    network = Network()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    x = data.inputs(range(len(data)))
    assert isinstance(x, Tensor)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), data.labels).backward()
        optimiser.step()
    return network.eval()


def queue(grader: Grader, data: TensorData, random: np.random.Generator) -> tuple[Any, Any]:
    """Returns the suspects and some of the trusted, with the chance that each had to be drawn."""
    trusted = grader.grade(data.inputs(range(len(data)))).trusted
    drawn = ~trusted | (random.random(len(trusted)) < AUDIT)
    return data.subset(torch.from_numpy(np.flatnonzero(drawn))), np.where(trusted, AUDIT, 1.0)[drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1600, help="Graded inputs of each draw.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder of guarantee_learn.json.")
    told = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PetmWarning)
    from_labels.EPOCHS = EPOCHS
    progress.console.quiet = True
    random = torch.Generator().manual_seed(1)
    truth = torch.randn(FEATURES, CLASSES, generator=random)
    network = trained(draw(truth, 4000, random))
    grader = fit_grader(views_alone(network, ()), draw(truth, 1000, random), target=None, score="softmax")
    whole = draw(truth, POPULATION, random, SHIFT)
    x, y = whole.inputs(range(POPULATION)), whole.labels.numpy()
    target = MaxRisk(0.5 * float((grader.grade(x).labels != y).mean()), confidence=CONFIDENCE)
    found: dict[str, list[dict[str, Any]]] = {"learn": [], "recalibrate": []}
    for seed in range(told.draws):
        numpy_random = np.random.default_rng(seed)
        data, chance = queue(grader, draw(truth, told.samples, random, SHIFT), numpy_random)
        how: Any = {"max_extra_parameters": 5.0, "max_extra_time": 5.0, "seed": seed, "force": True}
        better = learned(grader, data, chance=chance, target=target, **how).grader
        data, chance = queue(better, draw(truth, told.samples // 2, random, SHIFT), numpy_random)
        stricter = recalibrated(better, data, target=target, chance=chance, force=True).grader
        for name, made in (("learn", better), ("recalibrate", stricter)):
            grades = made.grade(x)
            wrong = grades.labels != y
            risk = float(wrong[grades.trusted].mean()) if grades.trusted.any() else 0.0
            taken = made.choice is not None and made.choice.name != PRESENT
            row = {"violated": risk > target.max_risk, "coverage": float(grades.trusted.mean()), "learned": taken}
            found[name].append(row)
        if (seed + 1) % 25 == 0 or seed + 1 == told.draws:
            rows = {name: _summary(each) for name, each in found.items()}
            made_of = {"draws": seed + 1, "max_risk": target.max_risk, "confidence": CONFIDENCE, "rows": rows}
            write_json(told.output / "guarantee_learn.json", made_of)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    violated = share(sum(row["violated"] for row in rows), len(rows))
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("coverage", "learned")}
    return {"violated": plain(violated), **means}


if __name__ == "__main__":
    main()
