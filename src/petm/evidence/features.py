"""Evidence from the base model's features: distances to the training samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional as F

from petm.adapter.one_pass import Answers
from petm.errors import ArgumentError, DataError
from petm.evidence.protocol import FittedEvidence, Need, Part

AT_MOST = 20_000
"""Most training samples kept; a search among them costs about as much as a pass of a small network."""
_CHUNK = 1 << 23
"""Distances in memory at a time: 64 MB."""


class _OfFeatures:
    needs: ClassVar[Need] = "features"
    fitted_on: ClassVar[Part | None] = "training"


@dataclass(frozen=True)
class Mahalanobis(_OfFeatures):
    """Suspicion is the distance ``sqrt((h - m_c)ᵀ S⁻¹ (h - m_c))`` of the features to the mean of its class ``c``.

    ``m_k`` are the class means of the training features, ``S`` their common covariance, shrunk after Ledoit and Wolf.
    ``c`` is the class that the base model predicts, not the nearest one as in the detection of foreign inputs. On
    networks whose features are long where they are certain, right predictions are ranked above wrong ones;
    `RelativeMahalanobis` corrects that.

    Reference:
        Lee et al. (2018), A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
        Attacks, section 2.1; Ledoit and Wolf (2004).
    """

    name: ClassVar[str] = "mahalanobis"
    title: ClassVar[str] = "Mahalanobis distance to the model's class"
    source: ClassVar[str] = "Lee et al. (2018)"

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the distance by the means and the covariance of these samples, each class at least once."""
        return FittedEvidence(self, class_gaussians(answers, labels))

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the distance to the mean of the predicted class."""
        return squared_distance(answers.features, answers.predicted, state["whiten"], state["centres"]).sqrt()

    def operations(self, classes: int, features: int) -> int:
        """Returns the products with ``S⁻¹``."""
        return features * (features + 1)


@dataclass(frozen=True)
class RelativeMahalanobis(_OfFeatures):
    """Suspicion is the squared distance to the mean of the predicted class ``c`` minus that to the mean of all samples.

    ``(h - m_c)ᵀ S⁻¹ (h - m_c) - (h - m)ᵀ S_0⁻¹ (h - m)`` with ``m`` and ``S_0`` the mean and the shrunk covariance of
    all training features. A sample that is merely unusual is far from both.

    Reference:
        Ren et al. (2021), A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, section 2.2, with the
        predicted class in place of the nearest.
    """

    name: ClassVar[str] = "relative_mahalanobis"
    title: ClassVar[str] = "Relative Mahalanobis distance to the model's class"
    source: ClassVar[str] = "Ren et al. (2021)"

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the difference by the means and the covariances of these samples, each class at least once."""
        everything = gaussians(answers.features, torch.zeros_like(labels), 1)
        together = {f"{name}_of_all": tensor for name, tensor in everything.items()}
        return FittedEvidence(self, class_gaussians(answers, labels) | together)

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the difference of both squared distances."""
        own = squared_distance(answers.features, answers.predicted, state["whiten"], state["centres"])
        one = torch.zeros_like(answers.predicted)
        return own - squared_distance(answers.features, one, state["whiten_of_all"], state["centres_of_all"])

    def operations(self, classes: int, features: int) -> int:
        """Returns the products with both inverses."""
        return 2 * features * (features + 1)


def class_gaussians(answers: Answers, labels: Tensor) -> dict[str, Tensor]:
    """Returns the `gaussians` of features by class; raises `DataError` for a class without samples."""
    classes = answers.base.shape[1]
    missing = (labels.bincount(minlength=classes) == 0).nonzero()
    if len(missing):
        raise DataError(
            f"labels: expected training samples of each of {classes} classes, got none of class {int(missing[0])}. "
            "Add some, or leave this evidence out."
        )
    return gaussians(answers.features, labels, classes)


def gaussians(features: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """Returns normal distributions with a mean for each class and one covariance, shrunk after Ledoit and Wolf.

    Args:
        features: float ``(N, D)``.
        labels: int64 ``(N,)``, each class at least once.
        classes: Number of classes ``K``.

    Returns:
        ``whiten``, float64 ``(D, D)``, a root of ``S⁻¹``, and ``centres``, float64 ``(K, D)``, the means times it.
    """
    exact = features.double()
    sums = torch.zeros(classes, exact.shape[1], dtype=torch.float64).index_add_(0, labels, exact)
    means = sums / labels.bincount(minlength=classes).unsqueeze(1)
    covariance = LedoitWolf(assume_centered=True).fit((exact - means[labels]).numpy()).covariance_
    whiten = inverse_root(torch.from_numpy(covariance))
    return {"whiten": whiten.contiguous(), "centres": means @ whiten}


def squared_distance(features: Tensor, classes: Tensor, whiten: Tensor, centres: Tensor) -> Tensor:
    """Returns ``(h - m_k)ᵀ S⁻¹ (h - m_k)``, float64 ``(N,)``, for the class ``k`` of each sample."""
    return (features.double() @ whiten - centres[classes]).square().sum(1)


def inverse_root(covariance: Tensor) -> Tensor:
    """Returns ``W``, float64 ``(D, D)``, with ``W Wᵀ`` the pseudo-inverse of a covariance matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    spread = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors * torch.where(spread, values, 1.0).rsqrt() * spread
    return root


