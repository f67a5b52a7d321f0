"""How a second opinion is made: the paper's way, and the measured best within a budget of inference time."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petm._internal.files import check_room
from petm.adapter.layer_choice import choose_layers
from petm.adapter.model import ONE, AdaptedModel, Member, attach_adapter, views_alone
from petm.adapter.one_pass import set_cascade
from petm.adapter.prefix_features import FeatureStudent, prepare_student
from petm.data.base import Data, Joined, as_data
from petm.data.fields import Inputs
from petm.data.views import MIRROR
from petm.errors import ArgumentError
from petm.models.loading import share_weights
from petm.models.prediction import Precision, choose_device, device_of, in_fast_layout
from petm.training.augmentation import Augmentation, choose_augmentation, with_copies
from petm.training.config import FitConfig
from petm.training.distillation import distill
from petm.training.error_set import Direction, ErrorSet
from petm.training.loop import Storage
from petm.training.mining import mine_errors
from petm.training.replacement import replace_errors
from petm.training.teacher import require_errors, train_teacher
from petm.training.tuning import tune

FEATURES_SHARE, EXAMPLES_SHARE, DATA_SHARE = 2, 4, 4
"""Cached features get one part in so many of the cache budget, so do FGSM examples, and data from files, decoded."""

COMMITTEE = (Member(), Member("second"), Member("third"))


@dataclass(frozen=True)
class Recipe:
    """One way to a second opinion.

    Attributes:
        title: In words.
        members: Who gives it.
        mirrored: The recipe that takes the place of this one where an image's mirror image keeps its class.
        errors: Where errors come from where there is a teacher, a name of `petm.training.mining.SOURCES`.
        teacher: Whether a teacher is trained and distilled, as in the papers; otherwise the adapters learn from labels.
        look: Share of the predictions, the base model's least sure, for which the members are asked at all.
        epsilon: FGSM step; 0 takes none. Where there is a teacher, of the base model's errors and in the units of the
            inputs, as published; where there is none, of all samples of one more copy of the data and as a share of
            their range. Text moves at the base model's embedding, by so many standard deviations.
        direction: Of that step, ``gradient``, or ``random`` for the control.
        copies: Augmented copies of the training data beside the data themselves.
        max_ratio: Time of one pass over a plain forward, in counted operations, within which layers are adapted;
            absent adapts all of them.
        max_extra_parameters: All adapters together, as a share of the base model's parameters.
        epochs: Passes of each adapter over the data.
        learning_rate: Of Adam, at the start.
        score: What suspicion is, a name of `petm.models.scores.SCORES`.
    """

    title: str
    members: tuple[Member, ...] = ONE
    mirrored: "Recipe | None" = None
    look: float = 1.0
    teacher: bool = False
    errors: str = "plain"
    epsilon: float = 0.0
    direction: Direction = "gradient"
    copies: int = 1
    max_ratio: float | None = None
    max_extra_parameters: float = 0.1
    epochs: int = 6
    learning_rate: float = 3e-3
    score: str = "mean_of_both"


_VIEWS = (MIRROR, "shift 2 0", "mirror, shift 0 2", "shift 0 -2")

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        "LoRA-PETM, as published",
        teacher=True,
        epsilon=0.1,
        copies=0,
        max_extra_parameters=0.02,
        epochs=20,
        learning_rate=1e-3,
        score="opposition",
    ),
    "fast": Recipe(
        "An adapter on late layers",
        epsilon=0.1,
        max_ratio=1.25,
        mirrored=Recipe("A at the mirror image, for its least sure predictions", (Member("", MIRROR),), look=0.22),
    ),
    "balanced": Recipe(
        "Three such adapters",
        COMMITTEE,
        epsilon=0.1,
        max_ratio=1.25,
        max_extra_parameters=0.3,
        mirrored=Recipe("A at the mirror image", (Member("", MIRROR),)),
    ),
    "thorough": Recipe(
        "Five such adapters",
        (*COMMITTEE, Member("fourth"), Member("fifth")),
        epsilon=0.1,
        max_ratio=1.25,
        max_extra_parameters=0.5,
        mirrored=Recipe("A at four views", tuple(Member("", name) for name in _VIEWS)),
    ),
}
"""The recipes by name: as published, and those chosen for 1.25, 2.1 and 5 times a plain forward (docs/benchmark.md)."""


def recipe_named(recipe: str | Recipe) -> Recipe:
    """Returns the recipe of a name, or the one that is given.

    Raises:
        ArgumentError: There is none of that name.
    """
    found = recipe if isinstance(recipe, Recipe) else RECIPES.get(recipe)
    if found is None:
        raise ArgumentError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}.")
    return found


def within(recipe: Recipe, config: FitConfig) -> Recipe:
    """Returns a recipe with the budgets and the source of errors of a configuration, where it has such.

    What is made of views instead has the same budgets. Ensemble members without an adapter are asked for fewer of the
    predictions where these cost more.
    """
    if config.errors is not None:
        recipe = replace(recipe, errors=config.errors)
    if config.max_extra_parameters is not None:
        recipe = replace(recipe, max_extra_parameters=config.max_extra_parameters)
    if config.max_extra_time is not None:
        views = not any(member.adapter for member in recipe.members)
        look = min(recipe.look, config.max_extra_time / len(recipe.members)) if views else recipe.look
        recipe = replace(recipe, max_ratio=1 + config.max_extra_time, look=look)
    return recipe if recipe.mirrored is None else replace(recipe, mirrored=within(recipe.mirrored, config))


def focus(adapted: AdaptedModel, recipe: Recipe, samples: Data) -> bool:
    """Lets the members look at the base model's least sure predictions only, and returns whether the recipe says so.

    Args:
        adapted: What `adapt` has returned.
        recipe: By which it was made.
        samples: What the base model has not seen, labels unused. Not those on which a risk is to be guaranteed: there,
            suspicion must be fixed beforehand.
    """
    made = recipe.mirrored if recipe.mirrored and adapted.members == recipe.mirrored.members else recipe
    if made.look < 1:
        set_cascade(adapted, samples, made.look)
    return made.look < 1


def adapt(
    model: nn.Module,
    data: Data,
    *,
    recipe: str | Recipe = "fast",
    layers: Mapping[str, int] | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    device: str = "auto",
    storage: Callable[[str], Storage | None] | None = None,
) -> AdaptedModel:
    """Returns the base model with adapters that were trained by a recipe.

    Args:
        model: The base model; it stays as it is, but is moved to ``device``.
        data: Labelled samples, best those that the base model was trained on.
        recipe: A name of `RECIPES`, or a recipe of your own.
        layers: The rank of each layer to adapt; absent follows the recipe. Without effect where no member has an
            adapter.
        seed: Of everything.
        precision: Of the matrix products in training.
        cache_budget: Bytes of memory for what is computed once: half of it for features, as in `tune`, and
            a quarter for FGSM examples, which are made anew whenever they are read where they take more.
        device: ``auto``, ``cpu``, ``cuda``, ...
        storage: Where the trainings leave their checkpoints, by name.

    Raises:
        ArgumentError: There is no recipe of that name, or no layers fit its budget.
    """
    model.to(choose_device(device))
    making = Making(model, as_data(data), recipe_named(recipe), layers, seed, precision, cache_budget, device, storage)
    return making.by_distillation() if making.recipe.teacher else making.by_tuning()


@dataclass(frozen=True)
class Making:
    """One recipe under way; its attributes are the arguments of `adapt`, checked."""

    model: nn.Module
    data: Data
    recipe: Recipe
    layers: Mapping[str, int] | None
    seed: int
    precision: Precision
    cache_budget: int
    device: str
    storage: Callable[[str], Storage | None] | None

    @property
    def for_features(self) -> int:
        """Bytes of memory for prefix features; 0 only where the budget is: that caches nothing."""
        return -(-self.cache_budget // FEATURES_SHARE)

    @property
    def for_examples(self) -> int:
        """Bytes of memory for adversarial examples."""
        return self.cache_budget // EXAMPLES_SHARE

    def some(self) -> Inputs:
        """Returns a few samples, on the model's device."""
        return self.data.inputs(range(min(4, len(self.data)))).to(device_of(self.model))

    def quick(self) -> nn.Module:
        """Returns the base model in the layout that is fast for convolutions."""
        return in_fast_layout(share_weights(self.model), self.some())

    def branch(self, quick: nn.Module) -> tuple[Recipe, Augmentation]:
        """Returns the recipe that suits these data, and how far images may be changed.

        Where an image's mirror image keeps its class, views may take the place of adapters.
        """
        recipe, augmentation = self.recipe, Augmentation()
        if not recipe.teacher and self._images() and (recipe.copies or recipe.mirrored):
            augmentation = choose_augmentation(quick, self.data, seed=self.seed)
        return (recipe.mirrored if recipe.mirrored and augmentation.mirror else recipe), augmentation

    def attached(self, recipe: Recipe) -> AdaptedModel:
        """Returns the base model with the untrained adapters of a recipe without a teacher."""
        if not any(member.adapter for member in recipe.members):
            return views_alone(self.model, recipe.members)
        if self.layers:
            return attach_adapter(self.model, self.layers, members=recipe.members, seed=self.seed)
        chosen = choose_layers(
            self.model,
            self.some(),
            recipe.members,
            max_ratio=recipe.max_ratio,
            max_extra_parameters=recipe.max_extra_parameters,
        )
        adapted = attach_adapter(self.model, chosen.ranks, members=recipe.members, seed=self.seed)
        adapted.take_split_point(chosen.split_point)
        return adapted

    def student(self, adapted: AdaptedModel) -> FeatureStudent | None:
        """Returns the second opinion as a function of prefix features, or none where these do not pay."""
        return prepare_student(adapted, self.some(), self.for_features)[1]

    def feature_bytes(self, student: FeatureStudent | None, samples: int) -> int:
        """Returns the size of the prefix features of so many samples."""
        return (2 if self.precision == "bfloat16" else 4) * samples * student.width if student else 0

    def with_copies(self, recipe: Recipe, augmentation: Augmentation) -> Data:
        """Returns the data and their augmented copies."""
        if not (self._images() and recipe.copies):
            return self.data
        return with_copies(self.data, augmentation, copies=recipe.copies, seed=self.seed)

    def by_distillation(self) -> AdaptedModel:
        """As published: the teacher learns from the replaced data, the adapter from the teacher."""
        model, recipe, storage = self.model, self.recipe, self.storage or (lambda _: None)
        data, errors = mine_errors(model, self.data, recipe.errors, seed=self.seed)
        require_errors(errors)
        teacher = train_teacher(
            model,
            data,
            errors,
            epsilon=recipe.epsilon,
            seed=self.seed,
            precision=self.precision,
            storage=storage("teacher"),
            device=self.device,
        )
        adapted = attach_adapter(
            model, self.layers, teacher=teacher, max_extra_parameters=recipe.max_extra_parameters, seed=self.seed
        )
        distill(
            adapted,
            teacher=teacher,
            data=replace_errors(model, data, errors, epsilon=recipe.epsilon, budget=self.for_examples),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            precision=self.precision,
            cache_budget=self.for_features,
            storage=storage("adapter"),
            device=self.device,
        )
        return adapted

    def by_tuning(self) -> AdaptedModel:
        """The adapters learn from the labels of the data and of changed copies of them."""
        quick = self.quick()
        recipe, augmentation = self.branch(quick)
        adapted = self.attached(recipe)
        if not adapted.adapters:
            return adapted
        data, n = self.with_copies(recipe, augmentation), len(self.data)
        size = self.feature_bytes(self.student(adapted), len(data) + (n if recipe.epsilon else 0))
        if size > self.for_features:
            check_room(Path(tempfile.gettempdir()), size, "prefix features, or a larger cache_budget")
        if recipe.epsilon:
            data = with_adversarial_copy(quick, data, n, recipe.epsilon, recipe.direction, self.for_examples)
        tune(
            adapted,
            data,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            precision=self.precision,
            cache_budget=self.for_features,
            storage=self.storage,
            device=self.device,
        )
        return adapted

    def _images(self) -> bool:
        x = self.some()
        return isinstance(x, Tensor) and x.ndim == 4


def with_adversarial_copy(
    model: nn.Module, data: Data, n: int, epsilon: float, direction: Direction, budget: int
) -> Data:
    """Returns the data, and behind them once more the first ``n`` samples, moved against the model or at random.

    Beyond the budget they are moved when they are read, which costs nothing more where features are cached: all are
    read just once.
    """
    how: Any = {"direction": direction, "budget": budget}
    first = data.subset(range(n))
    every = ErrorSet(torch.arange(n), first.labels, n, "every sample")
    if isinstance(data.inputs([0]), Tensor):
        low, high = data.value_range
        return Joined(data, replace_errors(model, first, every, epsilon=epsilon * (high - low), **how))
    # What moves text is a further field, which then all samples have.
    whole = Joined(data, first)
    behind = ErrorSet(len(data) + every.indices, every.predictions, len(whole), every.source)
    return replace_errors(model, whole, behind, epsilon=epsilon, **how)
