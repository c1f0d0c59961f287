"""The OpenAPI document of the API: made from the route table, served at /openapi.json.

What a call takes and answers stands in `operations`; what holds for every call (who may make it, the
errors of that, the request's id) is added here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from controller.http import operations, schemas
from controller.http.app import PARTS, Route
from controller.http.head import REQUEST_ID_PATTERN
from controller.http.operations import Operation
from faasd import __version__
from faasd.errors import (
    BadRequest,
    FaasdError,
    Forbidden,
    InternalError,
    RequestTimeout,
    Unauthorized,
)
from faasd.invocation import StartKind

_KEY_ERRORS = (BadRequest, Unauthorized, Forbidden)
_WAIT = (429, 503)


async def show_openapi(request: web.Request) -> web.Response:
    return web.Response(body=request.app[PARTS].openapi, content_type="application/json")


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document of these routes. Raises LookupError when one of them is not described."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        described = operations.OPERATIONS.get(f"{route.method} {route.path}")
        if described is None:
            raise LookupError(f"{route.method} {route.path} is not described in operations.py")
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, described)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "faasd",
            "version": __version__,
            "description": "A standalone Function-as-a-Service platform for ML inference.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("Functions", "Artifacts", "Invocations", "Cluster")],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "headers": _headers(),
            "parameters": _parameters(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        "An API key. None is needed on loopback while none has been made."
                    ),
                }
            },
        },
    }


def _operation(route: Route, described: Operation) -> dict[str, Any]:
    shared = ["RequestId"] if route.role is None else ["RequestId", "Namespace"]
    operation: dict[str, Any] = {
        "operationId": described.id,
        "tags": [described.tag],
        "summary": described.summary,
        "description": _description(route, described),
        "parameters": [
            *described.parameters,
            *({"$ref": f"#/components/parameters/{name}"} for name in shared),
        ],
        "responses": _responses(route, described),
    }
    if described.body is not None:
        operation["requestBody"] = described.body
    if route.role is None:
        operation["security"] = []
    return operation


def _description(route: Route, described: Operation) -> str:
    who = f"Needs the role `{route.role}`." if route.role else "Open to anybody."
    return f"{described.description} {who}".strip()


def _responses(route: Route, described: Operation) -> dict[str, Any]:
    errors = {*described.errors, InternalError, *(_KEY_ERRORS if route.role else ())}
    if described.body is not None:
        errors.add(RequestTimeout)
    by_status: dict[int, list[type[FaasdError]]] = {}
    for error in sorted(errors, key=lambda one: one.code):
        by_status.setdefault(error.status, []).append(error)
    has_body = route.method != "HEAD"
    problems = {
        str(status): _problem(status, found, has_body=has_body)
        for status, found in sorted(by_status.items())
    }
    responses = {**described.answers, **problems}
    return {
        status: _with_headers(answer, is_invocation=described.is_invocation and status != "202")
        for status, answer in responses.items()
    }


def _problem(status: int, errors: list[type[FaasdError]], *, has_body: bool) -> dict[str, Any]:
    codes = ", ".join(f"`{error.code}`" for error in errors)
    answer: dict[str, Any] = {"description": f"A problem with the code {codes}."}
    if has_body:
        answer["content"] = {"application/problem+json": {"schema": schemas.ref("Problem")}}
    if status in _WAIT:
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    if status == Unauthorized.status:
        answer["headers"] = {"WWW-Authenticate": {"$ref": "#/components/headers/WWW-Authenticate"}}
    return answer


def _with_headers(answer: dict[str, Any], *, is_invocation: bool) -> dict[str, Any]:
    names = ["faasd-request-id"]
    if is_invocation:
        names += ["Server-Timing", "faasd-start", "faasd-worker", "faasd-revision"]
    added = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return {**answer, "headers": {**answer.get("headers", {}), **added}}


def _headers() -> dict[str, Any]:
    def header(description: str, schema: schemas.Schema, *, always: bool = True) -> dict[str, Any]:
        return {"description": description, "required": always, "schema": schema}

    text: schemas.Schema = {"type": "string"}
    kinds: schemas.Schema = {"type": "string", "enum": [str(kind) for kind in StartKind]}
    return {
        "faasd-request-id": header("The request's id; log lines and problems bear it too.", text),
        "Server-Timing": header("Milliseconds spent in each phase of the invocation.", text),
        "faasd-start": header("What the invocation found; `none`: no instance was reached.", kinds),
        "faasd-worker": header("The worker that ran it.", text, always=False),
        "faasd-revision": header("The revision that ran.", text, always=False),
        "Idempotency-Replayed": header(
            "The answer was kept under the Idempotency-Key.", {"const": "true"}, always=False
        ),
        "Location": header(
            "Where the invocation is.", {"type": "string", "format": "uri-reference"}
        ),
        "Retry-After": header("Seconds to wait.", {"type": "integer", "minimum": 1}),
        "WWW-Authenticate": header("How to authenticate.", {"const": "Bearer"}),
    }


def _parameters() -> dict[str, Any]:
    return {
        "RequestId": {
            "name": "Faasd-Request-Id",
            "in": "header",
            "schema": {"type": "string"},
            "description": (
                "An id to use instead of a made-up one, which is what one that does not match "
                f"`{REQUEST_ID_PATTERN}` is replaced with."
            ),
        },
        "Namespace": {
            "name": "Faasd-Namespace",
            "in": "header",
            "schema": schemas.NAME,
            "description": "The namespace to work in; an admin key may name one not its own.",
        },
    }
