"""Forward hooks on the user's own modules, and what they do in a pass.

A hook on an adapted module looks for the pass of its thread. Without one it returns at once, so the network is the
base model to the bit. With one, the pass decides what becomes of the module's output: one stream at an alpha, several
streams that share a prefix, or cached features in place of a prefix. A context variable holds the pass and nothing is
kept on the model, so threads may run different passes through one model, and an exception leaves nothing behind.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from petm.adapter.lora import ADAPTER, AdaptedLayer

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with: by position, and by name."""

_active: ContextVar["Pass | None"] = ContextVar("pass", default=None)


class Pass:
    """One stream at one alpha: ``W0 x + alpha * B A x`` in each adapted layer.

    Args:
        alpha: Strength of the adapter.
        adapter: Its name; empty for none, which is the base model.

    Attributes:
        watched: Name of an asked module whose first argument is remembered; empty for none.
        seen: That argument, of the last call in the pass.
    """

    seen: Tensor | None

    def __init__(self, alpha: float = 1.0, adapter: str = ADAPTER) -> None:
        self.alpha, self.adapter = alpha, adapter
        self.watched, self.seen = "", None
        self.layers: Mapping[nn.Module, AdaptedLayer] = {}
        self.asked: Mapping[nn.Module, str] = {}

    def adapted_layer(self, layer: AdaptedLayer, x: Tensor, base: Tensor) -> Tensor:
        """Returns the output of an adapted layer for the input ``x``, ``base`` being that of the base model."""
        if not self.adapter:
            return base
        delta = self.delta(layer, x, self.adapter)
        return (base + (delta if self.alpha == 1 else self.alpha * delta)).to(base.dtype)

    def delta(self, layer: AdaptedLayer, x: Tensor, adapter: str) -> Tensor:
        """Returns an adapter's part of a layer's output at alpha 1."""
        part: Tensor = layer.adapters[adapter](x)
        return part

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        """Returns the arguments for a module that asks for them (`Hooks.asking`)."""
        return arguments

    def running(self, layers: Mapping[nn.Module, AdaptedLayer], asked: Mapping[nn.Module, str]) -> "Pass":
        """Returns this as the pass of a ``with`` block, for this thread.

        Args:
            layers: The adapted layers by the module that they belong to.
            asked: The names of modules that ask for their arguments.
        """
        self.layers, self.asked = layers, asked
        return self

    def __enter__(self) -> None:
        self._token = _active.set(self)

    def __exit__(self, *_: object) -> None:
        _active.reset(self._token)


def _adapt(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    running = _active.get()
    if running is None or (layer := running.layers.get(module)) is None:
        return None
    x = arguments[0] if arguments else next(iter(named.values()))
    # A model that is spread over devices may move a layer's input in the layer's own call.
    return running.adapted_layer(layer, x if x.device == output.device else x.to(output.device), output)


def _ask(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments | None:
    running = _active.get()
    if running is None or (name := running.asked.get(module)) is None:
        return None
    if running.watched and name == running.watched:
        running.seen = arguments[0] if arguments else next(iter(named.values()))
    return running.module_input(name, (arguments, named))


class _Registered:
    """One hook function on many modules, at most once on each, however many adapted models use it."""

    def __init__(self, register: str, function: Any, options: dict[str, bool]) -> None:
        self._register, self._function, self._options = register, function, options
        self._count: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._handles: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()
        self._lock = RLock()  # the garbage collector may remove hooks while others are added

    def add(self, modules: Iterable[nn.Module]) -> None:
        with self._lock:
            for module in modules:
                self._count[module] = self._count.get(module, 0) + 1
                if module not in self._handles:
                    place: dict[int, Any] = getattr(module, f"_{self._register.removeprefix('register_')}s")
                    for key in [key for key, hook in place.items() if hook is self._function]:
                        del place[key]  # a copy of a module has its hooks, too
                    self._handles[module] = getattr(module, self._register)(self._function, **self._options)

    def remove(self, modules: Iterable[nn.Module]) -> None:
        with self._lock:
            for module in modules:
                self._count[module] -= 1
                if not self._count[module]:
                    del self._count[module]
                    self._handles.pop(module).remove()


_options = {"with_kwargs": True}
_ADAPTING = _Registered("register_forward_hook", _adapt, _options)
_ASKING = _Registered("register_forward_pre_hook", _ask, _options)


class Hooks:
    """The hooks of one adapted model.

    Attributes:
        layers: The adapted layers by the module that they belong to.
        asked: The names of modules that ask a pass for their arguments.
    """

    def __init__(self, layers: Mapping[nn.Module, AdaptedLayer]) -> None:
        self.layers, self.asked = dict(layers), dict[nn.Module, str]()
        self.attached = True
        _ADAPTING.add(self.layers)

    def ask(self, modules: Mapping[nn.Module, str]) -> None:
        """Lets further modules ask for their arguments from now on."""
        new = {module: name for module, name in modules.items() if module not in self.asked}
        _ASKING.add(new)
        self.asked.update(new)

    @contextmanager
    def asking(self, modules: Mapping[nn.Module, str]) -> Iterator[dict[nn.Module, str]]:
        """Lets further modules ask in the block; yields the names of all that do."""
        _ASKING.add(modules)
        try:
            yield {**self.asked, **modules}
        finally:
            _ASKING.remove(modules)

    def detach(self) -> None:
        """Removes the hooks; the modules are as they were."""
        if self.attached:
            self.attached = False
            _ADAPTING.remove(self.layers)
            _ASKING.remove(self.asked)
