"""Ctrl-C and SIGTERM, taken when it suits."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag while the block runs; yields the function that reads it.

    Whoever reads the flag stops where nothing is cut in two. A second signal interrupts at once. Outside the main
    thread, which alone may handle signals, they keep their usual effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
