"""What a service bears, and how it refuses what is beyond."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from petm.errors import ArgumentError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's formats that are read. Others have parsers that few people look at, and some start other programs."""


@dataclass(frozen=True)
class Limits:
    """What a service bears.

    Attributes:
        batch: Inputs in one pass.
        wait: Seconds that an input waits at most for others that are still being decoded; 0 waits for none.
        body: Bytes of a request's body.
        pixels: Of an image.
        characters: Of a text.
        inputs: In one request.
        queue: Inputs that are accepted and not yet answered, over all requests.
        timeout: Seconds from a request's head to its answer.

    Raises:
        ArgumentError: One is not positive, or a single request may hold more inputs than the queue.
    """

    batch: int = 64
    wait: float = 0.002
    body: int = 32 * 2**20
    pixels: int = 24_000_000
    characters: int = 200_000
    inputs: int = 256
    queue: int = 1024
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "wait" else 1e-3
            if not least <= value < float("inf"):
                rule = "at least 0" if field.name == "wait" else "above 0"
                raise ArgumentError(f"{field.name}: expected a number {rule}, got {value}.")
        if self.inputs > self.queue:
            raise ArgumentError(
                f"queue: expected at least the {self.inputs} inputs that one request may hold, got {self.queue}. "
                f"Allow more, or fewer inputs a request."
            )

    @property
    def bodies(self) -> int:
        """Bytes of all bodies that are held at once."""
        return 8 * self.body


class Refusal(Exception):  # noqa: N818 - an answer to a client rather than an error of ours
    """A request that is not answered as it asks.

    Args:
        status: Of the answer.
        sentence: Why, in words that repeat nothing of what was sent.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def busy(sentence: str) -> Refusal:
    """Returns the refusal of a request that may come again in a second."""
    return Refusal(429, sentence, {"Retry-After": "1"})


class Unreadable(Exception):  # noqa: N818 - the grade of one input rather than an error of ours
    """An input that cannot be read; its text says why, and repeats nothing of the input."""
