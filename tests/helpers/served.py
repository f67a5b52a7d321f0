"""`petm serve` in this process, on a free port, for as long as a client asks."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest
import torch

from petm.cli import main
from petm.serving import engine_process, server

PATIENCE = 60
"""Seconds until the service takes requests."""


def serve_while(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], ask: Callable[[httpx2.Client], Any]) -> Any:
    """What ``ask`` returns for a client of ``petm serve ...``, which ends behind it.

    Inference runs in this process, as the start of another takes seconds; whatever the port, a free one is taken.
    """
    listening, running, answers = server.listening, list[Any](), list[Any]()

    class Kept(server.Server):
        def run(self, sockets: Any = None) -> None:
            running.append((self, sockets[0].getsockname()[1]))
            thread = threading.Thread(target=client)
            thread.start()
            super().run(sockets)
            thread.join()

    def client() -> None:
        service, port = running[0]
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as asking:
                until = time.monotonic() + PATIENCE
                while time.monotonic() < until and not (service.started and asking.get("/readyz").is_success):
                    time.sleep(0.02)
                answers.append(ask(asking))
        finally:
            service.should_exit = True

    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(server, "Server", Kept)
        patch.setattr(server, "listening", lambda host, port: listening("127.0.0.1", 0))
        patch.setattr(engine_process, "EngineProcess", lambda make, read, patience: make())
        patch.setattr(sys, "argv", ["petm", "serve", *arguments])
        main()
    torch.set_num_threads(threads)
    (answer,) = answers
    return answer
