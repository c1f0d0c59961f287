"""Greedy-dual-size-frequency, of FaasCache (ASPLOS'21): nothing expires, and the least worth goes.

The priority of a place is the clock at the last hit of its function, plus what holding it saves per
megabyte, times how often the function hit the places it has. The clock is the priority of what was
evicted last: what has not been hit since then falls behind.
"""

from __future__ import annotations

import math
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.keeping import Keeping
from faasd.policies.preloading.levels import Level

_LEAST_MB = 1e-3


class GreedyDual(Keeping):
    name: ClassVar[str] = "greedy-dual"
    PRESSED: ClassVar[Why] = Why("dropped for memory, the lowest greedy-dual priority first")

    def __init__(self, *, keeps: Level = Level.INSTANCE) -> None:
        super().__init__(keeps=keeps)
        self.clock = 0.0
        self._frequency: dict[int, int] = {}
        self._clock_at_hit: dict[int, float] = {}

    def priority(self, place: int) -> float:
        function = self._owner[place]
        clock = self._clock_at_hit.get(function, self.clock)
        worth = self._frequency.get(function, 0) * self._saves_s(place)
        return clock + worth / max(_LEAST_MB, self.book.private_mb(place))

    def began(self, place: int, function: int, now: float) -> None:
        super().began(place, function, now)
        self._frequency[function] = self._frequency.get(function, 0) + 1
        self._clock_at_hit[function] = self.clock

    def explain(self, place: int, now: float) -> Why:
        del now
        return Why(
            f"kept until its priority is the lowest; the clock stands at {self.clock:.3g}",
            saves_s=self._saves_s(place),
            memory_mb=self.book.private_mb(place),
            density=self.priority(place),
        )

    def _rank(self, place: int, now: float) -> float:
        del now
        return self.priority(place)

    def _evicted(self, place: int, rank: float, now: float) -> None:
        del place, now
        self.clock = max(self.clock, rank)

    def _kept_until(self, place: int) -> float:
        del place
        return math.inf

    def _vanished(self, place: int, now: float) -> None:
        super()._vanished(place, now)
        self._forget_hits(self._owner[place], place)

    def _taken(self, place: int, function: int, now: float) -> None:
        self._forget_hits(self._owner[place], place)
        super()._taken(place, function, now)

    def _forget_hits(self, function: int, place: int) -> None:
        """A place takes its hits along; with the last one, all that is known of the function goes."""
        if len(self.book.places(function)) > 1:
            self._frequency[function] = self._frequency.get(function, 0) - self._hits[place]
        else:
            self._frequency.pop(function, None)
            self._clock_at_hit.pop(function, None)
