"""Sixteen HTTP clients in a process of their own, as lean as they can be: for `benchmarks/service.py`."""

import asyncio
import json
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

CLIENTS = 16
Expected = list[tuple[int, str]]
"""Label and grade of each image."""


def form_request(image: bytes) -> bytes:
    """A whole HTTP request with one file."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + image + b"\r\n--x--\r\n"
    return http("POST /grade", body, "multipart/form-data; boundary=x")


def http(line: str, body: bytes, kind: str) -> bytes:
    """An HTTP request as it is on the wire."""
    head = f"{line} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1", "replace") + body


class Client:
    """One connection, opened again where the server closes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Returns status and body; ConnectionRefusedError where nobody listens, another OSError where it is lost."""
        if self.stream is None:
            self.stream = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.stream
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            body = await (reader.readexactly(int(length[1])) if length else reader.read())
        except (asyncio.IncompleteReadError, OSError) as error:
            self.close()
            raise ConnectionResetError("no whole answer") from error
        if b"connection: close" in head or not length:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Closes the connection."""
        if self.stream is not None:
            self.stream[1].close()
            self.stream = None


async def _good(
    port: int, number: int, requests: list[bytes], expected: Expected | None, until: float
) -> dict[str, Any]:
    """One client's requests, one after the other."""
    client, times, counts, place = Client(port), [], Counter[str](), number
    while time.monotonic() < until:
        place = (place + CLIENTS) % len(requests)
        began = time.perf_counter()
        try:
            status, body = await client.ask(requests[place])
        except ConnectionRefusedError:
            break
        except OSError:
            counts["lost"] += 1
            continue
        times.append(time.perf_counter() - began)
        counts["answered"] += 1
        counts[f"status {status}"] += 1
        row = json.loads(body)["grades"][0] if status == 200 else {}
        if expected and row:
            counts["wrong"] += (row["label"], row["grade"]) != expected[place]
    client.close()
    return {"times": times, "counts": counts}


async def _all(port: int, requests: list[bytes], expected: Expected | None, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds
    began = time.monotonic()
    done = await asyncio.gather(*(_good(port, number, requests, expected, until) for number in range(CLIENTS)))
    took, times = time.monotonic() - began, np.concatenate([each["times"] for each in done])
    counts = sum((each["counts"] for each in done), Counter[str]())
    p50, p99 = np.quantile(times, [0.5, 0.99]).tolist()
    return {
        "requests_per_second": len(times) / took,
        "p50_ms": 1000 * p50,
        "p99_ms": 1000 * p99,
        "p99_over_p50": p99 / p50,
        "worst_ms": 1000 * float(times.max()),
        "lost": counts.pop("lost", 0),
        "wrong": counts.pop("wrong", 0),
        **counts,
    }


def _client_process(
    connection: Any, port: int, requests: list[bytes], expected: Expected | None, seconds: float
) -> None:
    connection.send(asyncio.run(_all(port, requests, expected, seconds)))


@contextmanager
def clients(port: int, requests: list[bytes], expected: Expected | None, seconds: float) -> Iterator[Any]:
    """Runs the clients beside the block; gives a function that waits for their figures."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_client_process, args=(there, port, requests, expected, seconds))
    process.start()
    yield here.recv
    process.join()
