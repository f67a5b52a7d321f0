"""Where the streams of both opinions separate: as late as is safe, found by trials and proven by comparison.

Before the split point all opinions are one computation on ``N`` samples. Behind it they run as one batch through the
base weights, the base model's rows first, then those of the ensemble members, and each member's adapter is added to its
own rows only. Members that see a view of the input share nothing with them, and run in passes of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from petm._internal.operations import count_operations, time_ratio
from petm._internal.records import Record
from petm.adapter.lora import AdaptedLayer
from petm.adapter.model import AdaptedModel, Member
from petm.adapter.passes import Arguments, Pass
from petm.data.fields import Fields, Inputs, paddings, tensors_of
from petm.data.views import SAME
from petm.errors import BundleError, ModelError
from petm.models.answers import reading_of, same_length

Place = tuple[int | str, ...]
"""How a tensor is reached among the arguments of a module."""

INSIDE, BEFORE, AROUND, APART = "inside", "before", "around", "apart"
_T = TypeVar("_T")
_finding = Lock()
_PROBES = (3, 5)
"""Two batch sizes, so that what follows the batch is told from what has such a size by chance."""


@dataclass(frozen=True)
class SplitPoint:
    """Where the streams separate.

    Attributes:
        kind: ``inside`` the first adapted layer, behind its base weights; ``before`` a module; ``around`` blocks that
            are run once, for a model that must see the whole batch from its input on; or ``apart``: two separate
            passes, for a model that mixes the samples of a batch.
        module: The name of that layer or module in the base model; empty for the whole model, which is its input.
        shared: Where they separate around blocks, the names of these, up to ``module``.
        repeated: Arguments that follow the batch into modules, by module: an attention mask, say.
        share_before: Share of the base model's operations that are computed once for both opinions, in [0, 1].
        counted_ratio: Operations of all opinions over those of the base model alone, at least 1.
        operations: Of the base model alone, for one sample; 0 where none were counted.
    """

    kind: str
    module: str = ""
    shared: tuple[str, ...] = ()
    repeated: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    share_before: float = 0.0
    counted_ratio: float = 2.0
    operations: float = 0.0

    @property
    def asked(self) -> set[str]:
        """The modules whose arguments change in one pass."""
        ends = {BEFORE: {self.module}, AROUND: {"", self.module}}
        return {*self.repeated, *self.shared, *ends.get(self.kind, ())}


def from_json(record: Record) -> SplitPoint:
    """Returns the split point that a bundle holds in JSON's types.

    Raises:
        BundleError: An entry breaks its rule.
    """
    kind, repeated = record.text("kind"), record.record("repeated")
    if kind not in (INSIDE, BEFORE, AROUND, APART):
        raise BundleError(f"{record.place}, kind: expected inside, before, around or apart, got {kind!r}.")
    return SplitPoint(
        kind,
        record.text("module"),
        record.texts("shared"),
        {module: tuple(map(_place, repeated.sequence(module))) for module in repeated.content},
        record.number("share_before", least=0, most=1),
        record.number("counted_ratio", least=1),
        record.number("operations", least=0),
    )


def _place(path: object) -> Place:
    if not isinstance(path, list) or not all(isinstance(step, int | str) for step in path):
        raise BundleError(f"split_point, repeated: expected lists of names and positions, got {path!r:.60}.")
    return tuple(path)


class OnePass(Pass):
    """All opinions in one pass over ``n`` samples.

    Args:
        n: Samples.
        split_point: Where the streams separate.
        members: Who gives the second opinion on the input itself.
    """

    def __init__(self, n: int, split_point: SplitPoint, members: Sequence[Member]) -> None:
        super().__init__()
        self.n, self.split_point, self.members = n, split_point, members
        self.separated = False

    def adapted_layer(self, layer: AdaptedLayer, x: Tensor, base: Tensor) -> Tensor:
        """Adds each adapter's part to its member's rows, in place; where the streams separate, the rows begin here.

        Each sum is written once, where it belongs: on large feature maps a pass over memory costs as much as a
        convolution.
        """
        n = self._rows_of_one(layer, base)
        if self.separated:
            for place, member in enumerate(self.members, 1):
                if member.adapter:
                    rows = slice(place * n, (place + 1) * n)
                    self._add(layer, member.adapter, base[rows], x[rows])
            return base
        self.separated = True
        if base.ndim == 2 or torch.compiler.is_exporting():
            return torch.cat((base, *(self._sum(layer, each.adapter, base, x) for each in self.members)))
        every = _room(base, 1 + len(self.members))
        every[:n] = base
        for place, member in enumerate(self.members, 1):
            out = every[place * n : (place + 1) * n]
            if member.adapter:
                torch.add(base, self.delta(layer, x, member.adapter), out=out)
            else:
                out.copy_(base)
        return every

    def _rows_of_one(self, layer: AdaptedLayer, base: Tensor) -> int:
        """Rows of one opinion in a layer's output: a multiple of ``n`` where a sample has several, such as windows.

        What has none, such as embeddings of positions, which all opinions share, cannot be another one for each.
        """
        streams = 1 + len(self.members) if self.separated else 1
        if not torch.compiler.is_exporting() and base.shape[0] % (streams * self.n):
            raise ModelError(f"model: expected rows of {self.n} samples in {layer.name}, got {tuple(base.shape)}.")
        return base.shape[0] // streams

    def _sum(self, layer: AdaptedLayer, adapter: str, base: Tensor, x: Tensor) -> Tensor:
        return layer.adapters[adapter].sum(base, x) if adapter else base

    def _add(self, layer: AdaptedLayer, adapter: str, base: Tensor, x: Tensor) -> None:
        layer.adapters[adapter].add_(base, x)

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        """Repeats what follows the batch, at the split point and later; blocks that run once get the first ``n`` rows.

        Around blocks, what the model does beside them, such as finding the last token of each text, then fits their
        output. Only what has followed the batch in every trial changes: other tensors may have its size by chance.
        """
        point, rows, change = self.split_point, self.n, self._repeat
        paths = point.repeated.get(module)
        if point.kind == AROUND and module in point.shared:
            rows, change = (1 + len(self.members)) * self.n, self._cut
        elif point.kind == AROUND and module in ("", point.module):
            self.separated = module != ""
        elif point.kind == BEFORE and module == point.module and not self.separated:
            self.separated = True
        elif point.kind != AROUND and self.separated:
            paths = paths or ()
        else:
            return arguments

        def changed(path: Place, tensor: Tensor) -> Tensor:
            follows = tensor.ndim and tensor.shape[0] == rows and self._follows(module, path, paths)
            return change(tensor) if follows else tensor

        return map_tensors(arguments, changed)

    def _follows(self, module: str, path: Place, paths: tuple[Place, ...] | None) -> bool:
        """Whether an argument of the batch's size is of the batch; bundles of earlier versions have no paths for it.

        In a graph no size is that by chance, and models make masks there that they do without elsewhere.
        """
        return torch.compiler.is_exporting() or paths is None or path in paths

    def _cut(self, tensor: Tensor) -> Tensor:
        return tensor[: self.n]

    def _repeat(self, tensor: Tensor) -> Tensor:
        return tensor.repeat(1 + len(self.members), *[1] * (tensor.ndim - 1))


def _room(base: Tensor, times: int) -> Tensor:
    """An uninitialised batch of so many times the size, in the same layout of memory."""
    layout = torch.contiguous_format
    if base.ndim == 4 and not base.is_contiguous() and base.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    shape = (times * base.shape[0], *base.shape[1:])
    return torch.empty(shape, dtype=base.dtype, device=base.device, memory_format=layout)


class _Marked(Pass):
    """A pass that makes an untrained adapter count, by a mark on its output."""

    def delta(self, layer: AdaptedLayer, x: Tensor, adapter: str) -> Tensor:
        part = super().delta(layer, x, adapter)
        return part + _pattern(part, adapter)


class _Trial(_Marked, OnePass):
    """A one pass on a probe, which notes what still follows the single batch."""

    def __init__(self, n: int, split_point: SplitPoint, members: Sequence[Member], *, note: bool = True) -> None:
        super().__init__(n, split_point, members)
        self.note = note
        self.found: set[tuple[str, Place]] = set()

    def _sum(self, layer: AdaptedLayer, adapter: str, base: Tensor, x: Tensor) -> Tensor:
        return (base + self.delta(layer, x, adapter)).to(base.dtype) if adapter else base

    def _add(self, layer: AdaptedLayer, adapter: str, base: Tensor, x: Tensor) -> None:
        base.add_(self.delta(layer, x, adapter))

    def _follows(self, module: str, path: Place, paths: tuple[Place, ...] | None) -> bool:
        if self.note:
            self.found.add((module, path))
        return self.note or super()._follows(module, path, paths)


class _Calls(Pass):
    """Notes the modules that are entered up to the first adapted layer."""

    def __init__(self) -> None:
        super().__init__(adapter="")
        self.modules: list[str] = []
        self.first: str | None = None

    def adapted_layer(self, layer: AdaptedLayer, x: Tensor, base: Tensor) -> Tensor:
        self.first = self.first or layer.name
        return super().adapted_layer(layer, x, base)

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.first is None and module not in self.modules:
            self.modules.append(module)
        return arguments


def split_point_of(adapted: AdaptedModel, x: Inputs) -> SplitPoint:
    """Returns where the opinions of a model separate, which is found with samples ``x`` when first asked for.

    Args:
        adapted: The base model with its adapter.
        x: At least one sample.

    Raises:
        ModelError: The model cannot take ``x``.
    """
    if adapted.split_point is None:
        with _finding:
            if adapted.split_point is None:
                known = adapted.remembered
                adapted.take_split_point(known if known and holds(adapted, known, x) else find_split_point(adapted, x))
    assert adapted.split_point is not None
    return adapted.split_point


def find_split_point(adapted: AdaptedModel, x: Inputs) -> SplitPoint:
    """Returns the latest safe split point for a model, proven on probes made of the samples ``x``.

    Tried in turn: inside the first adapted layer, behind its base weights; before that layer; before each module
    entered earlier, the latest first, and if it is one of a list of blocks, around the blocks up to it; at the input.
    A split point is safe where the one pass gives the logits of separate passes, at two batch sizes, with an adapter
    that is made to matter. A skip connection across it, a reshape to a fixed batch size or another surprise fails that
    test, and an earlier point is tried. A model that mixes the samples of a batch fails it everywhere, and its opinions
    are computed in passes of their own.

    Args:
        adapted: The base model with its adapter.
        x: At least one sample, as the model takes them.

    Raises:
        ModelError: The model cannot take ``x``.
    """
    x = same_length(adapted.base, x)
    apart = SplitPoint(APART, counted_ratio=1.0 + len(adapted.members))
    if not joint_members(adapted):
        return apart
    with torch.no_grad(), adapted.hooks.asking(_modules(adapted)) as asked:
        calls = _Calls()
        adapted.run(calls, x, asked=asked)
        candidates = [SplitPoint(INSIDE, calls.first)] if calls.first is not None else []
        for module in (name for name in reversed(calls.modules) if name):
            candidates.append(SplitPoint(BEFORE, module))
            if shared := _earlier_blocks(adapted.base, module, calls.modules):
                candidates.append(SplitPoint(AROUND, module, shared))
        candidates.append(SplitPoint(BEFORE))
        for candidate in candidates:
            proven = _prove(adapted, candidate, x, asked)
            if proven is not None:
                return _count(adapted, proven, x, asked)
    return apart


def joint_members(adapted: AdaptedModel) -> tuple[Member, ...]:
    """Returns the members of the one pass: those that see the input itself."""
    return tuple(member for member in adapted.members if member.view == SAME)


def holds(adapted: AdaptedModel, split_point: SplitPoint, x: Inputs) -> bool:
    """Returns whether a split point that was found earlier, and saved, still gives what separate passes do.

    Args:
        adapted: The base model with its adapter.
        split_point: The split point.
        x: At least one sample.
    """
    if split_point.kind == INSIDE and split_point.module not in adapted.ranks:
        return False
    try:
        modules = {adapted.base.get_submodule(name): name for name in split_point.asked}
        forms = _forms(adapted, same_length(adapted.base, x), _PROBES[:1])
        with torch.no_grad(), adapted.hooks.asking(modules) as asked:
            return split_point.kind == APART or all(
                _agrees(adapted, split_point, probe, asked) for probes in forms for probe in probes
            )
    except Exception:  # whatever a model raises whose streams cannot separate there
        return False


def _earlier_blocks(network: nn.Module, module: str, called: Sequence[str]) -> tuple[str, ...]:
    """The blocks of one list that are entered before this one of them."""
    parent = module.rpartition(".")[0]
    if not isinstance(network.get_submodule(parent), nn.ModuleList | nn.Sequential):
        return ()
    before = called[: called.index(module)]
    return tuple(name for name in before if name.rpartition(".")[0] == parent and name != parent)


def _modules(adapted: AdaptedModel) -> dict[nn.Module, str]:
    """All modules of the base model by name, without what lies inside of its adapted layers."""
    within = tuple(f"{layer}." for layer in adapted.ranks)
    return {module: name for name, module in adapted.base.named_modules() if not name.startswith(within)}


def _prove(
    adapted: AdaptedModel, candidate: SplitPoint, x: Inputs, asked: Mapping[nn.Module, str]
) -> SplitPoint | None:
    """The candidate with what else must be repeated, or None where it is not safe."""
    followers: set[tuple[str, Place]] = set()
    try:
        forms = _forms(adapted, x, _PROBES)
        for probes in forms:
            trials = [_Trial(len(probe), candidate, joint_members(adapted)) for probe in probes]
            for trial, probe in zip(trials, probes, strict=True):
                adapted.run(trial, probe, rows=(1 + len(trial.members)) * trial.n, asked=asked)
            followers |= set.intersection(*(trial.found for trial in trials))
        repeated: dict[str, tuple[Place, ...]] = dict.fromkeys(sorted(candidate.asked), ())
        for module, path in sorted(followers, key=repr):
            repeated[module] = (*repeated.get(module, ()), path)
        proven = replace(candidate, repeated=repeated)
        if all(_agrees(adapted, proven, probe, asked) for probes in forms for probe in probes):
            return proven
    except Exception:  # whatever a model raises whose streams cannot separate there
        return None
    return None


def _agrees(adapted: AdaptedModel, split_point: SplitPoint, probe: Inputs, asked: Mapping[nn.Module, str]) -> bool:
    """Whether one pass gives what separate passes do."""
    trial = _Trial(len(probe), split_point, joint_members(adapted), note=False)
    found = adapted.run(trial, probe, rows=(1 + len(trial.members)) * len(probe), asked=asked)
    expected = torch.cat((adapted.run(Pass(adapter=""), probe, asked={}), *_apart(adapted, probe)))
    # The rounding of another batch size.
    tolerance = 50 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    return torch.allclose(found, expected, rtol=0, atol=tolerance)


def _apart(adapted: AdaptedModel, x: Inputs) -> Iterator[Tensor]:
    """Each member's logits from a pass of its own, with the mark of a trial on its adapter."""
    for member in joint_members(adapted):
        yield adapted.run(_Marked(adapter=member.adapter), x, asked={})


