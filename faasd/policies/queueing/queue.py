"""The queue of one function revision on one worker. Pure: told of calls, asked for the next.

Order: the highest priority, with a turn for the others; among tenants the one that used least for
its weight; among SLO classes the one whose head has waited the largest part of its SLO; then the
earliest deadline, then the earliest arrival.

Invariants: a call is queued, or handed out, or gone; memory follows the calls queued and handed
out. The queue is a plain FIFO while that is the order anyway: all calls are of one kind, and either
none has a deadline or none has an earlier one than the call before it. The structures of
ClassedCalls exist from the first call that differs until the queue is empty again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from faasd.policies.queueing.call import Call, Kind
from faasd.policies.queueing.classes import ClassedCalls
from faasd.policies.queueing.places import Admission, Admit, Refuse
from faasd.policies.queueing.priorities import HIGHEST, LOWEST
from faasd.policies.queueing.tenants import SMOOTHING

LEAST_WEIGHT = 1e-3

_Handed = tuple[int, float, float | None, Kind]


@dataclass(frozen=True, slots=True)
class Late:
    """A call that was dropped, with the seconds to its deadline; none are left once it passed."""

    call: int
    left_s: float


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    queued: int
    handed_out: int
    priorities: int
    tenants: int
    slo_classes: int
    plain: bool


class CallQueue:
    """Not thread-safe; owned by the event loop of the worker. `now` must never go back.

    Operations take O(1) while the queue is a plain FIFO and O(log n) amortised after that.

    `weights` says what a tenant's share is relative to others, 1 unless it is there, and is read
    when a tenant comes to have calls here. Ids are the caller's, and unique while a call lives.
    """

    __slots__ = (
        "_classes", "_default_slo_s", "_exec_s", "_kind", "_last_deadline", "_number", "_out",
        "_plain", "_turns", "_weights", "queued",
    )  # fmt: skip

    def __init__(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        default_slo_s: float = 1.0,
        turns: int = 16,
    ) -> None:
        """`turns`: one call in so many comes from a lower priority than the highest that waits."""
        if turns < 2:
            raise ValueError(f"turns = {turns} would leave nothing to the highest priority")
        self._weights = {} if weights is None else weights
        self._default_slo_s = _checked_slo(default_slo_s)
        self._turns = turns
        self._kind = Kind(0, "", None)
        self._plain: OrderedDict[int, tuple[float, float | None]] = OrderedDict()
        self._last_deadline: float | None = None
        self._classes: ClassedCalls | None = None
        self._out: dict[int, _Handed] = {}
        self._number = 0
        self._exec_s: float | None = None
        self.queued = 0
        """Calls queued; those handed out are not counted."""

    def __repr__(self) -> str:
        s = self.statistics()
        order = "FIFO" if s.plain else f"{s.priorities} priorities, {s.slo_classes} SLO classes"
        return (
            f"<CallQueue {s.queued} queued of {s.tenants} tenants, {s.handed_out} handed out, "
            f"{order}>"
        )

    def __len__(self) -> int:
        return self.queued

    def push(
        self,
        call: int,
        now: float,
        *,
        deadline: float | None = None,
        slo_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> None:
        """Queue a call. `deadline` is absolute; a higher `priority` goes first, from -10 to 10."""
        if self._classes is None:
            last = self._last_deadline
            in_order = deadline is last or (deadline and last and deadline >= last)
            if in_order and (priority, tenant, slo_s) == self._kind:
                self._plain[call] = (now, deadline)
                self._last_deadline = deadline
                self.queued += 1
                return
        self._push_other(call, now, deadline, _checked(Kind(priority, tenant, slo_s)))

    def pop(self, now: float) -> int | None:
        """Hand out the next call, which `finished` or `requeue` must follow; None when empty."""
        if self._classes is not None:
            return self._pop_classed(now)
        if not self._plain:
            return None
        call, (arrived, deadline) = self._plain.popitem(last=False)
        self.queued -= 1
        self._number += 1
        self._out[call] = (self._number, arrived, deadline, self._kind)
        return call

    def pop_up_to(self, most: int, now: float) -> list[int]:
        """Hand out so many calls, or all there are."""
        calls: list[int] = []
        while len(calls) < most and (call := self.pop(now)) is not None:
            calls.append(call)
        return calls

    def finished(self, call: int, exec_s: float) -> None:
        """A call that was handed out has ended, however; its tenant is charged what it used."""
        handed = self._out.pop(call, None)
        if handed is None:
            return
        before = self._exec_s
        self._exec_s = exec_s if before is None else before + SMOOTHING * (exec_s - before)
        if self._classes is not None:
            self._classes.charge(call, handed[3], exec_s)

    def requeue(self, call: int) -> None:
        """A call that was handed out did not start: it is where it was, and costs nothing."""
        handed = self._out.pop(call, None)
        if handed is not None:
            classes = self._classes or self._classify()
            classes.take_back(self._call(call, handed))
            self.queued += 1

    def remove(self, call: int) -> bool:
        """Forget a queued call. False when it is not queued (any more)."""
        if self._classes is None:
            removed = self._plain.pop(call, None) is not None
        else:
            removed = self._classes.remove(call)
            self._simplify()
        self.queued -= removed
        return removed

    def clear(self) -> list[int]:
        """Forget all queued calls; which they were, in order of arrival."""
        calls = list(self._plain)
        while self._classes is not None and (oldest := self._classes.oldest()) is not None:
            calls.append(oldest.id)
            self._classes.remove(oldest.id)
        self._plain.clear()
        self._simplify()
        self.queued = 0
        return calls

    def expired(self, now: float, *, exec_s: float | None = None) -> list[Late]:
        """Drop the calls whose deadline passed, and those that cannot meet it any more.

        These are the ones that would not end before it if they started now and took `exec_s`: to
        be given only when it is known well (ServiceTimes.within_s).
        """
        late: list[Late] = []
        while True:
            call, deadline = self._most_urgent()
            if deadline is None or deadline - (exec_s or 0.0) > now:
                return late
            self.remove(call)
            late.append(Late(call, max(0.0, deadline - now)))

    def next_deadline(self, *, exec_s: float | None = None) -> float | None:
        """When `expired` with this `exec_s` will have something to drop, as things stand."""
        _, deadline = self._most_urgent()
        return None if deadline is None else deadline - (exec_s or 0.0)

    def oldest_arrival(self) -> float | None:
        """When the call that is queued for longest arrived."""
        if self._classes is not None:
            oldest = self._classes.oldest()
            return oldest.arrived if oldest else None
        return next(iter(self._plain.values()))[0] if self._plain else None

    def arrival(self, call: int) -> float | None:
        """When a call that is queued or handed out arrived."""
        if (handed := self._out.get(call)) is not None:
            return handed[1]
        if self._classes is not None:
            queued = self._classes.get(call)
            return queued.arrived if queued else None
        return self._plain[call][0] if call in self._plain else None

    def admit(self, tenant: str = "", priority: int = 0, *, places: int) -> Admission:
        """Whether one more call may be queued where at most `places` are. Changes nothing.

        In a full queue a tenant has its weighted share of the places, at least one. Below it, it
        gets a place from the tenant that holds most for its weight: that of its newest call among
        those of its lowest priority. Otherwise it may only replace a call of its own by one of
        higher priority. What is displaced the caller removes and answers.
        """
        if len(self) < places:
            return Admit()
        kind = _checked(Kind(priority, tenant, None))
        if self._classes is None and (
            not self._plain or (tenant == self._kind.tenant and priority <= self._kind.priority)
        ):
            return Refuse(queued=len(self._plain), share=places)
        classes = self._classes or self._classify()
        return classes.admit(kind, places)

    def statistics(self) -> QueueStatistics:
        classes, some = self._classes, int(bool(self._plain))
        return QueueStatistics(
            queued=len(self),
            handed_out=len(self._out),
            priorities=some if classes is None else classes.priorities(),
            tenants=some if classes is None else classes.tenants(),
            slo_classes=some if classes is None else classes.slo_classes(),
            plain=classes is None,
        )

    def _push_other(self, call: int, now: float, deadline: float | None, kind: Kind) -> None:
        if deadline is not None and math.isnan(deadline):
            raise ValueError("a deadline that is no number has no place in any order")
        self.queued += 1
        if self._classes is None and not self._plain:
            self._kind = kind
            self._last_deadline = deadline
            self._plain[call] = (now, deadline)
            return
        classes = self._classes or self._classify()
        self._number += 1
        classes.add(self._call(call, (self._number, now, deadline, kind)))

    def _pop_classed(self, now: float) -> int | None:
        if self._classes is None:
            return None
        call = self._classes.hand_out(now, self._exec_s or 0.0)
        if call is None:
            return None
        self.queued -= 1
        self._out[call.id] = (call.number, call.arrived, call.deadline, call.kind)
        self._simplify()
        return call.id

    def _most_urgent(self) -> tuple[int, float | None]:
        """The queued call of the earliest deadline; no deadline where none has one."""
        if self._classes is not None:
            urgent = self._classes.most_urgent()
            return (urgent.id, urgent.deadline) if urgent else (0, None)
        if not self._plain:
            return 0, None
        call, (_, deadline) = next(iter(self._plain.items()))
        return call, deadline

    def _call(self, call: int, handed: _Handed) -> Call:
        slo_s = handed[3].slo_s
        return Call(call, *handed, self._default_slo_s if slo_s is None else slo_s)

    def _classify(self) -> ClassedCalls:
        """From a FIFO to classes. What was handed out before is charged when it has finished."""
        classes = self._classes = ClassedCalls(self._weight, turns=self._turns)
        for call, (arrived, deadline) in self._plain.items():
            self._number += 1
            classes.add(self._call(call, (self._number, arrived, deadline, self._kind)))
        if self._plain and self._out:
            classes.note_served(self._kind)
        self._plain.clear()
        return classes

    def _simplify(self) -> None:
        """An empty queue owes nobody anything: shares begin anew with the next call."""
        if self._classes is not None and not self._classes:
            self._classes = None

    def _weight(self, tenant: str) -> float:
        return max(LEAST_WEIGHT, self._weights.get(tenant, 1.0))


def _checked(kind: Kind) -> Kind:
    if not LOWEST <= kind.priority <= HIGHEST:
        raise ValueError(f"priority = {kind.priority} is not within {LOWEST} and {HIGHEST}")
    if kind.slo_s is not None:
        _checked_slo(kind.slo_s)
    return kind


def _checked_slo(slo_s: float) -> float:
    if not 0 < slo_s < math.inf:
        raise ValueError(f"an SLO of {slo_s} s is no time to wait")
    return slo_s
