"""The methods of the detection benchmark: every baseline, every recipe for a second opinion, and their fitting."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from experiments.baselines.averages import Ensemble, McDropout, TwoModels, Views
from experiments.baselines.confidnet import ConfidNet
from experiments.baselines.odin import Odin
from experiments.baselines.protocol import Baseline, Fitted, Learned, OfEvidence, Seen
from experiments.baselines.trust_score import TrustScore
from experiments.detection.recipes import RECIPES
from petm._internal.files import fingerprint, plain
from petm.adapter.model import Member
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data
from petm.data.fields import Inputs
from petm.data.labels import UNLABELLED
from petm.data.views import MIRROR, SAME
from petm.errors import ArgumentError
from petm.evidence.features import Mahalanobis, NeighbourDistance, NeighbourLabels, RelativeMahalanobis
from petm.evidence.formulas import ENERGY, ENTROPY, MARGIN, SOFTMAX, TemperatureScaling
from petm.evidence.suspicion import suspicion_named
from petm.models.loading import weights_fingerprint
from petm.models.prediction import Precision
from petm.training.recipes import Recipe, adapt, focus
from petm.training.run_folder import RunFolder

CONTROLS: dict[str, Recipe] = {
    "unchanged_control": replace(RECIPES["fast"], title="The same adapter on unchanged data", copies=0, epsilon=0.0),
    "augmented_control": replace(RECIPES["fast"], title="The same, without adversarial examples", epsilon=0.0),
    "random_control": replace(
        RECIPES["fast"], title="The same, random signs for FGSM's", epsilon=0.1, direction="random"
    ),
}
"""The recipe ``fast`` without its ideas."""

VARIANTS: dict[str, Recipe] = {
    "mirror_adapter": replace(
        RECIPES["balanced"],
        title="An adapter that looks at the mirror image",
        mirrored=Recipe("An adapter that looks at the mirror image", (Member(view=MIRROR),), max_ratio=2.1, epochs=2),
    ),
}
"""What was measured and not chosen."""

VIEWS: dict[str, tuple[tuple[str, ...], ...]] = {
    "mirror": ((SAME, MIRROR), (SAME, MIRROR, "shift 2 0", "shift 0 2")),
    "shift": ((SAME, "shift 1 0"), (SAME, "shift 1 0", "shift -1 0", "shift 0 1")),
}
"""Test-time views, 2 and 4: of pictures whose mirror image shows the same, and of what a mirror changes, as digits."""
CONTROL = "control"
"""What the name of a control ends with."""


def all_baselines(*, views: str = "mirror", members: Sequence[nn.Module] = ()) -> tuple[Baseline, ...]:
    """Returns every baseline once, the plain softmax first, the controls last.

    Args:
        views: Which test-time views, a name of `VIEWS`.
        members: Networks of the ensemble, the model not among them; it is counted in. Absent leaves the ensemble out.

    Raises:
        ArgumentError: There are no views of such a name.
    """
    if views not in VIEWS:
        raise ArgumentError(f"views: expected one of {', '.join(VIEWS)}, got {views!r}.")
    evidence = (NeighbourLabels(), NeighbourDistance(), Mahalanobis(), RelativeMahalanobis())
    return (
        *(OfEvidence(score) for score in (SOFTMAX, ENTROPY, MARGIN, ENERGY)),
        OfEvidence(TemperatureScaling()),
        Odin(),
        *(Views(names) for names in VIEWS[views]),
        McDropout(),
        *(OfEvidence(each) for each in evidence),
        TrustScore(),
        ConfidNet(),
        *([Ensemble(tuple(members))] if members else []),
        TwoModels(),
        TwoModels(epsilon=0.0),
    )


@dataclass(frozen=True)
class SecondOpinion(Baseline):
    """Suspicion by a recipe of `petm.training.recipes`: adapters on the base model, and both opinions in one pass.

    Args:
        recipe_name: One of `RECIPES`, `CONTROLS` or `VARIANTS`.
        recipe: What that name stands for.
        precision: Of the matrix products in training.
        folder: Where the trainings leave their last checkpoints, from which a second fit has its weights.
    """

    recipe_name: str
    recipe: Recipe
    precision: Precision = "float32"
    folder: Path | None = field(default=None, compare=False, repr=False)

    source = "this project"
    fitted_on = "training"
    varies = True

    @property
    def name(self) -> str:
        """The recipe's name, told from the baselines."""
        return f"second_opinion_{self.recipe_name}"

    @property
    def title(self) -> str:
        """The recipe's name, for a person."""
        return f"Second opinion, {self.recipe_name.replace('_', ' ')}"

    @property
    def definition(self) -> str:
        """The recipe's title."""
        return self.recipe.title

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        storage = RunFolder(self.folder).storage if self.folder else None
        adapted = adapt(
            train.model,
            train.data,
            recipe=self.recipe,
            seed=seed,
            precision=self.precision,
            device=device,
            storage=storage,
        )
        focus(adapted, self.recipe, calibration.data)
        score = suspicion_named(self.recipe.score)

        def suspicion(seen: Seen) -> Tensor:
            both = predict_answers(adapted, seen.data, batch_size=seen.batch_size, title=self.name)
            return score.of(both)

        return Learned(suspicion, adapted.adapter_parameters())


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        baseline: What is fitted.
        seeds: It is fitted once for each.
    """

    baseline: Baseline
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the baseline."""
        return self.baseline.name

    @property
    def is_ours(self) -> bool:
        """Whether it is a second opinion that a user can ask for."""
        return isinstance(self.baseline, SecondOpinion) and self.baseline.recipe_name in RECIPES

    @property
    def is_rival(self) -> bool:
        """Whether it is a control, or more networks or views: what a second opinion must be held against."""
        return self.name.endswith(CONTROL) or isinstance(self.baseline, TwoModels | Ensemble | Views)


