"""What `petm.fit` chooses and `petm.learn` learns for each base model, judged on data that nothing was chosen on."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.suite.models import Base
from petm.adapter.model import views_alone
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data
from petm.evidence.formulas import SOFTMAX
from petm.fitting import fit
from petm.grading.grader import Grader, fit_grader
from petm.learning import learned
from petm.selective.bootstrap import Estimate, bootstrap
from petm.selective.metrics import aurc


@dataclass(frozen=True)
class Judged:
    """One fit, judged.

    Attributes:
        model: Name of the base model.
        what: What was done.
        seed: Seed of the fit.
        taken: Name of the suspicion that was chosen.
        reason: Why.
        samples: Number of judged samples.
        errors: The base model's errors among them.
        softmax: AURC of the softmax.
        aurc: AURC of the chosen suspicion, with its 95 % interval.
        difference: Their paired difference, with its 95 % interval.
        compared: What was compared on the half to choose by.
        left: Errors left among the most trusted 90 % and 80 %, by the softmax and by the chosen suspicion.
    """

    model: str
    what: str
    seed: int
    taken: str
    reason: str
    samples: int
    errors: int
    softmax: float
    aurc: Estimate
    difference: Estimate
    compared: list[dict[str, Any]]
    left: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        ratio, ends = self.aurc.value / self.softmax - 1, (self.difference.low, self.difference.high)
        low, high = (end / self.softmax for end in ends)
        return (
            f"{self.model:22} {self.what:24} seed {self.seed}: {self.taken:50} "
            f"{1000 * self.softmax:8.3f} -> {1000 * self.aurc.value:8.3f}  {ratio:+.1%} [{low:+.1%}, {high:+.1%}]"
        )


def judge_fit(base: Base, *, budget: float, seed: int, samples: int, final: bool) -> Judged:
    """Returns a fit with the default settings, without a guarantee, judged on samples of its own.

    Args:
        base: The base model. The fit has the half to choose by, and, unless ``final``, only a half of that half.
        budget: Operations that suspicion may add.
        seed: Seed of the fit.
        samples: Most training samples that the fit gets.
        final: Judge on the untouched half.
    """
    half = base.choosing
    fresh, judged = (half, base.untouched_until_the_end) if final else half.split((0.5, 0.5), seed=seed)
    rows = torch.randperm(len(base.train), generator=torch.Generator().manual_seed(seed))[:samples]
    train = base.train.subset(rows.sort().values)
    grader = fit(base.model, train, calibration=fresh, max_extra_time=budget, seed=seed)
    return _judged(base.name, f"fit within {budget:g}", seed, grader, judged)


def _judged(model: str, what: str, seed: int, grader: Grader, judged: Data) -> Judged:
    answers = predict_answers(grader.adapted, judged)
    wrong = (answers.predicted != judged.labels).numpy()
    found, softmax = grader.suspicion.of(answers).numpy(), SOFTMAX.compute(answers, {}).numpy()
    choice = grader.choice
    assert choice is not None
    return Judged(
        model,
        what,
        seed,
        choice.name,
        choice.reason,
        len(wrong),
        int(wrong.sum()),
        aurc(softmax, wrong),
        bootstrap(aurc, found, wrong),
        bootstrap(aurc, found, wrong, minus=softmax),
        [asdict(row) for row in choice.compared],
        {f"{share:.0%}": (_left(softmax, wrong, share), _left(found, wrong, share)) for share in (0.9, 0.8)},
    )


def _left(suspicion: NDArray[np.float64], wrong: NDArray[np.bool_], share: float) -> int:
    """Errors among the share of samples with the least suspicion."""
    return int(wrong[suspicion.argsort(kind="stable")[: round(share * len(wrong))]].sum())


def judge_learning(base: Base, shift: str, labels: int, *, seed: int, final: bool) -> Judged:
    """Returns what a grader by the softmax learns from labels of shifted data, judged on other shifted data.

    Args:
        base: The base model. The labels are drawn from the half to choose by.
        shift: Name of the shift.
        labels: How many labels are drawn.
        seed: Seed of the draw and of the training.
        final: Judge on the untouched half, else on the rest of the half to choose by.
    """
    half, production = len(base.test) // 2, base.under(shift)
    order = torch.randperm(half, generator=torch.Generator().manual_seed(seed))
    reviewed = production.subset(base.order[order[:labels]])
    judged = production.subset(base.order[half:] if final else base.order[order[labels:]])
    grader = fit_grader(views_alone(base.model, ()), base.choosing, target=None, score=SOFTMAX.name)
    found = learned(grader, reviewed, seed=seed).grader
    return _judged(base.name, f"{shift}, {labels} labels", seed, found, judged)
