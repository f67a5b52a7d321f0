"""The frozen part of a model, computed once: what enters the first adapted layer, and what its base weights make of it.

Where the adapted layers start late, most of a training step would repeat the same numbers. They are computed in one
pass over the data instead, and the adapter trains on them: the rest of the model runs as it is, on features put in
place of what its own prefix would compute, while that prefix runs on an empty batch.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from math import prod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from petm._internal.distributed import group
from petm._internal.files import fingerprint
from petm._internal.progress import track
from petm._internal.spill import RowStore, give_back_blocks
from petm.adapter.lora import AdaptedLayer
from petm.adapter.model import AdaptedModel
from petm.adapter.passes import Arguments, Pass
from petm.adapter.split_point import APART, AROUND, BEFORE, INSIDE, Place, SplitPoint, map_tensors, split_point_of
from petm.data.base import Data
from petm.data.fields import Fields, Inputs, concatenate, length_groups, lengths_of, paddings, trimmed, width_of
from petm.errors import ArgumentError, ModelError
from petm.models.answers import reading_of
from petm.models.loading import ADDED, share_weights
from petm.models.prediction import BATCH_SIZE, Precision, batches_by_length, device_of, in_fast_layout, own_share

LEAST_SHARE = 0.1
"""Features that spare less than this share of the base model's operations are not worth their memory."""

LEAST_OPERATIONS = 50
"""Features that spare fewer operations for each number that they hold take longer to read than to compute."""

_PROBE = 4
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _PrefixDone(Exception):  # noqa: N818 - it is no error: it ends a pass whose purpose is fulfilled
    """Ends a pass at the split_point."""


class _Prefix(Pass):
    """Runs up to the split point and keeps what crosses it: features, and what the base weights there make of them."""

    def __init__(self, split_point: SplitPoint, n: int) -> None:
        super().__init__()
        self.split_point, self.n = split_point, n
        self.crossing: list[tuple[Place, Tensor]] = []

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.split_point.kind in (BEFORE, AROUND) and module == self.split_point.module:
            map_tensors(arguments, self._keep)
            raise _PrefixDone
        return arguments

    def _keep(self, place: Place, tensor: Tensor) -> Tensor:
        paths = self.split_point.repeated.get(self.split_point.module, (place,))
        if tensor.ndim and tensor.shape[0] == self.n and place in paths:  # others, such as positions, stay
            self.crossing.append((place, tensor))
        return tensor

    def adapted_layer(self, layer: AdaptedLayer, x: Tensor, base: Tensor) -> Tensor:
        self.crossing += ((("features",), x), (("base",), base))
        raise _PrefixDone


class _FromFeatures(Pass):
    """Puts what crosses the split point in its place, whatever the prefix may have computed.

    What goes round the split point into later modules is put in its place there too, if it is one of the very tensors
    that cross the split point: every block of a transformer is given the same attention mask. Else features do not
    suffice, which a KeyError says.
    """

    def __init__(self, split_point: SplitPoint, crossing: Mapping[Place, Tensor], adapter: str) -> None:
        super().__init__(adapter=adapter)
        self.split_point, self.crossing = split_point, crossing
        self.replaced: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, which lasts as long as they are held

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.split_point.kind == BEFORE and module == self.split_point.module:
            return map_tensors(arguments, self._put)
        paths = self.split_point.repeated.get(module, ())
        return map_tensors(arguments, lambda path, tensor: self.replaced[id(tensor)][1] if path in paths else tensor)

    def _put(self, place: Place, tensor: Tensor) -> Tensor:
        if place not in self.crossing:
            return tensor
        self.replaced[id(tensor)] = tensor, (crossing := self.crossing[place].to(tensor.device))
        return crossing

    def adapted_layer(self, layer: AdaptedLayer, x: Tensor, base: Tensor) -> Tensor:
        if self.split_point.kind != INSIDE or layer.name != self.split_point.module:
            return super().adapted_layer(layer, x, base)
        features, shared = (part.to(base.device) for part in self.crossing.values())
        self.replaced[id(x)] = x, features
        return shared + self.delta(layer, features, self.adapter)


