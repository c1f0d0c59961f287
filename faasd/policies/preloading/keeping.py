"""What policies that let idle places expire have in common: a time for each, looked at when it comes.

`keeps` is the level at which idle places are kept. SANDBOX is the plain platform of the papers: the
sandbox stays, the process does not, so that every call imports and loads anew.
"""

from __future__ import annotations

import abc

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.book import BUSY
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.policy import Policy

_EXPIRED = Why("idle for as long as it is kept")
_PLAIN = Why("the process of a call ends with it")


class Keeping(Policy):
    """Subclasses say for how long, by `_kept_until`."""

    def __init__(self, *, keeps: Level = Level.INSTANCE, bounds: Bounds | None = None) -> None:
        super().__init__(bounds=bounds)
        self._keeps = keeps
        self._deadlines = LazyHeap()

    @abc.abstractmethod
    def _kept_until(self, place: int) -> float:
        """Until when an idle place is kept, as things are."""

    def idled(self, place: int, now: float) -> None:
        super().idled(place, now)
        self._watch(place)
        if self._keeps < self.book.level[place]:
            self._strip(place)

    def _strip(self, place: int) -> None:
        profile = self.book.profiles[self._owner[place]]
        level = profile.stage(self._keeps).level
        if level < self.book.level[place] and not self._is_template(place):
            self._lower(place, level, _PLAIN)

    def _watch(self, place: int) -> None:
        """Have a place looked at when its time comes."""
        until = self._kept_until(place)
        self._deadlines.offer(place, until)
        self.due = min(self.due, until)

    def _appeared(self, place: int, now: float) -> None:
        del now
        self._watch(place)

    def _changed(self, place: int, now: float) -> None:
        del now
        if self._idle_since[place] != BUSY:
            self._watch(place)

    def _vanished(self, place: int, now: float) -> None:
        del now
        self._deadlines.discard(place)

    def _tick(self, now: float) -> float:
        while (found := self._deadlines.pop(now)) is not None:
            self._look(found[1], now)
        return self._deadlines.least

    def _look(self, place: int, now: float) -> None:
        """Its time may have come. A busy place is watched again as soon as it is idle."""
        if self._idle_since[place] == BUSY or self._is_leaving(place):
            return
        until = self._kept_until(place)
        if until > now:
            self._deadlines.offer(place, until)
        elif self._in_use(place):
            # What it is there for runs: it is looked at when that could have gone idle for long.
            self._deadlines.offer(place, now + max(1.0, until - self._used_at(place)))
        else:
            self._expire(place, now)

    def _expire(self, place: int, now: float) -> None:
        del now
        self._end(place, _EXPIRED)

    def explain(self, place: int, now: float) -> Why:
        if self._idle_since[place] == BUSY:
            return Why("runs a call")
        left_s = max(0.0, self._kept_until(place) - now)
        return Why(f"kept for another {left_s:.0f} s", memory_mb=self.book.frees_mb(place))
