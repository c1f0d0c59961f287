"""Channels for tests: both ends in one loop, over a real socket, and what serves and asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgpack

from faasd.errors import (
    FaasdError,
)
from faasd.flow import Inflow
from faasd.framing import Connection
from faasd.wire import (
    Answer,
    Begin,
    Call,
    Cancellable,
    Channel,
    Request,
    Serve,
)

CHUNK = 1 << 16


async def connection(end: socket.socket) -> Connection:
    return (await asyncio.get_running_loop().create_connection(Connection, sock=end))[1]


async def ends() -> tuple[Connection, Connection]:
    left, right = socket.socketpair()
    return await connection(left), await connection(right)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def ignore(_method: str, _payload: Any) -> None:
    return


async def echo(request: Request) -> Answer:
    return Answer(request.payload)


@contextlib.asynccontextmanager
async def serving(
    end: Connection,
    serve: Serve = echo,
    note: Callable[[str, Any], None] = ignore,
    begin: Mapping[str, Begin] | None = None,
) -> AsyncIterator[Channel]:
    """A channel that is run; its `run` must return by itself once it is closed."""
    channel = Channel(end, serve=serve, note=note, begin=begin)
    served = asyncio.ensure_future(channel.run())
    try:
        yield channel
    finally:
        channel.close()
        await served


@contextlib.asynccontextmanager
async def connected(
    serve: Serve = echo,
    *,
    back: Serve = echo,
    note: Callable[[str, Any], None] = ignore,
    begin: Mapping[str, Begin] | None = None,
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two channels: the second serves the first with `serve` and `begin`, and hears its notes."""
    left, right = await ends()
    async with serving(left, back) as here, serving(right, serve, note, begin) as there:
        yield here, there


def quiet(*channels: Channel) -> bool:
    """Nothing is under way."""
    return all(repr(channel) == "<Channel 0 out, 0 in>" for channel in channels)


class Producer:
    """A stream that says how far it came, and whether it was ended from outside."""

    def __init__(self, items: list[Any], *, fails: FaasdError | None = None) -> None:
        self.items = items
        self.fails = fails
        self.produced = 0
        self.stopped = asyncio.Event()

    async def serve(self, request: Request) -> Answer:
        return Answer(request.payload, self.run())

    async def run(self) -> AsyncIterator[Any]:
        try:
            for item in self.items:
                self.produced += 1
                yield item
            if self.fails is not None:
                raise self.fails
        finally:
            self.stopped.set()


class Waiting:
    """Serves requests that are answered only when the test says so."""

    def __init__(self) -> None:
        self.begun: dict[Any, asyncio.Future[Any]] = {}
        self.cancelled: list[Any] = []

    async def serve(self, request: Request) -> Answer:
        self.begun[request.payload] = asyncio.get_running_loop().create_future()
        try:
            return Answer(await self.begun[request.payload])
        except asyncio.CancelledError:
            self.cancelled.append(request.payload)
            raise


async def items_of(answer: Answer) -> list[Any]:
    assert answer.items is not None
    return [item async for item in answer.items]


async def last_of(items: AsyncIterator[Any]) -> Any:
    """Read to the end; the last item."""
    last = None
    async for item in items:
        last = item
    return last


async def close(answer: Answer) -> None:
    assert answer.items is not None
    await answer.items.aclose()  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def raw_peer(
    serve: Serve = echo, note: Callable[[str, Any], None] = ignore
) -> AsyncIterator[tuple[Channel, Streams, asyncio.Future[None]]]:
    """A channel whose other end is bytes, and its `run`."""
    left, right = socket.socketpair()
    channel = Channel(await connection(left), serve=serve, note=note)
    streams = await asyncio.open_connection(sock=right)
    served = asyncio.ensure_future(channel.run())
    try:
        yield channel, streams, served
    finally:
        streams[1].close()
        await served


def framed(value: Any) -> bytes:
    body = value if isinstance(value, bytes) else msgpack.packb(value)
    return struct.pack(">I", len(body)) + body


class Told(Call):
    """A call that remembers what it was told."""

    __slots__ = ("errors", "extras", "items", "payloads")

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[Any] = []
        self.items: list[Inflow | None] = []
        self.errors: list[FaasdError] = []
        self.extras: list[Any] = []

    def replied(self, payload: Any, items: Inflow | None) -> None:
        self.payloads.append(payload)
        self.items.append(items)

    def failed(self, error: FaasdError, extra: Any) -> None:
        self.errors.append(error)
        self.extras.append(extra)

    @property
    def times(self) -> int:
        return len(self.payloads) + len(self.errors)


class Work:
    """Begins requests without answering them: that is the test's to do."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled: list[Any] = []

    def begin(self, request: Request) -> Cancellable:
        self.requests.append(request)
        return Cancelling(self, request)


class Cancelling:
    def __init__(self, work: Work, request: Request) -> None:
        self._work = work
        self._request = request

    def cancel(self) -> None:
        self._work.cancelled.append(self._request.payload)


@contextlib.asynccontextmanager
async def working() -> AsyncIterator[tuple[Channel, Channel, Work]]:
    """Two channels, of which the second begins the requests "work" of the first."""
    work = Work()
    async with connected(begin={"work": work.begin}) as (here, there):
        yield here, there, work


async def collect(request: Request) -> Answer:
    """Reads what the requester sends, and answers with it."""
    assert request.items is not None
    return Answer([item async for item in request.items])
