"""The Trust Score: distances to the nearest training samples of the base model's class and of any other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.baselines.protocol import Baseline, Learned, Seen
from petm.errors import ArgumentError
from petm.evidence.features import AT_MOST, at_least_1, nearest, stratified_sample


@dataclass(frozen=True)
class TrustScore(Baseline):
    """Suspicion is ``d_c / (d_c + d_other)``: how near the model's class ``c`` is, against the nearest other class.

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
        Jiang et al. (2018), To Trust Or Not To Trust the base model Classifier, algorithms 1 and 2.
    """

    alpha: float = 0.05
    k: int = 10
    at_most: int = AT_MOST

    name = "trust_score"
    title = "Trust Score"
    source = "Jiang et al. (2018)"
    fitted_on = "training"

    def __post_init__(self) -> None:
        at_least_1(k=self.k, at_most=self.at_most)
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
    """``d_c / (d_c + d_other)`` of distances ``(n, K)``; 1 where its class is at infinity, a half where both are 0."""
    chosen = predicted.unsqueeze(1)
    own = distances.gather(1, chosen).squeeze(1)
    other = distances.scatter(1, chosen, float("inf")).amin(1)
    share = own / (own + other)
    return share.where(own.isfinite(), 1.0).where((own > 0) | (other > 0), 0.5)
