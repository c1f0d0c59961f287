"""One POST, again and again over kept connections; answers tell when they reached this machine.

The kernel stamps what arrives at a socket. However late a busy sender comes to read an answer, what
passed until it was there is the server's time, and that of whoever else wanted the processors.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

# From asm-generic/socket.h: Python has no name for it.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_ROOM = socket.CMSG_SPACE(_TIMESPEC.size)
_READ = 65_536
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """`server_ms` is from the sending of the request to the arrival of the answer's last byte."""

    status: int
    retry_after: bool
    server_ms: float


class Poster:
    """Owned by the event loop; a connection has one request at a time."""

    def __init__(self, url: str, body: bytes, *, content_type: str) -> None:
        address = urlsplit(url)
        self._peer = (address.hostname, address.port)
        head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._idle: list[_Connection] = []

    async def post(self) -> Answer:
        """Raises OSError."""
        connection = await self._connection()
        try:
            answer = await connection.ask(self._request)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._peer)
        except BaseException:
            sock.close()
            raise
        return _Connection(sock)


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.closed = False
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._read = b""
        self._sent_ns = 0
        self._waiting: asyncio.Future[Answer] | None = None
        self._loop.add_reader(sock.fileno(), self._readable)

    async def ask(self, request: bytes) -> Answer:
        self._waiting = self._loop.create_future()
        self._sent_ns = time.time_ns()
        self._sock.send(request)
        return await self._waiting

    def close(self) -> None:
        """Safe to call twice."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        try:
            data, notes, _, _ = self._sock.recvmsg(_READ, _ROOM)
        except OSError as error:
            self._failed(error)
            return
        if not data:
            self._failed(ConnectionResetError("the server closed the connection"))
            return
        self._read += data
        if _is_whole(self._read) and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            answer = _answer(self._read, _arrived_ns(notes) - self._sent_ns)
            self._read = b""
            if not waiting.done():
                waiting.set_result(answer)

    def _failed(self, error: OSError) -> None:
        self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


def _is_whole(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    length = _LENGTH.search(data, 0, end + 2)
    return end >= 0 and len(data) >= end + 4 + (int(length[1]) if length else 0)


def _answer(data: bytes, took_ns: int) -> Answer:
    end = data.find(b"\r\n\r\n") + 2
    return Answer(
        status=int(data[9:12]),
        retry_after=_RETRY_AFTER.search(data, 0, end) is not None,
        server_ms=max(0, took_ns) / 1e6,
    )


def _arrived_ns(notes: list[tuple[int, int, bytes]]) -> int:
    """By the kernel; what it has not stamped, as the first packets may be, arrived just now."""
    for level, kind, data in notes:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
