"""Engines without a model: what another process imports to make one is not a whole test file."""

import os
import time
from collections.abc import Sequence
from typing import Any

from petm.errors import BundleError, ModelError


class Stubborn(Exception):  # noqa: N818
    """An error that cannot be read again from its pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Sums:
    """An engine that adds its inputs."""

    reader = facts = None

    def run(self, inputs: Sequence[Any]) -> int:
        if not inputs:
            raise Stubborn(1, 2)
        return sum(inputs)

    def sweep(self, sample: int, alphas: Sequence[float]) -> list[list[float]]:
        raise ModelError(f"no sweep for {sample}")


def fails() -> Any:
    raise BundleError("damaged")


def dies() -> Any:
    os._exit(7)


def sleeps() -> Any:
    time.sleep(3600)  # longer than a test may take
