"""A service whose instances serve one call after the other, when the test says so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from faasd.errors import FaasdError, Unavailable
from faasd.invocation import Invocation, Reply, Revision, StartKind
from tests.unit.worker.nodes import revision
from worker.calls import Pending
from worker.gpus.desk import GpuDesk
from worker.gpus.ledger import GpuLedger
from worker.sandbox import (
    Call,
    Exit,
    Instance,
    InstanceEvents,
    Meta,
    Opened,
    Output,
    Placed,
    Progress,
)
from worker.sandboxes.fake import FakeSandboxes
from worker.service import RevisionService
from worker.tally import Tally

KILLING_TAKES_S = 0.0078125


class SerialInstance:
    """Serves the first of its calls; the others wait in its socket for their turn."""

    def __init__(self, sandbox: SerialSandbox, name: str, events: InstanceEvents) -> None:
        self.tells_rounds = True
        self.name = name
        self.calls: list[int] = []
        self.metas: dict[int, Meta] = {}
        self.told_to_stop: list[int] = []
        self.killed = False
        self.gone = False
        self._sandbox = sandbox
        self._events = events

    def call(self, calls: Sequence[Call]) -> None:
        assert not self.gone, "a call for an instance that is gone"
        for call, meta, _body in calls:
            self.calls.append(call)
            self.metas[call] = meta
            self._sandbox.owner.begun(call)

    def answer(self, *, exec_ms: float = 0.1, printed: bool = False) -> None:
        """Answer the one that runs."""
        call = self.calls.pop(0)
        if printed:
            self._events.on_printed()
        self._events.on_result(call, 200, "text/plain", {}, exec_ms, b"done")
        self._events.on_caught_up()

    def fail(self, code: str = "handler_error", *, exec_ms: float = 0.1) -> None:
        call = self.calls.pop(0)
        self._events.on_error(call, {"code": code, "type": "E", "message": "no"}, exec_ms)
        self._events.on_caught_up()

    def begin_stream(self) -> None:
        self._events.on_start(self.calls[0], 200, "text/plain")
        self._events.on_chunk(self.calls[0], b"to be")

    def end_stream(self, *, exec_ms: float = 0.1) -> None:
        self._events.on_end(self.calls.pop(0), exec_ms)
        self._events.on_caught_up()

    def look_out(self, for_s: float) -> bool:
        del for_s
        return False

    def cancel(self, call: int) -> None:
        self.told_to_stop.append(call)

    def kill(self) -> None:
        if not self.killed:
            self.killed = True
            asyncio.get_running_loop().call_later(KILLING_TAKES_S, self.die)

    def die(self) -> None:
        if not self.gone:
            self.gone = True
            self._sandbox.living.pop(self.name, None)
            self._events.on_closed(Exit("was killed by signal 9"))

    def pause(self) -> None:
        return

    def resume(self) -> None:
        return

    def pids(self) -> list[int]:
        return []


class SerialSandbox:
    """A template whose forks are there at once."""

    def __init__(self, owner: SerialSandboxes, died: Callable[[], None]) -> None:
        self.opened = Opened(StartKind.COLD, ())
        self.devices: tuple[str, ...] | None = None
        self.serial = True
        self.owner = owner
        self.living: dict[str, SerialInstance] = {}
        self._died = died
        self._closed = False

    async def fork(
        self, name: str, events: InstanceEvents, env: Mapping[str, str] | None = None
    ) -> SerialInstance:
        del env
        if self._closed:
            raise Unavailable("The sandbox ended.")
        instance = self.living[name] = SerialInstance(self, name, events)
        self.owner.instances.append(instance)
        return instance

    def instances(self) -> dict[str, Instance]:
        return dict(self.living)

    def die(self) -> None:
        self._end()
        self._died()

    async def aclose(self) -> None:
        self._end()

    def _end(self) -> None:
        self._closed = True
        for instance in list(self.living.values()):
            instance.kill()

    def pids(self) -> list[int]:
        return []


class SerialSandboxes(FakeSandboxes):
    """All sandboxes and instances there ever were, in order; `begun` is told of what is sent."""

    def __init__(self, begun: Callable[[int], None]) -> None:
        super().__init__()
        self.made: list[SerialSandbox] = []
        self.instances: list[SerialInstance] = []
        self.begun = begun

    async def open(  # type: ignore[override]
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> SerialSandbox:
        del revision, placed, output
        self.made.append(SerialSandbox(self, died))
        return self.made[-1]


class Caller:
    """Who asked for a call, and all that was told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pending: Pending | None = None
        self.told: list[Reply | FaasdError] = []
        self.left = False

    def answered(self, reply: Reply) -> None:
        self.told.append(reply)

    def failed(self, error: FaasdError) -> None:
        self.told.append(error)

    def leave(self) -> None:
        assert self.pending is not None
        self.left = True
        self.pending.cancel()

    @property
    def code(self) -> str:
        """What it was told: "ok", an error's code, or nothing yet."""
        return "".join("ok" if isinstance(one, Reply) else one.code for one in self.told)

    @property
    def id(self) -> int:
        """The worker's number for the call."""
        assert self.pending is not None
        return self.pending.id


class SerialService:
    """A service, its callers and its instances."""

    def __init__(self, *, cancel_grace_s: float = 1.0, **spec: Any) -> None:
        self.tally = Tally()
        self.callers: list[Caller] = []
        self.sent: list[int] = []
        self.emptied = 0
        self.sandboxes = SerialSandboxes(self.sent.append)
        self.service = RevisionService(
            revision(**spec),
            worker_id="n1",
            sandboxes=self.sandboxes,
            place=_place,
            output=lambda *_: None,
            desk=GpuDesk(GpuLedger(), idle=list, end=lambda _owners: None),
            template_keep_alive_s=600.0,
            cancel_grace_s=cancel_grace_s,
            woken=self._note_woken,
            emptied=self._note_emptied,
            cores=2,
            tally=self.tally,
        )
        self._numbers = itertools.count()

    def _note_woken(self, service: RevisionService) -> None:
        del service

    def _note_emptied(self, _service: RevisionService) -> None:
        self.emptied += 1

    def call(self, remaining_s: float | None = None) -> Caller:
        """Begin one. Raises FaasdError."""
        caller = Caller(next(self._numbers))
        invocation = Invocation(
            str(caller.number), "default/echo", "r1", b"x", remaining_s=remaining_s
        )
        caller.pending = self.service.invoke(invocation, caller)
        self.callers.append(caller)
        return caller

    @property
    def living(self) -> list[SerialInstance]:
        return [one for one in self.sandboxes.instances if not one.gone]


async def _place(revision: Revision, progress: Progress) -> Placed:
    del revision, progress
    return Placed("", [], {})
