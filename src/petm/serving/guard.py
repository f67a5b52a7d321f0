"""What every request passes: framing, host, key, origin and method; headers of the answer, logging of failures."""

import hmac
import logging
import re
import time
from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from h11 import LocalProtocolError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from petm.serving.core import Service

LOG = logging.getLogger("petm.serving")
OPEN = frozenset({"/healthz", "/readyz", "/", "/openapi.json"})
"""Paths that reveal nothing about the grader; they and the files of the page need no key."""
COUNTED = OPEN | {"/grade", "/sweep", "/labels", "/queue", "/about", "/metrics"}
_PAGE = re.compile(r"/[a-z0-9]+\.(js|css|svg)")
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
FAILED = "The service failed to answer. See its log."
CLOSE = (b"connection", b"close")


class Guard:
    """An ASGI application around the service's.

    Args:
        app: The guarded application. HEAD goes where GET does; a path that it does not describe has GET.
        service: The service whose state and figures are used.
        key: Value that requests must have as ``X-API-Key`` or ``Authorization: Bearer``; absent asks for none.
        hosts: Allowed values of the header ``Host``, without the port; empty allows any. This keeps out pages of other
            sites whose names were made to point to this machine (DNS rebinding).
    """

    def __init__(self, app: FastAPI, service: Service, key: str | None, hosts: Sequence[str]) -> None:
        self._app, self._service, self._hosts = app, service, frozenset(host.lower() for host in hosts)
        self._methods = {path: {name.upper() for name in found} for path, found in app.openapi()["paths"].items()}
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
                if self._service.state == "stopping":
                    message["headers"].append(CLOSE)
            await send(message)

        try:
            told = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await (self._refusal(scope) or self._app)(told, receive, answer)
        except ClientDisconnect:
            status = status or 499
        except LocalProtocolError:  # the body was not HTTP, and uvicorn has answered
            status = 400
        except Exception:
            LOG.exception("%s %s failed", scope["method"], scope["path"] if scope["path"] in COUNTED else "(a path)")
            if not status:
                await _refused(500, FAILED)(scope, receive, answer)
        finally:
            path = scope["path"] if scope["path"] in COUNTED else "other"
            self._service.telemetry.request(path, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers, method = dict(scope["headers"]), scope["method"]
        if b"transfer-encoding" in headers and (b"content-length" in headers or scope["http_version"] == "1.0"):
            # Another server on the way may see the end of the body, and so the next request, elsewhere.
            return _refused(400, "Send Content-Length or Transfer-Encoding, not both.", {"Connection": "close"})
        if self._hosts:
            name = headers.get(b"host", b"").decode("latin-1").lower()
            if (name if name.endswith("]") else name.rpartition(":")[0] or name) not in self._hosts:
                return _refused(421, "The service has another host name. Allow this one with --allowed-host.")
        # A router may match a path that is spelled otherwise, so only exactly these paths need no key.
        if self._key is not None and scope["path"] not in OPEN and not _PAGE.fullmatch(scope["path"]):
            given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self._key):
                return _refused(401, "Send the key as X-API-Key.")
        methods = self._methods.get(scope["path"], {"GET"})
        allowed = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        allow = {"Allow": ", ".join(sorted(allowed))}
        if method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        if method not in allowed:
            return _refused(405, f"This path has {allow['Allow']}.", allow)
        if method == "POST" and _from_another_site(headers):
            return _refused(403, "Pages of other sites may not send this.")
        return None


def _from_another_site(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sends a request for a page of another origin; other programs name none.

    Old browsers, and all on plain HTTP beyond this machine, send ``Origin`` alone.
    """
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site not in (b"same-origin", b"none")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


def _refused(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> ASGIApp:
    return JSONResponse({"detail": sentence}, status, headers)
