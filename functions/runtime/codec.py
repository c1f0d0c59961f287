"""Bodies to events and results to bodies, by content type."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from .context import Response

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
LINES = "application/x-ndjson"
EVENTS = "text/event-stream"


class BadEvent(Exception):
    """The body is not what its content type says."""


class BadResult(Exception):
    """The handler returned something that cannot be sent."""


def decode(content_type: str, body: bytes) -> Any:
    """The event a handler sees: None, JSON values, str or bytes. Raises BadEvent."""
    kind, parameters = _parts(content_type)
    if not body and not kind.startswith("text/"):
        return None
    if kind == JSON or kind.endswith("+json"):
        return _json(body)
    if kind.startswith("text/"):
        return _text(body, parameters)
    if kind == "application/x-www-form-urlencoded" and body.lstrip()[:1] in (b"{", b"["):
        # What command-line clients send when only the data was named.
        return _json(body)
    return body


@functools.lru_cache(maxsize=128)
def _parts(content_type: str) -> tuple[str, str]:
    kind, _, parameters = content_type.partition(";")
    return kind.strip().lower(), parameters


def _json(body: bytes) -> Any:
    # Almost all of it is UTF-8 without blanks around, which takes a third of the time.
    if b"\0" not in body[:4] and body[0] < 0x80:
        try:
            text = body.decode()
            value, end = _scan(text, 0)
            if end == len(text):
                return value
        except (ValueError, StopIteration, RecursionError):
            pass
    try:
        return _decoder.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"The body is not JSON: {error}.") from None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _text(body: bytes, parameters: str) -> str:
    named = dict(_parameter(one) for one in parameters.split(";"))
    charset = named.get("charset") or "utf-8"
    try:
        return body.decode(charset)
    except (LookupError, ValueError) as error:
        raise BadEvent(f"The body is not text in {charset}: {error}.") from None


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip().strip('"')


def encode(result: Any) -> tuple[int, str, dict[str, str], bytes]:
    """Status, content type, headers and body of a handler's result. Raises BadResult."""
    if isinstance(result, Response):
        content_type, body = _encode_value(result.body)
        if not isinstance(result.status, int) or not 200 <= result.status <= 599:
            raise BadResult(f"The response status {result.status!r} must lie between 200 and 599.")
        headers = _headers(result)
        return result.status, result.content_type or content_type, headers, body
    content_type, body = _encode_value(result)
    return 200, content_type, {}, body


def encode_item(item: Any) -> tuple[str, bytes]:
    """Content type and bytes of one item of a stream; JSON items are lines. Raises BadResult."""
    content_type, body = _encode_value(item)
    return (LINES, body + b"\n") if content_type == JSON else (content_type, body)


def encode_event(item: Any) -> bytes:
    """One item of a stream as a server-sent event. Raises BadResult."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        raise BadResult(
            "The generator yielded bytes, which server-sent events cannot carry; "
            "yield str or JSON values, or ask without Accept: text/event-stream."
        )
    text = item if isinstance(item, str) else _dumps(item)
    # A carriage return ends a line of an event stream too; a newline at the end must come through.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines).encode("utf-8", "replace") + b"\n"


def _encode_value(value: Any) -> tuple[str, bytes]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES, bytes(value)
    if isinstance(value, str):
        return TEXT, value.encode("utf-8", "replace")
    return JSON, _dumps(value).encode()


def _dumps(value: Any) -> str:
    try:
        return _encode(value)
    except RecursionError:
        raise BadResult(
            "The handler returned what cannot be sent as JSON: it contains itself, or is nested too "
            "deeply."
        ) from None
    except (TypeError, ValueError) as error:
        raise BadResult(f"The handler returned what cannot be sent as JSON: {error}.") from None


def _plain(value: Any) -> Any:
    """Arrays and tensors as nested lists."""
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return to_list()
    raise TypeError(f"{type(value).__name__} is not JSON, bytes or str")


# Made once: json.loads and json.dumps make one per call when told anything.
_decoder = json.JSONDecoder(parse_constant=_no_number)
_scan = _decoder.scan_once  # type: ignore[attr-defined]
_encoder = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"))


def _encoding() -> Callable[[Any], str]:
    """What JSONEncoder.encode does, without making anew what it is done with each time."""
    make = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:
        return _encoder.encode
    # Without markers: what contains itself is found by its depth.
    quote = json.encoder.encode_basestring_ascii
    chunks = make(None, _plain, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))


_encode = _encoding()


def _headers(response: Response) -> dict[str, str]:
    chosen = response.headers
    for name, value in (*chosen.items(), ("Content-Type", response.content_type or "")):
        if not _is_line(name) or not _is_line(value):
            raise BadResult(f"The response header {name!r} must be one line of text.")
    return chosen


def _is_line(text: Any) -> bool:
    # Half characters fit into no message and no header.
    return isinstance(text, str) and not any(
        c in "\r\n\0" or "\ud800" <= c <= "\udfff" for c in text
    )