def plan(
    names: Sequence[str] = (),
    *,
    views: str = "shift",
    members: Sequence[nn.Module] = (),
    seeds: Sequence[int] = (0,),
    precision: Precision = "float32",
) -> tuple[Method, ...]:
    """Returns the methods to compare, the plain softmax first.

    A method whose result depends on the seed is fitted once for each seed, any other once. What only draws a large
    sample of the training features, as the neighbours do, or takes its settings from a small grid counts as the others.

    Args:
        names: Which methods, ``NAME`` or ``NAME:SEEDS`` for fewer seeds, a recipe also by its own name; empty takes
            all. The softmax is always there.
        views: Of the test-time baselines: ``mirror`` where an image's mirror image shows the same, else ``shift``.
        members: Networks of the ensemble besides the base model.
        seeds: At least one.
        precision: Of the matrix products in the recipes' trainings.

    Raises:
        ArgumentError: A name is unknown or its number of seeds is out of range, or there are no such views.
    """
    if not seeds:
        raise ArgumentError("seeds: expected at least one, got none.")
    baselines = all_baselines(views=views, members=members)
    every = {**RECIPES, **CONTROLS, **VARIANTS}
    recipes = tuple(SecondOpinion(name, recipe, precision) for name, recipe in every.items())
    known = {baseline.name: baseline for baseline in (*baselines, *recipes)}
    short = {recipe.recipe_name: recipe.name for recipe in recipes}
    asked = (_with_seeds(name, len(seeds)) for name in names or known)
    wanted = {"softmax": len(seeds)} | {short.get(name, name): count for name, count in asked}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ArgumentError(f"methods: expected known names, got {', '.join(unknown)}. Available: {', '.join(known)}.")
    return tuple(
        Method(baseline, tuple(seeds[: wanted[name] if baseline.varies else 1]))
        for name, baseline in known.items()
        if name in wanted
    )


def _with_seeds(text: str, most: int) -> tuple[str, int]:
    name, separator, count = text.partition(":")
    if not separator:
        return name, most
    if not count.isdecimal() or not 1 <= int(count) <= most:
        raise ArgumentError(f"methods: expected NAME or NAME:SEEDS with 1 to {most} seeds, got {text!r}.")
    return name, int(count)


def settings_of(baseline: Baseline) -> str:
    """Returns everything that a baseline's result depends on besides the base model, data and seed, as text."""
    return f"{baseline.name} {json.dumps(plain(_told(baseline)), sort_keys=True)}"


