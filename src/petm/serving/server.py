"""The serving process: it listens at once, and ends when it has answered all accepted requests."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn

from petm.errors import RunError
from petm.serving.app import make_app
from petm.serving.connections import BACKLOG, Connection, Seldom, most_connections
from petm.serving.core import Service
from petm.serving.engine_process import Engine
from petm.serving.limits import Limits

HEAD = 32 * 1024  # bytes of a request's line and headers, at most
IDLE = 5  # seconds that a connection is kept without a request
LINGER = 1.0  # seconds in which open connections may send a last request, whose answer closes them
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Server(uvicorn.Server):
    """uvicorn's server, which at its end closes connections by its answers, so that no client loses a request."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, answers requests on open connections for a moment, and then closes them."""
        self._service.stop()
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER
        while self.server_state.connections and loop.time() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends normally on SIGTERM and SIGINT, at once on the second SIGINT; uvicorn would raise the signal again."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    load: Callable[[Limits], Engine],
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    labels: Path | None = None,
    queue: Sequence[str] = (),
    grades: Path | None = None,
    audit: float | None = None,
    key: str | None = None,
    hosts: Sequence[str] = (),
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves a grader until SIGTERM or SIGINT, with the arguments of `make_app` and `listening`.

    ``hosts`` are allowed beside the names of this machine; where there are none, a service that listens beyond this
    machine allows all. ``started`` is called with the address, once the grader is ready.

    Raises:
        RunError: The address is taken, or not of this machine.
        Exception: Whatever ``load`` raised.
    """
    allowed = (*_LOOPBACK, host, *hosts) if hosts or is_loopback(host) else ()
    listener = listening(host, port)
    address = f"http://{host if ':' not in host else f'[{host}]'}:{listener.getsockname()[1]}"
    how: Any = {"failed": lambda: stop(), "started": lambda: started(address)}
    app, service = make_app(
        load, limits, labels=labels, queue=queue, grades=grades, audit=audit, key=key, hosts=allowed, **how
    )
    # Parsers warn about every bad request; failures of the service are logged by the guard.
    handler = logging.StreamHandler()
    handler.addFilter(Seldom(20, 60))
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.ERROR, format=form, handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=Connection,
        backlog=BACKLOG,
        limit_concurrency=most_connections(limits.connections) + 1,  # which is refused
        ws="none",
        h11_max_incomplete_event_size=HEAD,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=round(2 * limits.timeout) + 1,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
    )
    server = Server(config, service)

    def stop() -> None:
        server.should_exit = True

    with listener:
        server.run([listener])
    if service.failure is not None:
        raise service.failure


def is_loopback(host: str) -> bool:
    """Returns whether only programs on this machine reach a host."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket bound to a name or an address of this machine; port 0 takes a free one.

    Raises:
        RunError: The address is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol, asyncio leaves Nagle's algorithm on, and answers wait 40 ms for acknowledgements.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"host, port: cannot listen at {host}:{port} ({reason}). Choose another.") from error
    return listener
