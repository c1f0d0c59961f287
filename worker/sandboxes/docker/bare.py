"""Bare sandboxes ahead of demand: made in the background, claimed in no time, used once."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from faasd import clock
from faasd.errors import FaasdError, Unavailable
from faasd.policies.bare import BarePool
from faasd.telemetry import get_logger
from worker.sandboxes.docker.engine import Container, Engine, ended_early

log = get_logger("worker.bare")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

Describe = Callable[[], tuple[str, Mapping[str, Any]]]


class BareSandboxes:
    """The pool of one runtime. Owned by the event loop; `aclose` removes what was not claimed."""

    def __init__(
        self,
        engine: Engine,
        describe: Describe,
        policy: BarePool,
        *,
        gate: asyncio.Semaphore,
        discard: Callable[[Container], None],
    ) -> None:
        """`describe` gives name and configuration of the next one; `gate` bounds what is being
        made at once on the node; `discard` removes one that is not to be used.
        """
        self._engine = engine
        self._describe = describe
        self._policy = policy
        self._gate = gate
        self._discard = discard
        self._ready: deque[Container] = deque()
        self._waiting: deque[asyncio.Future[Container]] = deque()
        self._making: set[asyncio.Task[None]] = set()
        self._pause_s = 0.0
        self._resume_at = 0.0
        self._closed = False

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def making(self) -> int:
        return len(self._making)

    def holds(self, container: Container) -> bool:
        """Whether it is here, ready to be claimed."""
        return any(one.id == container.id for one in self._ready)

    def adopt(self, container: Container) -> None:
        """Take over one that a former life of this worker made and nobody used."""
        self._ready.append(container)

    async def claim(self) -> Container:
        """One that is up, for the caller alone and for good. Raises FaasdError."""
        self._policy.claimed(clock.monotonic())
        while self._ready:
            container = self._ready.popleft()
            if alive(container):
                self.tend()
                return container
            self._discard(container)
        waiter: asyncio.Future[Container] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        # Somebody waits: a pause after failures is for the pool's own wishes only.
        self._resume_at = 0.0
        self.tend()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(waiter.result())
            raise

    def tend(self) -> None:
        """Bring the pool to its target: called after claims, and now and then."""
        now = clock.monotonic()
        if self._closed or now < self._resume_at:
            return
        target = self._policy.target(now)
        for container in [one for one in self._ready if not alive(one)]:
            self._ready.remove(container)
            self._discard(container)
        while len(self._ready) > target:
            self._discard(self._ready.pop())
        waiting = sum(not waiter.done() for waiter in self._waiting)
        for _ in range(target + waiting - len(self._ready) - len(self._making)):
            self._spawn(self._make())

    async def aclose(self) -> None:
        self._closed = True
        for task in self._making:
            task.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unavailable("The worker is shutting down."))
        ready, self._ready = list(self._ready), deque()
        for container in ready:
            self._discard(container)

    async def _make(self) -> None:
        async with self._gate:
            begin = clock.monotonic()
            name, config = self._describe()
            try:
                container = await self._engine.run(name, config)
            except FaasdError as error:
                self._failed(error)
                return
            except Exception as error:  # whatever it is, who waits for one must hear of it
                log.exception("bare.failed")
                self._failed(Unavailable(f"A sandbox could not be made: {error!r}."))
                return
        if not container.running:
            self._discard(container)
            self._failed(ended_early(container, str(config["Image"])))
            return
        self._pause_s = 0.0
        self._policy.started(clock.monotonic() - begin)
        self._offer(container)

    def _failed(self, error: FaasdError) -> None:
        log.warning("bare.failed", code=error.code, detail=error.detail)
        self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, self._pause_s * 2))
        self._resume_at = clock.monotonic() + self._pause_s
        # One failure answers one: the others' may yet succeed.
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return

    def _offer(self, container: Container) -> None:
        if self._closed:
            self._discard(container)
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(container)
                return
        self._ready.append(container)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._making.add(task)
        task.add_done_callback(self._making.discard)


def alive(container: Container) -> bool:
    """Whether its first process still runs. The zygote server looks again, and closer."""
    if not container.pid:
        return False
    try:
        os.kill(container.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
