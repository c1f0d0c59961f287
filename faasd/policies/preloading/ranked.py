"""What places are worth to keep, and which go first: the half of the default policy that forgets.

The worth of a place is that of the highest step of its ladder: the rate at which holding it pays, times
the seconds that the step saves, by the megabytes that it adds. Under pressure what is worth least
goes down by one step, and whole where steps do not do.

A second copy is worth what the use of copies so far says: places are used the most recent one first, so
that the second is used only when two calls overlap, and how often that was is the best guess.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from faasd.policies.preloading.actions import Lower, Why
from faasd.policies.preloading.arrivals.calls import Calls
from faasd.policies.preloading.book import BUSY
from faasd.policies.preloading.ladder import LEAST_MB, Step, ladder
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.policy import Policy

PRIOR_S = 60.0
SCARCE_S = 300.0

Victim = tuple[int, float, float]
"""A place that could go, its worth by the megabyte, and the megabytes."""


class Ranked(Policy):
    """Subclasses keep `_calls` up, and say what is loaded when."""

    def __init__(
        self, *, price: float, margin: float, steps: bool, bounds: Bounds | None = None
    ) -> None:
        super().__init__(bounds=bounds)
        self._steps = steps
        self._price = price
        self._margin = margin
        self._calls: dict[int, Calls] = {}
        self._ladders: dict[int, tuple[Step, ...]] = {}
        self._hits_before: dict[tuple[int, int], int] = {}
        """By function and node: those of places that are gone."""
        self._scarce: dict[int, tuple[float, float]] = {}
        """By node: what memory was worth when it was last taken, and when that was."""

    def known(self, function: int, profile: Profile, now: float) -> None:
        self._ladders[function] = ladder(profile, steps=self._steps)
        super().known(function, profile, now)

    def explain(self, place: int, now: float) -> Why:
        if self._idle_since[place] == BUSY:
            return Why("runs a call")
        return self._why("worth its memory", place, self._rank(place, now))

    def _function_removed(self, function: int, now: float) -> None:
        del now
        self._calls.pop(function, None)
        self._ladders.pop(function, None)
        for key in [key for key in self._hits_before if key[0] == function]:
            del self._hits_before[key]

    def _vanished(self, place: int, now: float) -> None:
        del now
        function = self._owner[place]
        if function in self._calls:
            key = (function, self.book.node[place])
            self._hits_before[key] = self._hits_before.get(key, 0) + self._hits[place]

    # Worth

    def _rank(self, place: int, now: float) -> float:
        step = self._step_of(place)
        if step is None:
            return 0.0
        adds_mb = step.adds_mb
        if step.level >= Level.MAPPED:
            # What it shares with others is not its own to free.
            adds_mb = self._steps_down_mb(place, alone=True)
        return self._rate(place, now) * step.saves_s / max(LEAST_MB, adds_mb)

    def _step_of(self, place: int) -> Step | None:
        """The step that brought a place where it is, or where it is on the way to the next."""
        level, found = self.book.level[place], None
        for step in self._ladders.get(self._owner[place], ()):
            if step.level <= level:
                found = step
        return found

    def _rate(self, place: int, now: float) -> float:
        """How often a place is going to be of use: the first of its kind by all calls.

        Another one by the hits of the one with fewest, whichever that is: they take turns in being
        the one used last.
        """
        owner, book = self._owner[place], self.book
        calls = self._calls.get(owner)
        if calls is None:
            return 0.0
        rate = calls.outlook_at(now).rate
        before = self._used_before(place)
        if not before:
            return rate
        if self._is_template(place):
            hits = self._hits_before.get((owner, book.node[place]), 0)
        else:
            hits = min(self._hits[one] for one in (place, *before))
        since = max(book.placed_at[one] for one in (place, *before))
        return min(rate, (0.5 + hits) / (PRIOR_S + max(0.0, now - since)))

    def _used_before(self, place: int) -> list[int]:
        """The places of its kind that are used before it."""
        book, since = self.book, self._idle_since[place]
        places = book.places(self._owner[place])
        if len(places) == 1:
            return []
        template, level = self._is_template(place), book.level[place]
        return [
            one
            for one in places
            if one != place
            and self._is_template(one) is template
            and (book.level[one], self._idle_since[one], -one) > (level, since, -place)
        ]

    def _why(self, rule: str, place: int, rank: float) -> Why:
        calls, step = self._calls.get(self._owner[place]), self._step_of(place)
        return Why(
            rule,
            chance=None if calls is None else calls.outlook.chance,
            within_s=None if calls is None else calls.outlook.within_s,
            saves_s=0.0 if step is None else step.saves_s,
            memory_mb=self.book.frees_mb(place),
            density=rank,
            price=self._price,
        )

    def _price_of(self, node: int, now: float) -> float:
        """Of free memory, which is not free for long where there is little.

        It is as dear as what was evicted last, less as time goes by without any eviction.
        """
        scarce = self._scarce.get(node)
        if scarce is None:
            return self._price
        rank, at = scarce
        return max(self._price, self._margin * rank * math.exp((at - now) / SCARCE_S))

    def _evicted(self, place: int, rank: float, now: float) -> None:
        node = self.book.node[place]
        before, at = self._scarce.get(node, (0.0, now))
        self._scarce[node] = (max(rank, before * math.exp((at - now) / SCARCE_S)), now)

    # What goes

    def _falls_to(self, place: int) -> Level:
        """Where a place is one step down; what is there without a place is no place."""
        step = self._step_of(place)
        profile = self.book.profiles[self._owner[place]]
        forked = profile.forks and self.book.level[place] is Level.INSTANCE
        if step is None or forked or step.below <= profile.floor.level:
            return Level.ABSENT
        return step.below

    def _end(self, place: int, why: Why) -> float:
        level = self._falls_to(place)
        if level is Level.ABSENT:
            return super()._end(place, why)
        freed_mb = sum(self._lower(one, Level.ABSENT, why) for one in self._forks_of(place))
        return freed_mb + self._lower(place, level, why)

    def _forks_of(self, place: int) -> list[int]:
        """The instances that come from a place."""
        if not self._is_template(place):
            return []
        return [one for one in self.book.kin(place) if self.book.level[one] is Level.INSTANCE]

    def _steps_down_mb(
        self, place: int, *, alone: bool = False, gone: Collection[int] = ()
    ) -> float:
        """What `_end` would free: of the place `alone`, or once some others have been ended."""
        book = self.book
        freed_mb = book.frees_mb(place)
        level = self._falls_to(place)
        if level is not Level.ABSENT:
            freed_mb -= book.profiles[self._owner[place]].takes(level).private_mb
        if not alone:
            freed_mb += sum(book.frees_mb(one) for one in self._forks_of(place) if one not in gone)
        return freed_mb

    def make_room(self, node: int, over_mb: float, now: float, why: Why) -> float:
        over_mb = super().make_room(node, over_mb, now, why)
        for number, action in enumerate(self._actions):
            if over_mb <= 0:
                break
            if not isinstance(action, Lower) or action.level is Level.ABSENT:
                continue
            if self.book.node[action.place] == node:
                self._actions[number] = Lower(action.place, Level.ABSENT, why)
                over_mb -= self._lower_whole(action.place)
        return over_mb

    def _lower_whole(self, place: int) -> float:
        """What is leaving goes down to nothing, and what that frees besides."""
        more_mb = self.book.lower(place, Level.ABSENT)
        self._leaving[place] += more_mb
        self._leaving_mb[self.book.node[place]] += more_mb
        return more_mb

    def _cheapest(
        self, node: int, over_mb: float, now: float, function: int, keys: set[str]
    ) -> list[Victim] | None:
        """What would go for so much memory, or None if there is not enough.

        Never what is the function's own, nor what shares with it.
        """
        heap = self._victims[node]
        popped: list[int] = []
        gone: set[int] = set()
        going: list[Victim] = []
        while over_mb > 0 and (found := heap.pop()) is not None:
            rank, place = found
            if self._idle_since[place] == BUSY:
                continue
            fresh = self._rank(place, now)
            if fresh > rank and fresh > heap.least:
                heap.offer(place, fresh)
                continue
            popped.append(place)
            if place in gone or self._stays(place, function, keys):
                continue
            freed_mb = self._steps_down_mb(place, gone=gone)
            gone |= {place, *self._forks_of(place)}
            going.append((place, fresh, freed_mb))
            over_mb -= freed_mb
        for place in popped:
            heap.offer(place, self._rank(place, now))
        return going if over_mb <= 0 else None

    def _stays(self, place: int, function: int, keys: set[str]) -> bool:
        if place in self._leaving or self._owner[place] == function or self._in_use(place):
            return True
        return bool(keys) and any(key in keys for key, _ in self.book.shares(place))
