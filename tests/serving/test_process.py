"""`petm serve` as a process: under load, ended under load, and what it refuses to start with."""

import asyncio
import http.client
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

from networks import randomise
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.data.base import Data
from petm.errors import BundleError, ModelError, RunError
from petm.grading.grade_table import read_grades
from petm.grading.grader import Grader, fit_grader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.selective.targets import Recall
from petm.serving.app import make_app
from petm.serving.connections import Connection, Seldom, most_connections
from petm.serving.engine import EngineEndedError
from petm.serving.engine_process import EngineProcess
from petm.serving.limits import Limits
from petm.serving.server import is_loopback, listening
from small_engines import Sums, dies, fails, sleeps

CLIENTS = 16


@pytest.fixture(scope="module")
def grader(_trained: nn.Module, digits: tuple[Data, ...]) -> Grader:
    adapted = randomise(attach_adapter(_trained, {"fc1": 4, "fc2": 5}), scale=0.25)
    origin = Origin(ModelOrigin("networks:TinyCNN"), InputOrigin((28, 28), 1))
    return fit_grader(adapted, digits[1], target=Recall(0.8), origin=origin)


@pytest.fixture(scope="module")
def bundle(grader: Grader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "digits.petm"
    grader.save(path, include_base=True)
    return path


@pytest.fixture(scope="module")
def requests(grader: Grader, digits: tuple[Data, ...]) -> list[tuple[bytes, int]]:
    """Bodies with one image each, and the label that it gets."""
    values = (digits[2].inputs(range(64))[:, 0].numpy() * 255).round().astype(np.uint8)
    bodies = []
    for image in values:
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG")
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        bodies.append(head + file.getvalue() + b"\r\n--x--\r\n")
    return list(zip(bodies, grader.grade(values[:, None]).labels.tolist(), strict=True))


Serve = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture(scope="module")
def serve(bundle: Path) -> Iterator[Serve]:
    """Starts ``petm serve`` and returns its process and port once it is ready; each test ends the one it starts."""
    started = []

    def start(
        *arguments: str, files: int | None = None, patience: float | None = None
    ) -> tuple["subprocess.Popen[str]", int]:
        places = [str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
        code = ["-m", "petm"]
        if patience is not None:
            setting = f"from petm.serving import connections; connections.PATIENCE = {patience}"
            code = ["-c", f"{setting}; from petm.cli import main; main()"]
        command = [sys.executable, *code, "serve", str(bundle), "--trust-bundle-code", "--port", "0", *arguments]
        if files is not None:
            command = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "-", *command]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        started.append(process)
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+) serves", line) for line in process.stderr)))
        port = int(found[1])
        for _ in range(600):
            try:
                if ask(port, "GET", "/readyz")[0] == 200:
                    return process, port
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError("not ready")

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "multipart/form-data; boundary=x"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_sigterm_under_load_answers_every_accepted_request(serve: Serve, requests: list[tuple[bytes, int]]) -> None:
    process, port = serve()
    right, wrong, lost = [0] * CLIENTS, [0] * CLIENTS, [0] * CLIENTS

    def client(number: int) -> None:
        connection: http.client.HTTPConnection | None = None
        for place in range(number, 10**9, CLIENTS):
            body, label = requests[place % len(requests)]
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            try:
                connection.request("POST", "/grade", body, {"content-type": "multipart/form-data; boundary=x"})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                lost[number] += 1
                return
            good = answer.status == 200 and json.loads(content)["grades"][0]["label"] == label
            (right if good else wrong)[number] += 1
            if answer.getheader("connection") == "close":
                connection.close()
                connection = None

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while sum(right) < 300:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd does: to inference too
    assert process.wait(60) == 0
    for thread in threads:
        thread.join(60)
    assert (sum(wrong), sum(lost)) == (0, 0)
    assert min(right) > 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_kill_9_loses_no_grade_that_was_answered(
    serve: Serve, requests: list[tuple[bytes, int]], tmp_path: Path
) -> None:
    grades = tmp_path / "grades.jsonl"
    process, port = serve("--grades-file", str(grades), "--audit", "0.5")
    answered = [0] * 4

    def client(number: int) -> None:
        with suppress(OSError, http.client.HTTPException):
            for place in range(number, 10**9, 4):
                answered[number] += ask(port, "POST", "/grade", requests[place % len(requests)][0])[0] == 200

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while sum(answered) < 100:
        time.sleep(0.01)
    process.kill()
    for thread in threads:
        thread.join(60)
    assert sum(len(batch) for batch in read_grades(grades)) >= sum(answered)
    process, port = serve("--grades-file", str(grades), "--audit", "0.5")
    assert ask(port, "POST", "/grade", requests[0][0])[0] == 200
    assert grades.read_bytes().endswith(b"\n")
    process.terminate()
    assert process.wait(60) == 0


