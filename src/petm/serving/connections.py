"""Connections within limits of number and time, whatever their clients do or leave undone."""

import asyncio
import logging
import sys
from collections.abc import Callable

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 64
"""Connections that are accepted in one go, and that wait for it."""
PATIENCE = 10.0
"""Seconds for a request's head, from the connection's start or its own first byte on; or without a byte taken."""
_OWN_FILES = 64
"""Descriptors of the service itself: files, pipes, sockets that it listens at."""
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


def most_connections(wanted: int) -> int:
    """Returns the number of connections to hold: ``wanted``, or less where the process may not open so many files."""
    if sys.platform == "win32":
        return wanted
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - BACKLOG - _OWN_FILES))


class Connection(H11Protocol):
    """uvicorn's connection, with limits.

    The one that makes ``limit_concurrency`` of uvicorn's settings is refused before anything is read from it. One whose
    client does not send a whole head in time, or takes no byte of its answer for so long, is closed.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or refuses it."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self.connections.discard(self)
            transport.write(_FULL)
            transport.close()
            return
        transport.set_write_buffer_limits(0)  # calls pause_writing for whatever the client does not take at once
        self._start("head", transport.close)

    def data_received(self, data: bytes) -> None:
        """Reads on, and limits the time for what belongs to no request that is being answered."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._start("head", self.transport.close)
        else:
            self._end("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the limits."""
        self._end("head")
        self._end("answer")
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP; where an answer has begun, only by closing."""
        try:
            super().send_400_response(msg)
        except LocalProtocolError:
            self.transport.close()

    def pause_writing(self) -> None:
        """Limits the time in which the client takes no byte."""
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Ends that limit."""
        super().resume_writing()
        self._end("answer")

    def _watch(self, before: int) -> None:
        def check() -> None:
            self._end("answer")
            left = self.transport.get_write_buffer_size()
            if left < before:
                self._watch(left)
            else:
                self.transport.abort()

        self._start("answer", check)

    def _start(self, limit: str, end: Callable[[], None]) -> None:
        if limit not in self._timers:
            self._timers[limit] = self.loop.call_later(PATIENCE, end)

    def _end(self, limit: str) -> None:
        if timer := self._timers.pop(limit, None):
            timer.cancel()


class Seldom(logging.Filter):
    """Lets at most ``most`` records through in each ``period`` (seconds), so that no client can fill a disk."""

    def __init__(self, most: int, period: float) -> None:
        super().__init__()
        self._most, self._period, self._since, self._count = most, period, 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the record may pass; the first after a gap says how many did not."""
        if abs(record.created - self._since) >= self._period:  # or the clock was set back
            left_out, self._since, self._count = self._count - self._most, record.created, 0
            if left_out > 0:
                record.msg, record.args = f"{record.getMessage()} (after {left_out:,} records left out)", None
        self._count += 1
        return self._count <= self._most
