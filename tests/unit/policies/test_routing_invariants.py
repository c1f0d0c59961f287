"""The routing policies' promises under every order of events: a state machine beside a model.

The world is a controller's shell as small as can be: it keeps candidates, counts, breakers and
sessions, and holds calls back when a policy says so.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from faasd.policies.routing.affinity import Affinity
from faasd.policies.routing.breaker import Breakers
from faasd.policies.routing.candidate import Candidate, Locality
from faasd.policies.routing.outstanding import LoadReport, Outstanding
from faasd.policies.routing.routers import ROUTERS

WORKERS = ["a", "b", "c", "d"]
REVISIONS = ["f@1", "g@1"]
EXTRA = 1


class Fate(enum.StrEnum):
    """Where a call is, or how it ended."""

    HELD = "held"
    UNDER_WAY = "under way"
    ANSWERED = "answered"
    CANCELLED = "cancelled"
    LOST = "lost with its worker"


@dataclass(slots=True, eq=False)
class Call:
    revision: str
    session: str = ""
    fate: Fate = Fate.HELD
    worker: str = ""
    number: int = 0
    ticket: int = 0


@dataclass(slots=True)
class Worker:
    """A worker as the world sees it; its calls outlive it here, as replies that come too late."""

    slots: int
    load: Outstanding
    candidates: dict[str, Candidate]
    seq: int = 0


class CallsInTheWorld(RuleBasedStateMachine):
    """Every call is held, under way on one worker, or over; and over only once."""

    @initialize(name=st.sampled_from(sorted(ROUTERS)), exec_s=st.sampled_from([0.001, 1.0]))
    def begin(self, name: str, exec_s: float) -> None:
        self.name = name
        self.exec_s = exec_s
        self.router = ROUTERS[name](random.Random(7))
        self.affinity = Affinity(size=2, idle_s=5.0, buckets=3)
        self.breakers = Breakers(failures=2)
        self.now = 0.0
        self.workers: dict[str, Worker] = {}
        self.former: dict[str, Worker] = {}
        self.calls: list[Call] = []
        self.held: dict[str, deque[Call]] = {revision: deque() for revision in REVISIONS}

    # What callers do.

    @rule(revision=st.sampled_from(REVISIONS), session=st.sampled_from(["", "", "s", "t", "u"]))
    def arrive(self, revision: str, session: str) -> None:
        call = Call(revision, session)
        self.calls.append(call)
        self.held[revision].append(call)
        self.dispatch(revision)

    @precondition(lambda self: self.of(Fate.HELD, Fate.UNDER_WAY))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.of(Fate.HELD, Fate.UNDER_WAY)))
        if call.fate is Fate.HELD:
            self.held[call.revision].remove(call)
            call.fate = Fate.CANCELLED
            return
        self.breakers.withdrawn(call.worker, call.ticket)
        self.over(call, Fate.CANCELLED)

    # What workers do.

    @rule(name=st.sampled_from(WORKERS), slots=st.integers(1, 4), places=st.integers(1, 3))
    def join(self, name: str, slots: int, places: int) -> None:
        if name in self.workers:
            return
        load = self.former[name].load if name in self.former else Outstanding()
        candidates = {
            revision: Candidate(name, slots, places=places, exec_s=self.exec_s)
            for revision in REVISIONS
        }
        self.workers[name] = Worker(slots, load, candidates)
        self.affinity.join(name, slots)
        self.dispatch_all()

    @rule(name=st.sampled_from(WORKERS))
    def die(self, name: str) -> None:
        if name not in self.workers:
            return
        worker = self.former[name] = self.workers.pop(name)
        self.affinity.leave(name)
        worker.load.reset()
        for call in self.of(Fate.UNDER_WAY):
            if call.worker == name:
                self.breakers.failed(name, call.ticket, self.now)
                self.over(call, Fate.LOST)
        self.dispatch_all()

    @precondition(lambda self: self.of(Fate.UNDER_WAY))
    @rule(data=st.data(), report=st.booleans())
    def answer(self, data: st.DataObject, *, report: bool) -> None:
        call = data.draw(st.sampled_from(self.of(Fate.UNDER_WAY)))
        self.breakers.succeeded(call.worker, call.ticket)
        self.over(call, Fate.ANSWERED, report=report)

    @rule(name=st.sampled_from(WORKERS), locality=st.sampled_from(Locality))
    def prepare(self, name: str, locality: Locality) -> None:
        if name in self.workers:
            self.workers[name].candidates["f@1"].locality = locality

    @rule(seconds=st.sampled_from([0.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.dispatch_all()

    # What the shell does.

    def dispatch_all(self) -> None:
        for revision in REVISIONS:
            self.dispatch(revision)

    def dispatch(self, revision: str) -> None:
        held = self.held[revision]
        while held and (name := self.choose(held[0])) is not None:
            call = held.popleft()
            worker = self.workers[name]
            call.fate, call.worker = Fate.UNDER_WAY, name
            call.number = worker.load.begin(revision)
            call.ticket = self.breakers.began(name, self.now)
            self.refresh(worker)

    def choose(self, call: Call) -> str | None:
        if call.session:
            placement = self.affinity.place(call.session, self.now)
            return None if placement is None else placement.worker
        out = self.breakers.ejected(list(self.workers), self.now)
        candidates = [
            worker.candidates[call.revision]
            for name, worker in self.workers.items()
            if name not in out
        ]
        return self.router.choose(candidates, call.revision)

    def over(self, call: Call, fate: Fate, *, report: bool = False) -> None:
        assert call.fate is Fate.UNDER_WAY
        call.fate = fate
        worker = self.workers.get(call.worker) or self.former[call.worker]
        worker.load.end(call.number)
        if report:
            worker.seq += 1
            there = len([c for c in self.of(Fate.UNDER_WAY) if c.worker == call.worker])
            worker.load.reconcile(LoadReport(worker.seq, there, min(there, worker.slots)))
        self.refresh(worker)
        self.dispatch_all()

    def refresh(self, worker: Worker) -> None:
        for revision, candidate in worker.candidates.items():
            candidate.outstanding = worker.load.total
            candidate.held = worker.load.held(revision)

    def of(self, *fates: Fate) -> list[Call]:
        return [call for call in self.calls if call.fate in fates]

    # What holds at all times.

    @invariant()
    def every_call_is_in_one_place(self) -> None:
        held = [call for queue in self.held.values() for call in queue]
        assert len(held) == len(self.of(Fate.HELD))
        assert all(call.fate is Fate.HELD for call in held)
        assert all(call.worker in self.workers for call in self.of(Fate.UNDER_WAY))

    @invariant()
    def counts_are_those_of_the_calls_under_way(self) -> None:
        for name, worker in self.workers.items():
            for revision in REVISIONS:
                mine = [
                    call
                    for call in self.of(Fate.UNDER_WAY)
                    if (call.worker, call.revision) == (name, revision)
                ]
                assert worker.load.held(revision) == len(mine)
            assert worker.load.others == 0

    @invariant()
    def no_call_is_held_while_a_worker_has_room(self) -> None:
        out = self.breakers.ejected(list(self.workers), self.now)
        for revision, queue in self.held.items():
            if not queue:
                continue
            for name, worker in self.workers.items():
                one = worker.candidates[revision]
                assert name in out or one.held >= one.places + EXTRA
                assert self.name in {"auto", "bounded-queue"}

    def teardown(self) -> None:
        if not self.workers:
            self.join("a", 1, 1)
        self.wait(1000.0)
        while under_way := self.of(Fate.UNDER_WAY):
            self.breakers.succeeded(under_way[0].worker, under_way[0].ticket)
            self.over(under_way[0], Fate.ANSWERED)
        assert self.of(Fate.HELD, Fate.UNDER_WAY) == []
        for worker in (*self.workers.values(), *self.former.values()):
            assert worker.load.total == 0


TestCallsInTheWorld = CallsInTheWorld.TestCase
TestCallsInTheWorld.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