@dataclass(frozen=True)
class _Neighbours(_OfFeatures):
    k: int = 50
    at_most: int = AT_MOST

    def __post_init__(self) -> None:
        at_least_1(k=self.k, at_most=self.at_most)

    def operations(self, classes: int, features: int) -> int:
        """Returns the products with all samples kept."""
        return self.at_most * features


@dataclass(frozen=True)
class NeighbourLabels(_Neighbours):
    """Suspicion is the weight, among the ``k`` nearest training samples, of those outside the predicted class ``c``.

    ``sum_{j: y_j != c} exp(-d_j) / sum_j exp(-d_j)`` with ``d_j`` the Euclidean distance of features. It is exactly 0,
    and so without order, wherever all ``k`` are of class ``c``.

    Args:
        k: Number of neighbours, at least 1; lowered to the number of training samples.
        at_most: Most training samples kept, at least 1, drawn evenly from the classes.

    Reference:
        Mandelbaum and Weinshall (2017), Distance-based Confidence Score for Neural Network Classifiers.
    """

    name: ClassVar[str] = "knn"
    title: ClassVar[str] = "Labels of the nearest neighbours"
    source: ClassVar[str] = "Mandelbaum and Weinshall (2017)"

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the score by these samples, or a stratified draw of them."""
        kept = stratified_sample(labels, self.at_most, seed)
        return FittedEvidence(self, {"rows": answers.features[kept].double(), "labels": labels[kept]})

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the weight of the neighbours of other classes."""
        squared, neighbours = nearest(answers.features.double(), state["rows"], self.k)
        weights = (-squared.sqrt()).softmax(1)
        return (weights * (state["labels"][neighbours] != answers.predicted.unsqueeze(1))).sum(1)


@dataclass(frozen=True)
class NeighbourDistance(_Neighbours):
    """Suspicion is the distance to the ``k``-th nearest training sample, features scaled to length 1.

    Args:
        k: Rank of the neighbour, at least 1; lowered to the number of training samples.
        at_most: Most training samples kept, at least 1, drawn evenly from the classes.

    Reference:
        Sun et al. (2022), Out-of-Distribution Detection with Deep Nearest Neighbors, section 3.
    """

    name: ClassVar[str] = "knn_distance"
    title: ClassVar[str] = "Distance to the nearest neighbours"
    source: ClassVar[str] = "Sun et al. (2022)"

    def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
        """Returns the score by these samples, or a stratified draw of them."""
        kept = stratified_sample(labels, self.at_most, seed)
        return FittedEvidence(self, {"rows": F.normalize(answers.features[kept].double())})

    def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the distance."""
        squared, _ = nearest(F.normalize(answers.features.double()), state["rows"], self.k)
        return squared[:, -1].sqrt()


def nearest(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns squared Euclidean distances to the ``k`` nearest rows, ascending, and their indices.

    ``|q|² + |r|² - 2 q·r`` by matrix products.

    Args:
        queries: float64 ``(n, D)``.
        rows: float64 ``(M, D)``.
        k: Number of neighbours, at least 1; lowered to ``M``.

    Returns:
        float64 ``(n, min(k, M))`` and int64 of the same shape.
    """
    lengths = rows.square().sum(1)
    distances, indices = [], []
    exporting = torch.compiler.is_exporting()  # a graph takes a batch of any size as one
    for chunk in (queries,) if exporting else queries.split(max(1, _CHUNK // len(rows))):
        squared = torch.addmm(lengths, chunk, rows.T, alpha=-2).add_(chunk.square().sum(1, keepdim=True)).clamp_(min=0)
        found = squared.topk(min(k, len(rows)), largest=False)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def stratified_sample(labels: Tensor, at_most: int, seed: int) -> Tensor:
    """Returns ascending indices of about ``at_most`` samples, the same share of every class and at least one of each.

    Args:
        labels: int64 ``(N,)``.
        at_most: Number of samples up to which all are kept.
        seed: Seed of the draw.
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


def at_least_1(**numbers: int) -> None:
    """Raises an `ArgumentError` where one of the arguments is below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ArgumentError(f"{name}: expected a whole number of at least 1, got {number}.")
