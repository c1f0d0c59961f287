"""The little of HTTP/1.1 that the relays speak: messages on one connected socket.

Sockets are used bare, by the running loop: a connection outlives the loop it was made in, and a
fork. Nothing here resolves a name, starts a thread or imports late, since a relay runs where there
may be no Python to import from.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncGenerator
from typing import NamedTuple

_READ = 65_536
_LONGEST_HEAD = 1 << 20
NO_BODY = (204, 304)
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


class BadMessage(Exception):
    """What came is not HTTP/1.1."""


class Disconnected(Exception):
    """The other end closed the connection in the midst of a message."""


class Head(NamedTuple):
    """The first line's words, the headers by lower-case name, and what they say of the body."""

    words: list[str]
    headers: dict[str, str]
    chunked: bool
    length: int | None

    @property
    def status(self) -> int:
        """Of a response. Raises BadMessage."""
        version, code = self.words[:2]
        if not version.startswith("HTTP/1.") or not _NUMBER.fullmatch(code):
            raise BadMessage(f"its answer begins with {' '.join(self.words)[:80]!r}")
        return int(code)


class Connection:
    """One end of a connection. Owned by whatever loop runs; one reader and one writer at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._ahead = b""

    @classmethod
    async def to(cls, port: int) -> Connection:
        """A connection to a port of this sandbox. Raises OSError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    async def head(self) -> Head | None:
        """The head of the next message, or None when there is none. Raises BadMessage, Disconnected."""
        try:
            text = (await self._until(b"\r\n\r\n")).decode("utf-8", "replace")
        except Disconnected:
            if self._ahead:
                raise
            return None
        first, *lines = text.lstrip("\r\n").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2:
            raise BadMessage(f"its message begins with {first[:80]!r}")
        headers = _fields(lines)
        length = headers.get("content-length")
        if length is not None and not _NUMBER.fullmatch(length):
            raise BadMessage(f"{length[:80]!r} is no Content-Length")
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        return Head(words, headers, chunked, None if length is None else int(length))

    async def request_body(self, head: Head) -> bytes:
        """The whole body of a request; fields that trail it join its headers."""
        if head.chunked:
            return b"".join([part async for part in self._chunks(head)])
        return await self._exactly(head.length or 0)

    async def response_body(self, head: Head) -> AsyncGenerator[bytes, None]:
        """The body of a response, piece by piece. Raises BadMessage, Disconnected."""
        if head.status in NO_BODY:
            return
        if head.chunked:
            async for part in self._chunks(head):
                yield part
        elif head.length is not None:
            yield await self._exactly(head.length)
        else:
            while True:
                part, self._ahead = self._ahead, b""
                if part:
                    yield part
                try:
                    await self._more()
                except Disconnected:
                    return

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def is_closed(self) -> bool:
        """Whether the other end is gone, where nothing is expected of it."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End the connection for both sides, whoever else has inherited this socket."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    async def _chunks(self, head: Head) -> AsyncGenerator[bytes, None]:
        while True:
            size = (await self._until(b"\r\n")).split(b";")[0].strip()
            try:
                length = int(size, 16)
            except ValueError:
                raise BadMessage(f"{size[:20]!r} is no length of a chunk") from None
            if length <= 0:
                break
            yield await self._exactly(length)
            if await self._exactly(2) != b"\r\n":
                raise BadMessage("a chunk is longer than was said")
        while True:
            line = await self._until(b"\r\n")
            if not line:
                return
            head.headers.update(_fields([line.decode("utf-8", "replace")]))

    async def _until(self, mark: bytes) -> bytes:
        """What comes before the mark, which is taken too."""
        searched = 0
        while True:
            found = self._ahead.find(mark, searched)
            if found >= 0:
                data = self._ahead[:found]
                self._ahead = self._ahead[found + len(mark) :]
                return data
            if len(self._ahead) > _LONGEST_HEAD:
                raise BadMessage("its headers do not end")
            searched = max(0, len(self._ahead) - len(mark))
            await self._more()

    async def _exactly(self, size: int) -> bytes:
        parts = [self._ahead[:size]]
        self._ahead = self._ahead[size:]
        missing = size - len(parts[0])
        while missing:
            await self._more()
            parts.append(self._ahead[:missing])
            self._ahead = self._ahead[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    async def _more(self) -> None:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, _READ)
        except ConnectionError:
            data = b""
        if not data:
            raise Disconnected
        self._ahead += data


def message(first: str, headers: dict[str, str], body: bytes) -> bytes:
    """A whole message, its length among the headers."""
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("utf-8", "replace") + body


def _fields(lines: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            lowered, value = name.strip().lower(), value.strip()
            # Cookies are the one field whose values no comma joins; there is place for one.
            joined = lowered in fields and lowered != "set-cookie"
            fields[lowered] = f"{fields[lowered]}, {value}" if joined else value
    return fields
