"""Where the two opinions part: as late as is safe, which is found by trying and proven by comparing.

Up to the parting all opinions are one computation on ``N`` samples. From there on they run as one batch through the
base weights, A's first, then those of the members of the second opinion, and each member's adapter is added to its own
part only. Members that look at a view of the input part at the input, where the view is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from petm._internal.files import plain
from petm._internal.operations import count_operations
from petm._internal.records import Json, Record
from petm.adapter.lora import AdaptedModel, Member
from petm.adapter.passes import Arguments, Pass, ask_passes
from petm.data.fields import Fields, Inputs, tensors_of
from petm.data.views import SAME
from petm.errors import BundleError
from petm.models.loading import call_model

Place = tuple[int | str, ...]
"""How a tensor is reached among the arguments of a module."""

INSIDE, BEFORE, AROUND, APART = "inside", "before", "around", "apart"
_T = TypeVar("_T")
_finding = Lock()
_PROBES = (3, 5)
"""Two batch sizes, so that what follows the batch is told from what has such a size by chance."""


@dataclass(frozen=True)
class Parting:
    """Where the streams part.

    Attributes:
        kind: ``inside`` the first adapted layer, behind its base weights; ``before`` a module; ``around`` blocks that
            are run once, for a model that must see the whole batch from its input on; or ``apart``: two separate
            passes, for a model that mixes the samples of a batch.
        module: The name of that layer or module in A; empty for A itself, which is its input.
        shared: Where they part around blocks, the names of these, up to ``module``.
        repeated: Other arguments that follow the batch into later modules, by module: an attention mask, say.
        share_before: Share of A's operations that are computed once for both opinions, in [0, 1].
        counted_ratio: Operations of the one pass over those of A alone, at least 1.
        operations: Of A alone, for one sample; 0 where none were counted.
    """

    kind: str
    module: str = ""
    shared: tuple[str, ...] = ()
    repeated: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    share_before: float = 0.0
    counted_ratio: float = 2.0
    operations: float = 0.0


def to_json(parting: Parting) -> dict[str, Json]:
    """Returns a split point in JSON's types."""
    found: dict[str, Json] = plain(parting)
    return found


