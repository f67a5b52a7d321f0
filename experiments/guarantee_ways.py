"""How often the guarantee is violated, over each way in which `max_risk` can be told to a fit.

A base model that has learnt its training samples by heart is right on all of them, and wrong on a share of all others
that falls with its margin. Each draw has fresh samples, calibrates by one of the ways, and compares the threshold's
true risk, known for this population, with `max_risk`. The calibration set holds a share of training samples, or
several copies of each sample. Where no guarantee is claimed (a refusal, or nothing trusted), none is violated; a row
in which none ever is says so, as its share of violations says nothing.

    python -m experiments.guarantee_ways --draws 1000 -o docs/measured
"""

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from petm._internal import progress
from petm._internal.files import plain, write_json
from petm.adapter.model import Member, attach_adapter
from petm.adapter.peft_folder import save_adapter
from petm.cli import main as petm_command
from petm.data.base import TensorData
from petm.data.views import MIRROR
from petm.errors import PetmError, PetmWarning
from petm.fitting import fit, fit_adopted
from petm.grading.grader import Grader, load
from petm.models.loading import save_weights
from petm.selective.metrics import share
from petm.selective.targets import MaxRisk
from petm.sklearn import GradedClassifier
from petm.training.recipes import RECIPES, Recipe

MAX_RISK, CONFIDENCE, SAMPLES, TRAINING = 0.05, 0.95, 600, 300
SAME = Recipe("no training", (Member("", MIRROR),), copies=0)
"""Images are their own mirror image, so suspicion is 1 minus the softmax, and a fit takes milliseconds."""
MIXTURES: dict[str, tuple[float, int]] = {
    "fresh": (0.0, 1),
    "10 % seen": (0.1, 1),
    "30 % seen": (0.3, 1),
    "100 % seen": (1.0, 1),
    "2 copies": (0.0, 2),
    "4 copies": (0.0, 4),
    "10 copies": (0.0, 10),
}
Samples = tuple[Tensor, Tensor]


class Margin(nn.Module):
    """Two logits from an image of 1×4, of which the last two pixels mirror the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2, bias=False)
        self.head.weight.data = torch.eye(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits ``(N, 2)``."""
        logits: Tensor = self.head(x.flatten(1))
        return logits


def draw(random: np.random.Generator, n: int, *, learnt: bool = False) -> Samples:
    """Returns images ``(n, 1, 1, 4)`` and labels; where the samples are learnt, the model is right on all."""
    margin, side = random.exponential(2.0, n), random.integers(0, 2, n)
    signed = np.where(side == 1, margin, -margin) / 2
    images = np.stack((-signed, signed, signed, -signed), 1).astype(np.float32)
    wrong = np.zeros(n, bool) if learnt else random.random(n) < 0.2 * np.exp(-margin / 1.5)
    return torch.from_numpy(images[:, None, None]), torch.from_numpy(np.where(wrong, 1 - side, side))


def mixed(random: np.random.Generator, fresh: Samples, train: Samples, seen: float, copies: int) -> Samples:
    """Returns calibration samples of which a share are training samples, and each occurs several times."""
    count = round(seen * len(train[0]))
    chosen = torch.from_numpy(random.permutation(len(train[0]))[:count])
    others = len(fresh[0]) if seen < 1 else 0
    parts = [
        torch.cat((new[:others], old[chosen])).repeat_interleave(copies, 0)
        for new, old in zip(fresh, train, strict=True)
    ]
    order = torch.from_numpy(random.permutation(len(parts[0])))
    return parts[0][order], parts[1][order]


def by_fit(train: Samples, calibration: Samples) -> Grader:
    """`petm.fit` with a calibration set."""
    target = MaxRisk(MAX_RISK, confidence=CONFIDENCE)
    return fit(Margin(), TensorData(*train), calibration=TensorData(*calibration), recipe=SAME, target=target)


def by_fit_per_class(train: Samples, calibration: Samples) -> Grader:
    """`petm.fit` with a calibration set and a guarantee in each class."""
    target = MaxRisk(MAX_RISK, confidence=CONFIDENCE, per="class")
    return fit(Margin(), TensorData(*train), calibration=TensorData(*calibration), recipe=SAME, target=target)


def by_adapter(_: Samples, calibration: Samples) -> Grader:
    """`fit_adopted` of an adapter that changes nothing, on data that nothing has seen, as is stated."""
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(attach_adapter(Margin(), {"head": 1}), Path(folder))
        target = MaxRisk(MAX_RISK, confidence=CONFIDENCE)
        return fit_adopted(
            Margin(), folder, TensorData(*calibration), target=target, calibration_from_data=True, device="cpu"
        ).grader


