"""Starts and loads under way, and what waits for them: the slow things of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

from faasd.policies.preloading.actions import Load
from faasd.policies.preloading.levels import Stage
from faasd.policies.queueing.queue import CallQueue
from loadgen.simulation.model import Step
from loadgen.simulation.places import NOWHERE

SMOOTHING = 0.2

Span = list[float]
"""A phase of a start, and from when to when it lasted; without end while it does."""


@dataclass(slots=True, eq=False)
class Job:
    """A start for a request, or a load that a policy asked for (`low` until a request waits for it)."""

    id: int
    pool: int
    steps: tuple[Step, ...]
    began_at: float
    place: int = NOWHERE
    load: Load | None = None
    stages: tuple[Stage, ...] = ()
    """What is reserved for a load."""
    template_after: int = -1
    """After so many steps the template is ready, and others may fork."""
    low: bool = False
    at: int = -1
    computing: bool = False
    ended: bool = False
    spans: list[Span] = field(default_factory=list)

    @property
    def step(self) -> Step:
        return self.steps[self.at]


@dataclass(slots=True, eq=False)
class Pool:
    """A function on a node, as far as calls ever waited there or loads were made."""

    queue: CallQueue = field(default_factory=CallQueue)
    starting: int = 0
    template_starts: bool = False
    load: Job | None = None
    start_s: float | None = None
    spans: list[Span] = field(default_factory=list)
    """Of the start under way that began first, or the last one."""
    watched: bool = False
    rechecked: bool = False

    def started(self, took_s: float) -> None:
        before = self.start_s
        self.start_s = took_s if before is None else before + SMOOTHING * (took_s - before)
