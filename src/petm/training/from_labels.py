"""Adapters that learn from confirmed labels: one for use, and one for each fold of the labels, to judge by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from petm._internal.files import fingerprint
from petm.adapter.layer_choice import choose_layers
from petm.adapter.lora import ADAPTER
from petm.adapter.model import ONE, AdaptedModel, Member, attach_adapter
from petm.adapter.prefix_features import cached_features
from petm.data.base import Data, Joined, WithTargets
from petm.models.prediction import Precision, choose_device, device_of, predict_logits
from petm.selective.audit import inverse_chances
from petm.training.augmentation import WHOLE_PIXELS, choose_augmentation, with_copies
from petm.training.loop import Objective, Settings, Storage, train

EPOCHS, LEARNING_RATE, COPIES = 10, 1e-3, 2
"""Measured on shifted CIFAR-10 with 150 and 500 labels: more epochs, other rates and weight decay gain nothing."""
_LARGEST_BATCH = 256
_MOST_WEIGHT = 10.0
"""Greatest weight of a label over the least, so that a few labels with small chances do not drown the others."""
_TRAINING_WEIGHT = 0.5
"""Weight of a sample of the original training data; as many are drawn as there are labels."""


@dataclass(frozen=True, eq=False)
class LearnedAdapter:
    """An adapter that has learned from labels.

    Attributes:
        adapted: The base model with the adapter that has learned from all labels.
        opinions: Logits ``(n, K)`` for those with a fold, each from an adapter that has not seen the label.
    """

    adapted: AdaptedModel
    opinions: Tensor


def label_weights(chance: ArrayLike | None, samples: int) -> NDArray[np.float64]:
    """Returns weights in the loss ``(N,)``: inverse chances of being labelled, clipped to 10 times the least, mean 1.

    Args:
        chance: float ``(N,)`` in (0, 1]; None for equal or unknown chances.
        samples: ``N``.
    """
    weights = np.maximum(inverse_chances(chance, samples), 1 / _MOST_WEIGHT)
    return np.asarray(weights / weights.mean())


WEIGHTED = Objective(  # targets are one-hot rows times the weights
    F.cross_entropy,
    lambda logits, targets: logits.argmax(1) == targets.argmax(1),
    "accuracy",
    "weighted cross-entropy",
)


def learn_from_labels(
    model: nn.Module,
    labelled: Data,
    folds: NDArray[np.int64],
    *,
    weights: NDArray[np.float64],
    training: Data | None = None,
    max_extra_time: float = 0.25,
    max_extra_parameters: float = 0.02,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    storage: Callable[[str], Storage | None] | None = None,
    device: str = "auto",
) -> LearnedAdapter:
    """Returns an adapter on late layers that has learned from all labels, and what those without a fold say about it.

    Of images, augmented copies are learned from as well; where flips keep the class they are flipped and shifted alone,
    as resampled pixels cost a tenth of the gain on shifted CIFAR-10. What enters the first adapted layer is computed
    once for all adapters.

    Args:
        model: The base model; its weights stay as they are.
        labelled: ``N`` labelled samples of production.
        folds: int64 ``(N,)``, the fold of each, two at least; -1 for those that every adapter learns from.
        weights: float64 ``(N,)``, weight of each in the loss.
        training: Labelled data that the base model was trained on, of which as many samples are learned from at half
            the weight, and the augmentation is chosen on; absent takes the labelled samples alone.
        max_extra_time: Operations of one pass over those of a plain forward pass, less 1.
        max_extra_parameters: Size of the adapter over that of the base model.
        seed: Seed of initial values, copies and orders.
        precision: Precision of the matrix products in training.
        cache_budget: Bytes of memory for features; larger ones go into a temporary file.
        storage: Place of the checkpoint of each adapter, by its name.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: No layers fit the budgets.
        TrainingError: The loss is no longer finite.
    """
    x = labelled.inputs(range(min(4, len(labelled)))).to(device_of(model))
    budgets: Any = {"max_ratio": 1 + max_extra_time, "max_extra_parameters": max_extra_parameters}
    chosen = choose_layers(model, x, ONE, **budgets)
    names = (ADAPTER, *(f"fold{fold}" for fold in range(int(folds.max()) + 1)))
    several = attach_adapter(model, chosen.ranks, members=[Member(name) for name in names], seed=seed)
    several.take_split_point(chosen.split_point)
    data, shares, places = labelled, [weights], [folds]
    if isinstance(x, Tensor) and x.ndim == 4:
        seen_before = labelled if training is None else training
        augmentation = choose_augmentation(model, seen_before, mirrored=WHOLE_PIXELS, seed=seed)
        data = with_copies(labelled, augmentation, copies=COPIES, seed=seed)
        shares, places = shares * (1 + COPIES), places * (1 + COPIES)
    if training is not None:
        drawn = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[: len(labelled)]
        data = Joined(data, training.subset(drawn))
        shares, places = [*shares, np.full(len(drawn), _TRAINING_WEIGHT)], [*places, np.full(len(drawn), -1)]
    weight, place = torch.from_numpy(np.concatenate(shares)).float(), torch.from_numpy(np.concatenate(places))
    how: Any = {"schedule": "cosine", "precision": precision}
    batch = min(_LARGEST_BATCH, math.ceil(len(labelled) / 2))
    cached = cached_features(several, data, budget=cache_budget, precision=precision)
    with cached as (student, seen):
        classes = predict_logits(model, labelled.subset([0])).shape[1]
        targets = F.one_hot(data.labels, classes) * weight[:, None]
        whole = WithTargets(seen, targets, origin=fingerprint((weight, data.labels)))
        opinions = torch.empty(len(labelled), classes)
        for index, name in enumerate(names):
            fold, learner = index - 1, student.alone(name)
            rows = place != fold if fold >= 0 else torch.ones_like(place, dtype=torch.bool)
            settings = Settings(EPOCHS, LEARNING_RATE, batch, seed=seed * len(names) + index, **how)
            title = f"adapter {index + 1} of {len(names)}"
            kept = storage and storage(name)
            train(learner, whole.subset(rows), WEIGHTED, settings, storage=kept, device=device, title=title)
            if fold >= 0:
                held = torch.from_numpy(folds == fold)
                reduced = precision == "bfloat16"
                with torch.autocast(choose_device(device).type, torch.bfloat16, enabled=reduced):
                    rows = held.nonzero().flatten()
                    opinions[held] = predict_logits(learner, seen.subset(rows), title=f"judge {title}")
    adapted = attach_adapter(model, chosen.ranks, seed=seed)
    adapted.take_split_point(chosen.split_point)
    for layer in chosen.ranks:
        adapted.adapter.layer(ADAPTER, layer).load_state_dict(several.adapter.layer(ADAPTER, layer).state_dict())
    adapted.to(device_of(model))
    several.detach()
    return LearnedAdapter(adapted, opinions[torch.from_numpy(folds >= 0)])
