"""The promises of a worker's service under every order of events: a state machine.

Its instances are serial and may be sent calls ahead of their turn. Callers come and leave, instances
answer, stream, fail, print and die, templates die, time passes. Whatever happens, no call is lost,
told twice, told of what befell another, or begun twice, and every count agrees with what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
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

import worker.service
from faasd import clock
from faasd.errors import DeadlineExceeded, FaasdError, QueueFull
from faasd.invocation import Reply
from faasd.policies.ejection import Ejection
from faasd.policies.readahead import ReadAhead
from faasd.streams import close
from tests.loops import VirtualLoop
from tests.unit.worker.serials import Caller, SerialInstance, SerialService

T = TypeVar("T")

TIMEOUT_S = 4.0
STEP_S = 0.5


class EasilyProved(ReadAhead):
    """Takes a few short calls for proof enough."""

    FIRST_PROOF = 3
    __slots__ = ()


def soon_ejects() -> Ejection:
    """Two failures in a row are enough for it."""
    return Ejection(failures=2, most=3, base_s=0.0)


class Service(RuleBasedStateMachine):
    @initialize(
        cancel_grace_s=st.sampled_from([1.0, 0.0]),
        max_instances=st.sampled_from([1, 2]),
        queue=st.sampled_from([100, 2]),
        keep_alive=st.sampled_from([60.0, 0.0]),
    )
    def begin(
        self, *, cancel_grace_s: float, max_instances: int, queue: int, keep_alive: float
    ) -> None:
        self.loop = VirtualLoop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch.object(clock, "monotonic", self.loop.time))
        self.patches.enter_context(mock.patch.object(worker.service, "ReadAhead", EasilyProved))
        self.patches.enter_context(mock.patch.object(worker.service, "Ejection", soon_ejects))
        self.deadlines: dict[int, float] = {}
        self.turns: dict[int, float] = {}
        self.failed: set[int] = set()
        self.sends_at_leaving: dict[int, int] = {}
        self.died_running: set[int] = set()
        self.streams: dict[int, SerialInstance] = {}
        self.pass_time(1.0)
        limits = {"max_instances": max_instances, "timeout_s": TIMEOUT_S, "queue": queue}
        self.world = self.do(
            lambda: SerialService(
                cancel_grace_s=cancel_grace_s, limits=limits, scaling={"keep_alive": keep_alive}
            )
        )
        self.run_short_calls(8)

    # What callers do.

    @rule(count=st.integers(1, 8), patience_s=st.sampled_from([None, None, 0.5, 2.0]))
    def calls_arrive(self, count: int, patience_s: float | None) -> None:
        for _ in range(count):
            self.arrive(patience_s)

    @precondition(lambda self: self.untold())
    @rule(data=st.data())
    def a_caller_leaves(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.untold()))
        self.sends_at_leaving[caller.id] = self.world.sent.count(caller.id)
        self.do(caller.leave)

    # What instances do.

    @rule(count=st.integers(1, 20))
    def short_calls_come_and_are_answered(self, count: int) -> None:
        self.run_short_calls(count)

    @precondition(lambda self: self.busy())
    @rule(
        data=st.data(),
        exec_ms=st.sampled_from([0.1, 0.1, 100.0]),
        printed=st.sampled_from([False, False, True]),
    )
    def a_call_is_answered(self, data: st.DataObject, exec_ms: float, *, printed: bool) -> None:
        instance = data.draw(st.sampled_from(self.busy()))
        if instance.calls[0] in self.streams:
            self.do(instance.end_stream)
        else:
            self.do(lambda: instance.answer(exec_ms=exec_ms, printed=printed))

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def a_call_fails(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(self.busy()))
        self.failed.add(instance.calls[0])
        self.do(instance.fail)

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def a_call_begins_to_stream(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(self.busy()))
        if instance.calls[0] not in self.streams:
            self.streams[instance.calls[0]] = instance
            self.do(instance.begin_stream)

    @precondition(lambda self: self.streaming())
    @rule(data=st.data())
    def the_reader_of_a_stream_closes_it(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.streaming()))
        [reply] = caller.told
        assert isinstance(reply, Reply)
        self.loop.run_until_complete(close(reply.chunks))

    @precondition(lambda self: self.stopping())
    @rule(data=st.data())
    def a_call_that_was_told_to_stop_does(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(self.stopping()))
        self.do(lambda: instance.fail("cancelled"))

    @precondition(lambda self: self.world.living)
    @rule(data=st.data())
    def an_instance_dies(self, data: st.DataObject) -> None:
        self.do(data.draw(st.sampled_from(self.world.living)).die)

    @rule(sure=st.sampled_from([False, False, True]))
    def the_template_dies(self, *, sure: bool) -> None:
        if sure and self.world.sandboxes.made:
            self.do(self.world.sandboxes.made[-1].die)

    @rule(seconds=st.sampled_from([0.0078125, 0.5, 1.0, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(sure=st.sampled_from([False, False, True]))
    def memory_is_taken_back(self, *, sure: bool) -> None:
        if sure and self.world.service.idle_holders()[0] is not None:
            self.do(self.world.service.evict)

    # The world.

    def do(self, act: Callable[[], T]) -> T:
        """Do it, and let what it causes at once come about."""

        async def soon() -> T:
            result = act()
            await asyncio.sleep(0)
            self.note_turns()
            for _ in range(8):
                await asyncio.sleep(0)
                self.note_turns()
            return result

        return self.loop.run_until_complete(soon())

    def pass_time(self, seconds: float) -> None:
        """In steps, after each of which is noted whose turn has come."""

        async def wait() -> None:
            for _ in range(max(1, int(seconds / STEP_S))):
                await asyncio.sleep(min(seconds, STEP_S))
                for _ in range(8):
                    await asyncio.sleep(0)
                self.note_turns()

        self.loop.run_until_complete(wait())

    def note_turns(self) -> None:
        if not hasattr(self, "world"):
            return
        for instance in self.world.living:
            if instance.calls:
                self.turns.setdefault(instance.calls[0], self.loop.time())

    def arrive(self, patience_s: float | None) -> None:
        queued = self.world.service.pool.statistics().queued
        refusal: FaasdError | None = None
        caller: Caller | None = None
        try:
            caller = self.do(lambda: self.world.call(patience_s))
        except FaasdError as error:
            refusal = error
        if caller is None:
            assert isinstance(refusal, QueueFull)
            assert queued >= self.world.service.revision.spec.limits.queue
        elif patience_s is not None:
            self.deadlines[caller.id] = self.loop.time() + patience_s

    def run_short_calls(self, count: int) -> None:
        for _ in range(count):
            self.arrive(None)
            for instance in self.busy():
                if instance.calls[0] not in self.streams:
                    self.do(instance.answer)

    def untold(self) -> list[Caller]:
        return [caller for caller in self.world.callers if not (caller.told or caller.left)]

    def streaming(self) -> list[Caller]:
        """Whose reply is a stream that may be under way."""
        found = [c for c in self.world.callers if c.told and isinstance(c.told[0], Reply)]
        return [caller for caller in found if caller.told[0].chunks is not None]  # type: ignore[union-attr]

    def busy(self) -> list[SerialInstance]:
        return [one for one in self.world.living if one.calls and not one.killed]

    def stopping(self) -> list[SerialInstance]:
        return [one for one in self.busy() if one.calls[0] in one.told_to_stop]

    # What always holds.

    @invariant()
    def nobody_is_told_twice_or_after_leaving(self) -> None:
        for caller in self.world.callers:
            assert len(caller.told) <= (0 if caller.left else 1)

    @invariant()
    def nobody_is_lost(self) -> None:
        """Who was told nothing has a call in the queue, or in one instance."""
        pool, service = self.world.service.pool, self.world.service
        held = [call for one in self.world.living for call in one.calls]
        assert len(held) == len(set(held))
        waiting = [p.id for p in service._pending.values() if p.instance is None]
        assert pool.statistics().queued == len(waiting)
        assert pool.statistics().running == len(service._pending) - len(waiting)
        assert {caller.id for caller in self.untold()} <= {*held, *waiting}

    @invariant()
    def the_counts_are_right(self) -> None:
        pending = self.world.service._pending.values()
        assert self.world.tally.outstanding == len(pending)
        assert self.world.tally.running == sum(one.instance is not None for one in pending)

    @invariant()
    def no_call_is_begun_twice(self) -> None:
        """Only one that had not begun may be sent again."""
        for instance in self.world.sandboxes.instances:
            if instance.gone and instance.calls:
                self.died_running.add(instance.calls[0])
        again = {call for one in self.world.living for call in one.calls}
        assert not again & self.died_running

    @invariant()
    def nothing_is_sent_whose_caller_left(self) -> None:
        for call, sends in self.sends_at_leaving.items():
            assert self.world.sent.count(call) == sends

    @invariant()
    def nobody_is_told_of_what_befell_another(self) -> None:
        for caller in self.world.callers:
            turn = self.turns.get(caller.id, None)
            match caller.code:
                case "" | "ok" | "queue_full":
                    pass
                case "handler_error":
                    assert caller.id in self.failed
                case "instance_died":
                    assert caller.id in self.died_running
                case "function_timeout":
                    assert turn is not None
                    # Its turn may have come within the step that ended when it was seen.
                    assert self.loop.time() - turn >= TIMEOUT_S - STEP_S
                case "deadline_exceeded":
                    [error] = caller.told
                    assert isinstance(error, DeadlineExceeded)
                    early = "hardly ever" in error.detail
                    assert early or self.deadlines[caller.id] <= self.loop.time()
                case other:
                    raise AssertionError(other)

    @invariant()
    def nobody_runs_past_the_limit_or_waits_past_a_deadline(self) -> None:
        now = self.loop.time()
        for caller in self.untold():
            assert now <= self.deadlines.get(caller.id, now)
            assert now - self.turns.get(caller.id, now) <= TIMEOUT_S + 1

    @invariant()
    def the_loop_has_nothing_to_complain_of(self) -> None:
        assert self.complaints == []

    def teardown(self) -> None:
        """All that is there comes to its end; then the service is retired, and is empty."""
        if not hasattr(self, "world"):
            return
        self.do(self.world.service.retire)
        for _ in range(500):
            if not self.world.service._pending and self.world.emptied:
                break
            for instance in self.busy():
                self.streams.pop(instance.calls[0], None)
                self.do(instance.fail)
            self.pass_time(0.5)
        assert self.world.emptied, self.world.service
        assert not self.untold()
        assert (self.world.tally.outstanding, self.world.tally.running) == (0, 0)
        self.loop.run_until_complete(self.world.service.aclose())
        self.patches.close()
        self.loop.close()


TestService = Service.TestCase
TestService.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, print_blob=True
)
