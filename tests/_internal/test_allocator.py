import pytest
import torch

from experiments.machine import can_measure, process_peak
from petm._internal.allocator import give_back_blocks, keep_large_blocks


@pytest.mark.skipif(not can_measure(torch.device("cpu")), reason="memory cannot be read here")
def test_freed_blocks_are_kept_until_they_are_given_back() -> None:
    keep_large_blocks()
    give_back_blocks()
    _, before = process_peak()
    blocks = [torch.ones(1 << 18) for _ in range(100)]
    assert process_peak()[1] - before > 90 << 20
    del blocks
    assert process_peak()[1] - before > 90 << 20
    give_back_blocks()
    assert process_peak()[1] - before < 10 << 20
