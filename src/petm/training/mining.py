"""The sources of errors: the base model's own, the hardest samples, augmented copies, and cross-fitting."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from petm._internal.progress import track
from petm.data.base import Data, as_data
from petm.errors import ArgumentError, DataError, ModelError
from petm.models.loading import call_model
from petm.models.penultimate import LastLinear
from petm.models.prediction import batches, check_labels, device_of, evaluating, predict_logits
from petm.training.augmentation import Augmentation, choose_augmentation, with_copies
from petm.training.error_set import ErrorSet, Mined, find_errors


def hardest_samples(model: nn.Module, data: Data, *, share: float = 0.02) -> Mined:
    """Returns the given share of the data on which the base model has the least margin.

    The margin of a sample ``(x, y)`` is ``z_y - max_{k != y} z_k`` in the base model's logits ``z``: at most 0 where
    the base model is wrong, so its errors come first. Of equal margins the earlier sample comes first.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on.
        share: Share of the samples, above 0 and up to 1; at least one sample is returned. 0.02 gave the paper's
            network, with 9 errors in 60,000 samples, a better second opinion than those 9.

    Raises:
        ArgumentError: ``share`` breaks its rule.
        DataError: A label is missing or outside 0..K-1, only one class is present, or there is no sample.
    """
    if not 0 < share <= 1:
        raise ArgumentError(f"share: expected a number above 0 and up to 1, got {share}.")
    data = as_data(data)
    logits = predict_logits(model, data, title="margins").double()
    check_labels(data.labels, logits.shape[1], data.source)
    labels = data.labels.unsqueeze(1)
    margins = logits.gather(1, labels).squeeze(1) - logits.scatter(1, labels, -torch.inf).amax(1)
    indices = margins.argsort(stable=True)[: max(1, round(share * len(data)))].sort().values
    return Mined(data, ErrorSet(indices, logits.argmax(1)[indices], len(data), "hardest"))


def augmented_errors(
    model: nn.Module, data: Data, augmentation: Augmentation | None = None, *, copies: int = 1, seed: int = 0
) -> Mined:
    """Returns the data followed by randomly changed copies of all images, and the base model's errors in the whole.

    Args:
        model: The base model.
        data: ``N`` labelled images ``(N, C, H, W)``, usually those that the base model was trained on.
        augmentation: Greatest amounts of change; absent takes `petm.training.augmentation.choose_augmentation`.
        copies: Copies of each image, at least 1; the returned data have ``(1 + copies) N`` samples.
        seed: Seed of the changes.

    Raises:
        ArgumentError: An argument breaks its rule, or the samples are no images.
        DataError: A label is missing or outside 0..K-1, only one class is present, or there is no sample.
    """
    data = as_data(data)
    if augmentation is None:
        augmentation = choose_augmentation(model, data, seed=seed)
    joined = with_copies(data, augmentation, copies=copies, seed=seed)
    return Mined(joined, replace(find_errors(model, joined), source="augmented"))


def out_of_fold_errors(model: nn.Module, data: Data, *, folds: int = 5, seed: int = 0) -> Mined:
    """Returns the samples that a head gets wrong when it is fitted without them, on the base model's frozen features.

    The features are the input of the linear layer that the base model calls last. The samples are dealt into folds,
    class by class; for each fold a multinomial logistic regression with the penalty ``||w||² / 2`` is fitted on the
    standardised features of the other folds. Such errors are far fewer than those on fresh data, because the base
    model's features were trained on every sample.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on.
        folds: Number of folds, from 2 to ``N``.
        seed: Seed of the folds.

    Returns:
        The data, and an error set whose predictions are those of the heads.

    Raises:
        ArgumentError: ``folds`` breaks its rule.
        DataError: A label is missing or outside 0..K-1, or fewer than two classes have two samples or more.
        ModelError: The base model has no linear layer, or the last one does not take one row of features a sample.

    Reference:
        Stone (1974), Cross-Validatory Choice and Assessment of Statistical Predictions.
    """
    data = as_data(data)
    if not 2 <= folds <= len(data):
        raise ArgumentError(f"folds: expected 2 to {len(data)}, the number of samples, got {folds}.")
    features, classes = _features(model, data)
    check_labels(data.labels, classes, data.source)
    if int((data.labels.bincount() >= 2).sum()) < 2:
        raise DataError(f"{data.source}: expected at least two classes of two samples or more, got fewer. Add samples.")
    labels = data.labels.numpy()
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predictions = cross_val_predict(head, features, labels, cv=PredefinedSplit(_deal(data.labels, folds, seed)))
    indices = torch.from_numpy((predictions != labels).nonzero()[0])
    return Mined(data, ErrorSet(indices, torch.from_numpy(predictions)[indices], len(data), "out-of-fold"))


SOURCES: dict[str, Callable[[nn.Module, Data, int], Mined]] = {
    "plain": lambda model, data, seed: Mined(data, find_errors(model, data)),
    "hardest": lambda model, data, seed: hardest_samples(model, data),
    "augmented": lambda model, data, seed: augmented_errors(model, data, seed=seed),
    "out-of-fold": lambda model, data, seed: out_of_fold_errors(model, data, seed=seed),
}
"""Every source by name, as a function of model, data and seed, at its defaults."""


def mine_errors(model: nn.Module, data: Data, source: str = "plain", *, seed: int = 0) -> Mined:
    """Returns what the named source finds, and raises its errors.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on.
        source: A name in `SOURCES`.
        seed: Seed of the random parts of the source.

    Raises:
        ArgumentError: There is no such source.
    """
    if source not in SOURCES:
        raise ArgumentError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}.")
    return SOURCES[source](model, as_data(data), seed)


def _features(model: nn.Module, data: Data) -> tuple[NDArray[np.float32], int]:
    """The inputs of the linear layer that the base model calls last, float32 ``(N, D)``, and ``K``."""
    parts, classes = [], 0
    with LastLinear(model) as last, evaluating(model), track("features", len(data)) as progress:
        for inputs, _ in batches(data, device_of(model)):
            classes = call_model(model, inputs).shape[1]
            if fault := last.fault(len(inputs)):
                raise ModelError(f"{fault} Mine the hardest samples instead, which need no features.")
            parts.append(last.input.float().cpu().clone())  # a copy: it may be a view of something much larger
            progress.advance(len(inputs))
    return cast(NDArray[np.float32], torch.cat(parts).numpy()), classes


def _deal(labels: Tensor, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample, int64 ``(N,)``; the samples of each class are dealt round at random, class by class."""
    generator, order = torch.Generator().manual_seed(seed), []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order.append(members[torch.randperm(len(members), generator=generator)])
    fold_of = torch.empty(len(labels), dtype=torch.int64)
    fold_of[torch.cat(order)] = torch.arange(len(labels)) % folds
    return cast(NDArray[np.int64], fold_of.numpy())
