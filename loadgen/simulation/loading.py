"""Does what the policy asks for: loads at low weight, gives them up, strips places and ends them."""

from __future__ import annotations

from faasd.policies.preloading.actions import Action, Cancel, Load, Lower
from faasd.policies.preloading.levels import Level, Stage
from loadgen.simulation.jobs import Job, Jobs
from loadgen.simulation.model import Step
from loadgen.simulation.places import NOWHERE, PRELOADED
from loadgen.simulation.world import World

MOST_DECISIONS = 1000


class Loading:
    def __init__(self, world: World, jobs: Jobs) -> None:
        self.begun = 0
        self._world = world
        self._jobs = jobs
        self._loads: dict[int, Job] = {}
        self._by_pool: dict[int, Job] = {}

    def is_under_way(self, pool: int) -> bool:
        return pool in self._by_pool

    def promote(self, pool: int, now: float) -> None:
        """A request waits for what is being loaded of its function on its node."""
        self._jobs.promote(self._by_pool[pool], now)

    def turn(self, now: float) -> None:
        """Do all that the policy wants now."""
        policy = self._world.policy
        for _ in range(MOST_DECISIONS):
            if policy.due > now:
                return
            for action in policy.decide(now):
                self._carry_out(action, now)
        raise RuntimeError(f"{policy!r} is never done at {now}")

    def _carry_out(self, action: Action, now: float) -> None:
        match action:
            case Load():
                self._load(action, now)
            case Cancel(load):
                self._cancel(load, now)
            case Lower(place, level):
                self._lower(place, level, now)

    def _lower(self, place: int, level: Level, now: float) -> None:
        places = self._world.places
        if not places.is_there(place) or level >= places.level[place]:
            return
        if places.is_in_use(place):
            # It is as before; the policy is told, which counts on what it asked for.
            places.tell(place, now)
        elif level is Level.ABSENT:
            places.remove(place, now)
        else:
            places.sink(place, level, now)

    def _load(self, load: Load, now: float) -> None:
        places = self._world.places
        pool = load.function * len(self._world.nodes) + load.node
        steps, stages = self._way(load, pool)
        host = NOWHERE if load.host is None else load.host
        if load.place is not None and places.busy[load.place]:
            self._world.policy.failed(load.id, "its place runs a call", now)
        elif host != NOWHERE and (not places.is_there(host) or places.busy[host]):
            self._world.policy.failed(load.id, "its sandbox is not idle", now)
        elif self._world.memory.missing_mb(load.node, *stages) > 0:
            self._world.policy.failed(load.id, "there is no room for it", now)
        else:
            for stage in stages:
                self._world.memory.hold(load.node, stage, now)
            if load.place is not None:
                places.begin_raising(load.place)
            waits = self._world.pool(pool).queue.queued
            job = self._jobs.begin(pool, steps, now, load=load, stages=stages)
            self._loads[load.id] = self._by_pool[pool] = job
            self.begun += 1
            if waits:
                self._jobs.promote(job, now)

    def _way(self, load: Load, pool: int) -> tuple[tuple[Step, ...], tuple[Stage, ...]]:
        """The steps of a load, and what it is going to hold."""
        places, model = self._world.places, self._world.workload.models[load.function]
        takes = model.profile.takes(load.level, hosted=load.host is not None)
        if load.place is not None:
            since = places.level[load.place]
            more_mb = max(0.0, takes.private_mb - places.private_mb(load.place))
            return model.steps(since, load.level), (Stage(load.level, 0.0, more_mb, takes.shared),)
        floor = model.profile.floor.level
        if load.host is not None:
            # The sandbox is there; what is loaded into it is a process of its own.
            return model.steps(max(floor, Level.SANDBOX), load.level), (takes,)
        if model.profile.forks and load.level is Level.INSTANCE:
            template = places.templates.get(pool, NOWHERE)
            if template != NOWHERE:
                return model.steps(places.level[template], load.level), (takes,)
            return model.steps(floor, load.level), (model.profile.takes(model.template), takes)
        return model.steps(floor, load.level), (takes,)

    def _end_load(self, job: Job, now: float) -> None:
        load = job.load
        assert load is not None
        del self._loads[load.id], self._by_pool[job.pool]
        for stage in job.stages:
            self._world.memory.release(load.node, stage, now)
        if load.place is not None and self._is_raised(load, job.pool):
            self._world.places.end_raising(load.place)

    def _is_raised(self, load: Load, pool: int) -> bool:
        """Whether the place that was to be raised is still the same."""
        places, place = self._world.places, load.place
        if place is None or not places.is_there(place):
            return False
        return bool(places.raised[place]) and places.pool[place] == pool

    def _cancel(self, load: int, now: float) -> None:
        job = self._loads.get(load)
        if job is None:
            return
        self._jobs.abort(job, now)
        self._end_load(job, now)
        if self._world.pools[job.pool].queue.queued:
            self._world.block(job.pool)

    def loaded(self, job: Job, load: Load, now: float) -> None:
        """A load has come to its end; the policy is told what came of it."""
        places, host = self._world.places, NOWHERE if load.host is None else load.host
        there = load.place is None or self._is_raised(load, job.pool)
        self._end_load(job, now)
        if not there or (host != NOWHERE and not places.is_there(host)):
            self._world.policy.failed(load.id, "its place is gone", now)
        elif self._world.memory.missing_mb(load.node, *job.stages) > 0:
            self._world.policy.failed(load.id, "there is no room for it any more", now)
        elif load.place is not None:
            places.rise(load.place, load.level, now, load.id)
            self._mark(load.place)
        else:
            self._bring(job, load, host, now)

    def _bring(self, job: Job, load: Load, host: int, now: float) -> None:
        places, model = self._world.places, self._world.workload.models[load.function]
        lacks = model.profile.forks and job.pool not in places.templates
        if lacks and load.level is Level.INSTANCE:
            self._mark(places.make(job.pool, model.template, now))
        self._mark(places.make(job.pool, load.level, now, load=load.id, host=host))

    def _mark(self, place: int) -> None:
        """The first call that it serves has been loaded for."""
        if self._world.places.level[place] > Level.LAYER:
            self._world.places.fresh[place] = PRELOADED
