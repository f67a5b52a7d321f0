import copy
import itertools
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from petm.adapter.weight_drift import (
    LayerDrift,
    allocate_ranks,
    weight_drift,
)
from petm.errors import ArgumentError, ModelError
from petm.models.paper import paper_cnn


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 4)
    )


def layer(name: str, *singular_values: float, relative_norm: float = 1.0) -> LayerDrift:
    return LayerDrift(name, relative_norm, 1, len(singular_values), singular_values)


def gain(entry: LayerDrift, rank: int) -> float:
    """Relative energy of the first ``rank`` singular values, straight from the definition."""
    squares = np.square(entry.singular_values)
    return float(entry.relative_norm**2 * squares[:rank].sum() / squares.sum())


# weight_drift


def test_drift_agrees_with_numpy_on_every_layer() -> None:
    base, teacher = network(0), network(1)
    drift = weight_drift(base, teacher)
    assert [entry.layer for entry in drift] == ["0", "4", "5"]
    for entry in drift:
        before, after = (net.get_submodule(entry.layer).weight.detach().double().numpy() for net in (base, teacher))
        moved = (after - before).reshape(len(before), -1)
        eigenvalues = np.sort(
            np.linalg.eigvalsh(moved @ moved.T if moved.shape[0] < moved.shape[1] else moved.T @ moved)
        )[::-1]
        shares = [eigenvalues[:rank].sum() / eigenvalues.sum() for rank in range(1, len(eigenvalues) + 1)]
        assert entry.full_rank == min(moved.shape)
        assert entry.relative_norm == pytest.approx(np.sqrt((moved**2).sum() / (before**2).sum()), rel=1e-12)
        assert entry.rank_90 == next(rank for rank, share in enumerate(shares, 1) if share >= 0.9)
        np.testing.assert_allclose(np.square(entry.singular_values), eigenvalues, rtol=1e-9, atol=1e-12)


def test_drift_of_known_rank_and_size() -> None:
    base, teacher = paper_cnn(seed=0), paper_cnn(seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        teacher.fc1.weight += torch.randn(128, 3, generator=generator) @ torch.randn(3, 9216, generator=generator)
        teacher.fc2.weight *= 1.5
    conv1, conv2, fc1, fc2 = weight_drift(base, teacher)
    assert conv1.relative_norm == conv2.relative_norm == 0
    assert conv1.rank_90 == conv2.rank_90 == 0
    assert (conv1.full_rank, conv2.full_rank, fc1.full_rank, fc2.full_rank) == (9, 64, 128, 10)
    assert 1 <= fc1.rank_90 <= 3
    assert fc1.singular_values[3] < 1e-6 * fc1.singular_values[0]
    assert fc2.relative_norm == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("diagonal", "rank_90"),
    [((3, 1, 0), 1), ((3, 1.01, 0), 2), ((1, 1, 1), 3), ((0, 0, 2), 1)],
    ids=["exactly 90 %", "just below", "flat", "one direction"],
)
def test_rank_90_of_a_diagonal_drift(diagonal: tuple[float, ...], rank_90: int) -> None:
    base, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        base.weight.copy_(torch.eye(3))
        teacher.weight.copy_(torch.eye(3) + torch.diag(torch.tensor(diagonal, dtype=torch.float32)))
    (entry,) = weight_drift(nn.Sequential(base), nn.Sequential(teacher))
    assert entry.rank_90 == rank_90
    assert entry.relative_norm == pytest.approx(math.hypot(*diagonal) / math.sqrt(3), rel=1e-6)
    assert entry.singular_values == pytest.approx(sorted(diagonal, reverse=True), rel=1e-6)


def test_a_zero_weight_that_moves_has_infinite_drift() -> None:
    base, teacher = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(base[0].weight)
    nn.init.eye_(teacher[0].weight)
    (entry,) = weight_drift(base, teacher)
    assert entry.relative_norm == math.inf
    assert entry.rank_90 == 2


def test_convolutions_of_every_dimension_and_with_groups() -> None:
    base = nn.ModuleDict({"one": nn.Conv1d(4, 6, 5), "two": nn.Conv2d(4, 6, 3, groups=2), "three": nn.Conv3d(1, 2, 2)})
    assert [entry.full_rank for entry in weight_drift(base, base)] == [6, 6, 2]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)),
            r"teacher: expected weight of shape \(2, 3\) in layer '1'.*got \(5, 3\)",
        ),
        (nn.Sequential(nn.Linear(4, 3)), r"teacher: expected weight of shape \(2, 3\) in layer '1'.*got none"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2)),
            r"teacher: expected weight of shape none in layer '2'",
        ),
    ],
    ids=["shape", "missing", "extra"],
)
def test_another_architecture_is_named(teacher: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        weight_drift(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), teacher)


