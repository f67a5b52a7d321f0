"""A head that learns, on the base model's frozen features, how likely the base model thinks the true class to be."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.baselines.protocol import Baseline, Learned, Seen
from petm.data.base import Data, TensorData, WithTargets
from petm.models.loading import count_parameters, weights_fingerprint
from petm.models.prediction import predict_logits
from petm.training.loop import Objective, Settings
from petm.training.loop import train as train_model


@dataclass(frozen=True)
class ConfidNet(Baseline):
    """Suspicion is the log-odds that a learned head gives against the base model's answer.

    The head regresses ``p(y | x)``, the base model's probability of the *true* class, which is at most a half wherever
    the base model is wrong. It sees the training data, on which a well-trained base model makes hardly any errors:
    then it has little to learn. Its last layer has two outputs, whose softmax is the confidence; log-odds have the same
    order, without being rounded to 1.

    Args:
        hidden: Widths of the hidden layers; four of 400 as in the paper.
        epochs: At most this many.
        learning_rate: Of Adam; 1e-4 as in the authors' code.
        batch_size: Samples in one step.
        patience: Stop after this many epochs without a lower loss on the part held out.
        held_out: Share of the training data held out for that, between 0 and 1.

    Reference:
        Corbière et al. (2019), Addressing Failure Prediction by Learning Model Confidence, sections 2.2 and 2.3.
    """

    hidden: tuple[int, ...] = (400, 400, 400, 400)
    epochs: int = 50
    learning_rate: float = 1e-4
    batch_size: int = 128
    patience: int = 3
    held_out: float = 0.1

    name = "confidnet"
    title = "Learned confidence head (ConfidNet)"
    source = "Corbière et al. (2019)"
    fitted_on = "training"
    varies = True

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        head = ConfidenceHead(train.features.shape[1], self.hidden, seed)
        settings = Settings(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            patience=self.patience,
            seed=seed,
        )
        data, validation = _true_class_probabilities(train).split((1 - self.held_out, self.held_out), seed=seed)
        train_model(
            head, data, TRUE_CLASS_PROBABILITY, settings, validation=validation, device=device, title="confidence"
        )

        def score(seen: Seen) -> Tensor:
            logits = predict_logits(head, TensorData(seen.features, source=seen.data.source), title="confidence")
            against, in_favour = logits.double().unbind(1)
            return against - in_favour

        return Learned(score, count_parameters(head))


class ConfidenceHead(nn.Module):
    """Linear layers with ReLU between them: features, float32 ``(n, D)``, to logits ``(n, 2)``.

    The features come as they are. Standardised ones give rare features the weight of frequent ones, and the head then
    ranked the base model's errors worse than the softmax does (calibration part of MNIST).

    Args:
        width: ``D``.
        hidden: Widths of the hidden layers.
        seed: Of the weights.
    """

    def __init__(self, width: int, hidden: tuple[int, ...], seed: int) -> None:
        super().__init__()
        widths = (width, *hidden)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
            self.last = nn.Linear(widths[-1], 2)

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits against and in favour of the base model's answer, ``(n, 2)``."""
        for layer in self.layers:
            features = F.relu(layer(features))
        logits: Tensor = self.last(features)
        return logits


def _true_class_probabilities(seen: Seen) -> Data:
    """The features as samples, each with the base model's probability of its true class as target, float32 ``(N,)``."""
    probabilities = seen.logits.double().softmax(1).gather(1, seen.labels.unsqueeze(1)).squeeze(1).float()
    features = TensorData(seen.features, seen.labels, source=seen.data.source)
    return WithTargets(features, probabilities, origin=f"true-class probability of {weights_fingerprint(seen.model)}")


def _in_favour(logits: Tensor) -> Tensor:
    return logits.softmax(1)[:, 1]


TRUE_CLASS_PROBABILITY = Objective(
    lambda logits, targets: F.mse_loss(_in_favour(logits), targets),
    lambda logits, targets: (_in_favour(logits) > 0.5) == (targets > 0.5),
    "agreement",
    "squared error of the true-class probability",
)
"""Its figure is the share of samples on which head and target are on the same side of a half."""
