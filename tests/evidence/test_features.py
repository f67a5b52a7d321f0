import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.baselines.confidence_head import ConfidNet
from networks import ResidualNet, TinyCNN, images, seeded
from petm.data.base import TensorData
from petm.errors import ArgumentError, DataError
from petm.evidence.mahalanobis import Mahalanobis, RelativeMahalanobis, inverse_root
from petm.evidence.neighbours import NeighbourDistance, NeighbourLabels, TrustScore, nearest, stratified_sample
from petm.evidence.protocol import Baseline
from petm.evidence.seen import Seen

NETWORKS = [TinyCNN, ResidualNet]


def sides(network: type[nn.Module], classes: int = 10) -> tuple[Seen, Seen]:
    """What an untrained A says of training and of test samples: its features are as good as any for a formula."""
    model = seeded(network).eval()
    train = TensorData(images(70), torch.arange(70) % classes, source="training")
    return Seen(model, train, batch_size=32), Seen(model, TensorData(images(25, seed=5)), batch_size=32)


def as_lists(seen: Seen) -> NDArray[np.float64]:
    return seen.features.double().numpy()


class Points(nn.Module):
    """Its features are the input itself, and it answers the class in the last column."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, :3]) + nn.functional.one_hot(x[:, 3].long(), 3)


def points(rows: list[list[float]], labels: list[int] | None = None) -> TensorData:
    return TensorData(
        torch.tensor(rows, dtype=torch.float32), None if labels is None else torch.tensor(labels), source="points"
    )


# Nearest neighbours


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("k", [1, 7, 500])
def test_weighted_labels_of_the_neighbours_by_brute_force(network: type[nn.Module], k: int) -> None:
    train, test = sides(network)
    found = NeighbourLabels(k=k).fit(train, train).suspicion(test)
    known, labels = as_lists(train), train.labels.tolist()
    for row, query in enumerate(as_lists(test)):
        by_distance = sorted((math.dist(query, other), label) for other, label in zip(known, labels, strict=True))[:k]
        against = sum(math.exp(-d) for d, label in by_distance if label != int(test.predicted[row]))
        assert found[row].item() == pytest.approx(against / sum(math.exp(-d) for d, _ in by_distance), abs=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("k", [1, 7, 500])
def test_distance_to_a_neighbour_by_brute_force(network: type[nn.Module], k: int) -> None:
    train, test = sides(network)
    found = NeighbourDistance(k=k).fit(train, train).suspicion(test)
    known = [row / np.linalg.norm(row) for row in as_lists(train)]
    for row, query in enumerate(as_lists(test)):
        distances = sorted(math.dist(query / np.linalg.norm(query), other) for other in known)
        assert found[row].item() == pytest.approx(distances[min(k, 70) - 1], abs=1e-7)


def test_features_of_length_0_have_neighbours() -> None:
    seen = Seen(Points(), points([[0, 0, 0, 0], [3, 0, 4, 1], [0, 0, 0, 1]], [0, 1, 1]))
    assert NeighbourDistance(k=2).fit(seen, seen).suspicion(seen).tolist() == [0, 1, 0]


def test_nearest_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, rows = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (20, 30))
    squared, indices = nearest(queries, rows, 4)
    brute = torch.tensor([[math.dist(q, r) ** 2 for r in rows.tolist()] for q in queries.tolist()], dtype=torch.float64)
    torch.testing.assert_close(squared, brute.sort(1).values[:, :4], atol=1e-12, rtol=1e-12)
    assert torch.equal(indices, brute.argsort(1)[:, :4])
    monkeypatch.setattr("petm.evidence.neighbours._CHUNK", 90)
    assert torch.equal(nearest(queries, rows, 4)[1], indices)


def test_a_sample_of_every_class() -> None:
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 2)
    drawn = stratified_sample(labels, 90, seed=1)
    assert labels[drawn].bincount().tolist() == [59, 29, 1]
    assert torch.equal(drawn, drawn.unique())
    assert torch.equal(drawn, stratified_sample(labels, 90, seed=1))
    assert not torch.equal(drawn, stratified_sample(labels, 90, seed=2))
    assert torch.equal(stratified_sample(labels, 902, seed=1), torch.arange(902))


@pytest.mark.parametrize("baseline", [NeighbourLabels, NeighbourDistance, TrustScore])
@pytest.mark.parametrize("name", ["k", "at_most"])
def test_numbers_of_at_least_1(baseline: Any, name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{name}: expected a whole number of at least 1, got 0\."):
        baseline(**{name: 0})


# Trust Score


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("alpha", "k"), [(0.0, 10), (0.3, 3), (0.6, 10)])
def test_trust_score_by_brute_force(network: type[nn.Module], alpha: float, k: int) -> None:
    train, test = sides(network)
    found = TrustScore(alpha=alpha, k=k).fit(train, train).suspicion(test)
    known, labels = as_lists(train), train.labels.numpy()
    dense: dict[int, list[NDArray[np.float64]]] = {}
    for label in range(10):
        members = list(known[labels == label])
        radii = [np.float32(sorted(math.dist(a, b) for b in members)[min(k, len(members)) - 1] ** 2) for a in members]
        order = sorted(range(len(members)), key=lambda i, radii=radii: radii[i])  # type: ignore[misc]
        dense[label] = [members[i] for i in order[: len(members) - int(alpha * len(members))]]
    for row, query in enumerate(as_lists(test)):
        distance = {label: min(math.dist(query, member) for member in dense[label]) for label in dense}
        own = distance.pop(int(test.predicted[row]))
        trust = min(distance.values()) / own
        assert found[row].item() == pytest.approx(1 / (1 + trust), abs=1e-7)


def test_trust_at_its_limits() -> None:
    model = Points()
    train = Seen(model, points([[0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]], [0, 1, 0]))
    test = Seen(model, points([[0, 0, 0, 0], [0, 0, 0, 2], [2, 0, 0, 0], [2, 0, 0, 1], [1, 0, 0, 0]]))
    # Both at hand; a class without any sample; A's class at hand; only another at hand; both equally far.
    assert TrustScore().fit(train, train).suspicion(test).tolist() == [0.5, 1, 0, 1, 0.5]


def test_trust_drops_a_share_of_the_loneliest() -> None:
    with pytest.raises(ArgumentError, match=r"alpha: expected a share of at least 0 and below 1, got 1\.0\."):
        TrustScore(alpha=1.0)


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
    found = Mahalanobis().fit(train, train).suspicion(test)
    relative = RelativeMahalanobis().fit(train, train).suspicion(test)
    known, labels = as_lists(train), train.labels.numpy()
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


@pytest.mark.parametrize("baseline", [Mahalanobis(), RelativeMahalanobis()])
def test_mahalanobis_wants_every_class(baseline: Baseline) -> None:
    train, _ = sides(TinyCNN, classes=4)
    with pytest.raises(
        DataError, match=r"training: expected training samples of each of 10 classes, got none of class 4"
    ):
        baseline.fit(train, train)


# ConfidNet


def test_the_head_learns_the_true_class_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(600, 1, 1, 4, generator=generator), torch.arange(600) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        # Labels that A likes in half of the space, so that the target can be told from the features.
        logits = model(x)
        labels = torch.where(x[:, 0, 0, 0] > 0, logits.argmax(1), logits.argmin(1))
    seen = Seen(model, TensorData(x, labels))
    fitted = ConfidNet(hidden=(32, 32), epochs=40, learning_rate=1e-2, patience=10).fit(seen, seen, device="cpu")
    confidence = 1 / (1 + fitted.suspicion(seen).exp())
    p = torch.softmax(logits.double(), 1)
    target = torch.stack([p[row, label] for row, label in enumerate(labels)])
    assert (confidence - target).square().mean() < 0.2 * target.var()
