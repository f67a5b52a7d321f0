"""The service's HTTP: paths, and what they answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from petm.errors import RunError
from petm.selective.guarantee import guarantee
from petm.serving.bodies import FORM, JSON, LARGE, Given, media_type, parse_files, parse_json, too_many
from petm.serving.core import Answered, Service
from petm.serving.documentation import documentation
from petm.serving.engine import Engine, probabilities
from petm.serving.guard import FAILED, Guard
from petm.serving.limits import FORMATS, Limits, Refusal
from petm.serving.reading import Content
from petm.serving.schemas import About, DialAnswer, DialRequest, Fault, GradeAnswer, GradeRequest, LabelRequest, Labels

T = TypeVar("T")
PAGE = Path(__file__).with_name("page")
_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault, "description": description}
    for status, description in {
        400: "Not of the right form.",
        401: "The key is missing or wrong.",
        413: "Too large, or too many inputs.",
        415: "Neither JSON nor a form.",
        429: "Too much waits; come again after the seconds of Retry-After.",
        503: "Loading, or stopping.",
        504: "It took too long.",
    }.items()
}


def make_app(
    load: Callable[[Limits], Engine],
    limits: Limits,
    *,
    labels: Path | None = None,
    key: str | None = None,
    hosts: Sequence[str] = (),
    failed: Callable[[], None] = lambda: None,
) -> tuple[ASGIApp, Service]:
    """Returns the ASGI application of a grader, and the service that it speaks for.

    Args:
        load: Makes the engine, in a thread, while the application answers already that it is not ready.
        limits: What it bears.
        labels: The file for what people say of inputs; absent takes no labels.
        key: As in `Guard`.
        hosts: As in `Guard`.
        failed: Called where the engine cannot be made, or ends.
    """
    service = Service(lambda: load(limits), limits, labels)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(failed):
            yield

    app = FastAPI(
        title="petm",
        version=version("petm"),
        description="Grades each prediction of a classifier trusted or suspect, with its probability of error.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.exception_handler(Refusal)(_refused)
    app.exception_handler(RunError)(_unwritten)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(Exception)(_failed)
    _add_grading(app, service)
    _add_labels(app, service)
    _add_operations(app, service)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    return Guard(app, service, key, hosts), service


def _add_grading(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post(
        "/grade",
        response_model=GradeAnswer,
        responses=_FAULTS,
        summary="Grade images or texts, one or many.",
        openapi_extra=_body(GradeRequest, files=True),
    )
    async def grade(request: Request, opinions: bool = False) -> Response:
        engine, kind = service.engine, media_type(request)
        async with service.bodies.read(request) as body:
            content_type = request.headers["content-type"]
            given = await _parsed(body, lambda: _inputs(body, kind, content_type, engine, limits))
            answered = await service.grade(given)  # what they hold of the body counts as held until then
        names = engine.facts.classes
        return _json(
            {"grades": [_row(each, said, names, opinions) for each, said in zip(given, answered, strict=True)]}
        )

    @app.post(
        "/sweep",
        response_model=DialAnswer,
        responses=_FAULTS,
        summary="How the opinion on one input turns with the strength of the adapter.",
        openapi_extra=_body(DialRequest),
    )
    async def sweep(request: Request) -> Response:
        engine = service.engine
        async with service.bodies.read(_as_json(request)) as body:
            asked = await _parsed(body, lambda: parse_json(body, DialRequest))
        turned = await service.turn(_content(asked, engine), asked.alphas)
        return _json({"alphas": asked.alphas, "probabilities": turned})

    @app.get("/about", response_model=About, responses=_FAULTS, summary="What is served.")
    async def about() -> Response:
        engine = service.engine
        facts, shape = engine.facts, engine.reader.shape
        return _json(
            {
                "inputs": engine.reader.kind,
                "classes": facts.classes,
                "size": shape and shape[1:],
                "channels": shape and shape[0],
                "threshold": facts.threshold.as_json() | {"guarantee": guarantee(facts.threshold)},
                "score": facts.score,
                "sweep": facts.has_sweep,
                "labels": service.takes_labels,
                "limits": {"body": limits.body, "pixels": limits.pixels, "inputs": limits.inputs},
                "version": version("petm"),
            }
        )


def _add_labels(app: FastAPI, service: Service) -> None:
    @app.post(
        "/labels",
        response_model=dict[str, Any],
        responses=_FAULTS,
        status_code=201,
        summary="Keep what a person said of an input, and the input.",
        openapi_extra=_body(LabelRequest),
    )
    async def say(request: Request) -> Response:
        engine = service.engine
        async with service.bodies.read(_as_json(request)) as body:
            said = await _parsed(body, lambda: parse_json(body, LabelRequest))
        content = _content(said, engine)
        record = said.model_dump(
            exclude={"image", "sha256", "label_name", *(() if said.text is not None else ("text",))}
        )
        named = said.label is not None and said.label < len(engine.facts.classes)
        record["label_name"] = engine.facts.classes[said.label or 0] if named else None
        return _json(await service.label(record, content, said.sha256), status=201)

    @app.get("/labels", response_model=Labels, responses=_FAULTS, summary="What was said of inputs so far.")
    async def said() -> Response:
        lines = service.said()
        return await asyncio.to_thread(lambda: _json({"labels": lines}))


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the process lives.")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": Fault}}, summary="Whether it should be sent requests.")
    async def readyz() -> dict[str, str]:
        if service.state != "ready":
            raise Refusal(503, f"The service is {service.state}.", {"Retry-After": "1"})
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures in Prometheus' text format.", response_class=Response)
    async def metrics() -> Response:
        page = await asyncio.to_thread(service.telemetry.page, service.telemetry.latest())
        return Response(page, headers={"content-type": service.telemetry.content_type})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(documentation(app.openapi()))


def _inputs(body: bytes, kind: str, content_type: str, engine: Engine, limits: Limits) -> list[Given]:
    """The inputs of a request to grade."""
    if kind == FORM:
        given = parse_files(body, content_type, limits)
    else:
        asked = parse_json(body, GradeRequest)
        contents = getattr(asked, engine.reader.kind)
        if contents is None or (asked.images is not None and asked.texts is not None):
            raise Refusal(400, f"The body: expected {engine.reader.kind} to grade, and nothing else.")
        if len(contents) > limits.inputs:
            raise too_many(limits)
        given = [Given(None, content) for content in contents]
    if not given:
        raise Refusal(400, "Send at least one input.")
    if len(given) > limits.inputs:
        raise too_many(limits)
    return given


def _content(asked: DialRequest | LabelRequest, engine: Engine) -> Content:
    """The one input of a request."""
    wanted, other = (asked.image, asked.text) if engine.reader.kind == "images" else (asked.text, asked.image)
    if wanted is None or other is not None:
        raise Refusal(400, f"The body: expected one {engine.reader.kind[:-1]}, and nothing else.")
    return wanted


def _as_json(request: Request) -> Request:
    if media_type(request) != JSON:
        raise Refusal(415, f"Send {JSON}.")
    return request


async def _parsed(body: bytes, parse: Callable[[], T]) -> T:
    return await asyncio.to_thread(parse) if len(body) > LARGE else parse()


def _row(given: Given, said: Answered, classes: Sequence[str], opinions: bool) -> dict[str, Any]:
    """One grade, as JSON has it."""
    if isinstance(said, str):
        empty = dict.fromkeys(("label", "label_name", "second", "second_name", "probability", "suspicion"))
        return {"input": given.name, **empty, "grade": "unreadable", "reason": said}
    row = {
        "input": given.name,
        "label": said.label,
        "label_name": classes[said.label],
        "second": said.second,
        "second_name": classes[said.second],
        "probability": said.probability,
        "suspicion": said.suspicion,
        "grade": "trusted" if said.trusted else "suspect",
        "reason": None,
    }
    return row | ({"base": probabilities(said.base), "opinion": probabilities(said.opinion)} if opinions else {})


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode(), status, media_type=JSON)


def _body(model: Any, *, files: bool = False) -> dict[str, Any]:
    """What OpenAPI says of a body that is read within limits, and so not by FastAPI."""
    content: dict[str, Any] = {JSON: {"schema": model.model_json_schema()}}
    if files:
        file = {"type": "array", "items": {"type": "string", "format": "binary"}}
        form = {"type": "object", "properties": {"files": file}, "required": ["files"]}
        content[FORM] = {"schema": form | {"description": f"Images ({', '.join(FORMATS)}), or texts in UTF-8."}}
    return {"requestBody": {"required": True, "content": content}}


def _refused(_: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    return JSONResponse({"detail": refusal.sentence}, refusal.status, refusal.headers)


def _unwritten(_: Request, error: Exception) -> JSONResponse:
    del error
    return JSONResponse({"detail": "It could not be written. Is there space on the disk?"}, 507)


def _failed(_: Request, error: Exception) -> JSONResponse:
    del error  # the guard logs it
    return JSONResponse({"detail": FAILED}, 500)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    del error
    return JSONResponse({"detail": "opinions: expected true or false."}, 400)
