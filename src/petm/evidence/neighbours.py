"""Baselines that look for a sample's nearest training samples among A's features."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from petm.errors import ArgumentError
from petm.evidence.protocol import Baseline, Learned, Part
from petm.evidence.seen import Seen

AT_MOST = 20_000
"""Training samples that are kept; a search among them costs about as much as a pass of a small network."""

_CHUNK = 1 << 23
"""Distances held at once: 64 MB."""


@dataclass(frozen=True)
class NeighbourLabels(Baseline):
    """Suspicion is the weight, among the ``k`` nearest training samples, of those that are not of A's class ``c``.

    ``sum_{j: y_j != c} exp(-d_j) / sum_j exp(-d_j)`` with ``d_j`` the Euclidean distance of features. It is exactly 0
    wherever all ``k`` are of class ``c``: among those samples it has no order, which is the method's own.

    Args:
        k: Neighbours; no more than there are training samples.
        at_most: Training samples kept, drawn evenly from the classes where there are more.

    Raises:
        ArgumentError: An argument is below 1.

    Reference:
        Mandelbaum and Weinshall (2017), Distance-based Confidence Score for Neural Network Classifiers.
    """

    k: int = 50
    at_most: int = AT_MOST

    name = "knn"
    title = "Labels of the nearest neighbours"
    source = "Mandelbaum and Weinshall (2017)"
    fitted_on: ClassVar[tuple[Part, ...]] = ("training",)

    def __post_init__(self) -> None:
        _at_least_1(k=self.k, at_most=self.at_most)

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        kept = stratified_sample(train.labels, self.at_most, seed)
        rows, labels = train.features[kept].double(), train.labels[kept]

        def score(seen: Seen) -> Tensor:
            squared, neighbours = nearest(seen.features.double(), rows, self.k)
            weights = (-squared.sqrt()).softmax(1)
            return (weights * (labels[neighbours] != seen.predicted.unsqueeze(1))).sum(1)

        return Learned(score, rows.numel() + len(labels))


@dataclass(frozen=True)
class NeighbourDistance(Baseline):
    """Suspicion is the distance to the ``k``-th nearest training sample, features scaled to length 1.

    It asks whether the sample is unusual, whatever A says of it.

    Args:
        k: Which neighbour; no more than there are training samples.
        at_most: Training samples kept, drawn evenly from the classes where there are more.

    Raises:
        ArgumentError: An argument is below 1.

    Reference:
        Sun et al. (2022), Out-of-Distribution Detection with Deep Nearest Neighbors, section 3.
    """

    k: int = 50
    at_most: int = AT_MOST

    name = "knn_distance"
    title = "Distance to the nearest neighbours"
    source = "Sun et al. (2022)"
    fitted_on: ClassVar[tuple[Part, ...]] = ("training",)

    def __post_init__(self) -> None:
        _at_least_1(k=self.k, at_most=self.at_most)

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        kept = stratified_sample(train.labels, self.at_most, seed)
        rows = F.normalize(train.features[kept].double())

        def score(seen: Seen) -> Tensor:
            squared, _ = nearest(F.normalize(seen.features.double()), rows, self.k)
            return squared[:, -1].sqrt()

        return Learned(score, rows.numel())


@dataclass(frozen=True)
class TrustScore(Baseline):
    """Suspicion is ``d_c / (d_c + d_other)``: how near A's class ``c`` is, against the nearest other class.

    ``d_k`` is the distance of features to the nearest training sample of class ``k``. The trust score is ``d_other /
    d_c``; its form here has the opposite order and stays in [0, 1]. Before, the samples that lie loneliest are dropped
    from each class.

    Args:
        alpha: Share of each class that is dropped, at least 0 and below 1: those farthest from their ``k``-th
            neighbour of the same class. 0 keeps all.
        k: That neighbour, the sample itself counted as the first.
        at_most: Training samples kept, drawn evenly from the classes where there are more.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Jiang et al. (2018), To Trust Or Not To Trust A Classifier, algorithms 1 and 2.
    """

    alpha: float = 0.05
    k: int = 10
    at_most: int = AT_MOST

    name = "trust_score"
    title = "Trust Score"
    source = "Jiang et al. (2018)"
    fitted_on: ClassVar[tuple[Part, ...]] = ("training",)

    def __post_init__(self) -> None:
        _at_least_1(k=self.k, at_most=self.at_most)
        if not 0 <= self.alpha < 1:
            raise ArgumentError(f"alpha: expected a share of at least 0 and below 1, got {self.alpha}.")

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        kept = stratified_sample(train.labels, self.at_most, seed)
        rows, labels = train.features[kept].double(), train.labels[kept]
        dense = [self._dense(rows[labels == k]) for k in range(train.logits.shape[1])]

        def score(seen: Seen) -> Tensor:
            features = seen.features.double()
            distances = torch.full((len(features), len(dense)), float("inf"), dtype=torch.float64)
            for k, members in enumerate(dense):
                if len(members):
                    distances[:, k] = nearest(features, members, 1)[0].squeeze(1).sqrt()
            return _share_of_own(distances, seen.predicted)

        return Learned(score, sum(members.numel() for members in dense))

    def _dense(self, members: Tensor) -> Tensor:
        """The samples of one class ``(n, D)`` without the loneliest."""
        dropped = int(self.alpha * len(members))
        if not dropped:
            return members
        radius = nearest(members, members, self.k)[0][:, -1]
        # Rounded, so that two samples which are each other's neighbour lie equally lonely; the earlier one stays.
        return members[radius.float().argsort(stable=True)[: len(members) - dropped].sort().values]


def _share_of_own(distances: Tensor, predicted: Tensor) -> Tensor:
    """``d_c / (d_c + d_other)`` of distances ``(n, K)``; 1 where A's class is at infinity, a half where both are 0."""
    chosen = predicted.unsqueeze(1)
    own = distances.gather(1, chosen).squeeze(1)
    other = distances.scatter(1, chosen, float("inf")).amin(1)
    share = own / (own + other)
    return share.where(own.isfinite(), 1.0).where((own > 0) | (other > 0), 0.5)


def nearest(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the squared Euclidean distances to the ``k`` nearest rows, ascending, and which rows those are.

    ``|q|² + |r|² - 2 q·r``, a matrix product, in float64, in which little is lost.

    Args:
        queries: float64 ``(n, D)``.
        rows: float64 ``(M, D)``.
        k: At least 1; lowered to ``M``.

    Returns:
        float64 ``(n, min(k, M))`` and int64 of the same shape.
    """
    lengths = rows.square().sum(1)
    distances, indices = [], []
    for chunk in queries.split(max(1, _CHUNK // len(rows))):
        squared = torch.addmm(lengths, chunk, rows.T, alpha=-2).add_(chunk.square().sum(1, keepdim=True)).clamp_(min=0)
        found = squared.topk(min(k, len(rows)), largest=False)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def stratified_sample(labels: Tensor, at_most: int, seed: int) -> Tensor:
    """Returns ascending indices of about ``at_most`` samples, the same share of every class and at least one of each.

    Args:
        labels: int64 ``(N,)``.
        at_most: All are kept where there are no more than this.
        seed: Of the draw.
    """
    if len(labels) <= at_most:
        return torch.arange(len(labels))
    generator, share = torch.Generator().manual_seed(seed), at_most / len(labels)
    parts = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        drawn = torch.randperm(len(members), generator=generator)[: max(1, int(share * len(members)))]
        parts.append(members[drawn])
    return torch.cat(parts).sort().values


def _at_least_1(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ArgumentError(f"{name}: expected a whole number of at least 1, got {number}.")
