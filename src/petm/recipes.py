"""How a second opinion is made: the paper's way, and the measured best within a budget of inference time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from petm.adapter import ONE, AdaptedModel, Member, adaptable_layers, attach_adapter, views_alone
from petm.augmentation import Augmentation, choose_augmentation, with_copies
from petm.data import Data, Joined, as_data
from petm.distillation import distill
from petm.drift import rank_cost
from petm.dual import look_at_most
from petm.error_set import Direction, ErrorSet, replace_errors
from petm.errors import ArgumentError
from petm.inference import Precision, choose_device, device_of
from petm.mining import mine_errors
from petm.models import count_parameters
from petm.parting import find_parting
from petm.training import Storage
from petm.tuning import tune
from petm.twin import require_errors, train_twin
from petm.views import MIRROR

COMMITTEE = (Member(), Member("second"), Member("third"))


@dataclass(frozen=True)
class Recipe:
    """One way to a second opinion.

    Attributes:
        title: In words.
        members: Who gives it.
        mirrored: The recipe that takes the place of this one where an image's mirror image keeps its class.
        errors: Where errors come from where there is a teacher, a name of `petm.mining.SOURCES`.
        teacher: Whether a twin is trained and distilled, as in the papers; otherwise the adapters learn from labels.
        look: Share of the predictions, A's least sure, for which the members are asked at all.
        epsilon: FGSM step; 0 takes none. Where there is a teacher, of A's errors and in the units of the inputs, as
            published; where there is none, of all samples of one more copy of the data and as a share of their range.
        direction: Of that step, ``gradient``, or ``random`` for the control.
        copies: Augmented copies of the training data beside the data themselves.
        max_ratio: Time of one pass over a plain forward, in counted operations, within which layers are adapted;
            absent adapts all of them.
        max_extra_parameters: All adapters together, as a share of A's parameters.
        epochs: Passes of each adapter over the data.
        learning_rate: Of Adam, at the start.
        score: What suspicion is, a name of `petm.scores.SCORES`.
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
    epochs: int = 3
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
        "Three adapters on late layers",
        COMMITTEE,
        epsilon=0.1,
        max_ratio=1.25,
        mirrored=Recipe("A at the mirror image, for its least sure predictions", (Member("", MIRROR),), look=0.22),
    ),
    "balanced": Recipe(
        "Three larger adapters",
        COMMITTEE,
        epsilon=0.1,
        max_ratio=1.25,
        max_extra_parameters=0.2,
        mirrored=Recipe("A at the mirror image", (Member("", MIRROR),)),
    ),
    "thorough": Recipe(
        "Five larger adapters",
        (*COMMITTEE, Member("fourth"), Member("fifth")),
        epsilon=0.1,
        max_ratio=1.25,
        max_extra_parameters=0.4,
        mirrored=Recipe("A at four views", tuple(Member("", name) for name in _VIEWS)),
    ),
}
"""The recipes by name: as published, and those chosen for 1.25, 2.1 and 5 times a plain forward (docs/benchmark.md)."""


CONTROLS: dict[str, Recipe] = {
    "unchanged_control": replace(RECIPES["fast"], title="The same adapters on unchanged data", copies=0, epsilon=0.0),
    "augmented_control": replace(RECIPES["fast"], title="The same, without adversarial examples", epsilon=0.0),
    "random_control": replace(RECIPES["fast"], title="The same, random signs for FGSM's", direction="random"),
}
"""The recipe ``fast`` without its ideas: see docs/benchmark.md."""


