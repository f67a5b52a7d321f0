"""The candidates for a suspicion within a budget of time, and the choice among them on held-out labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from petm.adapter.model import Cascade, Member
from petm.adapter.one_pass import Answers
from petm.errors import DataError
from petm.evidence.formulas import SOFTMAX
from petm.evidence.protocol import Evidence, FittedEvidence
from petm.evidence.suspicion import PROBABILITIES, Suspicion
from petm.models.scores import maximum_softmax
from petm.selective.choice import FEWEST_ERRORS, Choice, choose
from petm.selective.metrics import coverage_at_risk
from petm.selective.weighting import regression as regression

FOLDS = 5


class Labelled(NamedTuple):
    """Answers to samples, and their true classes."""

    answers: Answers
    labels: Tensor
    """int64 ``(N,)``."""


@dataclass(frozen=True)
class Candidate:
    """What may become the suspicion.

    Attributes:
        name: Name in words.
        evidence: One column, or those of a logistic regression.
        members: The ensemble members that they need.
        share: Share of the predictions for which the members are computed: the least certain.
        around: Whether these are instead the ones around the coverage at which the softmax alone has the target's risk,
            where another order decides what is trusted.
        cost: Operations that it adds, over those of a plain forward pass.
    """

    name: str
    evidence: tuple[Evidence, ...]
    members: tuple[Member, ...] = ()
    share: float = 1.0
    around: bool = False
    cost: float = 0.0


@dataclass(frozen=True, eq=False)
class Chosen:
    """The result of `choose_suspicion`.

    Attributes:
        suspicion: The suspicion, fitted.
        members: The ensemble members that it needs.
        cascade: The predictions for which they are computed; absent for all.
        choice: What was compared, and why this was taken.
    """

    suspicion: Suspicion
    members: tuple[Member, ...]
    cascade: Cascade | None
    choice: Choice


@dataclass(frozen=True, eq=False)
class Choosing:
    """The fit of candidates, each column once.

    Attributes:
        held_out: Samples that neither the base model nor an adapter has seen.
        training: Samples that the base model was trained on, with features; absent leaves out what is fitted on them.
        max_risk: Risk at which the coverage is compared; absent compares AURC.
        alone: Names of the candidates that are tested each alone, with suspicions ``(N,)`` that the held-out samples
            have already left out in its favour (`petm.selective.choice.choose`).
        seed: Seed of folds and resampling.
        known: Evidence that is fitted already, by name; the other is added.
    """

    held_out: Labelled
    training: Labelled | None = None
    max_risk: float | None = None
    alone: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    seed: int = 0
    known: dict[str, FittedEvidence | None] = field(default_factory=dict)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Where the base model is wrong, bool ``(N,)``."""
        found: NDArray[np.bool_] = (self.held_out.answers.predicted != self.held_out.labels).numpy()
        return found

    def fitted(self, evidence: Evidence) -> FittedEvidence | None:
        """Returns evidence that is fitted, or nothing where its samples are absent or do not suffice."""
        if evidence.name not in self.known:
            samples = self.training if evidence.fitted_on == "training" else self.held_out
            usable = samples is not None
            if samples is not None and evidence.needs == "features":
                usable = samples.answers.layer_input is not None and self.held_out.answers.layer_input is not None
            try:
                fitted = evidence.fit(*samples, seed=self.seed) if samples is not None and usable else None
            except DataError:  # a class without samples
                fitted = None
            self.known[evidence.name] = fitted
        return self.known[evidence.name]

    def seen(self, candidate: Candidate) -> tuple[Answers, Cascade | None]:
        """Returns the answers as a candidate has them, and its cascade."""
        answers = self.held_out.answers.only(candidate.members)
        if candidate.share >= 1:
            return answers, None
        softmax = maximum_softmax(answers.base)
        end = 1.0
        if candidate.around and self.max_risk is not None:
            middle = coverage_at_risk(softmax.numpy(), self.wrong, risk=self.max_risk)
            end = min(1.0, max(candidate.share, middle + candidate.share / 2))
        low, high = (float(softmax.quantile(max(0.0, place))) for place in (end - candidate.share, end))
        cascade = Cascade(low, high if end < 1 else 1.0).capped(softmax)
        return answers.under(cascade), cascade

    def columns(self, candidate: Candidate) -> tuple[FittedEvidence, ...]:
        """Returns the fitted columns; empty where one of them cannot be fitted."""
        fitted = [self.fitted(each) for each in candidate.evidence]
        return tuple(each for each in fitted if each is not None) if None not in fitted else ()

    def out_of_fold(self, candidate: Candidate) -> NDArray[np.float64] | None:
        """Returns suspicion ``(N,)``, none fitted on its own sample; nothing where the candidate cannot be fitted."""
        columns, wrong = self.columns(candidate), self.wrong
        if not columns:
            return None
        answers, _ = self.seen(candidate)
        values = [column.score(answers) for column in columns]
        if candidate.name != SOFTMAX.name and not all(bool(each.isfinite().all()) for each in values):
            return None  # such as of features that overflow
        refitted = any(each.fitted_on == "calibration" for each in candidate.evidence)
        if len(values) == 1 and not refitted:
            return values[0].numpy()
        if min(wrong.sum(), (~wrong).sum()) < max(FOLDS, FEWEST_ERRORS):
            return None
        found = np.empty(len(wrong))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=self.seed % 2**32)
        for rest, fold in folds.split(wrong, wrong):
            if refitted:
                values = [self._without(fold, column).score(answers) for column in columns]
            if len(values) == 1:
                found[fold] = values[0][fold].numpy()
                continue
            weighting, intercept = regression([each[rest] for each in values], wrong[rest], _in_log_odds(columns))
            found[fold] = weighting.of([each[fold] for each in values]) + intercept
        return found

    def _without(self, fold: NDArray[np.int64], column: FittedEvidence) -> FittedEvidence:
        """A column as fitted without some of the held-out samples."""
        if column.evidence.fitted_on != "calibration":
            return column
        rest = torch.ones(len(self.held_out.labels), dtype=torch.bool)
        rest[fold] = False
        return column.evidence.fit(self.held_out.answers.rows(rest), self.held_out.labels[rest], seed=self.seed)

    def whole(self, candidate: Candidate) -> Suspicion:
        """Returns the candidate fitted on all samples."""
        columns = self.columns(candidate)
        if len(columns) == 1:
            return Suspicion(columns)
        answers, _ = self.seen(candidate)
        values = [column.score(answers) for column in columns]
        return Suspicion(columns, regression(values, self.wrong, _in_log_odds(columns))[0])


def choose_suspicion(choosing: Choosing, candidates: Sequence[Candidate]) -> Chosen:
    """Returns the cheapest candidate that is as good as the best, or the softmax where none is better than it.

    Args:
        choosing: The samples to choose on.
        candidates: What is compared with the softmax, which need not be among them.
    """
    known = {each.name: each for each in (Candidate(SOFTMAX.name, (SOFTMAX,)), *candidates)}
    found = {name: choosing.out_of_fold(each) for name, each in known.items()}
    usable = {name: values for name, values in found.items() if values is not None}
    costs = {name: known[name].cost for name in usable}
    alone = {name: [each.numpy() for each in left] for name, left in choosing.alone.items() if name in usable}
    how: Any = {"alone": alone, "max_risk": choosing.max_risk, "seed": choosing.seed}
    choice = choose(usable, costs, choosing.wrong, **how)
    taken = known[choice.name]
    return Chosen(choosing.whole(taken), taken.members, choosing.seen(taken)[1], choice)


def _in_log_odds(columns: Sequence[FittedEvidence]) -> tuple[bool, ...]:
    return tuple(each.evidence.name in PROBABILITIES for each in columns)
