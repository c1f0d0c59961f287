"""POST /invoke/{endpoint}, and the asynchronous invocations under /v1/invocations."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any
from urllib.parse import quote

from aiohttp import HttpVersion11, web

from controller.http.app import CALLER, PARTS, REQUEST_ID
from controller.http.bodies import check_size, take_body
from controller.http.head import EVENTS, NOT_PASSED_ON
from controller.http.parameters import (
    full_name,
    header_text,
    name_of,
    query_choice,
    query_int,
)
from controller.http.replies import (
    BODYLESS,
    broken_off,
    problem_object,
    reply_headers,
    sendable,
)
from controller.http.wishes import wishes
from controller.store.port import StoredInvocation
from faasd import clock
from faasd.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    FaasdError,
    InternalError,
)
from faasd.invocation import PHASES, Invocation, Reply
from faasd.streams import close
from faasd.telemetry import get_logger

log = get_logger("controller.http")

_LONGEST_KEY = 255


async def invoke(request: web.Request) -> web.StreamResponse:
    arrived = clock.monotonic()
    parts = request.app[PARTS]
    function = full_name(request, "endpoint")
    mode = query_choice(request, "mode", ("sync", "async"))
    key = _idempotency_key(request)
    revision = parts.registry.get(function).active
    check_size(revision.spec, request.content_length or 0)
    remaining = _deadline(request)
    body = await take_body(request, revision.spec.max_body_bytes)
    if remaining is not None:
        remaining -= clock.monotonic() - arrived
    invocation = Invocation(
        id=request[REQUEST_ID],
        function=function,
        revision=revision.id,
        body=body,
        content_type=header_text(request.headers.get("Content-Type", "")),
        headers={
            lowered: header_text(value)
            for name, value in request.headers.items()
            if (lowered := name.lower()) not in NOT_PASSED_ON
        },
        remaining_s=remaining,
        events=EVENTS in request.headers.get("Accept", ""),
    )
    wanted = wishes(request.headers.get).of(request[CALLER], revision.spec.scheduling.priority)
    invocation.slo_s, invocation.priority, invocation.tenant, invocation.session = wanted
    if mode == "async":
        return await _submit(request, invocation, key)
    if key is None:
        return await _respond(request, await parts.gateway.invoke(invocation))
    reply, replayed = await parts.gateway.invoke_once(invocation, key)
    return await _respond(request, reply, replayed=replayed)


async def _submit(request: web.Request, invocation: Invocation, key: str | None) -> web.Response:
    """Accept for later. Under an idempotency key the id follows from it: a repeat finds the first."""
    parts = request.app[PARTS]
    replayed = False
    if key is None:
        stored = await parts.asynchronous.submit(invocation)
    else:
        stored, replayed = await parts.asynchronous.submit_once(invocation, key)
    url = f"/v1/invocations/{quote(stored.id, safe='')}"
    headers = {"Location": url}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return web.json_response(
        {"id": stored.id, "status": stored.status, "url": url}, status=202, headers=headers
    )


def _deadline(request: web.Request) -> float | None:
    """Seconds the caller still waits, or None. Raises BadRequest or DeadlineExceeded."""
    text = request.headers.get("Faasd-Deadline-Ms")
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = float("nan")
    if not -1e12 < milliseconds < 1e12:
        raise BadRequest(
            f"Faasd-Deadline-Ms = {text[:40]!r} is not a number of milliseconds.",
            remedy="Send how long you wait, e.g. `Faasd-Deadline-Ms: 500`.",
        )
    if milliseconds <= 0:
        raise DeadlineExceeded("The deadline had passed when the request arrived.")
    return milliseconds / 1000


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise BadRequest(
            "The Idempotency-Key is not one.",
            remedy=f"Use 1 to {_LONGEST_KEY} printable ASCII characters.",
        )
    return key


async def _respond(
    request: web.Request, reply: Reply, *, replayed: bool = False
) -> web.StreamResponse:
    try:
        headers = reply_headers(reply, request[REQUEST_ID])
        if replayed:
            headers["Idempotency-Replayed"] = "true"
        if reply.chunks is None:
            return web.Response(status=reply.status, headers=headers, body=reply.body)
        if reply.status in BODYLESS:
            async for _ in reply.chunks:
                continue
            return web.Response(status=reply.status, headers=headers)
        return await _stream(request, reply, headers)
    finally:
        # Ends the invocation where the client went away, before the stream or in its midst.
        await close(reply.chunks)


async def _stream(
    request: web.Request, reply: Reply, headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    chunks = reply.chunks
    assert chunks is not None
    try:
        if reply.length is not None:
            response.content_length = reply.length
        elif request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
    except FaasdError as error:
        await _break_off(request, response, error)
    except ConnectionError:
        raise
    except Exception:  # the boundary of a request whose status has gone out already
        log.exception("request.failed", path=request.path, request_id=request[REQUEST_ID])
        await _break_off(request, response, InternalError("The stream could not be completed."))
    return response


async def _break_off(request: web.Request, response: web.StreamResponse, error: FaasdError) -> None:
    """An error after the status went out: told as an event, or by an unfinished body."""
    if response.content_type == EVENTS:
        with contextlib.suppress(ConnectionError):
            await response.write(broken_off(error, request[REQUEST_ID]))
            await response.write_eof()
        return
    if request.transport is not None:
        request.transport.close()


async def list_invocations(request: web.Request) -> web.Response:
    status = query_choice(request, "status", ("queued", "running", "succeeded", "dead"))
    function = request.query.get("function")
    found = await request.app[PARTS].asynchronous.list(
        request[CALLER].namespace,
        status=status,
        function=name_of(function) if function is not None else None,
        limit=query_int(request, "limit", default=100, least=1, most=1000),
    )
    return web.json_response({"invocations": [_shown(one) for one in found]})


async def show_invocation(request: web.Request) -> web.Response:
    stored = await _find(request)
    return web.json_response({**_shown(stored), "result": _result(stored)})


async def show_result(request: web.Request) -> web.Response:
    stored = await _find(request)
    if stored.result is None:
        raise Conflict(
            f"The invocation is {stored.status}; it has no result.",
            remedy="Ask again when its status is succeeded.",
        )
    result = stored.result
    return web.Response(
        status=result.status,
        body=result.body,
        headers={
            "Content-Type": result.content_type
            if sendable(result.content_type)
            else "application/octet-stream",
            "X-Content-Type-Options": "nosniff",
        },
    )


async def redrive(request: web.Request) -> web.Response:
    stored = await request.app[PARTS].asynchronous.redrive(
        request.match_info["id"], request[CALLER].namespace
    )
    return web.json_response(_shown(stored), status=202)


async def _find(request: web.Request) -> StoredInvocation:
    return await request.app[PARTS].asynchronous.get(
        request.match_info["id"], request[CALLER].namespace
    )


def _shown(stored: StoredInvocation) -> dict[str, Any]:
    namespace, _, name = stored.function.partition("/")
    return {
        "id": stored.id,
        "function": name,
        "namespace": namespace,
        "revision": stored.revision,
        "status": stored.status,
        "created_at": clock.iso(stored.created_at),
        "finished_at": clock.iso(stored.finished_at) if stored.finished_at else None,
        "next_attempt_at": clock.iso(stored.next_attempt_at) if stored.next_attempt_at else None,
        "attempts": [
            {
                "number": attempt.number,
                "started_at": clock.iso(attempt.started_at),
                "ended_at": clock.iso(attempt.ended_at) if attempt.ended_at else None,
                "worker": attempt.worker,
                "error": problem_object(attempt.error, stored.id) if attempt.error else None,
            }
            for attempt in stored.attempts
        ],
        "timings": dict(zip(PHASES, stored.timings, strict=True)) if stored.timings else None,
        "start": stored.start,
    }


def _result(stored: StoredInvocation) -> dict[str, Any] | None:
    result = stored.result
    if result is None:
        return None
    shown: dict[str, Any] = {"status": result.status, "content_type": result.content_type}
    if result.content_type.startswith("application/json"):
        with contextlib.suppress(ValueError, RecursionError):
            return {**shown, "json": json.loads(result.body, parse_constant=_refuse)}
    if result.content_type.startswith("text/"):
        return {**shown, "text": result.body.decode("utf-8", "replace")}
    return {**shown, "base64": base64.b64encode(result.body).decode()}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
