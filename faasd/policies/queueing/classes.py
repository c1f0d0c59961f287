"""The waiting calls of a queue once they differ: every order among them, kept in step."""

from __future__ import annotations

from collections.abc import Callable

from faasd.policies.queueing.call import Call, CallHeap, Kind
from faasd.policies.queueing.places import Admission, Displace, Places, Refuse
from faasd.policies.queueing.priorities import Priorities

_SPARE = 64


class ClassedCalls:
    """Calls leave the heaps lazily: all are tidied when more have left than wait."""

    def __init__(self, weight_of: Callable[[str], float], *, turns: int) -> None:
        self._calls: dict[int, Call] = {}
        self._priorities = Priorities(weight_of, turns=turns)
        self._places = Places(weight_of)
        self._arrivals = CallHeap()
        self._deadlines = CallHeap()
        self._gone = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        self._calls[call.id] = call
        self._priorities.add(call)
        self._places.take(call.kind.tenant)
        self._arrivals.push(call.number, call)
        if call.deadline is not None:
            self._deadlines.push(call.deadline, call)

    def note_served(self, kind: Kind) -> None:
        """Calls of this kind were handed out until now."""
        level = self._priorities.level(kind.priority)
        if level is not None:
            level.note_served(kind.tenant)

    def hand_out(self, now: float, mean_s: float) -> Call | None:
        level = self._priorities.take_turn()
        call = level.first(now) if level else None
        if level is None or call is None:
            return None
        self._leave(call)
        level.hand_out(call, mean_s)
        return call

    def take_back(self, call: Call) -> None:
        level = self._priorities.level(call.kind.priority)
        if level is not None:
            level.take_back(call.id)
        self.add(call)

    def charge(self, call: int, kind: Kind, exec_s: float) -> None:
        level = self._priorities.level(kind.priority)
        if level is not None:
            level.charge(call, kind.tenant, exec_s)

    def get(self, call: int) -> Call | None:
        return self._calls.get(call)

    def remove(self, call: int) -> bool:
        found = self._calls.get(call)
        if found is not None:
            self._leave(found)
        return found is not None

    def oldest(self) -> Call | None:
        return self._arrivals.first()

    def most_urgent(self) -> Call | None:
        """The call of the earliest deadline, if any has one."""
        return self._deadlines.first()

    def admit(self, kind: Kind, places: int) -> Admission:
        """Shares go before priorities, so that no tenant fills the queue by calling all urgent."""
        victim = self._places.victim(kind.tenant, places)
        call = self._priorities.newest(kind.tenant if victim is None else victim)
        # The tenant of calls that name none is the empty one.
        if call is not None and (victim is not None or call.kind.priority < kind.priority):
            return Displace(call.id)
        share = self._places.share(kind.tenant, places)
        return Refuse(queued=self._places.held(kind.tenant), share=int(share))

    def priorities(self) -> int:
        return len(self._priorities)

    def tenants(self) -> int:
        return len(self._places)

    def slo_classes(self) -> int:
        return self._priorities.slo_classes()

    def _leave(self, call: Call) -> None:
        del self._calls[call.id]
        call.waiting = False
        self._priorities.leave(call)
        self._places.give(call.kind.tenant)
        self._gone += 1
        if self._gone > len(self._calls) + _SPARE:
            self._tidy()

    def _tidy(self) -> None:
        self._gone = 0
        self._arrivals.tidy()
        self._deadlines.tidy()
        self._priorities.tidy()
