"""A call as the queue knows it, and heaps of waiting calls."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """What decides with whom a call waits. Calls that share it all wait in order of arrival."""

    priority: int
    tenant: str
    slo_s: float | None


@dataclass(slots=True, eq=False)
class Call:
    """A queued call. Its number is the order of arrival, unique, and kept when it comes back."""

    id: int
    number: int
    arrived: float
    deadline: float | None
    kind: Kind
    slo_s: float
    waiting: bool = True

    def __lt__(self, other: Call) -> bool:
        """Asked of two with one number: a call that came back, and the garbage of its first stay."""
        return self.waiting

    @property
    def due(self) -> float:
        """Its deadline, or when its SLO is spent. Calls of one SLO without deadline are FIFO."""
        return self.arrived + self.slo_s if self.deadline is None else self.deadline


class CallHeap:
    """Calls by a key, the smallest first, equals by arrival.

    A call that no longer waits is garbage: it is dropped when it comes to the top, and the owner
    calls `tidy` before there is more of it than of waiting calls.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Call]] = []

    def __len__(self) -> int:
        """Waiting calls and garbage."""
        return len(self._entries)

    def push(self, key: float, call: Call) -> None:
        heapq.heappush(self._entries, (key, call.number, call))

    def first(self) -> Call | None:
        entries = self._entries
        while entries:
            call = entries[0][2]
            if call.waiting:
                return call
            heapq.heappop(entries)
        return None

    def tidy(self) -> None:
        self._entries = [entry for entry in self._entries if entry[2].waiting]
        heapq.heapify(self._entries)
