"""The default: hold what saves most seconds per megabyte and second of holding, within the memory.

The worth of a level is the rate at which holding it pays (see `arrivals.outlook`), times the seconds
that it saves a call over the level below, by the megabytes that it adds. Under pressure what is
worth least goes, one level at a time. What is not held is loaded when, for the best time of holding it,
it saves more than it costs: the worth of what it displaces, with a margin; the price of memory
as such; and the processor time of the load. So nothing is swapped for a like thing, and a load
that would not pay for itself is not made.

A second copy is worth what its own use so far says: places are used the most recent one first, so that
the second is used only when two calls overlap, and how often that was is the best guess there is. Where
overlapping calls had to start one, one more is loaded ahead by how often that was.

Every function is looked at again when its worth may have changed: after calls, and in a silence at times
that grow with it, or when the next call becomes likely. In between, ranks are as they were then.
"""

from __future__ import annotations

import math
from typing import ClassVar

from faasd.policies.preloading.actions import Lower, Why
from faasd.policies.preloading.arrivals.mixture import Everyone, Mixture
from faasd.policies.preloading.arrivals.model import SHORT_S
from faasd.policies.preloading.arrivals.outlook import FIRST_S, Outlook, look_out, steady
from faasd.policies.preloading.book import BUSY
from faasd.policies.preloading.ladder import LEAST_MB, Step, ladder
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.policy import Policy

LEAST_REVIEW_S = 5.0
STALE = 0.25
"""Of a silence: by so much it goes on before what follows from it is reckoned anew."""

DECAYED = 0.8
"""By so much it has to fall for places to be ranked anew without being asked."""

SURPRISE = 3.0
"""Gaps that are so many times longer than usual have a function looked at soon."""

BUSY_REVIEW_S = 20.0
MOST_REVIEW_S = 1800.0
LOOK_EVERY_S = 1.0
TRIES = 4
SPARE_HORIZON_S = 600.0
PRIOR_S = 60.0
SCARCE_S = 300.0


_BUSY = steady(1.0 / SHORT_S)
"""Of a function that is called all the time."""


class Known:
    """What is known of one function's calls."""

    __slots__ = (
        "calls",
        "last",
        "learnt_at",
        "learnt_to",
        "model",
        "outlook",
        "overlaps",
        "ranked_by",
        "seen_at",
        "since",
    )

    def __init__(self, model: Mixture, now: float) -> None:
        self.model = model
        self.since = now
        self.last = now
        self.calls = 0
        self.learnt_at = now
        self.learnt_to = 0
        self.outlook: Outlook = look_out(model, 0.0)
        self.seen_at = -math.inf
        self.ranked_by = math.inf
        self.overlaps: dict[int, int] = {}