def told(port: int, content: bytes, patience: float = 30) -> bytes:
    """All that a service answers to the content until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), patience) as connection:
        connection.sendall(content)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


Service = tuple["subprocess.Popen[str]", int]


@pytest.fixture(scope="module")
def strangers(serve: Serve) -> Service:
    """One service for the requests that are none; the last test that uses it ends it."""
    return serve("--max-body-mib", "0.1")


@pytest.mark.slow
def test_a_body_whose_end_is_doubtful_is_refused_and_the_connection_closed(strangers: Service) -> None:
    _, port = strangers
    hidden = b"0\r\n\r\nGET /about HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for version, framing in (
        (b"1.1", b"content-length: 4\r\ntransfer-encoding: chunked"),
        (b"1.1", b"transfer-encoding: chunked\r\ncontent-length: 4"),
        (b"1.0", b"transfer-encoding: chunked"),
        (b"1.1", b"content-length: 4\r\ncontent-length: 5"),
        (b"1.1", b"content-length: -4"),
        (b"1.1", b"content-length: " + b"9" * 30),
        (b"1.1", b"transfer-encoding: gzip, chunked"),
    ):
        head = b"POST /grade HTTP/" + version + b"\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        answer = told(port, head + framing + b"\r\n\r\n" + hidden)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), framing
        assert answer.count(b"HTTP/1.1 ") == 1, framing


@pytest.mark.slow
def test_it_answers_what_is_not_http_and_ends_on_ctrl_c(strangers: Service, requests: list[tuple[bytes, int]]) -> None:
    process, port = strangers
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(inference_of(process.pid), number)  # which inference ignores
    for content in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", b"\0" * 1000):
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(content)
            assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")) or content[0] == 0
    assert ask(port, "POST", "/grade", bytes(150_000))[0] == 413
    half = socket.create_connection(("127.0.0.1", port), 10)  # a client that never ends its request
    half.sendall(b"POST /grade HTTP/1.1\r\nhost: localhost\r\n")
    assert ask(port, "POST", "/grade", requests[0][0])[0] == 200
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 0
    half.close()


@pytest.mark.slow
def test_idle_and_slow_clients_lose_their_connections_and_fill_no_log(serve: Serve) -> None:
    process, port = serve(files=256, patience=2)
    with ExitStack() as clients:
        for _ in range(400):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        lasted, deadline = 0.0, time.monotonic() + 60
        while lasted < 1 and time.monotonic() < deadline:  # one beyond the most connections is closed at once
            lasted = lasted_while_sending_slowly(port)
        assert 1 < lasted < 20
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 256
    assert ask(port, "GET", "/healthz")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert len(process.stderr.read()) < 10_000


def lasted_while_sending_slowly(port: int) -> float:
    """The seconds after which the service has closed a connection that sends a head slowly."""
    began = time.monotonic()
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as slow:
        for byte in b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 100:
            slow.sendall(bytes([byte]))
            time.sleep(0.2)
    return time.monotonic() - began


def inference_of(service: int) -> int:
    """The process in which a service infers: the child that is no tracker of resources."""
    lists = [path.read_text() for path in Path(f"/proc/{service}/task").glob("*/children")]
    children = " ".join(lists).split()
    found = [pid for pid in children if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(found) == 1
    return int(found[0])


def ends(pid: int) -> bool:
    """Whether a process ends within a minute."""
    for _ in range(1200):
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_service_whose_inference_is_killed_reports_it_and_ends(
    serve: Serve, requests: list[tuple[bytes, int]]
) -> None:
    process, port = serve()
    os.kill(inference_of(process.pid), signal.SIGKILL)
    status, body = ask(port, "POST", "/grade", requests[0][0])
    assert (status, json.loads(body)) == (503, {"detail": "The service has failed and ends."})
    assert process.wait(60) == 1
    assert process.stderr is not None
    told = process.stderr.read()
    assert "Error: inference: expected" in told
    assert "Traceback" not in told


def started(make: Callable[[], Any], patience: float = 60) -> EngineProcess:
    engine = EngineProcess(make, lambda _: None, patience=patience)  # type: ignore[arg-type, return-value]
    engine.wait()
    return engine


@pytest.mark.slow
def test_an_engine_in_a_process_answers_as_in_this_one() -> None:
    engine = started(Sums)
    assert engine.run([3, 4]) == 7  # type: ignore[comparison-overlap]
    with pytest.raises(ModelError, match="no sweep for 5"):
        engine.sweep(5, [1.0])
    with pytest.raises(ModelError, match=r"^model: "):
        engine.run([])
    engine.check()
    assert engine.run([1]) == 1  # type: ignore[comparison-overlap]
    engine._pipe.close()  # as where this process is killed
    with pytest.raises(EngineEndedError, match=r"^inference: .*exit code 0"):
        engine.run([1])
    with pytest.raises(EngineEndedError):
        engine.check()
    with pytest.raises(BundleError, match=r"^damaged$"):
        started(fails)
    with pytest.raises(EngineEndedError, match=r"^inference: .*exit code 7"):
        started(dies)


@pytest.mark.slow
def test_an_engine_that_does_not_answer_is_ended() -> None:
    engine = started(Sums, patience=0.5)
    process = engine._process.pid
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(EngineEndedError, match=r"^inference: .*exit code -9"):
        engine.run([1])
    assert ends(process)


def test_the_end_does_not_wait_for_loading() -> None:
    engines: list[EngineProcess] = []

    def load(limits: Limits) -> EngineProcess:
        engines.append(EngineProcess(sleeps, lambda _: None, patience=60))  # type: ignore[arg-type, return-value]
        return engines[0]

    app, service = make_app(load, Limits())
    with TestClient(app, base_url="http://localhost"):
        while not engines:
            time.sleep(0.01)
    assert service.failure is None
    with pytest.raises(EngineEndedError):
        engines[0].check()


@pytest.mark.slow
def test_a_pass_that_hangs_does_not_delay_the_end(serve: Serve, requests: list[tuple[bytes, int]]) -> None:
    process, port = serve("--timeout", "2")
    inference = inference_of(process.pid)
    os.kill(inference, signal.SIGSTOP)
    status, body = ask(port, "POST", "/grade", requests[0][0])
    assert (status, json.loads(body)["detail"]) == (504, "It took too long. Try again with less.")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert ends(inference)


Petm = Callable[..., tuple[int, str]]


@pytest.fixture
def petm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Petm:
    """Runs ``petm ...`` and returns exit code and standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, capfd.readouterr().err

    return run


