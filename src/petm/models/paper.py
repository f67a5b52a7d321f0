"""The paper's network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaperCNN(nn.Module):
    """The network of the LoRA-PETM paper: two convolutions, two linear layers, 1,199,882 parameters for 10 classes.

    conv1 1→32 3×3, ReLU, conv2 32→64 3×3, ReLU, max-pool 2, fc1 9216→128, ReLU, fc2 128→K. No dropout: the paper
    names none. Input float32 ``(N, 1, 28, 28)``, output logits ``(N, K)``.

    Args:
        classes: ``K``.

    Reference:
        LoRA-PETM (ACK 2025), sections 3.1 and 3.2.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits ``(N, K)`` for images ``(N, 1, 28, 28)``."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.max_pool2d(x, 2).flatten(1)
        logits: Tensor = self.fc2(F.relu(self.fc1(x)))
        return logits


def paper_cnn(classes: int = 10, *, seed: int = 0) -> PaperCNN:
    """Returns the paper's network, freshly initialised from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PaperCNN(classes)
