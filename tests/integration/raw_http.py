"""A client that says HTTP as bytes, and believes nothing about what comes back.

with Wire.to(platform.url) as wire:
    wire.send(post("echo", b"hi"))
    assert wire.reply().status == 200

Replies are read by a strict parser of its own, which accepts exactly one framing of each: whatever
else a server says fails the test, with the bytes.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

HOST = b"Host: 127.0.0.1\r\n"

# What the function saw of its request.
ECHO = """
def handle(event, context):
    return {
        "event": event.decode("latin-1") if isinstance(event, bytes) else event,
        "type": context.content_type,
        "headers": context.headers,
        "id": context.request_id,
    }
"""

_PATIENCE_S = 20.0
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) ([\x20-\x7e]*)")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\r\n\x00]*)")
_CHUNK_LINE = re.compile(rb"[0-9a-fA-F]+")


def post(name: str, body: bytes = b"", *lines: bytes, version: bytes = b"1.1") -> bytes:
    """An invocation, well-formed as long as the header lines are."""
    return make(f"POST /invoke/{name}", body, *lines, version=version)


def get(path: str, *lines: bytes) -> bytes:
    return make(f"GET {path}", b"", *lines)


def make(line: str, body: bytes, *lines: bytes, version: bytes = b"1.1") -> bytes:
    length = [b"Content-Length: %d" % len(body)] if body else []
    head = b"".join(extra + b"\r\n" for extra in [*lines, *length])
    return line.encode() + b" HTTP/" + version + b"\r\n" + HOST + head + b"\r\n" + body


def post_chunked(name: str, *chunks: bytes, lines: tuple[bytes, ...] = ()) -> bytes:
    head = post(name, b"", *lines, b"Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@dataclass(frozen=True, slots=True)
class Reply:
    """One response, read whole. Header names are in lower case; none comes twice."""

    version: str
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    interim: int = 0  # responses 1xx that came before it

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def event(self) -> Any:
        """What ECHO was given."""
        assert self.status == 200, self
        return self.json()["event"]


class Closed(Exception):
    """The connection ended before the first byte of a reply."""


class Wire:
    """One connection. Every read is bounded in time, so that a silent server fails the test."""

    def __init__(self, connection: socket.socket, patience_s: float) -> None:
        self.socket = connection
        self._patience_s = patience_s
        self._received = bytearray()
        self._ended = False

    @classmethod
    def to(
        cls,
        url: str,
        *,
        patience_s: float = _PATIENCE_S,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> Self:
        """A connection to the server of the URL, from the address `source`."""
        address = urlsplit(url)
        connection = socket.socket()
        connection.settimeout(patience_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            connection.bind((source, 0))
        try:
            connection.connect((address.hostname, address.port))
        except OSError:
            connection.close()
            raise
        return cls(connection, patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it in one call. To a server that has hung up it is no failure: what that said
        before can still be read."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def send_last(self, data: bytes) -> None:
        """Together with the news that nothing more will come; replies can still be read."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.send(data)
        self.half_close()

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave the rude way: the server's next read or write fails."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def reply(self, *, to_head: bool = False) -> Reply:
        """The next final response. Raises Closed when the connection ends instead."""
        interim = 0
        while True:
            found = self.response(to_head=to_head)
            if found.status >= 200:
                return Reply(
                    found.version, found.status, found.reason, found.headers, found.body, interim
                )
            interim += 1

    def replies(self, count: int) -> list[Reply]:
        return [self.reply() for _ in range(count)]

    def replies_to_the_end(self) -> list[Reply]:
        """All that still come until the server ends the connection."""
        found = []
        with contextlib.suppress(Closed):
            while True:
                found.append(self.reply())
        return found

    def response(self, *, to_head: bool = False) -> Reply:
        """The next response, an interim one too. Raises Closed when the connection ends instead."""
        head = self._head()
        status_line, *lines = head.split(b"\r\n")
        said = _STATUS_LINE.fullmatch(status_line)
        assert said, f"no status line: {head!r}"
        headers = _headers(lines, head)
        status = int(said[2])
        bodiless = to_head or status in {204, 304} or status < 200
        body = b"" if bodiless else self._body(headers)
        return Reply(f"1.{said[1].decode()}", status, said[3].decode(), headers, body)

    def rest(self) -> bytes:
        """The bytes that still come until the server ends the connection."""
        while self._receive():
            pass
        said = bytes(self._received)
        self._received.clear()
        return said

    def ended(self) -> bool:
        """Whether the server has ended the connection by now; never waits."""
        self.socket.settimeout(0)
        try:
            while self._receive():
                pass
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(self._patience_s)
        return True

    def _head(self) -> bytes:
        while b"\r\n\r\n" not in self._received:
            if not self._receive():
                if not self._received:
                    raise Closed
                raise AssertionError(f"ended within a head: {bytes(self._received)!r}")
        return self._until(b"\r\n\r\n")

    def _body(self, headers: dict[str, str]) -> bytes:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        assert length is None or coding is None, f"a body framed twice: {headers}"
        if coding is not None:
            assert coding == "chunked", headers
            return b"".join(self._chunks())
        if length is not None:
            assert length.isdigit(), headers
            return self._exactly(int(length))
        assert headers.get("connection", "close") == "close", f"a body without end: {headers}"
        return self.rest()

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._until(b"\r\n")
            assert _CHUNK_LINE.fullmatch(line), f"no chunk size: {line!r}"
            size = int(line, 16)
            yield self._exactly(size)
            assert self._exactly(2) == b"\r\n", "a chunk without end"
            if not size:
                return

    def _until(self, mark: bytes) -> bytes:
        while (at := self._received.find(mark)) < 0:
            assert self._receive(), f"ended within a reply: {bytes(self._received)!r}"
        found = bytes(self._received[:at])
        del self._received[: at + len(mark)]
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            assert self._receive(), f"{size - len(self._received)} bytes of a body are missing"
        found = bytes(self._received[:size])
        del self._received[:size]
        return found

    def _receive(self) -> bool:
        """Whether more came; a reset counts as the end."""
        if self._ended:
            return False
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        self._received += data
        self._ended = not data
        return bool(data)


class Witness:
    """A connection of its own to the same server. Once it is answered, the server has read what
    others sent before: its loop takes what has arrived in turn. So nobody need wait for a time."""

    def __init__(self, url: str) -> None:
        self._wire = Wire.to(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.socket.close()

    def sees(self) -> None:
        self._wire.send(get("/healthz"))
        assert self._wire.reply().status == 200

    def deliver(self, wire: Wire, pieces: Iterable[bytes]) -> None:
        """Each piece so that the server reads it alone."""
        for piece in pieces:
            wire.send(piece)
            self.sees()


def _headers(lines: list[bytes], head: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        said = _HEADER_LINE.fullmatch(line)
        assert said, f"no header line: {line!r} of {head!r}"
        name = said[1].decode().lower()
        assert name not in found, f"{name} comes twice: {head!r}"
        found[name] = said[2].decode("latin-1")
    return found
