"""The pool and queue of one function revision on one worker. Pure: state and now in, actions out.

Called on every event (arrival, departure, start, death, wake-up): first the method named for the
event, then `decide`, whose actions the shell carries out without calling back in between.

Invariants: a call is queued, or running on exactly one instance, or gone; an instance never runs
more calls than it may; at most one sandbox is open or opening; queue and instances are bounded. A
serial instance may hold calls ahead of the one that it runs: these have not begun, and are queued
again when it ends.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from faasd.errors import QueueFull
from faasd.invocation import StartKind
from faasd.policies.keepalive import KeepAlive
from faasd.policies.queueing import places as queueing
from faasd.policies.queueing.discipline import ServiceTimes
from faasd.policies.queueing.queue import CallQueue
from faasd.policies.queueing.sessions import SessionCall, Sessions
from faasd.policies.readahead import ReadAhead
from faasd.policies.scaling import ConcurrencyScaling, Demand

CallId = int
InstanceId = Hashable

_SMOOTHING = 0.2
_START_ATTEMPTS = 3


class SandboxState(enum.StrEnum):
    ABSENT = "absent"
    OPENING = "opening"
    READY = "ready"


class InstanceState(enum.StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"


_LEGAL = {
    InstanceState.STARTING: {InstanceState.IDLE, InstanceState.STOPPING},
    InstanceState.IDLE: {InstanceState.BUSY, InstanceState.STOPPING},
    InstanceState.BUSY: {InstanceState.IDLE, InstanceState.STOPPING},
    InstanceState.STOPPING: set(),
}


@dataclass(frozen=True, slots=True)
class OpenSandbox:
    """Make a sandbox and its template."""


@dataclass(frozen=True, slots=True)
class CloseSandbox:
    """End the template and all that is left of the sandbox."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork an instance; the shell names it in `instance_ready` or `instance_failed`."""

    instance: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End an instance that runs nothing."""

    instance: int


# Not frozen, which would triple the cost of what is made for every call.
@dataclass(slots=True)
class Dispatch:
    """Send the calls to the instance; start kinds are those of the calls, in order."""

    instance: int
    calls: tuple[CallId, ...]
    kinds: tuple[StartKind, ...]


@dataclass(frozen=True, slots=True)
class Expire:
    """A queued call that cannot be answered in time: `left_s` to its deadline, 0 when that passed."""

    call: CallId
    left_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Displace:
    """A queued call that gave its place to one of a tenant who holds less of a full queue."""

    call: CallId


@dataclass(frozen=True, slots=True)
class Fail:
    """No instance can be had: answer the call with the reason of the last failed start."""

    call: CallId


Action = OpenSandbox | CloseSandbox | Fork | Stop | Dispatch | Expire | Displace | Fail


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What the function's spec bounds. Times in seconds."""

    concurrency: int = 1
    max_instances: int = 8
    min_instances: int = 0
    queue: int = 1000
    batch: int = 1
    batch_wait_s: float = 0.0
    template_keep_alive_s: float = 600.0
    slo_s: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    per_instance: int = field(init=False)
    """Calls that one instance takes on at once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_instance", max(self.concurrency, self.batch))


@dataclass(slots=True)
class _Instance:
    id: int
    state: InstanceState
    asked_at: float
    ready_at: float = 0.0
    idle_since: float = 0.0
    calls: dict[CallId, None] = field(default_factory=dict)
    doubted: set[CallId] = field(default_factory=set)
    dispatched_at: float = 0.0
    has_sessions: bool = False

    def become(self, state: InstanceState) -> None:
        if state not in _LEGAL[self.state]:
            raise ValueError(f"an instance cannot go from {self.state} to {state}")
        self.state = state


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    sandbox: SandboxState
    starting: int
    idle: int
    busy: int
    queued: int
    running: int


class Pool:
    """Not thread-safe; owned by the event loop of the worker."""

    __slots__ = (
        "_displaced", "_failed_until", "_failures", "_hold_template", "_instances", "_limits",
        "_next_instance", "_queue", "_retired", "_sandbox", "_sandbox_kind", "_sandbox_ready_at",
        "_session_of", "_sessions", "_start_s", "_stuck", "_times", "_used_at", "_useless",
        "_where", "at_once", "keep_alive", "may_grow", "min_instances", "read_ahead", "run_s",
    )  # fmt: skip

    def __init__(self, limits: PoolLimits, keep_alive: KeepAlive) -> None:
        self._limits = limits
        self.keep_alive = keep_alive
        self._queue = CallQueue(weights=limits.weights, default_slo_s=limits.slo_s)
        self._displaced: list[CallId] = []
        self._sessions = Sessions()
        self._session_of: dict[CallId, str] = {}
        self._times = ServiceTimes()
        self._where: dict[CallId, int] = {}
        self._instances: dict[int, _Instance] = {}
        self._next_instance = 1
        self._sandbox = SandboxState.ABSENT
        self._sandbox_kind = StartKind.COLD
        self._sandbox_ready_at = 0.0
        self._failures = 0
        self._useless = 0
        self._failed_until: float | None = None
        self._used_at = 0.0
        self._retired = False
        self._hold_template = False
        self._stuck = False
        self._start_s: float | None = None
        self.min_instances = limits.min_instances
        self.may_grow = True
        self.at_once: int | None = None
        """How many instances are of use at once, where that is less than there may be."""
        self.run_s = 0.0
        """For how long calls have run in all."""
        self.read_ahead: ReadAhead | None = None
        """Set by the shell for instances that serve one call after the other."""

    def __repr__(self) -> str:
        s = self.statistics()
        return (
            f"<Pool {s.sandbox}, instances: {s.starting} starting, {s.idle} idle, {s.busy} busy, "
            f"calls: {s.queued} queued, {s.running} running>"
        )

    def statistics(self) -> PoolStatistics:
        by_state = [instance.state for instance in self._instances.values()]
        return PoolStatistics(
            sandbox=self._sandbox,
            starting=by_state.count(InstanceState.STARTING),
            idle=by_state.count(InstanceState.IDLE),
            busy=by_state.count(InstanceState.BUSY),
            queued=self._queue.queued + len(self._sessions.calls),
            running=len(self._where),
        )

    @property
    def empty(self) -> bool:
        """Nothing is here: a retired pool that is empty can be forgotten."""
        return not (self.waiting or self._instances) and self._sandbox is SandboxState.ABSENT

    @property
    def retired(self) -> bool:
        return self._retired

    @property
    def waiting(self) -> bool:
        """Whether any call is queued."""
        return self._queue.queued > 0 or bool(self._sessions.calls)

    @property
    def failing(self) -> bool:
        """Starts failed for good, or too often: none is tried for a while."""
        return self._failed_until is not None

    def arrive(
        self,
        call: CallId,
        now: float,
        deadline: float | None = None,
        *,
        slo_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
        session: str = "",
    ) -> bool:
        """Queue a call: whether there is anything to decide before some other event.

        Raises QueueFull when the queue is at its limit and no instance is free, unless the tenant
        holds less than its share of the queue: another's call is displaced then.
        """
        queued = self._queue.queued + len(self._sessions.calls)
        if queued >= self._limits.queue and queued >= self._free_places():
            self._make_room(tenant, priority)
        self.keep_alive.arrived(now)
        self._used_at = now
        if session:
            self._session_of[call] = session
            instance = self._instances.get(self._sessions.instance(session) or 0)
            if instance is not None and instance.state is not InstanceState.STOPPING:
                waits = SessionCall(call, now, deadline, slo_s, priority, tenant)
                self._sessions.wait(instance.id, waits)
                return True
        self._queue.push(
            call, now, deadline=deadline, slo_s=slo_s, priority=priority, tenant=tenant
        )
        return deadline is not None or not self._stuck or bool(self._displaced)

    def _make_room(self, tenant: str, priority: int) -> None:
        places = max(self._limits.queue, self._free_places()) - len(self._sessions.calls)
        match self._queue.admit(tenant, priority, places=max(0, places)):
            case queueing.Displace(call):
                self._queue.remove(call)
                self._displaced.append(call)
            case queueing.Refuse():
                raise QueueFull(
                    f"{self.statistics().queued} invocations are waiting, the most that are queued "
                    "for this function on one worker.",
                    retry_after_s=self._expected_wait_s(),
                )

    def cancel(self, call: CallId) -> int | None:
        """Forget a queued call, or name the instance that runs it, or None when it is gone."""
        if self._queue.remove(call) or self._sessions.remove(call):
            self._session_of.pop(call, None)
            return None
        return self._where.get(call)

    def finished(self, call: CallId, now: float, took_s: float | None = None) -> None:
        """A running call was answered by its instance.

        `took_s` is what the instance says it took, of a call that neither streamed nor printed.
        """
        identity = self._where.pop(call, None)
        instance = self._instances.get(identity) if identity is not None else None
        if instance is None:
            return
        del instance.calls[call]
        if instance.doubted:
            instance.doubted.discard(call)
        self._useless = 0
        self._used_at = now
        took = now - instance.dispatched_at if took_s is None else took_s
        self._queue.finished(call, took)
        self._times.observe(took, now)
        self.run_s += took
        ahead = self.read_ahead
        if ahead is not None:
            ahead.ended(took_s)
            instance.dispatched_at = now
        if instance.calls:
            return
        if instance.state is InstanceState.BUSY:
            instance.become(InstanceState.IDLE)
            instance.idle_since = now

    def doubt(self, call: CallId) -> None:
        """A running call was told to stop: its instance gets no more calls until it has."""
        instance = self._instances.get(self._where.get(call, 0))
        if instance is not None:
            instance.doubted.add(call)

    def sandbox_ready(self, kind: StartKind, now: float) -> None:
        self._sandbox = SandboxState.READY
        self._sandbox_kind = kind
        self._sandbox_ready_at = now
        self._used_at = now
        self._failed_until = None

    def sandbox_failed(self, now: float, *, final: bool) -> None:
        """The sandbox could not be made; `final` when it is the function's own fault."""
        self._sandbox = SandboxState.ABSENT
        self._note_failure(now, final=final)

    def sandbox_died(self, now: float) -> None:
        """Sandbox and template are gone; instances are reported one by one besides."""
        if self._sandbox is SandboxState.READY:
            self._note_failure(now, final=False)
        self._sandbox = SandboxState.ABSENT

    def instance_ready(self, identity: int, now: float) -> None:
        instance = self._instances.get(identity)
        if instance is None or instance.state is not InstanceState.STARTING:
            return
        instance.become(InstanceState.IDLE)
        instance.ready_at = instance.idle_since = now
        self._start_s = _smooth(self._start_s, now - instance.asked_at)
        self._failures = 0

    def instance_failed(self, identity: int, now: float, *, final: bool) -> None:
        """A fork did not become an instance."""
        instance = self._instances.pop(identity, None)
        if instance is not None and (final or self._from_this_sandbox(instance)):
            self._note_failure(now, final=final)

    def instance_gone(self, identity: int, now: float) -> list[CallId]:
        """An instance ended, for whatever reason; the calls that it took along.

        Calls that it held ahead of their turn are queued again, before all others.
        """
        instance = self._instances.get(identity)
        if instance is None:
            return []
        if instance.state is InstanceState.STARTING:
            self.instance_failed(identity, now, final=False)
            return []
        del self._instances[identity]
        if self._sessions.calls:
            self._free_sessions(identity, now)
        if instance.state is InstanceState.IDLE and not instance.dispatched_at:
            # It ended by itself before it was of any use; the next one may do the same.
            self._useless += 1
            if self._useless >= _START_ATTEMPTS:
                self._failed_until = now + _back_off_s(self._useless)
        if instance.calls:
            self._used_at = now
        held = list(instance.calls)
        serial = self.read_ahead is not None
        lost = [call for call in held if not serial or call == held[0] or call in instance.doubted]
        for call in held:
            self._where.pop(call, None)
            if call not in lost:
                self._queue.requeue(call)
        for call in lost:
            self._queue.finished(call, now - instance.dispatched_at)
        return sorted(lost)

    def _free_sessions(self, identity: int, now: float) -> None:
        """What waited for an instance that is gone may go to any other."""
        for one in self._sessions.ended(identity):
            self._queue.push(
                one.id,
                now,
                deadline=one.deadline,
                slo_s=one.slo_s,
                priority=one.priority,
                tenant=one.tenant,
            )

    def stopping(self, identity: int) -> None:
        """The shell is ending this instance (timeout, cancellation): it gets no more calls."""
        instance = self._instances.get(identity)
        if instance is not None and instance.state is not InstanceState.STOPPING:
            instance.become(InstanceState.STOPPING)

    def replaceable(self, identity: int) -> bool:
        """Whether a fork could take the place of an instance, in which no session has its state."""
        instance = self._instances.get(identity)
        if instance is None or instance.has_sessions or instance.state is InstanceState.STOPPING:
            return False
        return self._sandbox is SandboxState.READY and self._failed_until is None

    @property
    def newest(self) -> int:
        """The highest number of any instance so far."""
        return self._next_instance - 1

    def sandbox_closed(self) -> None:
        """The shell gave the sandbox up, which had not failed: another may follow at once."""
        self._sandbox = SandboxState.ABSENT

    def spare(self) -> list[tuple[float, int]]:
        """Instances that nothing needs now: since when, longest first, and which."""
        if self.waiting:
            return []
        minimum = 0 if self._retired else self.min_instances
        idle = [i for i in self._instances.values() if i.state is InstanceState.IDLE]
        count = max(0, len(self._live()) - minimum)
        return sorted((i.idle_since, i.id) for i in idle)[:count]

    def retire(self) -> None:
        """Finish what is here and take nothing more on; everything is ended when idle."""
        self._retired = True

    def hold_template(self, *, hold: bool) -> None:
        """Have a template ready even without calls (a deploy that is being tried)."""
        self._hold_template = hold

    def idle_since(self) -> float | None:
        """Since when nothing here was used, or None while something is."""
        busy = self.waiting or self._where or self._sandbox is SandboxState.OPENING
        return None if busy else self._used_at

    def evict(self) -> list[Action]:
        """Give the memory of this pool back now; nothing may be queued or running."""
        return [*self._stop(list(self._instances.values())), *self._close_when_unused(force=True)]

    def decide(self, now: float) -> list[Action]:
        """What to do now.

        Cases, in order:

        1. calls that cannot be answered before their deadline are dropped;
        2. after a start that failed, calls are answered with the failure until a retry is due;
        3. free instances get calls, the most recently used first;
        4. missing instances are started, from the template or by opening the sandbox first;
        5. instances idle for too long are stopped, and a template unused for too long with them.
        """
        actions: list[Action] = []
        if self._displaced:
            actions += [Displace(call) for call in self._forgotten(self._displaced)]
            self._displaced = []
        queue = self._queue
        if self._sessions.calls:
            actions += [Expire(call) for call in self._forgotten(self._sessions.expired(now))]
            self._serve_sessions(now, actions)
        if queue.queued:
            self._expire(now, actions)
        if self._failed_until is not None:
            actions += self._failed(now)
        if queue.queued:
            self._dispatch(now, actions)
            if queue.queued:
                # There is no room any more, and what must wait may come too late for that.
                self._expire(now, actions)
        if queue.queued or self._hold_template or self.min_instances:
            actions += self._grow(now)
        if queue.queued:
            self._stuck = self._limits.batch == 1 and self._is_full
        else:
            if not self._sessions.calls:
                actions += self._shrink(now)
            self._stuck = False
        return actions

    def next_wakeup(self, now: float) -> float | None:
        """When `decide` has something to do without an event in between, or None."""
        deadline = self._queue.next_deadline()
        if self._stuck and deadline is None and self._failed_until is None:
            return self._sessions.next_deadline() if self._sessions.calls else None
        times = []
        idle = [i for i in self._instances.values() if i.state is InstanceState.IDLE]
        if self._sessions.calls and (due := self._sessions.next_deadline()) is not None:
            times.append(due)
        arrived = self._queue.oldest_arrival()
        if arrived is not None:
            if deadline is not None:
                sooner = self._queue.next_deadline(exec_s=self._sure_s(now))
                times.append(deadline if sooner is None else sooner)
            if idle and self._limits.batch > 1:
                times.append(arrived + self._limits.batch_wait_s)
            if self._start_s is not None and now - arrived < self._start_s and not self._is_full:
                times.append(arrived + self._start_s)
        elif idle and not self._sessions.calls and len(self._live()) > self.min_instances:
            times.append(min(i.idle_since for i in idle) + self.keep_alive.idle_s())
        if self._failed_until is not None and (arrived is not None or self._wants_any()):
            times.append(self._failed_until)
        if self._unused_template():
            times.append(self._used_at + self._limits.template_keep_alive_s)
        return min(times) if times else None

    def _expire(self, now: float, actions: list[Action]) -> None:
        """Drop what cannot be answered in time any more; nobody is served by running it."""
        if self._queue.next_deadline() is not None:
            late = self._queue.expired(now, exec_s=self._sure_s(now))
            self._forgotten([one.call for one in late])
            actions += [Expire(one.call, one.left_s) for one in late]

    def _forgotten(self, calls: list[CallId]) -> list[CallId]:
        """The calls, which will not run: to what sessions they belonged is of no use any more."""
        if self._session_of:
            for call in calls:
                self._session_of.pop(call, None)
        return calls

    def _sure_s(self, now: float) -> float | None:
        """What nearly every call takes, where that is known, and where calls must wait at all."""
        there = (InstanceState.IDLE, InstanceState.BUSY)
        if self._limits.batch > 1 or all(i.state not in there for i in self._instances.values()):
            return None
        room = sum(map(self._has_room, self._instances.values()))
        return self._times.within_s(now) if self._queue.queued > room else None

    def _failed(self, now: float) -> list[Action]:
        if self._failed_until is None:
            return []
        if now >= self._failed_until:
            self._failed_until = None
            return []
        if any(i.state is not InstanceState.STARTING for i in self._instances.values()):
            return []
        return [Fail(call) for call in self._forgotten(self._queue.clear())]

    def _note_failure(self, now: float, *, final: bool) -> None:
        self._failures += 1
        if final or self._failures >= _START_ATTEMPTS:
            self._failed_until = now + _back_off_s(self._failures)

    def _from_this_sandbox(self, instance: _Instance) -> bool:
        """Whether its failure is news: a sandbox that died has been counted with all its forks."""
        ready = self._sandbox is SandboxState.READY
        return ready and instance.asked_at >= self._sandbox_ready_at

    def _dispatch(self, now: float, actions: list[Action]) -> None:
        queue = self._queue
        while queue.queued:
            instance = self._free_instance()
            if instance is None or self._batch_may_fill(now):
                return
            oldest = queue.oldest_arrival()
            calls = queue.pop_up_to(self._room(instance), now)
            if oldest is None or oldest >= instance.ready_at:
                kinds = (StartKind.WARM,) * len(calls)
            else:
                kinds = tuple(self._kind(call, instance) for call in calls)
            for call in calls:
                self._where[call] = instance.id
                instance.calls[call] = None
            if instance.state is InstanceState.IDLE:
                instance.become(InstanceState.BUSY)
                instance.dispatched_at = now
            elif self.read_ahead is None:
                instance.dispatched_at = now
            if self._session_of:
                self._note_sessions(calls, instance.id)
            actions.append(Dispatch(instance.id, tuple(calls), kinds))

    def _room(self, instance: _Instance) -> int:
        """How many calls to send it now: at least one, as what is sent ahead exceeds the places."""
        held, places = len(instance.calls), self._limits.per_instance
        if self.read_ahead is not None and len(self._instances) == 1:
            # There is nobody to share them with.
            places = max(places, self.read_ahead.depth + 1)
        return max(1, places - held)

    def _note_sessions(self, calls: list[CallId], instance: int) -> None:
        for call in calls:
            session = self._session_of.pop(call, None)
            if session is not None:
                self._sessions.served(session, instance)
                self._instances[instance].has_sessions = True

    def _serve_sessions(self, now: float, actions: list[Action]) -> None:
        """Calls that wait for one instance go before all others there."""
        for identity in self._sessions.waited_for():
            instance = self._instances[identity]
            while self._has_room(instance) and (one := self._sessions.next(identity)) is not None:
                self._where[one.id] = identity
                instance.calls[one.id] = None
                if instance.state is InstanceState.IDLE:
                    instance.become(InstanceState.BUSY)
                instance.dispatched_at = now
                self._note_sessions([one.id], identity)
                kind = StartKind.WARM if one.arrived >= instance.ready_at else StartKind.FORK
                actions.append(Dispatch(identity, (one.id,), (kind,)))

    def _kind(self, call: CallId, instance: _Instance) -> StartKind:
        arrived = self._queue.arrival(call)
        if arrived is None or arrived >= instance.ready_at:
            return StartKind.WARM
        if arrived < self._sandbox_ready_at:
            return self._sandbox_kind
        return StartKind.FORK

    def _batch_may_fill(self, now: float) -> bool:
        if self._limits.batch == 1 or self._queue.queued >= self._limits.batch:
            return False
        arrived = self._queue.oldest_arrival()
        return arrived is not None and now < arrived + self._limits.batch_wait_s

    def _free_instance(self) -> _Instance | None:
        """The most recently used instance with room: the others may then grow old and end.

        Without any, the one that holds the fewest calls ahead of their turn, if it may hold more.
        """
        best: _Instance | None = None
        for one in self._instances.values():
            if self._has_room(one) and (best is None or _recency(one) > _recency(best)):
                best = one
        if best is None and self.read_ahead is not None and self.read_ahead.depth:
            return self._least_ahead(self.read_ahead.depth)
        return best

    def _least_ahead(self, depth: int) -> _Instance | None:
        best: _Instance | None = None
        fewest = depth + 1
        for one in self._instances.values():
            if one.state is InstanceState.BUSY and len(one.calls) < fewest and not one.doubted:
                best, fewest = one, len(one.calls)
        return best

    def _has_room(self, instance: _Instance) -> bool:
        if instance.state is InstanceState.IDLE:
            return True
        if instance.doubted:
            return False
        shares = self._limits.batch == 1 and instance.state is InstanceState.BUSY
        return shares and len(instance.calls) < self._limits.concurrency

    def _free_places(self) -> int:
        """Calls that can be taken on at once, with the instances there may be."""
        live = self._live()
        possible = max(0, self._limits.max_instances - len(live))
        taken = sum(self._places_taken(instance) for instance in live)
        return (len(live) + possible) * self._limits.per_instance - taken

    def _expected_wait_s(self) -> float:
        exec_s = self._times.mean_s
        if exec_s is None:
            return 1.0
        places = self._limits.max_instances * self._limits.per_instance
        return max(0.1, self._queue.queued * exec_s / places)

    def _wants_any(self) -> bool:
        return not self._retired and (self.min_instances > 0 or self._hold_template)

    def _grow(self, now: float) -> list[Action]:
        if self._failed_until is not None and now < self._failed_until:
            return []
        if self._is_full:
            return []
        missing = self._missing(now)
        if missing <= 0 and not self._hold_template:
            return []
        if self._sandbox is SandboxState.ABSENT:
            self._sandbox = SandboxState.OPENING
            return [OpenSandbox()]
        if self._sandbox is SandboxState.OPENING:
            return []
        forks: list[Action] = []
        for _ in range(missing):
            instance = _Instance(self._next_instance, InstanceState.STARTING, asked_at=now)
            self._next_instance += 1
            self._instances[instance.id] = instance
            forks.append(Fork(instance.id))
        return forks

    @property
    def _is_full(self) -> bool:
        """Whether there are all the instances there may be: a queue then waits for one of them."""
        full = len(self._instances) >= self._most
        return full and self._sandbox is SandboxState.READY

    @property
    def _most(self) -> int:
        """Instances that there may be."""
        most = self._limits.max_instances
        return most if self.at_once is None else max(self.min_instances, min(most, self.at_once))

    @property
    def exec_cv2(self) -> float | None:
        """Squared coefficient of variation of run times, once it is known."""
        return self._times.cv2

    def _live(self) -> list[_Instance]:
        return [i for i in self._instances.values() if i.state is not InstanceState.STOPPING]

    def _waited_s(self, now: float) -> float:
        """How long the first call of the queue has waited."""
        arrived = self._queue.oldest_arrival()
        return 0.0 if arrived is None else now - arrived

    def _missing(self, now: float) -> int:
        live = self._live()
        minimum = 0 if self._retired else self.min_instances
        scaling = ConcurrencyScaling(minimum=minimum, maximum=self._most)
        running = sum(self._places_taken(instance) for instance in live)
        queued = self._queue.queued
        if queued and self.read_ahead is not None:
            # What is held ahead shows how much too few there are, though it stays where it is.
            queued += sum(len(i.calls) for i in live) - running
        demand = Demand(
            queued=queued,
            running=running,
            live=len(live),
            per_instance=self._limits.per_instance,
            waited_s=self._waited_s(now),
            exec_s=self._times.mean_s,
            start_s=self._start_s,
        )
        missing = scaling.target(demand) - len(live)
        if not self.may_grow and self._instances:
            return 0
        # Instances that are ending still hold memory: they count against the maximum.
        return min(missing, self._most - len(self._instances))

    def _places_taken(self, instance: _Instance) -> int:
        """A batch under way takes nothing more on, however small it is, nor does a doubted one."""
        if instance.doubted or (self._limits.batch > 1 and instance.calls):
            return self._limits.per_instance
        return min(len(instance.calls), self._limits.per_instance)

    def _shrink(self, now: float) -> list[Action]:
        idle = [i for i in self._instances.values() if i.state is InstanceState.IDLE]
        actions: list[Action] = []
        if idle:
            minimum = 0 if self._retired else self.min_instances
            spare = len(self._live()) - minimum
            kept_s = 0.0 if self._retired else self.keep_alive.idle_s()
            old = sorted(
                # As `next_wakeup` has it: by any other sum the alarm may come a rounding too soon.
                (i for i in idle if i.idle_since + kept_s <= now),
                key=lambda i: i.idle_since,
            )
            actions = self._stop(old[: max(0, spare)])
        unused = self._used_at + self._limits.template_keep_alive_s <= now
        return actions + self._close_when_unused(force=unused or self._retired)

    def _stop(self, instances: list[_Instance]) -> list[Action]:
        actions: list[Action] = []
        for instance in instances:
            if instance.state is InstanceState.IDLE:
                instance.become(InstanceState.STOPPING)
                actions.append(Stop(instance.id))
        return actions

    def _unused_template(self) -> bool:
        return (
            self._sandbox is SandboxState.READY
            and not self._hold_template
            and not self.waiting
            and all(i.state is InstanceState.STOPPING for i in self._instances.values())
        )

    def _close_when_unused(self, *, force: bool) -> list[Action]:
        if force and self._unused_template():
            self._sandbox = SandboxState.ABSENT
            return [CloseSandbox()]
        return []


def _recency(instance: _Instance) -> tuple[bool, float]:
    return len(instance.calls) > 0, instance.idle_since


def _back_off_s(failures: int) -> float:
    return min(60.0, 0.5 * 2.0 ** min(failures, 8))


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
