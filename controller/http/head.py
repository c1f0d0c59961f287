"""The heads of plain invocations, read here; all other requests are aiohttp's to read.

A plain invocation is `POST /invoke/NAME HTTP/1.1` with a body of known length, or one in chunks,
and nothing about it that asks for more than its bytes. What is accepted is a part of what every
HTTP server accepts, so that a request cannot mean one thing here and another elsewhere: whatever is
odd is not plain.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from controller.http.wishes import Wishes, wishes
from faasd.errors import BadRequest, InvalidSpec
from faasd.settings import is_loopback
from faasd.spec import check_name

# Headers that are the platform's, or of the connection, and not the function's to see.
NOT_PASSED_ON = frozenset({
    "authorization", "connection", "content-length", "content-type", "cookie", "faasd-deadline-ms",
    "faasd-namespace", "faasd-request-id", "host", "idempotency-key", "keep-alive", "te",
    "trailer", "transfer-encoding", "upgrade", "faasd-priority", "faasd-slo-ms", "faasd-tenant",
    "faasd-session",
})  # fmt: skip
EVENTS = "text/event-stream"
# The length of a body that comes in chunks: more than any that is said.
UNSAID = 1 << 62

# Part of an address under /v1/invocations, where dots alone mean a folder and braces are no match.
REQUEST_ID_PATTERN = r"^(?!\.+$)[!-z|~]{1,128}$"
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)

_LINE = re.compile(rb"POST /invoke/([0-9A-Za-z._-]+) HTTP/1\.1")
_FIELD = re.compile(rb"([0-9A-Za-z!#$%&'*+.^_`|~-]+):[ \t]*((?:[!-~](?:[ \t!-~]*[!-~])?)?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,12}")
_ASKS_FOR_MORE = frozenset({
    "expect", "idempotency-key", "proxy-connection", "sec-websocket-key1", "te", "trailer",
    "upgrade",
})  # fmt: skip
_MOST_FIELDS = 64
# What aiohttp accepts of one line; of a whole head it is much.
_LONGEST = 8190
_AUTHORITY = re.compile(r"(?:[a-z0-9+.-]*:)?//(\[[0-9a-f:.]+\]|[0-9a-z.-]+)(?::[0-9]{0,5})?")


@dataclass(slots=True)
class Head:
    """What the head of a plain invocation says."""

    name: str
    length: int
    """Of the body, in bytes; UNSAID where it comes in chunks."""
    content_type: str
    headers: dict[str, str]
    authorization: str | None
    namespace: str | None
    request_id: str | None
    deadline_ms: float | None
    events: bool
    wishes: Wishes


def parse(head: bytes) -> Head | None:
    """The head of a plain invocation, without the empty line at its end; None for all others."""
    line, *lines = head.split(b"\r\n")
    requested = _LINE.fullmatch(line)
    if requested is None or len(lines) > _MOST_FIELDS or len(head) > _LONGEST:
        return None
    fields: dict[str, str] = {}
    for one in lines:
        field = _FIELD.fullmatch(one)
        if field is None:
            return None
        name, value = field[1].decode().lower(), field[2].decode()
        if name in fields:
            # Which line counts, and whether two may stand there, differs from name to name.
            return None
        fields[name] = value
    if not _is_plain(fields):
        return None
    return _head(requested[1].decode(), fields)


def _is_plain(fields: dict[str, str]) -> bool:
    return (
        "host" in fields
        and not _ASKS_FOR_MORE.intersection(fields)
        and fields.get("connection", "keep-alive").lower() == "keep-alive"
        and ("authorization" in fields or not is_of_foreign_page(fields.get))
    )


def _length(fields: dict[str, str]) -> int | None:
    """None for what may be read in two ways: a length that is odd, and a length beside chunks."""
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        return UNSAID if coding.lower() == "chunked" and length is None else None
    if length is None:
        return 0
    return int(length) if _LENGTH.fullmatch(length) else None


def _head(name: str, fields: dict[str, str]) -> Head | None:
    length = _length(fields)
    deadline = fields.get("faasd-deadline-ms")
    namespace = fields.get("faasd-namespace")
    try:
        deadline_ms = None if deadline is None else float(deadline)
        check_name(name)
        if namespace is not None:
            check_name(namespace)
        wanted = wishes(fields.get)
    except (ValueError, BadRequest, InvalidSpec):
        return None
    if length is None or (deadline_ms is not None and not 0 < deadline_ms < 1e12):
        return None
    return Head(
        name=name,
        length=length,
        content_type=fields.get("content-type", ""),
        headers={name: value for name, value in fields.items() if name not in NOT_PASSED_ON},
        authorization=fields.get("authorization"),
        namespace=namespace,
        request_id=given_id(fields.get("faasd-request-id", "")),
        deadline_ms=deadline_ms,
        events=EVENTS in fields.get("accept", ""),
        wishes=wanted,
    )


def given_id(text: str) -> str | None:
    """The request id that a caller chose, if it is one."""
    return text if _REQUEST_ID.fullmatch(text) else None


def is_of_foreign_page(field: Callable[[str], str | None]) -> str | None:
    """The header that shows a page of somebody else's at work, where there is one.

    A browser on this machine must not be made to call us: where no key is needed the address is
    loopback, and so must be the names in Host (against DNS rebinding) and Origin.
    """
    for header, before in (("host", "//"), ("origin", "")):
        named = field(header)
        if named is not None and not _means_this_machine(before + named):
            return f"{header.title()}: {named[:80]}"
    return None


@functools.lru_cache(maxsize=256)
def _means_this_machine(url: str) -> bool:
    named = _AUTHORITY.fullmatch(url.lower())
    return named is not None and is_loopback(named[1].strip("[]"))


class Heads:
    """Remembers heads by their bytes: most callers send the same one again and again."""

    MOST = 512
    LONGEST = 1024

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._known)

    def read(self, head: bytes) -> Head | None:
        """As `parse`."""
        found = self._known.get(head)
        if found is not None:
            return found
        found = parse(head)
        if found is not None and len(head) <= self.LONGEST:
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[head] = found
        return found
