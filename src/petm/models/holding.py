"""Eval mode and frozen parameters for a block, restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from petm.models.placing import shards_of


@dataclass
class _Changed:
    """State to restore when the last block that holds the network ends."""

    blocks: int = 0
    modes: dict[nn.Module, bool] = field(default_factory=dict)
    frozen: list[Tensor] = field(default_factory=list)


_changed: WeakKeyDictionary[nn.Module, _Changed] = WeakKeyDictionary()
_lock = Lock()


def hold(model: nn.Module, *, freeze: bool) -> bool:
    """Puts a network into eval mode, and returns whether `release` must follow.

    With ``freeze``, none of its parameters requires a gradient either. Calls of several threads may overlap: the first
    one changes the network, the last `release` restores it.
    """
    if model not in _changed and not freeze and not any(module.training for module in model.modules()):
        return False
    with _lock:
        state = _changed.setdefault(model, _Changed())
        state.blocks += 1
        if not state.modes and any(module.training for module in model.modules()):
            state.modes = {module: module.training for module in model.modules()}
            model.eval()  # rather than the flags alone: some networks keep a cache by their mode
        if freeze and not state.frozen:
            for part in shards_of(model):
                part.reshard()  # after a pass that ended early, others stand in the place of its parameters
            state.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in state.frozen:
                parameter.requires_grad_(False)
    return True


def release(model: nn.Module) -> None:
    """Restores a network's modes and flags, if no other block holds it."""
    with _lock:
        state = _changed[model]
        state.blocks -= 1
        if state.blocks:
            return
        del _changed[model]
        if state.modes.get(model):
            model.train()
        for module, mode in state.modes.items():
            module.training = mode
        for parameter in state.frozen:
            parameter.requires_grad_(True)


@contextmanager
def in_eval_mode(model: nn.Module, *, freeze: bool = False) -> Iterator[None]:
    """Runs the block with the model in eval mode (as `hold`); every module gets its own mode back afterwards."""
    changed = hold(model, freeze=freeze)
    try:
        yield
    finally:
        if changed:
            release(model)
