"""Values to request bodies, and response bodies and headers to values: pure functions."""

from __future__ import annotations

import json
import re
from typing import Any

from faasd.errors import BadRequest, UnserialisableResult

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"
PROBLEM = "application/problem+json"
_LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_TIMING = re.compile(r"\s*([\w-]+)\s*;\s*dur=([0-9.]+)")


def media_type(content_type: str) -> str:
    """The type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def charset(content_type: str) -> str:
    return content_type.partition("charset=")[2].partition(";")[0].strip().strip('"') or "utf-8"


def is_json(content_type: str) -> bool:
    media = media_type(content_type)
    return media == JSON or media.endswith("+json")


def is_lines(content_type: str) -> bool:
    return media_type(content_type) in _LINES


def encode(value: Any, content_type: str | None) -> tuple[str | None, bytes]:
    """Content type and body. Bytes and str go as they are, None is no body, all else is JSON."""
    if value is None:
        return content_type, b""
    if isinstance(value, bytes | bytearray | memoryview):
        return content_type or BYTES, bytes(value)
    if isinstance(value, str):
        return content_type or TEXT, value.encode()
    try:
        return content_type or JSON, json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(
            f"The value cannot be sent as JSON: {error}.",
            remedy="Send JSON-compatible values, str, or bytes with a content type.",
        ) from None


def decode(content_type: str, body: bytes) -> Any:
    """The value of a whole body. Raises UnserialisableResult when it is not what its type says."""
    try:
        if is_lines(content_type):
            return [json.loads(line) for line in body.splitlines() if line.strip()]
        if media_type(content_type).startswith("text/"):
            return body.decode(charset(content_type))
        if not body:
            return None
        return json.loads(body) if is_json(content_type) else body
    except (ValueError, LookupError, RecursionError) as error:
        raise UnserialisableResult(
            f"The result says it is {content_type} and is not: {error}."
        ) from None


def timings(server_timing: str) -> dict[str, float]:
    """Milliseconds by phase from a Server-Timing header."""
    found = (_TIMING.match(part) for part in server_timing.split(","))
    return {match[1]: float(match[2]) for match in found if match}
