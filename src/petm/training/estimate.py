"""The size and duration of a fit before it runs: sizes are computed, durations are timed on a few batches."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from petm._internal.files import plain
from petm._internal.records import Json
from petm.adapter.model import AdaptedModel, views_alone
from petm.adapter.one_pass import predict_answers
from petm.adapter.prefix_features import FeatureStudent, cached_features
from petm.adapter.split_point import split_point_of
from petm.data.base import Batch, Data, Subset, TensorData
from petm.models.loading import count_parameters
from petm.models.prediction import BATCH_SIZE, predict_classes
from petm.selective.probability import fit_probability
from petm.training.augmentation import SAMPLES
from petm.training.config import FitConfig
from petm.training.loop import CROSS_ENTROPY, Settings, train
from petm.training.mining import mine_errors
from petm.training.preflight import CHECKED
from petm.training.recipes import DATA_SHARE, Making, Recipe, focus, with_adversarial_copy
from petm.training.replacement import BACKWARD, replace_errors
from petm.training.teacher import require_errors

_T = TypeVar("_T")
_TIMED = 6
"""Batches of each stage that are timed, after a first one that does not count."""
_TUNING_BATCH, _TEACHING_BATCH = 256, 128
"""Samples in one step of `petm.training.tuning.tune`, and of the trainings of and by a teacher."""
_VIEWS, _FEATURES = 8, 10_000
"""Views of an image, and most samples whose features are computed, to choose by (`petm.evidence.candidates`)."""
_TEACHER_EPOCHS = 2
"""Default of `petm.training.teacher.train_teacher`."""

Branch = Literal["adapters", "views", "teacher", "evidence"]


@dataclass(frozen=True)
class Stage:
    """One stage of a fit: its title, its number of batches, and the seconds of all of them."""

    title: str
    batches: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """The size and duration of a fit.

    Attributes:
        recipe: Title of the recipe for these data.
        branch: ``adapters`` that learn from labels, ``views`` of the input without training, a ``teacher``, or
            ``evidence`` that is named and needs no training.
        members: Adapter (empty for the base model) and view of each ensemble member.
        layers: The rank of each adapted layer; with a teacher an example of the same size, unless ranks are set.
        adapter_parameters: Number of parameters of all adapters.
        adapter_bytes: Size of all adapters.
        share: Parameters of the adapters over those of the base model.
        operations: Operations of the base model for one sample.
        one_pass_ratio: Operations of one pass over those of a plain forward pass.
        split_point: The split point, in JSON's types.
        samples: Number of training samples, without copies.
        calibration_samples: Number of samples for the threshold.
        feature_bytes: Size of the prefix features; 0 where none are cached.
        features_on_disk: Whether they go into a temporary file.
        stages: The stages in their order.
        at_most: Whether early stopping may shorten a stage.
    """

    recipe: str
    branch: Branch
    members: tuple[tuple[str, str], ...]
    layers: dict[str, int]
    adapter_parameters: int
    adapter_bytes: int
    share: float
    operations: float
    one_pass_ratio: float
    split_point: dict[str, Json]
    samples: int
    calibration_samples: int
    feature_bytes: int
    features_on_disk: bool
    stages: tuple[Stage, ...]
    at_most: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)


class _Clock(Subset):
    """A view of a data set that notes the time of each reading of a batch; from one to the next is one batch's work."""

    def __init__(self, data: Data) -> None:
        super().__init__(data, torch.arange(len(data)))
        self.read: list[float] = []
        self.sizes: list[int] = []

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        self.read.append(time.perf_counter())
        self.sizes.append(len(indices))
        return self.data.__getitems__(indices)

    @cached_property
    def content(self) -> str:
        """A word: nothing is kept of what is timed."""
        return "timed"

    def seconds_each(self, average: Callable[[NDArray[np.float64]], Any] = np.median) -> float:
        """Returns the average time of one sample until now, the first batch left out where there are others.

        Of texts, whose batches differ, it is the mean over all samples.
        """
        gaps, sizes = np.diff([*self.read, time.perf_counter()]), np.array(self.sizes)
        if self.lengths is not None:
            return float(gaps.sum() / sizes.sum())
        rates = gaps / sizes
        return float(average(rates[1:] if len(rates) > 1 else rates))


def _stand_in(data: Data, chosen: Tensor, budget: int) -> Data:
    """A view of a data set in which a few decoded samples stand for all others, to time their reading."""
    place = torch.arange(len(data)) % len(chosen)
    place[chosen] = torch.arange(len(chosen))
    found = data.subset(chosen).in_memory(budget).subset(place)
    found.labels = data.labels
    return found


