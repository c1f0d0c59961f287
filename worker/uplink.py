"""The worker's connection to a controller: joins, serves its requests, reports, comes back.

A worker has one for each of its controllers, which know nothing of one another. What runs for a
controller that is gone is cancelled: nobody is left to take the reply, and the controller's
successor queues again what must not be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from faasd.errors import BadRequest, FaasdError, InternalError, Unauthorized, WorkerLost
from faasd.framing import Connection
from faasd.greeting import greet_controller
from faasd.invocation import Invocation, Load, LogLine, Reply, Revision, Started
from faasd.spool import Spool
from faasd.telemetry import get_logger
from faasd.wire import Answer, Channel, Request
from worker.node import Node

log = get_logger("worker.uplink")

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
_SILENCE_S = 15.0
_GREETING_PATIENCE_S = 10.0
_LAST_REPLIES_S = 10.0


class RemoteSource:
    """A controller's artifacts, streamed over the connection."""

    def __init__(self) -> None:
        self.channel: Channel | None = None

    def local(self, sha256: str) -> Path | None:
        del sha256
        return None

    async def read(self, sha256: str) -> AsyncIterator[bytes]:
        if self.channel is None:
            raise WorkerLost("There is no connection to the controller.")
        answer = await self.channel.call("artifact", sha256)
        async with contextlib.aclosing(cast("Any", answer.items)) as chunks:
            async for chunk in chunks:
                yield chunk


class _Answering:
    """Tells the controller what became of its invocation, and what the node has in hand then."""

    __slots__ = ("_load", "_request")

    def __init__(self, request: Request, load: Load) -> None:
        self._request = request
        self._load = load

    def answered(self, reply: Reply) -> None:
        self._request.reply(
            [
                reply.status,
                reply.content_type,
                reply.headers,
                reply.start,
                reply.timings.as_list(),
                _plain_load(self._load),
                reply.length,
            ],
            body=reply.body,
            items=reply.chunks,
        )

    def failed(self, error: FaasdError) -> None:
        self._request.fail(error, _plain_load(self._load))


class _Arriving:
    """An invocation whose body comes piece by piece; it begins once all of it is here."""

    def __init__(
        self, node: Node, invocation: Invocation, pieces: AsyncIterator[Any], receiver: _Answering
    ) -> None:
        self._node = node
        self._invocation = invocation
        self._receiver = receiver
        self._started: Started | None = None
        self._task = asyncio.get_running_loop().create_task(self._take(pieces))

    def cancel(self) -> None:
        self._task.cancel()
        if self._started is not None:
            self._started.cancel()

    async def _take(self, pieces: AsyncIterator[Any]) -> None:
        begun = asyncio.get_running_loop().time()
        body = self._invocation.body = Spool()
        try:
            async for piece in pieces:
                body.write(piece)
            if self._invocation.remaining_s is not None:
                self._invocation.remaining_s -= asyncio.get_running_loop().time() - begun
            self._started = self._node.invoke(self._invocation, self._receiver)
        except FaasdError as error:
            self._receiver.failed(error)
        except Exception:  # the boundary of an invocation: others share the connection
            log.exception("invocation.body_failed", request_id=self._invocation.id)
            self._receiver.failed(InternalError("The body did not arrive."))


