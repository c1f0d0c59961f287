"""The pool's promises under every order of events: a state machine beside a model of the world.

The world does what a worker's shell and its processes do: it opens sandboxes, forks and ends
instances, answers calls, loses them. It refuses actions that make no sense where it stands. Serial
instances answer their calls one after the other, and are sent some ahead of their turn.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from faasd.errors import QueueFull
from faasd.invocation import StartKind
from faasd.policies.keepalive import FixedKeepAlive
from faasd.policies.queueing.discipline import ServiceTimes
from faasd.policies.readahead import ReadAhead
from worker.pool import (
    Action,
    CallId,
    CloseSandbox,
    Dispatch,
    Displace,
    Expire,
    Fail,
    Fork,
    OpenSandbox,
    Pool,
    PoolLimits,
    SandboxState,
    Stop,
)

MOMENT_S = 0.001
QUIET_STEPS = 2000


class Fate(enum.StrEnum):
    """Where a call is, or how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    LOST = "lost with its instance"
    EXPIRED = "expired"
    DISPLACED = "displaced"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EasilyProved(ReadAhead):
    """Takes a few short calls for proof enough."""

    FIRST_PROOF = 3
    __slots__ = ()


@dataclass(slots=True)
class Process:
    """An instance as the world sees it, with its calls in the order of their coming."""

    starting: bool = True
    doomed: bool = False
    orphan: bool = False
    calls: list[CallId] = field(default_factory=list)
    doubted: set[CallId] = field(default_factory=set)


