"""Starts and loads under way: step by step, waiting and computing on the cores of their node."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from faasd.policies.preloading.actions import Load
from faasd.policies.preloading.levels import Stage
from loadgen.simulation.model import Step
from loadgen.simulation.node import Cores
from loadgen.simulation.places import NOWHERE
from loadgen.simulation.world import Act, Span, World


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
    spans: list[Span] = field(default_factory=list)

    @property
    def step(self) -> Step:
        return self.steps[self.at]

    @property
    def item(self) -> int:
        """Its number among what computes: calls have those of their places."""
        return -1 - self.id


class Jobs:
    """`ended` is told of every job that was not aborted, `template_ready` of pools."""

    def __init__(
        self, world: World, *, ended: Callable[[Job, float], None], template_ready: Act
    ) -> None:
        self.loader_cpu_s = 0.0
        self._world = world
        self._ended = ended
        self._template_ready = template_ready
        self._jobs: dict[int, Job] = {}
        self._ids = itertools.count()

    def begin(
        self,
        pool: int,
        steps: tuple[Step, ...],
        now: float,
        *,
        place: int = NOWHERE,
        load: Load | None = None,
        stages: tuple[Stage, ...] = (),
        template_after: int = -1,
    ) -> Job:
        job = Job(
            next(self._ids),
            pool,
            steps,
            now,
            place,
            load,
            stages,
            template_after,
            low=load is not None,
        )
        self._jobs[job.id] = job
        self._next_step(job, now)
        return job

    def computed(self, item: int, now: float) -> None:
        """What the step that it is at had to compute is done."""
        self._next_step(self._jobs[-1 - item], now)

    def promote(self, job: Job, now: float) -> None:
        """A request waits for a load: it is as urgent as a start from now on."""
        if not job.low:
            return
        job.low = False
        self._world.pools[job.pool].spans = job.spans
        if job.computing:
            cores = self._cores(job)
            cores.add(now, cores.take(now, job.item, load=True), job.item)

    def abort(self, job: Job, now: float) -> None:
        if job.computing:
            left_s = self._cores(job).take(now, job.item, load=job.low)
            self.loader_cpu_s += job.step.computes_s - left_s
        del self._jobs[job.id]

    def _next_step(self, job: Job, now: float) -> None:
        """The step that it was at is done."""
        if job.spans:
            job.spans[-1][2] = now
        if job.at >= 0 and job.load is not None:
            self.loader_cpu_s += job.step.computes_s
        job.at += 1
        job.computing = False
        if job.at == job.template_after:
            self._world.pools[job.pool].template_starts = False
            self._world.later(now, self._template_ready, job.pool)
        if job.at == len(job.steps):
            self._world.later(now, self._done, job.id)
            return
        job.spans.append([job.step.phase, now, math.inf])
        if job.step.waits_s:
            self._world.later(now + job.step.waits_s, self._compute, job.id)
        else:
            self._compute(now, job.id)

    def _compute(self, now: float, job_id: int) -> None:
        """The waiting part of a step is over."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.computing = True
        add = self._cores(job).add_load if job.low else self._cores(job).add
        add(now, job.step.computes_s, job.item)

    def _done(self, now: float, job_id: int) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._ended(job, now)

    def _cores(self, job: Job) -> Cores:
        return self._world.cores[job.pool % len(self._world.nodes)]
