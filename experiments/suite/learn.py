"""The second opinion learns from confirmed labels under shift, beside controls that have the same labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.suite.answers import Viewed
from experiments.suite.controls import error_regression, fine_tuned, linear_probe, mean_of_both
from petm.adapter.layer_choice import choose_layers
from petm.adapter.model import AdaptedModel, Member, attach_adapter, pool
from petm.adapter.one_pass import Answers
from petm.adapter.prefix_features import FeatureStudent, prepare_student
from petm.data.base import Data, TensorData
from petm.data.fields import Inputs, concatenate
from petm.data.views import MIRROR
from petm.evidence.protocol import compute_answers
from petm.models.prediction import Precision, predict_logits
from petm.training.augmentation import WHOLE_PIXELS, Augmentation, Augmented, choose_augmentation
from petm.training.loop import CROSS_ENTROPY, Objective, Settings, train

Rows = Tensor


@dataclass(frozen=True)
class Learning:
    """How adapters learn from confirmed labels.

    Attributes:
        epochs: Passes over the labelled samples and their copies.
        learning_rate: Learning rate of Adam at the start.
        batch_size: Samples in a step.
        copies: Augmented copies of each labelled sample; of texts there are none.
        adapters: Adapters whose mean gives the second opinion.
        size: Parameters of all adapters as a share of the base model's.
        ratio: Operations of one pass over those of the base model.
        weight_decay: Decoupled weight decay.
        smoothing: Label smoothing.
        share: Weight of the second opinion in the mean of both.
        precision: Of the matrix products.
        layers: The rank of each layer; empty chooses within ``size`` and ``ratio``.
        augmentation: Of the copies; absent chooses on the base model's training data.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 256
    copies: int = 2
    adapters: int = 1
    size: float = 0.02
    ratio: float = 1.25
    weight_decay: float = 0.0
    smoothing: float = 0.0
    share: float = 0.5
    precision: Precision = "float32"
    layers: Mapping[str, int] = field(default_factory=dict)
    augmentation: Augmentation | None = None

    @property
    def objective(self) -> Objective:
        """Cross-entropy, smoothed where asked for."""
        if not self.smoothing:
            return CROSS_ENTROPY
        loss = partial(F.cross_entropy, label_smoothing=self.smoothing)
        return Objective(loss, CROSS_ENTROPY.agrees, "accuracy", f"cross-entropy, smoothed by {self.smoothing}")


class Production:
    """Production samples and what is computed of them once for many draws of labels.

    Args:
        model: The base model.
        data: The samples, in memory, with their true labels.
        train: What the base model was trained on, of which the augmentation is chosen.
    """

    def __init__(self, model: nn.Module, data: Data, train: Data) -> None:
        self.model, self.data, self.train = model, data, train
        self._inputs: dict[str, Inputs] = {}  # of the part that learns, by its layers

    @cached_property
    def answers(self) -> Answers:
        """The base model's logits and features."""
        return compute_answers(self.model, self.data)

    @property
    def wrong(self) -> Tensor:
        """Where the base model is wrong, bool ``(N,)``."""
        return self.answers.predicted != self.data.labels

    @cached_property
    def mirrored(self) -> Tensor:
        """Logits of the flipped images."""
        return predict_logits(self.model, Viewed(self.data, MIRROR), title="mirror")

    @cached_property
    def augmentation(self) -> Augmentation:
        """What the base model's training images bear."""
        return choose_augmentation(self.model, self.train, mirrored=WHOLE_PIXELS)

    def attached(self, learning: Learning, seed: int) -> AdaptedModel:
        """Returns the base model with untrained adapters."""
        members = tuple(Member(f"adapter{index}") for index in range(learning.adapters))
        ranks: Mapping[str, int] = learning.layers or self.ranks(learning)
        return attach_adapter(self.model, ranks, members=members, seed=seed)

    def ranks(self, learning: Learning) -> Mapping[str, int]:
        """Returns the layers that one adapter changes, and their ranks."""
        x = self.data.inputs(range(4))
        size, ratio = learning.size / learning.adapters, learning.ratio
        return choose_layers(self.model, x, (Member(),), max_ratio=ratio, max_extra_parameters=size).ranks

    def second_opinion(self, labelled: Rows, learning: Learning, *, seed: int = 0) -> list[Tensor]:
        """Returns the logits ``(N, K)`` that each adapter gives to all samples after learning from the labelled ones.

        Args:
            labelled: Numbers of the labelled samples.
            learning: How.
            seed: Of initial values, of the copies and of the order of samples.
        """
        adapted = self.attached(learning, seed)
        try:
            fast, student = prepare_student(adapted, self.data.inputs(range(4)), 4 << 30)
            place = ", ".join(adapted.ranks) if student else "input"
            if place not in self._inputs:
                self._inputs[place] = _entering(student, self.data)
            whole, seen = self._inputs[place], self.data.subset(labelled)
            count = learning.copies if isinstance(self.data.inputs([0]), Tensor) else 0
            augmentation = (learning.augmentation or self.augmentation) if count else Augmentation()
            copies = [Augmented(seen, augmentation, seed=seed * count + copy) for copy in range(count)]
            inputs = concatenate([whole[labelled], *(_entering(student, copy) for copy in copies)])
            data = TensorData(inputs, seen.labels.repeat(1 + len(copies)), value_range=(-1e9, 1e9))
            learner: Any = student or fast
            return [self._trained(learner.alone(name), data, whole, learning, seed) for name in adapted.adapters]
        finally:
            adapted.detach()

    def _trained(self, learner: Any, data: Data, whole: Inputs, learning: Learning, seed: int) -> Tensor:
        settings = Settings(
            learning.epochs, learning.learning_rate, learning.batch_size, learning.weight_decay,
            seed=seed, schedule="cosine", precision=learning.precision,
        )  # fmt: skip
        train(learner, data, learning.objective, settings, title="learn")
        with torch.no_grad():
            parts = torch.arange(len(self.data)).split(250)
            return torch.cat([learner(whole[rows]).float() for rows in parts])


