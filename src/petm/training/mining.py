"""The sources of errors, each by itself and all by name."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from petm.data.base import Data, as_data
from petm.errors import ArgumentError
from petm.models.prediction import check_labels, predict_logits
from petm.training.augmentation import Augmentation, choose_augmentation, with_copies
from petm.training.error_set import ErrorSet, find_errors
from petm.training.mined import Mined
from petm.training.out_of_fold import out_of_fold_errors


def plain_errors(model: nn.Module, data: Data) -> Mined:
    """Returns the samples that the base model gets wrong, as `find_errors` does and with its errors raised."""
    data = as_data(data)
    return Mined(data, find_errors(model, data))


def hardest_samples(model: nn.Module, data: Data, *, share: float = 0.02) -> Mined:
    """Returns the samples on which the base model is right by the least margin, or wrong: the given share of the data.

    The margin of a sample ``(x, y)`` is ``z_y - max_{k != y} z_k`` in the base model's logits ``z``: at most 0 where
    the base model is wrong, so the base model's errors come first. Of equal margins the earlier sample comes first.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on.
        share: Of the samples, above 0 and up to 1; at least one sample is returned. 0.02 gave the paper's network, with
            9 errors of its own in 60,000 samples, a better second opinion than those 9.

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
    others = logits.scatter(1, labels, -torch.inf).amax(1)
    margins = logits.gather(1, labels).squeeze(1) - others
    indices = margins.argsort(stable=True)[: max(1, round(share * len(data)))].sort().values
    return Mined(data, ErrorSet(indices, logits.argmax(1)[indices], len(data), "hardest"))


def augmented_errors(
    model: nn.Module, data: Data, augmentation: Augmentation | None = None, *, copies: int = 1, seed: int = 0
) -> Mined:
    """Returns the data with randomly changed copies of all images behind them, and the model's errors in the whole.

    The base model that has learnt its training images by heart has not learnt them a little turned, shifted or resized.

    Args:
        model: The base model.
        data: ``N`` labelled images ``(N, C, H, W)``, usually those that the base model was trained on.
        augmentation: How far the changes go; absent lets `petm.training.augmentation.choose_augmentation` choose.
        copies: Of each image, at least 1; the returned data have ``(1 + copies) N`` samples.
        seed: Of the changes.

    Raises:
        ArgumentError: An argument breaks its rule, or the samples are no images.
        DataError: A label is missing or outside 0..K-1, only one class is present, or there is no sample.
    """
    data = as_data(data)
    if augmentation is None:
        augmentation = choose_augmentation(model, data, seed=seed)
    joined = with_copies(data, augmentation, copies=copies, seed=seed)
    return Mined(joined, replace(find_errors(model, joined), source="augmented"))


SOURCES: dict[str, Callable[[nn.Module, Data, int], Mined]] = {
    "plain": lambda model, data, seed: plain_errors(model, data),
    "hardest": lambda model, data, seed: hardest_samples(model, data),
    "augmented": lambda model, data, seed: augmented_errors(model, data, seed=seed),
    "out-of-fold": lambda model, data, seed: out_of_fold_errors(model, data, seed=seed),
}
"""Every source by name, as a function of model, data and seed, at its defaults."""


def mine_errors(model: nn.Module, data: Data, source: str = "plain", *, seed: int = 0) -> Mined:
    """Returns what the source of that name finds.

    Args:
        model: The base model.
        data: ``N`` labelled samples, usually those that the base model was trained on.
        source: A name in `SOURCES`.
        seed: Of whatever is random in it.

    Raises:
        ArgumentError: There is no such source.
        PetmError: Whatever the source raises.
    """
    if source not in SOURCES:
        raise ArgumentError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}.")
    return SOURCES[source](model, as_data(data), seed)
