"""Distances in A's feature space by the spread that the training data have there."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from petm.errors import DataError
from petm.evidence.protocol import Baseline, Learned, Part
from petm.evidence.seen import Seen


@dataclass(frozen=True)
class Mahalanobis(Baseline):
    """Suspicion is the distance ``sqrt((h - m_c)ᵀ S⁻¹ (h - m_c))`` of the features to the mean of A's class ``c``.

    ``m_k`` are the class means of the training features, ``S`` the covariance around them, one for all classes, shrunk
    towards a multiple of the identity by the amount that Ledoit and Wolf found best. The distance is to the class that
    A predicts, not to the nearest one as in the detection of foreign inputs: A's answer is what is graded.

    Where A is sure its features are often long, and then far from every mean: on such networks this ranks right
    predictions as more suspect than wrong ones. `RelativeMahalanobis` takes that out.

    Reference:
        Lee et al. (2018), A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
        Attacks, section 2.1; Ledoit and Wolf (2004).
    """

    name = "mahalanobis"
    title = "Mahalanobis distance to A's class"
    source = "Lee et al. (2018)"
    fitted_on: ClassVar[tuple[Part, ...]] = ("training",)

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        classes = class_gaussians(train)
        return Learned(lambda seen: classes.squared_distance(seen.features, seen.predicted).sqrt(), classes.numbers)


@dataclass(frozen=True)
class RelativeMahalanobis(Baseline):
    """Suspicion is the squared distance to the mean of A's class ``c`` minus that to the mean of all samples.

    ``(h - m_c)ᵀ S⁻¹ (h - m_c) - (h - m)ᵀ S_0⁻¹ (h - m)`` with ``m`` and ``S_0`` the mean and the shrunk covariance of
    the training features without regard to class. What is merely unusual is far from both, and drops out.

    Reference:
        Ren et al. (2021), A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, section 2.2, for A's
        class in place of the nearest.
    """

    name = "relative_mahalanobis"
    title = "Relative Mahalanobis distance to A's class"
    source = "Ren et al. (2021)"
    fitted_on: ClassVar[tuple[Part, ...]] = ("training",)

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        classes = class_gaussians(train)
        everything = Gaussians(train.features, torch.zeros_like(train.labels), 1)

        def score(seen: Seen) -> Tensor:
            own = classes.squared_distance(seen.features, seen.predicted)
            return own - everything.squared_distance(seen.features, torch.zeros_like(seen.predicted))

        return Learned(score, classes.numbers + everything.numbers)


def class_gaussians(train: Seen) -> "Gaussians":
    """Returns the normal distributions of A's features in each class.

    Raises:
        DataError: A class has no sample.
    """
    classes = train.logits.shape[1]
    missing = (train.labels.bincount(minlength=classes) == 0).nonzero()
    if len(missing):
        raise DataError(
            f"{train.data.source}: expected training samples of each of {classes} classes, got none of class "
            f"{int(missing[0])}. Add some, or leave this baseline out."
        )
    return Gaussians(train.features, train.labels, classes)


class Gaussians:
    """Normal distributions with a mean for each class and one covariance, shrunk after Ledoit and Wolf.

    Args:
        features: float ``(N, D)``.
        labels: int64 ``(N,)``, each class at least once.
        classes: ``K``.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        exact = features.double()
        sums = torch.zeros(classes, exact.shape[1], dtype=torch.float64).index_add_(0, labels, exact)
        means = sums / labels.bincount(minlength=classes).unsqueeze(1)
        covariance = LedoitWolf(assume_centered=True).fit((exact - means[labels]).numpy()).covariance_
        self._whiten = inverse_root(torch.from_numpy(covariance))
        self._centres = means @ self._whiten

    @property
    def numbers(self) -> int:
        """How many numbers describe them."""
        return self._whiten.numel() + self._centres.numel()

    def squared_distance(self, features: Tensor, classes: Tensor) -> Tensor:
        """Returns ``(h - m_k)ᵀ S⁻¹ (h - m_k)``, float64 ``(N,)``, for the class ``k`` of each sample."""
        return (features.double() @ self._whiten - self._centres[classes]).square().sum(1)


def inverse_root(covariance: Tensor) -> Tensor:
    """Returns ``W``, float64 ``(D, D)``, with ``W Wᵀ`` the inverse; directions without any spread are left out.

    Args:
        covariance: float64 ``(D, D)``, symmetric, with eigenvalues of at least 0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    spread = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors * torch.where(spread, values, 1.0).rsqrt() * spread
    return root
