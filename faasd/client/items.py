"""A response's chunks to the items they hold: pure, incremental, whatever the chunk borders.

Each decoder takes bytes as they arrive with `feed` and gives the rest with `finish`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from faasd.client import bodies
from faasd.errors import UnserialisableResult, from_problem


class ItemDecoder(Protocol):
    """What the client asks of every decoder."""

    def feed(self, chunk: bytes) -> Iterable[Any]:
        """The items completed by this chunk; to be iterated before the next call."""

    def finish(self) -> Iterable[Any]:
        """The items that only the end of the response completes."""


def decoder_for(content_type: str) -> ItemDecoder:
    """The decoder of a streamed invocation's items."""
    if bodies.media_type(content_type) == bodies.EVENTS:
        return EventItems()
    if bodies.is_lines(content_type):
        return JsonLines()
    if bodies.media_type(content_type).startswith("text/"):
        return TextChunks(bodies.charset(content_type))
    if bodies.is_json(content_type):
        return WholeBody(content_type)
    return RawChunks()


class Lines:
    """Splits bytes at line ends; a line that has no end yet is kept."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = b"".join([*self._pending, complete[0]])
            self._pending = []
        if rest:
            self._pending.append(rest)
        return [line.removesuffix(b"\r") for line in complete]

    def finish(self) -> bytes:
        rest = b"".join(self._pending)
        self._pending = []
        return rest


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str
    data: str


class Events:
    """Server-sent events from bytes (WHATWG HTML, section 9.2); an unfinished one is dropped."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        found = (self._take(line) for line in self._lines.feed(chunk))
        return [event for event in found if event is not None]

    def _take(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        key, _, value = line.decode("utf-8", "replace").partition(":")
        if key == "data":
            self._data.append(value.removeprefix(" "))
        elif key == "event":
            self._name = value.removeprefix(" ")
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
        self._name, self._data = "", []
        return event


class EventItems:
    """The data of each event as text; an event named `error` raises the problem it holds."""

    def __init__(self) -> None:
        self._events = Events()

    def feed(self, chunk: bytes) -> Iterable[Any]:
        # Lazily: the items before an error are given before it is raised.
        return (_item(event) for event in self._events.feed(chunk))

    def finish(self) -> list[Any]:
        return []


class JsonLines:
    """The decoded JSON of each line."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, chunk: bytes) -> Iterable[Any]:
        return (_json(line) for line in self._lines.feed(chunk) if line.strip())

    def finish(self) -> list[Any]:
        rest = self._lines.finish()
        return [_json(rest)] if rest.strip() else []


class TextChunks:
    """Text as it arrives; a character split between chunks comes with the later one."""

    def __init__(self, charset: str) -> None:
        try:
            b" ".decode(charset, "replace")
        except LookupError:
            charset = "utf-8"
        self._decoder = codecs.getincrementaldecoder(charset)("replace")

    def feed(self, chunk: bytes) -> list[Any]:
        text = self._decoder.decode(chunk)
        return [text] if text else []

    def finish(self) -> list[Any]:
        text = self._decoder.decode(b"", final=True)
        return [text] if text else []


class WholeBody:
    """The one value of a response that is no stream."""

    def __init__(self, content_type: str) -> None:
        self._content_type = content_type
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Any]:
        self._chunks.append(chunk)
        return []

    def finish(self) -> list[Any]:
        return [bodies.decode(self._content_type, b"".join(self._chunks))]


class RawChunks:
    """Bytes as they arrive."""

    def feed(self, chunk: bytes) -> list[Any]:
        return [chunk]

    def finish(self) -> list[Any]:
        return []


def problem_of(event: Event) -> Any:
    """The error that an event named `error` tells of."""
    problem = json_object(event.data)
    return from_problem(problem or {"detail": event.data, "code": "handler_error"})


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`, or an empty one when there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _item(event: Event) -> str:
    if event.name == "error":
        raise problem_of(event)
    return event.data


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnserialisableResult(f"A streamed item is not JSON: {error}.") from None