class Uplink:
    """Runs from `start` to `aclose`. Owned by the event loop."""

    def __init__(self, node: Node, *, address: str, secret: str, heartbeat_s: float) -> None:
        """`address` is HOST:PORT. Raises BadRequest for anything else."""
        self._node = node
        # To the node this is the controller: who owns revisions, and has their files.
        self._source = RemoteSource()
        self._host, self._port = _parse(address)
        self._secret = secret
        self._heartbeat_s = heartbeat_s
        self._task: asyncio.Task[None] | None = None
        self._channel: Channel | None = None

    async def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    async def aclose(self) -> None:
        """Take no more invocations, finish those that run, leave."""
        channel = self._channel
        if channel is not None:
            channel.notify("leave", None)
            # A node is done before the controller has taken the last of its replies.
            if await self._node.drain():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_REPLIES_S):
                        await channel.served("invoke")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _stay_connected(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await self._connect_once()
                wait_s = _FIRST_WAIT_S
            except (OSError, TimeoutError) as error:
                log.warning(
                    "controller.unreachable",
                    host=self._host,
                    port=self._port,
                    error=str(error) or type(error).__name__,
                )
            except Unauthorized as error:
                log.error(  # noqa: TRY400
                    "controller.refused",
                    host=self._host,
                    port=self._port,
                    detail=error.detail,
                    remedy=error.remedy,
                )
            # Spread out, so that all workers of a cluster do not come back at one moment.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(_LONGEST_WAIT_S, wait_s * 2)

    async def _connect_once(self) -> None:
        async with asyncio.timeout(_GREETING_PATIENCE_S):
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, self._host, self._port
            )
            try:
                await greet_controller(connection, self._secret)
            except BaseException:
                connection.abort()
                raise
        channel = Channel(
            connection, serve=self._serve, note=self._note, begin={"invoke": self._invoke}
        )
        served = asyncio.ensure_future(channel.run())
        reporting = asyncio.ensure_future(self._report(channel))
        try:
            await channel.call("join", self._state())
            self._channel = self._source.channel = channel
            log.info("controller.joined", host=self._host, port=self._port)
            await served
        except FaasdError as error:
            log.warning("controller.join_failed", detail=error.detail, remedy=error.remedy)
        finally:
            self._channel = self._source.channel = None
            reporting.cancel()
            served.cancel()
            await asyncio.gather(served, reporting, return_exceptions=True)
            log.warning("controller.lost", host=self._host, port=self._port)

    async def _report(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            channel.notify("report", self._state())
            if loop.time() - channel.heard_at > _SILENCE_S:
                channel.close()

    def _state(self) -> list[Any]:
        return [self._node.report().to_plain(), _plain_load(self._node.load)]

    async def _serve(self, request: Request) -> Answer:
        if request.method == "prepare":
            return Answer(None, self._prepare(Revision.from_plain(request.payload)))
        if request.method == "logs":
            function, tail, follow = request.payload
            return Answer(None, self._logs(str(function), int(tail), follow=bool(follow)))
        raise BadRequest(f"Unknown request {request.method[:40]!r}.")

    def _invoke(self, request: Request) -> Started | None:
        identity, function, revision, *rest, body = request.payload
        answering = _Answering(request, self._node.load)
        try:
            invocation = Invocation(identity, function, revision, body, *rest)
            if request.items is not None:
                return _Arriving(self._node, invocation, request.items, answering)
            return self._node.invoke(invocation, answering)
        except FaasdError as error:
            answering.failed(error)
            return None

    async def _prepare(self, revision: Revision) -> AsyncIterator[list[str]]:
        """The stages of a deploy as items; its failure is the stream's."""
        stages: asyncio.Queue[list[str] | None] = asyncio.Queue()
        task = asyncio.ensure_future(
            self._node.prepare(
                revision,
                lambda stage, detail: stages.put_nowait([stage, detail]),
                self._source,
            )
        )
        task.add_done_callback(lambda _done: stages.put_nowait(None))
        try:
            while (stage := await stages.get()) is not None:
                yield stage
            await task
        finally:
            task.cancel()

    async def _logs(
        self, function: str, tail: int, *, follow: bool
    ) -> AsyncIterator[dict[str, Any]]:
        lines: AsyncIterator[LogLine]
        if not follow:
            for line in self._node.logs(function, tail=tail):
                yield line.to_plain()
            return
        lines = self._node.follow_logs(function, tail=tail)
        async for line in lines:
            yield line.to_plain()

    def _note(self, method: str, payload: Any) -> None:
        if method == "register":
            self._node.register(Revision.from_plain(payload), self._source)
        elif method == "retire":
            self._node.retire(str(payload[0]), str(payload[1]), self._source)
        elif method == "keep_only":
            self._node.keep_only({str(key) for key in payload}, self._source)


def _plain_load(load: Load) -> list[int]:
    return [load.seq, load.outstanding, load.running]


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadRequest(
            f"The controller's address {address!r} is not HOST:PORT.",
            remedy="Use e.g. --controller 127.0.0.1:8081.",
        )
    return host.strip("[]"), int(port)
