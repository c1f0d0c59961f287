"""Asynchronous invocations: accepted durably, run with retries, kept with their result.

Nothing accepted is lost: the store has it before the caller gets its id, and what was running when
the controller ended is queued again by the next one. A function may therefore see an invocation
more than once; `context.attempt` tells which time it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import replace

from controller.gateway import Gateway
from controller.registry import Registry
from controller.store.port import Attempt, Store, StoredInvocation, StoredResult
from faasd import clock
from faasd.errors import Conflict, FaasdError, IdempotencyMismatch, InternalError, NotFound
from faasd.invocation import Invocation, Reply
from faasd.policies.retry import next_attempt_s
from faasd.spool import whole
from faasd.telemetry import get_logger

log = get_logger("controller.asynchronous")

_SWEEP_S = 60.0
_ERRORS_OF_THE_REQUEST = {"bad_request", "body_too_large", "unserialisable_result"}


class AsyncInvocations:
    """Owned by the event loop; runs from `start` to `aclose`."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        gateway: Gateway,
        *,
        concurrency: int,
        retention_s: float,
        key_retention_s: float,
    ) -> None:
        self._store = store
        self._registry = registry
        self._gateway = gateway
        self._retention_s = retention_s
        self._key_retention_s = key_retention_s
        self._places = asyncio.Semaphore(concurrency)
        self._wake = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._runs: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        again = await self._store.requeue_running(clock.wall())
        if again:
            log.info("async.requeued", count=again)
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._dispatch()), loop.create_task(self._sweep())]

    async def aclose(self) -> None:
        """Stop; what is running is queued again by the next start."""
        tasks = [*self._loops, *self._runs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def submit(self, invocation: Invocation) -> StoredInvocation:
        """Accept an invocation; on return it is on the disk. Raises FunctionNotFound or Conflict."""
        self._registry.get(invocation.function)
        now = clock.wall()
        stored = StoredInvocation(
            id=invocation.id,
            function=invocation.function,
            revision=None,
            status="queued",
            content_type=invocation.content_type,
            headers=invocation.headers,
            body=whole(invocation.body),
            created_at=now,
            next_attempt_at=now,
        )
        if not await self._store.accept(stored):
            raise Conflict(
                f"There is an invocation with the id {invocation.id}.",
                remedy="Send another Faasd-Request-Id, or none.",
            )
        self._wake.set()
        return stored

    async def submit_once(self, invocation: Invocation, key: str) -> tuple[StoredInvocation, bool]:
        """Accept it unless one was accepted under this key before; then that one, and True.

        The id follows from the key, so that two controllers would agree too. Raises
        IdempotencyMismatch for another body.
        """
        digest = hashlib.sha256(f"{invocation.function}\0{key}".encode()).hexdigest()
        keyed = replace(invocation, id=digest[:32])
        known = await self._store.invocation(keyed.id)
        if known is None:
            try:
                return await self.submit(keyed), False
            except Conflict:
                known = await self.get(keyed.id, invocation.function.partition("/")[0])
        if (known.content_type, known.body) != (
            invocation.content_type,
            whole(invocation.body),
        ):
            raise IdempotencyMismatch(
                "This Idempotency-Key was used for a request with another body."
            )
        return known, True

    async def list(
        self, namespace: str, *, status: str | None, function: str | None, limit: int
    ) -> list[StoredInvocation]:
        return await self._store.invocations(
            namespace=namespace, status=status, function=function, limit=limit
        )

    async def backlog(self) -> dict[str, int]:
        """How many there are, by status."""
        return await self._store.backlog()

    async def get(self, identity: str, namespace: str) -> StoredInvocation:
        """Raises NotFound."""
        stored = await self._store.invocation(identity)
        if stored is None or not stored.function.startswith(f"{namespace}/"):
            raise NotFound(
                f"There is no asynchronous invocation {identity[:80]!r}.",
                remedy="Finished ones are kept for FAASD_RESULT_RETENTION_S seconds.",
            )
        return stored

    async def redrive(self, identity: str, namespace: str) -> StoredInvocation:
        """Queue a dead invocation again, with a fresh count of attempts allowed. Raises Conflict."""
        stored = await self.get(identity, namespace)
        if stored.status != "dead":
            raise Conflict(
                f"The invocation is {stored.status}; only a dead one can be redriven.",
                remedy="List the dead ones with `faasd invocations --status dead`.",
            )
        again = replace(stored, status="queued", next_attempt_at=clock.wall(), finished_at=None)
        await self._store.update(again)
        self._wake.set()
        return again

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            await self._places.acquire()
            self._places.release()
            due = await self._store.due(clock.wall(), 64)
            for stored in due:
                if stored.id in self._runs:
                    continue
                await self._places.acquire()
                running = replace(stored, status="running", next_attempt_at=None)
                await self._store.update(running)
                task = asyncio.get_running_loop().create_task(self._run(running))
                self._runs[stored.id] = task
            if not due:
                await self._sleep_until_due()

    async def _sleep_until_due(self) -> None:
        due = await self._store.next_due()
        delay = _SWEEP_S if due is None else max(0.0, min(_SWEEP_S, due - clock.wall()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()

    async def _run(self, stored: StoredInvocation) -> None:
        try:
            await self._attempt(stored)
        except Exception:  # the boundary of one run: a defect must not stop the others
            log.exception("async.run_failed", invocation=stored.id)
        finally:
            self._runs.pop(stored.id, None)
            self._places.release()
            self._wake.set()

    async def _attempt(self, stored: StoredInvocation) -> None:
        attempt = Attempt(number=len(stored.attempts) + 1, started_at=clock.wall())
        invocation = Invocation(
            id=stored.id,
            function=stored.function,
            revision="",
            body=stored.body,
            content_type=stored.content_type,
            headers=stored.headers,
            attempt=attempt.number,
        )
        try:
            reply = await self._gateway.invoke(invocation, mode="async")
            body = await _whole(reply)
        except FaasdError as error:
            await self._failed(stored, attempt, error)
            return
        except Exception as error:  # the boundary of user-visible work: it must come to an end
            log.exception("async.attempt_failed", invocation=stored.id)
            await self._failed(stored, attempt, InternalError(repr(error)))
            return
        now = clock.wall()
        ended = replace(attempt, ended_at=now, worker=reply.worker)
        await self._store.update(
            replace(
                stored,
                status="succeeded",
                finished_at=now,
                next_attempt_at=None,
                revision=reply.revision or None,
                attempts=[*stored.attempts, ended],
                timings=reply.timings.as_list(),
                start=str(reply.start),
                result=StoredResult(reply.status, reply.content_type, reply.headers, body),
            )
        )

    async def _failed(self, stored: StoredInvocation, attempt: Attempt, error: FaasdError) -> None:
        now = clock.wall()
        ended = replace(
            attempt, ended_at=now, worker=error.extra.get("worker"), error=error.to_problem()
        )
        attempts = [*stored.attempts, ended]
        delay_s = self._delay_s(stored, len(attempts), error)
        dead = delay_s is None
        await self._store.update(
            replace(
                stored,
                status="dead" if dead else "queued",
                finished_at=now if dead else None,
                next_attempt_at=None if delay_s is None else now + delay_s,
                attempts=attempts,
            )
        )
        if dead:
            log.warning("async.dead", invocation=stored.id, code=error.code, attempts=len(attempts))

    def _delay_s(self, stored: StoredInvocation, attempts: int, error: FaasdError) -> float | None:
        if error.code in _ERRORS_OF_THE_REQUEST:
            return None
        try:
            retries = self._registry.get(stored.function).active.spec.retries
        except NotFound:
            return None
        return next_attempt_s(
            attempts=attempts,
            max_attempts=retries.max_attempts,
            backoff_s=retries.backoff_s,
            retry_after_s=error.retry_after_s,
            platform=error.code in ("unavailable", "worker_lost", "queue_full"),
        )

    async def _sweep(self) -> None:
        while True:
            now = clock.wall()
            await self._store.expire(
                finished_before=now - self._retention_s, keys_before=now - self._key_retention_s
            )
            await asyncio.sleep(_SWEEP_S)


async def _whole(reply: Reply) -> bytes:
    if reply.chunks is None:
        return reply.body
    return b"".join([chunk async for chunk in reply.chunks])
