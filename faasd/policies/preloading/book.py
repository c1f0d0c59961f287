"""What is where: the places of every node, as arrays, and the memory that they take."""

from __future__ import annotations

import math

from faasd.policies.preloading.ledger import Ledger
from faasd.policies.preloading.levels import Level, Profile, Share, Stage

BUSY = math.inf
"""In place of the time since which a place is idle."""

NOBODY = -1
_GONE = Stage(Level.ABSENT, 0.0)


class Book:
    """Places are small numbers that the driver gives and may give again. Told, never asking."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.profiles: dict[int, Profile] = {}
        self.owner: list[int] = []
        self.node: list[int] = []
        self.level: list[Level] = []
        self.idle_since: list[float] = []
        self.placed_at: list[float] = []
        self.hits: list[int] = []
        self.host: list[int | None] = []
        self.hosts: dict[int, set[int]] = {}
        """The places in the sandbox of a place, where there are any."""
        self._stage: list[Stage | None] = []
        self._by_function: dict[int, dict[int, None]] = {}

    def __repr__(self) -> str:
        there = sum(stage is not None for stage in self._stage)
        return f"<Book {there} places of {len(self._by_function)} functions, {self.ledger!r}>"

    def is_there(self, place: int) -> bool:
        return place < len(self._stage) and self._stage[place] is not None

    def is_idle(self, place: int) -> bool:
        return self.idle_since[place] != BUSY

    def places(self, function: int) -> list[int]:
        """The oldest first."""
        return list(self._by_function.get(function, ()))

    def everything(self) -> list[int]:
        return [place for place, stage in enumerate(self._stage) if stage is not None]

    def kin(self, place: int) -> list[int]:
        """The other places of the same function on the same node."""
        node = self.node[place]
        found = self._by_function.get(self.owner[place], ())
        return [one for one in found if one != place and self.node[one] == node]

    def know(self, function: int, profile: Profile) -> None:
        """Its profile, or the new one: what its places take is counted anew."""
        self.profiles[function] = profile
        for place in self._by_function.get(function, ()):
            if not self.is_lowered(place):
                self.restore(place)

    def put(
        self, place: int, function: int, node: int, level: Level, now: float, host: int | None
    ) -> None:
        """A place is there, or is at another level than before."""
        if not self.is_there(place):
            self._make(place)
            self.owner[place] = function
            self.node[place] = node
            self.idle_since[place] = self.placed_at[place] = now
            self.hits[place] = 0
            self.host[place] = host
            if host is not None:
                self.hosts.setdefault(host, set()).add(place)
            self._by_function.setdefault(function, {})[place] = None
        else:
            if host is None:
                self._free_of_host(place)
            if self.owner[place] != function:
                self.hand_over(place, function)
        self.level[place] = level
        self._count(place, self.profiles[function].takes(level, hosted=self._hosted(place)))

    def hand_over(self, place: int, function: int) -> None:
        """A place is used by another function from now on: at which level, `put` says."""
        self._leave(place)
        self.owner[place] = function
        self._by_function.setdefault(function, {})[place] = None
        self._count(
            place, self.profiles[function].takes(self.level[place], hosted=self._hosted(place))
        )

    def _free_of_host(self, place: int) -> None:
        """What was loaded into another's sandbox has one for itself now."""
        host = self.host[place]
        if host is not None:
            self.host[place] = None
            self._unhost(place, host)

    def lower(self, place: int, level: Level) -> float:
        """Count a place, with what is in its sandbox, as if it were at a lower level already.

        What that frees, in megabytes. It is so until `put`, `remove` or `restore`.
        """
        ledger, node = self.ledger, self.node[place]
        before_mb = ledger.used_mb(node)
        if level is Level.ABSENT:
            for one in self.hosts.get(place, ()):
                self._count(one, _GONE)
            self._count(place, _GONE)
        else:
            profile = self.profiles[self.owner[place]]
            self._count(place, profile.takes(level, hosted=self._hosted(place)))
        return before_mb - ledger.used_mb(node)

    def is_lowered(self, place: int) -> bool:
        stage = self._stage[place]
        return stage is not None and stage.level < self.level[place]

    def restore(self, place: int) -> None:
        """It was not lowered after all."""
        profile = self.profiles[self.owner[place]]
        for one in self.hosts.get(place, ()):
            self.restore(one)
        self._count(place, profile.takes(self.level[place], hosted=self._hosted(place)))

    def shares(self, place: int) -> tuple[Share, ...]:
        """What a place holds together with others."""
        stage = self._stage[place]
        return () if stage is None else stage.shared

    def measured(self, place: int, private_mb: float) -> None:
        """What a place takes, by measurement."""
        stage = self._stage[place]
        if stage is not None and not self.is_lowered(place):
            self._count(place, Stage(stage.level, stage.start_s, private_mb, stage.shared))

    def remove(self, place: int) -> None:
        stage = self._stage[place]
        if stage is None:
            return
        self.ledger.release(self.node[place], stage)
        self._stage[place] = None
        self._leave(place)
        host = self.host[place]
        if host is not None:
            self._unhost(place, host)

    def frees_mb(self, place: int) -> float:
        """What its end would free, with what is in its sandbox."""
        stage = self._stage[place]
        if stage is None:
            return 0.0
        inner = sum(map(self.frees_mb, self.hosts.get(place, ())))
        return self.ledger.frees_mb(self.node[place], stage) + inner

    def template(self, function: int, node: int) -> int | None:
        """The place from which instances of a function are forked on a node."""
        for place in self._by_function.get(function, ()):
            if self.node[place] == node and Level.LAYER < self.level[place] < Level.INSTANCE:
                return place
        return None

    def needs(
        self, function: int, node: int, level: Level, *, hosted: bool = False
    ) -> tuple[Stage, ...]:
        """What one more place would hold; an instance that is a fork needs its template besides."""
        profile = self.profiles[function]
        stage = profile.takes(level, hosted=hosted)
        if level is Level.INSTANCE and profile.forks and self.template(function, node) is None:
            return (profile.takes(Level.RESIDENT), stage)
        return (stage,)

    def adds_mb(self, function: int, node: int, level: Level, *, hosted: bool = False) -> float:
        """What one more place would take of the node's memory."""
        needs = self.needs(function, node, level, hosted=hosted)
        return sum(self.ledger.adds_mb(node, stage) for stage in needs)

    def private_mb(self, place: int) -> float:
        stage = self._stage[place]
        return 0.0 if stage is None else stage.private_mb

    def _hosted(self, place: int) -> bool:
        return self.host[place] is not None

    def _count(self, place: int, stage: Stage) -> None:
        before = self._stage[place]
        self.ledger.hold(self.node[place], stage)
        if before is not None:
            self.ledger.release(self.node[place], before)
        self._stage[place] = stage

    def _make(self, place: int) -> None:
        while len(self.owner) <= place:
            self.owner.append(NOBODY)
            self.node.append(0)
            self.level.append(Level.ABSENT)
            self.idle_since.append(0.0)
            self.placed_at.append(0.0)
            self.hits.append(0)
            self.host.append(None)
            self._stage.append(None)

    def _leave(self, place: int) -> None:
        of_owner = self._by_function[self.owner[place]]
        del of_owner[place]
        if not of_owner:
            del self._by_function[self.owner[place]]

    def _unhost(self, place: int, host: int) -> None:
        inner = self.hosts[host]
        inner.discard(place)
        if not inner:
            del self.hosts[host]
