"""Which worker gets each invocation, and when: the controller's layer of two-layer scheduling.

Invocations go to the worker that their session is on, or that the router names. Where the router
would have them wait, they wait here, in the order that a worker's queue would have them in, until
some worker has answered another. With a single worker everything goes there at once: its own queue
knows more. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from controller.workers import Member, Workers
from faasd import clock
from faasd.errors import DeadlineExceeded, FaasdError, QueueFull
from faasd.invocation import Invocation, Revision, StartKind, Timings
from faasd.policies.queueing.places import Displace, Refuse
from faasd.policies.queueing.queue import CallQueue
from faasd.policies.routing.affinity import Affinity
from faasd.policies.routing.breaker import Breakers
from faasd.policies.routing.candidate import Candidate, Locality, Router

_SMOOTHING = 0.1
_DEFAULT_SLO_S = 1.0
_USUAL_EXEC_S = 0.1
_SICK = {"worker_lost", "internal_error", "storage_full"}


class Flying(Protocol):
    """An invocation that is to be placed. `revision` is what it runs on."""

    revision: Revision
    invocation: Invocation
    deadline: float | None

    def send_to(self, member: Member) -> None:
        """Begin it there. Raises FaasdError."""
        ...

    def place_again(self) -> None:
        """Its revision was replaced while it waited. Raises FaasdError."""
        ...

    def give_up(self, error: FaasdError) -> None:
        """It waited, and will not run."""
        ...


class _Revision:
    """What is known of a revision across workers, and its invocations that wait here.

    `start_s` is what finding nothing, or a template, costs; `exec_s` the mean run time, seconds.
    """

    __slots__ = ("alarm", "alarm_at", "candidates", "exec_s", "queue", "start_s", "waiting")

    def __init__(self) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.exec_s = _USUAL_EXEC_S
        self.start_s = {Locality.NOTHING: 1.0, Locality.TEMPLATE: 0.02, Locality.IDLE: 0.0}
        self.queue: CallQueue | None = None
        self.waiting: dict[int, Flying] = {}
        self.alarm: asyncio.TimerHandle | None = None
        self.alarm_at = math.inf

    def learn(self, kind: StartKind, timings: Timings) -> None:
        """From a reply: how long runs and starts take."""
        self.exec_s += _SMOOTHING * (timings.exec / 1000 - self.exec_s)
        if kind is StartKind.WARM:
            return
        found = Locality.TEMPLATE if kind is StartKind.FORK else Locality.NOTHING
        took_s = (timings.sandbox + timings.libs + timings.load) / 1000
        self.start_s[found] += _SMOOTHING * (took_s - self.start_s[found])


class Dispatcher:
    """Places invocations on workers. Owned by the event loop."""

    def __init__(
        self,
        workers: Workers,
        router: Router,
        affinity: Affinity | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        self._workers = workers
        self._router = router
        self._affinity = affinity or Affinity()
        self._breakers = breakers or Breakers()
        self._revisions: dict[str, _Revision] = {}
        self._numbers = 0
        workers.watch(self)

    def __repr__(self) -> str:
        waiting = sum(len(one.waiting) for one in self._revisions.values())
        return f"<Dispatcher {len(self._revisions)} revisions, {waiting} waiting>"

    def place(self, flight: Flying) -> None:
        """Send it to a worker now, or when one has room. Raises FaasdError."""
        alone = self._workers.alone
        if alone is not None:
            # It knows better than its last report does, and says so if it cannot.
            flight.send_to(alone)
            return
        known = self._known(flight.revision.key)
        if not known.waiting or flight.invocation.session:
            member = self._choose(flight, known)
            if member is not None:
                flight.send_to(member)
                return
        self._hold(flight, known)

    def withdraw(self, flight: Flying) -> None:
        """Its caller is gone while it waited."""
        known = self._revisions.get(flight.revision.key)
        if known is None or known.queue is None:
            return
        for number, one in known.waiting.items():
            if one is flight:
                known.queue.remove(number)
                del known.waiting[number]
                return

    def began(self, member: Member) -> int:
        """A ticket for `ended`."""
        return self._breakers.began(member.link.worker_id, clock.monotonic())

    def answered(
        self, member: Member, ticket: int, revision: str, kind: StartKind, timings: Timings
    ) -> None:
        """An invocation came back from a worker."""
        if self._workers.alone is None:
            self._breakers.succeeded(member.link.worker_id, ticket)
            self._known(revision).learn(kind, timings)
            self._release(revision)

    def failed(self, member: Member, ticket: int, revision: str, code: str) -> None:
        """An invocation failed on a worker, or was cancelled; `code` says of what."""
        worker = member.link.worker_id
        if code in _SICK:
            self._breakers.failed(worker, ticket, clock.monotonic())
        elif code == "cancelled":
            self._breakers.withdrawn(worker, ticket)
        else:
            self._breakers.succeeded(worker, ticket)
        self._release(revision)

    def joined(self, member: Member) -> None:
        """A worker is up."""
        self._affinity.join(member.link.worker_id, member.slots)
        self._release_all()

    def left(self, member: Member) -> None:
        """A worker is up no more."""
        worker = member.link.worker_id
        self._affinity.leave(worker)
        self._breakers.forget(worker)
        for known in self._revisions.values():
            known.candidates.pop(worker, None)
        self._release_all()

    def retired(self, key: str) -> None:
        """A revision serves no more: what waits for it goes to its successor."""
        known = self._revisions.pop(key, None)
        if known is None:
            return
        if known.alarm is not None:
            known.alarm.cancel()
        for flight in known.waiting.values():
            try:
                flight.place_again()
            except FaasdError as error:
                flight.give_up(error)

    def waiting(self) -> dict[str, int]:
        """How many invocations wait here, by revision."""
        return {key: len(one.waiting) for key, one in self._revisions.items() if one.waiting}

    def _known(self, key: str) -> _Revision:
        known = self._revisions.get(key)
        if known is None:
            known = self._revisions[key] = _Revision()
        return known

    def _choose(self, flight: Flying, known: _Revision) -> Member | None:
        """The worker for it; None where it should wait. Raises Unavailable."""
        revision = flight.revision
        up = self._workers.able(revision.spec.resources)
        now = clock.monotonic()
        out = self._breakers.ejected([one.link.worker_id for one in up], now)
        session = flight.invocation.session
        if session:
            placed = self._affinity.place(f"{revision.function} {session}", now)
            for member in up:
                if placed is not None and member.link.worker_id == placed.worker:
                    return member
        candidates = [
            self._candidate(member, revision, known)
            for member in up
            if member.link.worker_id not in out
        ]
        chosen = self._router.choose(candidates, revision.key)
        return None if chosen is None else self._workers.member(chosen)

    def _candidate(self, member: Member, revision: Revision, known: _Revision) -> Candidate:
        worker = member.link.worker_id
        candidate = known.candidates.get(worker)
        if candidate is None:
            limits, batch = revision.spec.limits, revision.spec.batching.max_size
            places = limits.max_instances * max(limits.concurrency, batch)
            candidate = known.candidates[worker] = Candidate(worker, 1, places=places)
        candidate.slots = member.slots
        candidate.outstanding = member.outstanding
        candidate.held = member.calls.held(revision.key)
        candidate.locality = member.locality(revision.key)
        candidate.start_cost_s = known.start_s[candidate.locality]
        candidate.exec_s = known.exec_s
        return candidate

    def _hold(self, flight: Flying, known: _Revision) -> None:
        """Let it wait here. Raises QueueFull."""
        spec, invocation = flight.revision.spec, flight.invocation
        if known.queue is None:
            slo_s = _DEFAULT_SLO_S if spec.slo.latency_ms is None else spec.slo.latency_ms / 1000
            known.queue = CallQueue(weights=spec.scheduling.tenants, default_slo_s=slo_s)
        places = max(1, spec.limits.queue * self._workers.count)
        match known.queue.admit(invocation.tenant, invocation.priority, places=places):
            case Refuse():
                raise QueueFull(
                    f"{len(known.queue)} invocations are waiting for this function, the most that "
                    "are queued.",
                    retry_after_s=max(0.1, len(known.queue) * known.exec_s / self._workers.count),
                )
            case Displace(call):
                known.queue.remove(call)
                known.waiting.pop(call).give_up(QueueFull.displaced())
        self._numbers += 1
        known.waiting[self._numbers] = flight
        known.queue.push(
            self._numbers,
            clock.monotonic(),
            deadline=flight.deadline,
            slo_s=invocation.slo_s,
            priority=invocation.priority,
            tenant=invocation.tenant,
        )
        if flight.deadline is not None:
            self._watch(known, flight.deadline)

    def _watch(self, known: _Revision, due: float) -> None:
        if due >= known.alarm_at:
            return
        if known.alarm is not None:
            known.alarm.cancel()
        known.alarm_at = due
        delay = max(0.0, due - clock.monotonic())
        known.alarm = asyncio.get_running_loop().call_later(delay, self._expire, known)

    def _expire(self, known: _Revision) -> None:
        known.alarm, known.alarm_at = None, math.inf
        assert known.queue is not None
        for late in known.queue.expired(clock.monotonic()):
            flight = known.waiting.pop(late.call)
            flight.give_up(DeadlineExceeded("The deadline passed while it waited."))
        due = known.queue.next_deadline()
        if due is not None:
            self._watch(known, due)

    def _release_all(self) -> None:
        for key in list(self._revisions):
            self._release(key)

    def _release(self, key: str) -> None:
        """Send what waits, as far as there is room for it now."""
        known = self._revisions.get(key)
        if known is None or known.queue is None:
            return
        while known.waiting:
            number = known.queue.pop(clock.monotonic())
            if number is None:
                return
            flight = known.waiting[number]
            try:
                member = self._choose(flight, known)
                if member is None:
                    known.queue.requeue(number)
                    return
                del known.waiting[number]
                known.queue.finished(number, known.exec_s)
                flight.send_to(member)
            except FaasdError as error:
                if known.waiting.pop(number, None) is not None:
                    known.queue.finished(number, 0.0)
                flight.give_up(error)