def _count(adapted: AdaptedModel, split_point: SplitPoint, x: Inputs, asked: Mapping[nn.Module, str]) -> SplitPoint:
    """The split point with its counted operations; where none can be counted, with measured times in their place."""
    probe, joint = _probe(x, 2), joint_members(adapted)
    members, views = len(joint), len(adapted.members) - len(joint)

    def plain() -> Tensor:
        return adapted.run(Pass(adapter=""), probe, asked={})

    def one_pass() -> Tensor:
        return adapted.run(OnePass(2, split_point, joint), probe, rows=2 * (1 + members), asked=asked)

    base, every = (count_operations(call, adapted.base) for call in (plain, one_pass))
    if not base:
        return replace(split_point, counted_ratio=time_ratio(one_pass, plain) + views)
    added = count_operations(lambda: list(_apart(adapted, probe)), adapted.base) - members * base
    behind = ((every - added) / base - 1) / members
    return replace(
        split_point,
        share_before=min(1.0, max(0.0, 1 - behind)),
        counted_ratio=every / base + views,
        operations=base / len(probe),
    )


def _forms(adapted: AdaptedModel, x: Inputs, sizes: Sequence[int]) -> list[list[Inputs]]:
    """Probes of all sizes, in each form in which the model may get them: texts with and without padding."""
    probe = _probe(x, max(sizes))
    forms = [probe] if reading_of(adapted.base).by_length else paddings(probe)  # texts by length have none
    return [[form[:size] for size in sizes] for form in forms]


