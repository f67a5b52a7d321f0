"""The frozen part of a model, computed once: what enters the first adapted layer, and what its base weights make of it.

Where the adapted layers start late, most of a training step would repeat the same numbers. They are computed in one
pass over the data instead, and the adapter trains on them: the rest of the model runs as it is, on features put in
place of what its own prefix would compute, while that prefix runs on an empty batch.
"""

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from petm.adapter import AdaptedModel
from petm.data import Batch, Data
from petm.errors import ArgumentError, RunError
from petm.files import fingerprint
from petm.inference import BATCH_SIZE, Precision, batches, device_of, in_fast_layout
from petm.models import call_model
from petm.parting import APART, BEFORE, INSIDE, Parting, Place, map_tensors, parting_of
from petm.passes import Arguments, Pass
from petm.progress import track

LEAST_SHARE = 0.1
"""Features that spare less than this share of A's operations are not worth their memory."""

MOST_WIDTH = 32
"""Features that hold more than so many times the numbers of an input take longer to read than to compute."""

_PROBE = 4
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _PrefixDone(Exception):  # noqa: N818 - it is no error: it ends a pass whose purpose is fulfilled
    """Ends a pass at the parting."""


class _Prefix(Pass):
    """Runs up to the parting and keeps what crosses it: features, and what the base weights there make of them."""

    def __init__(self, parting: Parting) -> None:
        super().__init__()
        self.parting = parting
        self.crossing: list[Tensor] = []

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.parting.kind == BEFORE and module == self.parting.module:
            map_tensors(arguments, self._keep)
            raise _PrefixDone
        return arguments

    def _keep(self, _: Place, tensor: Tensor) -> Tensor:
        self.crossing.append(tensor)
        return tensor

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        self.crossing += (x, layer.base_layer(x))
        raise _PrefixDone


class _FromFeatures(Pass):
    """Puts what crosses the parting in its place, whatever the prefix may have computed."""

    def __init__(self, parting: Parting, crossing: Sequence[Tensor], adapter: str) -> None:
        super().__init__(adapter=adapter)
        self.parting, self.crossing = parting, crossing

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.parting.kind != BEFORE or module != self.parting.module:
            return arguments
        ready = iter(self.crossing)
        replaced: Arguments = map_tensors(arguments, lambda _, __: next(ready))
        return replaced

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        if self.parting.kind != INSIDE or name != self.parting.module:
            return super().adapted_layer(name, layer, x)
        features, shared = self.crossing
        return shared + self.delta(layer, features, self.adapter)


class FeatureStudent(nn.Module):
    """The second opinion as a function of features: float32 rows ``(n, F)`` to logits ``(n, K)``.

    A row holds, flattened, all that crosses the parting of one sample.

    Args:
        adapted: A with one adapter that looks at the input itself.
        x: At least one sample, of which only the form matters.
        idle: What the prefix runs on, to no purpose: best an empty batch.

    Attributes:
        width: ``F``, floats in a row.
    """

    def __init__(self, adapted: AdaptedModel, x: Tensor, idle: Tensor) -> None:
        super().__init__()
        self.adapted, self.parting = adapted, parting_of(adapted, x)
        self.register_buffer("_idle", idle.clone(), persistent=False)
        self._forms = [tensor.shape[1:] for tensor in self._crossing(x[:1])]
        self.width = sum(map(prod, self._forms))

    def forward(self, rows: Tensor) -> Tensor:
        """Returns the second opinion's logits ``(n, K)``."""
        parts = rows.split([prod(form) for form in self._forms], dim=1)
        crossing = [part.unflatten(1, form) for part, form in zip(parts, self._forms, strict=True)]
        (member,) = self.adapted.members
        with _FromFeatures(self.parting, crossing, member.adapter).under_way():
            return call_model(self.adapted.network, self.get_buffer("_idle"), rows=len(rows))

    def alone(self, adapter: str) -> "FeatureStudent":
        """Returns the student with another adapter, on the same rows; from here on that adapter alone learns."""
        other = copy.copy(self)
        other._modules = {"adapted": self.adapted.alone(adapter)}
        return other

    def rows(self, x: Tensor) -> Tensor:
        """Returns the rows ``(n, F)`` of samples."""
        return torch.cat([tensor.flatten(1) for tensor in self._crossing(x)], dim=1)

    def _crossing(self, x: Tensor) -> list[Tensor]:
        prefix = _Prefix(self.parting)
        with suppress(_PrefixDone), prefix.under_way():
            self.adapted.network(x)
        return prefix.crossing


