"""What A says of a data set, computed once for every baseline that asks: its logits, and the features behind them."""

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from petm._internal.progress import track
from petm.data.base import Data, as_data
from petm.errors import DataError, ModelError
from petm.models.loading import call_model, share_weights
from petm.models.penultimate import LastLinear
from petm.models.prediction import (
    BATCH_SIZE,
    batches,
    check_labels,
    device_of,
)
from petm.training.error_set import ErrorSet

REMEDY = "Use baselines that need no features."


@dataclass(frozen=True, eq=False)
class _Answers:
    logits: Tensor
    features: Tensor | None
    fault: str
    seconds: float


class Seen:
    """A data set as A sees it. The one pass over the data is run when its first result is asked for, and kept.

    The features are the input of the linear layer that A calls last, which for most classifiers is what the head sees.
    A is run as a second structure over its own weights (`share_weights`), so nothing is ever hooked into
    A itself. Memory: ``4 N (K + D)`` bytes.

    Args:
        model: A.
        data: ``N`` samples, labelled where a baseline is fitted on them; or whatever `petm.data.base.as_data` takes.
        batch_size: Samples in one forward pass.

    Raises:
        DataError: There is no sample.
    """

    def __init__(self, model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE) -> None:
        self.model, self.data, self.batch_size = model, as_data(data), batch_size
        if not len(self):
            raise DataError(f"{self.data.source}: expected at least one sample, got none.")

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Seen({len(self)} samples of {self.data.source})"

    @property
    def logits(self) -> Tensor:
        """A's logits, float32 ``(N, K)`` on the CPU."""
        return self._answers.logits

    @property
    def features(self) -> Tensor:
        """What enters A's last linear layer, float32 ``(N, D)`` on the CPU.

        Raises:
            ModelError: A has no linear layer, or the last one does not take one row of features a sample.
        """
        if self._answers.features is None:
            raise ModelError(self._answers.fault)
        return self._answers.features

    @property
    def seconds(self) -> float:
        """How long the pass over the data took."""
        return self._answers.seconds

    @cached_property
    def predicted(self) -> Tensor:
        """The class ``c`` that A predicts, int64 ``(N,)``."""
        return self.logits.argmax(1)

    @cached_property
    def labels(self) -> Tensor:
        """The true classes, int64 ``(N,)``.

        Raises:
            DataError: A label is missing or outside 0..K-1, or only one class is present.
        """
        check_labels(self.data.labels, self.logits.shape[1], self.data.source)
        return self.data.labels

    @cached_property
    def wrong(self) -> Tensor:
        """Where A is wrong, bool ``(N,)``."""
        return self.predicted != self.labels

    @property
    def errors(self) -> ErrorSet:
        """The samples that A gets wrong, as `petm.training.error_set.find_errors` gives them."""
        indices = self.wrong.nonzero().flatten()
        return ErrorSet(indices, self.predicted[indices], len(self))

    @cached_property
    def _answers(self) -> _Answers:
        start = time.perf_counter()
        network = share_weights(self.model)
        last = LastLinear(network)
        logits, features, fault = [], [], ""
        with torch.no_grad(), track("answers", len(self)) as progress:
            for inputs, _ in batches(self.data, device_of(network), self.batch_size):
                logits.append(call_model(network, inputs).float().cpu())
                if not fault and (found := last.fault(len(inputs))):
                    fault = f"{found} {REMEDY}"
                if not fault:
                    # A copy: the features may be a view of something much larger, which would stay with them.
                    features.append(last.input.detach().float().cpu().clone())
                progress.advance(len(inputs))
        kept = None if fault else torch.cat(features)
        return _Answers(torch.cat(logits), kept, fault, time.perf_counter() - start)