class _AroundFeatures(Pass):
    """Puts what comes out of the shared blocks in its place, while these run on ``idle`` samples to no purpose.

    All else runs on the samples themselves, ``n`` of them, as the model must see the whole batch from its input on.
    """

    def __init__(
        self, split_point: SplitPoint, n: int, idle: int, crossing: Mapping[Place, Tensor], adapter: str
    ) -> None:
        super().__init__(adapter=adapter)
        self.split_point, self.n, self.idle, self.crossing = split_point, n, idle, crossing

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if module in self.split_point.shared:
            return map_tensors(arguments, lambda _, x: x[: self.idle] if x.ndim and x.shape[0] == self.n else x)
        if module != self.split_point.module:
            return arguments
        return map_tensors(arguments, self._put)

    def _put(self, place: Place, tensor: Tensor) -> Tensor:
        return self.crossing.get(place, tensor).to(tensor.device)


class _OutOfBlocks(_AroundFeatures):
    """Notes what comes out of the shared blocks: what follows their few samples."""

    def __init__(self, split_point: SplitPoint, n: int, idle: int) -> None:
        super().__init__(split_point, n, idle, {}, "")
        self.places: set[Place] = set()

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        arguments = super().module_input(module, arguments)
        if module == self.split_point.module:
            raise _PrefixDone
        return arguments

    def _put(self, place: Place, tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[0] == self.idle:
            self.places.add(place)
        return tensor


_INPUT, _DIGITS = "input", 3
"""Place of a field of the input in a row; numbers in one of whole numbers, up to 255 each, which bfloat16 holds."""


def _input_parts(x: Inputs) -> dict[Place, Tensor]:
    """The input as parts of a row, without what is added to modules before the split point."""
    fields = dict(x.items()) if isinstance(x, Fields) else {"": x}
    parts: dict[Place, Tensor] = {}
    for name, tensor in fields.items():
        if name.startswith(ADDED):
            continue
        if tensor.is_floating_point():
            parts[_INPUT, name] = tensor
        else:
            parts |= {(_INPUT, name, digit): tensor.long() >> 8 * digit & 255 for digit in range(_DIGITS)}
    return parts


def _input_of(crossing: Mapping[Place, Tensor]) -> Inputs:
    """The input whose `_input_parts` these are."""
    fields: dict[str, Tensor] = {}
    for (_, name, *digit), part in ((place, part) for place, part in crossing.items() if place[0] == _INPUT):
        fields[str(name)] = fields.get(str(name), 0) + (part << 8 * int(digit[0])) if digit else part
    return fields[""] if "" in fields else Fields(fields)


class _Form(NamedTuple):
    """What crosses the split point of one sample: shape and dtype by place, and what the prefix runs on."""

    parts: dict[Place, tuple[torch.Size, torch.dtype]]
    example: Inputs

    @property
    def width(self) -> int:
        return sum(prod(form) for form, _ in self.parts.values())


class FeatureStudent(nn.Module):
    """The second opinion as a function of features: float32 rows ``(n, F)`` to logits ``(n, K)``.

    A row holds, flattened, all that crosses the split point of one sample and follows the batch. Texts have rows of one
    width for each padded length (`petm.data.fields.padded_lengths`).

    Args:
        adapted: The base model with one adapter, on the input itself.
        x: At least one sample, of which only the form matters.
        idle: How many samples the prefix runs on, to no purpose: best 0.

    Attributes:
        width: ``F``, floats in a row; of texts of the length of ``x``.
    """

    takes_batches: ClassVar[bool] = True
    """Rows are not cast to the base model's own precision on their way in (`petm.models.loading.call_model`)."""

    def __init__(self, adapted: AdaptedModel, x: Inputs, idle: int = 0) -> None:
        super().__init__()
        self.adapted, self.split_point, self._idle = adapted, split_point_of(adapted, x), idle
        example = x[torch.arange(_PROBE).clamp(max=len(x) - 1)]
        self._by_length = lengths_of(x) is not None
        if isinstance(example, Fields) and self._by_length:
            # Some models make no mask for texts without padding: an example has padding wherever it can.
            example = example.masked(torch.ones(len(example)))
        self._example = example
        self._out_of_blocks: set[Place] = set()
        if self.split_point.kind == AROUND:
            noting = _OutOfBlocks(self.split_point, len(example), idle)
            with suppress(_PrefixDone):
                adapted.run(noting, example)
            self._out_of_blocks = noting.places
        self._forms: dict[int, _Form] = {}  # by the length of the texts
        self._of_width: dict[int, _Form] = {}
        self.width = self._form(x).width

    def _form(self, x: Inputs) -> _Form:
        """The form of a row of such samples."""
        length = width_of(x) if isinstance(x, Fields) and self._by_length else 0
        if length not in self._forms:
            example = self._example
            if isinstance(example, Fields) and length:
                example = example.cut(example.place_of(length))
            parts = {place: (part.shape[1:], part.dtype) for place, part in self._crossing(example).items()}
            form = self._forms[length] = _Form(parts, example)
            self._of_width[form.width] = form
        return self._forms[length]

    def numbers(self, data: Data) -> int:
        """Returns the number of floats in the rows of all samples of a data set."""
        groups = [each for each in length_groups(data.lengths, len(data)) if len(each)]
        return sum(len(each) * self.width_for(data.subset(each)) for each in groups)

    def width_for(self, data: Data) -> int:
        """Returns the number of floats in a row of samples of one padded length."""
        x = data.inputs([0])
        return self._form(x if data.lengths is None else trimmed(x)).width

    def forward(self, rows: Tensor) -> Tensor:
        """Returns the second opinion's logits ``(n, K)``."""
        form = self._of_width[rows.shape[1]]
        parts = rows.split([prod(shape) for shape, _ in form.parts.values()], dim=1)
        crossing = {
            # Rows in bfloat16 stand for float32 where training runs in bfloat16; all else comes back as it was.
            place: part.unflatten(1, shape) if dtype == torch.float32 else part.unflatten(1, shape).to(dtype)
            for part, (place, (shape, dtype)) in zip(parts, form.parts.items(), strict=True)
        }
        (member,) = self.adapted.members
        if self.split_point.kind == AROUND:
            x = _input_of(crossing)
            return self.adapted.run(
                _AroundFeatures(self.split_point, len(rows), self._idle, crossing, member.adapter), x
            )
        running = _FromFeatures(self.split_point, crossing, member.adapter)
        return self.adapted.run(running, form.example[: self._idle].to(rows.device), rows=len(rows))

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Freezes the base model in the block, as `AdaptedModel.learning` does."""
        with self.adapted.learning():
            yield

    def alone(self, adapter: str) -> "FeatureStudent":
        """Returns the student with another adapter, on the same rows; from here on that adapter alone learns."""
        other = copy.copy(self)
        other._modules = {"adapted": self.adapted.alone(adapter)}
        return other

    def rows(self, x: Inputs) -> Tensor:
        """Returns the rows ``(n, F)`` of samples."""
        form = self._form(x)
        seen = concatenate([x, form.example[:1]]) if self._by_length else x
        crossing = self._crossing(seen)
        home = device_of(self)
        return torch.cat([crossing[place][: len(x)].flatten(1).to(home) for place in form.parts], dim=1)

    def _crossing(self, x: Inputs) -> dict[Place, Tensor]:
        prefix = _Prefix(self.split_point, len(x))
        with suppress(_PrefixDone):
            self.adapted.run(prefix, x)
        crossing = dict(prefix.crossing)
        if self.split_point.kind != AROUND:
            return crossing
        return {place: part for place, part in crossing.items() if place in self._out_of_blocks} | _input_parts(x)


class _Rows(Data):
    """Samples by their features.

    Args:
        data: The samples.
        stores: float32 or bfloat16 ``(n, F)`` each, the rows of a group of samples of one padded length.
        groups: int64 ``(n,)`` each, the positions of each group among this process's share of the samples.
        layer: The layer that the features enter.
    """

    def __init__(self, data: Data, stores: Sequence[RowStore], groups: Sequence[Tensor], layer: str) -> None:
        self.data, self.stores, self.layer = data, stores, layer
        self.labels, self.classes, self.source, self.lengths = data.labels, data.classes, data.source, data.lengths
        self.value_range = (-float("inf"), float("inf"))
        self.count = group().count if group().shares(len(data)) else 1
        self.home = torch.arange(len(data)) % self.count if self.count > 1 else None
        self._place = torch.empty(sum(map(len, groups)), 2, dtype=torch.int64)
        for store, positions in enumerate(groups):
            self._place[positions] = torch.stack(
                (torch.full((len(positions),), store), torch.arange(len(positions))), 1
            )

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns ``(n, F)``: the rows at ``indices``, in that order; of several processes each has its own.

        Raises:
            ArgumentError: They are of texts of several padded lengths.
        """
        stores, rows = self._place[torch.as_tensor(indices, dtype=torch.int64) // self.count].unbind(1)
        if len(found := stores.unique()) > 1:
            raise ArgumentError("indices: expected texts of one padded length, got several. Batch them by length.")
        return self.stores[int(found[0]) if len(found) else 0].read(rows)

    def write(self, positions: Tensor, rows: Tensor) -> None:
        """Keeps the rows of successive samples of a group, at int64 ``(n,)`` positions of this process's share."""
        store, start = self._place[positions[0]].tolist()
        self.stores[store].write(start, rows)

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the samples' content and the layer."""
        return fingerprint((self.data.content, self.layer))


@contextmanager
def cached_features(
    adapted: AdaptedModel, data: Data, *, budget: int, precision: Precision = "float32"
) -> Iterator[tuple["AdaptedModel | FeatureStudent", Data]]:
    """Yields what to train, and on what: the adapter on cached features where that is possible and pays.

    The features are what crosses the split point of both opinions (`split_point`). The adapted model and the data
    themselves are yielded where features spare little (the adapter starts at the input), take longer to read than to
    compute, or are not all that the rest of the model needs. That they suffice is proven by comparison on a few
    samples. Either way convolutions run in the layout that is fast for them.

    Args:
        adapted: The base model with its adapters, the first of which is set to learn; ``alone`` of what is yielded sets
            another.
        data: ``N`` samples.
        budget: Bytes of memory for the features; larger ones go into a temporary file (`RowStore`), removed at
            the end. 0 caches nothing.
        precision: In which the features are held; bfloat16 takes half the memory, for a training in bfloat16.

    Raises:
        ArgumentError: No member of the adapted model has an adapter.
        RunError: The folder for temporary files has no space for the features.
    """
    if not adapted.adapters:
        raise ArgumentError(
            "adapted: expected a member with an adapter to train, got views of the model alone. They need no training."
        )
    x = data.inputs(range(min(_PROBE, len(data)))).to(device_of(adapted))
    fast, student = prepare_student(adapted, x, budget)
    if student is None:
        yield fast, data
        return
    own = own_share(data)
    groups, left = length_groups(own.lengths, len(own)), budget
    with ExitStack() as stack:
        stores = []
        for positions in groups:
            width = student.width_for(own.subset(positions)) if len(positions) else student.width
            stores.append(RowStore(len(positions), width, _DTYPES[precision], budget=left))
            stack.callback(stores[-1].close)
            left -= stores[-1].held_bytes
        give_back_blocks()
        held = _Rows(data, stores, groups, student.split_point.module)
        with torch.no_grad(), track("features", len(own)) as progress:
            for positions, (inputs, _) in batches_by_length(own, device_of(adapted), BATCH_SIZE):
                held.write(positions, student.rows(inputs))
                progress.advance(len(inputs))
        give_back_blocks()
        yield student, held


def prepare_student(adapted: AdaptedModel, x: Inputs, budget: int) -> tuple[AdaptedModel, FeatureStudent | None]:
    """Returns what the first adapter can be trained in: the whole model, and the part behind the prefix features.

    There is no such part where features do not suffice or do not pay.

    Args:
        adapted: The base model with its adapters.
        x: Some samples, on the model's device.
        budget: Bytes for the features; 0 caches nothing.
    """
    split_point_of(adapted, x)  # found once, for the copy too
    with suppress(ModelError):  # a model that cannot be copied is used as it is
        shared = share_weights(adapted.base)
        if (laid_out := in_fast_layout(shared, x)) is not shared:
            adapted = adapted.over(laid_out)
    fast = adapted.alone(adapted.adapters[0])
    split_point = split_point_of(fast, x)
    by_length = reading_of(adapted.base).by_length  # rows of features have one length
    if budget <= 0 or by_length or split_point.kind == APART or split_point.share_before < LEAST_SHARE:
        return fast, None
    student = _student(fast, x)
    if student is None or split_point.share_before * split_point.operations < LEAST_OPERATIONS * student.width:
        return fast, None
    return fast, student


def _student(adapted: AdaptedModel, x: Inputs) -> FeatureStudent | None:
    """The student on features, or None where these do not suffice."""
    for idle in (0, 1):  # some networks cannot take an empty batch
        try:
            with torch.no_grad():
                student = FeatureStudent(adapted, x, idle)
                forms = (x, trimmed(x), *paddings(x)) if lengths_of(x) is not None else (x,)
                if all(torch.allclose(student(student.rows(x)), adapted(x), rtol=1e-4, atol=1e-5) for x in forms):
                    return student
        except Exception:  # whatever a model that needs more than the features raises
            continue
    return None
