"""Three networks for MNIST, each unlike the paper's and unlike the others."""

from torch import Tensor, nn
from torch.nn import functional as F


def lenet(classes: int = 10) -> nn.Module:
    """Returns LeNet-5 with ReLU and max-pool, 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


def dropout_net(classes: int = 10) -> nn.Module:
    """Returns three convolutions with BatchNorm, and dropout before each of two linear layers."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.Flatten(),
        nn.Dropout(0.25), nn.Linear(32 * 49, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, classes),
    )  # fmt: skip


class Block(nn.Module):
    """``relu(x' + bn(conv(relu(bn(conv(x))))))``, where ``x'`` is ``x`` or a 1×1 convolution of it.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, outputs, H / stride, W / stride)``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def small_resnet(classes: int = 10) -> nn.Module:
    """Returns a stem of stride 2, three residual blocks, the mean over the image and one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip
