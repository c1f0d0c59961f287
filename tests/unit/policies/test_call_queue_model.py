"""Every order of events: the queue beside a list that is searched from end to end each time.

The model knows the rules and none of the structures: it holds waiting calls in one list and finds
the next by comparing all. Besides, each call that was pushed must have exactly one fate.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
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

from faasd.policies.queueing.places import Admission, Admit, Displace, Refuse
from faasd.policies.queueing.queue import CallQueue, Late
from faasd.policies.queueing.tenants import smooth

DEFAULT_SLO_S = 1.0
WEIGHTS = {"b": 2.0, "c": 0.5}


@dataclass(eq=False, slots=True)
class Waiting:
    id: int
    number: int
    arrived: float
    deadline: float | None
    slo_s: float | None
    priority: int
    tenant: str

    @property
    def kind(self) -> tuple[int, str, float | None]:
        return self.priority, self.tenant, self.slo_s

    @property
    def slo(self) -> float:
        return DEFAULT_SLO_S if self.slo_s is None else self.slo_s

    @property
    def due(self) -> tuple[float, int]:
        due = self.arrived + self.slo if self.deadline is None else self.deadline
        return due, self.number


@dataclass(slots=True)
class Account:
    """What a tenant was charged at one priority, and what orders it among equals."""

    weight: float
    virtual: float = 0.0
    floor: float = 0.0
    served: int = 0
    listed: int = 0
    exec_s: float | None = None


@dataclass(slots=True)
class Level:
    virtual: float = 0.0
    served: int = 0
    listed: int = 0
    unserved_since: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)
    advances: dict[int, tuple[Account, float]] = field(default_factory=dict)

    def list(self, account: Account) -> None:
        self.listed += 1
        account.listed = self.listed


class NaiveQueue:
    """The rules. `levels` is None while the order is that of arrival and shares do not matter."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.waiting: list[Waiting] = []
        self.out: dict[int, Waiting] = {}
        self.levels: dict[int, Level] | None = None
        self.last: Waiting | None = None
        self.number = 0
        self.passed = 0
        self.moment = 0
        self.exec_s: float | None = None

    def push(self, call: Waiting) -> None:
        if self.levels is None and self.waiting and not self.in_order(call):
            self.classify()
        self.last = call
        self.add(call)

    def in_order(self, call: Waiting) -> bool:
        assert self.last is not None
        if call.kind != self.last.kind:
            return False
        if call.deadline is None or self.last.deadline is None:
            return call.deadline is self.last.deadline
        return call.deadline >= self.last.deadline

    def classify(self) -> None:
        self.levels = {}
        self.passed = self.moment = 0
        fifo, self.waiting = sorted(self.waiting, key=lambda one: one.number), []
        for call in fifo:
            self.add(call)
        if fifo and self.out:
            level = self.levels[fifo[0].priority]
            account = level.accounts[fifo[0].tenant]
            level.served += 1
            account.served = level.served
            level.list(account)

    def add(self, call: Waiting) -> None:
        if self.levels is not None:
            level = self.levels.setdefault(call.priority, Level())
            if not self.at(call.priority):
                self.moment += 1
                level.unserved_since = self.moment
            account = level.accounts.setdefault(call.tenant, Account(WEIGHTS.get(call.tenant, 1.0)))
            if not self.of(call.priority, call.tenant):
                account.floor = level.virtual
                account.virtual = max(account.virtual, level.virtual)
                account.served = 0
                level.list(account)
        self.waiting.append(call)

    def at(self, priority: int) -> list[Waiting]:
        return [one for one in self.waiting if one.priority == priority]

    def of(self, priority: int, tenant: str) -> list[Waiting]:
        return [one for one in self.at(priority) if one.tenant == tenant]

    def pop(self, now: float) -> int | None:
        if not self.waiting:
            return None
        if self.levels is None:
            call = min(self.waiting, key=lambda one: one.number)
            self.waiting.remove(call)
        else:
            call = self.pop_classed(now, self.levels)
        self.out[call.id] = call
        self.leave()
        return call.id

    def pop_classed(self, now: float, levels: dict[int, Level]) -> Waiting:
        priority = self.turn(levels)
        level = levels[priority]
        tenants = {one.tenant for one in self.at(priority)}
        tenant = min(
            tenants,
            key=lambda one: (
                level.accounts[one].virtual,
                level.accounts[one].served,
                level.accounts[one].listed,
            ),
        )
        calls = self.of(priority, tenant)
        heads = [
            min((one for one in calls if one.slo == slo), key=lambda one: one.due)
            for slo in {one.slo for one in calls}
        ]
        call = max(heads, key=lambda one: ((now - one.arrived) / one.slo, -one.number))
        self.waiting.remove(call)
        self.advance(call, level)
        return call

    def turn(self, levels: dict[int, Level]) -> int:
        priorities = sorted({one.priority for one in self.waiting}, reverse=True)
        chosen = priorities[0]
        self.passed = self.passed + 1 if len(priorities) > 1 else 0
        if self.passed == self.turns:
            self.passed = 0
            chosen = min(priorities[1:], key=lambda one: levels[one].unserved_since)
        self.moment += 1
        levels[chosen].unserved_since = self.moment
        return chosen

    def advance(self, call: Waiting, level: Level) -> None:
        account = level.accounts[call.tenant]
        expected = account.exec_s if account.exec_s is not None else self.exec_s or 0.0
        level.virtual = max(level.virtual, account.virtual)
        level.served += 1
        account.served = level.served
        account.virtual += expected / account.weight
        level.advances[call.id] = (account, expected / account.weight)
        self.relist(call, level, account)

    def relist(self, call: Waiting, level: Level, account: Account) -> None:
        if self.of(call.priority, call.tenant):
            level.list(account)

    def finished(self, number: int, exec_s: float) -> None:
        call = self.out.pop(number)
        self.exec_s = smooth(self.exec_s, exec_s)
        level = (self.levels or {}).get(call.priority)
        account = level.accounts.get(call.tenant) if level else None
        if level is None or account is None:
            return
        _, advance = level.advances.pop(number, (account, 0.0))
        account.exec_s = smooth(account.exec_s, exec_s)
        virtual = account.virtual + exec_s / account.weight - advance
        account.virtual = max(account.floor, virtual)
        self.relist(call, level, account)

    def requeue(self, number: int) -> None:
        call = self.out.pop(number)
        if self.levels is None:
            self.classify()
        assert self.levels is not None
        level = self.levels.get(call.priority)
        if level is not None and number in level.advances:
            account, advance = level.advances.pop(number)
            account.virtual = max(account.floor, account.virtual - advance)
            self.relist(call, level, account)
        self.add(call)

    def remove(self, number: int) -> bool:
        found = [one for one in self.waiting if one.id == number]
        for call in found:
            self.waiting.remove(call)
        self.leave()
        return bool(found)

    def leave(self) -> None:
        if not self.waiting:
            self.levels = None

    def expired(self, now: float, exec_s: float | None) -> list[Late]:
        dated = [(c.deadline, c.number, c.id) for c in self.waiting if c.deadline is not None]
        late = sorted(one for one in dated if one[0] - (exec_s or 0.0) <= now)
        for _, _, call in late:
            self.remove(call)
        return [Late(call, max(0.0, deadline - now)) for deadline, _, call in late]

    def admit(self, tenant: str, priority: int, places: int) -> Admission:
        if len(self.waiting) < places:
            return Admit()
        held = Counter(one.tenant for one in self.waiting)
        everyone = sum(WEIGHTS.get(one, 1.0) for one in {*held, tenant})
        share = {
            one: min(places, max(1.0, places * WEIGHTS.get(one, 1.0) / everyone))
            for one in {*held, tenant}
        }
        greatest = min(
            (one for one in held if held[one] > 1),
            key=lambda one: (-held[one] / WEIGHTS.get(one, 1.0), one),
            default=None,
        )
        over = greatest is not None and held[greatest] > share[greatest] + 1e-9
        below = held[tenant] + 1 <= share[tenant] + 1e-9
        victims = [c for c in self.waiting if c.tenant == (greatest if below and over else tenant)]
        victim = min(victims, key=lambda one: (one.priority, -one.number), default=None)
        if victim and ((below and over) or victim.priority < priority):
            return Displace(victim.id)
        return Refuse(held[tenant], int(share[tenant] + 1e-9))


