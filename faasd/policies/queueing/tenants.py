"""Fair shares of execution time among the tenants of one priority.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM'96). A flow is one tenant's calls; its virtual
time is the execution time it was charged per unit of weight, and the flow with the least goes
first. What a call will take is not known when it is handed out: the flow's mean is charged in
advance, and replaced by what was measured when the call has finished.

A flow that comes back from idleness starts at the virtual time of the level, so idleness earns no
credit; what it owes is remembered for as long as the queue does not run empty.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from faasd.policies.queueing.call import Call, CallHeap
from faasd.policies.queueing.slo import SloClasses

SMOOTHING = 0.2
_SPARE = 64

_Entry = tuple[float, int, int, "Flow"]


class Flow:
    """One tenant's calls of one priority, and what it was charged."""

    __slots__ = (
        "calls",
        "entry",
        "exec_s",
        "floor",
        "newest",
        "served",
        "tenant",
        "virtual",
        "waiting",
        "weight",
    )

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.calls = SloClasses()
        self.newest = CallHeap()
        self.waiting = 0
        self.virtual = 0.0
        self.floor = 0.0
        self.served = 0
        self.exec_s: float | None = None
        self.entry: _Entry | None = None


class FairShare:
    """The waiting calls of one priority, by tenant."""

    def __init__(self, priority: int, weight_of: Callable[[str], float]) -> None:
        self.priority = priority
        self.waiting = 0
        self._weight_of = weight_of
        self._flows: dict[str, Flow] = {}
        self._entries: list[_Entry] = []
        self._advances: dict[int, tuple[Flow, float]] = {}
        self._active = 0
        self._virtual = 0.0
        self._served = 0
        self._listed = 0

    def add(self, call: Call) -> None:
        flow = self._flows.get(call.kind.tenant)
        if flow is None:
            flow = self._open(call.kind.tenant)
        self.waiting += 1
        flow.waiting += 1
        flow.calls.add(call)
        flow.newest.push(-call.number, call)
        if flow.waiting == 1:
            self._join(flow)

    def leave(self, call: Call) -> None:
        """The call waits no longer, for whatever reason."""
        flow = self._flows[call.kind.tenant]
        self.waiting -= 1
        flow.waiting -= 1
        if not flow.waiting:
            flow.entry = None
            self._active -= 1

    def first(self, now: float) -> Call | None:
        """The call to run next: of the flow that was charged least."""
        entries = self._entries
        while entries:
            entry = entries[0]
            flow = entry[3]
            if flow.entry is entry:
                return flow.calls.first(now)
            heapq.heappop(entries)
        return None

    def newest(self, tenant: str) -> Call | None:
        flow = self._flows.get(tenant)
        return flow.newest.first() if flow else None

    def hand_out(self, call: Call, mean_s: float) -> None:
        """Charge a call in advance, by its flow's mean; `mean_s` while the flow has none."""
        flow = self._flows[call.kind.tenant]
        advance = (mean_s if flow.exec_s is None else flow.exec_s) / flow.weight
        self._virtual = max(self._virtual, flow.virtual)
        self._served += 1
        flow.served = self._served
        flow.virtual += advance
        self._advances[call.id] = (flow, advance)
        self._list(flow)

    def take_back(self, call: int) -> None:
        """A call that was handed out did not start: it costs nothing."""
        flow, advance = self._advances.pop(call, (None, 0.0))
        if flow is not None:
            flow.virtual = max(flow.floor, flow.virtual - advance)
            self._list(flow)

    def charge(self, call: int, tenant: str, exec_s: float) -> None:
        """A call that was handed out used so much."""
        paid_by, advance = self._advances.pop(call, (None, 0.0))
        flow = self._flows.get(tenant)
        if flow is None:
            return
        if flow is not paid_by:
            advance = 0.0
        flow.exec_s = smooth(flow.exec_s, exec_s)
        flow.virtual = max(flow.floor, flow.virtual + exec_s / flow.weight - advance)
        self._list(flow)

    def note_served(self, tenant: str) -> None:
        """The tenant was served until now: one that joins goes before it."""
        self._served += 1
        self._flows[tenant].served = self._served
        self._list(self._flows[tenant])

    def tidy(self) -> None:
        for flow in self._flows.values():
            flow.calls.tidy()
            flow.newest.tidy()

    def tenants(self) -> list[str]:
        return [flow.tenant for flow in self._flows.values() if flow.waiting]

    def slo_classes(self) -> int:
        return sum(len(flow.calls) for flow in self._flows.values())

    def _open(self, tenant: str) -> Flow:
        if len(self._flows) > 2 * self._active + _SPARE:
            self._forget()
        flow = self._flows[tenant] = Flow(tenant, self._weight_of(tenant))
        return flow

    def _forget(self) -> None:
        """Keep the idle flows that owe most, no more of them than half of what may be kept."""
        idle = [f for f in self._flows.values() if not f.waiting and f.virtual > self._virtual]
        idle.sort(key=lambda one: one.virtual, reverse=True)
        kept = [f for f in self._flows.values() if f.waiting] + idle[: _SPARE // 2]
        self._flows = {flow.tenant: flow for flow in kept}

    def _join(self, flow: Flow) -> None:
        self._active += 1
        flow.floor = self._virtual
        flow.virtual = max(flow.virtual, self._virtual)
        flow.served = 0
        self._list(flow)

    def _list(self, flow: Flow) -> None:
        """Equal flows: those not served since they joined, then the one served longest ago."""
        if not flow.waiting:
            return
        self._listed += 1
        flow.entry = (flow.virtual, flow.served, self._listed, flow)
        heapq.heappush(self._entries, flow.entry)
        if len(self._entries) > 2 * self._active + _SPARE:
            self._entries = [flow.entry for flow in self._flows.values() if flow.entry]
            heapq.heapify(self._entries)


def smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
