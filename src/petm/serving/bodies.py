"""Reading the body of a request within limits, whatever its headers say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from petm.serving.limits import AGAIN, Limits, too_many
from petm.serving.reading import Content

_Model = TypeVar("_Model", bound=BaseModel)
LARGE = 1 << 16
"""Bytes; a body above this size is parsed in a thread."""
JSON, FORM = "application/json", "multipart/form-data"


class Given(NamedTuple):
    """One input as it was sent."""

    name: str | None  # of the file; None where it has none
    content: Content


class Bodies:
    """Reads bodies within the limits of one and of all together, and counts the bytes of those that are held.

    Attributes:
        grown: Whether a large body has come since this was last reset.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held, self.grown = limits, 0, False

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yields the body of a request, and counts it as held while the block runs.

        Of a body that is too large, as many bytes again are read and dropped, so that the sender receives the refusal.

        Raises:
            HTTPException: The body is too large or too slow, or too many are held.
            ClientDisconnect: The client has gone.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.timeout):
                async for part in request.stream():
                    size += len(part)
                    if size <= self._limits.body:
                        self._held += len(part)
                        parts.append(part)
                        if self._held > self._limits.bodies:
                            raise HTTPException(429, "The service holds too many requests. Try again.", AGAIN)
                    else:
                        self._release(parts)
                    if size > 2 * self._limits.body:
                        break
            self.grown |= size > LARGE
            if size > self._limits.body:
                told = f"The body has more than {self._limits.body:,} bytes. Send fewer inputs at a time."
                raise HTTPException(413, told)
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError as error:
            raise HTTPException(408, "The body took too long to arrive.") from error
        finally:
            self._release(parts)

    def _release(self, parts: list[bytes]) -> None:
        self._held -= sum(map(len, parts))
        parts.clear()


def media_type(request: Request) -> str:
    """Returns the media type of a request's body, without its parameters.

    Raises:
        HTTPException: The type is neither JSON nor a form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        raise HTTPException(415, f"Send {JSON} or {FORM}.")
    return kind


def parse_json(body: bytes, model: type[_Model]) -> _Model:
    """Returns a JSON body as a pydantic model.

    Raises:
        HTTPException: The body is not JSON, or not of that form.
    """
    try:
        content = from_json(body)
    except ValueError as error:
        raise HTTPException(400, "The body is not valid JSON.") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "The body: Input should be an object.")
    # Checked before pydantic, which makes an error for each unknown key: gigabytes for a body full of them.
    if not content.keys() <= model.model_fields.keys():
        raise HTTPException(400, f"The body may have only {', '.join(model.model_fields)}.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Of the position in the body, only names of the model are repeated.
        known = [str(part) for part in fault["loc"] if isinstance(part, int) or part in model.model_fields]
        where = ".".join(known) or "The body"
        message = "It is not of the right form." if fault["type"] == "value_error" else f"{fault['msg']}."
        raise HTTPException(400, f"{where}: {message}") from error


def parse_files(body: bytes, content_type: str, limits: Limits) -> list[Given]:
    """Returns the parts ``files`` of a form.

    Raises:
        HTTPException: The form is damaged, has other parts, or too many.
    """
    _, options = parse_options_header(content_type)
    found: list[Given] = []

    def take(part: Field | File) -> None:
        if part.field_name != b"files":
            raise HTTPException(400, "The form may have only parts with the name files.")
        if len(found) == limits.inputs:
            raise too_many(limits)
        if isinstance(part, File):
            part.file_object.seek(0)
            name = (part.file_name or b"").decode(errors="replace") or None
            found.append(Given(name, part.file_object.read()))
        else:
            found.append(Given(None, part.value or b""))

    ends: list[bool] = []
    try:
        config: Any = {"MAX_MEMORY_FILE_SIZE": float("inf")}
        parser = FormParser(FORM, take, take, lambda: ends.append(True), boundary=options[b"boundary"], config=config)
        parser.write(body)
        parser.finalize()
        if not ends:  # the parser drops a part without an end, and says nothing
            raise FormParserError
    except (FormParserError, KeyError, ValueError) as error:
        raise HTTPException(400, "The form is damaged.") from error
    return found
