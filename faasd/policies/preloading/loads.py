"""Loads under way: how many and how much there may be, what is overdue, what is not to be tried.

Transitions are bounded here, whatever a policy wishes: so many at once on a node, and a share of its
processor time, saved up for bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from faasd.policies.preloading.actions import Load, Why
from faasd.policies.preloading.book import Book
from faasd.policies.preloading.levels import Level, Stage
from faasd.policies.preloading.quarantine import Quarantine

PATIENCE = 10.0
LEAST_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of speculative loads, on each node. A load may be short of credit, once there is any."""

    at_once: int = 2
    cpu_share: float = 0.5
    cpu_burst_s: float = 60.0


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A load that has not ended, what is reserved for it, and when it should have ended."""

    load: Load
    stages: tuple[Stage, ...]
    began_at: float
    overdue_at: float


@dataclass(slots=True)
class _Credit:
    left_s: float
    at: float


class Loads:
    def __init__(self, book: Book, bounds: Bounds | None = None) -> None:
        self.quarantine = Quarantine()
        self.cpu_s = 0.0
        """What all loads begun so far were expected to take."""
        self._book = book
        self._bounds = bounds or Bounds()
        self._next = 1
        self._under_way: dict[int, UnderWay] = {}
        self._by_node: dict[int, set[int]] = {}
        self._targets: dict[tuple[int, int], int] = {}
        self._credit: dict[int, _Credit] = {}
        self.due = math.inf
        """When the first of them is overdue."""

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def latest(self) -> int:
        """The load that was started last."""
        return self._next - 1

    def of(self, node: int) -> list[Load]:
        return [self._under_way[one].load for one in sorted(self._by_node.get(node, ()))]

    def under_way(self, load: int) -> Load | None:
        found = self._under_way.get(load)
        return None if found is None else found.load

    def takes_memory(self, load: int) -> bool:
        """Whether to give it up would free any."""
        return any(one.private_mb or one.shared for one in self._under_way[load].stages)

    def anywhere(self, function: int) -> bool:
        return any(one.load.function == function for one in self._under_way.values())

    def may_start(self, function: int, node: int, now: float) -> bool:
        return (
            self.has_room(node, now)
            and (function, node) not in self._targets
            and not self.quarantine.holds(function, node, now)
        )

    def has_room(self, node: int, now: float) -> bool:
        """Whether any load may begin there."""
        if len(self._by_node.get(node, ())) >= self._bounds.at_once:
            return False
        return self._refilled(node, now).left_s > 0

    def has_room_at(self, node: int, now: float) -> float:
        """When there is credit again; never of itself, where as many run as may at once."""
        if len(self._by_node.get(node, ())) >= self._bounds.at_once:
            return math.inf
        left_s = self._refilled(node, now).left_s
        return now if left_s > 0 else now + (1e-3 - left_s) / self._bounds.cpu_share

    def start(
        self,
        function: int,
        node: int,
        level: Level,
        now: float,
        why: Why,
        *,
        host: int | None = None,
        place: int | None = None,
    ) -> Load:
        """Count a load, its memory included, as under way from now on."""
        book = self._book
        profile = book.profiles[function]
        load = Load(self._next, function, node, level, why, host, place)
        self._next += 1
        if place is None:
            stages = book.needs(function, node, level, hosted=host is not None)
            forked = level is Level.INSTANCE and profile.forks and len(stages) == 1
            since = Level.RESIDENT if forked else Level.ABSENT
        else:
            since = book.level[place]
            rise = profile.takes(level)
            more_mb = max(0.0, rise.private_mb - book.private_mb(place))
            stages = (Stage(level, 0.0, more_mb, rise.shared),)
        cpu_s = profile.load_cpu_s(level, since)
        overdue = now + max(LEAST_PATIENCE_S, PATIENCE * profile.load_s(level, since))
        self._refilled(node, now).left_s -= cpu_s
        self.cpu_s += cpu_s
        for stage in stages:
            book.ledger.hold(node, stage)
        self._under_way[load.id] = UnderWay(load, stages, now, overdue)
        self._by_node.setdefault(node, set()).add(load.id)
        self._targets[function, node] = load.id
        self.due = min(self.due, overdue)
        return load

    def succeeded(self, load: int) -> Load | None:
        done = self._end(load)
        if done is not None:
            self.quarantine.succeeded(done.function, done.node)
        return done

    def failed(self, load: int, reason: str, now: float) -> Load | None:
        done = self._end(load)
        if done is not None:
            self.quarantine.failed(done.function, done.node, reason, now)
        return done

    def given_up(self, load: int) -> Load | None:
        """Cancelled by the policy, which says nothing about the function."""
        return self._end(load)

    def overdue(self, now: float) -> list[UnderWay]:
        if now < self.due:
            return []
        return [one for one in self._under_way.values() if one.overdue_at <= now]

    def forget_node(self, node: int) -> None:
        for one in list(self._by_node.get(node, ())):
            self._end(one)
        self._credit.pop(node, None)

    def _end(self, load: int) -> Load | None:
        found = self._under_way.pop(load, None)
        if found is None:
            return None
        done = found.load
        for stage in found.stages:
            self._book.ledger.release(done.node, stage)
        self._by_node[done.node].discard(load)
        self._targets.pop((done.function, done.node), None)
        self.due = min((one.overdue_at for one in self._under_way.values()), default=math.inf)
        return done

    def _refilled(self, node: int, now: float) -> _Credit:
        credit = self._credit.get(node)
        bounds = self._bounds
        if credit is None:
            credit = self._credit[node] = _Credit(bounds.cpu_burst_s, now)
        elif now > credit.at:
            gained = (now - credit.at) * bounds.cpu_share
            credit.left_s = min(bounds.cpu_burst_s, credit.left_s + gained)
            credit.at = now
        return credit