@pytest.mark.slow
def test_a_missing_bundle_ends_the_service(petm: Petm, tmp_path: Path) -> None:
    code, told = petm("serve", tmp_path / "nothing.petm", "--port", 0)
    assert code == 1
    assert told.splitlines()[-1].startswith("Error: BUNDLE: expected ")


def test_a_foreign_labels_file_ends_the_service(petm: Petm, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine\n")
    (tmp_path / "any.petm").mkdir()
    code, told = petm("serve", tmp_path / "any.petm", "--port", 0, "--labels-file", tmp_path / "notes.txt")
    assert (code, f"Error: {tmp_path / 'notes.txt'}: expected" in told) == (1, True)


def test_a_port_that_is_taken(petm: Petm, tmp_path: Path) -> None:
    (tmp_path / "any.petm").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, told = petm("serve", tmp_path / "any.petm", "--port", port)
        assert (code, f"host, port: cannot listen at 127.0.0.1:{port} " in told) == (1, True)


def test_a_wrong_model_is_answered_without_an_address(petm: Petm, bundle: Path) -> None:
    code, told = petm("serve", bundle, "--port", 0, "--model", "no_such_module:make")
    assert (code, "serves" in told, "Error: --model: no_such_module" in told) == (1, False, True)


def test_a_host_that_is_not_of_this_machine() -> None:
    with pytest.raises(RunError, match=re.escape("host, port: cannot listen at 192.0.2.1:0")):
        listening("192.0.2.1", 0)


@pytest.mark.parametrize("size", ["nan", "inf"])
def test_a_size_that_is_no_number(petm: Petm, tmp_path: Path, size: str) -> None:
    code, told = petm("serve", tmp_path / "any.petm", "--max-body-mib", size)
    assert (code, "--max-body-mib: expected" in told) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--queue", "g.csv"], 2, "--queue: expected --labels-file"),
        (["--audit", "0.1"], 2, "--audit: expected --grades-file"),
        (["--audit", "200", "--grades-file", "g.jsonl"], 1, "audit: expected a share"),
        (["--grades-file", "g.csv"], 2, "--grades-file: expected a name"),
        (["--queue", "g.csv", "--labels-file", "l.jsonl"], 1, "--queue: expected a file or folder"),
        (["--queue", "g.csv", "--labels-file", "l.jsonl", "--grades-file", "h.jsonl"], 2, "expected no --grades-file"),
    ],
)
def test_files_of_a_review_that_do_not_go_together(
    petm: Petm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, told = petm("serve", "any.petm", *arguments)
    assert (found, message in told) == (code, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["short", "ü" * 20, "with a\nline between"])
def test_a_weak_key(petm: Petm, tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    code, told = petm("serve", tmp_path / "any.petm", "--api-key-file", tmp_path / "key")
    assert (code, "Error: key: expected" in told) == (1, True)
    assert key not in told


def test_without_the_extra_it_names_what_to_install(
    petm: Petm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("petm.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, told = petm("serve", tmp_path)
    assert (code, "serve: expected" in told) == (1, True)
    assert "pip install 'petm[serve]'" in told


@pytest.mark.slow
def test_a_client_that_takes_no_byte_of_its_answer_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petm.serving.connections.PATIENCE", 1.0)
    size = 40_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def taken(port: int, wait: float) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.sleep(wait)
        count = 0
        with suppress(ConnectionResetError):
            while part := await reader.read(size):
                count += len(part)
                await asyncio.sleep(0.005)  # slow, and longer than the limit in all
        writer.close()
        return count

    async def both() -> list[int]:
        with listening("127.0.0.1", 0) as listener:
            server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_config=None))
            serving = asyncio.create_task(server.serve([listener]))
            counts = await asyncio.gather(*(taken(listener.getsockname()[1], wait) for wait in (0.0, 3.0)))
            server.should_exit = True
            await serving
            return counts

    steady, stalled = asyncio.run(both())
    assert steady > size
    assert stalled < size


def test_no_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in ((256, 128), (1024, 512), (resource.RLIM_INFINITY, 512), (64, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert most_connections(512) == connections


def test_the_log_takes_few_entries_a_minute() -> None:
    seldom, passed = Seldom(20, 60), []
    for now in (1000, 1059, 1061, 1122):
        for number in range(50):
            record = logging.makeLogRecord({"msg": "fault %d", "args": (number,), "created": now})
            if seldom.filter(record):
                passed.append(record.getMessage())
    assert len(passed) == 60
    assert passed[19:21] == ["fault 19", "fault 0 (after 80 records left out)"]
    assert passed[40] == "fault 0 (after 30 records left out)"


@pytest.mark.parametrize(
    ("host", "here"), [("localhost", True), ("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("a.org", False)]
)
def test_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here
