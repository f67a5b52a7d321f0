"""Counted operations: what a call costs before any machine is asked."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from petm.benchmark.timing import Call


def count_operations(call: Call) -> int:
    """Returns the floating-point operations of the matrix products, convolutions and attentions in a call.

    What is done element by element is not counted, nor are reads and writes of memory: a measured ratio above the
    counted one says how much these weigh.
    """
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        call()
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    operations: int = sdpa_flop_count(query, key, value)
    return operations


_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""PyTorch's counter knows the attention kernels of CUDA alone."""
