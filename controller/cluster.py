"""The cluster's door: workers connect here over TCP, prove themselves, and join.

Each connection becomes a WorkerLink. A worker that falls silent is lost: its connection is closed,
which fails what is under way there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

from controller.links import Progress
from controller.workers import Member, Workers, WorkerStatus
from faasd.blobs import BlobStore, check_digest
from faasd.errors import BadRequest, Conflict, FaasdError, NotFound, Unauthorized
from faasd.framing import Connection
from faasd.greeting import greet_worker
from faasd.invocation import (
    Invocation,
    Load,
    LogLine,
    Receiver,
    Reply,
    Revision,
    Started,
    StartKind,
    Timings,
    WorkerReport,
)
from faasd.telemetry import get_logger
from faasd.wire import Answer, Call, Channel, Request

log = get_logger("controller.cluster")

_GREETING_PATIENCE_S = 10.0
_BACKLOG = 128
_START_KINDS = {kind.value: kind for kind in StartKind}


class RemoteLink:
    """A worker at the other end of a channel."""

    def __init__(self, channel: Channel, report: WorkerReport) -> None:
        self._channel = channel
        self._report = report
        self.worker_id = report.id
        self.load = Load()

    def report(self) -> WorkerReport:
        return self._report

    def heard(self, report: WorkerReport) -> None:
        self._report = report

    def heard_load(self, plain: list[int]) -> None:
        """Take over what the worker says it has in hand. Raises for what is no load."""
        seq, outstanding, running = plain
        if not type(seq) is type(outstanding) is type(running) is int:
            raise TypeError("a load is three numbers")
        load = self.load
        load.seq, load.outstanding, load.running = seq, outstanding, running

    def register(self, revision: Revision) -> None:
        self._channel.notify("register", revision.to_plain())

    def retire(self, function: str, revision: str) -> None:
        self._channel.notify("retire", [function, revision])

    def keep_only(self, keys: list[str]) -> None:
        self._channel.notify("keep_only", keys)

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        answer = await self._channel.call("prepare", revision.to_plain())
        async with _closing(answer) as stages:
            async for stage, detail in stages:
                progress(str(stage), str(detail))

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        call = _Invocation(self, receiver)
        body = invocation.body
        if isinstance(body, bytes):
            self._channel.begin(call, "invoke", _plain(invocation), body=body)
        else:
            # Piece by piece, no faster than the worker takes it.
            self._channel.begin(call, "invoke", _plain(invocation), body=b"", items=body.chunks())
        return call

    async def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        answer = await self._channel.call("logs", [function, tail, follow])
        async with _closing(answer) as lines:
            async for plain in lines:
                yield LogLine(**plain)


class _Invocation(Call):
    """An invocation under way on a worker."""

    __slots__ = ("_link", "_receiver")

    def __init__(self, link: RemoteLink, receiver: Receiver) -> None:
        super().__init__()
        self._link = link
        self._receiver = receiver

    def replied(self, payload: Any, items: AsyncIterator[Any] | None) -> None:
        status, content_type, headers, start, timings, load, length, body = payload
        if type(status) is not int or type(headers) is not dict or type(body) is not bytes:
            raise TypeError("a reply has a status, headers and a body")
        if length is not None and type(length) is not int:
            raise TypeError("a length is a number")
        reply = Reply(
            status,
            content_type,
            headers,
            _START_KINDS[start],
            Timings(*timings),
            self._link.worker_id,
            body,
            items,
            length=length,
        )
        self._link.heard_load(load)
        try:
            self._receiver.answered(reply)
        except Exception:  # the boundary of an invocation: others share the connection
            log.exception("invocation.receiver_failed")

    def failed(self, error: FaasdError, extra: Any) -> None:
        if extra is not None:
            self._link.heard_load(extra)
        try:
            self._receiver.failed(error)
        except Exception:  # the boundary of an invocation, as above
            log.exception("invocation.receiver_failed")


def _plain(invocation: Invocation) -> list[Any]:
    """All but the body, which follows."""
    return [
        invocation.id,
        invocation.function,
        invocation.revision,
        invocation.content_type,
        invocation.headers,
        invocation.remaining_s,
        invocation.attempt,
        invocation.events,
        invocation.slo_s,
        invocation.priority,
        invocation.tenant,
        invocation.session,
    ]


def _closing(answer: Answer) -> contextlib.aclosing[Any]:
    """The items of an answer, closed when they are no longer read."""
    return contextlib.aclosing(cast("Any", answer.items))


class ClusterServer:
    """Accepts workers from `start` to `aclose`. Owned by the event loop."""

    def __init__(
        self,
        workers: Workers,
        blobs: BlobStore,
        *,
        host: str,
        port: int,
        secret: str,
        heartbeat_timeout_s: float,
    ) -> None:
        self._workers = workers
        self._blobs = blobs
        self._host = host
        self._secret = secret
        self._timeout_s = heartbeat_timeout_s
        self._server: asyncio.Server | None = None
        self._connected: set[_Connected] = set()
        self._accepted: dict[asyncio.Task[None], Connection] = {}
        self._watch: asyncio.Task[None] | None = None
        self.port = port

    async def start(self) -> None:
        """Listen. Raises BadRequest when the address is taken."""
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self._accept), self._host, self.port, backlog=_BACKLOG
            )
        except OSError as error:
            raise BadRequest(
                f"Cannot listen for workers on {self._host}:{self.port}: {error.strerror}.",
                remedy="End what listens there, or choose another cluster port.",
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._watch = asyncio.get_running_loop().create_task(self._watch_heartbeats())
        log.info("cluster.listening", host=self._host, port=self.port)

    async def aclose(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None:
            self._server.close()
        # Each task ends with its connection.
        for connection in self._accepted.values():
            connection.abort()
        await asyncio.gather(*self._accepted, return_exceptions=True)

    def _accept(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._accepted[task] = connection
        task.add_done_callback(self._accepted.pop)

    async def _serve(self, connection: Connection) -> None:
        worker = _Connected(self._workers, self._blobs)
        try:
            async with asyncio.timeout(_GREETING_PATIENCE_S):
                await greet_worker(connection, self._secret)
            worker.channel = Channel(connection, serve=worker.serve, note=worker.note)
            self._connected.add(worker)
            await worker.channel.run()
        except Unauthorized as error:
            log.warning("worker.refused", reason=error.detail)
        except (TimeoutError, OSError):
            pass
        finally:
            self._connected.discard(worker)
            worker.leave()
            connection.abort()

    async def _watch_heartbeats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            for worker in list(self._connected):
                channel = worker.channel
                assert channel is not None
                channel.notify("ping", None)
                if loop.time() - channel.heard_at > self._timeout_s:
                    log.warning("worker.silent", worker=worker.worker_id)
                    channel.close()


class _Connected:
    """What a connected worker asks of the controller."""

    def __init__(self, workers: Workers, blobs: BlobStore) -> None:
        self._workers = workers
        self._blobs = blobs
        self._link: RemoteLink | None = None
        self._member: Member | None = None
        self.channel: Channel | None = None

    @property
    def worker_id(self) -> str:
        return self._link.worker_id if self._link else "(not joined)"

    async def serve(self, request: Request) -> Answer:
        if request.method == "join":
            return self._join(*request.payload)
        if request.method == "artifact" and self._member is not None:
            sha256 = check_digest(str(request.payload))
            if not self._blobs.has(sha256):
                raise NotFound(f"There is no artifact {sha256[:12]}.")
            return Answer(None, self._blobs.read(sha256))
        raise BadRequest(f"Unknown request {request.method[:40]!r}.")

    def note(self, method: str, payload: Any) -> None:
        if method == "report" and self._link is not None:
            report, load = payload
            self._link.heard(WorkerReport.from_plain(report))
            self._link.heard_load(load)
        elif method == "leave" and self._member is not None:
            with contextlib.suppress(FaasdError):
                self._workers.drain(self.worker_id)

    def leave(self) -> None:
        if self._member is not None:
            self._workers.leave(self._member)
            self._member = None

    def _join(self, plain: dict[str, Any], load: list[int]) -> Answer:
        assert self.channel is not None
        report = WorkerReport.from_plain(plain)
        if self._member is not None:
            raise Conflict("This connection has joined already.")
        for member in self._workers.members():
            if member.link.worker_id == report.id and member.status is not WorkerStatus.LOST:
                raise Conflict(
                    f"A worker named {report.id!r} is connected already.",
                    remedy="Give this one another name with --id.",
                )
        self._link = RemoteLink(self.channel, report)
        self._link.heard_load(load)
        self._link.keep_only(self._workers.revision_keys())
        self._member = self._workers.join(self._link)
        return Answer()
