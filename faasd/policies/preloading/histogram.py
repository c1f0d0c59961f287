"""The hybrid histogram policy of "Serverless in the Wild" (ATC'20, section 4), per function.

A histogram of idle times in minutes, four hours wide, says when to load ahead and how long to keep.
Where most idle times lie beyond its range, they are forecast; where it shows no pattern, places are
kept for the whole range.

Idle times are from the end of a call to the next arrival, and none while another call still runs.
The forecast is an autoregression of first order, the smallest member of the paper's ARIMA family.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.keeping import Keeping
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level
from faasd.policies.preloading.loads import Bounds

BIN_S = 60.0
BINS = 240
RANGE_S = BIN_S * BINS


@dataclass(frozen=True, slots=True)
class Windows:
    """Load `prewarm_s` after the last call, unload `keep_s` later. At 0 nothing is unloaded before."""

    prewarm_s: float
    keep_s: float
    rule: str


class IdleTimes:
    """The idle times of one function, and the windows that follow from them."""

    HEAD = 0.05
    TAIL = 0.99
    MARGIN = 0.1
    FORECAST_MARGIN = 0.15
    REPRESENTATIVE_CV = 2.0
    OUT_OF_BOUNDS_SHARE = 0.5
    ENOUGH = 10
    ENOUGH_TO_FORECAST = 4

    def __init__(self) -> None:
        self.counts = [0] * BINS
        self.within = 0
        self.beyond = 0
        self._squares = 0
        self._recent: deque[float] = deque(maxlen=64)
        self._windows: Windows | None = None

    def observe(self, idle_s: float) -> None:
        place = int(max(0.0, idle_s) / BIN_S)
        if place < BINS:
            self._squares += 2 * self.counts[place] + 1
            self.counts[place] += 1
            self.within += 1
        else:
            self.beyond += 1
        self._recent.append(max(0.0, idle_s))
        self._windows = None

    @property
    def cv(self) -> float:
        """The coefficient of variation of the bins' counts: high where a few bins have most."""
        if not self.within:
            return 0.0
        mean = self.within / BINS
        return math.sqrt(max(0.0, self._squares / BINS - mean * mean)) / mean

    def windows(self) -> Windows:
        if self._windows is None:
            self._windows = self._decide()
        return self._windows

    def _decide(self) -> Windows:
        seen = self.within + self.beyond
        if self.beyond > self.OUT_OF_BOUNDS_SHARE * seen:
            if seen >= self.ENOUGH_TO_FORECAST:
                expected = forecast(list(self._recent))
                margin = self.FORECAST_MARGIN
                return Windows((1 - margin) * expected, 2 * margin * expected, "forecast")
            return Windows(0.0, RANGE_S, "too few idle times")
        if seen < self.ENOUGH:
            return Windows(0.0, RANGE_S, "too few idle times")
        if self.cv < self.REPRESENTATIVE_CV:
            return Windows(0.0, RANGE_S, "no pattern")
        prewarm_s = self._bin(self.HEAD) * BIN_S * (1 - self.MARGIN)
        until_s = (self._bin(self.TAIL) + 1) * BIN_S * (1 + self.MARGIN)
        return Windows(prewarm_s, until_s - prewarm_s, "histogram")

    def _bin(self, share: float) -> int:
        """The bin in which this share of the idle times within the range is reached."""
        wanted, count = share * self.within, 0
        for place, found in enumerate(self.counts):
            count += found
            if count >= wanted and count:
                return place
        return BINS - 1


def forecast(idle_times: list[float]) -> float:
    """The next of a series, by its regression on the one before; not below none at all."""
    mean = sum(idle_times) / len(idle_times)
    before = [one - mean for one in idle_times[:-1]]
    after = [one - mean for one in idle_times[1:]]
    power = sum(one * one for one in before)
    slope = sum(a * b for a, b in zip(before, after, strict=True)) / power if power else 0.0
    slope = max(-1.0, min(1.0, slope))
    return max(0.0, mean + slope * (idle_times[-1] - mean))


class Histogram(Keeping):
    name: ClassVar[str] = "histogram"

    def __init__(self, *, keeps: Level = Level.INSTANCE, bounds: Bounds | None = None) -> None:
        super().__init__(keeps=keeps, bounds=bounds)
        self.idle_times: dict[int, IdleTimes] = {}
        self._ended_at: dict[int, float] = {}
        self._running: dict[int, int] = {}
        self._last_node: dict[int, int] = {}
        self._ahead = LazyHeap()
        """Functions by when they are to be loaded."""

    def arrived(self, function: int, now: float) -> None:
        super().arrived(function, now)
        ended_at = self._ended_at.get(function)
        if ended_at is not None:
            idle_s = 0.0 if self._running.get(function) else now - ended_at
            self.idle_times[function].observe(idle_s)

    def began(self, place: int, function: int, now: float) -> None:
        super().began(place, function, now)
        self._running[function] = self._running.get(function, 0) + 1
        self._last_node[function] = self.book.node[place]

    def idled(self, place: int, now: float) -> None:
        function = self._owner[place]
        self._running[function] = max(0, self._running.get(function, 0) - 1)
        self._ended_at[function] = now
        super().idled(place, now)
        prewarm_s = self._windows(function).prewarm_s
        if prewarm_s:
            self._ahead.offer(function, now + prewarm_s)

    def explain(self, place: int, now: float) -> Why:
        windows = self._windows(self._owner[place])
        return Why(
            f"{windows.rule}: loaded {windows.prewarm_s:.0f} s after a call, kept {windows.keep_s:.0f} "
            f"s; {super().explain(place, now).rule}",
            memory_mb=self.book.frees_mb(place),
        )

    def _windows(self, function: int) -> Windows:
        known = self.idle_times.get(function)
        if known is None:
            known = self.idle_times[function] = IdleTimes()
        return known.windows()

    def _kept_until(self, place: int) -> float:
        """What served a call is unloaded if it is to be loaded again; what was loaded is kept."""
        windows = self._windows(self._owner[place])
        used_at = self._used_at(place)
        ended_at = self._ended_at.get(self._owner[place], -math.inf)
        served_last = used_at <= ended_at
        if windows.prewarm_s and served_last:
            return used_at
        return used_at + windows.keep_s

    def _tick(self, now: float) -> float:
        due = super()._tick(now)
        while (found := self._ahead.pop(now)) is not None:
            self._load_ahead(found[1], now)
        return min(due, self._ahead.least)

    def _load_ahead(self, function: int, now: float) -> None:
        """Once for each time its calls end; not while any place of it is there."""
        ended_at, node = self._ended_at.get(function), self._last_node.get(function)
        windows = self._windows(function)
        if ended_at is None or node is None or self._running.get(function) or not windows.prewarm_s:
            return
        if ended_at + windows.prewarm_s > now:
            self._ahead.offer(function, ended_at + windows.prewarm_s)
            return
        if any(self.book.level[one] is Level.INSTANCE for one in self.book.places(function)):
            return
        why = Why(f"{windows.prewarm_s:.0f} s after its last call")
        self._begin_load(function, node, self._keeps, now, why)

    def _function_removed(self, function: int, now: float) -> None:
        del now
        for known in (self.idle_times, self._ended_at, self._running, self._last_node):
            known.pop(function, None)
        self._ahead.discard(function)