class PoolInTheWorld(RuleBasedStateMachine):
    """Every rule is an event; after each the pool decides and the world carries it out."""

    @initialize(
        shares=st.sampled_from([(1, 1), (3, 1), (1, 4)]),
        serial=st.booleans(),
        batch_wait_s=st.sampled_from([0.0, 0.5]),
        max_instances=st.sampled_from([2, 1, 3]),
        min_instances=st.integers(0, 1),
        queue=st.sampled_from([0, 2, 100]),
        keep_alive_s=st.sampled_from([0.0, 1.0, 60.0]),
        template_keep_alive_s=st.sampled_from([0.0, 5.0, 600.0]),
    )
    def begin(
        self,
        *,
        shares: tuple[int, int],
        serial: bool,
        batch_wait_s: float,
        max_instances: int,
        min_instances: int,
        queue: int,
        keep_alive_s: float,
        template_keep_alive_s: float,
    ) -> None:
        concurrency, batch = shares
        self.limits = PoolLimits(
            concurrency=concurrency,
            max_instances=max_instances,
            min_instances=min_instances,
            queue=queue,
            batch=batch,
            batch_wait_s=batch_wait_s,
            template_keep_alive_s=template_keep_alive_s,
        )
        self.pool = Pool(self.limits, FixedKeepAlive(keep_alive_s))
        self.serial = serial and shares == (1, 1)
        self.now = 0.0
        self.sandbox = SandboxState.ABSENT
        self.processes: dict[int, Process] = {}
        self.numbers: set[int] = set()
        self.fates: dict[CallId, Fate] = {}
        self.arrivals: dict[CallId, float] = {}
        self.tenants: dict[CallId, str] = {}
        self.deadlines: dict[CallId, float] = {}
        self.answered = 0
        self.held = False
        self.step()

    # What the callers do.

    @rule(
        count=st.sampled_from([1, 1, 1, 2, 5, 64]),
        patience_s=st.none() | st.floats(0.01, 10),
        tenant=st.sampled_from(["", "", "", "other"]),
    )
    def arrive(self, count: int, patience_s: float | None, tenant: str) -> None:
        for _ in range(count):
            if not self.arrive_one(patience_s, tenant):
                break
            self.step()

    def arrive_one(self, patience_s: float | None, tenant: str) -> bool:
        """Whether there was a place for it."""
        call = len(self.fates)
        deadline = None if patience_s is None else self.now + patience_s
        waiting = len(self.of(Fate.QUEUED))
        try:
            self.pool.arrive(call, self.now, deadline, tenant=tenant)
        except QueueFull:
            assert waiting >= self.limits.queue
            assert self.limits.batch > 1 or not self.idle()
            return False
        self.tenants[call] = tenant
        self.arrivals[call] = self.now
        self.fates[call] = Fate.QUEUED
        if deadline is not None:
            self.deadlines[call] = deadline
        return True

    @precondition(lambda self: self.of(Fate.QUEUED))
    @rule(data=st.data())
    def cancel_a_waiting_call(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.of(Fate.QUEUED)))
        assert self.pool.cancel(call) is None
        self.fates[call] = Fate.CANCELLED
        self.step()

    @precondition(lambda self: self.of(Fate.RUNNING))
    @rule(data=st.data())
    def cancel_a_running_call(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.of(Fate.RUNNING)))
        number = self.pool.cancel(call)
        assert number is not None
        assert call in self.processes[number].calls
        self.pool.stopping(number)
        self.processes[number].doomed = True
        self.step()

    @precondition(lambda self: self.of(Fate.RUNNING))
    @rule(data=st.data())
    def a_running_call_is_told_to_stop(self, data: st.DataObject) -> None:
        self.tell_to_stop(data.draw(st.sampled_from(self.of(Fate.RUNNING))))
        self.step()

    # What sandboxes and processes do.

    @precondition(lambda self: self.sandbox is SandboxState.OPENING)
    @rule(kind=st.sampled_from([StartKind.COLD, StartKind.POOLED]))
    def the_sandbox_is_ready(self, kind: StartKind) -> None:
        self.tick()
        self.open(kind)
        self.step()

    @precondition(lambda self: self.sandbox is SandboxState.OPENING)
    @rule(final=st.booleans())
    def the_sandbox_fails(self, *, final: bool) -> None:
        self.tick()
        self.sandbox = SandboxState.ABSENT
        self.pool.sandbox_failed(self.now, final=final)
        self.step()

    @precondition(lambda self: self.sandbox is SandboxState.READY)
    @rule()
    def the_template_dies(self) -> None:
        self.sandbox = SandboxState.ABSENT
        for process in self.processes.values():
            process.orphan = True
        self.pool.sandbox_died(self.now)
        self.step()

    @precondition(lambda self: self.starting())
    @rule(data=st.data())
    def an_instance_is_ready(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.starting()))
        self.tick()
        self.become_ready(number)
        self.step()

    @precondition(lambda self: self.begun())
    @rule(data=st.data(), final=st.booleans())
    def an_instance_fails_to_start(self, data: st.DataObject, *, final: bool) -> None:
        number = data.draw(st.sampled_from(self.begun()))
        del self.processes[number]
        self.pool.instance_failed(number, self.now, final=final)
        self.step()

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def an_instance_ends(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.processes))))
        self.step()

    @precondition(lambda self: self.answerable())
    @rule(data=st.data(), took_s=st.sampled_from([0.0, 0.01, 3.0]), printed=st.booleans())
    def a_call_is_answered(self, data: st.DataObject, took_s: float, *, printed: bool) -> None:
        call = data.draw(st.sampled_from(self.answerable()))
        self.now += took_s
        self.answer(call, None if printed else took_s)
        self.step()

    @precondition(lambda self: self.answerable())
    @rule(data=st.data(), count=st.integers(2, 12))
    def short_calls_are_answered(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if self.answerable():
                self.answer(data.draw(st.sampled_from(self.answerable())), 0.0001)
                self.step()

    @rule(events=st.lists(st.sampled_from("aaaaaasssslcd"), min_size=8, max_size=60))
    def a_busy_spell_passes(self, events: list[str]) -> None:
        """Calls arrive, are answered soon or late or told to stop; instances die, others start."""
        for event in events:
            if event == "a":
                self.arrive_one(None, "")
            elif event == "d" and self.processes:
                self.end(min(self.processes))
            elif event == "c" and self.of(Fate.RUNNING):
                self.tell_to_stop(self.of(Fate.RUNNING)[-1])
            elif self.answerable():
                self.answer(self.answerable()[0], 0.1 if event == "l" else 0.0001)
            if self.sandbox is SandboxState.OPENING:
                self.open(StartKind.COLD)
            for number in self.starting():
                self.become_ready(number)
            self.step()

    # What the shell and its owner do.

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def an_instance_is_to_stop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.processes)))
        self.pool.stopping(number)
        self.processes[number].doomed = True
        self.step()

    @rule(seconds=st.sampled_from([0.1, 1.0, 61.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.step()

    @precondition(lambda self: self.pool.next_wakeup(self.now) is not None)
    @rule()
    def the_alarm_rings(self) -> None:
        self.sleep()
        self.step()

    @rule(count=st.integers(0, 3))
    def the_minimum_changes(self, count: int) -> None:
        self.pool.min_instances = min(count, self.limits.max_instances)
        self.step()

    @rule(may_grow=st.booleans())
    def memory_is_short_or_not(self, *, may_grow: bool) -> None:
        self.pool.may_grow = may_grow
        self.step()

    @rule(hold=st.booleans())
    def a_deploy_holds_the_template_or_lets_go(self, *, hold: bool) -> None:
        self.held = hold
        self.pool.hold_template(hold=hold)
        self.step()

    @precondition(lambda self: self.pool.idle_since() is not None)
    @rule()
    def memory_is_taken_back(self) -> None:
        self.carry_out(self.pool.evict(), evicting=True)
        self.step()

    @rule(sure=st.sampled_from([False] * 9 + [True]))
    def it_is_retired(self, *, sure: bool) -> None:
        if sure:
            self.pool.retire()
            self.step()

    @rule(things=st.integers(3, 30))
    def all_goes_well_for_a_while(self, things: int) -> None:
        for _ in range(things):
            went_well = self.one_thing_goes_well()
            self.step()
            if not went_well:
                break

    # The world.

    def step(self) -> None:
        self.carry_out(self.pool.decide(self.now))
        assert self.pool.decide(self.now) == [], "nothing happened, and it changed its mind"

    def carry_out(self, actions: list[Action], *, evicting: bool = False) -> None:
        for action in actions:
            match action:
                case OpenSandbox():
                    assert self.sandbox is SandboxState.ABSENT
                    self.sandbox = SandboxState.OPENING
                case CloseSandbox():
                    assert self.sandbox is SandboxState.READY
                    assert not self.of(Fate.QUEUED)
                    assert all(p.doomed for p in self.processes.values())
                    assert not self.held
                    self.sandbox = SandboxState.ABSENT
                    for process in self.processes.values():
                        process.orphan = True
                case Fork(number):
                    assert self.sandbox is SandboxState.READY
                    assert number not in self.numbers
                    self.numbers.add(number)
                    self.processes[number] = Process()
                case Stop(number):
                    self.stop(number, evicting=evicting)
                case Dispatch():
                    self.dispatch(action)
                case Expire(call, left_s):
                    assert self.fates[call] is Fate.QUEUED
                    assert left_s == max(0.0, self.deadlines[call] - self.now)
                    assert not left_s or self.knows_how_long_calls_take()
                    self.fates[call] = Fate.EXPIRED
                case Displace(call):
                    assert self.fates[call] is Fate.QUEUED
                    self.fates[call] = Fate.DISPLACED
                case Fail(call):
                    assert self.fates[call] is Fate.QUEUED
                    assert self.pool.failing
                    self.fates[call] = Fate.FAILED

    def stop(self, number: int, *, evicting: bool) -> None:
        process = self.processes[number]
        assert not process.calls
        assert not process.starting
        assert not process.doomed
        process.doomed = True
        live = [p for p in self.processes.values() if not p.doomed]
        assert evicting or self.pool.retired or len(live) >= self.pool.min_instances

    def dispatch(self, action: Dispatch) -> None:
        process = self.processes[action.instance]
        assert not process.starting
        assert not process.doomed
        assert not process.doubted
        assert len(action.calls) == len(action.kinds) == len(set(action.calls)) > 0
        assert self.limits.batch == 1 or not process.calls
        ahead = self.pool.read_ahead.depth if self.pool.read_ahead else 0
        assert not process.calls or not ahead or not self.idle(), "ahead, where one is idle"
        for call in action.calls:
            assert self.fates[call] is Fate.QUEUED
            self.is_next(call)
            self.fates[call] = Fate.RUNNING
            process.calls.append(call)
        assert len(process.calls) <= self.limits.per_instance + ahead

    def is_next(self, call: CallId) -> None:
        """Nobody of the same tenant is more urgent, or as urgent and earlier."""
        tenant = self.tenants[call]
        peers = [one for one in self.of(Fate.QUEUED) if self.tenants[one] == tenant]
        assert call == min(peers, key=self.urgency)

    def urgency(self, call: CallId) -> tuple[float, int]:
        return self.deadlines.get(call, self.arrivals[call] + self.limits.slo_s), call

    def knows_how_long_calls_take(self) -> bool:
        enough = self.answered >= ServiceTimes.ENOUGH
        return enough and self.limits.batch == 1 and bool(self.processes)

    def open(self, kind: StartKind) -> None:
        self.sandbox = SandboxState.READY
        self.pool.read_ahead = EasilyProved() if self.serial else None
        self.pool.sandbox_ready(kind, self.now)

    def tell_to_stop(self, call: CallId) -> None:
        number = self.pool.cancel(call)
        assert number is not None
        self.pool.doubt(call)
        self.processes[number].doubted.add(call)

    def become_ready(self, number: int) -> None:
        self.processes[number].starting = False
        self.pool.instance_ready(number, self.now)

    def answer(self, call: CallId, took_s: float | None = None) -> None:
        self.fates[call] = Fate.FINISHED
        self.answered += 1
        for process in self.processes.values():
            if call in process.calls:
                process.calls.remove(call)
                process.doubted.discard(call)
        self.pool.finished(call, self.now, took_s)

    def end(self, number: int) -> None:
        """What a serial instance had not begun waits again, but for what nobody wants any more."""
        process = self.processes.pop(number)
        begun = process.calls[:1] if self.serial else process.calls
        lost = {call for call in process.calls if call in begun or call in process.doubted}
        assert self.pool.instance_gone(number, self.now) == sorted(lost)
        for call in process.calls:
            self.fates[call] = Fate.LOST if call in lost else Fate.QUEUED

    def tick(self) -> None:
        self.now += MOMENT_S

    def sleep(self) -> None:
        due = self.pool.next_wakeup(self.now)
        assert due is not None
        self.now = max(due, self.now + MOMENT_S)

    def of(self, fate: Fate) -> list[CallId]:
        return [call for call, one in self.fates.items() if one is fate]

    def answerable(self) -> list[CallId]:
        """Serial instances answer in the order in which calls came."""
        running = [p.calls[:1] if self.serial else p.calls for p in self.processes.values()]
        return sorted(call for calls in running for call in calls)

    def idle(self) -> list[int]:
        """Instances that could take a call."""
        return [
            number
            for number, p in self.processes.items()
            if not (p.starting or p.doomed or p.calls)
        ]

    def begun(self) -> list[int]:
        return [number for number, p in self.processes.items() if p.starting]

    def starting(self) -> list[int]:
        return [number for number in self.begun() if not self.processes[number].orphan]

    # What always holds.

    @invariant()
    def it_counts_what_the_world_has(self) -> None:
        seen = self.pool.statistics()
        doomed = [p for p in self.processes.values() if p.doomed]
        live = [p for p in self.processes.values() if not p.doomed]
        assert seen.sandbox is self.sandbox
        assert seen.queued == len(self.of(Fate.QUEUED))
        assert seen.running == len(self.of(Fate.RUNNING))
        assert seen.starting == sum(p.starting for p in live)
        assert seen.idle == sum(not p.starting and not p.calls for p in live)
        assert seen.busy == sum(bool(p.calls) for p in live)
        assert len(live) + len(doomed) == len(self.processes)

    @invariant()
    def it_stays_within_its_limits(self) -> None:
        places = self.limits.max_instances * self.limits.per_instance
        back = self.limits.max_instances * ReadAhead.DEEPEST if self.serial else 0
        assert len(self.processes) <= self.limits.max_instances
        assert len(self.of(Fate.QUEUED)) <= max(self.limits.queue, places) + back

    @invariant()
    def no_call_waits_past_its_deadline(self) -> None:
        late = [c for c in self.of(Fate.QUEUED) if self.deadlines.get(c, self.now + 1) <= self.now]
        assert not late

    @invariant()
    def something_will_happen_to_whatever_waits(self) -> None:
        """An event that must come, or the alarm: no call waits for nothing."""
        to_come = (
            self.sandbox is SandboxState.OPENING
            or any(p.starting or p.doomed or p.orphan or p.calls for p in self.processes.values())
            or self.pool.next_wakeup(self.now) is not None
        )
        assert to_come or not self.of(Fate.QUEUED)

    @invariant()
    def nobody_waits_for_good_where_more_could_be_started(self) -> None:
        """Batches wait for those under way; everybody else gets a start, or the alarm is set."""
        could_start = (
            self.limits.batch == 1
            and self.pool.may_grow
            and not self.pool.failing
            and self.sandbox is SandboxState.READY
            and len(self.processes) < self.limits.max_instances
        )
        comes = bool(self.begun()) or self.pool.next_wakeup(self.now) is not None
        assert comes or not could_start or not self.of(Fate.QUEUED)

    @invariant()
    def a_minimum_that_is_missing_comes_back(self) -> None:
        live = [p for p in self.processes.values() if not p.doomed]
        to_come = (
            self.sandbox is SandboxState.OPENING
            or len(live) < len(self.processes)
            or self.pool.next_wakeup(self.now) is not None
        )
        memory_is_short = not self.pool.may_grow and bool(live)
        wanted = 0 if self.pool.retired or memory_is_short else self.pool.min_instances
        assert len(live) >= wanted or to_come

    @invariant()
    def the_alarm_is_never_set_for_what_is_over(self) -> None:
        due = self.pool.next_wakeup(self.now)
        assert due is None or due >= self.now

    @invariant()
    def it_is_empty_exactly_when_nothing_is_here(self) -> None:
        nothing = (
            not self.processes and not self.of(Fate.QUEUED) and self.sandbox is SandboxState.ABSENT
        )
        assert self.pool.empty is nothing

    def teardown(self) -> None:
        """When everything works from now on and no more calls come, all ends well and in full."""
        if not hasattr(self, "pool"):
            return
        self.pool.min_instances = 0
        self.pool.may_grow = True
        self.held = False
        self.pool.hold_template(hold=False)
        self.step()
        for _ in range(QUIET_STEPS):
            if not self.one_thing_goes_well():
                if self.pool.next_wakeup(self.now) is None:
                    break
                self.sleep()
            self.step()
        assert self.pool.empty, self.pool
        assert self.pool.next_wakeup(self.now) is None
        assert not self.of(Fate.QUEUED)
        assert not self.of(Fate.RUNNING)

    def one_thing_goes_well(self) -> bool:
        self.tick()
        ending = [n for n, p in self.processes.items() if p.doomed or p.orphan]
        if self.sandbox is SandboxState.OPENING:
            self.open(StartKind.COLD)
        elif ending:
            self.end(ending[0])
        elif self.begun():
            self.become_ready(self.begun()[0])
        elif self.answerable():
            self.answer(self.answerable()[0], 0.0001)
        else:
            return False
        return True


TestPoolInTheWorld = PoolInTheWorld.TestCase
TestPoolInTheWorld.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, print_blob=True
)
