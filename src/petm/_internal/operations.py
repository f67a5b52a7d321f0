"""Counted operations: the cost of a call on any machine."""

import math
from collections.abc import Callable, Mapping
from statistics import median
from timeit import timeit
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

Call = Callable[[], object]


def count_operations(call: Call, model: nn.Module | None = None) -> int:
    """Returns the floating-point operations of the matrix products, convolutions and attentions in a call.

    Backward passes are included; operations by element and memory traffic are not. Linear and recurrent layers of
    ``model`` that PyTorch's counter does not know, such as quantised ones, are counted by their sizes.
    """
    return count_along(call, {}, model)[0]


def count_along(
    call: Call, modules: Mapping[str, nn.Module], model: nn.Module | None = None
) -> tuple[int, dict[str, tuple[int, int]]]:
    """Returns the operations of a call, and for each module the counts before and after its first call.

    Modules come in the order of their calls; those not called are left out. Otherwise as `count_operations`.
    """
    found: dict[str, tuple[int, int]] = {}
    began: dict[str, int] = {}
    counted = _Counted()

    def enter(name: str) -> None:
        began.setdefault(name, counted.total)

    def leave(name: str) -> None:
        found.setdefault(name, (began[name], counted.total))

    handles = _count_by_size(counted, model) if model is not None else []
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


def _count_by_size(counted: "_Counted", model: nn.Module) -> list[RemovableHandle]:
    """Adds the operations of layers in which nothing was counted."""
    begun: dict[nn.Module, int] = {}

    def enter(module: nn.Module, _: Any) -> None:
        begun[module] = counted.total

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        if counted.total == begun.pop(module):
            counted.total += _by_size(module, output)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase) or isinstance(getattr(module, "in_features", None), int):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    return handles


def _by_size(module: nn.Module, output: Any) -> int:
    found: Any = module
    if isinstance(module, nn.RNNBase):
        steps: int = output[0].numel() // ((module.proj_size or module.hidden_size) * (1 + module.bidirectional))
        return 2 * steps * sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)
    if isinstance(output, Tensor) and isinstance(getattr(module, "out_features", None), int):
        return 2 * output.numel() * int(found.in_features)
    return 0


def time_ratio(call: Call, other: Call, *, rounds: int = 5) -> float:
    """Returns the median ratio of the times of two calls, made in turn."""
    return median(timeit(call, number=1) / timeit(other, number=1) for _ in range(rounds))


class _Counted(TorchDispatchMode):
    """The sum of PyTorch's formulas; its own `FlopCounterMode` fails where the gradient of an input is taken."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=answer))
        return answer


def _fused_layer(x: Any, *others: Any, **__: Any) -> int:
    """PyTorch's fused transformer layers: all their matrices, and the attention between positions."""
    samples, length, width = map(int, x)
    matrices = sum(math.prod(other) for other in others if isinstance(other, torch.Size) and len(other) == 2)
    return int(2 * samples * length * matrices + 4 * samples * length**2 * width)


_aten = torch.ops.aten
_FORMULAS: dict[Any, Any] = FlopCounterMode(
    display=False,
    custom_mapping={
        _aten._transformer_encoder_layer_fwd: _fused_layer,
        _aten._native_multi_head_attention: _fused_layer,
    },
).flop_registry
_FORMULAS |= {
    unknown: _FORMULAS[known]
    for unknown, known in {
        _aten.addmm_: _aten.addmm,
        # PyTorch's counter has the attention kernels of CUDA alone.
        _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
    }.items()
}