def _entering(student: FeatureStudent | None, data: Data) -> Inputs:
    """What enters the part of the model that learns; the samples themselves where that is all of it."""
    parts = [data.inputs(rows) for rows in torch.arange(len(data)).split(250)]
    with torch.no_grad():
        return concatenate([student.rows(x) if student else x for x in parts])


@dataclass(frozen=True)
class Draw:
    """One draw of labels.

    Attributes:
        labelled: Numbers of the samples with a confirmed label.
        judged: Numbers of others, on which AURC is measured.
        seed: Of the draw.
    """

    labelled: Rows
    judged: Rows
    seed: int


def draw_labels(samples: int, labels: int, seed: int, *, judged: Rows | None = None) -> Draw:
    """Returns labelled samples drawn at random, and all others to judge on, or those named."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    if judged is None:
        return Draw(order[:labels], order[labels:].sort().values, seed)
    others = order[~torch.isin(order, judged)]
    return Draw(others[:labels], judged, seed)


def suspicions(production: Production, draw: Draw, learning: Learning, *, full: bool = True) -> dict[str, Any]:
    """Returns suspicion of the judged samples, float64 ``(M,)``, by the name of what learned from the labels.

    Args:
        production: The samples.
        draw: The labels.
        learning: How the adapters learn.
        full: Fine-tune all weights of the late part too, which takes longest.
    """
    rows, judged = draw.labelled, draw.judged
    logits, labels = production.answers.base, production.data.labels[rows]
    features = production.answers.features
    seen = features[rows], features[judged]
    second = pool(production.second_opinion(rows, learning, seed=draw.seed))[judged]
    probe = linear_probe(seen[0], labels, seen[1], logits.shape[1])
    base = logits[judged]
    found = {
        "softmax": mean_of_both(base, base),
        "adapter, mean of both": mean_of_both(base, second, learning.share),
        "adapter alone": mean_of_both(base, second, 1.0),
        "error regression": error_regression(logits[rows], labels, base),
        "error regression, features": error_regression(logits[rows], labels, base, seen),
        "linear probe, mean of both": mean_of_both(base, probe),
    }
    if isinstance(production.data.inputs([0]), Tensor):
        found["mirror, 2 x"] = mean_of_both(base, production.mirrored[judged])
    if full:
        layers = tuple(learning.layers or production.ranks(learning))
        other = fine_tuned(production.model, production.data.subset(rows), layers, seed=draw.seed)
        tuned = predict_logits(other, production.data.subset(judged), title="fine-tuned")
        found["fine-tune, mean of both"] = mean_of_both(base, tuned)
        found["fine-tune alone"] = mean_of_both(base, tuned, 1.0)
    return found
