"""A simulated node: its memory over time, and its processors, shared by what computes on them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from faasd.policies.preloading.ledger import Ledger
from faasd.policies.preloading.levels import Stage

LOAD_WEIGHT = 0.01
"""Of a load beside a call on a processor that both want: cpu.weight 1 against 100."""
ROUNDING_MB = 1e-6


@dataclass(frozen=True, slots=True)
class Node:
    """What there is of it. `starts_at_once` bounds the starts for requests; loads are the policy's."""

    memory_mb: float
    cores: float = 4.0
    starts_at_once: int = 4


class Cores:
    """Processors that calls and starts share evenly, each on at most one. Loads get what they leave.

    Keeps the work that each of them would have got since the beginning: one is done when that has
    grown by its own. `ends` of all nodes is one list, so that the next event is its minimum.
    """

    __slots__ = (
        "_calls",
        "_cores",
        "_ends",
        "_first_is_load",
        "_load_rate",
        "_load_work",
        "_loads",
        "_place",
        "_rate",
        "_since",
        "_work",
    )

    def __init__(self, cores: float, ends: list[float], place: int) -> None:
        self._cores = cores
        self._ends = ends
        self._place = place
        self._calls: list[tuple[float, int]] = []
        self._loads: list[tuple[float, int]] = []
        self._work = self._load_work = 0.0
        self._rate = self._load_rate = 1.0
        self._since = 0.0
        self._first_is_load = False

    def __repr__(self) -> str:
        return f"<Cores {self._cores:g}, {len(self._calls)} at work, {len(self._loads)} loads>"

    def add(self, now: float, work_s: float, item: int) -> None:
        """A call, or a step of a start, begins to compute."""
        self._advance(now)
        heapq.heappush(self._calls, (self._work + work_s, item))
        self._plan(now)

    def add_load(self, now: float, work_s: float, item: int) -> None:
        self._advance(now)
        heapq.heappush(self._loads, (self._load_work + work_s, item))
        self._plan(now)

    def pop(self, now: float) -> int:
        """What is done at the time that stands in `ends`."""
        self._advance(now)
        if self._first_is_load:
            self._load_work, item = heapq.heappop(self._loads)
        else:
            self._work, item = heapq.heappop(self._calls)
        self._plan(now)
        return item

    def take(self, now: float, item: int, *, load: bool) -> float:
        """Have something compute no more; the work that it has left."""
        self._advance(now)
        heap, work_s = (self._loads, self._load_work) if load else (self._calls, self._work)
        at = next(place for place, (_, one) in enumerate(heap) if one == item)
        left_s = max(0.0, heap.pop(at)[0] - work_s)
        heapq.heapify(heap)
        self._plan(now)
        return left_s

    def _advance(self, now: float) -> None:
        span_s = now - self._since
        self._work += span_s * self._rate
        if self._loads:
            self._load_work += span_s * self._load_rate
        self._since = now

    def _plan(self, now: float) -> None:
        calls = self._calls
        running, cores = len(calls), self._cores
        if self._loads:
            self._plan_with_loads(now)
        elif running:
            rate = self._rate = 1.0 if running <= cores else cores / running
            self._first_is_load = False
            left_s = calls[0][0] - self._work
            self._ends[self._place] = now + left_s / rate if left_s > 0.0 else now
        else:
            self._ends[self._place] = math.inf

    def _plan_with_loads(self, now: float) -> None:
        running, loads, cores = len(self._calls), len(self._loads), self._cores
        least = cores * LOAD_WEIGHT * loads / (running + LOAD_WEIGHT * loads)
        for_loads = min(float(loads), max(cores - running, least))
        self._load_rate = for_loads / loads
        load_at = now + max(0.0, self._loads[0][0] - self._load_work) / self._load_rate
        call_at = math.inf
        if running:
            self._rate = min(1.0, (cores - for_loads) / running)
            call_at = now + max(0.0, self._calls[0][0] - self._work) / self._rate
        self._first_is_load = load_at < call_at
        self._ends[self._place] = min(load_at, call_at)


class Memory:
    """What is held on all nodes, over time. No node ever holds more than it has."""

    def __init__(self, nodes: Sequence[Node], bin_s: float) -> None:
        self.ledger = Ledger()
        for place, node in enumerate(nodes):
            self.ledger.open(place, node.memory_mb)
        self.bin_s = bin_s
        self.bins_mb_s: list[float] = []
        self.mb_s = 0.0
        self.used_mb = 0.0
        self.peak_mb = 0.0
        self.least_free_mb = min(node.memory_mb for node in nodes)
        self._since = 0.0

    def hold(self, node: int, stage: Stage, now: float) -> None:
        self.change(node, now, stage, None)

    def release(self, node: int, stage: Stage, now: float) -> None:
        self.change(node, now, None, stage)

    def change(self, node: int, now: float, holds: Stage | None, releases: Stage | None) -> None:
        self.pass_to(now)
        ledger = self.ledger
        before_mb = ledger.used_mb(node)
        # What both share is not let go of in between.
        if holds is not None:
            ledger.hold(node, holds)
        if releases is not None:
            ledger.release(node, releases)
        self.used_mb += ledger.used_mb(node) - before_mb
        self.peak_mb = max(self.peak_mb, self.used_mb)
        self.least_free_mb = min(self.least_free_mb, ledger.free_mb(node))

    def pass_to(self, now: float) -> None:
        """Count what was held until now."""
        at, self._since = self._since, now
        if now <= at:
            return
        used_mb, width, bins = self.used_mb, self.bin_s, self.bins_mb_s
        self.mb_s += used_mb * (now - at)
        for place in range(int(at / width), int(now / width) + 1):
            while len(bins) <= place:
                bins.append(0.0)
            until = min(now, (place + 1) * width)
            bins[place] += used_mb * max(0.0, until - max(at, place * width))

    def missing_mb(self, node: int, *stages: Stage) -> float:
        """What is missing to hold these as well: nothing where it is zero or less."""
        adds_mb = sum(self.ledger.adds_mb(node, one) for one in stages)
        return adds_mb - self.ledger.free_mb(node) - ROUNDING_MB
