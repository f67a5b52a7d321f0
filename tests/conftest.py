"""What several test files share: digits, and a network that is right most of the time."""

import copy
import functools
import gc
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn
from torch.nn import functional as F

from networks import TinyCNN, seeded
from petm.data.base import Data
from petm.data.digits import load_digits
from s3_store import serve_bucket

# The same few examples in each run and on each machine, however busy it is.
settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, max_examples=30,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("repeatable")

# Modules and tests stay: to look for garbage among them would take a quarter of the time of their collection.
gc.disable()

# Networks this small only wait for each other on several threads, and more so beside pytest-xdist.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Has pytest-xdist hand out files in the order below, instead of those with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs files with slow tests first, so that at the end no process waits for another's long file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Looks for garbage again, among what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def digits() -> tuple[Data, ...]:
    """Train, calibration and test digits; nobody changes them."""
    return load_digits()


@pytest.fixture(scope="session")
def _trained(digits: tuple[Data, ...]) -> nn.Module:
    """Trained by a loop of its own, so that a fault in petm's does not hide behind another."""
    model = seeded(TinyCNN)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for rows in torch.randperm(len(digits[0]), generator=generator).split(64):
            inputs, labels = digits[0].__getitems__(rows.tolist())
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture
def model(_trained: nn.Module) -> nn.Module:
    """A: a small network that gets most digits right and some wrong, in eval mode."""
    return copy.deepcopy(_trained)


@pytest.fixture(autouse=True)
def _operators_are_read_once() -> None:
    """Has graph exports share what PyTorch reads from the source of 500 operators anew for each: half of their time."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")  # after the first export
    registry = getattr(registration, "ONNXRegistry", None)
    if registry and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Settings of an S3 server on this machine, with an empty bucket ``shelf``, as they stand behind an address."""
    yield from serve_bucket()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a test asks the network."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