class Fate(enum.StrEnum):
    QUEUED = "queued"
    OUT = "handed out"
    FINISHED = "finished"
    REMOVED = "removed"
    EXPIRED = "expired"


LEGAL = {
    Fate.QUEUED: {Fate.OUT, Fate.REMOVED, Fate.EXPIRED},
    Fate.OUT: {Fate.QUEUED, Fate.FINISHED},
}

tenants = st.sampled_from(["a", "a", "b", "c", ""])
slos = st.sampled_from([None, None, 0.1, 1.0, 5.0])
priorities = st.sampled_from([0, 0, 0, 2, -1])
patiences = st.sampled_from([None, None, 0.05, 1.0, 3.0])


class QueueBesideItsModel(RuleBasedStateMachine):
    """Every rule does the same to both, and what they answer must be the same."""

    @initialize(turns=st.integers(2, 5))
    def begin(self, turns: int) -> None:
        self.queue = CallQueue(weights=WEIGHTS, default_slo_s=DEFAULT_SLO_S, turns=turns)
        self.model = NaiveQueue(turns)
        self.fates: dict[int, Fate] = {}
        self.now = 0.0

    def become(self, call: int, fate: Fate) -> None:
        assert fate in LEGAL[self.fates[call]]
        self.fates[call] = fate

    def of(self, fate: Fate) -> list[int]:
        return [call for call, one in self.fates.items() if one is fate]

    def push_one(
        self, patience_s: float | None, slo_s: float | None, priority: int, tenant: str
    ) -> None:
        call = len(self.fates)
        deadline = None if patience_s is None else self.now + patience_s
        self.fates[call] = Fate.QUEUED
        self.queue.push(
            call, self.now, deadline=deadline, slo_s=slo_s, priority=priority, tenant=tenant
        )
        self.model.push(Waiting(call, call, self.now, deadline, slo_s, priority, tenant))

    @rule(patience_s=patiences, slo_s=slos, priority=priorities, tenant=tenants)
    def push(
        self, patience_s: float | None, slo_s: float | None, priority: int, tenant: str
    ) -> None:
        self.push_one(patience_s, slo_s, priority, tenant)

    @rule(
        count=st.integers(2, 8),
        patience_s=patiences,
        slo_s=slos,
        priority=priorities,
        tenant=tenants,
    )
    def push_some_alike(
        self,
        count: int,
        patience_s: float | None,
        slo_s: float | None,
        priority: int,
        tenant: str,
    ) -> None:
        for _ in range(count):
            self.push_one(patience_s, slo_s, priority, tenant)
            self.now += 0.01

    @rule(count=st.sampled_from([1, 1, 2, 10]))
    def pop(self, count: int) -> None:
        for _ in range(count):
            expected = self.model.pop(self.now)
            assert self.queue.pop(self.now) == expected
            if expected is not None:
                self.become(expected, Fate.OUT)

    @precondition(lambda self: self.of(Fate.OUT))
    @rule(data=st.data(), exec_s=st.sampled_from([0.0, 0.1, 0.25, 1.0, 10.0]))
    def finish(self, data: st.DataObject, exec_s: float) -> None:
        call = data.draw(st.sampled_from(self.of(Fate.OUT)))
        self.model.finished(call, exec_s)
        self.queue.finished(call, exec_s)
        self.become(call, Fate.FINISHED)

    @precondition(lambda self: self.of(Fate.OUT))
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.of(Fate.OUT)))
        self.model.requeue(call)
        self.queue.requeue(call)
        self.become(call, Fate.QUEUED)

    @precondition(lambda self: self.fates)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.fates)))
        queued = self.fates[call] is Fate.QUEUED
        assert self.queue.remove(call) is self.model.remove(call) is queued
        if queued:
            self.become(call, Fate.REMOVED)

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(exec_s=st.sampled_from([None, None, 0.04, 0.5, 2.0]))
    def expire(self, exec_s: float | None) -> None:
        late = self.model.expired(self.now, exec_s)
        assert self.queue.expired(self.now, exec_s=exec_s) == late
        for one in late:
            self.become(one.call, Fate.EXPIRED)

    @rule(tenant=st.sampled_from("abcd"), priority=priorities, places=st.integers(0, 12))
    def ask_for_a_place(self, tenant: str, priority: int, places: int) -> None:
        answer = self.model.admit(tenant, priority, places)
        plain = self.model.levels is None
        assert self.queue.admit(tenant, priority, places=places) == answer
        if plain and not self.queue.statistics().plain:
            self.model.classify()
        if isinstance(answer, Displace):
            assert self.queue.remove(answer.call)
            assert self.model.remove(answer.call)
            self.become(answer.call, Fate.REMOVED)

    @rule(sure=st.sampled_from([False] * 9 + [True]))
    def clear(self, *, sure: bool) -> None:
        if sure:
            assert self.queue.clear() == self.of(Fate.QUEUED)
            for call in self.of(Fate.QUEUED):
                self.model.remove(call)
                self.become(call, Fate.REMOVED)

    @invariant()
    def it_counts_what_waits(self) -> None:
        waiting = self.model.waiting
        seen = self.queue.statistics()
        assert len(self.queue) == seen.queued == len(waiting) == len(self.of(Fate.QUEUED))
        assert seen.handed_out == len(self.of(Fate.OUT))
        assert seen.priorities == len({one.priority for one in waiting})
        assert seen.tenants == len({one.tenant for one in waiting})
        assert seen.slo_classes == len({(one.priority, one.tenant, one.slo) for one in waiting})
        assert seen.plain is (self.model.levels is None)

    @invariant()
    def it_knows_the_oldest_and_the_most_urgent(self) -> None:
        waiting = self.model.waiting
        deadlines = [one.deadline for one in waiting if one.deadline is not None]
        oldest = min((one.arrived for one in waiting), default=None)
        assert self.queue.oldest_arrival() == oldest
        assert self.queue.next_deadline() == min(deadlines, default=None)

    @invariant()
    def it_knows_when_each_arrived(self) -> None:
        for one in [*self.model.waiting, *self.model.out.values()]:
            assert self.queue.arrival(one.id) == one.arrived

    def teardown(self) -> None:
        """Whatever is left is handed out, in the model's order, and then all have had one fate."""
        if not hasattr(self, "queue"):
            return
        self.expire_everything_or_pop()
        assert not self.of(Fate.QUEUED)
        for call in self.of(Fate.OUT):
            self.queue.finished(call, 1.0)
        assert self.queue.statistics().handed_out == 0
        assert self.queue.pop(math.inf) is None

    def expire_everything_or_pop(self) -> None:
        while self.of(Fate.QUEUED):
            self.pop(1)


TestQueueBesideItsModel = QueueBesideItsModel.TestCase
TestQueueBesideItsModel.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, print_blob=True
)
