"""Both opinions of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from petm.adapter import AdaptedModel
from petm.data import Data
from petm.errors import DataError
from petm.inference import BATCH_SIZE, batches, device_of
from petm.progress import track


class DualLogits(NamedTuple):
    """Both opinions, logits ``(N, K)`` each."""

    base: Tensor
    """What A says."""
    second: Tensor
    """What the second opinion says, at alpha 1."""


def dual_logits(adapted: AdaptedModel, x: Tensor) -> DualLogits:
    """Returns both opinions of a batch, without gradients.

    Args:
        adapted: A with its adapter.
        x: float32 ``(N, C, H, W)`` on the model's device.

    Raises:
        ModelError: The model cannot take the batch, or does not return ``(N, K)``.
    """
    with torch.no_grad():
        return DualLogits(adapted(x, alpha=0.0), adapted(x, alpha=1.0))


def predict_dual(
    adapted: AdaptedModel, data: Data, *, batch_size: int = BATCH_SIZE, title: str = "both opinions"
) -> DualLogits:
    """Returns both opinions of a data set, float32 ``(N, K)`` each, on the CPU.

    Args:
        adapted: A with its adapter.
        data: ``N`` samples.
        batch_size: Samples in one pass.
        title: What the progress bar says.

    Raises:
        DataError: There is no sample, or one holds NaN or infinity.
        ModelError: The model cannot take the inputs, or does not return ``(N, K)``.
    """
    if not len(data):
        raise DataError(f"{data.source}: expected at least one sample, got none.")
    parts = []
    with track(title, len(data)) as progress:
        for inputs, _ in batches(data, device_of(adapted), batch_size):
            both = dual_logits(adapted, inputs)
            parts.append((both.base.float().cpu(), both.second.float().cpu()))
            progress.advance(len(inputs))
    base, second = zip(*parts, strict=True)
    return DualLogits(torch.cat(base), torch.cat(second))