VARIANTS: dict[str, Recipe] = {
    "mirror_adapter": replace(
        RECIPES["balanced"],
        title="An adapter that looks at the mirror image",
        mirrored=Recipe("An adapter that looks at the mirror image", (Member(view=MIRROR),), max_ratio=2.1, epochs=2),
    ),
}
"""What was measured and not chosen: see docs/benchmark.md."""


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
        cache_budget: Bytes of memory for features that are computed once, as in `petm.tuning.tune`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        storage: Where the trainings leave their checkpoints, by name.

    Raises:
        ArgumentError: There is no recipe of that name, or no layers fit its budget.
    """
    chosen = recipe if isinstance(recipe, Recipe) else RECIPES.get(recipe)
    if chosen is None:
        raise ArgumentError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}.")
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
            data=replace_errors(model, data, errors, epsilon=recipe.epsilon),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            precision=self.precision,
            cache_budget=self.cache_budget,
            storage=self.storage("adapter"),
            device=self.device,
        )
        return adapted

    def by_tuning(self) -> AdaptedModel:
        """The adapters learn from the labels of the data and of changed copies of them."""
        model, recipe = self.model, self.recipe
        x = self.data.inputs(range(min(4, len(self.data)))).to(device_of(model))
        augmentation = Augmentation()
        if x.ndim == 4 and (recipe.copies or recipe.mirrored):  # only images can be augmented
            augmentation = choose_augmentation(model, self.data, seed=self.seed)
        if recipe.mirrored and augmentation.mirror:
            recipe = recipe.mirrored
        if not any(member.adapter for member in recipe.members):
            return views_alone(model, recipe.members)
        copies = recipe.copies if x.ndim == 4 else 0
        layers = self.layers or choose_layers(
            model, x, recipe.members, max_ratio=recipe.max_ratio, max_extra_parameters=recipe.max_extra_parameters
        )
        adapted = attach_adapter(model, layers, members=recipe.members, seed=self.seed)
        parts: list[Data] = [self.data]
        if copies:
            parts = [with_copies(self.data, augmentation, copies=copies, seed=self.seed)]
        if recipe.epsilon and copies:
            low, high = self.data.value_range
            every = ErrorSet(torch.arange(len(self.data)), self.data.labels, len(self.data), "every sample")
            step = recipe.epsilon * (high - low)
            parts.append(replace_errors(model, self.data, every, epsilon=step, direction=recipe.direction))
        tune(
            adapted,
            Joined(*parts),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            precision=self.precision,
            cache_budget=self.cache_budget,
            storage=self.storage,
            device=self.device,
        )
        return adapted


def choose_layers(
    model: nn.Module, x: Tensor, members: Sequence[Member], *, max_ratio: float | None, max_extra_parameters: float
) -> dict[str, int]:
    """Returns the layers to adapt, as many of the last ones as the budget of time allows, and their common rank.

    Late layers are cheap in one pass, and the features that enter them need computing once in training. The rank is the
    greatest that the budget of parameters allows, all adapters together.

    Args:
        model: A.
        x: Some samples, on the model's device.
        members: Who is to give the second opinion.
        max_ratio: Of one pass over a plain forward, in counted operations; absent takes every layer.
        max_extra_parameters: As a share of A's parameters.

    Raises:
        ArgumentError: Not even rank 1 on the last layer fits the budgets.
    """
    names = [name for name, layer in adaptable_layers(model).items() if getattr(layer, "groups", 1) == 1]
    adapters = max(1, len({member.adapter for member in members if member.adapter}))

    def ranks(first: int) -> dict[str, int]:
        return _equal_ranks(model, names[first:], int(max_extra_parameters * count_parameters(model)) // adapters)

    def fits(first: int) -> bool:
        if not ranks(first):
            return False
        if max_ratio is None:
            return True
        adapted = attach_adapter(model, ranks(first), members=members)
        with torch.no_grad():
            return find_parting(adapted, x).counted_ratio <= max_ratio

    first, last = 0, len(names)  # the first that fits lies between; all after it fit too
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if fits(middle) else (middle + 1, last)
    if first == len(names):
        raise ArgumentError(
            f"max_extra_parameters, max_ratio: expected larger budgets, got {max_extra_parameters} and {max_ratio}: "
            f"not even rank 1 on {names[-1] if names else 'any layer'} fits. Name the layers."
        )
    return ranks(first)


def _equal_ranks(model: nn.Module, names: Sequence[str], budget: int) -> dict[str, int]:
    """The greatest equal rank on all layers within a budget of parameters; none where even rank 1 exceeds it."""
    layers: dict[str, Any] = adaptable_layers(model)
    rank = budget // max(1, sum(rank_cost(layers[name]) for name in names))
    most = {name: min(layers[name].weight.shape[0], layers[name].weight[0].numel()) for name in names}
    return {name: min(rank, most[name]) for name in names} if rank else {}
