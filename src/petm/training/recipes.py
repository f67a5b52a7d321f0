"""The recipes for a second opinion: the paper's, and the measured best within a budget of inference time."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from petm._internal.files import check_room
from petm.adapter.layer_choice import choose_layers
from petm.adapter.model import ONE, AdaptedModel, Member, attach_adapter, views_alone
from petm.adapter.one_pass import set_cascade
from petm.adapter.prefix_features import FeatureStudent, prepare_student
from petm.data.base import Data, Joined, as_data
from petm.data.fields import Inputs
from petm.errors import ArgumentError, ModelError, PetmWarning
from petm.models.loading import share_weights
from petm.models.prediction import device_of, in_fast_layout, move
from petm.training.augmentation import Augmentation, choose_augmentation, with_copies
from petm.training.config import FitConfig, FitSettings
from petm.training.distillation import distill
from petm.training.error_set import Direction, ErrorSet
from petm.training.loop import Storage
from petm.training.mining import mine_errors
from petm.training.replacement import replace_errors
from petm.training.teacher import require_errors, train_teacher
from petm.training.tuning import Trajectory, tune, tune_candidates

FEATURES_SHARE, EXAMPLES_SHARE, DATA_SHARE = 2, 4, 4
"""Denominators of the parts of the cache budget: for prefix features, FGSM examples, and decoded data."""

_BATCH, _STEPS, _MOST_EPOCHS = 256, 1500, 20
"""Samples in a step, and steps up to which a training on few samples, which held-out labels stop, has more epochs."""
FGSM_STEP = 0.1
"""FGSM step where a recipe leaves it open, as a share of the range; of text, in standard deviations."""


@dataclass(frozen=True)
class Recipe:
    """One way to a second opinion.

    Attributes:
        title: Name in words.
        members: The ensemble members.
        mirrored: The recipe that replaces this one where the horizontal flip of an image keeps its class.
        look: Share of the predictions, the least certain, that get a second opinion.
        teacher: Whether a teacher is trained and distilled, as in the papers; otherwise the adapters learn from labels.
        errors: Source of the teacher's errors, a name in `petm.training.mining.SOURCES`.
        epsilon: FGSM step; 0 takes none. With a teacher it moves the base model's errors, in units of the inputs, as
            published; without one it moves all samples of a further copy of the data, as a share of their range. Text
            is moved at the base model's embedding, in standard deviations. None takes none for images, where augmented
            copies alone teach more, and `FGSM_STEP` for other inputs.
        direction: Direction of that step: ``gradient``, or ``random`` for the control.
        copies: Augmented copies added to the training data.
        max_ratio: Limit on the counted operations of one pass over those of a plain forward pass, by which layers are
            chosen; absent adapts all of them.
        max_extra_parameters: Size of all adapters over that of the base model without embeddings.
        epochs: Passes of each adapter over the data.
        learning_rate: Learning rate of Adam at the start.
        score: The name of evidence in `petm.evidence.suspicion.EVIDENCE`.
    """

    title: str
    members: tuple[Member, ...] = ONE
    mirrored: "Recipe | None" = None
    look: float = 1.0
    teacher: bool = False
    errors: str = "plain"
    epsilon: float | None = 0.0
    direction: Direction = "gradient"
    copies: int = 1
    max_ratio: float | None = None
    max_extra_parameters: float = 0.1
    epochs: int = 6
    learning_rate: float = 3e-3
    score: str = "mean_opinion"

    @property
    def step(self) -> float:
        """The FGSM step, where one is taken."""
        return FGSM_STEP if self.epsilon is None else self.epsilon


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
    "auto": Recipe("An adapter on late layers", epsilon=None, max_ratio=1.25),
}
"""The recipes by name: as published, and the adapters that are compared with other evidence."""


def recipe_named(recipe: str | Recipe) -> Recipe:
    """Returns the recipe passed in, or that of a name: names of evidence are compared by the recipe ``auto``."""
    return recipe if isinstance(recipe, Recipe) else RECIPES.get(recipe, RECIPES["auto"])


def within(recipe: Recipe, config: FitConfig) -> Recipe:
    """Returns a recipe with the budgets and the source of errors that a configuration sets.

    The recipe of views in its place has the same budgets; its members give a second opinion on fewer predictions where
    the budget of time is smaller.
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


