"""The HTTP API of a controller on a real socket, before a worker whose answers the test gives.

async with open_house(tmp_path) as house, house.peer() as peer:
    peer.send(post(b"hi"))
    (await house.call(1)).answer(b"hello")
    assert (await peer.reply()).body == b"hello"
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from controller.asynchronous import AsyncInvocations
from controller.auth import Keys
from controller.dispatch import Dispatcher
from controller.gateway import Gateway
from controller.http.app import Parts, build_app
from controller.http.front import Front, Lobby
from controller.http.routes import ROUTES
from controller.links import Progress
from controller.registry import Registry
from controller.store.sqlite import SqliteStore
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.errors import FaasdError
from faasd.invocation import (
    Invocation,
    Load,
    LogLine,
    Receiver,
    Reply,
    Revision,
    StartKind,
    Timings,
    WorkerReport,
)
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.spec import validate_spec
from faasd.telemetry import Metrics
from tests.loops import until
from tests.platform import pack

LIMIT_MB = 8


def post(body: bytes = b"", *lines: bytes, name: str = "echo", query: str = "") -> bytes:
    """A plain invocation, unless a line or the query makes it another."""
    head = b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: %d" % len(body)))
    target = f"POST /invoke/{name}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return target.encode() + head + b"\r\n" + body


@dataclass(slots=True)
class Call:
    """An invocation that reached the worker."""

    invocation: Invocation
    receiver: Receiver
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def answer(self, body: bytes = b"", **said: Any) -> None:
        """With 200 and text, unless something else is said."""
        self.receiver.answered(
            Reply(
                said.pop("status", 200),
                said.pop("content_type", "text/plain"),
                said.pop("headers", {}),
                StartKind.WARM,
                Timings(queue=1, exec=2),
                "w",
                body,
                **said,
            )
        )

    def fail(self, error: FaasdError) -> None:
        self.receiver.failed(error)


class Worker:
    """What a worker is told. Set to fail, it raises, or tells the receiver before it returns."""

    worker_id = "w"

    def __init__(self) -> None:
        self.load = Load()
        self.calls: list[Call] = []
        self.raises: BaseException | None = None
        self.fails_at_once: FaasdError | None = None

    def report(self) -> WorkerReport:
        return WorkerReport("w", 1, 1.0, 1.0, 0.0, 1, [], [], [])

    def register(self, revision: Revision) -> None:
        del revision

    def retire(self, function: str, revision: str) -> None:
        del function, revision

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        del revision, progress

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Call:
        if self.raises is not None:
            raise self.raises
        call = Call(invocation, receiver)
        self.calls.append(call)
        if self.fails_at_once is not None:
            receiver.failed(self.fails_at_once)
        return call

    def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        raise NotImplementedError


@dataclass(slots=True)
class Answer:
    """A response, read whole. Names of headers are in lower case; `lines` are all, in order."""

    status: int
    start: str
    headers: dict[str, str]
    lines: list[tuple[str, str]]
    body: bytes


class Peer:
    """A connection, whose replies are read by one strict framing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self.transport: Any = writer.transport

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def head(self) -> Answer:
        start, *lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].decode().split("\r\n")
        pairs = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), f"twice in {names}"
        return Answer(int(start.split(" ")[1]), start, dict(pairs), pairs, b"")

    async def reply(self) -> Answer:
        found = await self.head()
        if found.status in (204, 304):
            assert "transfer-encoding" not in found.headers
        elif "content-length" in found.headers:
            assert "transfer-encoding" not in found.headers
            found.body = await self.reader.readexactly(int(found.headers["content-length"]))
        else:
            assert found.headers["transfer-encoding"] == "chunked"
            found.body = b"".join([chunk async for chunk in self.chunks()])
        return found

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            chunk = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if not size:
                return
            yield chunk

    async def rest(self) -> bytes:
        """What still comes until the server ends the connection."""
        with contextlib.suppress(ConnectionResetError):
            return await self.reader.read()
        return b""

    def leave(self) -> None:
        self.transport.abort()


@dataclass(slots=True)
class House:
    """An API and all behind it."""

    lobby: Lobby
    keys: Keys
    metrics: Metrics
    worker: Worker
    port: int
    witness: Peer | None = None
    _watching: set[Front] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def peer(self, *, reads: bool = True) -> AsyncIterator[Peer]:
        """A connection, which takes little unless it `reads`."""
        sock = socket.socket(proto=socket.IPPROTO_TCP)
        if not reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        peer = Peer(*await asyncio.open_connection(sock=sock))
        if not reads:
            peer.transport.pause_reading()
        try:
            yield peer
        finally:
            peer.leave()

    async def call(self, count: int) -> Call:
        """The invocation of this number, once it has come."""
        await until(lambda: len(self.worker.calls) >= count)
        return self.worker.calls[count - 1]

    async def seen(self) -> None:
        """Return once the server has read what was sent before: its loop takes all in turn."""
        assert self.witness is not None
        for _ in range(2):
            self.witness.send(post(b"", name="nobody"))
            assert (await self.witness.reply()).status in (401, 404)

    def fronts(self) -> list[Front]:
        """Connections that are no others' than the test's own."""
        return [front for front in self.lobby.fronts if front not in self._watching]

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[House]:
        """Itself, with a witness to what has been read."""
        async with self.peer() as self.witness:
            await self.seen()
            self._watching = set(self.lobby.fronts)
            yield self


@contextlib.asynccontextmanager
async def open_house(
    folder: Path, *, keep_alive_s: float = 75.0, patience_s: float = 30.0
) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        store = SqliteStore(folder / "store.db")
        await store.open()
        stack.push_async_callback(store.aclose)
        workers, blobs, metrics, worker = Workers(), BlobStore(folder), Metrics(), Worker()
        blobs.open()
        workers.join(worker)
        registry = Registry(store, blobs, workers, code_max_mb=1, deploy_timeout_s=1)
        gateway = Gateway(registry, Dispatcher(workers, LeastOutstanding()), store, metrics)
        keys = Keys(store, open_to_all=True)
        await keys.open()
        code = await blobs.put(_archive(), sha256=None, max_mb=1)
        spec = validate_spec({"name": "echo", "limits": {"max_body_mb": LIMIT_MB}})
        await registry.deploy("default/echo", spec, code, {}, lambda _stage, _detail: None)
        asynchronous = AsyncInvocations(
            store, registry, gateway, concurrency=1, retention_s=60, key_retention_s=60
        )
        parts = Parts(
            registry,
            workers,
            gateway,
            asynchronous,
            keys,
            blobs,
            metrics,
            b"{}",
            artifact_max_mb=1,
            code_max_mb=1,
            patience_s=patience_s,
        )
        runner = web.AppRunner(
            build_app(parts, ROUTES),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=1,
            lingering_time=min(10.0, patience_s),
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        assert runner.server is not None
        lobby = Lobby(
            registry,
            gateway,
            keys,
            hand_over=runner.server,
            keep_alive_s=keep_alive_s,
            patience_s=patience_s,
        )
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Front(lobby), "127.0.0.1", 0)
        stack.push_async_callback(lobby.aclose, 0)
        stack.callback(server.close)
        house = House(lobby, keys, metrics, worker, server.sockets[0].getsockname()[1])
        yield await stack.enter_async_context(house.watched())


async def _archive() -> AsyncIterator[bytes]:
    yield pack({"handler.py": "def handle(event, context): ..."})
