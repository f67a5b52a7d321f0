"""Where the two opinions part: as late as is safe, which is found by trying and proven by comparing.

Up to the parting both opinions are one computation on ``N`` samples. From there on they run as one batch of ``2N``
through the base weights, A first, and the adapter is added to the second half only.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from petm.adapter import AdaptedModel
from petm.models import call_model
from petm.passes import Arguments, Pass, ask_passes

Place = tuple[int | str, ...]
"""How a tensor is reached among the arguments of a module."""

INSIDE, BEFORE, APART = "inside", "before", "apart"
_T = TypeVar("_T")
_finding = Lock()
_PROBES = (3, 5)
"""Two batch sizes, so that what follows the batch is told from what has such a size by chance."""


@dataclass(frozen=True)
class Parting:
    """Where the streams part.

    Attributes:
        kind: ``inside`` the first adapted layer, behind its base weights; ``before`` a module; or ``apart``: two
            separate passes, for a model that mixes the samples of a batch.
        module: The name of that layer or module in A; empty for A itself, which is its input.
        doubled: Other arguments that follow the batch into later modules, by module: an attention mask, say.
        share_before: Share of A's operations that are computed once for both opinions, in [0, 1].
        counted_ratio: Operations of the one pass over those of A alone, at least 1.
    """

    kind: str
    module: str = ""
    doubled: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    share_before: float = 0.0
    counted_ratio: float = 2.0


class OnePass(Pass):
    """Both opinions in one pass over ``n`` samples.

    Args:
        n: Samples.
        parting: Where the streams part.
    """

    def __init__(self, n: int, parting: Parting) -> None:
        super().__init__()
        self.n, self.parting = n, parting
        self.parted = False

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        """Adds the adapter's part to the second half, in place; where the streams part, the halves come to be here.

        Each sum is written once, where it belongs: on large feature maps a pass over memory costs as much as a
        convolution.
        """
        base: Tensor = layer.base_layer(x)
        if self.parted:
            base[self.n :].add_(self.delta(layer, x[self.n :]))
            return base
        both = _room_for_two(base)
        both[: self.n] = base
        torch.add(base, self.delta(layer, x), out=both[self.n :])
        self.parted = True
        return both

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        """Doubles what follows the batch: everything where the streams part, later what has not passed there."""
        if not self.parted:
            if self.parting.kind != BEFORE or module != self.parting.module:
                return arguments
            self.parted = True
            return map_tensors(arguments, lambda _, tensor: self._double(tensor))
        paths = self.parting.doubled.get(module, ())
        return map_tensors(arguments, lambda path, tensor: self._double(tensor) if path in paths else tensor)

    def _double(self, tensor: Tensor) -> Tensor:
        return torch.cat((tensor, tensor)) if tensor.ndim and tensor.shape[0] == self.n else tensor


def _room_for_two(base: Tensor) -> Tensor:
    """An uninitialised batch of twice the size, in the same layout of memory."""
    layout = torch.contiguous_format
    if base.ndim == 4 and not base.is_contiguous() and base.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    shape = (2 * base.shape[0], *base.shape[1:])
    return torch.empty(shape, dtype=base.dtype, device=base.device, memory_format=layout)


class _Trial(OnePass):
    """A one pass on a probe: makes the untrained adapter count, and notes what still follows the single batch."""

    def __init__(self, n: int, parting: Parting, *, note: bool = True) -> None:
        super().__init__(n, parting)
        self.note = note
        self.found: set[tuple[str, Place]] = set()

    def delta(self, layer: Any, x: Tensor) -> Tensor:
        part = super().delta(layer, x)
        return part + _pattern(part)

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if not (self.parted and self.note):
            return super().module_input(module, arguments)

        def double(path: Place, tensor: Tensor) -> Tensor:
            if tensor.ndim and tensor.shape[0] == self.n:
                self.found.add((module, path))
            return self._double(tensor)

        return map_tensors(arguments, double)


class _Marked(Pass):
    """The second opinion alone, with the same mark on the adapter as in a trial."""

    def delta(self, layer: Any, x: Tensor) -> Tensor:
        part = super().delta(layer, x)
        return part + _pattern(part)


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


def parting_of(adapted: AdaptedModel, x: Tensor) -> Parting:
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
                    parting = find_parting(adapted, x)
                asked = {*parting.doubled, *([parting.module] if parting.kind == BEFORE else [])}
                for name in asked:
                    ask_passes(adapted.network.get_submodule(name), name)
                adapted.parting = parting
    found: Parting = adapted.parting
    return found


def find_parting(adapted: AdaptedModel, x: Tensor) -> Parting:
    """Returns the latest safe parting for a model, proven on probes made of the samples ``x``.

    Tried in turn: inside the first adapted layer, behind its base weights; before that layer; before each module
    entered earlier, the latest first; at the input. A parting is safe where the one pass gives the logits of two
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
    candidates += [Parting(BEFORE, module) for module in reversed(calls.modules)]
    for candidate in candidates:
        proven = _prove(adapted, candidate, x)
        if proven is not None:
            return _count(adapted, proven, x)
    return Parting(APART)


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


