"""Reading request bodies within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from aiohttp import web

from controller.http.app import PARTS
from faasd.errors import BadRequest, BodyTooLarge, RequestTimeout
from faasd.spec import FunctionSpec
from faasd.spool import Body, Growing

T = TypeVar("T")

_CHUNK = 1 << 18
_SMALL = 1 << 20
_SEND_AN_OBJECT = "Send a JSON object as /openapi.json describes it."


def check_size(spec: FunctionSpec, size: int) -> None:
    """Raises BodyTooLarge; asked before the body is read where possible."""
    if size > spec.max_body_bytes:
        raise BodyTooLarge(
            f"The body has {size} bytes; this function accepts {spec.max_body_bytes} "
            f"([limits] max_body_mb = {spec.limits.max_body_mb:g})."
        )


async def in_time(request: web.Request, more: Awaitable[T]) -> T:
    """What comes next of a request's body. Raises RequestTimeout when nothing does for long."""
    patience_s = request.app[PARTS].patience_s
    try:
        async with asyncio.timeout(patience_s):
            return await more
    except TimeoutError:
        raise RequestTimeout(f"Nothing more of the body came for {patience_s:g} s.") from None


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to be, or RequestTimeout."""
    if not request.body_exists:
        return b""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    if request.content.is_eof():
        # It came together with its headers, as most do.
        whole = request.content.read_nowait()
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    body = bytearray()
    async for chunk in chunks(request):
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


async def take_body(request: web.Request, limit: int) -> Body:
    """As `read_body`; a large body is put into a file in memory as it comes."""
    if not request.body_exists or 0 < (request.content_length or 0) <= Growing.SMALL:
        return await read_body(request, limit)
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = Growing()
    async for chunk in chunks(request):
        body.add(chunk)
        if len(body) > limit:
            raise _too_large(limit)
    return body.whole()


async def read_json(request: web.Request) -> dict[str, Any]:
    """A small JSON object; an empty body is an empty object. Raises BadRequest too."""
    body = await read_body(request, _SMALL)
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.", remedy=_SEND_AN_OBJECT) from None
    if not isinstance(value, dict):
        raise BadRequest(
            f"The body must be a JSON object, not a {type(value).__name__}.",
            remedy=_SEND_AN_OBJECT,
        )
    return value


async def chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes, piece by piece. Raises RequestTimeout."""
    while chunk := await in_time(request, request.content.read(_CHUNK)):
        yield chunk


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {limit} bytes accepted here.")