def variants(recipe: Recipe) -> tuple[Recipe, ...]:
    """Returns what may be better on other data: the recipe without adversarial copies and with them.

    A recipe that trains no adapters on labels is alone.
    """
    if recipe.teacher or not any(member.adapter for member in recipe.members):
        return (recipe,)
    return tuple(replace(recipe, epsilon=epsilon) for epsilon in (0.0, recipe.step or FGSM_STEP))


def made_by(adapted: AdaptedModel, recipe: Recipe) -> Recipe:
    """Returns the recipe that made a result of `adapt`: the one asked for, or that of views in its place."""
    return recipe.mirrored if recipe.mirrored and adapted.members == recipe.mirrored.members else recipe


def focus(adapted: AdaptedModel, recipe: Recipe, samples: Data) -> bool:
    """Sets the cascade of a recipe that has one, and returns whether it has.

    Args:
        adapted: Result of `adapt`.
        recipe: Its recipe.
        samples: Samples that the base model has not seen, labels unused. Not those that a guarantee is computed on:
            suspicion must be fixed before.
    """
    made = made_by(adapted, recipe)
    if made.look < 1:
        set_cascade(adapted, samples, made.look)
    return made.look < 1


def adapt(
    model: nn.Module,
    data: Data,
    *,
    config: FitConfig | None = None,
    storage: Callable[[str], Storage | None] | None = None,
    **settings: Unpack[FitSettings],
) -> AdaptedModel:
    """Returns the base model with adapters that were trained by a recipe.

    Args:
        model: The base model; its weights stay as they are, on the device of the settings.
        data: Labelled samples, best those that the base model was trained on.
        config: The settings; absent takes the defaults. Half of the cache budget is for prefix features, and a quarter
            for FGSM examples, which are made anew at each reading where they are larger.
        storage: Place of the checkpoints of each training, by its name.
        **settings: Fields of `FitConfig`, in place of those of ``config``.

    Raises:
        ArgumentError: A setting breaks its rule, or no layers fit the budgets.
    """
    config = replace(config or FitConfig(), **settings)
    move(model, config.device)
    making = Making(model, as_data(data), config, storage)
    return making.by_distillation() if making.recipe.teacher else making.by_tuning()


