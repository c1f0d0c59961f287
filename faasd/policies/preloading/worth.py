"""The default: hold what saves most seconds per megabyte and second of holding, within the memory.

What is not held is loaded when, for the best time of holding it, it saves more than it costs: the worth
of what it displaces, with a margin; the price of memory as such; and the processor time of the load. So
nothing is swapped for a like thing, and a load that would not pay for itself is not made. What goes,
and what it is worth, is in `ranked`; for how long holding pays, in `arrivals.outlook`.

Where overlapping calls had to start one more copy, or to go to one more node, that is loaded ahead by how
often it was needed.

Every function is looked at again when its worth may have changed: in a silence at times that grow with
it, or when the next call becomes likely; soon, after a call that nobody expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.arrivals.calls import INCESSANT, LEAST_REVIEW_S, STALE, Calls
from faasd.policies.preloading.arrivals.mixture import Everyone
from faasd.policies.preloading.arrivals.outlook import FIRST_S, Outlook, steady
from faasd.policies.preloading.arrivals.score import MODELS
from faasd.policies.preloading.book import BUSY
from faasd.policies.preloading.ladder import LEAST_MB, Step
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.ranked import PRIOR_S, Ranked, Victim

MOST_REVIEW_S = 1800.0
INCESSANT_REVIEW_S = 20.0
DECAYED = 0.8
"""By so much a rate has to fall for places to be ranked anew without being asked."""

SURPRISE = 3.0
"""Gaps that are so many times longer than usual have a function looked at soon."""

LOOK_EVERY_S = 1.0
TRIES = 4
OFTEN = 2
"""So many times a further copy was needed before one is loaded ahead."""


class Worth(Ranked):
    name: ClassVar[str] = "worth"
    PRESSED: ClassVar[Why] = Why("dropped for memory, what is worth least first")

    def __init__(
        self,
        *,
        price: float = 1e-6,
        loader_price: float = 0.1,
        margin: float = 1.5,
        arrivals: str = "mixture",
        steps: bool = True,
        ahead: bool = True,
        bounds: Bounds | None = None,
    ) -> None:
        """`price` is in seconds of waiting per megabyte and second: a GB for a quarter of an hour
        is worth one second. `loader_price` is in seconds of waiting per second of loading.

        To see what parts are good for: `arrivals` names another model of them, without `steps`
        places are held whole or not at all, and without `ahead` nothing is loaded before a call.
        """
        super().__init__(price=price, margin=margin, steps=steps, bounds=bounds)
        if arrivals not in MODELS:
            raise ValueError(f"there is no model {arrivals!r}; choose one of {', '.join(MODELS)}")
        self._loader_price = loader_price
        self._may_load_ahead = ahead
        self._model_of = MODELS[arrivals]
        self._everyone = Everyone()
        self._reviews = LazyHeap()
        self._wanted = LazyHeap()
        """Functions that would be loaded if there were room, the most worth first."""
        self._look_at = math.inf
        self._ranked_by: dict[int, float] = {}
        """The rate by which the places of a function were ranked last."""
        self._overlaps: dict[int, dict[int, int]] = {}
        """How often calls of a function had to start their second copy, their third."""
        self._spills: dict[int, int] = {}
        """How often they had to go to one more node."""
        self._loaded_ahead = False

    # Events

    def arrived(self, function: int, now: float) -> None:
        calls = self._calls.get(function)
        if calls is not None and (gap_s := calls.arrived(now)):
            self._ranked_by[function] = math.inf
            if gap_s * calls.outlook.rate > SURPRISE or calls.count <= OFTEN:
                self._review_at(function, now + LEAST_REVIEW_S)

    def _function_added(self, function: int, now: float) -> None:
        self._calls[function] = Calls(self._model_of(self._everyone), now)
        self._review_at(function, now)

    def _function_removed(self, function: int, now: float) -> None:
        super()._function_removed(function, now)
        for known in (self._ranked_by, self._overlaps, self._spills):
            known.pop(function, None)
        self._reviews.discard(function)
        self._wanted.discard(function)

    def placed(
        self,
        place: int,
        function: int,
        node: int,
        level: Level,
        now: float,
        *,
        load: int | None = None,
        host: int | None = None,
    ) -> None:
        self._loaded_ahead = load is not None
        super().placed(place, function, node, level, now, load=load, host=host)
        if load is not None:
            self._look_again(now)

    def _appeared(self, place: int, now: float) -> None:
        """See whether calls had one place more made than there were; what is loaded ahead is not."""
        del now
        function = self._owner[place]
        if self._loaded_ahead or function not in self._calls:
            return
        others = [one for one in self.book.places(function) if one != place]
        if self.book.level[place] is Level.INSTANCE:
            copies = 1 + sum(self._idle_since[one] == BUSY for one in others)
            if copies > 1:
                counts = self._overlaps.setdefault(function, {})
                counts[copies] = counts.get(copies, 0) + 1
        elif self._is_template(place) and any(map(self._is_template, others)):
            self._spills[function] = self._spills.get(function, 0) + 1

    def _vanished(self, place: int, now: float) -> None:
        super()._vanished(place, now)
        self._want(self._owner[place])
        self._look_again(now)

    def _changed(self, place: int, now: float) -> None:
        self._want(self._owner[place])
        self._look_again(now)

    def _load_ended(self, function: int, node: int, now: float) -> None:
        del function, node
        self._look_again(now)

    def node_joined(self, node: int, budget_mb: float, now: float) -> None:
        super().node_joined(node, budget_mb, now)
        self._look_again(now)

    # Reviews

    def _review_at(self, function: int, at: float) -> None:
        self._reviews.offer(function, at)
        self.due = min(self.due, at)

    def _tick(self, now: float) -> float:
        while (found := self._reviews.pop(now)) is not None:
            self._review(found[1], now)
        if now >= self._look_at:
            self._look_at = math.inf
            self._look_for_room(now)
        return min(self._reviews.least, self._look_at)

    def _review(self, function: int, now: float) -> None:
        calls = self._calls[function]
        outlook = calls.look_out(now)
        if outlook.rate < DECAYED * self._ranked_by.get(function, math.inf):
            self._ranked_by[function] = outlook.rate
            for place in self.book.places(function):
                if self._idle_since[place] != BUSY and place not in self._leaving:
                    self._look_at_idle(place, now)
        held = self._raise(function, now)
        self._reviews.offer(function, now + _wait_s(outlook, now - calls.last, held=held))

    def _look_at_idle(self, place: int, now: float) -> None:
        """Have it go in its turn, which may have come forward, or at once."""
        rank = self._rank(place, now)
        self._victims[self.book.node[place]].offer(place, rank)
        if rank < self._price and not self._in_use(place):
            self._end(place, self._why("not worth its memory any more", place, rank))

    def _look_again(self, now: float) -> None:
        """There may be room now for what is wanted."""
        if len(self._wanted) and self._look_at == math.inf:
            self._look_at = now + LOOK_EVERY_S
            self.due = min(self.due, self._look_at)

    def _look_for_room(self, now: float) -> None:
        """Try what is worth most. What does not come off stands back for others, until a review."""
        failed = []
        for _ in range(TRIES):
            rooms = [self.loads.has_room_at(node, now) for node in self._victims]
            room_at = min(rooms, default=math.inf)
            if room_at > now:
                self._look_at = room_at
                break
            found = self._wanted.pop()
            if found is None:
                break
            worth, function = found
            if not self._raise(function, now):
                failed.append((function, 0.5 * worth))
        for function, worth in failed:
            self._wanted.discard(function)
            self._wanted.offer(function, worth)

    # What is missing

    def _want(self, function: int) -> None:
        """If it is not as ready as it could be, it is loaded when there is room."""
        calls, missing = self._calls.get(function), self._missing(function)
        if calls is not None and missing:
            first = missing[0]
            self._wanted.offer(function, -calls.outlook.rate * first.saves_s / first.adds_mb)

    def _missing(self, function: int) -> Sequence[Step]:
        """The steps above the best place that it has, which is not about to go."""
        steps = self._ladders.get(function)
        if not steps:
            return ()
        best = self._best_place(function)
        level = self.book.profiles[function].floor.level if best is None else self.book.level[best]
        return [step for step in steps if step.level > level]

    def _best_place(self, function: int) -> int | None:
        staying = (one for one in self.book.places(function) if one not in self._leaving)
        return max(staying, key=lambda one: (self.book.level[one], -one), default=None)

    def _is_on_the_move(self, function: int) -> bool:
        """Something of it is being loaded or lowered: what is best is seen when that is done."""
        if self._leaving and any(one in self._leaving for one in self.book.places(function)):
            return True
        return self.loads.anywhere(function)

    def _raise(self, function: int, now: float) -> bool:
        """Load it to the highest step that pays, or one copy more; whether nothing is to be wished."""
        self._wanted.discard(function)
        if not self._may_load_ahead:
            return True
        if self._is_on_the_move(function):
            return False
        missing, best = self._missing(function), self._best_place(function)
        outlook = self._calls[function].outlook_at(now)
        if not missing:
            self._raise_spare(function, now)
            return True
        forks = self.book.profiles[function].forks
        for count in range(len(missing), 0, -1):
            steps = missing[:count]
            raised = None if forks and steps[-1].level is Level.INSTANCE else best
            if raised is not None and self._idle_since[raised] == BUSY:
                break
            nodes = self._roomiest() if best is None else [self.book.node[best]]
            if self._load(function, steps, outlook, nodes, now, raised=raised):
                return True
        self._want(function)
        return False

    def _raise_spare(self, function: int, now: float) -> None:
        """One copy more than there are, or one more node, where calls needed it often enough."""
        steps, forks = self._ladders[function], self.book.profiles[function].forks
        known_s = PRIOR_S + max(0.0, now - self._calls[function].since)
        places = self.book.places(function)
        copies = [one for one in places if not self._is_template(one)]
        overlaps = self._overlaps.get(function, {}).get(len(copies) + 1, 0)
        if overlaps >= OFTEN:
            outlook = steady(overlaps / known_s)
            nodes = [self.book.node[copies[0]]] if forks and copies else self._roomiest()
            if self._load(function, steps[-1:] if forks else steps, outlook, nodes, now):
                return
        spills = self._spills.get(function, 0)
        if spills >= OFTEN:
            there = {self.book.node[one] for one in places}
            nodes = [node for node in self._roomiest() if node not in there]
            self._load(function, steps[:-1], steady(spills / known_s), nodes, now)

    def _roomiest(self) -> list[int]:
        """The nodes, the one with most free memory first."""
        return sorted(self._victims, key=lambda node: (-self._free_mb(node), node))

    # Loading

    def _load(
        self,
        function: int,
        steps: Sequence[Step],
        outlook: Outlook,
        nodes: Sequence[int],
        now: float,
        *,
        raised: int | None = None,
    ) -> bool:
        """Load on the first node where that pays; raise a place where there is one."""
        level = steps[-1].level
        for node in nodes:
            if not self.loads.may_start(function, node, now):
                continue
            adds_mb = self.book.adds_mb(function, node, level)
            if raised is not None:
                adds_mb -= self.book.private_mb(raised)
            over_mb = adds_mb - self._free_mb(node)
            # Ranks in the heap may be higher than they are by now.
            rank = 0.5 * self._victims[node].least
            least_rate = self._cost_rate(node, adds_mb, over_mb, rank, now)
            if over_mb > 0 and not self._pays(steps, outlook, least_rate, adds_mb):
                continue
            going = self._cheapest(node, over_mb, now, function, self._keys(function, level))
            if going is None:
                continue
            cost_rate = self._price_of(node, now) * max(0.0, adds_mb - _megabytes(going))
            cost_rate += self._margin * sum(rank * freed_mb for _, rank, freed_mb in going)
            if self._pays(steps, outlook, cost_rate, adds_mb):
                self._displace(going, outlook, steps, adds_mb, cost_rate)
                why = _reason("worth more than it costs", outlook, steps, adds_mb, cost_rate)
                self._act(self.loads.start(function, node, level, now, why, place=raised))
                return True
        return False

    def _cost_rate(
        self, node: int, adds_mb: float, over_mb: float, rank: float, now: float
    ) -> float:
        """Of so much memory for a second, where what goes for it is worth so much."""
        over_mb = max(0.0, over_mb)
        lost = self._margin * max(0.0, rank) * over_mb if over_mb else 0.0
        return lost + self._price_of(node, now) * max(0.0, adds_mb - over_mb)

    def _pays(
        self, steps: Sequence[Step], outlook: Outlook, cost_rate: float, adds_mb: float
    ) -> bool:
        """Whether the steps save more than they cost, and the last one by itself as well."""
        saves_s, cpu_s = sum(s.saves_s for s in steps), sum(s.load_cpu_s for s in steps)
        if outlook.gain_s(saves_s, cost_rate) <= self._loader_price * cpu_s:
            return False
        last = steps[-1]
        share = min(1.0, last.adds_mb / max(LEAST_MB, adds_mb))
        return (
            outlook.gain_s(last.saves_s, share * cost_rate) > self._loader_price * last.load_cpu_s
        )

    def _keys(self, function: int, level: Level) -> set[str]:
        """What a function shares with others at a level."""
        profile = self.book.profiles[function]
        forked = level is Level.INSTANCE and profile.forks
        return {key for key, _ in profile.takes(Level.RESIDENT if forked else level).shared}

    def _displace(
        self,
        going: list[Victim],
        outlook: Outlook,
        steps: Sequence[Step],
        adds_mb: float,
        cost_rate: float,
    ) -> None:
        if going:
            rule = "displaced by what is worth more"
            why = _reason(rule, outlook, steps, adds_mb, cost_rate)
            for place, _, _ in going:
                self._end(place, why)


def _megabytes(going: list[Victim]) -> float:
    return sum(freed_mb for _, _, freed_mb in going)


def _reason(
    rule: str, outlook: Outlook, steps: Sequence[Step], adds_mb: float, cost_rate: float
) -> Why:
    saves_s = sum(step.saves_s for step in steps)
    return Why(
        rule,
        chance=outlook.chance,
        within_s=outlook.within_s,
        saves_s=saves_s,
        memory_mb=adds_mb,
        density=outlook.rate * saves_s / max(LEAST_MB, adds_mb),
        price=cost_rate / max(LEAST_MB, adds_mb),
    )


def _wait_s(outlook: Outlook, silent_s: float, *, held: bool) -> float:
    """Worth changes by so much only in a time like that of the silence, or of a usual gap.

    But where a call is better waited for than found, it is about to rise. What is held needs to be looked
    at only to be dropped in its turn, when it has been silent for longer than usual.
    """
    if outlook is INCESSANT:
        return INCESSANT_REVIEW_S
    wait_s = max(STALE * silent_s, (2.0 if held else 0.5) / max(1e-9, outlook.rate))
    if outlook.within_s > 4 * FIRST_S:
        wait_s = min(wait_s, max(0.1 * silent_s, outlook.soon_s))
    return min(MOST_REVIEW_S, max(LEAST_REVIEW_S, wait_s))
