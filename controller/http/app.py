"""The HTTP API as an aiohttp application: routes, the one middleware, and how errors are told."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from controller.asynchronous import AsyncInvocations
from controller.auth import Caller, Keys
from controller.gateway import Gateway
from controller.http import replies
from controller.http.head import given_id, is_of_foreign_page
from controller.registry import Registry
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.errors import (
    BadRequest,
    BodyTooLarge,
    FaasdError,
    Forbidden,
    InternalError,
    InvalidSpec,
    NotFound,
    RequestTimeout,
    StorageFull,
)
from faasd.spec import check_name
from faasd.telemetry import Metrics, get_logger

log = get_logger("controller.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handlers work with."""

    registry: Registry
    workers: Workers
    gateway: Gateway
    asynchronous: AsyncInvocations
    keys: Keys
    blobs: BlobStore
    metrics: Metrics
    openapi: bytes
    artifact_max_mb: float
    code_max_mb: float
    patience_s: float
    """How long to wait for more of a body."""


PARTS: web.AppKey[Parts] = web.AppKey("parts", Parts)
# Streams that end only when somebody ends them.
FOLLOWERS: web.AppKey[set[asyncio.Task[Any]]] = web.AppKey("followers", set)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API; `role` is the least role it needs, None for anybody."""

    method: str
    path: str
    handler: Handler
    role: str | None


def build_app(parts: Parts, routes: list[Route]) -> web.Application:
    """The application; every path answers in problem+json when it fails."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=0)
    app[PARTS] = parts
    app[FOLLOWERS] = set()
    app.on_shutdown.append(_end_followers)
    app.on_response_prepare.append(_end_after_chunks)
    for route in routes:
        app.router.add_route(route.method, route.path, _guarded(route))
    return app


async def _end_followers(app: web.Application) -> None:
    for task in app[FOLLOWERS]:
        task.cancel()


async def _end_after_chunks(request: web.Request, response: web.StreamResponse) -> None:
    """There must be no request behind a body in chunks: aiohttp 3.14 takes its last trailer for a
    header of the next one on the connection.
    """
    if "Transfer-Encoding" in request.headers:
        response.force_close()
        response.headers["Connection"] = "close"


def _guarded(route: Route) -> Handler:
    async def guarded(request: web.Request) -> web.StreamResponse:
        if route.role is not None:
            caller = await request.app[PARTS].keys.caller(
                request.headers.get("Authorization"), _namespace(request)
            )
            _refuse_foreign_pages(request)
            caller.require(route.role)
            request[CALLER] = caller
        return await route.handler(request)

    return guarded


def _refuse_foreign_pages(request: web.Request) -> None:
    """Only where no key is needed. Raises Forbidden."""
    if "Authorization" in request.headers:
        return
    named = is_of_foreign_page(request.headers.get)
    if named is not None:
        raise Forbidden(
            f"A request with {named} needs an API key.",
            remedy="Send one in the header Authorization, or call 127.0.0.1 directly.",
        )


def _namespace(request: web.Request) -> str | None:
    given = request.headers.get("Faasd-Namespace")
    if given is None:
        return None
    try:
        return check_name(given)
    except InvalidSpec as error:
        raise BadRequest(error.detail, remedy="Correct the header Faasd-Namespace.") from None


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The boundary of a request: whatever fails becomes a problem with the request's id."""
    request[REQUEST_ID] = _request_id(request)
    try:
        _refuse_codings(request)
        response = await handler(request)
    except RequestTimeout as error:
        response = problem(request, error)
        response.force_close()
        return response
    except FaasdError as error:
        return problem(request, error)
    except web.HTTPRequestEntityTooLarge:
        return problem(request, BodyTooLarge("The request is larger than this call accepts."))
    except web.HTTPNotFound:
        found = NotFound(
            f"There is nothing at {request.path[:200]}.", remedy="The API is at /openapi.json."
        )
        return problem(request, found)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = problem(
            request,
            BadRequest(f"{request.method[:20]} is not accepted here.", remedy=f"Use {allowed}."),
            status=405,
        )
        response.headers["Allow"] = allowed
        return response
    except web.HTTPException as error:
        return problem(request, BadRequest(error.reason), status=error.status)
    except ConnectionResetError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            return problem(request, StorageFull("The controller's disk is full."))
        log.exception("request.failed", path=request.path, request_id=request[REQUEST_ID])
        return problem(request, InternalError("The request could not be completed."))
    if not response.prepared:
        response.headers.setdefault("faasd-request-id", request[REQUEST_ID])
    return response


def _refuse_codings(request: web.Request) -> None:
    """Raises BadRequest for a body that the parser does not undo wholly."""
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None and coding.lower() != "chunked":
        raise BadRequest(
            f"Transfer-Encoding: {coding[:80]} is not accepted.",
            remedy="Send the body with its length, or Transfer-Encoding: chunked.",
        )


def _request_id(request: web.Request) -> str:
    return given_id(request.headers.get("Faasd-Request-Id", "")) or os.urandom(16).hex()


def problem(request: web.Request, error: FaasdError, *, status: int | None = None) -> web.Response:
    """The response that tells an error (RFC 9457)."""
    invoked = request.path.startswith("/invoke/")
    status, headers, body = replies.problem(
        error, request[REQUEST_ID], invoked=invoked, status=status
    )
    return web.Response(status=status, headers=headers, body=body)