@dataclass(frozen=True)
class Making:
    """The steps of one recipe; the attributes are the arguments of `adapt`."""

    model: nn.Module
    data: Data
    config: FitConfig
    storage: Callable[[str], Storage | None] | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe within the budgets of the configuration."""
        return within(recipe_named(self.config.recipe), self.config)

    @property
    def for_features(self) -> int:
        """Bytes of memory for prefix features; 0, which caches nothing, only where the budget is 0."""
        return -(-self.config.cache_budget // FEATURES_SHARE)

    @property
    def for_examples(self) -> int:
        """Bytes of memory for adversarial examples."""
        return self.config.cache_budget // EXAMPLES_SHARE

    def some(self) -> Inputs:
        """Returns a few samples, on the model's device."""
        return self.data.inputs(range(min(4, len(self.data)))).to(device_of(self.model))

    def quick(self) -> nn.Module:
        """Returns the base model in the layout that is fast for convolutions; itself where it cannot be copied."""
        with suppress(ModelError):
            return in_fast_layout(share_weights(self.model), self.some())
        return self.model

    def branch(self, quick: nn.Module) -> tuple[Recipe, Augmentation]:
        """Returns the recipe for these data, of views where a horizontal flip keeps the class, and the augmentation."""
        recipe, augmentation = self.recipe, Augmentation()
        if not recipe.teacher and self.images and (recipe.copies or recipe.mirrored):
            augmentation = choose_augmentation(quick, self.data, seed=self.config.seed)
        recipe = recipe.mirrored if recipe.mirrored and augmentation.mirror else recipe
        if recipe.epsilon is None:
            recipe = replace(recipe, epsilon=0.0 if self.images else recipe.step)
        if recipe.epsilon and (obstacle := self._obstacle_to_fgsm(quick, recipe)):
            warnings.warn(f"epsilon: the adapters learn without FGSM. {obstacle}", PetmWarning, stacklevel=2)
            recipe = replace(recipe, epsilon=0.0)
        return recipe, augmentation

    def _obstacle_to_fgsm(self, quick: nn.Module, recipe: Recipe) -> str:
        """Why the samples cannot be moved; empty where they can."""
        n = min(4, len(self.data))
        lengths, order = self.data.lengths, torch.arange(len(self.data))
        order = order if lengths is None else lengths.argsort()  # a model may pad texts of some lengths
        few = self.data.subset(torch.cat((order[:n], order[-n:])))
        every = ErrorSet(torch.arange(2 * n), few.labels, 2 * n, "some samples")
        try:
            moved = replace_errors(quick, few, every, epsilon=recipe.step, direction=recipe.direction, budget=0)
            for some in (range(n), range(n, 2 * n)):
                moved.inputs(some)  # where they are made
        except (ArgumentError, ModelError) as error:
            return str(error)
        return ""

    def attached(self, recipe: Recipe) -> AdaptedModel:
        """Returns the base model with the untrained adapters of a recipe without a teacher."""
        if not any(member.adapter for member in recipe.members):
            return views_alone(self.model, recipe.members)
        if self.config.layers:
            return attach_adapter(self.model, self.config.layers, members=recipe.members, seed=self.config.seed)
        budgets: Any = {"max_ratio": recipe.max_ratio, "max_extra_parameters": recipe.max_extra_parameters}
        chosen = choose_layers(self.model, self.some(), recipe.members, **budgets)
        adapted = attach_adapter(self.model, chosen.ranks, members=recipe.members, seed=self.config.seed)
        adapted.take_split_point(chosen.split_point)
        return adapted

    def student(self, adapted: AdaptedModel) -> FeatureStudent | None:
        """Returns the second opinion as a function of prefix features, or nothing where these do not pay."""
        return prepare_student(adapted, self.some(), self.for_features)[1]

    def feature_bytes(self, student: FeatureStudent | None, *parts: Data) -> int:
        """Returns the size of the prefix features of some data sets."""
        size = 2 if self.config.precision == "bfloat16" else 4
        return size * sum(map(student.numbers, parts)) if student else 0

    def with_copies(self, recipe: Recipe, augmentation: Augmentation) -> Data:
        """Returns the data and their augmented copies."""
        if not (self.images and recipe.copies):
            return self.data
        return with_copies(self.data, augmentation, copies=recipe.copies, seed=self.config.seed)

    @property
    def _how(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in ("seed", "precision", "device")}

    def imitating(self, teacher: nn.Module) -> AdaptedModel:
        """Returns the base model with an untrained adapter on the layers in which the teacher differs most."""
        most = self.recipe.max_extra_parameters
        layers, seed = self.config.layers, self.config.seed
        return attach_adapter(self.model, layers, teacher=teacher, max_extra_parameters=most, seed=seed)

    def by_distillation(self) -> AdaptedModel:
        """As published: the teacher learns from the replaced data, the adapter from the teacher."""
        model, recipe, storage = self.model, self.recipe, self.storage or (lambda _: None)
        data, errors = mine_errors(model, self.data, recipe.errors, seed=self.config.seed)
        require_errors(errors)
        teacher = train_teacher(model, data, errors, epsilon=recipe.step, storage=storage("teacher"), **self._how)
        adapted = self.imitating(teacher)
        distill(
            adapted,
            teacher=teacher,
            data=replace_errors(model, data, errors, epsilon=recipe.step, budget=self.for_examples),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            cache_budget=self.for_features,
            storage=storage("adapter"),
            **self._how,
        )
        return adapted

    def by_tuning(self) -> AdaptedModel:
        """The adapters learn from the labels of the data and of changed copies of them."""
        quick = self.quick()
        recipe, augmentation = self.branch(quick)
        adapted = self.attached(recipe)
        if not adapted.adapters:
            return adapted
        tune(
            adapted,
            self.prepared(quick, recipe, augmentation, adapted),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            cache_budget=self.for_features,
            storage=self.storage,
            **self._how,
        )
        return adapted

    def prepared(self, quick: nn.Module, recipe: Recipe, augmentation: Augmentation, adapted: AdaptedModel) -> Data:
        """Returns the data with their augmented and, as the last ones, their adversarial copies.

        Raises:
            RunError: There is no room for their prefix features.
        """
        data = self.with_copies(recipe, augmentation)
        size = self.feature_bytes(self.student(adapted), data, *([self.data] if recipe.epsilon else []))
        if size > self.for_features:
            check_room(Path(tempfile.gettempdir()), size, "prefix features, or a larger cache_budget")
        if not recipe.epsilon:
            return data
        return with_adversarial_copy(quick, data, len(self.data), recipe.epsilon, recipe.direction, self.for_examples)

    def candidates(
        self, held_out: Data, *, adversarial: bool = True, learning_rates: Sequence[float] = ()
    ) -> tuple[Trajectory, ...]:
        """Returns the trainings of the recipe's `variants` on labels, as held-out samples see each epoch.

        Features of data and copies are computed once for all. The adapters are left at the best epoch of all.

        Args:
            held_out: Labelled samples that the base model has not seen, other than those of a guarantee.
            adversarial: Whether to train with adversarial copies too; absent where the samples cannot be moved.
            learning_rates: Learning rates to choose from; none takes the recipe's.

        Returns:
            One training without adversarial copies and, where asked for, one with them; none where no adapter is
            trained.
        """
        quick = self.quick()
        asked = variants(self.recipe)[-1] if adversarial else replace(self.recipe, epsilon=0.0)
        recipe, augmentation = replace(self, config=replace(self.config, recipe=asked)).branch(quick)
        adapted = self.attached(recipe)
        if recipe.teacher or not adapted.adapters:
            return ()
        data = self.prepared(quick, recipe, augmentation, adapted)
        clean = len(data) - (len(self.data) if recipe.epsilon else 0)
        return tune_candidates(
            adapted,
            data,
            held_out,
            counts=tuple(dict.fromkeys((clean, len(data)))),
            learning_rates=learning_rates or (recipe.learning_rate,),
            epochs=self.most_epochs(recipe, len(data)),
            batch_size=_BATCH,
            cache_budget=self.for_features,
            storage=self.storage,
            **self._how,
        )

    def most_epochs(self, recipe: Recipe, samples: int) -> int:
        """Returns the most epochs on so many samples where held-out labels stop the training."""
        return max(recipe.epochs, min(_MOST_EPOCHS, -(-_STEPS * _BATCH // samples)))

    @property
    def images(self) -> bool:
        """Whether the samples are images."""
        x = self.some()
        return isinstance(x, Tensor) and x.ndim == 4


def with_adversarial_copy(
    model: nn.Module, data: Data, n: int, epsilon: float, direction: Direction, budget: int
) -> Data:
    """Returns the data followed by a copy of the first ``n`` samples, each moved by an FGSM or a random step.

    Copies larger than the budget are made at each reading, as in `replace_errors`.
    """
    how: Any = {"direction": direction, "budget": budget}
    first = data.subset(range(n))
    every = ErrorSet(torch.arange(n), first.labels, n, "every sample")
    if isinstance(data.inputs([0]), Tensor):
        low, high = data.value_range
        return Joined(data, replace_errors(model, first, every, epsilon=epsilon * (high - low), **how))
    # The step at a module is a further field, which all samples then have.
    whole = Joined(data, first)
    behind = ErrorSet(len(data) + every.indices, every.predictions, len(whole), every.source)
    return replace_errors(model, whole, behind, epsilon=epsilon, **how)
