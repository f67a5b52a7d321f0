import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from networks import ResidualNet, TinyCNN, images, seeded
from petm._internal.operations import count_along, count_operations
from petm.training.error_set import fgsm


@pytest.mark.parametrize("make", [TinyCNN, ResidualNet])
def test_operations_are_those_of_pytorchs_counter(make: type[nn.Module]) -> None:
    model, x = seeded(make).eval(), images(3)

    def step() -> None:
        model(x).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert count_operations(step) == counter.get_total_flops() > 0


def test_attention_on_a_cpu_is_counted_forwards_and_backwards() -> None:
    n, heads, tokens, width = 2, 3, 16, 8
    q = torch.rand(n, heads, tokens, width, requires_grad=True)
    product = 2 * n * heads * tokens * tokens * width
    with torch.no_grad():
        assert count_operations(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * product
    # Backwards: the weights once more, and two products for each of the two forwards.
    assert count_operations(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()) == (2 + 5) * product


def test_a_gradient_for_the_input_of_a_module_is_counted() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(5, 4)
    forward = 2 * 5 * (4 * 3 + 3 * 2)
    labels = torch.zeros(5, dtype=torch.int64)
    found = count_operations(lambda: fgsm(model, x, labels, epsilon=0.1, value_range=(0, 1)))
    assert found == 2 * forward, "to the input alone: the weights' gradients are not asked for"


def test_operations_along_a_pass() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(5, 4)
    unused = nn.Linear(2, 2)
    total, calls = count_along(lambda: model(x), {"first": model[0], "last": model[2], "unused": unused})
    first, last = 2 * 5 * 12, 2 * 5 * 6
    assert (total, calls) == (first + last, {"first": (0, first), "last": (first, first + last)})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*model, unused))
