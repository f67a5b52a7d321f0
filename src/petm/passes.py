"""What one forward pass does inside the adapted layers, decided by the pass that is under way.

PEFT computes ``base_layer(x) + lora_B(lora_A(x))`` in each adapted layer. Hooks on its modules ask the pass under way
what to hand on. A context variable holds that pass, and nothing is kept on the model, so threads may run different
passes through one model at once, and an exception leaves nothing behind.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with: by position, and by name."""

_under_way: ContextVar["Pass | None"] = ContextVar("pass", default=None)


class Pass:
    """One stream at one alpha.

    Each method below stands for a moment: it gets what would be handed on, and returns what is handed on instead. A
    subclass changes the moments that it needs.

    Args:
        alpha: Strength of the adapter.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def module_input(self, module: str, arguments: "Arguments") -> "Arguments":
        """The arguments of a module of A that has been told to ask (`ask_passes`)."""
        return arguments

    def layer_input(self, layer: str, x: Tensor) -> Tensor:
        """The input of an adapted layer, ``(n, ...)``; asked for only in `inputs_asked_for`."""
        return x

    def base_input(self, layer: str, x: Tensor) -> Tensor:
        """The input of its base layer; asked for only in `inputs_asked_for`."""
        return x

    def base_output(self, layer: str, output: Tensor) -> Tensor:
        """The output of its base layer."""
        return output

    def adapter_input(self, layer: str, x: Tensor) -> Tensor:
        """The input of ``lora_A``."""
        return x

    def adapter_output(self, layer: str, delta: Tensor) -> Tensor:
        """The output of ``lora_B``, which PEFT adds to that of the base layer."""
        return delta if self.alpha == 1 else delta * self.alpha

    def layer_output(self, layer: str, output: Tensor) -> Tensor:
        """The output of an adapted layer."""
        return output

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Makes this the pass under way in the block, for this thread."""
        token = _under_way.set(self)
        try:
            yield
        finally:
            _under_way.reset(token)


def follow_passes(network: nn.Module, layers: Iterable[str]) -> None:
    """Makes the adapted layers of a network, as PEFT has made them, ask the pass under way.

    Args:
        network: The network with PEFT's layers in it.
        layers: Their names.
    """
    for name in layers:
        layer: Any = network.get_submodule(name)
        _after(layer.base_layer, name, Pass.base_output.__name__)
        _before(layer.lora_A["default"], name, Pass.adapter_input.__name__)
        _after(layer.lora_B["default"], name, Pass.adapter_output.__name__)
        _after(layer, name, Pass.layer_output.__name__)


@contextmanager
def inputs_asked_for(network: nn.Module, layer: str) -> Iterator[None]:
    """Lets an adapted layer ask for its inputs too while the block runs: each hook costs every pass a little time."""
    module: Any = network.get_submodule(layer)
    handles = [
        _before(module, layer, Pass.layer_input.__name__),
        _before(module.base_layer, layer, Pass.base_input.__name__),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ask_passes(module: nn.Module, name: str) -> RemovableHandle:
    """Makes a module of A ask the pass under way for its arguments; returns what takes that back."""

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments | None:
        running = _under_way.get()
        return None if running is None else running.module_input(name, (arguments, named))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _before(module: nn.Module, layer: str, moment: str) -> RemovableHandle:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        running = _under_way.get()
        if running is None:
            return None
        return (getattr(running, moment)(layer, arguments[0]), *arguments[1:])

    return module.register_forward_pre_hook(hook)


def _after(module: nn.Module, layer: str, moment: str) -> None:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        running = _under_way.get()
        return None if running is None else getattr(running, moment)(layer, output)

    module.register_forward_hook(hook)
