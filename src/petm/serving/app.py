"""The HTTP paths of the service and their answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi import Path as PathNumber
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from petm._internal.files import to_json
from petm.data.pixels import formats
from petm.errors import RunError
from petm.selective.guarantee import guarantee
from petm.serving.bodies import FORM, JSON, LARGE, Given, media_type, parse_files, parse_json
from petm.serving.core import Answered, Service
from petm.serving.engine import Facts, probabilities
from petm.serving.engine_process import Engine
from petm.serving.guard import FAILED, Guard
from petm.serving.limits import AGAIN, Limits, too_many
from petm.serving.reading import Content
from petm.serving.schemas import (
    About,
    Fault,
    GradeAnswer,
    GradeRequest,
    LabelRequest,
    Labels,
    QueueAnswer,
    SweepAnswer,
    SweepRequest,
)

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
PAGE = Path(__file__).with_name("page")
_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault, "description": description}
    for status, description in {
        400: "The request has a wrong form.",
        401: "The key is missing or wrong.",
        413: "The body is too large, or has too many inputs.",
        415: "The body is neither JSON nor a form.",
        429: "Too many inputs wait; try again after the seconds of Retry-After.",
        503: "The service is loading or stopping.",
        504: "The answer took too long.",
    }.items()
}


def make_app(
    load: Callable[[Limits], Engine],
    limits: Limits,
    *,
    labels: Path | None = None,
    queue: Sequence[str] = (),
    grades: Path | None = None,
    audit: float | None = None,
    key: str | None = None,
    hosts: Sequence[str] = (),
    started: Callable[[], None] = lambda: None,
    failed: Callable[[], None] = lambda: None,
) -> tuple[ASGIApp, Service]:
    """Returns the ASGI application of a grader, and its service.

    ``load`` makes the engine, in a thread; until then the application answers that it is not ready. Without the file
    ``labels``, no labels are taken. ``queue`` names graded files to review, ``grades`` the file for grades of all that
    is sent, ``audit`` the chance of each trusted input to be drawn. ``key`` and ``hosts`` are those of `Guard`.
    ``started`` is called once the application is ready, ``failed`` where the engine cannot be made, or ends.
    """
    service = Service(lambda: load(limits), limits, labels, queue=queue, grades=grades, audit=audit)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(started, failed):
            yield

    app = FastAPI(
        title="petm",
        version=version("petm"),
        description="Grades each prediction of a classifier trusted or suspect, with its probability of error.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.exception_handler(RunError)(_answer(507, "It could not be written. Is there space on the disk?"))
    app.exception_handler(RequestValidationError)(_refuse_address)
    app.exception_handler(Exception)(_answer(500, FAILED))  # the guard logs it
    router = APIRouter(responses=_FAULTS)
    _add_grading(router, service)
    _add_labels(router, service)
    _add_queue(router, service)
    app.include_router(router)
    _add_operations(app, service)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    return Guard(app, service, key, hosts), service


def _add_grading(app: APIRouter, service: Service) -> None:
    limits = service.limits

    takes = _body(GradeRequest, files=True)

    @app.post("/grade", response_model=GradeAnswer, summary="Grade images or texts, one or many.", openapi_extra=takes)
    async def grade(request: Request, opinions: bool = False) -> Response:
        engine, kind = service.engine, media_type(request)
        async with service.bodies.read(request) as body:
            content_type = request.headers["content-type"]
            given = await _parsed(body, lambda: _inputs(body, kind, content_type, engine, limits))
            answered = await service.grade(given)  # in the block, as the inputs hold parts of the body
            facts, pairs = engine.facts, list(zip(given, answered, strict=True))
            rows = [_row(each, answer, facts, service.audit) for each, answer in pairs]
            await service.keep(rows, given)
        told = zip(rows, answered, strict=True)
        return _json({"grades": [row | _opinions(answer) for row, answer in told] if opinions else rows})

    takes = _body(SweepRequest)

    @app.post("/sweep", response_model=SweepAnswer, summary="Classes as the second opinion grows.", openapi_extra=takes)
    async def sweep(request: Request) -> Response:
        engine = service.engine
        asked = await _sent(request, service, SweepRequest)
        probabilities = await service.sweep(_content(asked, engine), asked.alphas)
        return _json({"alphas": asked.alphas, "probabilities": probabilities})

    @app.get("/about", response_model=About, summary="What is served.")
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
                "second_opinion": facts.has_second,
                "sweep": facts.has_sweep,
                "labels": service.takes_labels,
                "queue": service.has_queue,
                "audit": service.audit,
                "limits": {"body": limits.body, "pixels": limits.pixels, "inputs": limits.inputs},
                "version": version("petm"),
            }
        )


def _add_labels(app: APIRouter, service: Service) -> None:
    summary, takes = "Keep a person's label of an input, and the input.", _body(LabelRequest)

    @app.post("/labels", response_model=dict[str, Any], status_code=201, summary=summary, openapi_extra=takes)
    async def label(request: Request) -> Response:
        engine = service.engine
        asked = await _sent(request, service, LabelRequest)
        absent = {name for name in ("text", "decision", "chance", "audit") if getattr(asked, name) is None}
        record = asked.model_dump(exclude={"image", "sha256"} | absent)
        return _json(await service.label(record, _content(asked, engine), asked.sha256), status=201)

    @app.get("/labels", response_model=Labels, summary="All labels.")
    async def labels() -> Response:
        lines = list(service.labels.lines)
        return await asyncio.to_thread(lambda: _json({"labels": lines}))


def _add_queue(app: APIRouter, service: Service) -> None:
    @app.get("/queue", response_model=QueueAnswer, summary="Inputs to review that are not decided, some at a time.")
    async def queue(start: Annotated[int, Query(ge=0)] = 0) -> Response:
        return _json(await service.queued(start))

    @app.get("/queue/{number}", response_class=Response, summary="The image file or text of an input to review.")
    async def queued(number: Annotated[int, PathNumber(ge=0)]) -> Response:
        kind = "text/plain; charset=utf-8" if service.engine.reader.kind == "texts" else "application/octet-stream"
        return Response(await service.queued_content(number), media_type=kind)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the process runs.")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": Fault}}, summary="Whether the service is ready for requests.")
    async def readyz() -> dict[str, str]:
        if service.state != "ready":
            raise HTTPException(503, f"The service is {service.state}.", AGAIN)
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures in Prometheus' text format.", response_class=Response)
    async def metrics() -> Response:
        page = await asyncio.to_thread(service.figures())
        return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


def _inputs(body: bytes, kind: str, content_type: str, engine: Engine, limits: Limits) -> list[Given]:
    """The inputs of a request to grade."""
    if kind == FORM:
        given = parse_files(body, content_type, limits)
    else:
        asked = parse_json(body, GradeRequest)
        contents = getattr(asked, engine.reader.kind)
        if contents is None or (asked.images is not None and asked.texts is not None):
            raise HTTPException(400, f"The body: expected only {engine.reader.kind}.")
        if len(contents) > limits.inputs:
            raise too_many(limits)
        given = [Given(None, content) for content in contents]
    if not given:
        raise HTTPException(400, "Send at least one input.")
    return given


def _content(asked: SweepRequest | LabelRequest, engine: Engine) -> Content:
    """The one input of a request."""
    wanted, other = (asked.image, asked.text) if engine.reader.kind == "images" else (asked.text, asked.image)
    if wanted is None or other is not None:
        raise HTTPException(400, f"The body: expected only one {engine.reader.kind[:-1]}.")
    return wanted


async def _sent(request: Request, service: Service, model: type[M]) -> M:
    if media_type(request) != JSON:
        raise HTTPException(415, f"Send {JSON}.")
    async with service.bodies.read(request) as body:
        return await _parsed(body, lambda: parse_json(body, model))


async def _parsed(body: bytes, parse: Callable[[], T]) -> T:
    return await asyncio.to_thread(parse) if len(body) > LARGE else parse()


def _row(given: Given, answer: Answered, facts: Facts, audit: float | None) -> dict[str, Any]:
    """One grade, as in `schemas.Grade`, without the opinions."""
    if isinstance(answer, str):
        empty = dict.fromkeys(("label", "label_name", "second", "second_name"))
        empty |= dict.fromkeys(("probability_of_error", "confidence", "suspicion"))
        return {"input": given.name, **empty, "grade": "unreadable", "candidates": None, "reason": answer}
    drawn = {} if audit is None else {"chance": audit if answer.trusted else 1.0, "audit": answer.drawn}
    return {
        "input": given.name,
        "label": answer.label,
        "label_name": facts.classes[answer.label],
        "second": answer.second,
        "second_name": None if answer.second is None else facts.classes[answer.second],
        "probability_of_error": answer.probability_of_error,
        "confidence": None if answer.probability_of_error is None else 1 - answer.probability_of_error,
        "suspicion": answer.suspicion,
        "grade": "trusted" if answer.trusted else "suspect",
        "candidates": None if answer.candidates is None else [facts.classes[each] for each in answer.candidates],
        "reason": None,
        **drawn,
    }


def _opinions(answer: Answered) -> dict[str, Any]:
    if isinstance(answer, str):
        return {}
    opinion = None if answer.second is None else probabilities(answer.opinion)
    return {"base": probabilities(answer.base), "opinion": opinion}


def _json(content: Any, status: int = 200) -> Response:
    return Response(to_json(content).encode(), status, media_type=JSON)


def _body(model: Any, *, files: bool = False) -> dict[str, Any]:
    """The OpenAPI description of a body that is read within limits, not by FastAPI."""
    content: dict[str, Any] = {JSON: {"schema": model.model_json_schema()}}
    if files:
        file = {"type": "array", "items": {"type": "string", "format": "binary"}}
        form = {"type": "object", "properties": {"files": file}, "required": ["files"]}
        content[FORM] = {"schema": form | {"description": f"Images ({', '.join(formats())}), or texts in UTF-8."}}
    return {"requestBody": {"required": True, "content": content}}


def _refuse_address(request: Request, _: Exception) -> JSONResponse:
    """The refusal of a query or path that is none; what was sent is not repeated."""
    queue = request.url.path.startswith("/queue")
    told = "start, number: expected a whole number from 0 on." if queue else "opinions: expected true or false."
    return JSONResponse({"detail": told}, 400)


def _answer(status: int, detail: str) -> Callable[[Request, Exception], JSONResponse]:
    return lambda *_: JSONResponse({"detail": detail}, status)
