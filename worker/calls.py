"""Calls on their way through a worker, the instance that runs them, and replies that stream."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from faasd.errors import FaasdError
from faasd.invocation import Invocation, Receiver, Reply, StartKind, Timings
from faasd.spool import Body, Spool
from worker.sandbox import Exit, Instance, Meta, Span

_WINDOW_BYTES = 1 << 20


class Stream:
    """Chunks between an instance and a reader that may be slower. Pauses the instance when full."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._ended = False
        self._error: FaasdError | None = None
        self.abandoned = False

    def feed(self, chunk: bytes) -> None:
        if self.abandoned:
            return
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        self._wake.set()
        if self._bytes > _WINDOW_BYTES:
            self._instance.pause()

    def end(self, error: FaasdError | None = None) -> None:
        self._ended = True
        self._error = error
        self._wake.set()

    def abandon(self) -> None:
        """Nobody reads any more: let the instance write on into nothing."""
        self.abandoned = True
        self._chunks.clear()
        self._bytes = 0
        self._instance.resume()

    async def read(self) -> bytes | None:
        """The next chunk, or None at the end. Raises the error that ended it."""
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._wake.clear()
            await self._wake.wait()
        chunk = self._chunks.popleft()
        before, self._bytes = self._bytes, self._bytes - len(chunk)
        if before > _WINDOW_BYTES >= self._bytes:
            self._instance.resume()
        return chunk


@dataclass(slots=True, eq=False)
class Pending:
    """A call on its way, for `receiver`; `instance` is what runs it, or holds it ahead of its turn.

    `dispatched` is when its turn came there, `due` when it must have ended; on the clock, seconds.
    """

    id: int
    invocation: Invocation
    receiver: Receiver
    owner: Owner
    arrived: float
    deadline: float | None
    instance: Running | None = None
    kind: StartKind = StartKind.NONE
    dispatched: float = 0.0
    due: float = math.inf
    stream: Stream | None = None
    timer: asyncio.TimerHandle | None = None
    stop_reason: FaasdError | None = None
    told: bool = False

    def answer(self, reply: Reply) -> None:
        """Give the reply to whoever waits, unless they have heard of the call already."""
        if not self.told:
            self.told = True
            self.receiver.answered(reply)

    def fail(self, error: FaasdError) -> None:
        """Tell whoever waits, or reads the stream."""
        if self.stream is not None:
            self.stream.end(error)
        elif not self.told:
            self.told = True
            self.receiver.failed(error)

    def cancel(self) -> None:
        """The caller is gone."""
        if self.stream is None and not self.told:
            self.told = True
            self.owner.abandoned(self)

    def meta(self, now: float) -> Meta:
        """What its instance is told besides the body."""
        invocation = self.invocation
        return (
            invocation.id,
            invocation.content_type,
            invocation.headers,
            invocation.attempt,
            None if self.deadline is None else self.deadline - now,
            invocation.events,
        )


class Owner(Protocol):
    """Who is told what became of calls."""

    worker_id: str

    def timings(self, pending: Pending, exec_ms: float) -> Timings: ...

    def abandoned(self, pending: Pending) -> None:
        """Nobody waits for the call any more."""
        ...

    def chunks(self, pending: Pending) -> AsyncIterator[bytes]:
        """The body of a streamed reply."""
        ...

    def answered(self, pending: Pending, reply: Reply | None, took_s: float | None) -> None:
        """A call came to its end; `reply` is None for the end of a stream.

        `took_s` is None where the next call had better not follow at its heels.
        """
        ...

    def failed(self, pending: Pending, error: FaasdError, *, exec_ms: float) -> None:
        """A call ended in an error that the instance survived."""
        ...

    def user_error(self, problem: dict[str, Any]) -> FaasdError:
        """What an instance said of a call, as an error of ours."""
        ...

    def caught_up(self) -> None:
        """An instance has told all that came from it at once."""
        ...

    def instance_lost(self, running: Running) -> None:
        """An instance is gone; that it is closed, and how it ended, is told later."""
        ...

    def instance_closed(self, running: Running, end: Exit) -> None: ...


