"""The penultimate features: the input of the linear layer that a classifier calls last."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class LastLinear:
    """Remembers the linear layer that a network called last, and its input.

    Args:
        network: Any network; the hooks on it are removed at the end of the ``with`` block.

    Attributes:
        name: Name of the layer; empty before the first call.
        input: Its input; copy it to keep it, as it may be a view of something much larger.
    """

    def __init__(self, network: nn.Module) -> None:
        self.name = ""
        self.input = torch.empty(0)
        self._hooks = [
            module.register_forward_pre_hook(partial(self._note, name), with_kwargs=True)
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def __enter__(self) -> "LastLinear":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.name, self.input = name, linear_input(arguments, keywords)

    def fault(self, n: int) -> str:
        """Returns why the last input is not features ``(n, D)``, in a sentence; empty where it is."""
        if self.input.ndim == 2 and len(self.input) == n:
            return ""
        if not self.input.numel():
            return "model: expected a linear layer, whose input are the features, got a model that calls none."
        return (
            f"model: expected the linear layer called last, {self.name!r}, to take one row of features a sample, "
            f"got {tuple(self.input.shape)} for {n} samples."
        )


def linear_input(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """Returns the input with which a linear layer is called, given by position or by name."""
    x: Tensor = arguments[0] if arguments else keywords["input"]
    return x
