"""Controller and worker over TCP: framed msgpack, many requests in flight, both ways.

A frame is a 4-byte big-endian length and a msgpack array:

    [REQUEST, id, method, payload]   answered by one of
    [REPLY, id, payload, more]       `more`: items follow, then END or ERROR
    [ERROR, id, problem]
    [ITEM, id, value]  [END, id]
    [CANCEL, id]                     the requester wants no more of it
    [CREDIT, id, bytes]              the requester has taken so many bytes of items
    [NOTE, method, payload]          one way

Ids are chosen by the requester, and each side counts its own. Items of one request wait for credit,
so a slow reader holds up its own stream and no other. Before the first frame both sides prove that
they know the shared secret (HMAC-SHA256 over fresh nonces); the traffic itself is not encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import secrets
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from faasd.errors import (
    Cancelled,
    FaasdError,
    InternalError,
    Unauthorized,
    WorkerLost,
    from_problem,
)
from faasd.streams import Closable, close
from faasd.telemetry import get_logger

log = get_logger("faasd.wire")

REQUEST, REPLY, ERROR, ITEM, END, CANCEL, CREDIT, NOTE = range(8)
WINDOW = 1 << 20
MAX_FRAME = (1 << 30) + (1 << 24)
_MAX_HELLO = 4096
_LEAST_SIZE = 256
_LENGTH = struct.Struct(">I")
_GREETING = b"faasd-1"


class Packing:
    """Makes msgpack. One packer for all: each has a buffer that costs more to make than to fill.

    Not thread-safe; owned by the event loop.
    """

    LARGEST_KEPT = 1 << 20

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack

    def __call__(self, message: Any) -> bytes:
        packed: bytes = self._pack(message)
        if len(packed) > self.LARGEST_KEPT:
            # Its buffer has grown with the message, and would stay so.
            self._pack = msgpack.Packer().pack
        return packed


packed = Packing()


@dataclass(slots=True)
class Answer:
    """What a request is answered with: a payload, and possibly items that follow."""

    payload: Any = None
    items: AsyncIterator[Any] | None = None


Serve = Callable[[str, Any], Awaitable[Answer]]


class _Outgoing:
    """A request of ours that is not finished."""

    __slots__ = ("answered", "arrived", "closed", "error", "items", "taken")

    def __init__(self) -> None:
        self.answered: asyncio.Future[tuple[Any, bool]] = asyncio.get_running_loop().create_future()
        self.items: deque[tuple[Any, int]] = deque()
        self.arrived = asyncio.Event()
        self.closed = False
        self.error: FaasdError | None = None
        self.taken = 0

    def end(self, error: FaasdError | None) -> None:
        if self.closed:
            return
        self.closed = True
        self.error = error
        self.arrived.set()
        if not self.answered.done():
            self.answered.set_exception(error or InternalError("The reply ended early."))
            self.answered.exception()


class _Incoming:
    """A request of the other side that is being served."""

    __slots__ = ("credit", "method", "refilled", "task")

    def __init__(self, method: str) -> None:
        self.method = method
        self.credit = WINDOW
        self.refilled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Channel:
    """One connection. `run` serves it until it ends. Owned by the event loop."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        serve: Serve,
        note: Callable[[str, Any], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._serve = serve
        self._note = note
        self._ids = itertools.count(1)
        self._outgoing: dict[int, _Outgoing] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._closed = False
        self.heard_at = asyncio.get_running_loop().time()

    def __repr__(self) -> str:
        return f"<Channel {len(self._outgoing)} out, {len(self._incoming)} in>"

    async def run(self) -> None:
        """Serve frames until the connection ends; then everything under way is ended."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(4))
                if length > MAX_FRAME:
                    raise ValueError(f"a frame of {length} bytes")
                self.heard_at = asyncio.get_running_loop().time()
                self._dispatch(msgpack.unpackb(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, OSError):
            pass
        except Exception:  # the boundary of a connection: what it cannot take ends it
            log.warning("channel.garbage", exc_info=True)
        finally:
            await self._end()

    def close(self) -> None:
        """End the connection; `run` then returns."""
        self._writer.transport.abort()

    async def call(self, method: str, payload: Any) -> Answer:
        """Ask the other side. Its errors are raised here; cancelling this cancels it there."""
        if self._closed:
            raise _lost()
        identity = next(self._ids)
        request = self._outgoing[identity] = _Outgoing()
        self._send([REQUEST, identity, method, payload])
        try:
            answer, more = await request.answered
        except asyncio.CancelledError:
            self._cancel(identity)
            raise
        finally:
            if not request.answered.done() or not _has_more(request.answered):
                self._outgoing.pop(identity, None)
        if not more:
            return Answer(answer)
        items = self._items(identity, request)
        return Answer(answer, Closable(items, unread=lambda: self._cancel(identity)))

    def notify(self, method: str, payload: Any) -> None:
        self._send([NOTE, method, payload])

    async def served(self, method: str) -> None:
        """Wait until no request of this kind is being served, the last of its items included."""
        while tasks := [
            one.task for one in self._incoming.values() if one.method == method and one.task
        ]:
            await asyncio.wait(tasks)

    async def _items(self, identity: int, request: _Outgoing) -> AsyncGenerator[Any, None]:
        finished = False
        try:
            while True:
                while not request.items:
                    if request.closed:
                        finished = True
                        if request.error is not None:
                            raise request.error
                        return
                    request.arrived.clear()
                    await request.arrived.wait()
                item, size = request.items.popleft()
                request.taken += size
                if request.taken >= WINDOW // 4:
                    self._send([CREDIT, identity, request.taken])
                    request.taken = 0
                yield item
        finally:
            self._outgoing.pop(identity, None)
            if not finished:
                self._cancel(identity)

    def _cancel(self, identity: int) -> None:
        self._outgoing.pop(identity, None)
        self._send([CANCEL, identity])

    def _send(self, frame: list[Any]) -> int:
        if self._closed:
            return 0
        body = msgpack.packb(frame)
        self._writer.write(_LENGTH.pack(len(body)))
        self._writer.write(body)
        return len(body)

    def _dispatch(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == REQUEST:
            self._begin(frame[1], str(frame[2]), frame[3])
        elif kind == NOTE:
            self._note(str(frame[1]), frame[2])
        elif kind in (CANCEL, CREDIT):
            incoming = self._incoming.get(frame[1])
            if incoming is None or incoming.task is None:
                return
            if kind == CANCEL:
                incoming.task.cancel()
            else:
                incoming.credit += int(frame[2])
                incoming.refilled.set()
        else:
            self._take(kind, frame)

    def _take(self, kind: int, frame: list[Any]) -> None:
        request = self._outgoing.get(frame[1])
        if request is None:
            return
        if kind == REPLY and not request.answered.done():
            request.answered.set_result((frame[2], bool(frame[3])))
        elif kind == ITEM:
            item = frame[2]
            request.items.append((item, _size(item)))
            request.arrived.set()
        elif kind == END:
            request.end(None)
        elif kind == ERROR:
            request.end(from_problem(frame[2]))

    def _begin(self, identity: int, method: str, payload: Any) -> None:
        if identity in self._incoming:
            raise ValueError(f"request {identity} is being served already")
        incoming = self._incoming[identity] = _Incoming(method)
        work = self._answer(identity, incoming, method, payload)
        incoming.task = asyncio.get_running_loop().create_task(work)
        # Not by the task itself: one that is cancelled before its first step runs none of its code.
        incoming.task.add_done_callback(lambda _task: self._incoming.pop(identity, None))

    async def _answer(self, identity: int, incoming: _Incoming, method: str, payload: Any) -> None:
        try:
            answer = await self._serve(method, payload)
            self._send([REPLY, identity, answer.payload, answer.items is not None])
            if answer.items is not None:
                await self._send_items(identity, incoming, answer.items)
                self._send([END, identity])
            await self._drain()
        except asyncio.CancelledError:
            self._send([ERROR, identity, Cancelled("The request was cancelled.").to_problem()])
            raise
        except FaasdError as error:
            self._send([ERROR, identity, error.to_problem()])
        except Exception:  # the boundary of a request: the other side hears of a defect
            log.exception("channel.request_failed", method=method)
            told = InternalError("The request could not be completed.")
            self._send([ERROR, identity, told.to_problem()])

    async def _send_items(
        self, identity: int, incoming: _Incoming, items: AsyncIterator[Any]
    ) -> None:
        try:
            async for item in items:
                while incoming.credit <= 0:
                    incoming.refilled.clear()
                    await incoming.refilled.wait()
                incoming.credit -= _size(item)
                self._send([ITEM, identity, item])
                await self._drain()
        finally:
            await close(items)

    async def _drain(self) -> None:
        # A connection that ends is `run`'s to notice; it then cancels what is being served.
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def _end(self) -> None:
        self._closed = True
        for request in list(self._outgoing.values()):
            request.end(_lost())
        tasks = [one.task for one in self._incoming.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer.close()


def _has_more(answered: asyncio.Future[tuple[Any, bool]]) -> bool:
    return not answered.cancelled() and answered.exception() is None and answered.result()[1]


def _size(item: Any) -> int:
    """What an item counts against the window; both sides must agree."""
    return max(_LEAST_SIZE, len(item)) if isinstance(item, bytes) else _LEAST_SIZE


def _lost() -> FaasdError:
    return WorkerLost("The connection between controller and worker ended.")


def _mac(secret: str, *parts: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"\0".join((_GREETING, *parts)), "sha256")


async def greet_worker(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str
) -> None:
    """The controller's side of the proof. Raises Unauthorized."""
    nonce = secrets.token_bytes(32)
    await _write(writer, nonce)
    theirs, mac = (await _read(reader, 2))[:2]
    if not hmac.compare_digest(mac, _mac(secret, b"worker", nonce, theirs)):
        raise Unauthorized("A worker gave a wrong cluster secret.")
    await _write(writer, _mac(secret, b"controller", theirs, nonce))


async def greet_controller(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str
) -> None:
    """The worker's side of the proof. Raises Unauthorized."""
    (theirs,) = await _read(reader, 1)
    nonce = secrets.token_bytes(32)
    await _write(writer, nonce, _mac(secret, b"worker", theirs, nonce))
    try:
        (mac,) = await _read(reader, 1)
    except asyncio.IncompleteReadError:
        mac = b""
    if not hmac.compare_digest(mac, _mac(secret, b"controller", nonce, theirs)):
        raise Unauthorized(
            "Controller and worker do not share the cluster secret.",
            remedy="Give both the same FAASD_CLUSTER_SECRET (the worker's is "
            "FAASD_WORKER_CLUSTER_SECRET).",
        )


async def _write(writer: asyncio.StreamWriter, *parts: bytes) -> None:
    body = msgpack.packb(list(parts))
    writer.write(_LENGTH.pack(len(body)) + body)
    await writer.drain()


async def _read(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    (length,) = _LENGTH.unpack(await reader.readexactly(4))
    if length > _MAX_HELLO:
        raise Unauthorized("The other side does not speak this protocol.")
    try:
        parts = msgpack.unpackb(await reader.readexactly(length))
    except ValueError:
        parts = None
    if (
        not isinstance(parts, list)
        or len(parts) != count
        or not all(isinstance(one, bytes) for one in parts)
    ):
        raise Unauthorized("The other side does not speak this protocol.")
    return parts
