"""Which layers are adapted, and at which ranks, where nobody says so: one rule, within budgets of time and of size."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from petm._internal.operations import count_along
from petm.adapter.lora import Sizes, adaptable_layers, sizes_of, to_choose_from
from petm.adapter.model import Member, attach_adapter
from petm.adapter.split_point import SplitPoint, find_split_point
from petm.data.fields import Inputs
from petm.errors import ArgumentError
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
    The rank is the greatest that the budget of parameters allows, all adapters together.

    Args:
        model: The base model.
        x: Some samples, on the model's device.
        members: The ensemble that is to give the second opinion.
        max_ratio: Of one pass over a plain forward, in counted operations; absent takes every layer.
        max_extra_parameters: As a share of the base model's parameters.

    Raises:
        ArgumentError: No layer can have an adapter, or not even rank 1 on the last layer fits the budgets.
    """
    candidates = adaptable_layers(model)
    sizes = {name: sizes_of(layer) for name, layer in to_choose_from(model).items()}
    with in_eval_mode(model), torch.no_grad():
        total, calls = count_along(lambda: call_model(model, x[:1]), candidates, model)
    names = [name for name in calls if name in sizes]
    if not names:
        raise ArgumentError(
            "layers: expected a model that calls a linear or convolution layer, got none that can have an adapter. "
            "Use views of the input instead (docs/scores.md)."
        )
    adapters = max(1, len({member.adapter for member in members if member.adapter}))
    # A quantised layer may hold its weight in no parameter.
    weights = max(count_parameters(model), sum(sizes_of(layer).weights for layer in candidates.values()))
    budget = int(max_extra_parameters * weights) // adapters
    least = _least_ratio(total, calls, sizes, members)
    found: dict[int, SplitPoint] = {}

    def ranks(first: int) -> dict[str, int]:
        return _equal_ranks({name: sizes[name] for name in names[first:]}, budget)

    def fits(first: int) -> bool:
        if max_ratio is None:
            return True
        adapted = attach_adapter(model, ranks(first), members=members)
        found[first] = find_split_point(adapted, x)
        adapted.detach()
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
        raise ArgumentError(
            f"max_extra_parameters, max_ratio: expected larger budgets, got {max_extra_parameters} and {max_ratio}: "
            f"not even rank 1 on {names[-1]} fits. Name the layers."
        )
    return Choice(ranks(first), found.get(first))


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
    return {name: min(rank, each.full_rank) for name, each in sizes.items()} if rank else {}
