"""How a second opinion is made: the paper's way, and the measured best within a budget of inference time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from petm.adapter.layer_choice import Choice, choose_layers
from petm.adapter.model import ONE, AdaptedModel, Member, attach_adapter, views_alone
from petm.adapter.one_pass import look_at_most
from petm.data.base import Data, Joined, as_data
from petm.data.views import MIRROR
from petm.errors import ArgumentError
from petm.models.loading import share_weights
from petm.models.prediction import (
    Precision,
    choose_device,
    device_of,
    in_fast_layout,
)
from petm.training.augmentation import Augmentation, choose_augmentation, with_copies
from petm.training.distillation import distill
from petm.training.error_set import Direction, ErrorSet
from petm.training.loop import Storage
from petm.training.mining import mine_errors
from petm.training.replacement import replace_errors
from petm.training.teacher import require_errors, train_twin
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
        teacher: Whether a twin is trained and distilled, as in the papers; otherwise the adapters learn from labels.
        look: Share of the predictions, A's least sure, for which the members are asked at all.
        epsilon: FGSM step; 0 takes none. Where there is a teacher, of A's errors and in the units of the inputs, as
            published; where there is none, of all samples of one more copy of the data and as a share of their range.
            Text moves at A's embedding, by so many standard deviations.
        direction: Of that step, ``gradient``, or ``random`` for the control.
        copies: Augmented copies of the training data beside the data themselves.
        max_ratio: Time of one pass over a plain forward, in counted operations, within which layers are adapted;
            absent adapts all of them.
        max_extra_parameters: All adapters together, as a share of A's parameters.
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


def within(recipe: Recipe, *, max_extra_parameters: float | None = None, max_extra_time: float | None = None) -> Recipe:
    """Returns a recipe with other budgets, where these are given; what looks at the mirror image instead has them too.

    Args:
        recipe: With budgets of its own.
        max_extra_parameters: All adapters together, as a share of A's parameters; above 0.
        max_extra_time: By which share one pass may exceed a plain forward, in counted operations; above 0. Members
            without an adapter, that look at views, are asked for fewer of A's predictions where these cost more.

    Raises:
        ArgumentError: A budget breaks its rule.
    """
    for name, value in (("max_extra_parameters", max_extra_parameters), ("max_extra_time", max_extra_time)):
        if value is not None and not 0 < value < float("inf"):
            raise ArgumentError(f"{name}: expected a share above 0, got {value}. Try 0.1, or leave it out.")
    if max_extra_parameters is not None:
        recipe = replace(recipe, max_extra_parameters=max_extra_parameters)
    if max_extra_time is not None:
        views = not any(member.adapter for member in recipe.members)
        look = min(recipe.look, max_extra_time / len(recipe.members)) if views else recipe.look
        recipe = replace(recipe, max_ratio=1 + max_extra_time, look=look)
    if recipe.mirrored is None:
        return recipe
    budgets = {"max_extra_parameters": max_extra_parameters, "max_extra_time": max_extra_time}
    return replace(recipe, mirrored=within(recipe.mirrored, **budgets))


def focus(adapted: AdaptedModel, recipe: Recipe, samples: Data) -> bool:
    """Lets the members look at A's least sure predictions only, and returns whether the recipe says so.

    Args:
        adapted: What `adapt` has returned.
        recipe: By which it was made.
        samples: What A has not seen, labels unused. Not those on which a risk is to be guaranteed: there, suspicion
            must be fixed beforehand.
    """
    made = recipe.mirrored if recipe.mirrored and adapted.members == recipe.mirrored.members else recipe
    if made.look < 1:
        look_at_most(adapted, samples, made.look)
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
    """Returns A with adapters that were trained by a recipe.

    Args:
        model: A; it stays as it is, but is moved to ``device``.
        data: Labelled samples, best those that A was trained on.
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
    chosen = recipe_named(recipe)
    data = as_data(data)
    model.to(choose_device(device))
    making = _Making(model, data, chosen, layers, seed, precision, cache_budget, device, storage or (lambda _: None))
    return making.by_distillation() if chosen.teacher else making.by_tuning()


@dataclass(frozen=True)
class _Making:
    """One recipe under way."""

    model: nn.Module
    data: Data
    recipe: Recipe
    layers: Mapping[str, int] | None
    seed: int
    precision: Precision
    cache_budget: int
    device: str
    storage: Callable[[str], Storage | None]

    @property
    def _for_features(self) -> int:
        return -(-self.cache_budget // FEATURES_SHARE)  # 0 only where the budget is: that caches nothing

    @property
    def _for_examples(self) -> int:
        return self.cache_budget // EXAMPLES_SHARE

    def by_distillation(self) -> AdaptedModel:
        """As published: the twin learns from the replaced data, the adapter from the twin."""
        model, recipe = self.model, self.recipe
        data, errors = mine_errors(model, self.data, recipe.errors, seed=self.seed)
        require_errors(errors)
        twin = train_twin(
            model,
            data,
            errors,
            epsilon=recipe.epsilon,
            seed=self.seed,
            precision=self.precision,
            storage=self.storage("twin"),
            device=self.device,
        )
        adapted = attach_adapter(
            model, self.layers, twin=twin, max_extra_parameters=recipe.max_extra_parameters, seed=self.seed
        )
        distill(
            adapted,
            teacher=twin,
            data=replace_errors(model, data, errors, epsilon=recipe.epsilon, budget=self._for_examples),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            precision=self.precision,
            cache_budget=self._for_features,
            storage=self.storage("adapter"),
            device=self.device,
        )
        return adapted

    def by_tuning(self) -> AdaptedModel:
        """The adapters learn from the labels of the data and of changed copies of them."""
        model, recipe = self.model, self.recipe
        x = self.data.inputs(range(min(4, len(self.data)))).to(device_of(model))
        quick = in_fast_layout(share_weights(model), x)
        augmentation = Augmentation()
        images = isinstance(x, Tensor) and x.ndim == 4
        if images and (recipe.copies or recipe.mirrored):  # only images can be augmented
            augmentation = choose_augmentation(quick, self.data, seed=self.seed)
        if recipe.mirrored and augmentation.mirror:
            recipe = recipe.mirrored
        if not any(member.adapter for member in recipe.members):
            return views_alone(model, recipe.members)
        chosen = (
            Choice(dict(self.layers), None)
            if self.layers
            else choose_layers(
                model, x, recipe.members, max_ratio=recipe.max_ratio, max_extra_parameters=recipe.max_extra_parameters
            )
        )
        adapted = attach_adapter(model, chosen.ranks, members=recipe.members, seed=self.seed)
        adapted.take_parting(chosen.parting)
        data: Data = self.data
        if images and recipe.copies:
            data = with_copies(data, augmentation, copies=recipe.copies, seed=self.seed)
        if recipe.epsilon:
            n, budget = len(self.data), self._for_examples
            data = _with_adversarial_copy(quick, data, n, recipe.epsilon, recipe.direction, budget)
        tune(
            adapted,
            data,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            precision=self.precision,
            cache_budget=self._for_features,
            storage=self.storage,
            device=self.device,
        )
        return adapted


def _with_adversarial_copy(
    model: nn.Module, data: Data, n: int, epsilon: float, direction: Direction, budget: int
) -> Data:
    """Behind the data, once more the first ``n`` samples, moved against A, or in random directions.

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
