"""Predictions for a data set, batch by batch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from petm._internal.distributed import gathered, group
from petm._internal.progress import track
from petm.data.base import Batch, Data, check_finite
from petm.data.fields import Inputs, length_groups, trimmed
from petm.data.labels import UNLABELLED
from petm.errors import DataError
from petm.models import BATCH_SIZE as BATCH_SIZE
from petm.models.holding import in_eval_mode as in_eval_mode
from petm.models.loading import call_model
from petm.models.placing import stays

Precision = Literal["float32", "bfloat16"]
"""Precision of the matrix products in training; weights and losses are float32."""


def choose_device(device: str = "auto") -> torch.device:
    """Returns the named device; ``auto`` is the first accelerator present, else the CPU.

    With several processes, each has its own accelerator: a number behind the name is ignored.
    """
    if device != "auto":
        return torch.device(device if group().count == 1 else device.partition(":")[0])
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def move(model: nn.Module, device: str = "auto") -> torch.device:
    """Moves a model to the named device (`choose_device`), and returns the one on which it takes inputs.

    What is there already is not touched, as a quantised layer may lose its scales by it. A model whose layers lie on
    several devices, or that is sharded, stays where it is.
    """
    if not stays(model):
        place = torch.empty(0, device=choose_device(device)).device
        if any(tensor.device != place for tensor in (*model.parameters(), *model.buffers())):
            model.to(place)
        return place
    return device_of(model)


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the model's first parameter, or the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def batches(data: Data, device: torch.device, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """Yields the samples in order, on ``device``, checked to be finite; texts without padding that all share."""
    for rows in torch.arange(len(data)).split(batch_size):
        yield _batch(data, rows, device)


def batches_by_length(data: Data, device: torch.device, batch_size: int = BATCH_SIZE) -> Iterator[tuple[Tensor, Batch]]:
    """Yields positions, int64 ``(n,)``, and the samples there as `batches` does, texts of like length together."""
    for group_ in length_groups(data.lengths, len(data)):
        for rows in group_.split(batch_size):
            yield rows, _batch(data, rows, device)


def _batch(data: Data, rows: Tensor, device: torch.device) -> Batch:
    inputs, targets = data.__getitems__(rows.tolist())
    check_finite(inputs, f"{data.source}, samples from {int(rows[0])}")
    inputs = inputs if data.lengths is None else trimmed(inputs)
    return Batch(inputs.to(device), targets.to(device))


def predict_logits(
    model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE, title: str = "predict", **arguments: Any
) -> Tensor:
    """Returns float32 logits ``(N, K)`` of a data set on the CPU, without gradients.

    Several processes (`petm._internal.distributed`) share the samples.

    Args:
        model: Any network, in eval mode while this runs.
        data: ``N`` samples.
        batch_size: Samples in one forward pass.
        title: Title of the progress bar.
        **arguments: Further arguments of the model's forward, such as ``alpha``.

    Raises:
        DataError: There is no sample, or one holds NaN or infinity.
        ModelError: The model cannot take the inputs, or does not return ``(N, K)``.
    """
    return _of_all(model, data, lambda x: call_model(model, x, **arguments).float(), batch_size, title)


def predict_classes(model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE, title: str = "predict") -> Tensor:
    """Returns the predicted classes of a data set, int64 ``(N,)`` on the CPU; otherwise as `predict_logits`."""
    return _of_all(model, data, lambda x: call_model(model, x).argmax(1), batch_size, title)


def _of_all(model: nn.Module, data: Data, answer: Callable[[Inputs], Tensor], batch_size: int, title: str) -> Tensor:
    if not len(data):
        raise DataError(f"{data.source}: expected at least one sample, got none.")
    own = own_share(data)
    answers = Collected(len(own))
    with evaluating(model), track(title, len(own)) as progress:
        for rows, (inputs, _) in batches_by_length(own, device_of(model), batch_size):
            answers.add(rows, answer(inputs))
            progress.advance(len(inputs))
    return gathered(answers.whole, len(data))


class Collected:
    """The answers for ``n`` samples, copied batch by batch into ``whole``, ``(n, ...)`` on the CPU.

    Separate answers would fragment the memory of a pass's large tensors: a process grew by hundreds of megabytes.
    """

    def __init__(self, n: int) -> None:
        self.whole = torch.empty(0)
        self._n = n

    def add(self, rows: Tensor, answers: Tensor) -> None:
        """Copies the answers for the samples at ``rows``."""
        if not len(self.whole):
            self.whole = torch.empty((self._n, *answers.shape[1:]), dtype=answers.dtype)
        self.whole[rows] = answers.to(self.whole.device)


def own_share(data: Data) -> Data:
    """Returns this process's samples where several processes share them, and all where one runs."""
    return data.subset(group().own(len(data))) if group().shares(len(data)) else data


def in_fast_layout(model: nn.Module, x: Inputs) -> nn.Module:
    """Returns the same network with its frozen 4-D weights channels last, which convolutions read up to twice as fast.

    Only those weights are copied; every other tensor is shared. A network that needs another layout (``view`` of a
    convolution's output), or whose logits for the samples ``x`` differ, is returned as it is.
    """
    frozen = [weight for weight in model.parameters() if weight.ndim == 4 and not weight.requires_grad]
    if not frozen:
        return model
    same: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for weight in frozen:
        laid = weight.detach().clone(memory_format=torch.channels_last)
        same[id(weight)] = nn.Parameter(laid, requires_grad=False)
    try:
        laid_out = copy.deepcopy(model, same)
        with evaluating(model):
            alike = torch.allclose(call_model(laid_out, x), call_model(model, x), rtol=1e-4, atol=1e-5)
    except Exception:  # the model cannot be copied, or needs another layout
        return model
    return laid_out if alike else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs the block without gradients, the model in eval mode; every module gets its own mode back afterwards."""
    with in_eval_mode(model), torch.no_grad():
        yield


def check_labels(labels: Tensor, classes: int, source: str) -> None:
    """Raises DataError unless every label is in 0..``classes``-1 and at least two classes are present."""
    bad = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        what = "none" if int(labels[first]) == UNLABELLED else int(labels[first])
        raise DataError(
            f"{source}: expected labels from 0 to {classes - 1}, got {what} for sample {first}, the first of "
            f"{len(bad)} such. Relabel these samples or leave them out."
        )
    if len(labels.unique()) < 2:
        raise DataError(
            f"{source}: expected samples of at least two classes, got only class {int(labels[0])}. "
            f"Use one sub-folder a class, or name the label column."
        )
