"""Base models whose weights are not plain tensors on one device: quantised, spread over devices, sharded."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from petm.errors import ModelError


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether each of several processes holds a part of a tensor, as after ``fully_shard``."""
    return hasattr(tensor, "full_tensor")


def shards_of(model: nn.Module) -> list[Any]:
    """Returns the modules that ``fully_shard`` was applied to."""
    return [module for module in model.modules() if hasattr(module, "unshard") and hasattr(module, "reshard")]


def stays(model: nn.Module) -> bool:
    """Returns whether a model has its own places: it is sharded, or its layers lie on several devices."""
    return bool(shards_of(model)) or len({weight.device for weight in model.parameters()}) > 1


def writes(model: nn.Module) -> bool:
    """Returns whether this process writes the files about a model: the first of those among which it is sharded."""
    return not shards_of(model) or distributed.get_rank() == 0


def plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the plain tensors that a weight consists of, by name; every process must ask for those of a sharded one.

    A quantised weight of torchao has numbers and scales in one tensor.
    """
    if is_sharded(tensor):
        whole: Any = tensor
        tensor = whole.full_tensor()
    if is_traceable_wrapper_subclass(tensor):
        for inner in tensor.__tensor_flatten__()[0]:
            yield from plain_parts(f"{name}.{inner}", getattr(tensor, inner))
    else:
        yield name, tensor


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def check_copied(model: nn.Module, argument: str = "include_base") -> None:
    """Raises ModelError where a file of weights cannot hold a model's, or a model cannot take those of a file."""
    for name, tensor in _tensors(model):
        if is_sharded(tensor) or is_traceable_wrapper_subclass(tensor) or _is_of_bitsandbytes(tensor):
            raise ModelError(
                f"{argument}: expected a model with plain weights, got {name} as {type(tensor).__name__}. "
                f"Leave it out: such weights stay in the model's own folder."
            )


def check_teachable(model: nn.Module) -> None:
    """Raises ModelError where a teacher cannot be trained from a copy of the model, as it is quantised."""
    for name, tensor in _tensors(model):
        whole = isinstance(tensor, nn.Parameter) and not tensor.is_floating_point() and not tensor.is_complex()
        if whole or name.endswith("qweight") or (is_traceable_wrapper_subclass(tensor) and not is_sharded(tensor)):
            raise ModelError(
                f"recipe: expected weights that can be trained, for the teacher, got the quantised {name}. "
                f"Leave out the recipe paper: the others train the adapters alone."
            )


def use_one_kernel(model: nn.Module) -> None:
    """Lets the 4-bit layers of bitsandbytes compute alike with and without gradients.

    On some processors a call without a gradient packs the weights for a kernel that has none, in bfloat16; from then
    on no gradient would pass through the layer, and logits would change whenever weights are read, which unpacks them.
    """
    for module in model.modules():
        if vars(module).get("support_avx512bf16_for_cpu"):
            module.state_dict()  # unpacks
            vars(module)["support_avx512bf16_for_cpu"] = False


def held_beside(model: nn.Module) -> dict[int, Any]:
    """Returns what a copy of the modules is to share with them, by identity: quantised weights and their scales.

    A weight of a kind of its own would lose its scales in a plain parameter.
    """
    own = [weight for weight in model.parameters() if type(weight) is not nn.Parameter and not weight.requires_grad]
    scales = (held for module in model.modules() for held in vars(module).values())
    return {id(each): each for each in (*own, *(held for held in scales if _is_of_bitsandbytes(held)))}


def _is_of_bitsandbytes(held: object) -> bool:
    return type(held).__module__.startswith("bitsandbytes.")


def shard(model: nn.Module, device: torch.device) -> None:
    """Shards a model's weights among all processes (FSDP2): the blocks of each list one by one, and then the rest.

    Raises:
        ModelError: The model is quantised, or PyTorch cannot shard it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    check_copied(model, "fsdp")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    nested = {id(each) for parent in lists for child in parent for each in child.modules()}
    try:
        for parent in lists:
            for block in parent if id(parent) not in nested else ():
                if next(block.parameters(), None) is not None:
                    fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ModelError(f"fsdp: expected a model that PyTorch can shard, got: {reason}. Leave it whole.") from error
