"""What all parts of one simulated run share: the clockwork, the nodes, the places and who waits."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from faasd.policies.preloading.levels import Level
from faasd.policies.preloading.policy import Policy
from faasd.policies.queueing.queue import CallQueue
from loadgen.report.scales import bin_width_s
from loadgen.simulation.model import Model
from loadgen.simulation.node import Cores, Memory, Node
from loadgen.simulation.places import Places
from loadgen.simulation.workload import Workload

SMOOTHING = 0.2

Act = Callable[[float, int], None]
"""What happens at a time, to something that a number stands for."""

Span = list[float]
"""A phase of a start, and from when to when it lasted; without end while it does."""


@dataclass(slots=True, eq=False)
class Pool:
    """A function on a node, as far as calls ever waited there or loads were made."""

    queue: CallQueue = field(default_factory=CallQueue)
    starting: int = 0
    template_starts: bool = False
    start_s: float | None = None
    spans: list[Span] = field(default_factory=list)
    """Of the start under way that began first, or the last one."""
    watched: bool = False
    rechecked: bool = False

    def started(self, took_s: float) -> None:
        before = self.start_s
        self.start_s = took_s if before is None else before + SMOOTHING * (took_s - before)


class World:
    def __init__(self, workload: Workload, policy: Policy, nodes: Sequence[Node]) -> None:
        self.workload = workload
        self.policy = policy
        self.nodes = nodes
        self.memory = Memory(nodes, bin_width_s(max(workload.span_s, 1.0)))
        self.places = Places(policy, workload.models, len(nodes), self.memory)
        self.ends = [math.inf] * len(nodes)
        """By node: when the next of what computes there is done."""
        self.cores = [Cores(one.cores, self.ends, place) for place, one in enumerate(nodes)]
        self.timers: list[tuple[float, int, Act, int]] = []
        self.pools: dict[int, Pool] = {}
        self.blocked: list[dict[int, None]] = [{} for _ in nodes]
        """By node: the pools whose starts were put off, the longest ago first."""
        self.any_blocked = False
        self._order = itertools.count()

    def __repr__(self) -> str:
        return f"<World of {len(self.nodes)} nodes, {self.places!r}>"

    def later(self, at: float, act: Act, subject: int) -> None:
        heapq.heappush(self.timers, (at, next(self._order), act, subject))

    def pool(self, number: int) -> Pool:
        known = self.pools.get(number)
        if known is None:
            known = self.pools[number] = Pool()
        return known

    def model_of(self, pool: int) -> Model:
        return self.workload.models[pool // len(self.nodes)]

    def block(self, pool: int) -> None:
        """Have what waits there looked at again when something has changed."""
        self.blocked[pool % len(self.nodes)][pool] = None
        self.any_blocked = True

    def needs_mb(self, function: int) -> float:
        """What a node must have at least for a function to run there."""
        profile = self.workload.models[function].profile
        stages = [profile.takes(Level.INSTANCE)]
        if profile.forks:
            stages.append(profile.takes(Level.RESIDENT))
        return sum(one.private_mb + sum(mb for _, mb in one.shared) for one in stages)
