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

from controller.workers import Member, Workers, WorkerStatus
from faasd import clock
from faasd.errors import DeadlineExceeded, FaasdError, QueueFull, WorkerLost
from faasd.invocation import Invocation, Revision, StartKind, Timings
from faasd.policies.queueing.places import Displace, Refuse
from faasd.policies.queueing.queue import CallQueue
from faasd.policies.routing import rendezvous
from faasd.policies.routing.affinity import Affinity
from faasd.policies.routing.breaker import Breakers
from faasd.policies.routing.candidate import Candidate, Locality, Router

_SMOOTHING = 0.1
_DEFAULT_SLO_S = 1.0
_USUAL_EXEC_S = 0.1
_SICK = {"worker_lost", "internal_error", "storage_full"}


class Flying(Protocol):
    """An invocation that is to be placed. `revision` is what it runs on; `number` is the
    dispatcher's for it once it has waited, 0 before.
    """

    revision: Revision
    invocation: Invocation
    deadline: float | None
    number: int

    def send_to(self, member: Member, ticket: int) -> None:
        """Begin it there; the ticket is for `answered`, `failed` and `refused`. Raises FaasdError."""
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

    __slots__ = (
        "alarm", "alarm_at", "candidates", "exec_s", "queue", "releasing", "start_s", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.exec_s = _USUAL_EXEC_S
        self.start_s = {Locality.NOTHING: 1.0, Locality.TEMPLATE: 0.02, Locality.IDLE: 0.0}
        self.queue: CallQueue | None = None
        self.waiting: dict[int, Flying] = {}
        self.releasing = False
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
        if alone is not None and not flight.invocation.session:
            # It knows better than its last report does, and says so if it cannot.
            try:
                flight.send_to(alone, 0)
            except WorkerLost:
                self._workers.leave(alone)
            else:
                return
        while True:
            member = self._where(flight)
            if member is None:
                self._hold(flight)
                return
            if self._sent(flight, member):
                return

    def withdraw(self, flight: Flying) -> bool:
        """Its caller is gone: whether it waited here."""
        known = self._revisions.get(flight.revision.key)
        if known is None or known.waiting.pop(flight.number, None) is None:
            return False
        assert known.queue is not None
        known.queue.remove(flight.number)
        return True

    def _ticket(self, member: Member) -> int:
        """For what becomes of it; of the only worker nothing is to be learned."""
        if self._workers.alone is member:
            return 0
        return self._breakers.began(member.link.worker_id, clock.monotonic())

    def answered(
        self, flight: Flying, member: Member, ticket: int, kind: StartKind, timings: Timings
    ) -> None:
        """An invocation came back from a worker."""
        sick = False
        if ticket:
            sick = not self._breakers.quiet
            self._breakers.succeeded(member.link.worker_id, ticket)
        known = self._revisions.get(flight.revision.key)
        if known is not None:
            known.learn(kind, timings)
            self._ended(flight, known, timings.exec / 1000)
        if sick:
            # Perhaps no more, and then there is room for what waits for any revision.
            self._release_all()

    def failed(self, flight: Flying, member: Member, ticket: int, code: str) -> None:
        """An invocation failed on a worker, or was cancelled; `code` says of what."""
        self.refused(member, ticket, code)
        known = self._revisions.get(flight.revision.key)
        if known is not None:
            self._ended(flight, known, known.exec_s)

    def refused(self, member: Member, ticket: int, code: str) -> None:
        """A worker would not even begin it."""
        worker, sick = member.link.worker_id, not self._breakers.quiet
        if code == "cancelled":
            self._breakers.withdrawn(worker, ticket)
        elif code not in _SICK:
            self._breakers.succeeded(worker, ticket)
        elif member.status is WorkerStatus.UP:
            # Of one that is on its way out nothing is to be learned about whoever has its name next.
            self._breakers.failed(worker, ticket, clock.monotonic())
        if sick:
            self._release_all()

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
        """A revision serves no more: what waits for it goes to its successor, in the same order."""
        known = self._revisions.pop(key, None)
        if known is None or known.queue is None:
            return
        if known.alarm is not None:
            known.alarm.cancel()
        while (number := known.queue.pop(clock.monotonic())) is not None:
            flight = known.waiting.pop(number)
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

    def _where(self, flight: Flying) -> Member | None:
        """The worker for it; None where it should wait. Raises Unavailable."""
        if flight.invocation.session:
            return self._home(flight)
        if self._workers.alone is not None:
            return self._workers.alone
        known = self._known(flight.revision.key)
        if known.waiting and not self._breakers.quiet:
            # A worker that was left out may have room by now, and nothing else would tell.
            self._release(flight.revision.key)
        return None if known.waiting else self._choose(flight.revision, known)

    def _home(self, flight: Flying) -> Member:
        """The worker of its session, sick or full as it may be: what it has there is nowhere else.

        Where that could not run it, as it lacks the GPU, those that can share sessions by hash.
        """
        revision = flight.revision
        key = f"{revision.function} {flight.invocation.session}"
        up = {one.link.worker_id: one for one in self._workers.able(revision.spec.resources)}
        placed = self._affinity.place(key, clock.monotonic())
        if placed is not None and placed.worker in up:
            return up[placed.worker]
        owner = rendezvous.owner(key, {worker: one.slots for worker, one in up.items()})
        assert owner is not None
        return up[owner]

    def _choose(self, revision: Revision, known: _Revision) -> Member | None:
        """The worker for the next one; None while none has room. Raises Unavailable."""
        if self._workers.alone is not None:
            return self._workers.alone
        up = self._workers.able(revision.spec.resources)
        out = self._breakers.ejected([one.link.worker_id for one in up], clock.monotonic())
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
            places = _places(revision)
            candidate = known.candidates[worker] = Candidate(worker, 1, places=places)
        candidate.slots = member.slots
        candidate.outstanding = member.outstanding
        candidate.held = member.calls.held(revision.key)
        candidate.locality = member.locality(revision.key)
        candidate.start_cost_s = known.start_s[candidate.locality]
        candidate.exec_s = known.exec_s
        return candidate

    def _sent(self, flight: Flying, member: Member) -> bool:
        """Whether it could be sent there. Raises FaasdError."""
        try:
            flight.send_to(member, self._ticket(member))
        except WorkerLost:
            # Its connection has ended: all that is sent there would fail until that is noticed.
            self._workers.leave(member)
            return False
        return True

    def _hold(self, flight: Flying) -> None:
        """Let it wait here. Raises QueueFull."""
        revision, invocation = flight.revision, flight.invocation
        known = self._known(revision.key)
        queue = known.queue
        if queue is None:
            queue = known.queue = _queue(revision)
        displaced = self._make_room(invocation, revision, known, queue)
        self._numbers += 1
        flight.number = self._numbers
        known.waiting[flight.number] = flight
        queue.push(
            flight.number,
            clock.monotonic(),
            deadline=flight.deadline,
            slo_s=invocation.slo_s,
            priority=invocation.priority,
            tenant=invocation.tenant,
        )
        if flight.deadline is not None:
            self._watch(known, flight.deadline)
        if displaced is not None:
            displaced.give_up(QueueFull.displaced())

    def _make_room(
        self, invocation: Invocation, revision: Revision, known: _Revision, queue: CallQueue
    ) -> Flying | None:
        """Who had to give its place to it, if anybody. Raises QueueFull."""
        workers = self._workers.count
        most = revision.spec.limits.queue * workers
        match queue.admit(invocation.tenant, invocation.priority, places=most):
            case Refuse():
                wait_s = len(queue) * known.exec_s / (workers * _places(revision))
                raise QueueFull(
                    f"{len(queue)} invocations are waiting for this function, the most that "
                    "are queued.",
                    retry_after_s=max(0.1, wait_s),
                )
            case Displace(call):
                queue.remove(call)
                return known.waiting.pop(call)
        return None

    def _watch(self, known: _Revision, due: float) -> None:
        if due >= known.alarm_at:
            return
        if known.alarm is not None:
            known.alarm.cancel()
        known.alarm_at = due
        delay = max(0.0, due - clock.monotonic())
        known.alarm = asyncio.get_running_loop().call_later(delay, self._expire, known)

    def _expire(self, known: _Revision) -> None:
        # A timer of the loop may come a moment early.
        now = max(clock.monotonic(), known.alarm_at)
        if known.alarm is not None:
            known.alarm.cancel()
        known.alarm, known.alarm_at = None, math.inf
        assert known.queue is not None
        late = [known.waiting.pop(one.call) for one in known.queue.expired(now)]
        due = known.queue.next_deadline()
        if due is not None:
            self._watch(known, due)
        for flight in late:
            flight.give_up(DeadlineExceeded("The deadline passed while it waited."))

    def _ended(self, flight: Flying, known: _Revision, exec_s: float) -> None:
        """There may be room for another; who waited for its turn pays what it took."""
        if flight.number and known.queue is not None:
            known.queue.finished(flight.number, exec_s)
        if known.waiting:
            self._release(flight.revision.key)

    def _release_all(self) -> None:
        for key in list(self._revisions):
            self._release(key)

    def _release(self, key: str) -> None:
        """Send what waits, as far as there is room for it now."""
        known = self._revisions.get(key)
        # What fails at once makes room in its turn; that is looked at here, not inside of it.
        if known is None or not known.waiting or known.releasing:
            return
        known.releasing = True
        try:
            if known.alarm_at <= clock.monotonic():
                self._expire(known)
            while known.waiting and self._release_next(known):
                pass
        finally:
            known.releasing = False

    def _release_next(self, known: _Revision) -> bool:
        """Send the next one, or tell it why nobody can have it; False while none has room."""
        queue = known.queue
        assert queue is not None
        try:
            member = self._choose(next(iter(known.waiting.values())).revision, known)
            if member is None:
                return False
        except FaasdError as error:
            flight = _next(known, queue)
            queue.finished(flight.number, 0.0)
            flight.give_up(error)
            return True
        # Not sooner: whose turn it is to go is counted.
        flight = _next(known, queue)
        try:
            if not self._sent(flight, member):
                known.waiting[flight.number] = flight
                queue.requeue(flight.number)
        except FaasdError as error:
            queue.finished(flight.number, 0.0)
            flight.give_up(error)
        return True


def _next(known: _Revision, queue: CallQueue) -> Flying:
    """The one whose turn it is, which waits no longer."""
    number = queue.pop(clock.monotonic())
    assert number is not None
    return known.waiting.pop(number)


def _places(revision: Revision) -> int:
    """How many calls of it one worker may run at once."""
    limits = revision.spec.limits
    return limits.max_instances * max(limits.concurrency, revision.spec.batching.max_size)


def _queue(revision: Revision) -> CallQueue:
    spec = revision.spec
    slo_s = _DEFAULT_SLO_S if spec.slo.latency_ms is None else spec.slo.latency_ms / 1000
    return CallQueue(weights=spec.scheduling.tenants, default_slo_s=slo_s)
