"""Sandboxes without processes: functions are Python callables of the worker's own process.

A callable gets the body and gives a value, an awaitable of one, or an async iterator of chunks.

An equal sibling of the real kinds, for tests of the worker and for trying policies: the node, its
pools and its queues run as they are; starts take the time they are told to.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed, Unavailable
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.policies.placement import Refusal
from faasd.settings import WorkerSettings
from faasd.spec import FunctionSpec
from faasd.spool import whole
from worker.gpus.ledger import GpuLedger, needs_gpu
from worker.layers import InterpreterBuilder
from worker.sandbox import Call, Exit, Instance, InstanceEvents, Opened, Output, Placed, Span

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
        contained: bool = False,
    ) -> None:
        """`contained`: a sandbox is made with the GPUs that its instances may come to use."""
        self.handlers = handlers or {}
        self.load_s = load_s
        self.fork_s = fork_s
        self.exec_s = exec_s
        self.contained = contained
        self._ledger: GpuLedger | None = None
        self.opened = 0
        self.open_sandboxes: set[FakeSandbox] = set()
        self.builder = InterpreterBuilder()

    def use_gpus(self, ledger: GpuLedger) -> None:
        self._ledger = ledger

    async def start(self) -> None:
        return

    def sandboxes(self) -> dict[str, int]:
        return {"claimed": len(self.open_sandboxes)}

    async def check(self, spec: FunctionSpec) -> None:
        if not spec.runtime.startswith("python"):
            raise DeployFailed(f"There is no runtime {spec.runtime!r}.", remedy="Use python.")

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> FakeSandbox:
        del placed
        begin = clock.monotonic()
        devices = self._devices(revision)
        await asyncio.sleep(self.load_s)
        self.opened += 1
        load = Span("load", begin, clock.monotonic())
        sandbox = FakeSandbox(self, revision, load, devices, died=died, output=output)
        self.open_sandboxes.add(sandbox)
        return sandbox

    def _devices(self, revision: Revision) -> tuple[str, ...] | None:
        spec = revision.spec
        if self._ledger is None or not (self.contained and needs_gpu(spec.resources)):
            return None
        found = self._ledger.sandbox(spec.resources, spec.limits.max_instances)
        if isinstance(found, Refusal):
            raise Unavailable(found.detail)
        return found.devices

    def runtimes(self) -> list[RuntimeReport]:
        return [RuntimeReport("python", "ready", 0.0, [])]

    def measure(self) -> None:
        return

    async def aclose(self) -> None:
        for sandbox in list(self.open_sandboxes):
            await sandbox.aclose()


class FakeSandbox:
    """A template that is always ready; `die` ends it as a crash would.

    `processes`, here and of an instance, are the ids of those that it is to be taken for.
    """

    serial = False

    def __init__(
        self,
        owner: FakeSandboxes,
        revision: Revision,
        load: Span,
        devices: tuple[str, ...] | None,
        *,
        died: Callable[[], None],
        output: Output,
    ) -> None:
        self.owner = owner
        self.output = output
        self.opened = Opened(StartKind.COLD, (load,))
        self.devices = devices
        self.processes: list[int] = []
        self._instances: dict[str, FakeInstance] = {}
        self._name = revision.function.rpartition("/")[2]
        self._died = died
        self._closed = False

    async def fork(
        self, name: str, events: InstanceEvents, env: Mapping[str, str] | None = None
    ) -> FakeInstance:
        if self._closed:
            raise Unavailable("The sandbox ended.")
        handler = self.owner.handlers.get(self._name, _echo)
        instance = self._instances[name] = FakeInstance(self, name, events, handler, env or {})
        try:
            async with asyncio.timeout(self.owner.fork_s):
                await instance.gone.wait()
        except TimeoutError:
            return instance
        except asyncio.CancelledError:
            instance.discard()
            raise
        raise Unavailable("The instance ended before it was attached.")

    def instances(self) -> dict[str, Instance]:
        return dict(self._instances)

    def ended(self, name: str) -> None:
        self._instances.pop(name, None)

    def die(self) -> None:
        self._end()
        self._died()

    async def aclose(self) -> None:
        self._end()

    def _end(self) -> None:
        self._closed = True
        self.owner.open_sandboxes.discard(self)
        for instance in list(self._instances.values()):
            instance.kill()

    def pids(self) -> list[int]:
        return self.processes


class FakeInstance:
    """Serves each call as a task, after the time that execution takes."""

    def __init__(
        self,
        sandbox: FakeSandbox,
        name: str,
        events: InstanceEvents,
        handler: Handler,
        env: Mapping[str, str],
    ) -> None:
        self.name = name
        self.tells_rounds = False
        self.env = dict(env)
        self.processes: list[int] = []
        self.gone = asyncio.Event()
        self._sandbox = sandbox
        self._events = events
        self._handler = handler
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._read = asyncio.Event()
        self._read.set()
        self._dead = False

    def call(self, calls: Sequence[Call]) -> None:
        for call, _meta, body in calls:
            task = asyncio.get_running_loop().create_task(self._serve(call, whole(body)))
            self._calls[call] = task
            task.add_done_callback(functools.partial(self._served, call))

    def look_out(self, for_s: float) -> bool:
        del for_s
        return False

    def cancel(self, call: int) -> None:
        task = self._calls.get(call)
        if task is not None:
            task.cancel()

    def kill(self) -> None:
        if self._dead:
            return
        self._dead = True
        for task in self._calls.values():
            task.cancel()
        self._sandbox.ended(self.name)
        asyncio.get_running_loop().call_soon(self._closed)

    def discard(self) -> None:
        """End one that did not come to serve: nobody will hear of it."""
        self._dead = True
        self._sandbox.ended(self.name)

    def _closed(self) -> None:
        self._events.on_closed(Exit("was killed by signal 9"))
        self.gone.set()

    def pause(self) -> None:
        self._read.clear()

    def resume(self) -> None:
        self._read.set()

    def pids(self) -> list[int]:
        return self.processes

    async def _serve(self, call: int, body: bytes) -> None:
        begin = clock.monotonic()
        try:
            await asyncio.sleep(self._sandbox.owner.exec_s)
            result = self._handler(body)
            if inspect.isawaitable(result):
                result = await result
            if isinstance(result, AsyncGenerator):
                await self._stream(call, result, begin)
                return
        except Exception as error:  # stands for user code
            told = {"code": "handler_error", "type": type(error).__name__, "message": str(error)}
            self._failed(call, told, begin)
            return
        try:
            reply, kind = _packed(result)
        except (TypeError, ValueError) as error:
            told = {"code": "unserialisable_result", "message": f"The result: {error}."}
            self._failed(call, told, begin)
            return
        if not self._dead:
            self._events.on_result(call, 200, kind, {}, _since_ms(begin), reply)

    async def _stream(self, call: int, chunks: AsyncGenerator[bytes, None], begin: float) -> None:
        async with aclosing(chunks):
            self._events.on_start(call, 200, "application/octet-stream")
            async for chunk in chunks:
                await self._read.wait()
                if self._dead:
                    return
                self._events.on_chunk(call, chunk)
        if not self._dead:
            self._events.on_end(call, _since_ms(begin))

    def _failed(self, call: int, problem: dict[str, Any], begin: float) -> None:
        if not self._dead:
            self._events.on_error(call, problem, _since_ms(begin))

    def _served(self, call: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(call, None)
        if task.cancelled() and not self._dead:
            told = {"code": "cancelled", "message": "The caller went away."}
            self._events.on_error(call, told, 0.0)


def _packed(result: Any) -> tuple[bytes, str]:
    if isinstance(result, bytes):
        return result, "application/octet-stream"
    return json.dumps(result).encode(), "application/json"


def _since_ms(begin: float) -> float:
    return (clock.monotonic() - begin) * 1000


def _echo(body: Any) -> Any:
    return body
