"""Nodes in virtual time that do what a policy of preloading says, and hold it to its contract.

Small on purpose, and slow: processes start at once in what memory there is, loads take their time, cores
are not scarce. Every action is checked: what it names must be there, and loads must fit.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from faasd.policies.preloading.actions import Action, Cancel, Load, Lower
from faasd.policies.preloading.ledger import Ledger
from faasd.policies.preloading.levels import Level, Profile, Stage
from faasd.policies.preloading.policy import Policy

ROUNDING_MB = 1e-6


@dataclass(slots=True)
class Place:
    id: int
    function: int
    node: int
    level: Level
    host: int | None = None
    busy: bool = False
    used_at: float = 0.0
    stage: Stage | None = None
    ahead: bool = False


@dataclass(slots=True)
class Tally:
    found: Counter[Level] = field(default_factory=Counter)
    found_by: dict[int, Counter[Level]] = field(default_factory=lambda: defaultdict(Counter))
    waited_s: float = 0.0
    waited_by: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    starved: int = 0
    loads: int = 0
    hits_of_loads: int = 0
    lowered: int = 0
    cancelled: int = 0
    load_cpu_s: float = 0.0
    memory_mb_s: float = 0.0

    @property
    def calls(self) -> int:
        return self.found.total()

    def share(self, *levels: Level) -> float:
        return sum(self.found[one] for one in levels) / max(1, self.calls)


class World:
    def __init__(
        self,
        policy: Policy,
        profiles: dict[int, Profile],
        nodes: dict[int, float],
        *,
        broken: Iterable[int] = (),
        hanging: Iterable[int] = (),
        start: float = 0.0,
    ) -> None:
        self.policy = policy
        self.profiles = profiles
        self.budget_mb = dict(nodes)
        self.broken = set(broken)
        self.hanging = set(hanging)
        self.now = start
        self.tally = Tally()
        self.ledger = Ledger()
        self.places: dict[int, Place] = {}
        self.loading: dict[int, tuple[Load, tuple[Stage, ...]]] = {}
        self.actions: list[tuple[float, Action]] = []
        self._of: dict[int, set[int]] = defaultdict(set)
        self._free: list[int] = []
        self._waiting: dict[int, list[float]] = defaultdict(list)
        self._events: list[tuple[float, int, str, int]] = []
        self._order = itertools.count()
        for node, budget_mb in nodes.items():
            self.ledger.open(node, budget_mb)
            policy.node_joined(node, budget_mb, start)
        for function, profile in profiles.items():
            policy.known(function, profile, start)
        self._turn()

    # Driving

    def run(self, calls: Iterable[tuple[float, int]]) -> Tally:
        """Calls are times and functions, and rise."""
        for at, function in calls:
            self.advance(at)
            self.call(function)
        return self.tally

    def advance(self, until: float) -> None:
        while True:
            at = min(self._events[0][0] if self._events else math.inf, self.policy.due)
            if at > until:
                break
            self._pass(at)
            if self._events and self._events[0][0] <= self.now:
                _, _, kind, subject = heapq.heappop(self._events)
                act = {"call": self._done, "load": self._loaded, "waiting": self._serve_waiting}
                act[kind](subject)
            self._turn()
        self._pass(until)

    def call(self, function: int) -> None:
        self.policy.arrived(function, self.now)
        self._turn()
        self._serve(function, self.now)
        self._turn()

    def drop(self, place: int) -> None:
        """It ended by itself."""
        self._remove(place)
        self._turn()

    def press(self, node: int, over_mb: float) -> None:
        self.policy.pressed(node, over_mb, self.now)
        self._turn()

    def shrink(self, node: int, budget_mb: float) -> None:
        self.ledger.open(node, budget_mb)
        self.policy.node_joined(node, budget_mb, self.now)
        self._turn()

    # What is there

    def levels(self, function: int) -> list[Level]:
        return sorted(self.places[one].level for one in self._of[function])

    def place_of(self, function: int, level: Level = Level.INSTANCE) -> int:
        return next(one for one in self._of[function] if self.places[one].level is level)

    # Inside

    def _pass(self, until: float) -> None:
        until = max(until, self.now)
        used_mb = sum(self.ledger.used_mb(node) for node in self.ledger.nodes)
        self.tally.memory_mb_s += used_mb * (until - self.now)
        self.now = until

    def _turn(self) -> None:
        for _ in range(1000):
            if self.policy.due > self.now:
                return
            for action in self.policy.decide(self.now):
                self.actions.append((self.now, action))
                self._carry_out(action)
        raise AssertionError(f"{self.policy!r} is never done at {self.now}")

    def _carry_out(self, action: Action) -> None:
        match action:
            case Load():
                self._load(action)
            case Cancel(load):
                gone, stages = self.loading.pop(load)
                for stage in stages:
                    self.ledger.release(gone.node, stage)
                self.tally.cancelled += 1
                self._later(0.0, "waiting", gone.function)
            case Lower(place, level):
                self._lower(place, level)

    def _load(self, load: Load) -> None:
        profile = self.profiles[load.function]
        hosted = load.host is not None
        if load.host is not None:
            assert load.host in self.places, "loaded into a sandbox that is not there"
            assert not self.places[load.host].busy
        since = Level.ABSENT
        stages: tuple[Stage, ...]
        if load.place is not None:
            raised = self.places[load.place]
            assert not raised.busy
            since = raised.level
            assert since < load.level, "raised to where it is"
            before = raised.stage
            assert before is not None
            more = profile.takes(load.level)
            stages = (Stage(load.level, 0.0, more.private_mb - before.private_mb, more.shared),)
        else:
            stages = self._needs(load.function, load.node, load.level, hosted=hosted)
            if profile.forks and load.level is Level.INSTANCE and len(stages) == 1:
                since = Level.RESIDENT
        for stage in stages:
            self.ledger.hold(load.node, stage)
        assert self.ledger.free_mb(load.node) >= -ROUNDING_MB, f"{load} does not fit"
        self.loading[load.id] = (load, stages)
        self.tally.loads += 1
        self.tally.load_cpu_s += profile.load_cpu_s(load.level, since)
        if load.function not in self.hanging:
            self._later(profile.load_s(load.level, since), "load", load.id)

    def _loaded(self, identity: int) -> None:
        found = self.loading.pop(identity, None)
        if found is None:
            return
        load, stages = found
        for stage in stages:
            self.ledger.release(load.node, stage)
        if load.function in self.broken:
            self.policy.failed(identity, "load() raised ValueError", self.now)
        elif load.host is not None and load.host not in self.places:
            self.policy.failed(identity, "its sandbox is gone", self.now)
        elif load.place is not None and load.place not in self.places:
            self.policy.failed(identity, "its place is gone", self.now)
        elif load.place is not None and self.places[load.place].busy:
            # A call was quicker, and has brought it there itself.
            place = self.places[load.place]
            self._tell(place, load=identity)
        elif load.place is not None:
            self._relevel(self.places[load.place], load.function, load.level, load=identity)
            self.places[load.place].ahead = True
        else:
            self._bring(load, identity)
        self._serve_waiting(load.function)

    def _bring(self, load: Load, identity: int) -> None:
        forks = self.profiles[load.function].forks
        if (
            forks
            and load.level is Level.INSTANCE
            and self._template(load.function, load.node) is None
        ):
            self._make(load.function, load.node, Level.RESIDENT)
        place = self._make(load.function, load.node, load.level, load=identity, host=load.host)
        place.ahead = True

    def _serve_waiting(self, function: int) -> None:
        for arrived in self._waiting.pop(function, []):
            self._serve(function, arrived)

    def _serve(self, function: int, arrived: float) -> None:
        idle = self._reusable(function)
        if idle is not None and idle.level is Level.INSTANCE and idle.function == function:
            self._begin(self._take_over(idle), arrived, Level.INSTANCE)
            return
        coming = any(load.function == function for load, _ in self.loading.values())
        if coming and function not in self.hanging:
            self._waiting[function].append(arrived)
            return
        if idle is not None and self._fits_raised(idle, function):
            found = idle.level
            self._relevel(idle, function, Level.INSTANCE)
            self._begin(idle, arrived, found)
            return
        self._start(function, arrived)

    def _start(self, function: int, arrived: float) -> None:
        """A new place, on the node that has most of it already, or else on the one with most room."""
        nodes = sorted(
            self.budget_mb,
            key=lambda node: (
                self._template(function, node) is None,
                -self.ledger.free_mb(node),
                node,
            ),
        )
        for node in nodes:
            template = self._template(function, node)
            if not self._room(node, function):
                continue
            found = self.profiles[function].floor.level
            if self.profiles[function].forks:
                template = self._template(function, node)
                if template is None:
                    self._make(function, node, Level.RESIDENT)
                else:
                    found = template.level
                    if template.host is not None:
                        template.host = None
                        self._relevel(template, function, template.level)
                    if template.ahead:
                        self.tally.hits_of_loads += 1
                        template.ahead = False
            self._begin(self._make(function, node, Level.INSTANCE), arrived, found)
            return
        self.tally.starved += 1

    def _room(self, node: int, function: int) -> bool:
        for _ in range(3):
            stages = self._needs(function, node, Level.INSTANCE)
            missing_mb = sum(self.ledger.adds_mb(node, one) for one in stages)
            missing_mb -= self.ledger.free_mb(node)
            if missing_mb <= ROUNDING_MB:
                return True
            self.policy.pressed(node, missing_mb, self.now)
            self._turn()
        return False

    def _fits_raised(self, place: Place, function: int) -> bool:
        assert place.stage is not None
        for _ in range(3):
            more = self.profiles[function].takes(Level.INSTANCE)
            missing_mb = more.private_mb - place.stage.private_mb - self.ledger.free_mb(place.node)
            if missing_mb <= ROUNDING_MB:
                return True
            place.busy = True
            self.policy.began(place.id, place.function, self.now)
            self.policy.pressed(place.node, missing_mb, self.now)
            self._turn()
            place.busy = False
            self.policy.idled(place.id, self.now)
            self._turn()
            if place.id not in self.places:
                return False
        return False

    def _reusable(self, function: int) -> Place | None:
        """Its own most recently used idle place; what another left, where that is at a higher level."""
        own = [self.places[one] for one in self._of[function] if not self.places[one].busy]
        own = [one for one in own if not self._is_template(one)]
        own = [one for one in own if one.host is None or not self.places[one.host].busy]
        best = max(
            own, key=lambda one: (one.level, one.host is None, one.used_at, -one.id), default=None
        )
        if best is not None and best.level is Level.INSTANCE:
            return best
        mine = self.profiles[function]
        for one in self.places.values():
            theirs = self.profiles[one.function]
            if one.busy or one.host is not None or one.level > Level.LIBRARIES:
                continue
            if self._is_template(one) or theirs.tenant != mine.tenant:
                continue
            if theirs.runtime != mine.runtime and one.level > Level.SANDBOX:
                continue
            if best is None or one.level > best.level:
                best = one
        return best

    def _take_over(self, place: Place) -> Place:
        """What is in another's sandbox has that for itself now."""
        if place.host is None:
            return place
        host = self.places[place.host]
        if place.ahead:
            self.tally.hits_of_loads += 1
        self._remove(place.id)
        self._relevel(host, place.function, Level.INSTANCE)
        return host

    def _begin(self, place: Place, arrived: float, found: Level) -> None:
        profile = self.profiles[place.function]
        self.tally.found[found] += 1
        self.tally.found_by[place.function][found] += 1
        if place.ahead:
            self.tally.hits_of_loads += 1
            place.ahead = False
        waited_s = self.now - arrived + profile.stage(found).start_s
        self.tally.waited_s += waited_s
        self.tally.waited_by[place.function] += waited_s
        place.busy = True
        self.policy.began(place.id, place.function, self.now)
        self._later(profile.stage(found).start_s + profile.exec_s, "call", place.id)

    def _done(self, identity: int) -> None:
        place = self.places[identity]
        place.busy = False
        place.used_at = self.now
        self.policy.idled(identity, self.now)

    def _lower(self, identity: int, level: Level) -> None:
        place = self.places.get(identity)
        if place is None or place.busy:
            return
        self.tally.lowered += 1
        if level is Level.ABSENT:
            self._remove(identity)
        else:
            assert level < place.level, f"lowered from {place.level} to {level}"
            self._relevel(place, place.function, level)

    def _remove(self, identity: int) -> None:
        place = self.places[identity]
        for one in [one for one in self.places.values() if one.host == identity]:
            self._remove(one.id)
        if self._is_template(place):
            kin = [self.places[one] for one in self._of[place.function]]
            forks = [one for one in kin if one.node == place.node and one.level is Level.INSTANCE]
            assert not any(one.busy for one in forks), "a template went under a running call"
            for one in forks:
                self._remove(one.id)
        assert place.stage is not None
        self.ledger.release(place.node, place.stage)
        del self.places[identity]
        self._of[place.function].discard(identity)
        self._free.append(identity)
        self.policy.dropped(identity, self.now)

    def _make(
        self,
        function: int,
        node: int,
        level: Level,
        load: int | None = None,
        host: int | None = None,
    ) -> Place:
        identity = self._free.pop() if self._free else len(self.places)
        place = Place(identity, function, node, level, host, used_at=self.now)
        self.places[identity] = place
        self._of[function].add(identity)
        place.stage = self.profiles[function].takes(level, hosted=host is not None)
        self.ledger.hold(node, place.stage)
        self._tell(place, load=load)
        return place

    def _relevel(self, place: Place, function: int, level: Level, load: int | None = None) -> None:
        assert place.stage is not None
        stage = self.profiles[function].takes(level, hosted=place.host is not None)
        self.ledger.hold(place.node, stage)
        self.ledger.release(place.node, place.stage)
        self._of[place.function].discard(place.id)
        self._of[function].add(place.id)
        place.function, place.level, place.stage = function, level, stage
        self._tell(place, load=load)

    def _tell(self, place: Place, load: int | None = None) -> None:
        self.policy.placed(
            place.id, place.function, place.node, place.level, self.now, load=load, host=place.host
        )

    def _template(self, function: int, node: int) -> Place | None:
        for one in self._of[function]:
            place = self.places[one]
            if place.node == node and self._is_template(place):
                return place
        return None

    def _is_template(self, place: Place) -> bool:
        level = place.level
        return self.profiles[place.function].forks and Level.LAYER < level < Level.INSTANCE

    def _needs(
        self, function: int, node: int, level: Level, *, hosted: bool = False
    ) -> tuple[Stage, ...]:
        profile = self.profiles[function]
        stage = profile.takes(level, hosted=hosted)
        if level is Level.INSTANCE and profile.forks and self._template(function, node) is None:
            return (profile.takes(Level.RESIDENT), stage)
        return (stage,)

    def _later(self, wait_s: float, kind: str, subject: int) -> None:
        heapq.heappush(self._events, (self.now + wait_s, next(self._order), kind, subject))