@dataclass(slots=True, eq=False)
class Running:
    """An instance and what it is doing; receives its events.

    `why_killed` is the fate of the one call that it was killed for, `fault` that of all its calls.
    An `ejected` one finishes what it has, and is ended then.
    """

    owner: Owner
    number: int
    name: str
    asked: float
    sandbox_spans: tuple[Span, ...]
    handle: Instance | None = None
    spans: tuple[Span, ...] = ()
    calls: dict[int, Pending] = field(default_factory=dict)
    why_killed: FaasdError | None = None
    fault: FaasdError | None = None
    private_mb: float = 0.0
    printed: bool = False
    ejected: bool = False

    def on_result(
        self,
        call: int,
        status: int,
        content_type: str,
        headers: dict[str, str],
        exec_ms: float,
        body: Body,
    ) -> None:
        pending = self.calls.get(call)
        if pending is None:
            return
        # The call stays ours until its reply is made: a forged one raises here, which ends the
        # instance and answers the call with that.
        _check_head(status, content_type, headers)
        _check_cost(exec_ms)
        reply = Reply(
            status,
            content_type,
            headers,
            pending.kind,
            self.owner.timings(pending, exec_ms),
            self.owner.worker_id,
        )
        if type(body) is bytes:
            reply.body = body
        elif isinstance(body, Spool):
            reply.chunks, reply.length = body.chunks(), len(body)
        else:
            raise TypeError("a body is bytes")
        del self.calls[call]
        took_s = None if self.printed else exec_ms / 1000
        self.printed = False
        self.owner.answered(pending, reply, took_s)

    def on_start(
        self, call: int, status: int, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        pending = self.calls.get(call)
        if pending is None or self.handle is None or pending.stream is not None:
            return
        headers = {} if headers is None else headers
        _check_head(status, content_type, headers)
        pending.stream = Stream(self.handle)
        reply = Reply(
            status=status,
            content_type=content_type,
            headers=headers,
            start=pending.kind,
            timings=self.owner.timings(pending, 0.0),
            worker=self.owner.worker_id,
            chunks=self.owner.chunks(pending),
        )
        if pending.told:
            pending.stream.abandon()
        else:
            pending.answer(reply)

    def on_chunk(self, call: int, data: bytes) -> None:
        if type(data) is not bytes:
            raise TypeError("a chunk is bytes")
        pending = self.calls.get(call)
        if pending is not None and pending.stream is not None:
            pending.stream.feed(data)

    def on_end(self, call: int, exec_ms: float) -> None:
        del exec_ms
        self.printed = False
        pending = self.calls.pop(call, None)
        if pending is not None:
            self.owner.answered(pending, None, None)

    def on_error(self, call: int, problem: dict[str, Any], exec_ms: float) -> None:
        _check_cost(exec_ms)
        self.printed = False
        pending = self.calls.pop(call, None)
        if pending is not None:
            self.owner.failed(pending, self.owner.user_error(problem), exec_ms=exec_ms)

    def on_printed(self) -> None:
        self.printed = True

    def on_caught_up(self) -> None:
        self.owner.caught_up()

    def on_lost(self) -> None:
        self.owner.instance_lost(self)

    def on_closed(self, end: Exit) -> None:
        self.owner.instance_closed(self, end)


def _check_head(status: Any, content_type: Any, headers: Any) -> None:
    """Raises TypeError or ValueError when an instance says what no reply can begin with."""
    if type(status) is not int or type(content_type) is not str or type(headers) is not dict:
        raise TypeError("a reply has a status, a content type and headers")
    if not 200 <= status <= 599:
        raise ValueError("a status lies between 200 and 599")
    if headers:
        _check_headers(headers)


def _check_headers(headers: dict[Any, Any]) -> None:
    for name, value in headers.items():
        if type(name) is not str or type(value) is not str:
            raise TypeError("headers are text")


def _check_cost(exec_ms: Any) -> None:
    if type(exec_ms) not in (float, int) or not 0 <= exec_ms < math.inf:
        raise ValueError("a call takes a number of milliseconds")
