"""The way of an invocation through the controller: function, worker, reply; idempotency on top."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from controller.registry import Registry
from controller.store.port import Store, StoredResult
from controller.workers import Workers
from faasd import clock
from faasd.bridges import awaited
from faasd.errors import FaasdError, FunctionNotFound, IdempotencyMismatch
from faasd.invocation import Invocation, Reply, StartKind, Timings
from faasd.streams import Closable, close
from faasd.telemetry import Metrics, get_logger

log = get_logger("controller.gateway")

_LARGEST_KEPT_STREAM = 32 << 20
_FAILURES_OF_THE_PLATFORM = {"instance_died", "worker_lost", "unavailable", "internal_error"}


class Gateway:
    """Owned by the event loop."""

    def __init__(
        self, registry: Registry, workers: Workers, store: Store, metrics: Metrics
    ) -> None:
        self._registry = registry
        self._workers = workers
        self._store = store
        self._metrics = metrics
        self._under_way: dict[tuple[str, str], tuple[str, asyncio.Future[StoredResult | None]]] = {}

    async def invoke(self, invocation: Invocation, *, mode: str = "sync") -> Reply:
        """Run an invocation on the active revision. Raises FaasdError."""
        started = clock.monotonic()
        outcome = "ok"
        try:
            reply = await self._route(invocation)
        except FaasdError as error:
            outcome = error.code
            _note_failure(invocation, error)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            seen = self._metrics.of(invocation.function)
            seen.answered(mode, outcome, clock.monotonic() - started)
        seen.started(reply.start, reply.timings)
        return reply

    async def _route(self, invocation: Invocation) -> Reply:
        # A revision can be replaced between looking it up and reaching the worker; its successor
        # is active by then.
        for last_try in (False, True):
            revision = self._registry.get(invocation.function).active
            member = self._workers.choose(revision.key, revision.spec.resources)
            if invocation.revision != revision.id:
                invocation = replace(invocation, revision=revision.id)
            member.begin(revision.key)
            try:
                reply = await awaited(member.link.invoke, invocation)
            except FunctionNotFound:
                if last_try or self._registry.get(invocation.function).active.id == revision.id:
                    raise
                continue
            except FaasdError as error:
                error.extra.setdefault("revision", revision.id)
                raise
            finally:
                member.end(revision.key)
            reply.headers = {**reply.headers, "faasd-revision": revision.id}
            return reply
        raise AssertionError

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
    digest.update(b"\0" + invocation.body)
    return digest.hexdigest()


def _check_fingerprint(kept: str, given: str) -> None:
    if kept != given:
        raise IdempotencyMismatch("This Idempotency-Key was used for a request with another body.")


def _kept(reply: Reply, body: bytes) -> StoredResult:
    return StoredResult(reply.status, reply.content_type, reply.headers, body)


def _replayed(result: StoredResult) -> Reply:
    return Reply(
        status=result.status,
        content_type=result.content_type,
        headers=result.headers,
        start=StartKind.NONE,
        timings=Timings(),
        worker="",
        body=result.body,
    )