class _Rows(Data):
    """Samples by their features.

    Args:
        data: The samples.
        rows: float32 or bfloat16 ``(N, F + O)``.
        layer: The layer that the features enter.
    """

    def __init__(self, data: Data, rows: Tensor, layer: str) -> None:
        self.data, self.rows, self.layer = data, rows, layer
        self.labels, self.classes, self.source = data.labels, data.classes, data.source
        self.value_range = (-float("inf"), float("inf"))

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns ``(n, F + O)``: the rows at ``indices``, in that order."""
        return self.rows[torch.as_tensor(indices, dtype=torch.int64)]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return Batch(self.inputs(indices), self.labels[torch.as_tensor(indices, dtype=torch.int64)])

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the samples' content and the layer."""
        return fingerprint((self.data.content, self.layer))


@contextmanager
def cached_features(
    adapted: AdaptedModel,
    data: Data,
    *,
    budget: int,
    folder: str | Path | None = None,
    precision: Precision = "float32",
) -> Iterator[tuple["AdaptedModel | FeatureStudent", Data]]:
    """Yields what to train, and on what: the adapter on cached features where that is possible and pays.

    The features are what crosses the parting of both opinions (`petm.parting`). The adapted model and the data
    themselves are yielded where features spare little (the adapter starts at the input), are much larger than the
    inputs, or are not all that the rest of the model needs (an attention mask goes round them). That they suffice is
    proven by comparison on a few samples. Either way convolutions run in the layout that is fast for them.

    Args:
        adapted: A with its adapters, the first of which is set to learn; ``alone`` of what is yielded sets another.
        data: ``N`` samples.
        budget: Bytes of memory for the features; larger ones go into a memory-mapped file, removed at the end. 0
            caches nothing.
        folder: Where that file goes; absent takes the system's folder for temporary files.
        precision: In which the features are held; bfloat16 takes half the memory, for a training in bfloat16.

    Raises:
        ArgumentError: No member of the adapted model has an adapter.
        RunError: The folder has no space for the file.
    """
    if not adapted.adapters:
        raise ArgumentError(
            "adapted: expected a member with an adapter to train, got views of A alone. They need no training."
        )
    x = data.inputs(range(min(_PROBE, len(data)))).to(device_of(adapted))
    adapted.unfreeze()  # what is frozen in this moment may be copied
    fast = cast(AdaptedModel, in_fast_layout(adapted, x)).alone(adapted.adapters[0])
    parting = parting_of(fast, x)
    if budget <= 0 or parting.kind == APART or parting.repeated or parting.share_before < LEAST_SHARE:
        yield fast, data
        return
    student = _student(fast, x)
    if student is None or student.width > MOST_WIDTH * x[0].numel():
        yield fast, data
        return
    with _storage(len(data), student.width, budget, folder, _DTYPES[precision]) as rows:
        start = 0
        with torch.no_grad(), track("features", len(data)) as progress:
            for inputs, _ in batches(data, device_of(adapted), BATCH_SIZE):
                rows[start : start + len(inputs)] = student.rows(inputs)
                start += len(inputs)
                progress.advance(len(inputs))
        yield student, _Rows(data, rows, parting.module)


def _student(adapted: AdaptedModel, x: Tensor) -> FeatureStudent | None:
    """The student on features, or None where these do not suffice."""
    for idle in (x[:0], x[:1]):  # some networks cannot take an empty batch
        try:
            with torch.no_grad():
                student = FeatureStudent(adapted, x, idle)
                if torch.allclose(student(student.rows(x)), adapted(x), rtol=1e-4, atol=1e-5):
                    return student
        except Exception:  # whatever a model that needs more than the features raises
            continue
    return None


@contextmanager
def _storage(samples: int, width: int, budget: int, folder: str | Path | None, dtype: torch.dtype) -> Iterator[Tensor]:
    """Room for ``(N, width)``: in memory within the budget, else in a file that is removed afterwards."""
    size = dtype.itemsize * samples * width
    if size <= budget:
        yield torch.empty(samples, width, dtype=dtype)
        return
    place = Path(folder or tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=place, prefix="petm-features-"))
            # Reserved at once: a mapped file that runs out of space later would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise RunError(
                f"{place}: expected room for {size:,} bytes of features, got {error.strerror}. Free space, name "
                f"another cache_folder, or raise cache_budget to keep them in memory."
            ) from error
        yield torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(dtype).view(samples, width)
