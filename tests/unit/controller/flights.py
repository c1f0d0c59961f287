"""A controller's gateway and dispatcher with workers whose invocations end when the test says so."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from controller.dispatch import Dispatcher
from controller.gateway import Flight, Gateway
from controller.links import Progress
from controller.registry import Function, Registry
from controller.store.sqlite import SqliteStore
from controller.workers import Member, Workers
from faasd.blobs import BlobStore
from faasd.errors import FaasdError, WorkerLost
from faasd.invocation import (
    FunctionReport,
    GpuReport,
    Invocation,
    Load,
    LogLine,
    Receiver,
    Reply,
    Revision,
    StartKind,
    Timings,
    WorkerReport,
)
from faasd.policies.routing.affinity import Affinity
from faasd.policies.routing.bounded_queue import BoundedQueue
from faasd.policies.routing.breaker import Breakers
from faasd.policies.routing.candidate import Router
from faasd.spec import validate_spec
from faasd.telemetry import Metrics

FUNCTION = "default/echo"


class HeldWorker:
    """A worker on which an invocation runs until the test answers it. Refuses, once `broken` is set,
    every further one at once with that.
    """

    def __init__(self, worker_id: str, *, slots: int = 2) -> None:
        self.worker_id = worker_id
        self.slots = slots
        self.load = Load()
        self.functions: list[FunctionReport] = []
        self.gpus: list[GpuReport] = []
        self.known: set[str] = set()
        self.under_way: list[Held] = []
        self.received: list[str] = []
        self.others = 0
        self.broken: FaasdError | None = None

    def report(self) -> WorkerReport:
        return WorkerReport(
            *(self.worker_id, 2, 1.0, 1.0, 0.0, self.slots),
            *(self.gpus, [], self.functions),
            gpu_fault="" if self.gpus else "no driver",
        )

    def register(self, revision: Revision) -> None:
        self.known.add(revision.key)

    def retire(self, function: str, revision: str) -> None:
        self.known.discard(f"{function}@{revision}")

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        raise NotImplementedError

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Held:
        if self.broken is not None:
            raise self.broken
        held = Held(self, dataclasses.replace(invocation), receiver)
        self.under_way.append(held)
        self.received.append(invocation.id)
        self.tell_load()
        return held

    def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        raise NotImplementedError

    def tell_load(self) -> None:
        """Say what it has in hand, calls of other controllers included."""
        self.load.seq += 1
        self.load.outstanding = self.load.running = len(self.under_way) + self.others

    def __getitem__(self, identity: str) -> Held:
        """The invocation that is under way here."""
        [found] = [one for one in self.under_way if one.invocation.id == identity]
        return found

    @property
    def has(self) -> list[str]:
        """What is under way here, in the order of its coming."""
        return [one.invocation.id for one in self.under_way]

    def lose(self) -> None:
        """Its connection breaks."""
        self.broken = WorkerLost("The connection between controller and worker ended.")
        for one in list(self.under_way):
            one.fail(WorkerLost("The connection between controller and worker ended."))


class Held:
    """An invocation on such a worker, as it was sent there."""

    def __init__(self, worker: HeldWorker, invocation: Invocation, receiver: Receiver) -> None:
        self.worker = worker
        self.invocation = invocation
        self.cancelled = False
        self._receiver = receiver

    def cancel(self) -> None:
        self._over()
        self.cancelled = True

    def answer(self, *, exec_ms: float = 100.0, queue_ms: float = 0.0) -> None:
        self._over()
        timings = Timings(queue=queue_ms, exec=exec_ms)
        self._receiver.answered(self._reply(timings))

    def begin_stream(self, *chunks: bytes) -> None:
        async def source() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        self.worker.under_way.remove(self)
        self._receiver.answered(self._reply(Timings(), source()))

    def fail(self, error: FaasdError) -> None:
        self._over()
        self._receiver.failed(error)

    def _over(self) -> None:
        self.worker.under_way.remove(self)
        self.worker.tell_load()

    def _reply(self, timings: Timings, chunks: AsyncIterator[bytes] | None = None) -> Reply:
        name = self.worker.worker_id
        kind = StartKind.WARM
        return Reply(200, "text/plain", {}, kind, timings, name, b"" if chunks else b"ok", chunks)


class Caller:
    """Who asked for an invocation, and all that it was told."""

    def __init__(self, world: World, invocation: Invocation) -> None:
        self._world = world
        self.invocation = invocation
        self.told: list[Reply | FaasdError] = []
        self.flight: Flight | None = None

    def answered(self, reply: Reply) -> None:
        self.told.append(reply)

    def failed(self, error: FaasdError) -> None:
        self.told.append(error)

    def cancel(self) -> None:
        assert self.flight is not None
        self.flight.cancel()

    @property
    def reply(self) -> Reply:
        [told] = self.told
        assert isinstance(told, Reply)
        return told

    @property
    def error(self) -> FaasdError:
        [told] = self.told
        assert isinstance(told, FaasdError)
        return told

    @property
    def waits(self) -> bool:
        return not self.told


class World:
    """Workers, and the gateway that sends them invocations of one function."""

    def __init__(
        self,
        folder: Path,
        router: Router | None = None,
        *,
        affinity: Affinity | None = None,
        breakers: Breakers | None = None,
        **spec: Any,
    ) -> None:
        self.workers = Workers()
        self.metrics = Metrics()
        store = SqliteStore(folder / "store.db")
        blobs = BlobStore(folder / "blobs")
        self.registry = Registry(store, blobs, self.workers, code_max_mb=1, deploy_timeout_s=1)
        self.dispatcher = Dispatcher(self.workers, router or BoundedQueue(), affinity, breakers)
        self.gateway = Gateway(self.registry, self.dispatcher, store, self.metrics)
        self.links: dict[str, HeldWorker] = {}
        self._numbers = itertools.count(1)
        self.deploy("r1", **spec)

    def deploy(self, identity: str, **spec: Any) -> None:
        """Make a revision the active one, as the registry does once it was tried."""
        given = {"name": "echo", "limits": {"max_instances": 1, **spec.pop("limits", {})}, **spec}
        revision = Revision(FUNCTION, identity, validate_spec(given), "a" * 64, {})
        former = self.registry._functions.get(FUNCTION)
        self.registry._show(Function(FUNCTION, revision, 0.0))
        if former is not None:
            self.workers.retire(FUNCTION, former.active.id)

    def remove(self) -> None:
        function = self.registry._functions.pop(FUNCTION)
        self.workers.retire(FUNCTION, function.active.id)

    def join(self, *names: str, slots: int = 2) -> list[HeldWorker]:
        links = [HeldWorker(name, slots=slots) for name in names]
        for link in links:
            self.links[link.worker_id] = link
            self.workers.join(link)
        return links

    def member(self, name: str) -> Member:
        return self.workers.member(name)

    def leave(self, name: str) -> None:
        """The connection of a worker breaks, and that is noticed."""
        self.links.pop(name).lose()
        self.workers.leave(self.member(name))

    def call(self, identity: str = "", **wishes: Any) -> Caller:
        """Begin an invocation. Raises FaasdError."""
        name = identity or f"c{next(self._numbers)}"
        caller = Caller(self, Invocation(name, FUNCTION, "", b"x", **wishes))
        caller.flight = self.gateway.begin(caller.invocation, caller)
        return caller

    def calls(self, identities: str, **wishes: Any) -> list[Caller]:
        """Begin several, named by one letter each."""
        return [self.call(identity, **wishes) for identity in identities]

    @property
    def waiting(self) -> int:
        """How many are held at the controller."""
        return sum(self.dispatcher.waiting().values())

    @property
    def outcomes(self) -> dict[str, int]:
        """How many invocations came to which end, as the metrics count them."""
        counted = self.metrics.of(FUNCTION).outcomes
        return {outcome: count for (_mode, outcome), count in counted.items()}

    def at_rest(self) -> bool:
        """Nothing is under way or waits, by any count."""
        members = self.workers.members()
        mine = [one.calls.own for one in members] + [len(w.under_way) for w in self.links.values()]
        return not any(mine) and not self.waiting


def dice() -> random.Random:
    return random.Random(1)
