"""Which layers are adapted, and at which ranks, where nobody says so: one rule, within budgets of time and of size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from petm._internal.operations import count_along
from petm.adapter.lora import (
    Member,
    adaptable_layers,
    attach_adapter,
    to_choose_from,
)
from petm.adapter.split_point import find_parting
from petm.adapter.weight_drift import rank_cost
from petm.data.fields import Inputs
from petm.errors import ArgumentError
from petm.models.loading import call_model, count_parameters
from petm.models.prediction import in_eval_mode


def choose_layers(
    model: nn.Module, x: Inputs, members: Sequence[Member], *, max_ratio: float | None, max_extra_parameters: float
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
    names = list(to_choose_from(model))
    adapters = max(1, len({member.adapter for member in members if member.adapter}))

    def ranks(first: int) -> dict[str, int]:
        return _equal_ranks(model, names[first:], int(max_extra_parameters * count_parameters(model)) // adapters)

    def fits(first: int) -> bool:
        if max_ratio is None:
            return True
        adapted = attach_adapter(model, ranks(first), members=members)
        with torch.no_grad():
            return find_parting(adapted, x).counted_ratio <= max_ratio

    # To try a parting takes many passes. One pass, counted, says which layers cannot fit even with the latest parting.
    least = _least_ratio(model, x[:1], members) if max_ratio is not None else lambda _: 1.0
    first, last = 0, len(names)
    while first < last and not (ranks(first) and least(ranks(first)) <= (max_ratio or 1.0)):
        first += 1
    middle = first
    while first < last:  # the first that fits lies between; all after it fit too
        first, last = (first, middle) if fits(middle) else (middle + 1, last)
        middle = (first + last) // 2
    if first == len(names):
        raise ArgumentError(
            f"max_extra_parameters, max_ratio: expected larger budgets, got {max_extra_parameters} and {max_ratio}: "
            f"not even rank 1 on {names[-1] if names else 'any layer'} fits. Name the layers."
        )
    return ranks(first)


def _least_ratio(model: nn.Module, x: Inputs, members: Sequence[Member]) -> Callable[[Mapping[str, int]], float]:
    """The counted ratio of one pass, by ranks, if the opinions parted inside the layer that is called first."""
    layers: dict[str, Any] = adaptable_layers(model)
    with in_eval_mode(model), torch.no_grad():
        total, calls = count_along(lambda: call_model(model, x), layers)
    adapters = sum(bool(member.adapter) for member in members)

    def ratio(ranks: Mapping[str, int]) -> float:
        called = {name: calls[name] for name in ranks if name in calls}
        behind = total - min((after for _, after in called.values()), default=total)
        added = sum(
            (after - before) * ranks[name] * rank_cost(layers[name]) / layers[name].weight.numel()
            for name, (before, after) in called.items()
        )
        return float(1 + (len(members) * behind + adapters * added) / max(total, 1))

    return ratio


def _equal_ranks(model: nn.Module, names: Sequence[str], budget: int) -> dict[str, int]:
    """The greatest equal rank on all layers within a budget of parameters; none where even rank 1 exceeds it."""
    layers: dict[str, Any] = adaptable_layers(model)
    rank = budget // max(1, sum(rank_cost(layers[name]) for name in names))
    most = {name: min(layers[name].weight.shape[0], layers[name].weight[0].numel()) for name in names}
    return {name: min(rank, most[name]) for name in names} if rank else {}
