"""A network with a mask."""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, *, extra: dict[str, list[Tensor]]) -> Tensor:
        y, _ = self.attention(x, x, x, key_padding_mask=extra["masks"][0])
        return self.norm(x + y + self.down(F.relu(self.up(x + y))))


class Masked(nn.Module):
    """A transformer whose mask, made at the entrance, goes into every block by name and nested."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        mask = rows.sum(2) < 13.5
        mask[:, 0] = False
        x = self.embed(rows)
        for block in self.blocks:
            x = block(x, extra={"masks": [mask]})
        return self.head(x[:, 0])
