"""How far a teacher's weights have moved from those of its base model, and the ranks that follow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petm.adapter.lora import is_layer
from petm.errors import ArgumentError, ModelError

_NOISE = 1e-6
"""Singular values below this share of a layer's largest are rounding of float32 weights, not drift."""


@dataclass(frozen=True)
class LayerDrift:
    """How far one layer of the teacher has moved, and in how many directions.

    The drift ``W' - W0`` is read as a matrix ``(out, in)``, for convolutions ``(out, in / groups * kh * kw)``.

    Attributes:
        layer: The layer's name in the model.
        relative_norm: ``||W' - W0||_F / ||W0||_F``, at least 0; infinite where a zero weight has moved.
        rank_90: The least rank that holds 90 % of the drift's energy (its squared singular values); 0 without drift.
        full_rank: The shorter side of the matrix, the greatest rank possible.
        singular_values: ``full_rank`` singular values of the drift, descending, each at least 0.
    """

    layer: str
    relative_norm: float
    rank_90: int
    full_rank: int
    singular_values: tuple[float, ...]


def weight_drift(base: nn.Module, teacher: nn.Module) -> list[LayerDrift]:
    """Returns the weight drift of every linear and convolution layer, in the order of the network.

    An adapter of rank ``r`` can at best remove the energy of the ``r`` greatest singular values of ``W' - W0``
    (Eckart and Young), so these values say which layers deserve one, and how large. Singular values in float64.

    Args:
        base: The base model.
        teacher: The teacher, of the same architecture.

    Raises:
        ModelError: The two differ in a layer or in its shape.

    Reference:
        Eckart and Young 1936; Ko et al. 2025 (LoRA-PETM), section 3.2: the layers with the largest drift are adapted.
    """
    before, after = _weights(base), _weights(teacher)
    for layer in [*before, *(layer for layer in after if layer not in before)]:
        expected, got = (str(tuple(side[layer].shape)) if layer in side else "none" for side in (before, after))
        if expected != got:
            raise ModelError(
                f"teacher: expected weight of shape {expected} in layer {layer!r} as in the model, got {got}. "
                f"Use a teacher of the same architecture."
            )
    return [_layer_drift(layer, weight, after[layer]) for layer, weight in before.items()]


def allocate_ranks(drift: Sequence[LayerDrift], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Returns a rank for each layer that is worth one, within a budget of adapter parameters.

    The next rank goes to the layer where it buys most relative drift energy per parameter,
    ``sigma_i^2 / ||W0||_F^2 / cost``, until nothing fits any more: the greedy for the knapsack problem. The energy that
    it buys never falls when the budget grows.

    Args:
        drift: From `weight_drift`.
        costs: For each layer that may have an adapter, the parameters that one rank costs (`Sizes.rank_cost`).
        budget: Greatest number of adapter parameters, the sum of ``rank * cost``.

    Returns:
        Rank by layer name, in the order of ``drift``, each from 1 to the layer's full rank; singular values below 1e-6
        of a layer's largest count as rounding and get none. Empty without any drift.

    Raises:
        ArgumentError: The budget does not pay for any rank.

    Reference:
        Dantzig 1957 (greedy by ratio).
    """
    gains = {entry.layer: _gains(entry) for entry in drift if entry.layer in costs}
    least = min((costs[layer] for layer, values in gains.items() if values), default=0)
    if budget < least:
        raise ArgumentError(
            f"budget: expected at least {least} parameters, the least that one rank costs, got {budget}."
        )
    steps = [(gain / costs[layer], layer) for layer, values in gains.items() for gain in values]
    ranks = dict.fromkeys(gains, 0)
    for _, layer in sorted(steps, key=lambda step: step[0], reverse=True):  # stable: of equal steps the earlier layer's
        if costs[layer] <= budget:
            budget -= costs[layer]
            ranks[layer] += 1
    return {layer: rank for layer, rank in ranks.items() if rank}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight of every linear and convolution layer by its name."""
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if is_layer(module) and not isinstance(module, nn.Embedding)
    }
    return {name: _whole(layer) for name, layer in layers.items()}


def _whole(layer: Any) -> Tensor:
    """The weight of a layer, with what PEFT's adapters beside it add."""
    weight: Tensor = layer.weight.detach()
    if hasattr(layer, "get_delta_weight") and not layer.merged:
        names = [name for name in layer.active_adapters if name in layer.scaling]
        weight = sum((layer.get_delta_weight(name).detach() for name in names), weight)
    return weight


def _layer_drift(layer: str, before: Tensor, after: Tensor) -> LayerDrift:
    """The drift of one weight; both of the same shape, on any device."""
    before, after = (weight.cpu().double().flatten(1) for weight in (before, after))
    values = torch.linalg.svdvals(after - before).numpy()
    norm, drift = float(torch.linalg.matrix_norm(before)), float(np.sqrt((values**2).sum()))
    energy = np.cumsum(values**2)
    return LayerDrift(
        layer=layer,
        relative_norm=0.0 if drift == 0 else drift / norm if norm else math.inf,
        # The margin keeps a share of exactly 90 % from being lost to rounding.
        rank_90=0 if drift == 0 else int(np.searchsorted(energy, (0.9 - 1e-12) * energy[-1])) + 1,
        full_rank=len(values),
        singular_values=tuple(values.tolist()),
    )


def _gains(entry: LayerDrift) -> list[float]:
    """``sigma_i^2 / ||W0||_F^2`` of every singular value above the noise, descending."""
    total = math.fsum(value**2 for value in entry.singular_values)
    largest = max(entry.singular_values, default=0.0)
    return [entry.relative_norm**2 * value**2 / total for value in entry.singular_values if value > _NOISE * largest]
