"""HTTP stacks that answer a constant as long as a grade: what `service_load.py` holds the service against.

``own`` is the service's stack (guard, limits, form) without images and grades, ``form`` is FastAPI with `UploadFile`s,
``body`` is FastAPI that reads the body and looks at nothing in it. All are served by uvicorn with h11.

    python -m experiments.service_constant own
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, UploadFile

from petm.serving.bodies import parse_files
from petm.serving.core import Service
from petm.serving.guard import Guard
from petm.serving.limits import Limits
from petm.serving.server import listening

ROW = {
    "input": "a.png",
    "label": 3,
    "label_name": "3",
    "second": 3,
    "second_name": "3",
    "probability_of_error": 0.012345678,
}
ANSWER = json.dumps({"grades": [ROW | {"suspicion": 0.0123456789, "grade": "trusted", "reason": None}]}).encode()


def constant(what: str) -> Any:
    """The ASGI application."""
    app, limits = FastAPI(docs_url=None, redoc_url=None), Limits()
    service = Service(lambda: None, limits)  # type: ignore[arg-type, return-value]

    async def own(request: Request, opinions: bool = False) -> Response:
        del opinions
        async with service.bodies.read(request) as body:
            parse_files(body, request.headers["content-type"], limits)
        return Response(ANSWER, media_type="application/json")

    async def form(files: list[UploadFile]) -> Response:
        for file in files:
            await file.read()
        return Response(ANSWER, media_type="application/json")

    async def body(request: Request) -> Response:
        await request.body()
        return Response(ANSWER, media_type="application/json")

    ways: dict[str, Callable[..., Any]] = {"own": own, "form": form, "body": body}
    app.post("/grade")(ways[what])

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    return Guard(app, service, None, ()) if what == "own" else app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["own", "form", "body"])
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    listener = listening("127.0.0.1", options.port)
    print(f"http://127.0.0.1:{listener.getsockname()[1]} serves a constant", file=sys.stderr, flush=True)
    app = constant(options.what)
    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False, proxy_headers=False)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