def by_statement(_: Samples, calibration: Samples) -> Grader:
    """`petm.fit` on data that the model has not seen, as is stated."""
    target = MaxRisk(MAX_RISK, confidence=CONFIDENCE)
    return fit(
        Margin(), TensorData(*calibration), calibration=0.7, recipe=SAME, target=target, calibration_from_data=True
    )


def by_sklearn(train: Samples, calibration: Samples) -> Grader:
    """`GradedClassifier` with a calibration set."""
    made = GradedClassifier(Margin(), recipe=SAME, target=MaxRisk(MAX_RISK, confidence=CONFIDENCE))
    return made.fit(*_arrays(train), calibration=_arrays(calibration)).grader_


def by_sklearn_statement(_: Samples, calibration: Samples) -> Grader:
    """`GradedClassifier` on data that the model has not seen, as is stated."""
    target = MaxRisk(MAX_RISK, confidence=CONFIDENCE)
    made = GradedClassifier(Margin(), recipe=SAME, target=target, calibration=0.7, calibration_from_data=True)
    return made.fit(*_arrays(calibration)).grader_


def by_command(train: Samples, calibration: Samples) -> Grader:
    """``petm fit --calibration``, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, samples in (("train", train), ("fresh", calibration)):
            images, labels = _arrays(samples)
            np.savez(place / f"{name}.npz", images=images, labels=labels)
        save_weights(Margin(), place / "w.safetensors")
        told = f"--model experiments.guarantee_ways:Margin --weights {place}/w.safetensors --data {place}/train.npz"
        told += f" --calibration {place}/fresh.npz -o {place}/g.petm --max-risk {MAX_RISK} --confidence {CONFIDENCE}"
        before, sys.argv = sys.argv, ["petm", "fit", *told.split()]
        fast, RECIPES["auto"] = RECIPES["auto"], SAME
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                petm_command()
        except SystemExit as ended:
            if ended.code:
                raise PetmError(err.getvalue()) from ended
        finally:
            sys.argv, RECIPES["auto"] = before, fast
        return load(place / "g.petm", Margin())


WAYS: dict[str, Callable[[Samples, Samples], Grader]] = {
    "fit(calibration=)": by_fit,
    "fit(calibration=), per class": by_fit_per_class,
    "fit(calibration_from_data=True)": by_statement,
    "fit_adopted(calibration_from_data=True)": by_adapter,
    "GradedClassifier.fit(calibration=)": by_sklearn,
    "GradedClassifier(calibration_from_data=True)": by_sklearn_statement,
    "petm fit --calibration": by_command,
}


def violated(way: str, mixture: str, draws: int, *, seed: int = 0) -> dict[str, Any]:
    """Returns the numbers of draws in which a guarantee is claimed and violated, with the share's interval."""
    random = np.random.default_rng(seed)
    images, labels = draw(random, 200_000)
    found = (images[:, 0, 0, 1] > 0).long()
    suspicion, wrong = 1 - images.flatten(1)[:, :2].softmax(1).amax(1).double().numpy(), (found != labels).numpy()
    claimed = broken = 0
    for _ in range(draws):
        train, fresh = draw(random, TRAINING, learnt=True), draw(random, SAMPLES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PetmWarning)
                grader = WAYS[way](train, mixed(random, fresh, train, *MIXTURES[mixture]))
        except PetmError:
            continue
        trusted = grader.threshold.trusts(suspicion, found.numpy())
        claimed += grader.threshold.value > -np.inf
        groups = [trusted & (found.numpy() == k) for k in (0, 1)] if grader.threshold.classes else [trusted]
        broken += any(bool(group.any()) and float(wrong[group].mean()) > MAX_RISK for group in groups)
    limit = int(binom.ppf(0.999, draws, 1 - CONFIDENCE))
    return {
        "way": way,
        "calibration": mixture,
        "draws": draws,
        "claimed": claimed,
        "violated": share(broken, draws),
        "at_most": limit,
    }


def _arrays(samples: Samples) -> tuple[Any, Any]:
    return samples[0].numpy(), samples[1].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    progress.console.quiet = True  # a line on accuracy in each of thousands of fits
    found = []
    for way in WAYS:
        stated = "from_data" in way
        for mixture, (seen, _) in MIXTURES.items():
            if stated and seen:
                continue  # the statement would be false
            found.append(violated(way, mixture, arguments.draws))
            row = found[-1]
            told = f"violated {row['violated'].count:4} of {row['draws']}, at most {row['at_most']}"
            told = told if row["claimed"] else "no guarantee in any draw"
            print(f"{way:<45} {mixture:<11} claimed {row['claimed']:5}, {told}", flush=True)
    write_json(arguments.output / "guarantee_ways.json", {"rows": plain(found)})


if __name__ == "__main__":
    main()
