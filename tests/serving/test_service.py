"""The service in one process: what its paths answer, what it refuses, what it keeps, and how batches form."""

import asyncio
import hashlib
import json
import re
import struct
import threading
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

import hf_folders
from networks import randomise
from petm.adapter.model import Cascade, Member, attach_adapter, views_alone
from petm.data.base import Data
from petm.data.labels import folder_name
from petm.data.views import MIRROR
from petm.errors import ArgumentError, BundleError, DataError, PetmWarning, RunError
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader, fit_grader
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_processors import load_processor
from petm.selective.targets import Recall
from petm.selective.thresholds import DISAGREEMENT, Threshold
from petm.serving.app import make_app
from petm.serving.batching import Batcher
from petm.serving.engine import EngineEndedError, GraderEngine, verdicts
from petm.serving.engine_process import Engine
from petm.serving.label_file import LabelFile
from petm.serving.limits import Limits
from petm.serving.reading import TextReader, reader_for

NAMES = ("zéro", *"123456789")
INPUTS = InputOrigin((28, 28), 1)
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def grader(_trained: nn.Module, digits: tuple[Data, ...]) -> Grader:
    adapted = randomise(attach_adapter(_trained, {"fc1": 4, "fc2": 5}), scale=0.25)
    return fit_grader(adapted, digits[1], target=Recall(0.8), origin=Origin(ModelOrigin(classes=NAMES), INPUTS))


@pytest.fixture(scope="module")
def images(digits: tuple[Data, ...]) -> list[bytes]:
    """Forty digits as PNG."""
    return [png(image) for image in values(digits)]


def values(digits: tuple[Data, ...]) -> np.ndarray:
    """The same as uint8 ``(40, 28, 28)``."""
    return (digits[2].inputs(range(40))[:, 0].numpy() * 255).round().astype(np.uint8)


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def engine_of(grader: Grader | OnnxGrader) -> Callable[[Limits], Engine]:
    return lambda limits: GraderEngine(grader, reader_for(grader.origin.inputs, limits))


def client_of(load: Callable[[Limits], Engine], limits: Limits = Limits(), **settings: Any) -> TestClient:  # noqa: B008
    app, _ = make_app(load, limits, **settings)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def ready(client: TestClient) -> TestClient:
    for _ in range(500):
        if client.get("/readyz").status_code == 200:
            return client
        time.sleep(0.01)
    raise AssertionError("not ready")


@pytest.fixture(scope="module")
def client(grader: Grader) -> Iterator[TestClient]:
    with client_of(engine_of(grader)) as client:
        yield ready(client)