# allocate_ranks


def test_a_hand_computed_allocation() -> None:
    # Relative energies a: 0.8, 0.2; b: 4 * (0.9, 0.1). Energy per parameter a: 0.08, 0.02; b: 0.036, 0.004.
    drift = [layer("a", 2, 1), layer("b", 3, 1, relative_norm=2.0)]
    costs = {"a": 10, "b": 100}
    assert allocate_ranks(drift, costs, 10) == {"a": 1}
    assert allocate_ranks(drift, costs, 109) == {"a": 2}  # b no longer fits, the second of a does
    assert allocate_ranks(drift, costs, 110) == {"a": 1, "b": 1}
    assert allocate_ranks(drift, costs, 120) == {"a": 2, "b": 1}
    assert allocate_ranks(drift, costs, 10_000) == {"a": 2, "b": 2}


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_against_every_possible_allocation(seed: int) -> None:
    random = np.random.default_rng(seed)
    drift = [
        layer(name, *np.sort(random.uniform(0.1, 3, 3))[::-1].tolist(), relative_norm=float(random.uniform(0.2, 1)))
        for name in "abc"
    ]
    costs = {entry.layer: int(random.integers(1, 9)) for entry in drift}
    per_rank = {entry.layer: [gain(entry, rank) for rank in range(4)] for entry in drift}
    last = 0.0
    for budget in range(min(costs.values()), 3 * sum(costs.values()) + 3):
        ranks = allocate_ranks(drift, costs, budget)
        spent = sum(rank * costs[name] for name, rank in ranks.items())
        bought = sum(per_rank[name][rank] for name, rank in ranks.items())
        assert spent <= budget
        assert all(1 <= rank <= 3 for rank in ranks.values())
        assert all(budget - spent < costs[name] for name in costs if ranks.get(name, 0) < 3), "something still fits"
        assert bought >= last - 1e-12, "a larger budget buys no less"
        last = bought
        best = max(
            sum(per_rank[name][rank] for name, rank in zip(costs, choice, strict=True))
            for choice in itertools.product(range(4), repeat=3)
            if sum(rank * cost for rank, cost in zip(choice, costs.values(), strict=True)) <= budget
        )
        largest = max(gains[1] for gains in per_rank.values())
        assert bought >= best - largest - 1e-12, "the knapsack greedy misses at most one item"
    assert ranks == dict.fromkeys("abc", 3)


def test_equal_costs_take_the_largest_gains() -> None:
    drift = [layer("a", 3, 2, 1), layer("b", 2.5, 0.5, 0.4)]
    for budget in range(1, 7):
        ranks = allocate_ranks(drift, {"a": 1, "b": 1}, budget)
        steps = sorted((gain(entry, i + 1) - gain(entry, i) for entry in drift for i in range(3)), reverse=True)
        assert sum(gain(entry, ranks.get(entry.layer, 0)) for entry in drift) == pytest.approx(sum(steps[:budget]))


def test_layers_without_drift_or_without_a_cost_get_no_rank() -> None:
    still, noisy = layer("still", 0, 0, relative_norm=0.0), layer("noisy", 1, 1e-9)
    assert allocate_ranks([still, noisy, layer("other", 5)], {"still": 1, "noisy": 1}, 100) == {"noisy": 1}
    assert allocate_ranks([still], {"still": 1}, 0) == {}


def test_a_budget_that_pays_for_no_rank() -> None:
    with pytest.raises(ArgumentError, match=r"budget: expected at least 7 parameters, .* got 6\."):
        allocate_ranks([layer("a", 2, 1), layer("b", 1)], {"a": 10, "b": 7}, 6)


def test_the_drift_of_pefts_layers_is_that_of_the_whole_weight() -> None:
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["body"])
    base: Any = get_peft_model(nn.Sequential(OrderedDict(body=nn.Linear(5, 4))), config)
    teacher = copy.deepcopy(base)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(torch.randn_like(weight))
    before, after = (copy.deepcopy(tuned).merge_and_unload().body.weight for tuned in (base, teacher))
    drift = {entry.layer: entry for entry in weight_drift(base, teacher)}["base_model.model.body"]
    expected = torch.linalg.svdvals((after - before).double()).detach()
    np.testing.assert_allclose(drift.singular_values, expected, rtol=1e-5)
