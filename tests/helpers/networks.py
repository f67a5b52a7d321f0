"""The small networks of the tests, and what the tests do to them."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.adapter.model import AdaptedModel


class TinyCNN(nn.Module):
    """2,574 parameters for images (N, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, stride=3)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc1 = nn.Linear(72, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class StandardisedCNN(TinyCNN):
    """The same for images from which 0.3 was subtracted, over 0.32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0.32 + 0.3)


class ResidualNet(nn.Module):
    """BatchNorm, Dropout and a residual block, for images (N, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, stride=4)
        self.bn1 = nn.BatchNorm2d(6)
        self.block = nn.Sequential()
        self.block.add_module("conv1", nn.Conv2d(6, 6, 3, padding=1, bias=False))
        self.block.add_module("bn1", nn.BatchNorm2d(6))
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(6 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.block(x))
        return self.fc(self.dropout(F.avg_pool2d(x, 2).flatten(1)))


class TiedNet(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(28, 28), nn.Linear(28, 28), nn.Linear(28, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x.mean((1, 2)))))))


class TwelveClasses(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(16, 12)


def seeded(make: type[nn.Module], seed: int = 0) -> nn.Module:
    """A freshly initialised network whose BatchNorm statistics are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    """Random images (count, 1, 28, 28), or of another shape, with values in [0, 1]."""
    return torch.rand(count, *(shape or (1, 28, 28)), generator=torch.Generator().manual_seed(seed))


def randomise(adapted: AdaptedModel, *, scale: float = 0.2, seed: int = 0) -> AdaptedModel:
    """Gives the adapter random weights, so that it changes what the model says."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (one for name in adapted.adapters for one in adapted.adapter_state(name).values()):
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return adapted


def bits_of(tensor: Tensor) -> bytes:
    """The bits of a tensor of any type, bfloat16 too, which NumPy does not have."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a model that using it must not change, as comparable values."""
    return {
        "bits": {name: bits_of(tensor) for name, tensor in model.state_dict().items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "modules": {name: id(module) for name, module in model.named_modules()},
        "parameters": {name: (id(value), value.requires_grad) for name, value in model.named_parameters()},
        "gradients": {name: value.grad for name, value in model.named_parameters()},
        "hooks": hooks(model) - hooks(model, of_petm=True),
        "text": repr(model),
    }


def hooks(model: nn.Module, *, of_petm: bool = False) -> int:
    """The number of hooks on the modules of a model, or of those that wait for a pass of petm."""
    every = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(not of_petm or getattr(hook, "__module__", "") == "petm.adapter.passes" for hook in every)


def fresh(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
