"""Several processes: rank, shard and all-reduce.

Work is sharded only inside `together`, which every process must enter: a program that runs petm in one of its processes
must not wait for the others. Exchanges raise `RunError` where another process has ended.
"""

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from petm._internal.progress import console
from petm.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FEWEST = 8
"""Fewest samples a process for which work is sharded."""


@dataclass(frozen=True)
class Group:
    """The processes that share samples: the ``rank`` of this one, from 0, and their ``count``.

    Where a model is sharded among processes, all of them run every sample, so that each gathers the weights at the same
    time: each shares samples with none, and ``copy`` is its number among them.
    """

    rank: int = 0
    count: int = 1
    copy: int | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0 and not self.copy

    def own(self, n: int) -> range:
        """Returns the shard of ``n`` samples of this process: every ``count``-th, or all of a few."""
        return range(self.rank, n, self.count) if self.shares(n) else range(n)

    def shares(self, n: int) -> bool:
        """Returns whether ``n`` samples are sharded; few are not."""
        return self.count > 1 and n >= FEWEST * self.count


_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""Variables by which ``accelerate launch`` asks for a model in parts, one for each process."""
ALONE = Group()
_group: ContextVar[Group] = ContextVar("group", default=ALONE)


def group() -> Group:
    """Returns the processes that work together; outside `together` this one alone."""
    return _group.get()


@contextmanager
def together(*, cpu: bool = False, sharded: bool = False) -> Iterator[Group]:
    """Shares the work of a block among the processes that ``torchrun`` or ``accelerate launch`` has started.

    Each of them runs the same block; with ``cpu`` they exchange values on the CPU even where there is an accelerator;
    ``sharded`` is for a model whose weights are sharded among them.

    Raises:
        RunError: A process cannot be reached or ends early; or the launch asks for a model in parts, which is asked of
            petm instead (docs/benchmark/scale.md).
    """
    for variable, name in _SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise RunError(
                f"processes: expected a launch without {name}, which cuts the model in parts, got one with it. "
                "Launch with torchrun, and shard the model by fully_shard or --fsdp, or leave it whole."
            )
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield group()
        return
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        with _reaching_others():
            accelerator = None if cpu else torch.accelerator.current_accelerator(check_available=True)
            if accelerator is not None:  # makes "cuda" this one
                torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
            backend = distributed.get_default_backend_for_device(accelerator) if accelerator else "gloo"
            distributed.init_process_group(backend)
        atexit.register(_leave)  # else its threads may abort the process while the interpreter ends
    rank, count = distributed.get_rank(), distributed.get_world_size()
    token = _group.set(Group(copy=rank) if sharded else Group(rank, count))
    quiet = console.quiet
    console.quiet = quiet or not group().is_main
    try:
        yield group()
    finally:
        console.quiet = quiet
        _group.reset(token)


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Returns when every process has called it."""
    if group().count > 1 or group().copy is not None:
        import torch

        _sum(torch.zeros(1))


def totals(values: Sequence[float], device: "torch.device | str" = "cpu") -> list[float]:
    """Returns the sums of numbers, equally many in each process, over all processes; computed on ``device``."""
    if group().count == 1:
        return list(values)
    import torch

    return [float(value) for value in _sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()]


def sum_gradients(parameters: "Iterable[Tensor]") -> None:
    """Replaces each gradient by its sum over all processes; a missing gradient counts as 0."""
    if group().count == 1:
        return
    import torch

    held = [each for each in parameters if each.requires_grad]
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in held]
    whole = _sum(torch.cat([part.flatten().float() for part in parts]))
    for each, part in zip(held, whole.split([part.numel() for part in parts]), strict=True):
        each.grad = part.view_as(each).to(each.dtype)


def gathered(rows: "Tensor", n: int) -> "Tensor":
    """Returns the rows of all ``n`` samples, on the CPU, in their order, from those of each shard (`Group.own`)."""
    if not group().shares(n):
        return rows
    whole = rows.new_zeros((n, *rows.shape[1:]))
    whole[group().rank :: group().count] = rows
    return _sum(whole)


def _sum(values: "Tensor") -> "Tensor":
    """The sum over all processes, by the device through which they exchange values."""
    import torch
    from torch import distributed

    accelerator = torch.accelerator.current_accelerator() if distributed.get_backend() != "gloo" else None
    summed = values.to(accelerator or "cpu")
    with _reaching_others():
        distributed.all_reduce(summed)
    return summed.to(values.device)


@contextmanager
def _reaching_others() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"processes: expected all {os.environ.get('WORLD_SIZE', '?')} to work together until the end, but one "
            f"cannot be reached ({reason}). Start them again; with resume=True (--resume) the run continues "
            f"from its checkpoint."
        ) from error