def _probe(x: Inputs, size: int) -> Inputs:
    """``size`` samples made of those in ``x``, no two of them equal: scaled, or for whole numbers rolled; not masks."""
    rows = x[torch.arange(size, device=tensors_of(x)[0].device) % len(x)]
    if isinstance(rows, Tensor):
        return _varied(rows)
    return Fields({name: part if name == "attention_mask" else _varied(part) for name, part in rows.items()})


def _varied(rows: Tensor) -> Tensor:
    if rows.is_floating_point():
        factors = torch.linspace(1, 0.5, len(rows), device=rows.device, dtype=rows.dtype)
        return rows * factors.view(-1, *[1] * (rows.ndim - 1))
    return torch.stack([row.roll(index, -1) if row.ndim else row for index, row in enumerate(rows)])


def _pattern(delta: Tensor, adapter: str) -> Tensor:
    """What a trial adds to an adapter's output: equal for every sample, different for every channel and adapter."""
    channels = delta.shape[1] if delta.ndim == 4 else delta.shape[-1]
    phase = sum(adapter.encode())
    wave = 0.1 * torch.cos(phase + torch.arange(channels, device=delta.device, dtype=delta.dtype))
    return wave.view(-1, 1, 1) if delta.ndim == 4 else wave


def map_tensors(value: _T, change: Callable[[Place, Tensor], Tensor], path: Place = ()) -> _T:
    """Returns ``value`` with every tensor in it, however nested, changed by ``change(path, tensor)``."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(path, value)
    elif isinstance(value, dict):
        changed = {key: map_tensors(entry, change, (*path, key)) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        entries = [map_tensors(entry, change, (*path, index)) for index, entry in enumerate(value)]
        changed = type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return cast(_T, changed)
