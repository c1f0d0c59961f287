"""Starts for requests: a process, or a fork and its template before it; memory is made for them first."""

from __future__ import annotations

from collections.abc import Callable

from faasd.policies.preloading.levels import Level
from loadgen.simulation.jobs import Job, Jobs
from loadgen.simulation.places import COLD, FORK, NOWHERE, POOLED, PRELOADED
from loadgen.simulation.world import Pool, World

ROUNDS = 3
"""How often the policy is asked for room before a start is put off."""


class Starts:
    def __init__(self, world: World, jobs: Jobs, turn: Callable[[float], None]) -> None:
        """`turn` has done what the policy wants."""
        self._world = world
        self._jobs = jobs
        self._turn = turn
        self._under_way = [0] * len(world.nodes)

    def is_full(self, node: int) -> bool:
        return self._under_way[node] >= self._world.nodes[node].starts_at_once

    def ended(self, job: Job, known: Pool, now: float) -> None:
        self._under_way[job.pool % len(self._world.nodes)] -= 1
        known.starting -= 1
        known.started(now - job.began_at)

    def begin(self, pool: int, known: Pool, now: float) -> bool:
        """One more instance, if there is room for it."""
        node = pool % len(self._world.nodes)
        if self.is_full(node):
            return False
        model = self._world.model_of(pool)
        start = self._start_fork if model.profile.forks else self._start_process
        job = start(pool, known, now)
        if job is None:
            return False
        self._under_way[node] += 1
        if not known.starting:
            known.spans = job.spans
        known.starting += 1
        return True

    def _start_process(self, pool: int, known: Pool, now: float) -> Job | None:
        del known
        places = self._world.places
        function, node = divmod(pool, len(self._world.nodes))
        model = self._world.workload.models[function]
        spare = places.best_spare(pool)
        if spare == NOWHERE:
            stage = model.profile.takes(Level.INSTANCE)
            if not self._room(node, lambda: self._world.memory.missing_mb(node, stage), now):
                return None
            place, found = places.make(pool, Level.INSTANCE, now), model.profile.floor.level
        else:
            place, found = spare, places.level[spare]
            if not self._room_to_turn(place, function, now):
                return None
            places.turn_into(place, pool, Level.INSTANCE, now)
        if places.busy[place]:
            self._world.policy.began(place, function, now)
        else:
            places.occupy(place, now)
        places.fresh[place] = COLD if found is Level.ABSENT else POOLED
        return self._jobs.begin(pool, model.steps(found, Level.INSTANCE), now, place=place)

    def _room_to_turn(self, place: int, function: int, now: float) -> bool:
        """Memory for a place to become an instance; meanwhile nobody is to take it away."""
        places, node = self._world.places, self._world.places.node[place]

        def missing_mb() -> float:
            return places.missing_to_turn_mb(place, function, Level.INSTANCE)

        if missing_mb() <= 0:
            return True
        places.occupy(place, now)
        if self._room(node, missing_mb, now):
            return True
        places.let_go(place, now)
        self._turn(now)
        return False

    def _start_fork(self, pool: int, known: Pool, now: float) -> Job | None:
        places = self._world.places
        function, node = divmod(pool, len(self._world.nodes))
        model = self._world.workload.models[function]
        if not self._room(node, lambda: self._missing_to_fork_mb(pool), now):
            return None
        template = places.templates.get(pool, NOWHERE)
        since, kind, template_after = model.profile.floor.level, POOLED, -1
        if template == NOWHERE:
            self._bring(pool, model.template, now)
            known.template_starts = True
            template_after = len(model.steps(since, model.template))
            kind = COLD if since is Level.ABSENT else POOLED
        else:
            since = places.level[template]
            kind = PRELOADED if places.fresh[template] else FORK
            places.fresh[template] = 0
            if since < model.template or places.host[template] != NOWHERE:
                places.turn_into(template, pool, model.template, now)
        place = self._bring(pool, Level.INSTANCE, now)
        places.occupy(place, now)
        places.fresh[place] = kind
        steps = model.steps(since, Level.INSTANCE)
        return self._jobs.begin(pool, steps, now, place=place, template_after=template_after)

    def _bring(self, pool: int, level: Level, now: float) -> int:
        """A place at a level, out of what is less than that, or new."""
        places = self._world.places
        spare = places.best_spare(pool)
        if spare == NOWHERE:
            return places.make(pool, level, now)
        places.turn_into(spare, pool, level, now)
        return spare

    def _missing_to_fork_mb(self, pool: int) -> float:
        function, node = divmod(pool, len(self._world.nodes))
        model, places = self._world.workload.models[function], self._world.places
        instance, whole = model.profile.takes(Level.INSTANCE), model.profile.takes(model.template)
        template = places.templates.get(pool, NOWHERE)
        missing_mb = self._world.memory.missing_mb(node, instance, whole)
        return missing_mb if template == NOWHERE else missing_mb - places.private_mb(template)

    def _room(self, node: int, missing_mb: Callable[[], float], now: float) -> bool:
        for _ in range(ROUNDS):
            over_mb = missing_mb()
            if over_mb <= 0:
                return True
            self._world.policy.pressed(node, over_mb, now)
            self._turn(now)
        return missing_mb() <= 0
