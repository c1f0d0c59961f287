"""Sandboxes without processes: functions are Python callables of the worker's own process.

An equal sibling of the real kinds, for tests of the worker and for trying policies: the node, its
pools and its queues run as they are; starts take the time they are told to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed, Unavailable
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.settings import WorkerSettings
from worker.sandbox import Call, Exit, InstanceEvents, Opened, Output, Placed, Span

Handler = Callable[[Any], Any]


def from_settings(settings: WorkerSettings) -> FakeSandboxes:
    del settings
    return FakeSandboxes()


class FakeSandboxes:
    """Every function echoes its body, or does what `handlers` says for its name."""

    def __init__(
        self,
        handlers: dict[str, Handler] | None = None,
        *,
        load_s: float = 0.0,
        fork_s: float = 0.0,
        exec_s: float = 0.0,
    ) -> None:
        self.handlers = handlers or {}
        self.load_s = load_s
        self.fork_s = fork_s
        self.exec_s = exec_s
        self.opened = 0
        self.open_sandboxes: set[FakeSandbox] = set()

    async def start(self) -> None:
        return

    async def check(self, runtime: str) -> None:
        if not runtime.startswith("python"):
            raise DeployFailed(f"There is no runtime {runtime!r}.", remedy="Use python.")

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> FakeSandbox:
        del placed, output
        begin = clock.monotonic()
        await asyncio.sleep(self.load_s)
        self.opened += 1
        sandbox = FakeSandbox(self, revision, died, Span("load", begin, clock.monotonic()))
        self.open_sandboxes.add(sandbox)
        return sandbox

    def runtimes(self) -> list[RuntimeReport]:
        return [RuntimeReport("python", "ready", 0.0, [])]

    def measure(self) -> None:
        return

    async def aclose(self) -> None:
        for sandbox in list(self.open_sandboxes):
            await sandbox.aclose()


class FakeSandbox:
    """A template that is always ready; `die` ends it as a crash would."""

    def __init__(
        self, owner: FakeSandboxes, revision: Revision, died: Callable[[], None], load: Span
    ) -> None:
        self.owner = owner
        self.opened = Opened(StartKind.COLD, (load,))
        self.instances: set[FakeInstance] = set()
        self._name = revision.function.rpartition("/")[2]
        self._died = died
        self._closed = False

    async def fork(self, name: str, events: InstanceEvents) -> FakeInstance:
        del name
        await asyncio.sleep(self.owner.fork_s)
        if self._closed:
            raise Unavailable("The sandbox ended.")
        instance = FakeInstance(self, events, self.owner.handlers.get(self._name, _echo))
        self.instances.add(instance)
        return instance

    def die(self) -> None:
        self._end()
        self._died()

    async def aclose(self) -> None:
        self._end()

    def _end(self) -> None:
        self._closed = True
        self.owner.open_sandboxes.discard(self)
        for instance in list(self.instances):
            instance.kill()

    def pids(self) -> list[int]:
        return []


class FakeInstance:
    """Answers each call after the time that execution takes."""

    def __init__(self, sandbox: FakeSandbox, events: InstanceEvents, handler: Handler) -> None:
        self._sandbox = sandbox
        self._events = events
        self._handler = handler
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._dead = False

    def call(self, calls: Sequence[Call]) -> None:
        loop = asyncio.get_running_loop()
        for call, _meta, body in calls:
            self._timers[call] = loop.call_later(
                self._sandbox.owner.exec_s, self._answer, call, body
            )

    def cancel(self, call: int) -> None:
        timer = self._timers.pop(call, None)
        if timer is not None:
            timer.cancel()
            told = {"code": "cancelled", "message": "The caller went away."}
            self._events.on_error(call, told, 0.0)

    def kill(self) -> None:
        if self._dead:
            return
        self._dead = True
        for timer in self._timers.values():
            timer.cancel()
        self._sandbox.instances.discard(self)
        asyncio.get_running_loop().call_soon(self._events.on_closed, Exit("was killed by signal 9"))

    def pause(self) -> None:
        return

    def resume(self) -> None:
        return

    def pids(self) -> list[int]:
        return []

    def _answer(self, call: int, body: bytes) -> None:
        self._timers.pop(call, None)
        exec_ms = self._sandbox.owner.exec_s * 1000
        try:
            result = self._handler(body)
        except Exception as error:  # stands for user code
            told = {"code": "handler_error", "type": type(error).__name__, "message": str(error)}
            self._events.on_error(call, told, exec_ms)
            return
        if isinstance(result, bytes):
            reply, kind = result, "application/octet-stream"
        else:
            reply, kind = json.dumps(result).encode(), "application/json"
        self._events.on_result(call, 200, kind, {}, exec_ms, reply)


def _echo(body: Any) -> Any:
    return body
