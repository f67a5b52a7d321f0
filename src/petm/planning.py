"""What a second opinion will cost, before anything is fitted: counted on a few samples, multiplied out for all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.adapter import AdaptedModel, attach_adapter
from petm.allocator import keep_large_blocks
from petm.costs import BATCH, TRIALS, Expected, FittingCost, Line, Rates, Stage
from petm.dual import dual_logits
from petm.embeddings import embedding_of, fgsm_step
from petm.error_set import fgsm
from petm.errors import ArgumentError
from petm.features import find_student
from petm.fields import Inputs, as_batch, tensors_of
from petm.inference import choose_device, in_eval_mode
from petm.layer_choice import choose_layers
from petm.models import call_model, count_parameters
from petm.operations import Call, count_bytes, count_operations
from petm.parting import Parting, parting_of
from petm.recipes import (
    DATA_SHARE,
    EXAMPLES_SHARE,
    FEATURES_SHARE,
    Recipe,
    recipe_named,
    within,
)
from petm.replacement import BACKWARD

SAMPLES = 60_000
"""To learn from, where nothing is said: as many as MNIST has."""
_COUNTED = 2
"""Operations and bytes are counted on so many samples, and on twice as many."""
_SIZES, _LONG_ENOUGH, _SECONDS = (4, 32, BATCH), 0.2, 0.5
"""Batch sizes tried in turn for a rate until a call takes so many seconds; and the seconds that are timed then."""


@dataclass(frozen=True)
class Plan:
    """What a second opinion on one A costs by one recipe.

    Attributes:
        title: Of the recipe.
        samples: ``N`` that was asked for.
        layers: Rank by layer.
        adapters: How many of them.
        model_parameters: Of A, tied ones counted once.
        model_bytes: Of A's parameters and buffers, in the precision they have.
        adapter_parameters: Of all adapters, exact.
        adapter_bytes: The same.
        operations: Of A, for one sample.
        one_pass_operations: Of one pass with both opinions, for one sample.
        parting: Where the opinions part.
        fitting: What fitting takes, for any number of samples.
        mirrored: The title of what takes the adapters' place where an image's mirror image keeps its class, which only
            the fitting finds out: it trains nothing and has no parameters. Empty where nothing does.
        mirrored_ratio: Then, the operations of both opinions over those of A.
    """

    title: str
    samples: int
    layers: Mapping[str, int]
    adapters: int
    model_parameters: int
    model_bytes: int
    adapter_parameters: int
    adapter_bytes: int
    operations: float
    one_pass_operations: float
    parting: Parting
    fitting: FittingCost
    mirrored: str = ""
    mirrored_ratio: float | None = None

    @property
    def share(self) -> float:
        """The adapters' parameters over A's."""
        return self.adapter_parameters / self.model_parameters

    @property
    def counted_ratio(self) -> float:
        """Operations of one pass over those of A alone."""
        return self.one_pass_operations / max(self.operations, 1)

    @property
    def expected(self) -> Expected:
        """What fitting takes for the samples that were asked for."""
        return self.fitting.at(self.samples)


def plan(
    model: nn.Module,
    x: Inputs,
    *,
    samples: int = SAMPLES,
    recipe: str | Recipe = "fast",
    layers: Mapping[str, int] | None = None,
    max_extra_parameters: float | None = None,
    max_extra_time: float | None = None,
    rate: float | None = None,
    cache_budget: int = 4 << 30,
    device: str = "auto",
) -> Plan:
    """Returns what a second opinion on a model will cost: layers, ranks, one pass, and the fitting.

    Layers and ranks are those that `petm.fit` takes, chosen by the same rule. Operations and the bytes of tensors are
    counted on two and on four samples; both are linear in the samples of a batch, and what fitting takes follows by the
    formulas of `petm.costs.FittingCost.at`. A's weights are shared: no tensor of A's size is allocated again.

    Args:
        model: A; it stays as it is, but is moved to ``device``.
        x: At least one sample, as the model takes it; only its form matters.
        samples: ``N`` to learn from.
        recipe: A name of `petm.recipes.RECIPES` without a teacher, or such a recipe of your own.
        layers: The rank of each layer to adapt; absent follows the recipe.
        max_extra_parameters: The adapters' budget as a share of A's parameters; absent follows the recipe.
        max_extra_time: By which share one pass may exceed a plain forward, in counted operations; absent follows the
            recipe.
        rate: Operations per second of the machine; absent measures those of passes and of training steps here, in a few
            seconds.
        cache_budget: Bytes of memory for data, FGSM examples and features together, as in `petm.recipes.adapt`.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: An argument breaks its rule, or no layers fit the budgets.
        ModelError: The model cannot take ``x``.

    Example:
        >>> from petm.models import paper_cnn
        >>> planned = plan(paper_cnn(), torch.rand(1, 1, 28, 28), max_extra_parameters=0.02, rate=1e9)
        >>> planned.layers, planned.adapter_parameters
        ({'conv2': 2, 'fc1': 2, 'fc2': 2}, 19668)
    """
    if samples < 1:
        raise ArgumentError(f"samples: expected at least 1, got {samples}.")
    if rate is not None and not 0 < rate < float("inf"):
        raise ArgumentError(f"rate: expected operations per second above 0, got {rate}. Leave it out to measure it.")
    x = as_batch(x)
    if not len(x):
        raise ArgumentError("inputs: expected at least one sample, got none.")
    chosen = within(recipe_named(recipe), max_extra_parameters=max_extra_parameters, max_extra_time=max_extra_time)
    if chosen.teacher or not any(member.adapter for member in chosen.members):
        raise ArgumentError(
            f"recipe: expected one with adapters and without a teacher, such as fast, balanced or thorough, got "
            f"{chosen.title!r}. What a teacher costs depends on A's errors."
        )
    place = choose_device(device)
    model, x = model.to(place), x.to(place)
    with in_eval_mode(model):
        layers = layers or choose_layers(
            model, x, chosen.members, max_ratio=chosen.max_ratio, max_extra_parameters=chosen.max_extra_parameters
        )
        adapted = attach_adapter(model, layers, members=chosen.members)
        parting = parting_of(adapted, x)
        both = _operations(lambda batch: lambda: dual_logits(adapted, batch), x)
        fitting = _fitting_cost(model, adapted, x, chosen, rate, cache_budget)
    mirrored = chosen.mirrored if _are_images(x) else None
    return Plan(
        title=chosen.title,
        samples=samples,
        layers=dict(layers),
        adapters=len(adapted.adapters),
        model_parameters=count_parameters(model),
        model_bytes=fitting.model_bytes,
        adapter_parameters=adapted.adapter_parameters(),
        adapter_bytes=fitting.adapter_bytes,
        operations=fitting.forward.operations,
        one_pass_operations=both,
        parting=parting,
        fitting=fitting,
        mirrored=mirrored.title if mirrored else "",
        mirrored_ratio=1 + mirrored.look * len(mirrored.members) if mirrored else None,
    )


def _fitting_cost(
    model: nn.Module, adapted: AdaptedModel, x: Inputs, recipe: Recipe, rate: float | None, cache_budget: int
) -> FittingCost:
    """Counts each stage of fitting."""
    images = _are_images(x)
    copies = recipe.copies if images else 0
    alone = adapted.alone(adapted.adapters[0])
    alone.parting = parting_of(adapted, x)  # one adapter parts where several do, which takes many passes to find
    student = find_student(alone, _several(x, 4)) if cache_budget > 0 else None
    learner = student or adapted

    def passing(batch: Inputs) -> Call:
        return torch.no_grad()(lambda: call_model(model, _read(batch)))

    def stepping(batch: Inputs) -> Call:
        return _step(learner.alone(adapted.adapters[0]), torch.no_grad()(student.rows)(batch) if student else batch)

    def reading(batch: Inputs) -> Call:
        return torch.no_grad()(lambda: student.rows(_read(batch)) if student else None)

    forward, step = _stage(passing, x), _stage(stepping, x)
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return FittingCost(
        epochs=recipe.epochs,
        adapters=len(adapted.adapters),
        copies=copies,
        parts=1 + copies + bool(recipe.epsilon),
        trials=TRIALS if images and (recipe.copies or recipe.mirrored) else 0,
        model_bytes=sum(tensor.nbytes for tensor in weights.values()),
        laid_out_bytes=sum(weight.nbytes for weight in model.parameters() if weight.ndim == 4),
        adapter_bytes=sum(
            weight.nbytes for name in adapted.adapters for weight in adapted.adapter_state(name).values()
        ),
        sample_bytes=x[:1].nbytes,
        example_bytes=_adversarial(model, x[:1])().nbytes if recipe.epsilon else 0,
        feature_bytes=4 * student.width if student else 0,
        cache_budget=-(-cache_budget // FEATURES_SHARE),
        example_budget=cache_budget // EXAMPLES_SHARE,
        data_budget=cache_budget // DATA_SHARE,
        forward=forward,
        gradient=_stage(lambda batch: _adversarial(model, batch), x, BACKWARD) if recipe.epsilon else None,
        features=_stage(reading, x) if student else None,
        step=step,
        rates=Rates(rate, rate) if rate else Rates(_rate(passing, x, forward), _rate(stepping, x, step)),
    )


def _step(network: nn.Module, seen: Inputs) -> Call:
    """Returns what makes one training step on a batch, as `petm.training` does."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)

    def step() -> None:
        with torch.enable_grad():
            logits = call_model(network, _read(seen)).float()
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _adversarial(model: nn.Module, batch: Inputs) -> Callable[[], Tensor]:
    """Returns what moves a batch against A; labels and range do not matter."""
    labels = torch.zeros(len(batch), dtype=torch.int64, device=tensors_of(batch)[0].device)
    if isinstance(batch, Tensor):
        return lambda: fgsm(model, batch.clone(), labels, epsilon=0.1, value_range=(0.0, 1.0))
    at = embedding_of(model, batch)
    return lambda: fgsm_step(model, batch, labels, at=at, epsilon=0.1)


