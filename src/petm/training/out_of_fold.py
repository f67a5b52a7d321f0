"""Errors by cross-fitting: what heads get wrong that were fitted without the sample."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from petm._internal.progress import track
from petm.data.base import Data, as_data
from petm.errors import ArgumentError, DataError, ModelError
from petm.models.loading import call_model, share_weights
from petm.models.penultimate import LastLinear
from petm.models.prediction import batches, check_labels, device_of
from petm.training.error_set import ErrorSet
from petm.training.mined import Mined


def out_of_fold_errors(model: nn.Module, data: Data, *, folds: int = 5, seed: int = 0) -> Mined:
    """Returns the samples that a head gets wrong which was fitted without them, on the base model's frozen features.

    The features are the input of the linear layer that the base model calls last. The samples are dealt into folds,
    class by class; for each fold a multinomial logistic regression with the penalty ``||w||² / 2`` is fitted on the
    standardised features of the other folds. The base model's features themselves have seen every sample, so that such
    errors are far fewer than those on fresh data; and a head that is fitted to its end may be right where that of an
    the base model stopped early is wrong.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on.
        folds: At least 2, at most ``N``.
        seed: Of the folds.

    Returns:
        The predictions in the error set are those of the heads.

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
        raise DataError(
            f"{data.source}: expected at least two classes of two samples or more, so that each is seen without a "
            f"fold. Add samples."
        )
    labels, fold_of = data.labels.numpy(), _deal(data.labels, folds, seed)
    predictions = np.empty_like(labels)
    with track("heads without a fold", folds) as progress:
        for fold in range(folds):
            left_out = fold_of == fold
            seen = features[~left_out]
            middle, spread = seen.mean(0), seen.std(0)
            spread[spread == 0] = 1
            head = LogisticRegression(max_iter=1000).fit((seen - middle) / spread, labels[~left_out])
            predictions[left_out] = head.predict((features[left_out] - middle) / spread)
            progress.advance(1)
    indices = torch.from_numpy((predictions != labels).nonzero()[0])
    return Mined(data, ErrorSet(indices, torch.from_numpy(predictions)[indices], len(data), "out-of-fold"))


def _features(model: nn.Module, data: Data) -> tuple[NDArray[np.float32], int]:
    """The inputs of the linear layer that the base model calls last, float32 ``(N, D)``, and ``K``."""
    network = share_weights(model)
    last = LastLinear(network)
    parts, classes = [], 0
    with torch.no_grad(), track("features", len(data)) as progress:
        for inputs, _ in batches(data, device_of(network)):
            classes = call_model(network, inputs).shape[1]
            if fault := last.fault(len(inputs)):
                raise ModelError(f"{fault} Mine the hardest samples instead, which need no features.")
            parts.append(last.input.float().cpu().clone())  # a copy: it may be a view of something much larger
            progress.advance(len(inputs))
    return cast(NDArray[np.float32], torch.cat(parts).numpy()), classes


def _deal(labels: Tensor, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample, int64 ``(N,)``: every class dealt round at random, where the one before it stopped."""
    generator, order = torch.Generator().manual_seed(seed), []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order.append(members[torch.randperm(len(members), generator=generator)])
    fold_of = torch.empty(len(labels), dtype=torch.int64)
    fold_of[torch.cat(order)] = torch.arange(len(labels)) % folds
    return cast(NDArray[np.int64], fold_of.numpy())