@pytest.fixture
def labelled(grader: Grader, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(engine_of(grader), labels=tmp_path / "labels.jsonl") as client:
        yield ready(client)


def sent(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{number}.png", image)) for number, image in enumerate(images)]


def encoded(*images: bytes) -> dict[str, list[str]]:
    return {"images": [b64encode(image).decode() for image in images]}


# POST /grade


def test_grades_are_those_of_the_grader(
    client: TestClient, grader: Grader, digits: tuple[Data, ...], images: list[bytes]
) -> None:
    grades = grader.grade(values(digits)[:, None])
    rows = client.post("/grade", files=sent(*images)).raise_for_status().json()["grades"]
    assert [row["input"] for row in rows] == [f"{number}.png" for number in range(40)]
    assert [row["label"] for row in rows] == grades.labels.tolist()
    assert [row["label_name"] for row in rows] == [NAMES[label] for label in grades.labels]
    assert [row["second"] for row in rows] == grades.second.tolist()
    assert [row["grade"] for row in rows] == ["trusted" if trusted else "suspect" for trusted in grades.trusted]
    np.testing.assert_allclose([row["suspicion"] for row in rows], grades.suspicion, rtol=1e-4)
    np.testing.assert_allclose([row["probability_of_error"] for row in rows], grades.probability_of_error, rtol=1e-4)
    assert {row["grade"] for row in rows} == {"trusted", "suspect"}
    assert grades.candidate_names is not None
    assert [tuple(row["candidates"]) for row in rows] == grades.candidate_names.tolist()


def test_base64_is_graded_like_files(client: TestClient, images: list[bytes]) -> None:
    by_file = client.post("/grade", files=sent(*images[:5])).json()["grades"]
    by_text = client.post("/grade", json=encoded(*images[:5])).json()["grades"]
    assert [row.pop("input") for row in by_text] == [None] * 5
    for row, other in zip(by_text, by_file, strict=True):
        assert row["label"] == other["label"]
        assert row["suspicion"] == pytest.approx(other["suspicion"], rel=1e-4)


def test_opinions_are_the_softmax_of_both_logits(
    client: TestClient, grader: Grader, digits: tuple[Data, ...], images: list[bytes]
) -> None:
    x = torch.from_numpy(values(digits)[:3, None]).float() / 255
    with torch.no_grad():
        base, opinion = grader.adapted(x, alpha=0).softmax(1), grader.adapted(x).softmax(1)
    rows = client.post("/grade?opinions=true", files=sent(*images[:3])).json()["grades"]
    np.testing.assert_allclose([row["base"] for row in rows], base.numpy(), atol=1e-5)
    np.testing.assert_allclose([row["opinion"] for row in rows], opinion.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def graph(grader: Grader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(grader, path)
    return path


def test_a_graph_answers_as_the_bundle_does(client: TestClient, graph: Path, images: list[bytes]) -> None:
    with client_of(engine_of(OnnxGrader(graph))) as exported:
        rows = ready(exported).post("/grade?opinions=true", files=sent(*images)).json()["grades"]
        expected = client.post("/grade?opinions=true", files=sent(*images)).json()["grades"]
        assert [(row["label"], row["grade"]) for row in rows] == [(row["label"], row["grade"]) for row in expected]
        np.testing.assert_allclose([row["opinion"] for row in rows], [row["opinion"] for row in expected], atol=1e-5)
        assert exported.get("/about").json()["sweep"] is False
        refused = exported.post("/sweep", json={"image": encoded(images[0])["images"][0], "alphas": [1]})
        assert refused.status_code == 404


def bomb(side: int) -> bytes:
    """A PNG that says it has ``side`` × ``side`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


NO_IMAGE = "The file is not an image of a known format, or it is damaged."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The file is empty."),
        (b"not an image", NO_IMAGE),
        (png(np.eye(28, dtype=np.uint8))[:48], NO_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
        (bomb(5000), "The image has more than 24,000,000 pixels."),
        (bomb(12_000), "The image has more than 24,000,000 pixels."),
        (bomb(60_000), "The image has more than 24,000,000 pixels."),
    ],
)
def test_an_unreadable_image_does_not_spoil_the_others(
    client: TestClient, images: list[bytes], content: bytes, reason: str
) -> None:
    alone = client.post("/grade", files=sent(images[0])).json()["grades"][0]
    first, bad, last = client.post("/grade", files=sent(images[0], content, images[1])).json()["grades"]
    assert (bad["grade"], bad["reason"], bad["label"], bad["suspicion"]) == ("unreadable", reason, None, None)
    assert first["label"] == alone["label"]
    assert last["grade"] in ("trusted", "suspect")


@pytest.mark.parametrize(
    "spelled",
    [
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f" DATA:;name=a.png;BASE64,{text}\n",
        lambda text: "\r\n".join(text[place : place + 76] for place in range(0, len(text), 76)),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.rstrip("="),
    ],
)
def test_base64_in_its_other_spellings(client: TestClient, images: list[bytes], spelled: Callable[[str], str]) -> None:
    files = images[:12]
    plain = [b64encode(file).decode() for file in files]
    assert {len(file) % 3 for file in files} == {0, 1, 2}
    assert {"+", "/"} < set("".join(plain))
    expected = client.post("/grade", files=sent(*files)).json()["grades"]
    found = client.post("/grade", json={"images": [spelled(text) for text in plain]}).json()["grades"]
    for row, other in zip(found, expected, strict=True):
        assert row["label"] == other["label"] is not None
        assert row["suspicion"] == pytest.approx(other["suspicion"], rel=1e-4)


@pytest.mark.parametrize("text", ["%%%", "A", "AB=CD", "AAé", "data:image/png,AAAA", "data:image/png;base64"])
def test_base64_that_is_none_is_unreadable(client: TestClient, text: str) -> None:
    row = client.post("/grade", json={"images": [text]}).json()["grades"][0]
    assert (row["grade"], row["reason"]) == ("unreadable", "The image is not valid base64.")


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "ICO"])
def test_other_formats_and_sizes_are_read(client: TestClient, kind: str) -> None:
    colour = np.full((300, 300, 3), 127, np.uint8)
    row = client.post("/grade", files=sent(png(colour, kind))).json()["grades"][0]
    assert row["grade"] in ("trusted", "suspect")


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
TWO = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\na\r\n' * 2  # and no end
PART = b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\na\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("content", "headers", "status", "detail"),
    [
        (b"", {}, 415, "Send application/json or multipart/form-data."),
        (b"a", {"content-type": "text/plain"}, 415, "Send application/json or multipart/form-data."),
        (b"{", JSON, 400, "The body is not valid JSON."),
        (b"[" * 100_000, JSON, 400, "The body is not valid JSON."),
        (b'{"images": ["\\ud800"]}', JSON, 400, "The body is not valid JSON."),
        (b"[]", JSON, 400, "The body: Input should be an object."),
        (b'{"secret": 1}', JSON, 400, "The body may have only images, texts."),
        (b'{"images": [1]}', JSON, 400, "images.0: Input should be a valid string."),
        (b'{"texts": ["a"]}', JSON, 400, "The body: expected only images."),
        (b'{"images": [], "texts": []}', JSON, 400, "The body: expected only images."),
        (b'{"images": []}', JSON, 400, "Send at least one input."),
        (b"--x--\r\n", FORM, 400, "Send at least one input."),
        (b"noise", FORM, 400, "The form is damaged."),
        (TWO, FORM, 400, "The form is damaged."),
        (b"a", {"content-type": "multipart/form-data"}, 400, "The form is damaged."),
        (PART, FORM, 400, "The form may have only parts with the name files."),
    ],
)
def test_bodies_that_are_refused(
    client: TestClient, content: bytes, headers: dict[str, str], status: int, detail: str
) -> None:
    answer = client.post("/grade", content=content, headers=headers)
    assert (answer.status_code, answer.json()) == (status, {"detail": detail})
    assert b"secret" not in answer.content


def test_a_query_that_is_refused_is_not_repeated(client: TestClient, images: list[bytes]) -> None:
    answer = client.post("/grade?opinions=secret", files=sent(images[0]))
    assert (answer.status_code, answer.json()) == (400, {"detail": "opinions: expected true or false."})


# methods, framing, origin


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/about", "/metrics", "/openapi.json", "/", "/page.js"])
def test_head_is_answered_as_get(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert path == "/metrics" or head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/nothing").status_code == client.get("/nothing").status_code == 404


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/grade", "OPTIONS, POST"),
        ("/sweep", "OPTIONS, POST"),
        ("/labels", "GET, HEAD, OPTIONS, POST"),
        ("/about", "GET, HEAD, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/page.js", "GET, HEAD, OPTIONS"),
    ],
)
def test_paths_tell_their_methods(client: TestClient, path: str, allow: str) -> None:
    told = client.options(path)
    assert (told.status_code, told.headers["allow"]) == (204, allow)
    for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"} - set(allow.split(", ")):
        refused = client.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allow), method


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://a.org"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://localhost"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, 403),
        ({"origin": "http://a.org"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/grade", "/sweep", "/labels"])
def test_pages_of_other_sites_send_nothing(
    labelled: TestClient, images: list[bytes], headers: dict[str, str], status: int, path: str
) -> None:
    image = b64encode(images[0]).decode()
    bodies = {"/grade": {"images": [image]}, "/sweep": {"image": image, "alphas": [1]}, "/labels": said(images[0], 3)}
    answer = labelled.post(path, json=bodies[path], headers=headers)
    assert answer.status_code == (201 if (path, status) == ("/labels", 200) else status)
    assert labelled.get("/about", headers=headers).status_code == 200
    assert bool(labelled.get("/labels").json()["labels"]) == (answer.status_code == 201)


def test_json_has_no_nan(grader: Grader, images: list[bytes]) -> None:
    class Lost(GraderEngine):
        def run(self, inputs: Sequence[Any]) -> Any:
            unread, (grades, base, second) = super().run(inputs)  # type: ignore[misc]
            grades = replace(grades, suspicion=np.full_like(grades.suspicion, np.inf))
            return unread, (grades, np.full_like(base, np.nan), second)

    nothing = replace(grader, threshold=Threshold(-np.inf, "trusts nothing"))
    with client_of(lambda limits: Lost(nothing, reader_for(INPUTS, limits))) as client:
        ready(client)
        for answer in (client.get("/about"), client.post("/grade?opinions=true", files=sent(images[0]))):
            assert answer.status_code == 200

            def refuse(constant: str) -> None:
                raise AssertionError(constant)

            found = json.loads(answer.content, parse_constant=refuse)
        row = found["grades"][0]
        assert (row["suspicion"], row["base"], row["grade"]) == (None, [None] * 10, "suspect")
        assert sum(row["opinion"]) == pytest.approx(1)


# limits


def test_a_body_that_is_too_large_is_refused_however_it_comes(grader: Grader, images: list[bytes]) -> None:
    with client_of(engine_of(grader), Limits(body=10_000)) as client:
        ready(client)
        told = "The body has more than 10,000 bytes. Send fewer inputs at a time."
        for content in (bytes(10_001), iter([bytes(6000)] * 2), iter([bytes(6000)] * 100)):
            answer = client.post("/grade", content=content, headers=FORM)
            assert (answer.status_code, answer.json()["detail"]) == (413, told)
        assert client.post("/grade", files=sent(images[0])).status_code == 200


@pytest.mark.parametrize("how", [lambda *images: {"files": sent(*images)}, lambda *images: {"json": encoded(*images)}])
def test_too_many_inputs_are_refused(grader: Grader, images: list[bytes], how: Callable[..., dict[str, Any]]) -> None:
    with client_of(engine_of(grader), Limits(inputs=3)) as client:
        assert ready(client).post("/grade", **how(*images[:3])).status_code == 200
        answer = client.post("/grade", **how(*images[:4]))
        assert (answer.status_code, answer.json()["detail"]) == (
            413,
            "The request holds more than 3 inputs. Send fewer at a time.",
        )


class Held:
    """An engine that waits until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.go, self.sizes = engine, threading.Event(), list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, inputs: Sequence[Any]) -> Any:
        self.sizes.append(len(inputs))
        assert self.go.wait(30)
        return self.engine.run(inputs)


def held(grader: Grader) -> tuple[Held, Callable[[Limits], Any]]:
    engine = Held(engine_of(grader)(Limits()))
    return engine, lambda _: engine


def test_a_full_queue_says_when_to_come_again(grader: Grader, images: list[bytes]) -> None:
    engine, load = held(grader)
    with client_of(load, Limits(queue=3, inputs=3)) as client:
        ready(client)
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(client.post("/grade", files=sent(*images[:2]))))
        waiting.start()
        while not engine.sizes:
            time.sleep(0.01)
        refused = client.post("/grade", files=sent(*images[:2]))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json() == {"detail": "Too many inputs wait. Try again."}
        engine.go.set()
        waiting.join()
        assert answers[0].status_code == 200
        assert client.post("/grade", files=sent(*images[:2])).status_code == 200


def test_what_takes_too_long_is_given_up_and_leaves_the_queue(grader: Grader, images: list[bytes]) -> None:
    engine, load = held(grader)
    with client_of(load, Limits(timeout=0.2, queue=2, inputs=2)) as client:
        ready(client)
        late = client.post("/grade", files=sent(images[0]))
        assert (late.status_code, late.json()["detail"]) == (504, "It took too long. Try again with less.")
        engine.go.set()
        assert client.post("/grade", files=sent(*images[:2])).status_code == 200


@pytest.mark.parametrize("suffix", ["%0A", "%0D", "/", "%00", "%0A%0A", ""])
def test_no_path_goes_round_the_key(grader: Grader, images: list[bytes], suffix: str) -> None:
    with client_of(engine_of(grader), key=KEY) as client:
        ready(client)
        for path in ("/about", "/labels", "/metrics", "/grade", "/sweep"):
            for ask in (client.get, client.post):
                assert ask(f"{path}{suffix}", follow_redirects=False).status_code == 401, path
        for path in ("/", "/page.js", "/sha256.js", "/page.css", "/icon.svg", "/openapi.json", "/healthz"):
            assert client.get(path).status_code == 200, path


def test_a_body_full_of_faults_is_refused_by_its_first(client: TestClient) -> None:
    for content in ({"images": [0] * 200_000}, {f"x{number}": 0 for number in range(200_000)}):
        body = json.dumps(content).encode()
        tracemalloc.start()
        assert client.post("/grade", content=body, headers={"content-type": "application/json"}).status_code == 400
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 * len(body)


def test_a_fault_of_ours_is_logged_and_not_told(
    grader: Grader, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Held):
        def run(self, inputs: Sequence[Any]) -> Any:
            raise RuntimeError("secret")

    engine = Broken(engine_of(grader)(Limits()))
    with client_of(lambda _: engine) as client:  # type: ignore[arg-type, return-value]
        answer = ready(client).post("/grade", files=sent(*images[:2]))
    assert (answer.status_code, answer.json()) == (500, {"detail": "The service failed to answer. See its log."})
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch: expected"),
        ({"wait": -1}, "wait: expected"),
        ({"timeout": float("nan")}, "timeout: expected"),
        ({"inputs": 9, "queue": 8}, "queue: expected"),
    ],
)
def test_limits_that_are_none(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Limits(**settings)


# the key, the host, headers


def test_the_key_is_wanted_where_there_is_something_to_tell(grader: Grader, images: list[bytes]) -> None:
    with client_of(engine_of(grader), key=KEY) as client:
        ready(client)
        for path in ("/about", "/metrics", "/labels"):
            assert client.get(path).status_code == 401
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": KEY + "0"}, {"X-API-Key": "é".encode()}):
            answer = client.post("/grade", files=sent(images[0]), headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"detail": "Send the key as X-API-Key."})
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            assert client.post("/grade", files=sent(images[0]), headers=headers).status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json", "/"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("a.org:80", 421)]
)
def test_another_name_is_refused(grader: Grader, host: str, status: int) -> None:
    with client_of(engine_of(grader), hosts=("localhost", "127.0.0.1", "[::1]")) as client:
        assert client.get("/healthz", headers={"host": host}).status_code == status