def estimate_fit(
    model: nn.Module, data: Data, calibration: Data, config: FitConfig, *, decoded: bool = False
) -> Estimate:
    """Returns the size and duration of a fit.

    The augmentation and the layers, on which the branch depends, are chosen in full. Of each other stage a few batches
    run in the code of the fit, and their time is multiplied.

    Args:
        model: The base model, on its device.
        data: Labelled training samples.
        calibration: Labelled samples for the threshold.
        config: Configuration of the fit.
        decoded: Whether the fit decodes the data first, where they fit into their part of the cache budget.

    Raises:
        ArgumentError: No layers fit the budgets.
    """
    first, budget, stages = data.inputs([0]), config.cache_budget // DATA_SHARE, []
    decoded = decoded and isinstance(first, Tensor) and not isinstance(data, TensorData)
    if decoded and first.nbytes * len(data) <= budget:
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))[:SAMPLES]
        stand_in, seconds = _timed(lambda: _stand_in(data, chosen, budget))
        stages.append(Stage("decode the data", 1, seconds * len(data) / len(chosen)))
        data = stand_in
    timing = _Timing(Making(model, data, config), calibration, stages)
    return timing.teaching() if timing.making.recipe.teacher else timing.tuning()


class _Timing:
    """The timed stages of one fit, in their order."""

    def __init__(self, making: Making, calibration: Data, stages: list[Stage]) -> None:
        self.making, self.calibration, self.stages = making, calibration, stages
        self.n = len(making.data)

    def tuning(self) -> Estimate:
        """Returns the estimate for a recipe without a teacher."""
        making, n = self.making, self.n
        self._prediction("count errors", making.model, min(n, CHECKED))
        if not making.config.trains:
            self._comparison()
            found = self._estimate(views_alone(making.model, ()), making.recipe, "evidence", 0)
            return replace(found, recipe=str(making.config.recipe))
        quick, laid_out = _timed(making.quick)
        (recipe, augmentation), seconds = _timed(lambda: making.branch(quick))
        self._add("choose the augmentation", 1, laid_out + seconds)
        adapted, seconds = _timed(lambda: making.attached(recipe))
        self._add("choose the layers", 1, seconds)
        if not adapted.adapters:
            return self._estimate(adapted, recipe, "views", 0)
        data, moved = making.with_copies(recipe, augmentation), n if recipe.epsilon else 0
        student, seconds = _timed(lambda: making.student(adapted))
        self._add("find the split point", 1, seconds)
        size = making.feature_bytes(student, data, *([making.data] if moved else []))
        total = len(data) + moved
        if moved:
            few = making.data.subset(range(min(n, _TIMED * BACKWARD)))
            how: Any = {"epsilon": recipe.epsilon, "direction": recipe.direction, "budget": 1 << 40}
            with_adversarial_copy(quick, few, 1, **how)  # the first does not count
            _, seconds = _timed(lambda: with_adversarial_copy(quick, few, len(few), **how))
            held = few.inputs([0]).nbytes * n <= making.for_examples
            times = 1 if held or student else recipe.epochs * len(adapted.adapters)
            self._add("adversarial copy", times * -(-n // BACKWARD), times * seconds * n / len(few))
        parts = [0] * (2 if moved else 1) + list(range(1, len(data) // n))
        stopped = isinstance(making.config.recipe, str)
        epochs = len(adapted.adapters) * (making.most_epochs(recipe, len(data)) if stopped else recipe.epochs)
        title = "train the adapters, at most" if stopped else "train the adapters"
        self._training(title, adapted, data, parts, total, epochs, _TUNING_BATCH)
        if stopped:
            self._comparison()
        return replace(self._estimate(adapted, recipe, "adapters", size), at_most=stopped)

    def teaching(self) -> Estimate:
        """Returns the estimate for a recipe with a teacher, without early stopping."""
        making, recipe, n = self.making, self.making.recipe, self.n
        few = making.data.subset(_spread(n, SAMPLES))
        scale = n / len(few)
        self._prediction("count errors", making.model, n)
        mined, seconds = _timed(lambda: mine_errors(making.model, few, recipe.errors, seed=making.config.seed))
        require_errors(mined.errors)
        self._add("mine errors", -(-n // BATCH_SIZE), seconds * scale)
        total = len(mined.data) * n // len(few)
        replaced, seconds = _timed(lambda: replace_errors(making.model, *mined, epsilon=recipe.step))
        self._add("adversarial examples", -(-round(len(mined.errors) * scale) // BACKWARD), 2 * seconds * scale)
        teacher = deepcopy(making.model).requires_grad_()
        each = self._steps(teacher, replaced, _TEACHING_BATCH)
        steps = _TEACHER_EPOCHS * -(-total // _TEACHING_BATCH)
        self._add("train the teacher", steps, _TEACHER_EPOCHS * total * each)
        adapted, seconds = _timed(lambda: making.imitating(teacher))
        self._add("choose the layers", 1, seconds)
        self._prediction("ask the teacher", making.model, total)
        size = round(making.feature_bytes(making.student(adapted), mined.data) * total / len(mined.data))
        title = "distil into the adapter, at most"
        self._training(title, adapted, replaced, [0], total, recipe.epochs, _TEACHING_BATCH)
        return replace(self._estimate(adapted, recipe, "teacher", size), at_most=True)

    def _comparison(self) -> None:
        """Times the choice of a suspicion."""
        making = self.making
        looks = 1 + (_VIEWS if making.images and making.config.trains else 0)
        self._prediction("compare evidence", making.model, looks * len(self.calibration) + min(self.n, _FEATURES))

    def _training(
        self, title: str, adapted: AdaptedModel, data: Data, parts: list[int], total: int, epochs: int, batch: int
    ) -> None:
        """Times prefix features, and the training steps on them, or on the data where there are none."""
        making = self.making
        block = min(self.n, len(data), BATCH_SIZE)
        order = parts[:1] + parts * -(-_TIMED // len(parts))  # the first batch does not count
        rows = torch.cat([torch.arange(block) + part * self.n for part in order])
        clock = _Clock(data.subset(rows))
        cached = cached_features(adapted, clock, budget=making.for_features, precision=making.config.precision)
        with cached as (learner, seen):
            if isinstance(learner, FeatureStudent):
                each = clock.seconds_each(np.mean)  # for batches of different kinds
                self._add("cache features", -(-total // BATCH_SIZE), each * total)
            each = self._steps(learner.alone(adapted.adapters[0]), seen, batch)
        steps = epochs * -(-total // batch)
        self._add(title, steps, each * epochs * total)

    def _steps(self, learner: nn.Module, data: Data, batch: int) -> float:
        """The time of one sample in a training step."""
        clock, settings = _Clock(data), Settings(1, 1e-9, batch, precision=self.making.config.precision)
        train(learner, clock, CROSS_ENTROPY, settings, device=self.making.config.device, title="time")
        return clock.seconds_each()

    def _prediction(self, title: str, model: nn.Module, count: int) -> None:
        """Times the predictions of ``count`` samples."""
        clock = _Clock(self.making.data.subset(_spread(self.n, (1 + _TIMED) * BATCH_SIZE)))
        predict_classes(model, clock)
        self._add(title, -(-count // BATCH_SIZE), clock.seconds_each() * count)

    def _estimate(self, adapted: AdaptedModel, recipe: Recipe, branch: Branch, feature_bytes: int) -> Estimate:
        """Times the calibration, and returns the whole estimate."""
        making, count = self.making, len(self.calibration)
        few = self.calibration.subset(_spread(count, (1 + _TIMED) * BATCH_SIZE))
        looked = -(-count // 10) if focus(adapted, recipe, few) else 0
        clock = _Clock(few)
        both = predict_answers(adapted, clock)
        each = clock.seconds_each()
        wrong = (both.base.argmax(1) != few.labels).numpy()
        rows = np.resize(np.arange(len(few)), count)
        noise = np.random.default_rng(0).normal(size=count)
        _, seconds = _timed(lambda: fit_probability(noise + wrong[rows], wrong[rows]))
        self._add("calibrate", -(-count // BATCH_SIZE), each * count + seconds)
        split = split_point_of(adapted, making.some())
        bytes_each = [tensor.nbytes for name in adapted.adapters for tensor in adapted.adapter_state(name).values()]
        parameters = adapted.adapter_parameters()
        return Estimate(
            recipe=recipe.title,
            branch=branch,
            members=tuple((member.adapter, member.view) for member in adapted.members),
            layers=adapted.ranks if adapted.adapters else {},
            adapter_parameters=parameters,
            adapter_bytes=sum(bytes_each),
            share=parameters / max(1, count_parameters(making.model)),
            operations=split.operations,
            one_pass_ratio=1 + recipe.look * (split.counted_ratio - 1),
            split_point=plain(split),
            samples=self.n,
            calibration_samples=count - looked,
            feature_bytes=feature_bytes,
            features_on_disk=feature_bytes > making.for_features,
            stages=tuple(self.stages),
        )

    def _add(self, title: str, batches: int, seconds: float) -> None:
        self.stages.append(Stage(title, batches, seconds))


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    """The result of a call, and its seconds."""
    start = time.perf_counter()
    found = call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return found, time.perf_counter() - start


def _spread(n: int, most: int) -> Tensor:
    """At most ``most`` positions, spread evenly over ``n``."""
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).long()
