"""The way of an invocation through the controller: function, worker, reply; idempotency on top."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

from controller.dispatch import Dispatcher
from controller.registry import Registry
from controller.store.port import Store, StoredResult
from controller.workers import Member
from faasd import clock
from faasd.bridges import awaited
from faasd.errors import FaasdError, FunctionNotFound, IdempotencyMismatch
from faasd.invocation import (
    Invocation,
    Receiver,
    Reply,
    Revision,
    Started,
    StartKind,
    Timings,
)
from faasd.spool import pieces
from faasd.streams import Closable, close
from faasd.telemetry import Metrics, get_logger

log = get_logger("controller.gateway")

_LARGEST_KEPT_STREAM = 32 << 20
# Among the headers of a result that is kept: which revision it is of.
_REVISION = "faasd-revision"
_FAILURES_OF_THE_PLATFORM = {"instance_died", "worker_lost", "unavailable", "internal_error"}


class Gateway:
    """Owned by the event loop."""

    def __init__(
        self, registry: Registry, dispatcher: Dispatcher, store: Store, metrics: Metrics
    ) -> None:
        self.registry = registry
        self.dispatcher = dispatcher
        self.metrics = metrics
        self._store = store
        self._under_way: dict[tuple[str, str], tuple[str, asyncio.Future[StoredResult | None]]] = {}

    def begin(
        self,
        invocation: Invocation,
        receiver: Receiver,
        *,
        revision: Revision | None = None,
        mode: str = "sync",
    ) -> Flight:
        """Run an invocation for the receiver. Raises FaasdError at once.

        `revision` is the active one, where it was looked up already.
        """
        flight = Flight(self, invocation, receiver, mode)
        try:
            flight.place(revision or self.registry.get(invocation.function).active)
        except FaasdError as error:
            flight.note(error)
            raise
        return flight

    async def invoke(self, invocation: Invocation, *, mode: str = "sync") -> Reply:
        """The same for one who waits. Raises FaasdError."""
        return await awaited(functools.partial(self.begin, mode=mode), invocation)

    async def invoke_once(self, invocation: Invocation, key: str) -> tuple[Reply, bool]:
        """Run it unless a request under this key succeeded before; then that reply, and True.

        Requests under one key that arrive together share one run. An error frees the key.
        """
        fingerprint = _fingerprint(invocation)
        slot = (invocation.function, key)
        while True:
            kept = await self._store.recall(*slot)
            if kept is not None:
                _check_fingerprint(kept[0], fingerprint)
                return _replayed(kept[1]), True
            other = self._under_way.get(slot)
            if other is None:
                break
            _check_fingerprint(other[0], fingerprint)
            result = await asyncio.shield(other[1])
            if result is not None:
                return _replayed(result), True
        done: asyncio.Future[StoredResult | None] = asyncio.get_running_loop().create_future()
        self._under_way[slot] = (fingerprint, done)
        kept_result: StoredResult | None = None
        streaming = False
        try:
            reply = await self.invoke(invocation)
            if reply.chunks is not None:
                streaming = True
                chunks = reply.chunks
                reply.chunks = Closable(
                    self._recorded(reply, chunks, slot, fingerprint, done),
                    unread=lambda: self._release(slot, done, None),
                    source=chunks,
                )
                return reply, False
            kept_result = _kept(reply, reply.body)
            if kept_result.status < 500:
                await self._store.remember(*slot, fingerprint, kept_result, clock.wall())
            else:
                kept_result = None
            return reply, False
        finally:
            if not streaming:
                self._release(slot, done, kept_result)

    async def _recorded(
        self,
        reply: Reply,
        chunks: AsyncIterator[bytes],
        slot: tuple[str, str],
        fingerprint: str,
        done: asyncio.Future[StoredResult | None],
    ) -> AsyncGenerator[bytes, None]:
        """A streamed reply, kept under its key once it came to its end."""
        body = bytearray()
        kept: StoredResult | None = None
        try:
            async for chunk in chunks:
                if len(body) <= _LARGEST_KEPT_STREAM:
                    body += chunk
                yield chunk
            if len(body) <= _LARGEST_KEPT_STREAM:
                kept = _kept(reply, bytes(body))
                await self._store.remember(*slot, fingerprint, kept, clock.wall())
        finally:
            await close(chunks)
            self._release(slot, done, kept)

    def _release(
        self,
        slot: tuple[str, str],
        done: asyncio.Future[StoredResult | None],
        result: StoredResult | None,
    ) -> None:
        self._under_way.pop(slot, None)
        if not done.done():
            done.set_result(result)


class Flight:
    """An invocation between its caller and a worker: the receiver of what the worker says of it."""

    __slots__ = (
        "_call", "_dispatcher", "_member", "_mode", "_receiver", "_registry", "_seen", "_since",
        "_started", "_ticket", "_tried_again", "_waited", "deadline", "invocation", "number",
        "revision",
    )  # fmt: skip

    revision: Revision

    def __init__(
        self, gateway: Gateway, invocation: Invocation, receiver: Receiver, mode: str
    ) -> None:
        self._registry = gateway.registry
        self._dispatcher = gateway.dispatcher
        self._seen = gateway.metrics.of(invocation.function)
        self._receiver = receiver
        self._mode = mode
        self._since = clock.monotonic()
        self._tried_again = False
        self._waited = False
        self._started: Started | None = None
        self._member: Member | None = None
        self.invocation = invocation
        self.number = 0
        remaining = invocation.remaining_s
        self.deadline = None if remaining is None else self._since + remaining

    def place_again(self) -> None:
        """Have it placed on what is active by now. Raises FaasdError."""
        self.place(self._registry.get(self.invocation.function).active)

    def place(self, revision: Revision) -> None:
        """Have it placed. Raises FaasdError, and then nothing more is heard of it."""
        self.revision = revision
        self.invocation.revision = revision.id
        self._dispatcher.place(self)
        if self._member is None:
            self._waited = True

    def send_to(self, member: Member, ticket: int) -> None:
        """Begin it on a worker. Raises FaasdError."""
        if self._waited and self.deadline is not None:
            self.invocation.remaining_s = self.deadline - clock.monotonic()
        self._member = member
        self._call = member.calls.begin(self.revision.key)
        self._ticket = ticket
        try:
            self._started = member.link.invoke(self.invocation, self)
        except FaasdError as error:
            self._member = None
            member.end(self._call)
            self._dispatcher.refused(member, self._ticket, error.code)
            if isinstance(error, FunctionNotFound) and self._was_replaced():
                self.place_again()
                return
            error.extra.setdefault("revision", self.revision.id)
            raise

    def answered(self, reply: Reply) -> None:
        self._started = None
        took_s = clock.monotonic() - self._since
        if self._waited:
            _count_wait(reply.timings, took_s)
        reply.revision = self.revision.id
        self._seen.served(self._mode, took_s, reply.start, reply.timings)
        if reply.chunks is not None:
            reply.chunks = _Streamed(reply.chunks, self, reply)
            self._receiver.answered(reply)
            return
        assert self._member is not None
        self._member.end(self._call)
        try:
            self._receiver.answered(reply)
        finally:
            self._came_back(reply.start, reply.timings)

    def stream_ended(self, reply: Reply) -> None:
        """The stream was read to its end, failed, or is not wanted any more. Safe to call twice."""
        if self._member is None:
            return
        self._member.end(self._call)
        timings = dataclasses.replace(reply.timings)
        whole_ms = (clock.monotonic() - self._since) * 1000
        timings.exec = max(0.0, whole_ms - timings.queue - timings.after_queue)
        self._came_back(reply.start, timings)

    def failed(self, error: FaasdError) -> None:
        self._land(error.code)
        if isinstance(error, FunctionNotFound) and self._was_replaced():
            try:
                self.place_again()
            except FaasdError as another:
                self.give_up(another)
            return
        self._tell(error)

    def give_up(self, error: FaasdError) -> None:
        """It was not sent, or not again: its caller is told why."""
        try:
            self._tell(error)
        except Exception:  # the boundary of an invocation: others wait with it, to be told or sent
            log.exception("invocation.receiver_failed")

    def cancel(self) -> None:
        """The caller is gone: its receiver hears no more of it."""
        if self._started is not None:
            self._started.cancel()
            self._land("cancelled")
        elif not self._dispatcher.withdraw(self):
            return
        self._seen.answered(self._mode, "cancelled", clock.monotonic() - self._since)

    def _came_back(self, kind: StartKind, timings: Timings) -> None:
        member, self._member = self._member, None
        assert member is not None
        self._dispatcher.answered(self, member, self._ticket, kind, timings)

    def _land(self, code: str) -> None:
        member, self._member = self._member, None
        self._started = None
        assert member is not None
        member.end(self._call)
        self._dispatcher.failed(self, member, self._ticket, code)

    def _tell(self, error: FaasdError) -> None:
        error.extra.setdefault("revision", self.revision.id)
        if self._waited:
            timings = Timings(*error.extra.get("timings", ()))
            _count_wait(timings, clock.monotonic() - self._since)
            error.extra["timings"] = timings.as_list()
        self.note(error)
        self._receiver.failed(error)

    def _was_replaced(self) -> bool:
        """Whether to try again: a revision can be replaced between looking it up and reaching the
        worker, and its successor is active by then.
        """
        before, self._tried_again = self._tried_again, True
        try:
            active = self._registry.get(self.invocation.function).active
        except FaasdError:
            return False
        return not before and active.id != self.revision.id

    def note(self, error: FaasdError) -> None:
        """Count the failure."""
        self._seen.answered(self._mode, error.code, clock.monotonic() - self._since)
        _note_failure(self.invocation, error)


class _Streamed(AsyncIterator[bytes]):
    """The chunks of a reply, whose end its flight is told of; for one reader, who ends it."""

    __slots__ = ("_chunks", "_flight", "_reply")

    def __init__(self, chunks: AsyncIterator[bytes], flight: Flight, reply: Reply) -> None:
        self._chunks = chunks
        self._flight = flight
        self._reply = reply

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except BaseException:
            self._flight.stream_ended(self._reply)
            raise

    async def aclose(self) -> None:
        """End it. Safe to call twice."""
        self._flight.stream_ended(self._reply)
        await close(self._chunks)


def _count_wait(timings: Timings, took_s: float) -> None:
    """Of an invocation that waited here, all is queue that is nothing else."""
    timings.queue = max(timings.queue, took_s * 1000 - timings.after_queue)


def _note_failure(invocation: Invocation, error: FaasdError) -> None:
    """What an operator should see of a failure: the platform's own stand out."""
    told = log.warning if error.code in _FAILURES_OF_THE_PLATFORM else log.debug
    told(
        "invocation.failed",
        request_id=invocation.id,
        function=invocation.function,
        code=error.code,
        detail=error.detail,
    )


def _fingerprint(invocation: Invocation) -> str:
    digest = hashlib.sha256(invocation.content_type.encode())
    digest.update(b"\0")
    for piece in pieces(invocation.body):
        digest.update(piece)
    return digest.hexdigest()


def _check_fingerprint(kept: str, given: str) -> None:
    if kept != given:
        raise IdempotencyMismatch("This Idempotency-Key was used for a request with another body.")


def _kept(reply: Reply, body: bytes) -> StoredResult:
    headers = {**reply.headers, _REVISION: reply.revision}
    return StoredResult(reply.status, reply.content_type, headers, body)


def _replayed(result: StoredResult) -> Reply:
    return Reply(
        status=result.status,
        content_type=result.content_type,
        headers={name: value for name, value in result.headers.items() if name != _REVISION},
        start=StartKind.NONE,
        timings=Timings(),
        worker="",
        body=result.body,
        revision=result.headers.get(_REVISION, ""),
    )
