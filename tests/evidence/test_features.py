import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from networks import ResidualNet, TinyCNN, images, seeded
from petm.adapter.one_pass import Answers
from petm.data.base import TensorData
from petm.errors import ArgumentError, DataError
from petm.evidence.features import (
    Mahalanobis,
    NeighbourDistance,
    NeighbourLabels,
    RelativeMahalanobis,
    inverse_root,
    nearest,
    stratified_sample,
)
from petm.evidence.protocol import Evidence, compute_answers

NETWORKS = [TinyCNN, ResidualNet]


LABELS = torch.arange(70) % 10


def sides(network: type[nn.Module]) -> tuple[Answers, Answers]:
    """Answers of an untrained network on training and test samples: its features serve any formula."""
    model = seeded(network).eval()
    return tuple(compute_answers(model, TensorData(x), batch_size=32) for x in (images(70), images(25, seed=5)))  # type: ignore[return-value]


def as_lists(answers: Answers) -> NDArray[np.float64]:
    return answers.features.double().numpy()


# Nearest neighbours


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("k", [1, 7, 500])
def test_weighted_labels_of_the_neighbours_by_brute_force(network: type[nn.Module], k: int) -> None:
    train, test = sides(network)
    found = NeighbourLabels(k=k).fit(train, LABELS).score(test)
    known, labels = as_lists(train), LABELS.tolist()
    for row, query in enumerate(as_lists(test)):
        by_distance = sorted((math.dist(query, other), label) for other, label in zip(known, labels, strict=True))[:k]
        against = sum(math.exp(-d) for d, label in by_distance if label != int(test.predicted[row]))
        assert found[row].item() == pytest.approx(against / sum(math.exp(-d) for d, _ in by_distance), abs=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("k", [1, 7, 500])
def test_distance_to_a_neighbour_by_brute_force(network: type[nn.Module], k: int) -> None:
    train, test = sides(network)
    found = NeighbourDistance(k=k).fit(train, LABELS).score(test)
    known = [row / np.linalg.norm(row) for row in as_lists(train)]
    for row, query in enumerate(as_lists(test)):
        distances = sorted(math.dist(query / np.linalg.norm(query), other) for other in known)
        assert found[row].item() == pytest.approx(distances[min(k, 70) - 1], abs=1e-7)


def test_features_of_length_0_have_neighbours() -> None:
    answers = Answers(torch.eye(3), layer_input=torch.tensor([[0.0, 0, 0], [3, 0, 4], [0, 0, 0]]))
    assert NeighbourDistance(k=2).fit(answers, torch.tensor([0, 1, 1])).score(answers).tolist() == [0, 1, 0]


def test_nearest_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, rows = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (20, 30))
    squared, indices = nearest(queries, rows, 4)
    brute = torch.tensor([[math.dist(q, r) ** 2 for r in rows.tolist()] for q in queries.tolist()], dtype=torch.float64)
    torch.testing.assert_close(squared, brute.sort(1).values[:, :4], atol=1e-12, rtol=1e-12)
    assert torch.equal(indices, brute.argsort(1)[:, :4])
    monkeypatch.setattr("petm.evidence.features._CHUNK", 90)
    assert torch.equal(nearest(queries, rows, 4)[1], indices)


def test_a_sample_of_every_class() -> None:
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 2)
    drawn = stratified_sample(labels, 90, seed=1)
    assert labels[drawn].bincount().tolist() == [59, 29, 1]
    assert torch.equal(drawn, drawn.unique())
    assert torch.equal(drawn, stratified_sample(labels, 90, seed=1))
    assert not torch.equal(drawn, stratified_sample(labels, 90, seed=2))
    assert torch.equal(stratified_sample(labels, 902, seed=1), torch.arange(902))


@pytest.mark.parametrize("evidence", [NeighbourLabels, NeighbourDistance])
@pytest.mark.parametrize("name", ["k", "at_most"])
def test_numbers_of_at_least_1(evidence: Any, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}:"):
        evidence(**{name: 0})


# Mahalanobis


def ledoit_wolf(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shrunk covariance of centred rows, from the formulas of Ledoit and Wolf (2004), section 3.2, in loops."""
    n, D = rows.shape
    sample = sum(np.outer(row, row) for row in rows) / n
    m = np.trace(sample) / D
    d2 = ((sample - m * np.eye(D)) ** 2).sum() / D
    b2 = min(d2, sum(((np.outer(row, row) - sample) ** 2).sum() / D for row in rows) / n**2)
    shrunk: NDArray[np.float64] = b2 / d2 * m * np.eye(D) + (1 - b2 / d2) * sample
    return shrunk


@pytest.mark.parametrize("network", NETWORKS)
def test_mahalanobis_by_its_formula(network: type[nn.Module]) -> None:
    train, test = sides(network)
    found = Mahalanobis().fit(train, LABELS).score(test)
    relative = RelativeMahalanobis().fit(train, LABELS).score(test)
    known, labels = as_lists(train), LABELS.numpy()
    means = [known[labels == label].mean(0) for label in range(10)]
    inverse = np.linalg.inv(
        ledoit_wolf(np.array([row - means[label] for row, label in zip(known, labels, strict=True)]))
    )
    of_all = np.linalg.inv(ledoit_wolf(known - known.mean(0)))
    for row, query in enumerate(as_lists(test)):
        away = query - means[int(test.predicted[row])]
        assert found[row].item() == pytest.approx(math.sqrt(away @ inverse @ away), rel=1e-6)
        from_all = query - known.mean(0)
        assert relative[row].item() == pytest.approx(away @ inverse @ away - from_all @ of_all @ from_all, rel=1e-6)


def test_a_direction_without_spread_is_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 4, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 50, 0])
    covariance = rows.T @ rows / 50
    W = inverse_root(covariance)
    np.testing.assert_allclose((W @ W.T).numpy(), np.linalg.pinv(covariance.numpy()), rtol=1e-6, atol=1e-9)
    assert not inverse_root(torch.zeros(3, 3, dtype=torch.float64)).any()


@pytest.mark.parametrize("evidence", [Mahalanobis(), RelativeMahalanobis()])
def test_mahalanobis_wants_every_class(evidence: Evidence) -> None:
    train, _ = sides(TinyCNN)
    with pytest.raises(DataError, match=r"^labels: "):
        evidence.fit(train, LABELS % 4)
