"""InstaInfer (SoCC'24): functions are loaded into idle sandboxes that other functions left.

Sandboxes are kept by some other policy, `over`; none is made or kept for longer because of a preload.
From the last calls of a function follows when it is worth loading, T_load after the last one, and
until when, T_offload. Idle sandboxes of the same tenant are bins: the functions most worth their
memory are placed where they fit best, and replace what is worth less than they. Their worth is
the probability of a call within a minute times the seconds that importing and loading take.

A call for what is loaded in the sandbox of another takes that sandbox over; what else is in it
stays, unless there is no room. Where instances are forks, templates are what is loaded, idle ones mark
the sandboxes, and a template that is called for gets a sandbox of its own. The artefact kills all the neighbours, believes in loads that it was
never told of, evicts less than it needs, and counts windows in whole minutes: none of that is here.
A process that has served a call stays, where the artefact loads its weights from disk again.

`predictor` off places whatever has ever been called, at any event; `scheduler` off loads a function when
the predictor says so into a sandbox where nothing else was loaded, and replaces nothing; with both
off a sandbox holds only what last ran there.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.arrivals.exponential import rate_of
from faasd.policies.preloading.fixed import Fixed
from faasd.policies.preloading.greedy_dual import GreedyDual
from faasd.policies.preloading.histogram import Histogram
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.pagurus import Pagurus
from faasd.policies.preloading.policy import Policy
from faasd.policies.preloading.relaying import Relaying

KEEPERS: dict[str, type[Fixed | Histogram | GreedyDual | Pagurus]] = {
    one.name: one for one in (Fixed, Histogram, GreedyDual, Pagurus)
}

WINDOW = 20
HORIZON_S = 60.0
PACK_EVERY_S = 0.5

_REPLACED = Why("another function is worth more in this sandbox")
_UNLIKELY = Why("has not been called by the time it should have been")
_CROWDED = Why("the sandbox is too small for what runs there now")


def load_after_s(chance: float, rate: float) -> float:
    """T_load, T_offload: by when the next call has come with this probability."""
    return -math.log(1.0 - chance) / rate


@dataclass(frozen=True, slots=True)
class _Bin:
    place: int
    node: int
    free_mb: float
    alone: bool
    hosted: tuple[int, ...]
    least_worth: float


class InstaInfer(Relaying):
    name: ClassVar[str] = "instainfer"

    def __init__(
        self,
        *,
        over: str = "fixed",
        predictor: bool = True,
        scheduler: bool = True,
        load_chance: float = 0.06,
        drop_chance: float = 0.94,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(bounds=bounds or Bounds(at_once=4, cpu_share=4.0, cpu_burst_s=600.0))
        if over not in KEEPERS:
            raise ValueError(f"instainfer is not made to go over {over!r}; choose {list(KEEPERS)}")
        self._keeper: Policy = KEEPERS[over]()
        self._predictor = predictor
        self._scheduler = scheduler
        self._load_chance = load_chance
        self._drop_chance = drop_chance
        self._calls: dict[int, deque[float]] = {}
        self._timers = LazyHeap()
        self._candidates: set[int] = set()
        self._to_pack = False
        self._packed_at = -math.inf

    # Events, which the policy beneath is told of where they concern whole sandboxes

    def known(self, function: int, profile: Profile, now: float) -> None:
        super().known(function, profile, now)
        self._keeper.known(function, profile, now)

    def forgotten(self, function: int, now: float) -> None:
        super().forgotten(function, now)
        self._keeper.forgotten(function, now)
        self._calls.pop(function, None)
        self._timers.discard(function)
        self._candidates.discard(function)

    def node_joined(self, node: int, budget_mb: float, now: float) -> None:
        super().node_joined(node, budget_mb, now)
        self._keeper.node_joined(node, budget_mb, now)

    def node_left(self, node: int, now: float) -> None:
        super().node_left(node, now)
        self._keeper.node_left(node, now)

    def arrived(self, function: int, now: float) -> None:
        super().arrived(function, now)
        self._keeper.arrived(function, now)
        calls = self._calls.get(function)
        if calls is None:
            calls = self._calls[function] = deque(maxlen=WINDOW)
        calls.append(max(now, calls[-1]) if calls else now)
        if not self._predictor:
            self._candidates.add(function)
        else:
            self._candidates.discard(function)
            rate = rate_of(calls)
            if rate:
                at = now + load_after_s(self._load_chance, rate)
                self._timers.offer(function, at)
                self.due = min(self.due, at)

    def began(self, place: int, function: int, now: float) -> None:
        super().began(place, function, now)
        self._keeper.began(place, function, now)
        self._follow(self._keeper)

    def idled(self, place: int, now: float) -> None:
        super().idled(place, now)
        self._keeper.idled(place, now)
        self._follow(self._keeper)
        self._wish_to_pack(now)

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
        if host is None:
            self._keeper.placed(
                place, function, node, level, now, load=self._theirs_done(self._keeper, load)
            )
            self._make_fit(place)
            self._follow(self._keeper)
        self._wish_to_pack(now)

    def dropped(self, place: int, now: float) -> None:
        if self.book.is_there(place):
            if self.book.host[place] is None:
                self._keeper.dropped(place, now)
            super().dropped(place, now)
            self._follow(self._keeper)
            self._wish_to_pack(now)

    # Decisions

    def explain(self, place: int, now: float) -> Why:
        host = self.book.host[place]
        if host is None:
            return self._keeper.explain(place, now)
        function = self._owner[place]
        return Why(
            f"loaded in the idle sandbox {host}",
            chance=self._chance(function),
            within_s=HORIZON_S,
            saves_s=self._saved_s(function),
            memory_mb=self._size_mb(function),
            density=self._worth(function) / max(1.0, self._size_mb(function)),
        )

    def _tick(self, now: float) -> float:
        self._relay(self._keeper, now)
        while (found := self._timers.pop(now)) is not None:
            self._on_timer(found[1], now)
        if self._to_pack and now >= self._packed_at + PACK_EVERY_S:
            self._to_pack = False
            self._packed_at = now
            self._pack(now)
        due = min(self._keeper.due, self._timers.least)
        return min(due, self._packed_at + PACK_EVERY_S) if self._to_pack else due

    def _on_timer(self, function: int, now: float) -> None:
        calls = self._calls.get(function)
        rate = rate_of(calls) if calls else 0.0
        if not calls or not rate:
            return
        last = calls[-1]
        load_at = last + load_after_s(self._load_chance, rate)
        drop_at = last + load_after_s(self._drop_chance, rate)
        if now < load_at:
            self._timers.offer(function, load_at)
        elif now < drop_at:
            self._timers.offer(function, drop_at)
            self._candidates.add(function)
            if self._scheduler:
                self._to_pack = True
            else:
                self._load_alone(function, now)
        else:
            self._candidates.discard(function)
            for place in self.book.places(function):
                if self.book.host[place] is not None and not self._in_use(place):
                    self._lower(place, Level.ABSENT, _UNLIKELY)

    # What is worth how much

    def _chance(self, function: int) -> float:
        return 1.0 - math.exp(-rate_of(self._calls.get(function, ())) * HORIZON_S)

    def _level(self, function: int) -> Level:
        """What is loaded of a function."""
        return Level.RESIDENT if self.book.profiles[function].forks else Level.INSTANCE

    def _saved_s(self, function: int) -> float:
        return self.book.profiles[function].saves_s(self._level(function), Level.SANDBOX)

    def _worth(self, function: int) -> float:
        return self._chance(function) * self._saved_s(function)

    def _size_mb(self, function: int) -> float:
        stage = self.book.profiles[function].stage(self._level(function))
        return stage.private_mb + sum(size_mb for _, size_mb in stage.shared)

    # Packing

    def _wish_to_pack(self, now: float) -> None:
        if self._scheduler and self._candidates and not self._to_pack:
            self._to_pack = True
            self.due = min(self.due, max(now, self._packed_at + PACK_EVERY_S))

    def _pack(self, now: float) -> None:
        """Place what is worth most per megabyte first, as long as loads may begin."""
        missing = [
            (self._worth(one), self._size_mb(one), one)
            for one in self._candidates
            if not self._is_loaded(one)
        ]
        missing.sort(key=lambda one: (-one[0] / max(1.0, one[1]), one[2]))
        bins = self._bins()
        for worth, size_mb, function in missing:
            if not any(self.loads.has_room(node, now) for node in {one.node for one in bins}):
                return
            # Most do not fit anywhere and are worth less than all there is: no need to try each bin.
            roomiest_mb = max(one.free_mb for one in bins)
            if size_mb > roomiest_mb and worth <= min(one.least_worth for one in bins):
                continue
            chosen = self._best_fit(function, bins, now)
            if chosen is not None:
                self._load_into(function, chosen, now)
                bins = self._bins()

    def _load_alone(self, function: int, now: float) -> None:
        if self._is_loaded(function):
            return
        for one in self._bins():
            fits = one.alone and one.free_mb >= self._size_mb(function)
            if fits and self._may_go(function, one, now):
                self._load_into(function, one, now)
                return

    def _is_loaded(self, function: int) -> bool:
        """Or is about to be, anywhere, in a place that a call could use."""
        if self.loads.anywhere(function):
            return True
        level = self._level(function)
        return any(self.book.level[one] is level for one in self.book.places(function))

    def _bins(self) -> list[_Bin]:
        loading: dict[int, float] = {}
        for node in self.book.ledger.nodes:
            for load in self.loads.of(node):
                if load.host is not None:
                    size_mb = self._size_mb(load.function)
                    loading[load.host] = loading.get(load.host, 0.0) + size_mb
        return [
            self._bin(place, loading.get(place, 0.0))
            for place in self.book.everything()
            if self._is_sandbox(place) and not self._in_use(place) and not self._is_leaving(place)
        ]

    def _is_sandbox(self, place: int) -> bool:
        """Whether a place stands for a sandbox: an instance that is a fork is in its template's."""
        forks = self.book.profiles[self._owner[place]].forks
        return self.book.host[place] is None and (not forks or self._is_template(place))

    def _bin(self, place: int, loading_mb: float) -> _Bin:
        book = self.book
        owner = self._owner[place]
        profile = book.profiles[owner]
        hosted = [one for one in sorted(book.hosts.get(place, ())) if not self._is_leaving(one)]
        if profile.forks:
            own_mb = self._size_mb(owner) + sum(map(book.private_mb, book.kin(place)))
        else:
            own_mb = profile.stage(book.level[place]).private_mb
        used_mb = own_mb + loading_mb + sum(self._size_mb(self._owner[one]) for one in hosted)
        free_mb = profile.limit_mb - used_mb
        alone = not hosted and not loading_mb
        least = min((self._worth(self._owner[one]) for one in hosted), default=math.inf)
        return _Bin(place, book.node[place], free_mb, alone, tuple(hosted), least)

    def _may_go(self, function: int, into: _Bin, now: float) -> bool:
        profiles = self.book.profiles
        same_tenant = profiles[function].tenant == profiles[self._owner[into.place]].tenant
        if not same_tenant or self._owner[into.place] == function:
            return False
        adds_mb = self.book.adds_mb(function, into.node, self._level(function), hosted=True)
        fits = adds_mb <= self._free_mb(into.node)
        return fits and self.loads.may_start(function, into.node, now)

    def _best_fit(self, function: int, bins: list[_Bin], now: float) -> _Bin | None:
        """The fullest bin with room; else the one in which the least worth has to go for it."""
        size_mb = self._size_mb(function)
        fitting = [one for one in bins if one.free_mb >= size_mb]
        for one in sorted(fitting, key=lambda one: (one.free_mb, one.place)):
            if self._may_go(function, one, now):
                return one
        best: tuple[float, _Bin, list[int]] | None = None
        for one in bins:
            going = self._to_replace(one, size_mb)
            if going is None or not self._may_go(function, one, now):
                continue
            lost = sum(self._worth(self._owner[place]) for place in going)
            if lost < self._worth(function) and (best is None or lost < best[0]):
                best = (lost, one, going)
        if best is None:
            return None
        for place in best[2]:
            self._lower(place, Level.ABSENT, _REPLACED)
        return best[1]

    def _to_replace(self, one: _Bin, size_mb: float) -> list[int] | None:
        """What would have to go, the least worth first; None where that is not enough."""
        going: list[int] = []
        free_mb = one.free_mb
        for place in sorted(one.hosted, key=lambda place: self._worth(self._owner[place])):
            if free_mb >= size_mb:
                break
            going.append(place)
            free_mb += self._size_mb(self._owner[place])
        return going if free_mb >= size_mb else None

    def _load_into(self, function: int, into: _Bin, now: float) -> None:
        why = Why(
            f"worth most in the idle sandbox {into.place}",
            chance=self._chance(function),
            within_s=HORIZON_S,
            saves_s=self._saved_s(function),
            memory_mb=self._size_mb(function),
        )
        level = self._level(function)
        self._act(self.loads.start(function, into.node, level, now, why, host=into.place))

    def _make_fit(self, host: int) -> None:
        """What is in a sandbox that has another owner now goes only where there is no room."""
        free_mb = self._bin(host, 0.0).free_mb
        hosted = sorted(self.book.hosts.get(host, ()), key=lambda p: self._worth(self._owner[p]))
        for place in hosted:
            if free_mb >= 0:
                return
            if not self._is_leaving(place):
                self._lower(place, Level.ABSENT, _CROWDED)
                free_mb += self._size_mb(self._owner[place])

    # Memory

    def pressed(self, node: int, over_mb: float, now: float) -> None:
        """Preloads go first, as they are nobody's loss, then sandboxes as the policy beneath says."""
        over_mb -= self._leaving_mb[node]
        over_mb = self._give_up_loads(node, over_mb, now)
        hosted = [
            place
            for place in self.book.everything()
            if self.book.host[place] is not None and self.book.node[place] == node
        ]
        for place in sorted(hosted, key=lambda place: self._worth(self._owner[place])):
            if over_mb <= 0:
                return
            if not self._in_use(place) and self.book.frees_mb(place):
                over_mb -= self._lower(place, Level.ABSENT, self.PRESSED)
        if over_mb > 0:
            self._keeper.pressed(node, over_mb, now)
            self._relay(self._keeper, now)
            self.due = -math.inf


class NoPredictor(InstaInfer):
    name: ClassVar[str] = "instainfer-no-predictor"

    def __init__(self, *, over: str = "fixed", bounds: Bounds | None = None) -> None:
        super().__init__(over=over, predictor=False, bounds=bounds)


class NoScheduler(InstaInfer):
    name: ClassVar[str] = "instainfer-no-scheduler"

    def __init__(self, *, over: str = "fixed", bounds: Bounds | None = None) -> None:
        super().__init__(over=over, scheduler=False, bounds=bounds)


class SelfOnly(InstaInfer):
    """Only what last ran in a sandbox is loaded there: the policy beneath, with live processes."""

    name: ClassVar[str] = "instainfer-self-only"

    def __init__(self, *, over: str = "fixed", bounds: Bounds | None = None) -> None:
        super().__init__(over=over, predictor=False, scheduler=False, bounds=bounds)