def _are_images(x: Inputs) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4


def _several(x: Inputs, count: int) -> Inputs:
    """So many samples, those of ``x`` again and again."""
    return x[torch.arange(count, device=tensors_of(x)[0].device) % len(x)]


def _read(batch: Inputs) -> Inputs:
    """The same samples read anew, as each batch is."""
    return _several(batch, len(batch))


def _operations(prepare: Callable[[Inputs], Call], x: Inputs, batch: int = BATCH) -> float:
    """Counted operations for one sample of a full batch, which share what a call does however many they are."""
    few, more = (count_operations(prepare(_several(x, count))) for count in (_COUNTED, 2 * _COUNTED))
    each = (more - few) / _COUNTED
    return each + (few - _COUNTED * each) / batch


def _stage(prepare: Callable[[Inputs], Call], x: Inputs, batch: int = BATCH) -> Stage:
    """Counts a computation, on two samples and on four."""
    found = []
    for count in (_COUNTED, 2 * _COUNTED):
        call = prepare(_several(x, count))
        call()  # what is made only once does not count
        found.append(count_bytes(call))
    each = (found[1] - found[0]) / _COUNTED
    return Stage(_operations(prepare, x, batch), Line(max(0.0, found[0] - _COUNTED * each), each), batch)


def _rate(prepare: Callable[[Inputs], Call], x: Inputs, stage: Stage) -> float:
    """Operations per second, on as many samples as a batch has, or fewer where these take long enough."""
    keep_large_blocks()
    for size in _SIZES:
        call = prepare(_several(x, size))
        call()
        seconds = [_seconds(call)]
        if seconds[0] >= _LONG_ENOUGH:
            break
    while sum(seconds) < _SECONDS:
        seconds.append(_seconds(call))
    return max(size * stage.operations, 1.0) / median(seconds)


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start
