"""The order among the calls of one tenant at one priority: SLO classes, deadlines inside a class."""

from __future__ import annotations

import math

from faasd.policies.queueing.call import Call, CallHeap

MOST_CLASSES = 32


class SloClasses:
    """The class whose head has waited the largest part of its SLO first (RackSched, OSDI'20).

    The head of a class is its earliest deadline. Each SLO is a class of its own; past
    MOST_CLASSES of them, so that a choice stays cheap, the nearest class takes the call in.
    """

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: dict[float, CallHeap] = {}

    def __len__(self) -> int:
        return sum(heap.first() is not None for heap in self._classes.values())

    def add(self, call: Call) -> None:
        heap = self._classes.get(call.slo_s)
        if heap is None:
            heap = self._open(call.slo_s)
        heap.push(call.due, call)

    def first(self, now: float) -> Call | None:
        """The call to run next. Equal parts: the one that arrived first."""
        heads = [heap.first() for heap in self._classes.values()]
        if None in heads:
            self._drop_empty()
        waiting = [head for head in heads if head is not None]
        if len(waiting) <= 1:
            return waiting[0] if waiting else None
        return max(waiting, key=lambda one: ((now - one.arrived) / one.slo_s, -one.number))

    def tidy(self) -> None:
        for heap in self._classes.values():
            heap.tidy()
        self._drop_empty()

    def _open(self, slo_s: float) -> CallHeap:
        if len(self._classes) >= MOST_CLASSES:
            self._drop_empty()
        if len(self._classes) >= MOST_CLASSES:
            nearest = min(self._classes, key=lambda one: abs(math.log(one / slo_s)))
            return self._classes[nearest]
        heap = self._classes[slo_s] = CallHeap()
        return heap

    def _drop_empty(self) -> None:
        self._classes = {slo: heap for slo, heap in self._classes.items() if heap.first()}
