"""RainbowCake (ASPLOS'24): idle places are stripped layer by layer, each layer kept for its own time.

From the instance of one function to the libraries of its runtime, which serve any function of that, to
a bare sandbox, which serves any at all. How long a layer is kept follows from the arrivals of all
that it could serve: exponential from the last six, kept until the next one has come with
probability 0.8. Never less than a minute, and never longer than what it saves is worth in memory,
which goes before the minute. Besides, a function is loaded ahead when its next call is that likely.
"""

from __future__ import annotations

import math
from collections import deque
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.book import BUSY
from faasd.policies.preloading.keeping import Keeping
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds

ALPHA = 0.996
LEAST_S = 60.0
DEFAULT_S = 600.0
QUANTILE = 0.8

_STRIPPED = Why("idle for as long as this layer is kept")
_NEXT_LAYER = {
    Level.INSTANCE: Level.LIBRARIES,
    Level.LIBRARIES: Level.SANDBOX,
    Level.SANDBOX: Level.ABSENT,
}


class Recent:
    """The last arrivals of a function, of a runtime, or of all."""

    KEPT = 6
    FORGOTTEN_S = 86400.0

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.KEPT)

    def arrived(self, now: float) -> None:
        times = self._times
        if times and now - times[-1] > self.FORGOTTEN_S:
            times.clear()
        times.append(now)

    def quantile_s(self, now: float) -> float | None:
        """Within which the next one comes with the probability kept for, or None."""
        if not self._times:
            return None
        mean_s = max(0.0, now - self._times[0]) / len(self._times)
        return -math.log(1 - QUANTILE) * mean_s


def break_even_s(saves_s: float, memory_mb: float) -> float:
    """How long memory may be held for what it saves, in whole seconds."""
    if memory_mb <= 0:
        return math.inf
    return math.ceil(ALPHA * saves_s / ((1 - ALPHA) * memory_mb))


def clamp(expected_s: float, most_s: float) -> float:
    """Between a minute and what is worth it. Where that is less than a minute, it holds."""
    return min(max(expected_s, LEAST_S), most_s)


class RainbowCake(Keeping):
    name: ClassVar[str] = "rainbowcake"

    def __init__(self, *, bounds: Bounds | None = None) -> None:
        super().__init__(bounds=bounds)
        self._of_function: dict[int, Recent] = {}
        self._of_runtime: dict[str, Recent] = {}
        self._of_all = Recent()
        self._until: dict[int, float] = {}
        """Until when a place is kept at its level: said once, when it comes to be idle there."""
        self._last_node: dict[int, int] = {}
        self._expected_at: dict[int, float] = {}
        self._ahead = LazyHeap()

    def arrived(self, function: int, now: float) -> None:
        super().arrived(function, now)
        recent = self._of_function.get(function)
        if recent is None:
            recent = self._of_function[function] = Recent()
        recent.arrived(now)
        self._of_all.arrived(now)
        profile = self.book.profiles[function]
        self._of_runtime.setdefault(profile.runtime, Recent()).arrived(now)
        ahead_s = recent.quantile_s(now)
        if ahead_s:
            at = self._expected_at[function] = now + math.ceil(ahead_s)
            self._ahead.offer(function, at)
            self.due = min(self.due, at)

    def began(self, place: int, function: int, now: float) -> None:
        super().began(place, function, now)
        self._last_node[function] = self.book.node[place]

    def idled(self, place: int, now: float) -> None:
        self._idle_since[place] = now
        self._enter(place, now)
        super().idled(place, now)

    def kept_s(self, function: int, level: Level, now: float) -> float:
        """For how long an idle place at this level is kept there."""
        profile = self.book.profiles[function]
        expected_s = self._recent(profile, function, level).quantile_s(now)
        if expected_s is None:
            return DEFAULT_S
        below = profile.stage(_NEXT_LAYER.get(level, Level.ABSENT))
        stage = profile.takes(level)
        saves_s = profile.saves_s(level, below.level)
        return clamp(expected_s, break_even_s(saves_s, stage.private_mb))

    def _recent(self, profile: Profile, function: int, level: Level) -> Recent:
        if level <= Level.SANDBOX:
            return self._of_all
        if level <= Level.LIBRARIES:
            return self._of_runtime.get(profile.runtime) or self._of_all
        return self._of_function.get(function) or Recent()

    def _enter(self, place: int, now: float) -> None:
        self._until[place] = now + self.kept_s(self._owner[place], self.book.level[place], now)

    def _kept_until(self, place: int) -> float:
        if self._is_template(place):
            used_at = self._used_at(place)
            return used_at + self.kept_s(self._owner[place], self.book.level[place], used_at)
        return self._until[place]

    def _appeared(self, place: int, now: float) -> None:
        self._enter(place, now)
        super()._appeared(place, now)

    def _changed(self, place: int, now: float) -> None:
        self._enter(place, now)
        super()._changed(place, now)

    def _vanished(self, place: int, now: float) -> None:
        super()._vanished(place, now)
        self._until.pop(place, None)

    def _expire(self, place: int, now: float) -> None:
        del now
        profile, level = self.book.profiles[self._owner[place]], self.book.level[place]
        below = profile.stage(_NEXT_LAYER.get(level, Level.ABSENT)).level
        # Instances that are forks have their layers in the template.
        forked = level is Level.INSTANCE and profile.forks
        if below is Level.ABSENT or below >= level or forked or self._is_template(place):
            self._end(place, _STRIPPED)
        else:
            self._lower(place, below, _STRIPPED)

    def _tick(self, now: float) -> float:
        due = super()._tick(now)
        while (found := self._ahead.pop(now)) is not None:
            self._load_ahead(found[1], now)
        return min(due, self._ahead.least)

    def _load_ahead(self, function: int, now: float) -> None:
        at, node = self._expected_at.get(function), self._last_node.get(function)
        if at is None or node is None:
            return
        if at > now:
            self._ahead.offer(function, at)
            return
        there = self.book.places(function)
        if any(self.book.level[one] is Level.INSTANCE for one in there):
            return
        why = Why("its next call has come by now with p = 0.8, by its last six")
        self._begin_load(function, node, Level.INSTANCE, now, why)

    def explain(self, place: int, now: float) -> Why:
        if self._idle_since[place] == BUSY:
            return Why("runs a call")
        level = self.book.level[place]
        left_s = max(0.0, self._kept_until(place) - now)
        return Why(
            f"kept at {level.name.lower()} for another {left_s:.0f} s",
            memory_mb=self.book.frees_mb(place),
        )

    def _function_removed(self, function: int, now: float) -> None:
        del now
        for known in (self._of_function, self._expected_at, self._last_node):
            known.pop(function, None)
        self._ahead.discard(function)
