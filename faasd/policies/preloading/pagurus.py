"""Pagurus (ATC'22): idle sandboxes are lent to other functions before they expire.

A place that has been idle for the 95th percentile of its function's gaps between arrivals is turned
into a lender: its process is cleaned away, the sandbox with what is installed stays, and any
function of the tenant may take it. One lender per function, one turned in each tick; executors and
lenders live for 900 s. The percentile is taken anew every 900 s, from 21 arrivals on.

Which functions a lender can help is a question of installed packages there; here all sandboxes of one
runtime have the same, and the driver lends within a runtime.
"""

from __future__ import annotations

import math
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.book import BUSY
from faasd.policies.preloading.keeping import Keeping
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level

_LENT = Why("idle for longer than 95 % of the gaps between calls: lent to others")


class Gaps:
    """Gaps between arrivals of one period, and what the last full period said."""

    PERIOD_S = 900.0
    ENOUGH = 20
    SHARE = 0.95

    def __init__(self, now: float, zygote_s: float) -> None:
        self.zygote_s = zygote_s
        self._since = now
        self._last: float | None = None
        self._gaps: list[float] = []

    def arrived(self, now: float) -> None:
        if now - self._since >= self.PERIOD_S:
            if len(self._gaps) >= self.ENOUGH:
                ordered = sorted(self._gaps)
                self.zygote_s = ordered[int(self.SHARE * len(ordered)) - 1]
            self._gaps.clear()
            self._since = now
        if self._last is not None:
            self._gaps.append(max(0.0, now - self._last))
        self._last = now


class Pagurus(Keeping):
    name: ClassVar[str] = "pagurus"
    LIFE_S = 900.0
    TICK_S = 2.0

    def __init__(self, *, zygote_s: float = 60.0, keeps: Level = Level.INSTANCE) -> None:
        super().__init__(keeps=keeps)
        self._zygote_s = zygote_s
        self.gaps: dict[int, Gaps] = {}
        self._lender_of: dict[int, int] = {}
        self._lenders: dict[int, int] = {}
        self._to_lend = LazyHeap()
        self._lent_at: dict[int, float] = {}

    def arrived(self, function: int, now: float) -> None:
        super().arrived(function, now)
        known = self.gaps.get(function)
        if known is None:
            known = self.gaps[function] = Gaps(now, self._zygote_s)
        known.arrived(now)

    def began(self, place: int, function: int, now: float) -> None:
        super().began(place, function, now)
        if self._lenders:
            self._no_more_lent(place)

    def idled(self, place: int, now: float) -> None:
        super().idled(place, now)
        at = self._lend_at(place)
        self._to_lend.offer(place, at)
        self.due = min(self.due, at)

    def _lend_at(self, place: int) -> float:
        known = self.gaps.get(self._owner[place])
        zygote_s = self._zygote_s if known is None else known.zygote_s
        return self._used_at(place) + zygote_s

    def _kept_until(self, place: int) -> float:
        lender_of = self._lenders.get(place)
        since = self._used_at(place) if lender_of is None else self._lent_at[lender_of]
        return since + self.LIFE_S

    def _tick(self, now: float) -> float:
        due = super()._tick(now)
        again: list[tuple[int, float]] = []
        while (found := self._to_lend.pop(now)) is not None:
            place = found[1]
            if self._idle_since[place] == BUSY or self._is_leaving(place):
                continue
            at = self._lend_at(place)
            function = self._owner[place]
            if at > now:
                again.append((place, at))
            elif function in self._lender_of:
                again.append((place, now + self.TICK_S))
            elif now < self._lent_at.get(function, -math.inf) + self.TICK_S:
                again.append((place, self._lent_at[function] + self.TICK_S))
            else:
                self._lend(place, function, now)
        for place, at in again:
            self._to_lend.offer(place, at)
        return min(due, self._to_lend.least)

    def _lend(self, place: int, function: int, now: float) -> None:
        level = self.book.profiles[function].stage(Level.SANDBOX).level
        if level is not Level.SANDBOX or self._is_template(place):
            return
        self._lent_at[function] = now
        self._lender_of[function] = place
        self._lenders[place] = function
        self._deadlines.offer(place, self._kept_until(place))
        if self.book.level[place] is not level:
            self._lower(place, level, _LENT)

    def lends(self, place: int) -> bool:
        """Whether functions other than its owner may take a place."""
        return place in self._lenders

    def _no_more_lent(self, place: int) -> None:
        function = self._lenders.pop(place, None)
        if function is not None:
            del self._lender_of[function]

    def _vanished(self, place: int, now: float) -> None:
        super()._vanished(place, now)
        self._to_lend.discard(place)
        self._no_more_lent(place)

    def _function_removed(self, function: int, now: float) -> None:
        del now
        self.gaps.pop(function, None)
        self._lent_at.pop(function, None)
