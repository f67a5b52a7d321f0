"""Both opinions of a batch."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from petm._internal.distributed import gathered
from petm._internal.progress import track
from petm.adapter.model import AdaptedModel, pool
from petm.adapter.split_point import APART, OnePass, split_point_of
from petm.data.base import Data
from petm.data.fields import Inputs, as_batch, filled_up
from petm.errors import ArgumentError, DataError
from petm.models.answers import joined, of_one_length
from petm.models.prediction import BATCH_SIZE, Collected, batches_by_length, device_of, own_share, predict_logits
from petm.models.scores import maximum_softmax


class DualLogits(NamedTuple):
    """Both opinions, logits ``(N, K)`` each."""

    base: Tensor
    """Of the base model."""
    second: Tensor
    """Of the second opinion, at alpha 1."""


def dual_logits(adapted: AdaptedModel, x: Inputs | Mapping[str, Tensor]) -> DualLogits:
    """Returns both opinions of a batch in one pass, without gradients.

    What lies before the first adapted layer runs once on ``N`` samples; from the split point on, both streams run as
    one batch of ``2N`` through the base weights (`split_point`). The first call for a model finds the split point,
    which takes a few passes over a handful of samples.

    Args:
        adapted: The base model with its adapter.
        x: float32 ``(N, C, H, W)``, or whatever the model takes, tensors by name too, on the model's device.

    Raises:
        ModelError: The model cannot take the batch, or does not return ``(N, K)``.
    """
    x = as_batch(x)
    n = x.shape[0]
    if parts := of_one_length(adapted.base, x):
        every = [dual_logits(adapted, part.inputs) for part in parts]
        return DualLogits(joined(parts, [both.base for both in every]), joined(parts, [both.second for both in every]))
    with torch.no_grad():
        if adapted.cascade_threshold > 0:
            return _cascade(adapted, x)
        if n == 0 or (split_point := split_point_of(adapted, x)).kind == APART:
            return DualLogits(adapted(x, alpha=0.0), adapted(x, alpha=1.0))
        streams = 1 + len(adapted.members)
        logits = adapted.run(OnePass(n, split_point, adapted.members), x, rows=streams * n)
        # Sliced by numbers that are known beforehand: a graph that is traced keeps a batch of any size.
        opinions = [logits[place * n : (place + 1) * n] for place in range(streams)]
        return DualLogits(opinions[0], pool(opinions[1:]))


def _cascade(adapted: AdaptedModel, x: Inputs) -> DualLogits:
    """Both opinions, the second computed only where the base model's own suspicion asks for it."""
    base = adapted(x, alpha=0.0)
    doubtful = maximum_softmax(base) >= adapted.cascade_threshold
    if torch.compiler.is_exporting():  # a graph has no steps that depend on values
        return DualLogits(base, torch.where(doubtful[:, None], adapted(x), base))
    second = base.clone()
    if bool(doubtful.any()):
        seen = x[doubtful]
        second[doubtful] = adapted(filled_up(seen))[: len(seen)].to(base.dtype)
    return DualLogits(base, second)


def set_cascade(adapted: AdaptedModel, data: Data, share: float) -> None:
    """Sets ``adapted.cascade_threshold`` so that the second opinion is asked for on this share of the samples.

    The least sure predictions are those where a second opinion changes the order most, and the rest costs nothing.

    Args:
        adapted: The base model with its adapters.
        data: Samples that the base model has not seen, such as the calibration samples; labels are not used.
        share: Above 0, at most 1, which asks always.

    Raises:
        ArgumentError: ``share`` breaks its rule.
    """
    if not 0 < share <= 1:
        raise ArgumentError(f"share: expected a number above 0 and at most 1, got {share}.")
    suspicion = maximum_softmax(predict_logits(adapted, data, title="cascade", alpha=0.0))
    adapted.cascade_threshold = float(suspicion.quantile(1 - share)) if share < 1 else 0.0


def predict_dual(
    adapted: AdaptedModel, data: Data, *, batch_size: int = BATCH_SIZE, title: str = "both opinions"
) -> DualLogits:
    """Returns both opinions of a data set, float32 ``(N, K)`` each, on the CPU.

    Args:
        adapted: The base model with its adapter.
        data: ``N`` samples.
        batch_size: Samples in one pass.
        title: What the progress bar says.

    Raises:
        DataError: There is no sample, or one holds NaN or infinity.
        ModelError: The model cannot take the inputs, or does not return ``(N, K)``.
    """
    if not len(data):
        raise DataError(f"{data.source}: expected at least one sample, got none.")
    own = own_share(data)
    opinions = Collected(len(own))
    with track(title, len(own)) as progress:
        for rows, (inputs, _) in batches_by_length(own, device_of(adapted), batch_size):
            opinions.add(rows, torch.stack(dual_logits(adapted, inputs), dim=1).float())
            progress.advance(len(inputs))
    return DualLogits(*gathered(opinions.whole, len(data)).unbind(1))
