"""The promises of gateway and dispatcher under every order of events: a state machine.

Callers come and leave, workers join, drain, break and are lost, refuse, answer, stream and fail;
revisions are replaced; time passes. Whatever happens, no invocation is lost, told twice, or told
after its caller left, and every count agrees with what is under way.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from controller.workers import Member, WorkerStatus
from faasd import clock
from faasd.errors import (
    DeadlineExceeded,
    FaasdError,
    FunctionNotFound,
    HandlerError,
    InternalError,
    QueueFull,
    StorageFull,
    Unavailable,
    WorkerLost,
)
from faasd.invocation import FunctionReport, Invocation, Receiver, Reply
from faasd.policies.routing.breaker import Breakers
from faasd.policies.routing.routers import ROUTERS
from faasd.streams import close
from tests.loops import VirtualLoop
from tests.unit.controller.flights import FUNCTION, Caller, Held, HeldWorker, World

T = TypeVar("T")

FAILURES: list[Callable[[], FaasdError]] = [
    lambda: HandlerError("The function raised ValueError."),
    lambda: DeadlineExceeded("The caller's deadline passed while it ran."),
    lambda: QueueFull("The queue is full."),
    lambda: Unavailable("The worker is shutting down."),
    lambda: StorageFull("The worker's disk is full."),
    lambda: InternalError("The request could not be completed."),
    lambda: FunctionNotFound("The revision is not on this worker."),
]
LOST = "The connection between controller and worker ended."
NAMES = "abcd"


class Watched(HeldWorker):
    """Sees to it that nothing is sent to a worker that is gone, nor a session away from its own."""

    def __init__(self, machine: Callers, name: str, slots: int) -> None:
        super().__init__(name, slots=slots)
        self.machine = machine
        self.gone = False

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Held:
        assert not self.gone, "sent to a worker that is not up"
        assert f"{FUNCTION}@{invocation.revision}" in self.known, "it was told of no such revision"
        if isinstance(self.broken, WorkerLost):
            self.gone = True
            self.machine.forget_sessions_on(self.worker_id)
        held = super().invoke(invocation, receiver)
        if invocation.session:
            home = self.machine.homes.setdefault(invocation.session, self.worker_id)
            assert home == self.worker_id, "a session moved while its worker was up"
        return held


class Callers(RuleBasedStateMachine):
    @initialize(
        routing=st.sampled_from(["bounded-queue"] * 4 + ["auto"] * 4 + [*ROUTERS]),
        seed=st.integers(0, 99),
        workers=st.integers(2, 3),
        places=st.integers(1, 2),
        queue=st.sampled_from([100, 3, 1, 0]),
    )
    def begin(self, *, routing: str, seed: int, workers: int, places: int, queue: int) -> None:
        self.loop = VirtualLoop()
        self.clock = mock.patch.object(clock, "monotonic", self.loop.time)
        self.clock.start()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self.limits = {"max_instances": places, "queue": queue}
        self.revisions = 1
        self.callers: list[Caller] = []
        self.told_at_leaving: dict[int, int] = {}
        self.refused = 0
        self.homes: dict[str, str] = {}
        self.members: dict[Watched, Member] = {}
        self.streams: list[tuple[Watched, Reply]] = []
        router = ROUTERS[routing](random.Random(seed))
        breakers = Breakers(failures=2, base_s=1.0, cap_s=4.0)
        folder = Path("nothing is stored")
        self.world = World(folder, router, breakers=breakers, limits=self.limits)
        for name in NAMES[:workers]:
            self.join(name, 2)

    # What callers do.

    @rule(count=st.integers(2, 12))
    def a_burst_arrives(self, count: int) -> None:
        for _ in range(count):
            self.arrive()

    @rule(
        priority=st.sampled_from([0, 0, 5, -1]),
        tenant=st.sampled_from(["", "one", "other"]),
        session=st.sampled_from([""] * 4 + ["s1", "s2", "s3"]),
        patience_s=st.sampled_from([None, None, 0.25, 3.0]),
        slo_s=st.sampled_from([None, None, 0.125]),
        count=st.integers(1, 3),
    )
    def invocations_with_wishes_arrive(
        self,
        *,
        priority: int,
        tenant: str,
        session: str,
        patience_s: float | None,
        slo_s: float | None,
        count: int,
    ) -> None:
        for _ in range(count):
            self.arrive(
                priority=priority,
                tenant=tenant,
                session=session,
                remaining_s=patience_s,
                slo_s=slo_s,
            )

    def arrive(self, **wishes: Any) -> None:
        waiting, most = self.world.waiting, self.limits["queue"] * self.world.workers.count
        caller = Caller(
            self.world, Invocation(f"c{len(self.callers)}", FUNCTION, "", b"", **wishes)
        )

        def take_off() -> None:
            caller.flight = self.world.gateway.begin(caller.invocation, caller)

        refusal: FaasdError | None = None
        try:
            self.do(take_off)
        except FaasdError as error:
            refusal = error
        assert caller.told == [], "told from within the call that began it"
        if refusal is None:
            self.callers.append(caller)
            return
        self.refused += 1
        by_a_worker = any(link.broken is not None for link in self.members)
        assert not isinstance(refusal, WorkerLost), "what was not sent was not lost"
        assert not isinstance(refusal, QueueFull) or waiting >= most or by_a_worker

    @precondition(lambda self: self.callers)
    @rule(data=st.data(), early=st.booleans())
    def a_caller_leaves(self, data: st.DataObject, *, early: bool) -> None:
        settled = self.settled()
        numbers = [n for n in range(len(self.callers)) if n not in settled or not early]
        number = data.draw(st.sampled_from(numbers or [0]))
        caller = self.callers[number]
        self.do(caller.cancel)
        self.told_at_leaving.setdefault(number, len(caller.told))

    # What workers do.

    @precondition(lambda self: self.under_way())
    @rule(data=st.data(), exec_ms=st.sampled_from([0.5, 100.0, 3000.0]), count=st.integers(1, 5))
    def invocations_are_answered(self, data: st.DataObject, exec_ms: float, count: int) -> None:
        for _ in range(count):
            if self.under_way():
                held = data.draw(st.sampled_from(self.under_way()))
                self.do(lambda held=held: held.answer(exec_ms=exec_ms))  # type: ignore[misc]

    @precondition(lambda self: self.under_way())
    @rule(data=st.data())
    def an_invocation_begins_to_stream(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.under_way()))
        [caller] = [one for one in self.callers if one.invocation.id == held.invocation.id]
        self.do(lambda: held.begin_stream(b"to ", b"be"))
        assert isinstance(held.worker, Watched)
        self.streams.append((held.worker, caller.reply))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), read=st.integers(0, 3))
    def a_stream_ends(self, data: st.DataObject, read: int) -> None:
        number = data.draw(st.integers(0, len(self.streams) - 1))
        self.end_stream(number, read)

    @precondition(lambda self: self.under_way())
    @rule(data=st.data(), failure=st.sampled_from(FAILURES), count=st.integers(1, 3))
    def invocations_fail(
        self, data: st.DataObject, failure: Callable[[], FaasdError], count: int
    ) -> None:
        for _ in range(count):
            if self.under_way():
                held = data.draw(st.sampled_from(self.under_way()))
                self.do(lambda held=held: held.fail(failure()))  # type: ignore[misc]

    @precondition(lambda self: self.linked())
    @rule(data=st.data(), others=st.sampled_from([0, 0, 1, 50]))
    def a_worker_reports(self, data: st.DataObject, others: int) -> None:
        link = data.draw(st.sampled_from(self.linked()))
        link.others = others
        idle = data.draw(st.integers(0, 3))
        active = self.active()
        if active:
            template = data.draw(st.sampled_from(["absent", "ready"]))
            link.functions = [FunctionReport(FUNCTION, active, template, 0, idle, 0, 0, 0.0)]
        link.tell_load()

    # Workers and revisions come and go.

    @rule(name=st.sampled_from(NAMES), slots=st.integers(1, 3))
    def a_worker_joins(self, name: str, slots: int) -> None:
        known = {member.link.worker_id: member for member in self.world.workers.members()}
        if name not in known or known[name].status is WorkerStatus.LOST:
            self.join(name, slots)

    @precondition(lambda self: self.linked())
    @rule(data=st.data(), what=st.sampled_from(["drained", "broken", "lost", "refusing", "well"]))
    def something_befalls_a_worker(self, data: st.DataObject, what: str) -> None:
        link = data.draw(st.sampled_from(self.linked()))
        match what:
            case "drained":
                self.drain(link)
            case "broken":
                link.broken = WorkerLost(LOST)
            case "lost":
                self.lose(link)
            case "refusing" if not isinstance(link.broken, WorkerLost):
                link.broken = data.draw(st.sampled_from(FAILURES))()
            case "well" if not isinstance(link.broken, WorkerLost):
                link.broken = None

    @rule(places=st.integers(1, 2), removed=st.sampled_from([False, False, True]))
    def a_revision_takes_over(self, places: int, *, removed: bool) -> None:
        if removed:
            self.do(self.world.remove)
            assert self.world.waiting == 0
        self.revisions += 1
        self.limits["max_instances"] = places
        self.do(lambda: self.world.deploy(f"r{self.revisions}", limits=self.limits))

    @rule(seconds=st.sampled_from([0.125, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    # The world.

    def do(self, act: Callable[[], T]) -> T:
        async def soon() -> T:
            return act()

        return self.loop.run_until_complete(soon())

    def join(self, name: str, slots: int) -> None:
        link = self.world.links[name] = Watched(self, name, slots)
        # It may get calls from within.
        self.homes = {session: home for session, home in self.homes.items() if home != name}
        self.members[link] = self.do(lambda: self.world.workers.join(link))

    def drain(self, link: Watched) -> None:
        if self.members[link].status is not WorkerStatus.LOST:
            link.gone = True
            self.forget_sessions_on(link.worker_id)
            self.do(lambda: self.world.workers.drain(link.worker_id))

    def lose(self, link: Watched) -> None:
        """What was under way fails before the worker is taken for lost, as on a connection."""
        self.do(link.lose)
        link.gone = True
        self.forget_sessions_on(link.worker_id)
        self.do(lambda: self.world.workers.leave(self.members[link]))

    def forget_sessions_on(self, name: str) -> None:
        self.homes = {session: home for session, home in self.homes.items() if home != name}

    def end_stream(self, number: int, read: int) -> None:
        """Read so many chunks of it, and close it."""
        _, reply = self.streams.pop(number)

        async def use() -> None:
            assert reply.chunks is not None
            for _ in range(read):
                if await anext(reply.chunks, None) is None:
                    return
            await close(reply.chunks)

        self.loop.run_until_complete(use())

    def active(self) -> str:
        function = self.world.registry._functions.get(FUNCTION)
        return "" if function is None else function.active.id

    def linked(self) -> list[Watched]:
        """Workers whose connection has not ended, as far as anybody knows."""
        return [link for link in self.members if not isinstance(link.broken, WorkerLost)] or [
            link for link in self.members if link.under_way
        ]

    def under_way(self) -> list[Held]:
        return [held for link in self.members for held in link.under_way]

    def settled(self) -> set[int]:
        """Callers that were told, or left."""
        left = {number for number, told in self.told_at_leaving.items() if not told}
        return left | {number for number, caller in enumerate(self.callers) if caller.told}

    # What always holds.

    @invariant()
    def nobody_is_told_twice_or_after_leaving(self) -> None:
        for number, caller in enumerate(self.callers):
            assert len(caller.told) <= self.told_at_leaving.get(number, 1)

    @invariant()
    def nobody_is_lost(self) -> None:
        """Every other caller's invocation is on exactly one worker, or waits."""
        settled = self.settled()
        open_ids = [c.invocation.id for n, c in enumerate(self.callers) if n not in settled]
        sent = [held.invocation.id for held in self.under_way()]
        held = self.world.dispatcher._revisions.values()
        waiting = [flight.invocation.id for one in held for flight in one.waiting.values()]
        assert sorted(sent + waiting) == sorted(open_ids)

    @invariant()
    def each_invocation_is_counted_once(self) -> None:
        assert sum(self.world.outcomes.values()) == len(self.settled()) + self.refused

    @invariant()
    def each_worker_is_known_to_have_what_it_has(self) -> None:
        for link, member in self.members.items():
            streaming = sum(worker is link for worker, _ in self.streams)
            assert member.calls.own == len(link.under_way) + streaming
            assert member.outstanding >= member.calls.own

    @invariant()
    def nothing_waits_where_there_is_room(self) -> None:
        waiting = self.world.dispatcher.waiting()
        up = [one for one in self.world.workers.members() if one.status is WorkerStatus.UP]
        assert set(waiting) <= {f"{FUNCTION}@{self.active()}"}
        assert not waiting or len(up) > 1
        for key in waiting:
            for member in up:
                full = member.calls.held(key) > self.limits["max_instances"]
                assert full or member.link.worker_id in self.world.dispatcher._breakers._tripped

    @invariant()
    def nothing_waits_past_its_deadline(self) -> None:
        now = self.loop.time()
        for one in self.world.dispatcher._revisions.values():
            assert all((flight.deadline or math.inf) > now for flight in one.waiting.values())

    @invariant()
    def nothing_is_kept_for_what_is_over(self) -> None:
        dispatcher = self.world.dispatcher
        assert set(dispatcher._revisions) <= {f"{FUNCTION}@{self.active()}"}
        busy = len(self.under_way()) + len(self.streams)
        for one in dispatcher._revisions.values():
            assert one.queue is None or one.queue.statistics().handed_out <= busy
            assert one.queue is None or len(one.queue) == len(one.waiting)

    @invariant()
    def the_loop_has_nothing_to_complain_of(self) -> None:
        assert self.complaints == []

    def teardown(self) -> None:
        """Once all that is under way is answered, everybody was told and every count is zero."""
        if not hasattr(self, "world"):
            return
        while self.streams:
            self.end_stream(0, 3)
        for link in self.members:
            link.broken = None if not link.gone else link.broken
        while self.under_way():
            self.do(self.under_way()[0].answer)
        assert self.world.at_rest()
        assert len(self.settled()) == len(self.callers)
        assert sum(self.world.outcomes.values()) == len(self.callers) + self.refused
        for one in self.world.dispatcher._revisions.values():
            assert one.queue is None or one.queue.statistics().handed_out == 0
        self.clock.stop()
        self.loop.close()


TestCallers = Callers.TestCase
TestCallers.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True
)
