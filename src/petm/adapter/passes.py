"""What one forward pass does inside the adapted layers, decided by the pass that is under way.

Where no pass is under way an adapted layer is PEFT's, untouched. Otherwise the pass says how that layer's own parts,
``base_layer``, ``lora_A`` and ``lora_B``, come together. A context variable holds the pass and nothing is kept on the
model, so threads may run different passes through one model at once, and an exception leaves nothing behind.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with: by position, and by name."""

ADAPTER = "default"
"""PEFT's name for an adapter where there is one only."""

_under_way: ContextVar["Pass | None"] = ContextVar("pass", default=None)


class Pass:
    """One stream at one alpha: ``base_layer(x) + alpha * lora_B(lora_A(x))`` in each adapted layer.

    Args:
        alpha: Strength of the adapter.
        adapter: Its name in PEFT; empty for none, which is A.
    """

    def __init__(self, alpha: float = 1.0, adapter: str = ADAPTER) -> None:
        self.alpha, self.adapter = alpha, adapter

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        """Returns what PEFT's layer ``name`` answers to ``x``."""
        base: Tensor = layer.base_layer(x)
        if not self.adapter:
            return base
        delta = self.delta(layer, x, self.adapter)
        return (base + (delta if self.alpha == 1 else self.alpha * delta)).to(base.dtype)

    def delta(self, layer: Any, x: Tensor, adapter: str) -> Tensor:
        """Returns an adapter's part of a layer at alpha 1, through PEFT's own matrices and scale."""
        if adapter in layer.lora_embedding_A:  # of an embedding PEFT holds the matrices themselves
            rows = F.embedding(x, layer.lora_embedding_A[adapter].T)
            embedded: Tensor = rows @ layer.lora_embedding_B[adapter].T * layer.scaling[adapter]
            return embedded
        first, second = layer.lora_A[adapter], layer.lora_B[adapter]
        part: Tensor = second(first(layer._cast_input_dtype(x, first.weight.dtype)))
        scale: float = layer.scaling[adapter]
        return part if scale == 1 else part * scale

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        """Returns the arguments of a module of A that has been told to ask (`ask_passes`)."""
        return arguments

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Makes this the pass under way in the block, for this thread."""
        token = _under_way.set(self)
        try:
            yield
        finally:
            _under_way.reset(token)


def follow_passes(network: nn.Module, layers: Iterable[str]) -> None:
    """Makes the adapted layers of a network, as PEFT has made them, follow the pass under way.

    The layer's ``forward`` is replaced rather than hooked: hooks on its parts would cost a small network on one sample
    as much time as the adapter.

    Args:
        network: The network with PEFT's layers in it.
        layers: Their names.
    """
    for name in layers:
        layer: Any = network.get_submodule(name)
        layer.forward = partial(_forward, layer, name)
        if any(isinstance(network.get_submodule(parent), nn.TransformerEncoderLayer) for parent in _parents(name)):
            # Its fused kernel would read the base weights and pass the adapter by; a hook within it switches that off.
            layer.register_forward_pre_hook(lambda *_: None)


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _forward(layer: Any, name: str, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    running = _under_way.get()
    if running is not None:
        return running.adapted_layer(name, layer, x)
    answer: Tensor = type(layer).forward(layer, x, *arguments, **named)
    return answer


def ask_passes(module: nn.Module, name: str) -> RemovableHandle:
    """Makes a module of A ask the pass under way for its arguments; returns what takes that back."""

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments | None:
        running = _under_way.get()
        return None if running is None else running.module_input(name, (arguments, named))

    return module.register_forward_pre_hook(hook, with_kwargs=True)
