"""Counted operations: what a call costs before any machine is asked."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Call = Callable[[], object]


def count_operations(call: Call) -> int:
    """Returns the floating-point operations of the matrix products, convolutions and attentions in a call.

    What is done element by element is not counted, nor are reads and writes of memory: a measured ratio above the
    counted one says how much these weigh. Backward passes within the call are counted too.
    """
    with _Counted() as counted:
        call()
    total: int = counted.total
    return total


def count_along(call: Call, modules: Mapping[str, nn.Module]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Returns the operations of a call, and by module how many were done when it was first called and had answered.

    Modules that are not called are left out.
    """
    found: dict[str, tuple[int, int]] = {}
    began: dict[str, int] = {}
    counted = _Counted()

    def enter(name: str) -> None:
        began.setdefault(name, counted.total)

    def leave(name: str) -> None:
        found.setdefault(name, (began[name], counted.total))

    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda _, __, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda _, __, ___, name=name: leave(name)))
    try:
        with counted:
            call()
    finally:
        for handle in handles:
            handle.remove()
    return counted.total, found


class _Counted(TorchDispatchMode):
    """Adds up what PyTorch's formulas say of each operation.

    `torch.utils.flop_counter.FlopCounterMode` itself follows modules as well, and fails where the gradient of an input
    is taken.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=answer))
        return answer


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""PyTorch's counter knows the attention kernels of CUDA alone."""

_FORMULAS: dict[Any, Any] = FlopCounterMode(display=False, custom_mapping=_ON_CPU).flop_registry
