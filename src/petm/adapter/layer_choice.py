"""Which layers are adapted, and at which ranks, where nobody says so: one rule, within budgets of time and of size."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from petm._internal.operations import count_along
from petm.adapter.lora import Sizes, adaptable_layers, is_layer, obstacle, sizes_of, to_choose_from
from petm.adapter.model import Member, attach_adapter
from petm.adapter.split_point import APART, SplitPoint, find_split_point
from petm.data.fields import Inputs
from petm.errors import ArgumentError, ModelError
from petm.models.loading import call_model, count_parameters
from petm.models.prediction import in_eval_mode


class Choice(NamedTuple):
    """Layers to adapt."""

    ranks: dict[str, int]
    """The rank of each layer by its name."""
    split_point: SplitPoint | None
    """Where the streams of one pass separate with these, if that had to be found."""


def choose_layers(
    model: nn.Module, x: Inputs, members: Sequence[Member], *, max_ratio: float | None, max_extra_parameters: float
) -> Choice:
    """Returns the layers to adapt, as many of the last ones as the budget of time allows, and their common rank.

    Layers that are called late are cheap in one pass, and the features that enter them need computing once in training.
    The rank is the greatest that the budget of parameters allows, all adapters together, and in each layer at most a
    quarter of the weight's full rank: above, an adapter saves little beside training the layer, and learns its data by
    heart.

    Args:
        model: The base model.
        x: Some samples, on the model's device.
        members: The ensemble that is to give the second opinion.
        max_ratio: Of one pass over a plain forward, in counted operations; absent takes every layer.
        max_extra_parameters: As a share of the base model's parameters, embeddings left out: a vocabulary says nothing
            of the size of what is adapted. Rank 1 on the last layer counts as within where it is of all parameters.

    Raises:
        ModelError: No layer that is called can have an adapter that learns; the message says why.
        ArgumentError: Rank 1 on the last layer exceeds a budget; the message names it and the least that is needed.
    """
    candidates = adaptable_layers(model)
    sizes = {name: sizes_of(layer) for name, layer in to_choose_from(model).items()}
    with in_eval_mode(model), torch.no_grad():
        total, calls = count_along(lambda: call_model(model, x[:1]), candidates, model)
    names = [name for name in calls if name in sizes]
    if not names:
        raise ModelError(
            f"model: {_without_layers(model, calls)}. Use views of the input instead (docs/concepts/evidence.md)."
        )
    if not (reached := _with_gradient(model, x[torch.zeros(3, dtype=torch.int64)], names)):
        raise ModelError(
            f"model: expected a layer that an adapter can learn in, got no gradient to any of {', '.join(names[-3:])} "
            f"(no_grad, detach or argmax behind them). Let the model return logits with their gradient."
        )
    names = [name for name in names if name in reached]
    adapters = max(1, len({member.adapter for member in members if member.adapter}))
    # A quantised layer may hold its weight in no parameter.
    every = max(count_parameters(model), sum(sizes_of(layer).weights for layer in candidates.values()))
    least_cost = sizes[names[-1]].rank_cost
    budget = int(max_extra_parameters * (every - _in_embeddings(model))) // adapters
    budget = max(budget, min(least_cost, int(max_extra_parameters * every) // adapters))
    least = _least_ratio(total, calls, sizes, members)
    found: dict[int, SplitPoint] = {}

    def ranks(first: int) -> dict[str, int]:
        return _equal_ranks({name: sizes[name] for name in names[first:]}, budget)

    def fits(first: int) -> bool:
        if max_ratio is None:
            return True
        found[first] = _split_point(model, x, ranks(first), members)
        return found[first].counted_ratio <= max_ratio

    # To try a split point takes many passes. One pass, counted, says which layers cannot fit even with the latest one.
    first, last = 0, len(names)
    while first < last and not (ranks(first) and (max_ratio is None or least(ranks(first)) <= max_ratio)):
        first += 1
    middle = first
    while first < last:  # the first that fits lies between; all after it fit too
        first, last = (first, middle) if fits(middle) else (middle + 1, last)
        middle = (first + last) // 2
    if first == len(names):
        last_layer = names[-1]
        needed = least_cost * adapters / every
        if not ranks(first - 1):
            raise ArgumentError(
                f"max_extra_parameters: expected at least {_up(needed)} of the model's parameters, which rank 1 on "
                f"{last_layer} takes for {adapters} adapter{'s' * (adapters > 1)}, got {max_extra_parameters}. "
                f"Raise it, or name the layers."
            )
        split = found.get(first - 1) or _split_point(model, x, ranks(first - 1), members)
        why = "as the model gives other logits where both opinions share a batch: " if split.kind == APART else ""
        raise ArgumentError(
            f"max_extra_time: expected at least {_up(split.counted_ratio - 1)} of a plain pass, which an adapter on "
            f"{last_layer} takes, got {(max_ratio or 1) - 1:.3g}. {why}Raise it, or name the layers."
        )
    return Choice(ranks(first), found.get(first))


def _split_point(model: nn.Module, x: Inputs, ranks: Mapping[str, int], members: Sequence[Member]) -> SplitPoint:
    adapted = attach_adapter(model, ranks, members=members)
    try:
        return find_split_point(adapted, x)
    finally:
        adapted.detach()


def _up(share: float) -> str:
    """A share rounded up to two digits, so that it suffices."""
    digits = 1 - math.floor(math.log10(share)) if share > 0 else 0
    return f"{math.ceil(share * 10**digits) / 10**digits:.{max(digits, 0)}f}"


def _without_layers(model: nn.Module, calls: Mapping[str, tuple[int, int]]) -> str:
    """Why no layer can be chosen."""
    layers = {name: module for name, module in model.named_modules() if name and is_layer(module)}
    if not layers:
        return "expected linear or convolution layers as modules, got none"
    if calls:
        return f"expected a linear or dense convolution layer, got only embeddings and groups: {', '.join(calls)}"
    held = {name: obstacle(module) for name, module in layers.items()}
    name, why = next(((name, why) for name, why in held.items() if why), (next(iter(layers)), None))
    if why is None:
        why = "its weight is used without a call of the layer, or it has several names"
    return f"expected a layer that is called and can have an adapter, got none, such as {name}: {why}"


def _with_gradient(model: nn.Module, x: Inputs, names: Sequence[str]) -> set[str]:
    """The layers to whose output the logits have a gradient, and whose rows follow the samples.

    An adapter on others, such as a projection of positions, cannot run in one pass.
    """
    added, beside = dict[str, Tensor](), set[str]()

    def add(name: str, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        if output.shape[0] % len(x):
            beside.add(name)
        if name not in added:
            added[name] = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        return output + added[name]

    with in_eval_mode(model, freeze=True), torch.enable_grad(), ExitStack() as stack:
        for name in names:
            layer = model.get_submodule(name)
            handle = layer.register_forward_hook(lambda _, __, output, name=name: add(name, output))
            stack.callback(handle.remove)
        total = call_model(model, x).float().square().sum()
        tensors = list(added.values())
        if not total.requires_grad:
            return set()
        gradients = torch.autograd.grad(total, tensors, allow_unused=True)
    return {name for name, gradient in zip(added, gradients, strict=True) if gradient is not None} - beside


def _least_ratio(
    total: int, calls: Mapping[str, tuple[int, int]], sizes: Mapping[str, Sizes], members: Sequence[Member]
) -> Callable[[Mapping[str, int]], float]:
    """The counted ratio of one pass, by ranks, if the opinions separated inside the layer that is called first."""
    adapters = sum(bool(member.adapter) for member in members)

    def ratio(ranks: Mapping[str, int]) -> float:
        behind = total - min((calls[name][1] for name in ranks), default=total)
        added = sum(
            (calls[name][1] - calls[name][0]) * rank * sizes[name].rank_cost / sizes[name].weights
            for name, rank in ranks.items()
        )
        return float(1 + (len(members) * behind + adapters * added) / max(total, 1))

    return ratio


def _equal_ranks(sizes: Mapping[str, Sizes], budget: int) -> dict[str, int]:
    """The greatest equal rank on all layers within a budget of parameters; none where even rank 1 exceeds it."""
    rank = budget // max(1, sum(each.rank_cost for each in sizes.values()))
    return {name: min(rank, max(1, each.full_rank // 4)) for name, each in sizes.items()} if rank else {}


def _in_embeddings(model: nn.Module) -> int:
    """The number of parameters in embeddings, each counted once."""
    tables = (each for each in model.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag))
    return sum({id(weight): weight.numel() for table in tables for weight in table.parameters()}.values())
