import pytest
import torch
from torch import nn

from petm.adapter import attach_adapter
from petm.dual import dual_logits
from petm.growth import SIZES, Transformer
from petm.models import count_parameters
from petm.operations import count_operations

WIDTH, BLOCKS, TOKENS, CLASSES = 32, 4, 12, 3


class Block(nn.Module):
    """Attention and MLP of a transformer, each matrix a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        y = self.first(x)
        heads = [layer(y).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        y = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.output(y)
        return x + self.down(torch.relu(self.up(self.second(x))))


class Encoder(nn.Module):
    """Blocks and a head, on vectors (N, T, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*(Block() for _ in range(BLOCKS))), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(x)[:, 0])


@pytest.fixture(scope="module")
def closed() -> Transformer:
    return Transformer(WIDTH, BLOCKS, TOKENS, CLASSES, rank=2, bytes_per_parameter=4)


def test_closed_form_against_a_counted_network(closed: Transformer) -> None:
    model, x = Encoder().eval(), torch.rand(2, TOKENS, WIDTH)
    assert closed.parameters == count_parameters(model)
    assert closed.model_bytes == sum(weight.nbytes for weight in model.parameters())
    with torch.no_grad():
        assert 2 * closed.operations == count_operations(lambda: model(x))
    last = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name[7:8] in ("2", "3")]
    adapted = attach_adapter(model, dict.fromkeys(last, 2))
    assert len(last) == 12
    assert closed.adapter_parameters == adapted.adapter_parameters()
    dual_logits(adapted, x)
    one_pass = count_operations(lambda: dual_logits(adapted, x)) / 2
    assert adapted.parting.module == "blocks.2"
    assert closed.counted_ratio == pytest.approx(one_pass / closed.operations)


def test_fitting_by_hand(closed: Transformer) -> None:
    behind = 2 * closed.block_operations + 2 * WIDTH * CLASSES
    step = 2 * behind + 6 * TOKENS * closed.adapter_parameters
    alone = closed.fitting_operations(10, parts=1, epochs=4)
    assert alone == 10 * ((closed.operations - behind) + 4 * step)
    moved = closed.fitting_operations(10, parts=2, epochs=4)
    assert moved == 10 * (2 * closed.operations + 2 * (closed.operations - behind) + 8 * step)
    assert closed.fitting_operations(10**9, parts=2, epochs=4) == 10**8 * moved


def test_an_adapter_grows_with_the_width_and_a_with_its_square() -> None:
    small, wide = Transformer(1024, 10, 100), Transformer(2048, 10, 100)
    assert wide.adapter_parameters == 2 * small.adapter_parameters
    assert wide.training_bytes == 2 * small.training_bytes == 4 * 4 * wide.adapter_parameters
    assert wide.parameters / small.parameters == pytest.approx(4, rel=1e-3)
    assert Transformer(1024, 20, 100).adapter_parameters == small.adapter_parameters


def test_sizes_reach_70e9_parameters() -> None:
    counts = [one.parameters for one in SIZES.values()]
    assert counts == sorted(counts)
    for count, wanted in zip(counts, (86e6, 0.3e9, 1e9, 7e9, 70e9), strict=True):
        assert count == pytest.approx(wanted, rel=0.03)
    assert all(one.adapter_parameters <= 0.01 * one.parameters for one in SIZES.values())
