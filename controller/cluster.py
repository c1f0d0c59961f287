"""The cluster's door: workers connect here over TCP, prove themselves, and join.

Each connection becomes a WorkerLink. A worker that falls silent is lost: its connection is closed,
which fails what is under way there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from controller.links import Progress
from controller.workers import Member, Workers, WorkerStatus
from faasd.blobs import BlobStore, check_digest
from faasd.bridges import begun
from faasd.errors import BadRequest, Conflict, FaasdError, NotFound, Unauthorized
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
from faasd.wire import Answer, Channel, greet_worker

log = get_logger("controller.cluster")

_GREETING_PATIENCE_S = 10.0
_BACKLOG = 128


class RemoteLink:
    """A worker at the other end of a channel."""

    def __init__(self, channel: Channel, report: WorkerReport) -> None:
        self._channel = channel
        self._report = report
        self.load = Load()

    @property
    def worker_id(self) -> str:
        return self._report.id

    def report(self) -> WorkerReport:
        return self._report

    def heard(self, report: WorkerReport) -> None:
        self._report = report

    def register(self, revision: Revision) -> None:
        self._channel.notify("register", revision.to_plain())

    def retire(self, function: str, revision: str) -> None:
        self._channel.notify("retire", [function, revision])

    def keep_only(self, keys: list[str]) -> None:
        self._channel.notify("keep_only", keys)

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        answer = await self._channel.call("prepare", revision.to_plain())
        assert answer.items is not None
        async for stage, detail in answer.items:
            progress(str(stage), str(detail))

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        return begun(self._invoke(invocation), receiver)

    async def _invoke(self, invocation: Invocation) -> Reply:
        answer = await self._channel.call("invoke", pack_invocation(invocation))
        status, content_type, headers, start, timings, body = answer.payload
        return Reply(
            status=status,
            content_type=content_type,
            headers=headers,
            start=StartKind(start),
            timings=Timings(*timings),
            worker=self.worker_id,
            body=body,
            chunks=answer.items,
        )

    async def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        answer = await self._channel.call("logs", [function, tail, follow])
        assert answer.items is not None
        async for plain in answer.items:
            yield LogLine(**plain)


def pack_invocation(invocation: Invocation) -> list[Any]:
    return [
        invocation.id,
        invocation.function,
        invocation.revision,
        invocation.body,
        invocation.content_type,
        invocation.headers,
        invocation.remaining_s,
        invocation.attempt,
        invocation.events,
    ]


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
        self._connections: set[_Connection] = set()
        self._accepted: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._watch: asyncio.Task[None] | None = None
        self.port = port

    async def start(self) -> None:
        """Listen. Raises BadRequest when the address is taken."""
        try:
            self._server = await asyncio.start_server(
                self._accept, self._host, self.port, backlog=_BACKLOG, limit=1 << 20
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
        # Python 3.11 reports a cancelled connection task as an error: each ends with its connection.
        for writer in self._accepted.values():
            writer.transport.abort()
        await asyncio.gather(*self._accepted, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepted[task] = writer
        connection = _Connection(self._workers, self._blobs)
        try:
            async with asyncio.timeout(_GREETING_PATIENCE_S):
                await greet_worker(reader, writer, self._secret)
            connection.channel = Channel(
                reader, writer, serve=connection.serve, note=connection.note
            )
            self._connections.add(connection)
            await connection.channel.run()
        except Unauthorized as error:
            log.warning("worker.refused", reason=error.detail)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(connection)
            self._accepted.pop(task, None)
            connection.leave()
            with contextlib.suppress(OSError):
                writer.close()

    async def _watch_heartbeats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            for connection in list(self._connections):
                channel = connection.channel
                assert channel is not None
                channel.notify("ping", None)
                if loop.time() - channel.heard_at > self._timeout_s:
                    log.warning("worker.silent", worker=connection.worker_id)
                    channel.close()


class _Connection:
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

    async def serve(self, method: str, payload: Any) -> Answer:
        if method == "join":
            return self._join(WorkerReport.from_plain(payload))
        if method == "artifact" and self._member is not None:
            sha256 = check_digest(str(payload))
            if not self._blobs.has(sha256):
                raise NotFound(f"There is no artifact {sha256[:12]}.")
            return Answer(None, self._blobs.read(sha256))
        raise BadRequest(f"Unknown request {method[:40]!r}.")

    def note(self, method: str, payload: Any) -> None:
        if method == "report" and self._link is not None:
            self._link.heard(WorkerReport.from_plain(payload))
        elif method == "leave" and self._member is not None:
            with contextlib.suppress(FaasdError):
                self._workers.drain(self.worker_id)

    def leave(self) -> None:
        if self._member is not None:
            self._workers.leave(self._member)
            self._member = None

    def _join(self, report: WorkerReport) -> Answer:
        assert self.channel is not None
        if self._member is not None:
            raise Conflict("This connection has joined already.")
        for member in self._workers.members():
            if member.link.worker_id == report.id and member.status is not WorkerStatus.LOST:
                raise Conflict(
                    f"A worker named {report.id!r} is connected already.",
                    remedy="Give this one another name with --id.",
                )
        self._link = RemoteLink(self.channel, report)
        self._link.keep_only(self._workers.revision_keys())
        self._member = self._workers.join(self._link)
        return Answer()
