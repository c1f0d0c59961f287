"""The order among priorities: the highest first, with one turn in so many for the others."""

from __future__ import annotations

from collections.abc import Callable

from faasd.policies.queueing.call import Call
from faasd.policies.queueing.tenants import FairShare

LOWEST = -10
HIGHEST = 10


class Priorities:
    """Strict, except that every `turns`-th call handed out comes from a lower priority.

    That turn goes to the waiting priority that was not served for longest, so each of n that wait
    is served at least once in turns * (n - 1) calls. Counting turns, not seconds waited, keeps
    what high priority gets at (turns - 1) / turns of the calls however long the queue: were calls
    to rise with age, an overloaded queue would forget priorities just when they matter.
    """

    def __init__(self, weight_of: Callable[[str], float], *, turns: int) -> None:
        self._weight_of = weight_of
        self._turns = turns
        self._levels: dict[int, FairShare] = {}
        self._unserved_since: dict[int, int] = {}
        self._passed = 0
        self._moment = 0

    def __len__(self) -> int:
        return sum(level.waiting > 0 for level in self._levels.values())

    def add(self, call: Call) -> None:
        level = self._levels.get(call.kind.priority)
        if level is None:
            level = self._open(call.kind.priority)
        if not level.waiting:
            self._unserved_since[level.priority] = self._tick()
        level.add(call)

    def leave(self, call: Call) -> None:
        self._levels[call.kind.priority].leave(call)

    def take_turn(self) -> FairShare | None:
        """The priority to hand out a call of; counts as a turn."""
        waiting = [level for level in self._levels.values() if level.waiting]
        if not waiting:
            return None
        level = waiting[0]
        if len(waiting) == 1:
            self._passed = 0
        else:
            self._passed += 1
            if self._passed >= self._turns:
                self._passed = 0
                level = min(waiting[1:], key=lambda one: self._unserved_since[one.priority])
        self._unserved_since[level.priority] = self._tick()
        return level

    def level(self, priority: int) -> FairShare | None:
        return self._levels.get(priority)

    def newest(self, tenant: str) -> Call | None:
        """The newest waiting call of a tenant at the lowest priority of its calls."""
        for level in reversed(self._levels.values()):
            call = level.newest(tenant)
            if call is not None:
                return call
        return None

    def tidy(self) -> None:
        for level in self._levels.values():
            level.tidy()

    def slo_classes(self) -> int:
        return sum(level.slo_classes() for level in self._levels.values())

    def _open(self, priority: int) -> FairShare:
        levels = {**self._levels, priority: FairShare(priority, self._weight_of)}
        self._levels = dict(sorted(levels.items(), reverse=True))
        return self._levels[priority]

    def _tick(self) -> int:
        self._moment += 1
        return self._moment
