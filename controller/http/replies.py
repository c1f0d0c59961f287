"""What a caller is told of an invocation: the headers of replies, and errors as problems (RFC 9457).

For both ways in: `front`, which takes plain invocations, and aiohttp's handlers.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from controller.http.head import EVENTS
from faasd.errors import FaasdError, UnserialisableResult
from faasd.invocation import Reply, StartKind, Timings

PROBLEM = "application/problem+json"
# Statuses of replies that have no body, whatever the function returned.
BODYLESS = (204, 304)

_COST = ("timings", "start", "worker", "revision")
_OURS = {
    "connection", "content-length", "content-type", "date", "idempotency-replayed", "keep-alive",
    "server-timing", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
_CACHE = "cache-control"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")


def reply_headers(reply: Reply, request_id: str) -> dict[str, str]:
    """What the function set and what the invocation cost. Raises UnserialisableResult."""
    headers = _headers_of_function(reply) if reply.headers else {}
    if reply.chunks is not None and reply.content_type == EVENTS:
        headers = {name: value for name, value in headers.items() if name.lower() != _CACHE}
        headers[_CACHE] = "no-cache"
    if not sendable(reply.content_type):
        raise _unsendable(reply, "Content-Type", reply.content_type)
    headers["faasd-revision"] = reply.revision
    headers["Content-Type"] = reply.content_type
    headers["faasd-request-id"] = request_id
    headers["faasd-start"] = reply.start
    headers["Server-Timing"] = reply.timings.server_timing()
    if reply.worker:
        headers["faasd-worker"] = reply.worker
    return headers


@functools.lru_cache(maxsize=512)
def plain_opening(revision: str, content_type: str, worker: str) -> str | None:
    """How most replies begin, up to the request's id: those of a warm instance without headers of
    the function's own. None where `reply_headers` is to say what is wrong with it.
    """
    if not sendable(content_type):
        return None
    return (
        f"HTTP/1.1 200 OK\r\nfaasd-revision: {revision}\r\nContent-Type: {content_type}\r\n"
        f"faasd-start: {StartKind.WARM}\r\nfaasd-worker: {worker}\r\nfaasd-request-id: "
    )


def _headers_of_function(reply: Reply) -> dict[str, str]:
    """What the function set, but for what is the platform's to say. Raises UnserialisableResult."""
    chosen = {
        name: value
        for name, value in reply.headers.items()
        if (lowered := name.lower()) not in _OURS and not lowered.startswith("faasd-")
    }
    for name, value in chosen.items():
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            raise _unsendable(reply, name, value)
    return chosen


@functools.lru_cache(maxsize=256)
def sendable(value: str) -> bool:
    """Whether it can be the value of a header."""
    return _HEADER_VALUE.fullmatch(value) is not None


def _unsendable(reply: Reply, name: str, value: str) -> UnserialisableResult:
    return UnserialisableResult(
        f"The function's response header {name[:80]!r} = {value[:80]!r} cannot be sent.",
        remedy="Use a header name of letters, digits and hyphens, and a value of one line.",
        timings=reply.timings.as_list(),
        start=str(reply.start),
        worker=reply.worker,
        revision=reply.revision,
    )


def problem(
    error: FaasdError, request_id: str, *, invoked: bool, status: int | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body that tell an error; `invoked`: and what it cost."""
    told = problem_object(error.to_problem(), request_id)
    if status is not None:
        told["status"] = status
    headers = {"Content-Type": PROBLEM, "faasd-request-id": request_id}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    elif error.status in (429, 503):
        headers["Retry-After"] = "1"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if invoked:
        headers.update(_cost(error))
    return told["status"], headers, json.dumps(told).encode()


def problem_object(told: dict[str, Any], request_id: str) -> dict[str, Any]:
    """The problem as its caller reads it; what the invocation cost stands elsewhere."""
    shown = {key: value for key, value in told.items() if key not in _COST}
    return {**shown, "request_id": request_id}


def broken_off(error: FaasdError, request_id: str) -> bytes:
    """The last event of a stream of events that ends in an error."""
    told = problem_object(error.to_problem(), request_id)
    return f"event: error\ndata: {json.dumps(told)}\n\n".encode()


def _cost(error: FaasdError) -> dict[str, str]:
    """The headers that tell what a failed invocation cost before it failed."""
    timings = Timings(*error.extra.get("timings", ()))
    headers = {
        "Server-Timing": timings.server_timing(),
        "faasd-start": str(error.extra.get("start", StartKind.NONE)),
    }
    for name in ("worker", "revision"):
        if error.extra.get(name):
            headers[f"faasd-{name}"] = str(error.extra[name])
    return headers
