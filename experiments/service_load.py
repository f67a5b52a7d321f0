"""`petm serve` under load: throughput and latency, malformed requests, and the end under load.

Sixteen clients in a process of their own send single images, each waiting for its answer. Constants stand beside the
service (`service_constant.py`), and the service without batching, in turn. Every answer is held against what the grader
itself says of the same images.

    petm export my.petm -o my.onnx
    python -m experiments.service_load my.petm --graph my.onnx -o docs/measured/service.json
"""

import argparse
import asyncio
import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from experiments.machine import describe_machine
from experiments.service_malformed import FORM, http, malformed, part
from petm._internal.files import write_json
from petm.data.digits import load_digits
from petm.data.fields import one_tensor

CONSTANT = ("-m", "experiments.service_constant")
CLIENTS = 16
Expected = list[tuple[int, str]]
"""Label and grade of each image."""


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


def digits(count: int, bundle: Path) -> tuple[list[bytes], Expected]:
    """The images as PNG, and what `petm grade` says of them."""
    inputs = one_tensor(load_digits()[2].inputs(range(count)), "of digits").numpy()
    with tempfile.TemporaryDirectory() as name:
        folder, table = Path(name, "images"), Path(name, "grades.csv")
        folder.mkdir()
        for index, image in enumerate((inputs[:, 0] * 255).round().astype(np.uint8)):
            Image.fromarray(image).save(folder / f"{index:05}.png")
        command = [sys.executable, "-m", "petm", "grade", str(bundle), str(folder), "-o", str(table)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        encoded = [Path(row["input"]).read_bytes() for row in rows]
    return encoded, [(int(row["label"]), row["grade"]) for row in rows]


class Served:
    """A server in a process of its own."""

    def __init__(self, *arguments: str, threads: str = "1") -> None:
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the server
        self.process = subprocess.Popen(
            [sys.executable, *arguments, "--port", "0"], stderr=self.log, text=True, env=environment
        )
        found = None
        while found is None:
            time.sleep(0.1)
            found = re.search(r"http://127.0.0.1:(\d+) ", self.said())
            if self.process.poll() is not None:
                raise SystemExit(self.said())
        self.port = int(found[1])
        self.wait()

    def said(self) -> str:
        """What it has written on standard error."""
        self.log.seek(0)
        return self.log.read()

    def wait(self) -> None:
        """Waits until it is ready."""
        for _ in range(600):
            try:
                if asyncio.run(Client(self.port).ask(http("GET /readyz", b"", "text/plain")))[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit("The server does not become ready.")

    def processes(self) -> list[Path]:
        """Its process and those that it has started, in /proc."""
        own = Path(f"/proc/{self.process.pid}")
        started = " ".join(path.read_text() for path in own.glob("task/*/children")).split()
        return [own, *(Path("/proc", pid) for pid in started)]

    def memory(self, which: str = "VmRSS:") -> int:
        """Resident bytes of all its processes, now; or with ``VmHWM:`` at most."""
        states = [(path / "status").read_text() for path in self.processes()]
        return sum(1024 * int(state.split(which)[1].split()[0]) for state in states)

    def cpu_seconds(self) -> float:
        """Processor time so far, of all its processes."""
        fields = [(path / "stat").read_text().rpartition(")")[2].split() for path in self.processes()]
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def figures(self) -> dict[str, float]:
        """What /metrics says."""
        text = asyncio.run(Client(self.port).ask(http("GET /metrics", b"", "text/plain")))[1].decode()
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    def end(self) -> int:
        """Ends it as a scheduler does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def throughput(
    bundle: Path, graph: Path | None, images: list[bytes], expected: Expected, seconds: float, rounds: int
) -> dict[str, Any]:
    """The constants, and the service with batching and without, in turn."""
    requests = [http("POST /grade", part(image), FORM) for image in images]
    ways: dict[str, tuple[list[str], Expected | None]] = {
        f"constant_{what}": ([*CONSTANT, what], None) for what in ("own", "form", "body")
    }
    for kind, path in (("bundle", bundle), ("graph", graph)):
        if path is not None:
            ways[kind] = (["-m", "petm", "serve", str(path)], expected)
            ways[f"{kind}_one_by_one"] = (["-m", "petm", "serve", str(path), "--max-batch", "1"], expected)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (arguments, answers) in ways.items():
            server = Served(*arguments)
            with clients(server.port, requests, answers, 2) as warm:
                warm()
            before, cpu = server.figures() if answers else {}, server.cpu_seconds()
            with clients(server.port, requests, answers, seconds) as result:
                found[name].append(result())
            cpu = server.cpu_seconds() - cpu
            found[name][-1]["server_cpu_ms_per_request"] = 1000 * cpu / found[name][-1]["answered"]
            if answers:
                after = server.figures()
                passes = after["petm_batch_inputs_count"] - before["petm_batch_inputs_count"]
                inputs = after["petm_batch_inputs_sum"] - before["petm_batch_inputs_sum"]
                found[name][-1]["inputs_per_pass"] = inputs / passes
            found[name][-1]["exit_code"] = server.end()
            print(name, json.dumps(found[name][-1]), flush=True)
    rates = {name: np.array([each["requests_per_second"] for each in runs]) for name, runs in found.items()}
    shares = {
        f"{kind}_over_{other}": (rates[kind] / rates[other]).tolist()
        for kind in ("bundle", "graph")
        for other in rates
        if kind in rates and (other.startswith("constant") or other == f"{kind}_one_by_one")
    }
    return found | {"ratios": shares}


def fuzz(bundle: Path, images: list[bytes], expected: Expected, count: int) -> dict[str, Any]:
    """Malformed requests among good ones."""
    server = Served("-m", "petm", "serve", str(bundle))
    requests = [http("POST /grade", part(image), FORM) for image in images]
    with clients(server.port, requests, expected, 5) as warm:
        warm()
    before = server.memory()
    began = time.monotonic()
    with clients(server.port, requests, expected, 1e9 if count < 0 else count / 100) as result:
        told = asyncio.run(_send_malformed(server.port, count))
        took = time.monotonic() - began
        good = result()
    peak = server.memory("VmHWM:")
    time.sleep(5)
    after = server.memory()
    return {
        "malformed": count,
        "seconds": took,
        "answers": dict(sorted(told.items())),
        "server_errors": sum(number for name, number in told.items() if name.startswith("5")),
        "good": good,
        "memory_before": before,
        "memory_peak": peak,
        "memory_after": after,
        "memory_ratio": after / before,
        "lines_in_the_log": len(server.said().splitlines()) - 1,
        "exit_code": server.end(),
    }


async def _send_malformed(port: int, count: int) -> Counter[str]:
    told: Counter[str] = Counter()

    async def some(start: int) -> None:
        for number in range(start, count, 4):
            client = Client(port)
            try:
                status, body = await asyncio.wait_for(client.ask(malformed(number)), 60)
                told[str(status)] += 1
                if b"Traceback" in body or b'File "' in body:
                    told["5xx: a stack trace"] += 1
            except OSError:
                told["connection closed"] += 1
            finally:
                client.close()

    await asyncio.gather(*map(some, range(4)))
    return told


def end_under_load(bundle: Path, images: list[bytes], expected: Expected, times: int) -> dict[str, Any]:
    """SIGTERM while all clients ask."""
    runs = []
    for number in range(times):
        server = Served("-m", "petm", "serve", str(bundle))
        with clients(server.port, [http("POST /grade", part(image), FORM) for image in images], expected, 60) as result:
            while server.figures().get('petm_requests_total{path="/grade",status="200"}', 0) < 500 + 37 * number:
                time.sleep(0.05)
            began = time.monotonic()
            code = server.end()
            took = time.monotonic() - began
            runs.append(result() | {"exit_code": code, "seconds_to_end": took})
        print("end", json.dumps(runs[-1]), flush=True)
    keys = ("answered", "lost", "wrong", "exit_code", "seconds_to_end")
    return {"runs": [{key: run.get(key, 0) for key in keys} for run in runs], "lost": sum(run["lost"] for run in runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("runs/demo/grader.petm"))
    parser.add_argument("--graph", type=Path, help="The same grader as petm export writes it.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/measured/service.json"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--ends", type=int, default=10)
    options = parser.parse_args()
    images, expected = digits(256, options.bundle)
    found = {"machine": describe_machine(torch.device("cpu")), "clients": CLIENTS, "load_before": os.getloadavg()}
    if options.rounds:
        found["throughput"] = throughput(
            options.bundle, options.graph, images, expected, options.seconds, options.rounds
        )
    if options.malformed:
        found["malformed"] = fuzz(options.bundle, images, expected, options.malformed)
        print(json.dumps(found["malformed"]))
    if options.ends:
        found["end_under_load"] = end_under_load(options.bundle, images, expected, options.ends)
    found["load_after"] = os.getloadavg()
    write_json(options.output, found)


if __name__ == "__main__":
    main()
