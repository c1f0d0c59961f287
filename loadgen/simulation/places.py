"""What is where on the simulated nodes, as lists by place; the policy is told of every change.

A place is a small number, given again after it was dropped. A pool is a function on a node, by the
number `function * nodes + node`. Idle places are listed where a call finds them: instances by pool, the
last used one at the end; what is loaded in others' sandboxes by pool; and what is less than an instance by
pool and, for functions that can take it over, by tenant and runtime.
"""

from __future__ import annotations

from faasd.policies.preloading.levels import Level, Stage
from faasd.policies.preloading.policy import Policy
from loadgen.simulation.model import Model
from loadgen.simulation.node import Memory

NOWHERE = -1
WARM, FORK, PRELOADED, POOLED, COLD, NONE = range(6)
"""Start kinds, as places in `KINDS`."""
KINDS = ("warm", "fork", "preloaded", "pooled", "cold", "none")

_Listing = dict[int, None]


class Places:
    def __init__(
        self, policy: Policy, models: tuple[Model, ...], nodes: int, memory: Memory
    ) -> None:
        self.policy = policy
        self.memory = memory
        self.nodes = nodes
        self._profiles = [one.profile for one in models]
        self.owner: list[int] = []
        self.node: list[int] = []
        self.level: list[Level] = []
        self.host: list[int] = []
        self.busy = bytearray()
        self.raised = bytearray()
        """Whether a load is raising it."""
        self.fresh = bytearray()
        """The start kind of the first call that it serves, where that is not warm."""
        self.pool: list[int] = []
        self.call: list[int] = []
        """The call that it runs, or ran last."""
        self._stage: list[Stage | None] = []
        self._free: list[int] = []
        self.idle: list[list[int] | None] = [None] * (len(models) * nodes)
        self.instances = [0] * (len(models) * nodes)
        """Of a pool, those that are starting included; without what is loaded in others' sandboxes."""
        self.hosted: dict[int, _Listing] = {}
        self.spare: dict[int, _Listing] = {}
        self.templates: dict[int, int] = {}
        self._inside: dict[int, _Listing] = {}
        self._sandboxes: dict[tuple[int, str], _Listing] = {}
        self._libraries: dict[tuple[int, str, str], _Listing] = {}
        self._forks: dict[int, _Listing] = {}

    def __repr__(self) -> str:
        return f"<Places {len(self.owner) - len(self._free)}, {self.memory.used_mb:.0f} MB>"

    def is_there(self, place: int) -> bool:
        return place < len(self._stage) and self._stage[place] is not None

    def is_template(self, place: int) -> bool:
        return self.templates.get(self.pool[place]) == place

    def is_in_use(self, place: int) -> bool:
        """Busy, or the template of a busy one, or the sandbox of one."""
        if self.busy[place]:
            return True
        if self.is_template(place):
            return any(self.busy[one] for one in self._forks.get(self.pool[place], ()))
        return any(self.busy[one] for one in self._inside.get(place, ()))

    # Finding

    def loaded_elsewhere(self, pool: int) -> int:
        """A place of the pool in the idle sandbox of another function, ready to serve."""
        for place in self.hosted.get(pool, ()):
            if not self.busy[self.host[place]]:
                return place
        return NOWHERE

    def best_spare(self, pool: int) -> int:
        """The idle place that is most of a start: the pool's own first, then what others left.

        Of those that serve equally well, the one used last.
        """
        function, node = divmod(pool, self.nodes)
        profile = self._profiles[function]
        own = NOWHERE
        for place in self.spare.get(pool, ()):
            if own == NOWHERE or self.level[place] >= self.level[own]:
                own = place
        if own != NOWHERE and self.level[own] >= Level.LIBRARIES:
            return own
        for listing in (
            self._libraries.get((node, profile.tenant, profile.runtime)),
            {own: None} if own != NOWHERE else None,
            self._sandboxes.get((node, profile.tenant)),
        ):
            if listing:
                return next(reversed(listing))
        return NOWHERE

    # Changing

    def make(
        self, pool: int, level: Level, now: float, *, load: int | None = None, host: int = NOWHERE
    ) -> int:
        function, node = divmod(pool, self.nodes)
        place = self._free.pop() if self._free else self._grow()
        self.owner[place], self.node[place], self.pool[place] = function, node, pool
        self.level[place], self.host[place] = level, host
        self.busy[place] = self.raised[place] = self.fresh[place] = 0
        if host != NOWHERE:
            self._inside.setdefault(host, {})[place] = None
        stage = self._stage[place] = self._profiles[function].takes(level, hosted=host != NOWHERE)
        self.memory.hold(node, stage, now)
        self._belong(place)
        self._list(place)
        self.tell(place, now, load)
        return place

    def turn_into(
        self, place: int, pool: int, level: Level, now: float, *, load: int | None = None
    ) -> None:
        """Another level, or the sandbox of another function from now on, or out of its host."""
        self._unlist(place)
        self._part(place)
        function = pool // self.nodes
        host = self.host[place]
        if host != NOWHERE:
            del self._inside[host][place]
            self.host[place] = NOWHERE
        # What was being loaded for its owner before finds that it is another's.
        self.raised[place] = 0
        before, stage = self._stage[place], self._profiles[function].takes(level)
        self.owner[place], self.pool[place], self.level[place] = function, pool, level
        self.memory.change(self.node[place], now, stage, before)
        self._stage[place] = stage
        self._belong(place)
        self._list(place)
        self.tell(place, now, load)

    def rise(self, place: int, level: Level, now: float, load: int) -> None:
        """A load has brought it to a higher level, where it is."""
        self._move(place, level, now)
        self.tell(place, now, load)

    def sink(self, place: int, level: Level, now: float) -> None:
        """It is stripped down to a lower level."""
        if self.is_template(place):
            for one in list(self._forks.get(self.pool[place], ())):
                self.remove(one, now)
        self._move(place, level, now)
        self.tell(place, now)

    def _move(self, place: int, level: Level, now: float) -> None:
        self._unlist(place)
        self._part(place)
        stage = self._profiles[self.owner[place]].takes(level, hosted=self.host[place] != NOWHERE)
        self.memory.change(self.node[place], now, stage, self._stage[place])
        self._stage[place] = stage
        self.level[place] = level
        self._belong(place)
        self._list(place)

    def remove(self, place: int, now: float) -> None:
        for one in list(self._inside.pop(place, ())):
            self.remove(one, now)
        if self.is_template(place):
            for one in list(self._forks.get(self.pool[place], ())):
                self.remove(one, now)
        self._unlist(place)
        self._part(place)
        stage = self._stage[place]
        assert stage is not None
        self.memory.release(self.node[place], stage, now)
        self._stage[place] = None
        host = self.host[place]
        if host != NOWHERE and host in self._inside:
            self._inside[host].pop(place, None)
        self._free.append(place)
        self.policy.dropped(place, now)

    def occupy(self, place: int, now: float) -> None:
        """A call, or a start for one, takes an idle place."""
        self._unlist(place)
        self.busy[place] = 1
        self.policy.began(place, self.owner[place], now)

    def let_go(self, place: int, now: float) -> None:
        self.busy[place] = 0
        self._list(place)
        self.policy.idled(place, now)

    def begin_raising(self, place: int) -> None:
        self._unlist(place)
        self.raised[place] = 1

    def end_raising(self, place: int) -> None:
        self.raised[place] = 0
        self._list(place)

    def private_mb(self, place: int) -> float:
        stage = self._stage[place]
        return 0.0 if stage is None else stage.private_mb

    def missing_to_turn_mb(self, place: int, function: int, level: Level) -> float:
        """What is missing for a place to become another, beyond what it has."""
        stage = self._profiles[function].takes(level)
        return self.memory.missing_mb(self.node[place], stage) - self.private_mb(place)

    def tell(self, place: int, now: float, load: int | None = None) -> None:
        """Say to the policy what a place is."""
        host = self.host[place]
        self.policy.placed(
            place,
            self.owner[place],
            self.node[place],
            self.level[place],
            now,
            load=load,
            host=None if host == NOWHERE else host,
        )

    def _grow(self) -> int:
        for column in (self.owner, self.node, self.pool, self.call):
            column.append(0)
        self.level.append(Level.ABSENT)
        self.host.append(NOWHERE)
        self._stage.append(None)
        for flags in (self.busy, self.raised, self.fresh):
            flags.append(0)
        return len(self.owner) - 1

    def _belong(self, place: int) -> None:
        pool, level = self.pool[place], self.level[place]
        if level is Level.INSTANCE:
            if self.host[place] == NOWHERE:
                self.instances[pool] += 1
                if self.idle[pool] is None:
                    self.idle[pool] = []
            if self._profiles[self.owner[place]].forks:
                self._forks.setdefault(pool, {})[place] = None
        elif level > Level.LAYER and self._profiles[self.owner[place]].forks:
            self.templates.setdefault(pool, place)

    def _part(self, place: int) -> None:
        pool = self.pool[place]
        if self.level[place] is Level.INSTANCE:
            if self.host[place] == NOWHERE:
                self.instances[pool] -= 1
            if pool in self._forks:
                self._forks[pool].pop(place, None)
        elif self.templates.get(pool) == place:
            del self.templates[pool]

    def _listings(self, place: int) -> tuple[_Listing, ...]:
        """Where an idle place is found, but for instances, which are in `idle`."""
        if self.busy[place] or self.raised[place] or self.is_template(place):
            return ()
        pool, level = self.pool[place], self.level[place]
        if self.host[place] != NOWHERE:
            return (self.hosted.setdefault(pool, {}),) if level is Level.INSTANCE else ()
        if level is Level.INSTANCE:
            return ()
        profile, node = self._profiles[self.owner[place]], self.node[place]
        own = self.spare.setdefault(pool, {})
        if level is Level.LIBRARIES:
            key = (node, profile.tenant, profile.runtime)
            return own, self._libraries.setdefault(key, {})
        if level is Level.SANDBOX:
            return own, self._sandboxes.setdefault((node, profile.tenant), {})
        return (own,)

    def _list(self, place: int) -> None:
        if self._is_idle_instance(place):
            stack = self.idle[self.pool[place]]
            assert stack is not None
            stack.append(place)
            return
        for listing in self._listings(place):
            listing[place] = None

    def _unlist(self, place: int) -> None:
        if self._is_idle_instance(place):
            stack = self.idle[self.pool[place]]
            assert stack is not None
            if stack[-1] == place:
                stack.pop()
            else:
                stack.remove(place)
            return
        for listing in self._listings(place):
            listing.pop(place, None)

    def _is_idle_instance(self, place: int) -> bool:
        at_top = self.level[place] is Level.INSTANCE and self.host[place] == NOWHERE
        return at_top and not self.busy[place] and not self.raised[place]