class Worth(Policy):
    name: ClassVar[str] = "worth"
    PRESSED: ClassVar[Why] = Why("dropped for memory, what is worth least first")

    def __init__(
        self,
        *,
        price: float = 1e-6,
        loader_price: float = 0.1,
        margin: float = 1.5,
        bounds: Bounds | None = None,
    ) -> None:
        """`price` is in seconds of waiting per megabyte and second: a GB for a quarter of an hour
        is worth one second. `loader_price` is in seconds of waiting per second of loading.
        """
        super().__init__(bounds=bounds)
        self._price = price
        self._loader_price = loader_price
        self._margin = margin
        self._everyone = Everyone()
        self._known: dict[int, Known] = {}
        self._ladders: dict[int, tuple[Step, ...]] = {}
        self._reviews = LazyHeap()
        self._wanted = LazyHeap()
        """Functions that would be loaded if there were room, the most worth first."""
        self._look_at = math.inf
        self._tally: dict[tuple[int, int], int] = {}
        self._scarce: dict[int, tuple[float, float]] = {}
        """By node: what memory was worth when it was last taken, and when that was."""

    # On the way of every call

    def arrived(self, function: int, now: float) -> None:
        known = self._known.get(function)
        if known is None:
            return
        gap_s = now - known.last
        known.last = now
        known.calls += 1
        if gap_s >= SHORT_S:
            self._learn_gap(function, known, gap_s, now)

    def _learn_gap(self, function: int, known: Known, gap_s: float, now: float) -> None:
        """Short gaps are learnt all at once, when one that is not short comes, or at a review."""
        short = known.calls - known.learnt_to - 1
        if short > 0:
            span_s = now - gap_s - known.learnt_at
            known.model.observe(max(0.0, span_s / short), short)
        if known.calls > 1:
            known.model.observe(gap_s)
        known.learnt_at, known.learnt_to = now, known.calls
        known.seen_at, known.ranked_by = -math.inf, math.inf
        if gap_s * known.outlook.rate > SURPRISE or known.calls <= 2:
            at = now + LEAST_REVIEW_S
            self._reviews.offer(function, at)
            self.due = min(self.due, at)

    # What is there

    def known(self, function: int, profile: Profile, now: float) -> None:
        self._ladders[function] = ladder(profile)
        super().known(function, profile, now)

    def _function_added(self, function: int, now: float) -> None:
        self._known[function] = Known(self._everyone.newcomer(), now)
        self._reviews.offer(function, now)
        self.due = min(self.due, now)

    def _function_removed(self, function: int, now: float) -> None:
        del now
        for known in (self._known, self._ladders):
            known.pop(function, None)
        self._reviews.discard(function)
        self._wanted.discard(function)

    def _appeared(self, place: int, now: float) -> None:
        del now
        book = self.book
        known = self._known.get(book.owner[place])
        if known is not None and book.level[place] is Level.INSTANCE:
            busy = sum(self._idle_since[one] == BUSY for one in book.places(book.owner[place]))
            if busy:
                known.overlaps[busy + 1] = known.overlaps.get(busy + 1, 0) + 1

    def _vanished(self, place: int, now: float) -> None:
        key = (self._owner[place], self.book.node[place])
        self._tally[key] = self._tally.get(key, 0) + self._hits[place]
        self._want(self._owner[place])
        self._look_again(now)

    def _changed(self, place: int, now: float) -> None:
        self._want(self._owner[place])
        self._look_again(now)

    def _want(self, function: int, factor: float = 1.0) -> None:
        """If it is not as ready as it could be, it is loaded when there is room."""
        known, missing = self._known.get(function), self._missing(function)
        if known is not None and missing:
            worth = known.outlook.rate * missing[0].saves_s / missing[0].adds_mb
            self._wanted.offer(function, -worth * factor)

    def _missing(self, function: int) -> list[Step]:
        """The steps above the best place that it has, which is not about to go."""
        steps = self._ladders.get(function)
        if not steps:
            return []
        best = self._best_place(function)
        level = self.book.profiles[function].floor.level if best is None else self.book.level[best]
        return [step for step in steps if step.level > level]

    def _load_ended(self, function: int, node: int, now: float) -> None:
        del function, node
        self._look_again(now)

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
        super().placed(place, function, node, level, now, load=load, host=host)
        if load is not None:
            self._look_again(now)

    def node_joined(self, node: int, budget_mb: float, now: float) -> None:
        super().node_joined(node, budget_mb, now)
        self._look_again(now)

    def _look_again(self, now: float) -> None:
        """There may be room now for what is wanted."""
        if len(self._wanted) and self._look_at == math.inf:
            self._look_at = now + LOOK_EVERY_S
            self.due = min(self.due, self._look_at)

    # Reviews

    def _tick(self, now: float) -> float:
        while (found := self._reviews.pop(now)) is not None:
            self._review(found[1], now)
        if now >= self._look_at:
            self._look_at = math.inf
            self._look_for_room(now)
        return min(self._reviews.least, self._look_at)

    def _review(self, function: int, now: float) -> None:
        known = self._known[function]
        outlook = self._refresh(known, now)
        if outlook.rate < DECAYED * known.ranked_by:
            known.ranked_by = outlook.rate
            for place in self.book.places(function):
                if self._idle_since[place] != BUSY:
                    self._look_at_idle(place, now)
        held = self._raise(function, known, now)
        self._reviews.offer(function, now + self._wait_s(outlook, now - known.last, held=held))

    @staticmethod
    def _wait_s(outlook: Outlook, idle_s: float, *, held: bool) -> float:
        """Worth changes by so much only in a time like that of the silence, or of a usual gap.

        But where a call is better waited for than found, it is about to rise. What is held needs to be
        looked at only to be dropped in its turn, when it has been silent for longer than usual.
        """
        if outlook is _BUSY:
            return BUSY_REVIEW_S
        wait_s = max(STALE * idle_s, (2.0 if held else 0.5) / max(1e-9, outlook.rate))
        if outlook.within_s > 4 * FIRST_S:
            wait_s = min(wait_s, max(0.1 * idle_s, outlook.soon_s))
        return min(MOST_REVIEW_S, max(LEAST_REVIEW_S, wait_s))

    def _outlook(self, known: Known, now: float) -> Outlook:
        """As it is now, but for what little has changed since it was reckoned."""
        if now - known.seen_at > max(LEAST_REVIEW_S, STALE * (now - known.last)):
            return self._refresh(known, now)
        return known.outlook

    def _refresh(self, known: Known, now: float) -> Outlook:
        known.seen_at = now
        fresh = known.calls - known.learnt_to
        idle_s = max(0.0, now - known.last)
        if fresh > 1:
            known.model.observe(max(0.0, (known.last - known.learnt_at) / fresh), fresh)
            known.learnt_at, known.learnt_to = known.last, known.calls
            if idle_s < SHORT_S:
                # It is called all the time: what the models would say in detail is of no use.
                known.outlook = _BUSY
                return _BUSY
        known.outlook = look_out(known.model, idle_s)
        return known.outlook

    def _look_for_room(self, now: float) -> None:
        """Try what is worth most. What does not come off stands back for others, until a review."""
        failed = []
        for _ in range(TRIES):
            if not any(self.loads.has_room(node, now) for node in self._victims):
                break
            found = self._wanted.pop()
            if found is None:
                break
            worth, function = found
            known = self._known[function]
            self._refresh(known, now)
            if not self._raise(function, known, now):
                failed.append((function, 0.5 * worth))
        for function, worth in failed:
            self._wanted.discard(function)
            self._wanted.offer(function, worth)

    # Worth

    def _rank(self, place: int, now: float) -> float:
        """Seconds saved per megabyte and second of holding, for the highest step of a place."""
        step = self._step_of(place)
        if step is None:
            return 0.0
        adds_mb = step.adds_mb
        if step.level >= Level.MAPPED:
            freed_mb = self.book.frees_mb(place)
            below = self.book.profiles[self._owner[place]].takes(step.below)
            forked = step.level is Level.INSTANCE and self._ladder_forks(place)
            adds_mb = freed_mb if forked else freed_mb - below.private_mb
        return self._rate(place, now) * step.saves_s / max(LEAST_MB, adds_mb)

    def _ladder_forks(self, place: int) -> bool:
        return self.book.profiles[self._owner[place]].forks

    def _step_of(self, place: int) -> Step | None:
        """The step that brought a place where it is, or where it is on the way to the next."""
        level = self.book.level[place]
        found = None
        for step in self._ladders.get(self._owner[place], ()):
            if step.level <= level:
                found = step
        return found

    def _rate(self, place: int, now: float) -> float:
        """How often a place is going to be of use: the first of its kind by all calls.

        Another one by the hits of the one with fewest, whichever that is: they take turns in being
        the one used last.
        """
        owner = self._owner[place]
        known = self._known.get(owner)
        if known is None:
            return 0.0
        rate = self._outlook(known, now).rate
        others = self._used_before(place)
        if not others:
            return rate
        if self._is_template(place):
            hits = self._tally.get((owner, self.book.node[place]), 0)
        else:
            hits = min(self._hits[one] for one in (place, *others))
        since = max(self.book.placed_at[one] for one in (place, *others))
        return min(rate, (0.5 + hits) / (PRIOR_S + max(0.0, now - since)))

    def _used_before(self, place: int) -> list[int]:
        """The places of its kind that are used before it."""
        book, since = self.book, self._idle_since[place]
        places = book.places(self._owner[place])
        if len(places) == 1:
            return places[:0]
        template, level = self._is_template(place), book.level[place]
        return [
            one
            for one in places
            if one != place
            and self._is_template(one) is template
            and (book.level[one], self._idle_since[one], -one) > (level, since, -place)
        ]

    def _look_at_idle(self, place: int, now: float) -> None:
        """Have it go in its turn, which may have come forward, or at once."""
        if place in self._leaving:
            return
        rank = self._rank(place, now)
        self._victims[self.book.node[place]].offer(place, rank)
        if rank < self._price and not self._in_use(place):
            self._end(place, self._why("not worth its memory any more", place, rank))

    def explain(self, place: int, now: float) -> Why:
        if self._idle_since[place] == BUSY:
            return Why("runs a call")
        return self._why("worth its memory", place, self._rank(place, now))

    def _why(self, rule: str, place: int, rank: float) -> Why:
        known, step = self._known.get(self._owner[place]), self._step_of(place)
        return Why(
            rule,
            chance=None if known is None else known.outlook.chance,
            within_s=None if known is None else known.outlook.within_s,
            saves_s=0.0 if step is None else step.saves_s,
            memory_mb=self.book.frees_mb(place),
            density=rank,
            price=self._price,
        )

    # Less

    def _end(self, place: int, why: Why) -> float:
        """One step down, where there is one to stand on; nothing is left of a place otherwise."""
        step = self._step_of(place)
        profile = self.book.profiles[self._owner[place]]
        forked = profile.forks and self.book.level[place] is Level.INSTANCE
        if step is None or forked or step.below <= profile.floor.level:
            return super()._end(place, why)
        freed_mb = 0.0
        if self._is_template(place):
            freed_mb += sum(
                self._lower(one, Level.ABSENT, why)
                for one in self.book.kin(place)
                if self.book.level[one] is Level.INSTANCE
            )
        return freed_mb + self._lower(place, step.below, why)

    def make_room(self, node: int, over_mb: float, now: float, why: Why) -> float:
        """Where single steps do not do, places go whole."""
        over_mb = super().make_room(node, over_mb, now, why)
        for number, action in enumerate(self._actions):
            if over_mb <= 0:
                break
            if not isinstance(action, Lower) or action.level is Level.ABSENT:
                continue
            if self.book.node[action.place] == node:
                self._actions[number] = Lower(action.place, Level.ABSENT, why)
                over_mb -= self._leave_whole(action.place)
        return over_mb

    def _leave_whole(self, place: int) -> float:
        more_mb = self.book.lower(place, Level.ABSENT)
        self._leaving[place] += more_mb
        self._leaving_mb[self.book.node[place]] += more_mb
        return more_mb

    # More

    def _raise(self, function: int, known: Known, now: float) -> bool:
        """Load the function to the highest step that pays, or one copy more, where there is room."""
        self._wanted.discard(function)
        if self._is_on_the_move(function):
            return False
        missing, best = self._missing(function), self._best_place(function)
        if not missing:
            self._raise_spare(function, known, now)
            return True
        forks = self.book.profiles[function].forks
        for count in range(len(missing), 0, -1):
            some = missing[:count]
            raised = None if forks and some[-1].level is Level.INSTANCE else best
            if raised is not None and self._idle_since[raised] == BUSY:
                break
            if self._try(function, some, known.outlook, raised, best, now):
                return True
        self._want(function)
        return False

    def _is_on_the_move(self, function: int) -> bool:
        """Something of it is being loaded or lowered: what is best is seen when that is done."""
        if self._leaving and any(one in self._leaving for one in self.book.places(function)):
            return True
        return self.loads.anywhere(function)

    def _raise_spare(self, function: int, known: Known, now: float) -> None:
        """One place more than there are, if calls overlapped often enough."""
        places = [one for one in self.book.places(function) if not self._is_template(one)]
        copies = len(places) + 1
        overlaps = known.overlaps.get(copies, 0)
        if overlaps < 2:
            return
        last = self._ladders[function][-1]
        outlook = steady(overlaps / (PRIOR_S + max(0.0, now - known.since)))
        steps = [last] if self.book.profiles[function].forks else list(self._ladders[function])
        self._try(function, steps, outlook, None, places[0] if places else None, now)

    def _price_of(self, node: int, now: float) -> float:
        """Of free memory, which is not free for long where there is little: it is as dear as what was
        evicted last, less as time goes by without any eviction.
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

    def _best_place(self, function: int) -> int | None:
        staying = (one for one in self.book.places(function) if one not in self._leaving)
        return max(staying, key=lambda one: (self.book.level[one], -one), default=None)

    def _try(
        self,
        function: int,
        steps: list[Step],
        outlook: Outlook,
        raised: int | None,
        near: int | None,
        now: float,
    ) -> bool:
        """Load if that pays on some node. A place is raised where it is; a fork is made there too."""
        book = self.book
        level = steps[-1].level
        fork = level is Level.INSTANCE and book.profiles[function].forks
        if near is not None and (raised is not None or fork):
            nodes = [book.node[near]]
        else:
            nodes = sorted(self._victims, key=lambda node: (-self._free_mb(node), node))
        saves_s, cpu_s = sum(s.saves_s for s in steps), sum(s.load_cpu_s for s in steps)
        for node in nodes:
            if not self.loads.may_start(function, node, now):
                continue
            adds_mb = book.adds_mb(function, node, level)
            if raised is not None:
                adds_mb -= book.private_mb(raised)
            needs = book.profiles[function].takes(Level.RESIDENT if fork else level)
            keys = {key for key, _ in needs.shared}
            over_mb = adds_mb - self._free_mb(node)
            going = self._cheapest(node, over_mb, now, function, keys)
            if going is None:
                continue
            lost = sum(rank * freed_mb for _, rank, freed_mb in going)
            free_mb = max(0.0, adds_mb - sum(freed_mb for _, _, freed_mb in going))
            cost_rate = self._margin * lost + self._price_of(node, now) * free_mb
            gain_s = outlook.gain_s(saves_s, cost_rate) - self._loader_price * cpu_s
            # The highest step alone has to pay as well: lower ones must not carry it.
            last_s = outlook.gain_s(
                steps[-1].saves_s, cost_rate * min(1.0, steps[-1].adds_mb / max(LEAST_MB, adds_mb))
            )
            if gain_s <= 0 or last_s <= self._loader_price * steps[-1].load_cpu_s:
                continue
            why = Why(
                "worth more than it costs",
                chance=outlook.chance,
                within_s=outlook.within_s,
                saves_s=saves_s,
                memory_mb=adds_mb,
                density=outlook.rate * saves_s / max(LEAST_MB, adds_mb),
                price=cost_rate / max(LEAST_MB, adds_mb),
            )
            for place, _, _ in going:
                self._end(place, why)
            self._act(self.loads.start(function, node, level, now, why, place=raised))
            return True
        return False

    def _cheapest(
        self, node: int, over_mb: float, now: float, function: int, keys: set[str]
    ) -> list[tuple[int, float, float]] | None:
        """What would go for so much memory: places, ranks and megabytes. None if it is not there.

        Never what is the function's own, nor what shares with it.
        """
        if over_mb <= 0:
            return []
        heap = self._victims[node]
        taken: list[int] = []
        going: list[tuple[int, float, float]] = []
        while over_mb > 0 and (found := heap.pop()) is not None:
            rank, place = found
            if self._idle_since[place] == BUSY:
                continue
            fresh = self._rank(place, now)
            if fresh > rank and fresh > heap.least:
                heap.offer(place, fresh)
                continue
            taken.append(place)
            if self._is_leaving(place) or self._owner[place] == function or self._in_use(place):
                continue
            if keys and any(key in keys for key, _ in self.book.shares(place)):
                continue
            freed_mb = self._steps_down_mb(place, [one for one, _, _ in going])
            going.append((place, fresh, freed_mb))
            over_mb -= freed_mb
        for place in taken:
            heap.offer(place, self._rank(place, now))
        return going if over_mb <= 0 else None

    def _steps_down_mb(self, place: int, gone: list[int]) -> float:
        """What `_end` would free, once some others have been ended."""
        freed_mb = self.book.frees_mb(place)
        step = self._step_of(place)
        profile = self.book.profiles[self._owner[place]]
        if step is not None and step.below > profile.floor.level:
            forked = profile.forks and self.book.level[place] is Level.INSTANCE
            freed_mb -= 0.0 if forked else profile.takes(step.below).private_mb
        if self._is_template(place):
            freed_mb += sum(
                self.book.frees_mb(one)
                for one in self.book.kin(place)
                if self.book.level[one] is Level.INSTANCE and one not in gone
            )
        return freed_mb