@pytest.mark.parametrize("path", ["/", "/about", "/nothing", "/page.js"])
def test_answers_forbid_foreign_and_inline_scripts(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


# what is told


def test_about_tells_what_is_served(client: TestClient, grader: Grader) -> None:
    about = client.get("/about").json()
    assert (about["inputs"], about["classes"], about["size"], about["channels"]) == ("images", list(NAMES), [28, 28], 1)
    assert (about["score"], about["sweep"], about["labels"]) == ("mean_opinion", True, False)
    assert about["second_opinion"]
    assert about["threshold"]["value"] == grader.threshold.value
    assert "at least 80% of the errors" in about["threshold"]["guarantee"]


@pytest.mark.parametrize(("members", "score"), [((), "softmax"), ((Member("", MIRROR),), "mean_opinion")])
def test_without_an_adapter_there_is_no_alpha_to_set(
    members: tuple[Member, ...], score: str, model: nn.Module, digits: tuple[Data, ...], images: list[bytes]
) -> None:
    origin = Origin(ModelOrigin(classes=NAMES), INPUTS)
    grader = fit_grader(views_alone(model, members), digits[1], target=Recall(0.8), score=score, origin=origin)
    with client_of(engine_of(grader)) as client:
        about = ready(client).get("/about").json()
        assert (about["sweep"], about["second_opinion"]) == (False, bool(members))
        refused = client.post("/sweep", json={"image": encoded(images[0])["images"][0], "alphas": [1]})
        assert refused.status_code == 404


def test_classes_without_names_are_numbers(grader: Grader) -> None:
    engine = GraderEngine(Grader(grader.adapted, DISAGREEMENT), reader_for(INPUTS, Limits()))
    assert engine.facts.classes == tuple("0123456789")


def test_the_cap_on_a_cascade_holds_over_all_requests(
    grader: Grader, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blank input with which an engine begins takes the only token."""
    monkeypatch.setattr(grader.adapted, "cascade", Cascade(0.0, most=0.001))
    capped = Grader(grader.adapted, Threshold(2.0, "by hand"), suspicion_named("mean_opinion"))
    engine = GraderEngine(capped, reader_for(INPUTS, Limits()))
    with pytest.warns(PetmWarning, match=r"^cascade: ") as said:
        answered = [engine.run(images[:3])[1] for _ in range(2)]
    assert len(said) == 1
    for opinions in answered:
        assert opinions is not None
        assert not opinions[0].trusted.any()
        assert (opinions[0].suspicion >= 2).all()
        assert [verdict.second for verdict in verdicts({}, opinions)] == [None] * 3


def test_the_interface_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    kept = {"/labels", "/queue", "/queue/{number}"}
    assert {"/grade", "/sweep", "/about", "/metrics", "/healthz", "/readyz"} | kept == set(paths)
    assert set(paths["/grade"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}


def test_the_page_is_there(client: TestClient) -> None:
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/../core.py").status_code == 404
    assert client.get("/%2e%2e/core.py").status_code == 404


def figures(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").raise_for_status().text.splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_metrics_count_grades_batches_and_drift(grader: Grader, digits: tuple[Data, ...], images: list[bytes]) -> None:
    with client_of(engine_of(grader)) as client:
        assert np.isnan(figures(ready(client))["petm_suspect_share"])
        rows = client.post("/grade", files=sent(*images, b"none")).json()["grades"]
        found = figures(client)
        suspect = sum(row["grade"] == "suspect" for row in rows)
        assert found['petm_grades_total{grade="suspect"}'] == suspect
        assert found['petm_grades_total{grade="trusted"}'] == 40 - suspect
        assert found['petm_grades_total{grade="unreadable"}'] == 1
        assert found["petm_suspect_share"] == pytest.approx(suspect / 40)
        assert found["petm_batch_inputs_sum"] == 41
        assert found["petm_queue_inputs"] == 0
        assert found['petm_requests_total{path="/grade",status="200"}'] == 1
        assert found['petm_request_seconds_count{path="/grade"}'] == 1
        quantiles = np.array(grader.measured["suspicion_quantiles"])
        ranks = np.array(grader.measured["suspicion_ranks"]) / grader.measured["calibration_samples"]
        suspicion = np.array([row["suspicion"] for row in rows[:40]])
        distance = max(
            abs((suspicion <= q * (1 + 1e-5)).mean() - rank) for q, rank in zip(quantiles, ranks, strict=True)
        )
        assert found["petm_suspicion_drift"] == pytest.approx(distance, abs=1e-9)
        calm = found["petm_suspicion_drift_p_value"]
        noise = [png(np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8)) for seed in range(200)]
        client.post("/grade", files=sent(*noise)).raise_for_status()
        found = figures(client)
        assert found["petm_suspicion_drift_p_value"] < 0.001 < calm
        assert found["petm_suspicion_drift"] > 0.3


# the sweep


def test_the_sweep_goes_from_the_base_model_to_the_second_opinion(
    client: TestClient, grader: Grader, digits: tuple[Data, ...], images: list[bytes]
) -> None:
    alphas = [0, 0.25, 1, 1.5]
    answer = client.post("/sweep", json={"image": encoded(images[3])["images"][0], "alphas": alphas}).json()
    x = torch.from_numpy(values(digits)[3:4, None]).float() / 255
    with torch.no_grad():
        expected = [grader.adapted(x, alpha=alpha).softmax(1)[0].tolist() for alpha in alphas]
    assert answer["alphas"] == alphas
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"image": "", "alphas": [1]}, 422, "The file is empty."),
        ({"image": "", "alphas": []}, 400, "alphas: List should have at least 1 item after validation, not 0."),
        ({"image": "", "alphas": [1e9]}, 400, "alphas.0: Input should be less than or equal to 4."),
        ({"text": "a", "alphas": [1]}, 400, "The body: expected only one image."),
        ({"alphas": [1]}, 400, "The body: expected only one image."),
    ],
)
def test_sweeps_that_are_refused(client: TestClient, body: dict[str, Any], status: int, detail: str) -> None:
    answer = client.post("/sweep", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)


# labels


def said(image: bytes, label: int | None, **further: Any) -> dict[str, Any]:
    return {"image": b64encode(image).decode(), "input": "a.png", "label": label, "confirmed": label == 3, **further}


def test_a_label_is_kept_with_its_input(labelled: TestClient, images: list[bytes], tmp_path: Path) -> None:
    digest = hashlib.sha256(images[0]).hexdigest()
    answer = labelled.post("/labels", json=said(images[0], 3, sha256=digest, grade="suspect", suspicion=0.5))
    line = json.loads((tmp_path / "labels.jsonl").read_text())
    assert (answer.status_code, answer.json()) == (201, line)
    assert (line["label"], line["label_name"], line["sha256"], line["confirmed"]) == (3, "3", digest, True)
    assert (line["input"], line["grade"], line["suspicion"]) == ("a.png", "suspect", 0.5)
    assert (tmp_path / line["path"]).read_bytes() == images[0]
    assert line["path"] == f"labels.jsonl.images/3/{digest}.png"
    assert "image" not in line
    assert labelled.get("/labels").json() == {"labels": [line]}
    assert labelled.get("/about").json()["labels"] is True


def test_a_later_word_moves_the_image_and_none_takes_it_back(
    labelled: TestClient, images: list[bytes], tmp_path: Path
) -> None:
    kept = tmp_path / "labels.jsonl.images"
    for label in (3, 0, 0, None, 7):
        labelled.post("/labels", json=said(images[0], label)).raise_for_status()
        found = sorted(path.parent.name for path in kept.rglob("*.png"))
        assert found == ([] if label is None else [NAMES[label]])
    assert [line["label"] for line in labelled.get("/labels").json()["labels"]] == [3, 0, 0, None, 7]


def test_what_was_said_can_be_fitted_on(labelled: TestClient, images: list[bytes], tmp_path: Path) -> None:
    from petm.data.opening import open_data

    for image, label in zip(images, [3, 4, 3, 0], strict=False):
        labelled.post("/labels", json=said(image, label)).raise_for_status()
    data = open_data(tmp_path / "labels.jsonl.images", classes=NAMES)
    assert sorted(data.labels.tolist()) == [0, 3, 3, 4]


ODD = ("nan", "1", " a", "a", "True", "it's", "a b", "é", "[b]", "#")


def test_labels_of_any_class_name_are_read_again(
    grader: Grader, images: list[bytes], digits: tuple[Data, ...], tmp_path: Path
) -> None:
    from petm.data.decisions import read_decided
    from petm.data.opening import open_data

    odd = replace(grader, origin=replace(grader.origin, model=ModelOrigin(classes=ODD)))
    path = tmp_path / "labels.jsonl"
    with client_of(engine_of(odd), labels=path) as client:
        ready(client)
        for label in range(10):
            sent = said(images[label], (label + 1) % 10, input=f"{label}.png")
            assert client.post("/labels", json=sent).json()["label_name"] == ODD[(label + 1) % 10]
            client.post("/labels", json=sent | {"label": label}).raise_for_status()
    assert read_decided([path], ODD, fewest=1).labels.tolist() == list(range(10))
    data = open_data(tmp_path / "labels.jsonl.images", classes=ODD)
    pixels = (data.inputs(range(10))[:, 0].numpy() * 255).round().astype(np.uint8)
    found = {image.tobytes(): label for image, label in zip(pixels, data.labels.tolist(), strict=True)}
    assert found == {image.tobytes(): label for label, image in enumerate(values(digits)[:10])}


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"label": 10}, 400, "label: expected a class from 0 to 9, or null."),
        ({"label": -1}, 400, "label: Input should be greater than or equal to 0."),
        ({"label": True}, 400, "label: Input should be a valid integer."),
        ({"label_name": "4"}, 400, "label_name: expected the name of the class. Does this grader have other classes?"),
        ({"predicted": 2**70}, 400, None),
        ({"sha256": "0" * 64}, 400, "sha256: expected the hash of the input. Was the input changed on the way?"),
        ({"image": "AAAA"}, 422, NO_IMAGE),
        ({"secret": 1}, 400, None),
        ({"suspicion": "NaN"}, 400, None),
    ],
)
def test_labels_that_are_refused(
    labelled: TestClient, images: list[bytes], tmp_path: Path, change: dict[str, Any], status: int, detail: str | None
) -> None:
    answer = labelled.post("/labels", json=said(images[0], 3) | change)
    assert answer.status_code == status
    assert detail is None or answer.json()["detail"] == detail
    assert not (tmp_path / "labels.jsonl").read_text()
    assert not (tmp_path / "labels.jsonl.images").exists()


def test_without_a_file_there_are_no_labels(client: TestClient, images: list[bytes]) -> None:
    for answer in (client.get("/labels"), client.post("/labels", json=said(images[0], 3))):
        assert (answer.status_code, answer.json()["detail"]) == (
            404,
            "This service takes no labels. Start it with --labels-file.",
        )


def test_a_form_from_another_site_writes_no_label(labelled: TestClient, images: list[bytes]) -> None:
    body = json.dumps(said(images[0], 3))
    assert labelled.post("/labels", content=body, headers={"content-type": "text/plain"}).status_code == 415


def test_labels_of_a_process_that_died_are_taken_up(images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    file = LabelFile(path)
    line = file.append({"label": 1}, images[0], NAMES)
    with pytest.raises(RunError, match=re.escape(f"{path}: another process")):
        LabelFile(path)
    file.close()
    with path.open("ab") as torn:
        torn.write(b'{"label": 2, "sha')
    orphan = tmp_path / "labels.jsonl.images" / "5" / f"{'0' * 64}.png"
    orphan.parent.mkdir()
    orphan.write_bytes(b"")
    foreign = orphan.with_name("mine.png")
    foreign.write_bytes(b"")
    file = LabelFile(path)
    assert file.lines == [line]
    assert not orphan.exists()
    assert foreign.exists()
    file.append({"label": 2}, images[1], NAMES)
    assert [json.loads(each)["label"] for each in path.read_text().splitlines()] == [1, 2]
    file.close()
    path.rename(tmp_path / "older.jsonl")
    LabelFile(path).close()
    assert len(list((tmp_path / "labels.jsonl.images").glob("*/*.png"))) == 3, "of the older file, and mine"


def test_a_full_disk_leaves_no_half_a_line(
    labelled: TestClient, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled.post("/labels", json=said(images[0], 3)).raise_for_status()
    before = (tmp_path / "labels.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("petm.serving.line_file.os.fsync", full)
        for label in (4, 5):
            answer = labelled.post("/labels", json=said(images[label], label))
            assert (answer.status_code, answer.json()["detail"]) == (
                507,
                "It could not be written. Is there space on the disk?",
            )
    assert (tmp_path / "labels.jsonl").read_bytes() == before
    labelled.post("/labels", json=said(images[1], 6)).raise_for_status()
    assert [line["label"] for line in labelled.get("/labels").json()["labels"]] == [3, 6]
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == ["3", "6"]


def test_labels_of_another_graders_classes_are_not_continued(
    grader: Grader, images: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    for names, fails in ((NAMES, False), (NAMES, False), (NAMES[::-1], True), (NAMES[:3], True)):
        other = replace(grader, origin=replace(grader.origin, model=ModelOrigin(classes=names)))
        app, service = make_app(engine_of(other), Limits(), labels=path)
        with TestClient(app, base_url="http://localhost") as client:
            while service.state == "loading":
                time.sleep(0.01)
            assert (service.state, isinstance(service.failure, DataError)) == (
                ("failed", True) if fails else ("ready", False)
            )
            if not fails:
                client.post("/labels", json=said(images[0], 0)).raise_for_status()
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "content", ["not JSON\n", "[1]\n", '{"a": 1}\n', '{"label": "3", "sha256": "0"}\n', '{"label": 3}\n']
)
def test_another_file_is_not_written_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: expected")):
        LabelFile(path)
    assert path.read_text() == content


def test_a_labels_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be opened"):
        LabelFile(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"), [("cat", "cat"), ("zéro", "zéro"), ("a/b", "a%2Fb"), ("..", "%2E."), ("", "%")]
)
def test_class_names_as_folders(name: str, folder: str) -> None:
    assert folder_name(name) == folder


# texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.save(tmp_path_factory.mktemp("bert"), hf_folders.bert(), hf_folders.word_tokenizer())


def test_texts_are_graded_as_by_the_grader(folder: Path, tmp_path: Path) -> None:
    from petm.data.reader import pad_batch
    from petm.models.hf_classifier import load_classifier

    tokenizer = load_processor(folder)
    adapted = randomise(attach_adapter(load_classifier(folder), {"classifier": 2}))
    grader = Grader(adapted, DISAGREEMENT, origin=Origin(ModelOrigin(), InputOrigin(text_column="text")))
    texts = [text for text, _ in hf_folders.QUESTIONS][:12]
    expected = grader.grade(pad_batch(tokenizer, tokenizer.encode(texts, None)))  # type: ignore[arg-type]

    def load(limits: Limits) -> Engine:
        return GraderEngine(grader, reader_for(grader.origin.inputs, limits, tokenizer))

    with client_of(load, Limits(characters=500), labels=tmp_path / "labels.jsonl") as client:
        rows = ready(client).post("/grade", json={"texts": [*texts, " ", "a" * 501]}).json()["grades"]
        assert [row["label"] for row in rows[:12]] == expected.labels.tolist()
        np.testing.assert_allclose([row["suspicion"] for row in rows[:12]], expected.suspicion, atol=1e-4)
        assert [row["reason"] for row in rows[12:]] == ["The text is blank.", "The text has more than 500 characters."]
        files = [("files", ("a.txt", texts[0].encode())), ("files", ("b.txt", b"\xff"))]
        good, bad = client.post("/grade", files=files).json()["grades"]
        assert good["label"] == expected.labels[0]
        assert bad["reason"] == "The text is not UTF-8."
        about = client.get("/about").json()
        assert (about["inputs"], about["size"]) == ("texts", None)
        line = client.post("/labels", json={"text": texts[0], "label": 1}).raise_for_status().json()
        assert (line["text"], line["label"]) == (texts[0], 1)
        assert line["sha256"] == hashlib.sha256(texts[0].encode()).hexdigest()
        assert isinstance(TextReader(tokenizer, None, Limits()).blank(), dict)  # type: ignore[arg-type]


# loading and stopping


def test_it_is_not_ready_while_it_loads(grader: Grader, images: list[bytes]) -> None:
    go = threading.Event()

    def load(limits: Limits) -> Engine:
        assert go.wait(300)
        return engine_of(grader)(limits)

    with client_of(load) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        for answer in (client.get("/readyz"), client.post("/grade", files=sent(images[0])), client.get("/about")):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        go.set()
        assert ready(client).post("/grade", files=sent(images[0])).status_code == 200


def test_what_cannot_be_loaded_ends_it() -> None:
    def load(limits: Limits) -> Engine:
        raise BundleError("damaged")

    ended = threading.Event()
    app, service = make_app(load, Limits(), failed=ended.set)
    with TestClient(app, base_url="http://localhost") as client:
        assert ended.wait(60)
        assert client.get("/readyz").status_code == 503
    assert isinstance(service.failure, BundleError)


def test_an_engine_that_ends_between_requests_ends_the_service(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Held):
        def check(self) -> None:
            raise EngineEndedError("inference: ended")

    monkeypatch.setattr("petm.serving.core.TIDY", 0.01)
    ended, engine = threading.Event(), Ended(engine_of(grader)(Limits()))
    app, service = make_app(lambda _: engine, Limits(), failed=ended.set)  # type: ignore[arg-type, return-value]
    with TestClient(app, base_url="http://localhost"):
        assert ended.wait(60)
    assert isinstance(service.failure, EngineEndedError)


def test_stopping_ends_readiness_and_closes_connections(grader: Grader, images: list[bytes]) -> None:
    app, service = make_app(engine_of(grader), Limits())
    with TestClient(app, base_url="http://localhost") as client:
        assert "connection" not in ready(client).get("/healthz").headers
        service.stop()
        assert client.get("/readyz").status_code == 503
        answer = client.post("/grade", files=sent(images[0]))
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("shape", [None, (4, 8, 8), (7,)])
def test_images_of_unknown_form_are_refused(shape: Sequence[int] | None) -> None:
    with pytest.raises(BundleError, match=r"^bundle: "):
        reader_for(InputOrigin(), Limits(), None, shape)


def test_a_graph_has_the_form_of_images() -> None:
    assert reader_for(InputOrigin(), Limits(), None, (3, 20, 30)).shape == (3, 20, 30)


# batches


def batches(
    run: Callable[[Sequence[int]], Sequence[int]], *, size: int = 8, wait: float = 0.0
) -> tuple[Any, list[int]]:
    sizes: list[int] = []
    return (lambda: Batcher(run, size=size, wait=wait, seen=sizes.append)), sizes


def test_a_sample_that_comes_alone_runs_at_once_and_others_wait_together() -> None:
    go = threading.Event()

    def run(samples: Sequence[int]) -> Sequence[int]:
        if samples[0] == 1:
            assert go.wait(10)
        return [2 * sample for sample in samples]

    make, sizes = batches(run)

    async def main() -> list[int]:
        batcher = make()
        first = asyncio.create_task(batcher.answer(1))
        while not sizes:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher.answer(sample)) for sample in range(2, 14)]
        await asyncio.sleep(0.01)
        go.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.close()
        return answers

    assert asyncio.run(main()) == [2 * sample for sample in range(1, 14)]
    assert sizes == [1, 8, 4]


@pytest.mark.parametrize(("wait", "expected"), [(5.0, [2]), (0.0, [1, 1]), (0.02, [1, 1])])
def test_a_batch_waits_for_what_is_on_its_way_within_its_bound(wait: float, expected: list[int]) -> None:
    make, sizes = batches(list, wait=wait)

    async def main() -> None:
        batcher = make()

        async def late() -> int:
            with batcher.coming():
                await asyncio.sleep(0.2)
            answer: int = await batcher.answer(2)
            return answer

        second = asyncio.create_task(late())
        await asyncio.sleep(0.01)
        assert await batcher.answer(1) == 1
        assert await second == 2
        await batcher.close()

    asyncio.run(main())
    assert sizes == expected


def test_a_batch_waits_for_nothing_that_is_not_on_its_way() -> None:
    make, _ = batches(list, wait=60.0)

    async def main() -> float:
        batcher = make()
        began = time.monotonic()
        await batcher.answer(1)
        await batcher.close()
        return time.monotonic() - began

    assert asyncio.run(main()) < 30


def test_one_bad_sample_does_not_spoil_its_batch() -> None:
    def run(samples: Sequence[int]) -> Sequence[int]:
        if 3 in samples:
            raise ValueError("three")
        return samples

    make, _ = batches(run)

    async def main() -> list[Any]:
        batcher = make()
        answers = await asyncio.gather(*map(batcher.answer, range(6)), return_exceptions=True)
        await batcher.close()
        return list(answers)

    answers = asyncio.run(main())
    assert answers[:3] + answers[4:] == [0, 1, 2, 4, 5]
    assert isinstance(answers[3], ValueError)


def test_who_has_gone_is_left_out_of_the_batch() -> None:
    go, seen = threading.Event(), list[int]()

    def run(samples: Sequence[int]) -> Sequence[int]:
        seen.extend(samples)
        assert go.wait(10)
        return samples

    make, _ = batches(run)

    async def main() -> None:
        batcher = make()
        tasks = [asyncio.create_task(batcher.answer(0))]
        while not seen:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher.answer(sample)) for sample in (1, 2)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        go.set()
        assert await tasks[0] == 0
        assert await tasks[2] == 2
        await batcher.close()

    asyncio.run(main())
    assert seen == [0, 2]
