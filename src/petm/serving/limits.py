"""Limits of a service.

A request that is refused raises HTTPException, whose words repeat nothing of what was sent.
"""

from dataclasses import dataclass, fields

from starlette.exceptions import HTTPException

from petm.errors import ArgumentError


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Raises:
        ArgumentError: One is not positive, or a single request may hold more inputs than the queue.
    """

    batch: int = 64  # inputs in one pass
    wait: float = 0.002  # seconds that an input waits for others that are still being decoded; 0 waits for none
    body: int = 32 * 2**20  # bytes of a request's body
    pixels: int = 24_000_000  # of an image
    characters: int = 200_000  # of a text
    inputs: int = 256  # in one request
    queue: int = 1024  # inputs that are accepted and not yet answered, over all requests
    connections: int = 512  # open at once; fewer where the process may open fewer files
    timeout: float = 30.0  # seconds from a request's head to its answer

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


AGAIN = {"Retry-After": "1"}
"""Headers of the refusal of a request that may be sent again after a second."""


def too_many(limits: Limits) -> HTTPException:
    """Returns the refusal of more inputs than a request may hold."""
    return HTTPException(413, f"The request holds more than {limits.inputs} inputs. Send fewer at a time.")


class Unreadable(Exception):  # noqa: N818 - the grade of one input rather than an error of ours
    """An input that cannot be read; the text is the reason, and repeats nothing of the input."""