def run_one_pass(network: nn.Module, x: Tensor, running: OnePass) -> Tensor:
    """Returns logits ``(2N, K)``: A's, then the second opinion's.

    Raises:
        ModelError: The model cannot take ``x``, or does not return ``(2N, K)``.
    """
    with running.under_way():
        return call_model(network, x, rows=2 * x.shape[0])


def _prove(adapted: AdaptedModel, candidate: Parting, x: Tensor) -> Parting | None:
    """The candidate with what else must be doubled, or None where it is not safe."""
    followers: set[tuple[str, Place]] | None = None
    try:
        with _asking_modules(adapted):
            for size in _PROBES:
                trial = _Trial(size, candidate)
                run_one_pass(adapted.network, _probe(x, size), trial)
                followers = trial.found if followers is None else followers & trial.found
            doubled: dict[str, tuple[Place, ...]] = {}
            for module, path in sorted(followers or (), key=repr):
                doubled[module] = (*doubled.get(module, ()), path)
            proven = Parting(candidate.kind, candidate.module, doubled)
            for size in _PROBES:
                probe = _probe(x, size)
                found = run_one_pass(adapted.network, probe, _Trial(size, proven, note=False))
                with _Marked().under_way():
                    apart = torch.cat((call_model(adapted.base, probe), call_model(adapted.network, probe)))
                if not _equal(found, apart):
                    return None
    except Exception:  # whatever a model that cannot be parted here raises
        return None
    return proven


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of another batch size."""
    tolerance = 50 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    return bool(torch.allclose(found, expected, rtol=0, atol=tolerance))


def _count(adapted: AdaptedModel, parting: Parting, x: Tensor) -> Parting:
    """The parting with its counted operations."""
    probe = _probe(x, 2)

    def operations(run: Callable[[], Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return int(counter.get_total_flops())

    plain = operations(lambda: call_model(adapted.base, probe))
    adapter = operations(lambda: call_model(adapted.network, probe)) - plain
    with _asking_modules(adapted):
        both = operations(lambda: run_one_pass(adapted.network, probe, OnePass(2, parting)))
    if not plain:
        return parting
    return Parting(
        parting.kind,
        parting.module,
        parting.doubled,
        share_before=min(1.0, max(0.0, 2 - (both - adapter) / plain)),
        counted_ratio=both / plain,
    )


def _probe(x: Tensor, size: int) -> Tensor:
    """``size`` samples made of those in ``x``, no two of them equal: scaled, or for whole numbers rolled."""
    rows = x[torch.arange(size, device=x.device) % len(x)]
    if rows.is_floating_point():
        factors = torch.linspace(1, 0.5, size, device=x.device, dtype=x.dtype)
        return rows * factors.view(-1, *[1] * (x.ndim - 1))
    return torch.stack([row.roll(index, -1) for index, row in enumerate(rows)])


def _pattern(delta: Tensor) -> Tensor:
    """What a trial adds to an adapter's output: the same for every sample, and different for every channel."""
    channels = delta.shape[1] if delta.ndim == 4 else delta.shape[-1]
    wave = 0.1 * torch.cos(torch.arange(channels, device=delta.device, dtype=delta.dtype))
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