def _told(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return weights_fingerprint(value)
    if isinstance(value, tuple | list):
        return [_told(entry) for entry in value]
    if is_dataclass(value):
        return [type(value).__name__, {one.name: _told(getattr(value, one.name)) for one in fields(value) if one.repr}]
    return value


@dataclass(frozen=True, eq=False)
class FittedMethod:
    """A method that can be asked about test samples, those that it may have been calibrated on included.

    Attributes:
        suspicion: From what the model says of ``n`` samples and their positions in the test data, int64 ``(n,)``, to
            suspicion, float64 ``(n,)``.
        fitted: The baseline itself; of the first half where there are two.
        seconds: To fit it once.
    """

    suspicion: Callable[[Seen, Tensor], Tensor]
    fitted: Fitted
    seconds: float


def fit_method(
    baseline: Baseline, train: Seen, test: Seen, *, seed: int, device: str = "auto", folder: Path | None = None
) -> FittedMethod:
    """Returns the baseline fitted to the base model.

    What is learned from samples that the base model was not trained on is learned from one random half of the test data
    and judged on the other, for both halves. Where the two fits chose different settings, they speak on scales of their
    own, and suspicion becomes its rank in its half as a share, in (0, 1).

    Args:
        baseline: What to fit.
        train: What the base model says of its training data.
        test: What the base model says of the test data.
        seed: Of the fit, and of the halves.
        device: Where something is trained.
        folder: Where a second opinion keeps its checkpoints.
    """
    if isinstance(baseline, SecondOpinion):
        baseline = replace(baseline, folder=folder)
    halves = random_halves(test.data, seed)
    if baseline.fitted_on != "calibration":
        # At most a recipe asks how sure the base model is of samples that it has not seen; of their labels it learns
        # nothing.
        unlabelled = Seen(test.model, Unlabelled(test.data.subset(halves)), batch_size=test.batch_size)
        fitted = baseline.fit(train, unlabelled, seed=seed, device=device)
        return FittedMethod(lambda seen, _: fitted.suspicion(seen), fitted, fitted.seconds)
    parts = [Seen(test.model, test.data.subset(~halves), batch_size=test.batch_size)]
    parts += [Seen(test.model, test.data.subset(halves), batch_size=test.batch_size)]
    both = [baseline.fit(train, part, seed=seed, device=device) for part in parts]
    one_scale = alike(both[0].learned.chosen, both[1].learned.chosen)

    def suspicion(seen: Seen, positions: Tensor) -> Tensor:
        joined = torch.empty(len(seen), dtype=torch.float64)
        for judged, learned in ((False, both[1]), (True, both[0])):
            rows = halves[positions] == judged
            if bool(rows.any()):
                part = learned.suspicion(Seen(seen.model, seen.data.subset(rows), batch_size=seen.batch_size))
                joined[rows] = part if one_scale else torch.from_numpy((rankdata(part.numpy()) - 0.5) / len(part))
        return joined

    return FittedMethod(suspicion, both[0], float(np.mean([each.seconds for each in both])))


class Unlabelled(Data):
    """A view of the same inputs without their labels.

    Args:
        data: The samples.
    """

    def __init__(self, data: Data) -> None:
        self.data, self.labels = data, torch.full((len(data),), UNLABELLED)
        self.classes, self.value_range, self.source = data.classes, data.value_range, data.source

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns the inputs at ``indices``, in that order."""
        return self.data.inputs(indices)

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content, and that the labels are gone."""
        return fingerprint((self.data.content, "unlabelled"))


def alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Returns whether two fits chose the same settings, to within a quarter."""
    return all(abs(value - other[name]) <= 0.25 * max(abs(value), abs(other[name])) for name, value in one.items())


def random_halves(data: Data, seed: int) -> Tensor:
    """Returns bool ``(N,)``: which samples are in the second of two random halves, drawn class by class."""
    second = torch.zeros(len(data), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in data.labels.unique():
        members = (data.labels == label).nonzero().flatten()
        second[members[torch.randperm(len(members), generator=generator)[: len(members) // 2]]] = True
    return second