def from_json(record: Record) -> Parting:
    """Returns the split point that `to_json` has described.

    Raises:
        BundleError: An entry breaks its rule.
    """
    kind, repeated = record.text("kind"), record.record("repeated")
    if kind not in (INSIDE, BEFORE, AROUND, APART):
        raise BundleError(f"{record.place}, kind: expected inside, before, around or apart, got {kind!r}.")
    return Parting(
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
        parting: Where the streams part.
        members: Who gives the second opinion.
    """

    def __init__(self, n: int, parting: Parting, members: Sequence[Member]) -> None:
        super().__init__()
        self.n, self.parting, self.members = n, parting, members
        self.parted = False

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        """Adds each adapter's part to its member's rows, in place; where the streams part, the rows come to be here.

        Each sum is written once, where it belongs: on large feature maps a pass over memory costs as much as a
        convolution.
        """
        base: Tensor = layer.base_layer(x)
        if self.parted:
            for rows, adapter in self._adapted_rows():
                base[rows].add_(self.delta(layer, x[rows], adapter))
            return base
        every = _room(base, 1 + len(self.members))
        every[: self.n] = base
        for rows, adapter in self._adapted_rows():
            torch.add(base, self.delta(layer, x, adapter), out=every[rows])
        self.parted = True
        return every

    def _adapted_rows(self) -> Iterator[tuple[slice, str]]:
        for place, member in enumerate(self.members, 1):
            if member.adapter:
                yield slice(place * self.n, (place + 1) * self.n), member.adapter

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        """Repeats what follows the batch: everything where the streams part, later what has not passed there."""
        if self.parting.kind == AROUND:
            return self._around(module, arguments)
        if not self.parted:
            if self.parting.kind != BEFORE or module != self.parting.module:
                return arguments
            self.parted = True
            return map_tensors(arguments, lambda _, tensor: self._repeat(tensor))
        paths = self.parting.repeated.get(module, ())
        return map_tensors(arguments, lambda path, tensor: self._repeat(tensor) if path in paths else tensor)

    def _around(self, module: str, arguments: Arguments) -> Arguments:
        """Repeats the input, lets the shared blocks see the first ``n`` rows only, and repeats what comes out of them.

        What the model does beside its blocks, such as finding the last token of each text, then fits its output.
        """
        if module in ("", self.parting.module):
            self.parted = module != ""
            return map_tensors(arguments, lambda _, tensor: self._repeat(tensor))
        if module not in self.parting.shared:
            return arguments
        rows = (1 + len(self.members)) * self.n
        return map_tensors(
            arguments, lambda _, tensor: tensor[: self.n] if tensor.ndim and tensor.shape[0] == rows else tensor
        )

    def _repeat(self, tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != self.n:
            return tensor
        return torch.cat((tensor, *(member.look(tensor) for member in self.members)))


def _room(base: Tensor, times: int) -> Tensor:
    """An uninitialised batch of so many times the size, in the same layout of memory."""
    layout = torch.contiguous_format
    if base.ndim == 4 and not base.is_contiguous() and base.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    shape = (times * base.shape[0], *base.shape[1:])
    return torch.empty(shape, dtype=base.dtype, device=base.device, memory_format=layout)


class _Trial(OnePass):
    """A one pass on a probe: makes the untrained adapter count, and notes what still follows the single batch."""

    def __init__(self, n: int, parting: Parting, members: Sequence[Member], *, note: bool = True) -> None:
        super().__init__(n, parting, members)
        self.note = note
        self.found: set[tuple[str, Place]] = set()

    def delta(self, layer: Any, x: Tensor, adapter: str) -> Tensor:
        part = super().delta(layer, x, adapter)
        return part + _pattern(part, adapter)

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.parting.kind == AROUND or not (self.parted and self.note):
            return super().module_input(module, arguments)

        def repeat(path: Place, tensor: Tensor) -> Tensor:
            if tensor.ndim and tensor.shape[0] == self.n:
                self.found.add((module, path))
            return self._repeat(tensor)

        return map_tensors(arguments, repeat)


class _Marked(Pass):
    """One member alone, with the same mark on its adapter as in a trial."""

    def delta(self, layer: Any, x: Tensor, adapter: str) -> Tensor:
        part = super().delta(layer, x, adapter)
        return part + _pattern(part, adapter)


class _Calls(Pass):
    """Notes the modules that are entered up to the first adapted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[str] = []
        self.first: str | None = None

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        self.first = self.first or name
        return super().adapted_layer(name, layer, x)

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.first is None and module not in self.modules:
            self.modules.append(module)
        return arguments


def parting_of(adapted: AdaptedModel, x: Inputs) -> Parting:
    """Returns where the opinions of a model part, which is found with samples ``x`` when first asked for.

    Args:
        adapted: A with its adapter.
        x: At least one sample.

    Raises:
        ModelError: The model cannot take ``x``.
    """
    if adapted.parting is None:
        with _finding:
            if adapted.parting is None:
                with torch.no_grad():
                    parting = _confirmed(adapted, x) or find_parting(adapted, x)
                asked = {*parting.repeated, *parting.shared, *([parting.module] if parting.kind == BEFORE else [])}
                asked |= {"", parting.module} if parting.kind == AROUND else set()
                for name in asked:
                    ask_passes(adapted.network.get_submodule(name), name)
                adapted.parting = parting
    found: Parting = adapted.parting
    return found


def _confirmed(adapted: AdaptedModel, x: Inputs) -> Parting | None:
    """The split point that a bundle remembers, if it is still one: a check of a few passes in place of the search."""
    saved: Parting | None = adapted.remembered
    if saved is None or saved.kind == APART:
        return saved
    known = adapted.ranks if saved.kind == INSIDE else dict(adapted.network.named_modules())
    if not {saved.module, *saved.shared} <= known.keys():
        return None
    proven = _prove(adapted, saved, x)
    return saved if proven is not None and proven.repeated == saved.repeated else None


def find_parting(adapted: AdaptedModel, x: Inputs) -> Parting:
    """Returns the latest safe parting for a model, proven on probes made of the samples ``x``.

    Tried in turn: inside the first adapted layer, behind its base weights; before that layer; before each module
    entered earlier, the latest first; around the blocks of a list, up to that of the first adapted layer; at the input.
    A parting is safe where the one pass gives the logits of
    separate passes, at two batch sizes, with an adapter that is made to matter. A skip connection across the parting,
    a reshape to a fixed batch size or another surprise fails that test, and an earlier point is tried. A model that
    mixes the samples of a batch fails it everywhere, and its opinions are computed apart.

    Args:
        adapted: A with its adapter.
        x: At least one sample, as the model takes them.

    Raises:
        ModelError: The model cannot take ``x``.
    """
    network = adapted.network
    calls = _Calls()
    with _asking_modules(adapted), calls.under_way():
        call_model(network, x)
    candidates = [Parting(INSIDE, calls.first)] if calls.first is not None else []
    candidates += [Parting(BEFORE, module) for module in reversed(calls.modules) if module]
    candidates += [
        Parting(AROUND, module, shared)
        for module in reversed(calls.modules)
        if (shared := _earlier_blocks(network, module, calls.modules))
    ]
    candidates.append(Parting(BEFORE))
    if any(member.view != SAME for member in adapted.members):
        candidates = [Parting(BEFORE)]
    for candidate in candidates:
        proven = _prove(adapted, candidate, x)
        if proven is not None:
            return _count(adapted, proven, x)
    return Parting(APART, counted_ratio=1.0 + len(adapted.members))


def _earlier_blocks(network: nn.Module, module: str, called: Sequence[str]) -> tuple[str, ...]:
    """The blocks of one list that are entered before this one of them."""
    parent = module.rpartition(".")[0]
    if not isinstance(network.get_submodule(parent), nn.ModuleList | nn.Sequential):
        return ()
    before = called[: called.index(module)]
    return tuple(name for name in before if name.rpartition(".")[0] == parent and name != parent)


@contextmanager
def _asking_modules(adapted: AdaptedModel) -> Iterator[None]:
    """Lets all modules but PEFT's own ask the pass under way what to take as arguments, while the block runs."""
    within = tuple(f"{layer}." for layer in adapted.ranks)
    handles = [
        ask_passes(module, name) for name, module in adapted.network.named_modules() if not name.startswith(within)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_one_pass(network: nn.Module, x: Inputs, running: OnePass) -> Tensor:
    """Returns logits ``((1 + M) N, K)``: A's, then those of each of the ``M`` members.

    Raises:
        ModelError: The model cannot take ``x``, or does not return so many rows.
    """
    with running.under_way():
        return call_model(network, x, rows=(1 + len(running.members)) * x.shape[0])


def _prove(adapted: AdaptedModel, candidate: Parting, x: Inputs) -> Parting | None:
    """The candidate with what else must be repeated, or None where it is not safe."""
    followers: set[tuple[str, Place]] | None = None
    try:
        with _asking_modules(adapted):
            for size in _PROBES:
                trial = _Trial(size, candidate, adapted.members)
                run_one_pass(adapted.network, _probe(x, size), trial)
                followers = trial.found if followers is None else followers & trial.found
            repeated: dict[str, tuple[Place, ...]] = {}
            for module, path in sorted(followers or (), key=repr):
                repeated[module] = (*repeated.get(module, ()), path)
            proven = replace(candidate, repeated=repeated)
            for size in _PROBES:
                probe = _probe(x, size)
                found = run_one_pass(adapted.network, probe, _Trial(size, proven, adapted.members, note=False))
                if not _equal(found, torch.cat((call_model(adapted.base, probe), *_apart(adapted, probe)))):
                    return None
    except Exception:  # whatever a model that cannot be parted here raises
        return None
    return proven


def _apart(adapted: AdaptedModel, x: Inputs) -> Iterator[Tensor]:
    """Each member's logits from a pass of its own, with the mark of a trial on its adapter."""
    for member in adapted.members:
        with _Marked(adapter=member.adapter).under_way():
            yield call_model(adapted.network, member.look(x))


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of another batch size."""
    tolerance = 50 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    return bool(torch.allclose(found, expected, rtol=0, atol=tolerance))


def _count(adapted: AdaptedModel, parting: Parting, x: Inputs) -> Parting:
    """The parting with its counted operations."""
    probe = _probe(x, 2)

    members = len(adapted.members)
    plain = count_operations(lambda: call_model(adapted.base, probe))
    adapters = count_operations(lambda: list(_apart(adapted, probe))) - members * plain
    with _asking_modules(adapted):
        all_opinions = count_operations(
            lambda: run_one_pass(adapted.network, probe, OnePass(2, parting, adapted.members))
        )
    if not plain:
        return parting
    behind = ((all_opinions - adapters) / plain - 1) / members
    return replace(
        parting,
        share_before=min(1.0, max(0.0, 1 - behind)),
        counted_ratio=all_opinions / plain,
        operations=plain / len(probe),
    )


def _probe(x: Inputs, size: int) -> Inputs:
    """``size`` samples made of those in ``x``, no two of them equal: scaled, or for whole numbers rolled."""
    rows = x[torch.arange(size, device=tensors_of(x)[0].device) % len(x)]
    return rows.map(_varied) if isinstance(rows, Fields) else _varied(rows)


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
