"""Discrete events in virtual time: nodes that run what the live policies, queues and routers say.

An arrival that finds an idle instance on the only node costs a few list operations, the two calls that
the policy is owed, and an entry in a heap. All else is on a slower path that the live system's objects are
asked on: `Router` where there are several nodes, `CallQueue` where a call has to wait, and
`ConcurrencyScaling` for how many instances are started for those that do. A run makes no object by call.

At one instant what ends comes before what the policy has to do, and that before what arrives.
"""

from __future__ import annotations

import heapq
import itertools
import math
from array import array
from collections.abc import Callable, Sequence

from faasd.policies.preloading.actions import Action, Cancel, Load, Lower
from faasd.policies.preloading.levels import Level, Stage
from faasd.policies.preloading.policy import Policy
from faasd.policies.queueing.places import Refuse
from faasd.policies.routing.candidate import Candidate, Locality, Router
from faasd.policies.scaling import ConcurrencyScaling, Demand
from loadgen.report.scales import bin_width_s
from loadgen.simulation.model import Step
from loadgen.simulation.node import Cores, Memory, Node
from loadgen.simulation.places import (
    COLD,
    FORK,
    NONE,
    NOWHERE,
    POOLED,
    PRELOADED,
    WARM,
    Places,
)
from loadgen.simulation.starts import Job, Pool
from loadgen.simulation.workload import Workload

QUEUE_FULL, LATE, NO_MEMORY = 1, 2, 3
REASONS = ("", "queue_full", "deadline_exceeded", "unavailable")
"""Why a call was dropped, by the codes that the live platform answers."""

TRIES_AT_ONCE = 4
ROUNDS = 3
MOST_DECISIONS = 1000


class Record:
    """What became of each call, in columns."""

    def __init__(self, calls: int) -> None:
        zeros = bytes(8 * calls)
        self.dispatched_s = array("d", zeros)
        self.finished_s = array("d", zeros)
        self.kinds = bytearray(calls)
        self.reasons = bytearray(calls)
        self.nodes = array("H", bytes(2 * calls))
        self.waits_s = tuple(array("d", zeros) for _ in range(3))
        """By phase of a start: how long the call waited for it."""


class Engine:
    """One run of one policy. Deterministic."""

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        nodes: Sequence[Node],
        *,
        router: Router | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """A router is needed for several nodes only."""
        self.workload = workload
        self.policy = policy
        self.memory = Memory(nodes, bin_width_s(max(workload.span_s, 1.0)))
        self.places = Places(policy, workload.models, len(nodes), self.memory)
        self.record = Record(len(workload))
        self.loads = 0
        self.loader_cpu_s = 0.0
        self.ended_at = 0.0
        self.nodes = nodes
        self._router = router if len(nodes) > 1 else None
        self._timeout_s = timeout_s
        self._ends = [math.inf] * len(nodes)
        self._cores = [Cores(one.cores, self._ends, n) for n, one in enumerate(nodes)]
        self._timers: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self._order = itertools.count()
        self._pools: dict[int, Pool] = {}
        self._jobs: dict[int, Job] = {}
        self._job_ids = itertools.count()
        self._loads: dict[int, Job] = {}
        self._starting = [0] * len(nodes)
        self._blocked: list[dict[int, None]] = [{} for _ in nodes]
        self._any_blocked = False
        self._outstanding = [0] * len(nodes)
        self._held = [0] * (len(workload.models) * len(nodes))
        self._fronts: dict[int, Pool] = {}
        self._candidates: dict[int, list[Candidate]] = {}
        self.left = len(workload)
        self._fits = [
            [self.needs_mb(function) <= node.memory_mb for node in nodes]
            for function in range(len(workload.models))
        ]
        self._most = [[one.at_once(node.cores) for node in nodes] for one in workload.models]
        self._tell_all()

    def __repr__(self) -> str:
        return f"<Engine {self.left} calls to go, {self.places!r}>"

    def never_fit(self) -> list[int]:
        """The functions that no node has the memory for."""
        return [function for function, fits in enumerate(self._fits) if not any(fits)]

    def needs_mb(self, function: int) -> float:
        profile = self.workload.models[function].profile
        stages = [profile.takes(Level.INSTANCE)]
        if profile.forks:
            stages.append(profile.takes(Level.RESIDENT))
        return sum(one.private_mb + sum(mb for _, mb in one.shared) for one in stages)

    def _tell_all(self) -> None:
        for place, node in enumerate(self.nodes):
            self.policy.node_joined(place, node.memory_mb, 0.0)
        for function, model in enumerate(self.workload.models):
            self.policy.known(function, model.profile, 0.0)
        self._turn(0.0)

    # The loop

    def run(self) -> None:
        workload, policy, places = self.workload, self.policy, self.places
        times, functions, exec_s = workload.times_s, workload.functions, workload.exec_s
        computes = [one.computes >= 1.0 for one in workload.models]
        dispatch_s = [one.profile.top.start_s for one in workload.models]
        record, idle, busy, fresh = self.record, places.idle, places.busy, places.fresh
        pool_of, owner = places.pool, places.owner
        dispatched_s, finished_s, kinds = record.dispatched_s, record.finished_s, record.kinds
        ends, timers, cores = self._ends, self._timers, self._cores
        first_cores, call_at, pools = cores[0], places.call, self._pools
        arrived, began, idled = policy.arrived, policy.began, policy.idled
        single = len(self.nodes) == 1
        calls, call, now = len(times), 0, 0.0
        arrives_at = times[0] if calls else math.inf
        while True:
            ends_at = ends[0] if single else min(ends)
            due = policy.due
            if (
                arrives_at < ends_at
                and arrives_at < due
                and not (timers and timers[0][0] <= arrives_at)
            ):
                now, this = arrives_at, call
                call += 1
                arrives_at = times[call] if call < calls else math.inf
                function = functions[this]
                arrived(function, now)
                stack = idle[function] if single else None
                if stack and computes[function]:
                    place = stack.pop()
                    busy[place] = 1
                    began(place, function, now)
                    if fresh[place]:
                        kinds[this] = fresh[place]
                        fresh[place] = 0
                    call_at[place] = this
                    dispatched_s[this] = now
                    first_cores.add(now, exec_s[this], place)
                else:
                    self._arrive(this, function, now)
                if policy.due <= now:
                    self._turn(now)
                continue
            if ends_at <= due and not (timers and timers[0][0] < ends_at):
                if ends_at == math.inf:
                    self._give_up(now)
                    break
                now = ends_at
                node = 0 if single else ends.index(now)
                place = cores[node].pop(now)
                if place < 0:
                    self._computed(-1 - place, now)
                else:
                    this = call_at[place]
                    finished_s[this] = now + dispatch_s[owner[place]]
                    self.left -= 1
                    busy[place] = 0
                    pool = pool_of[place]
                    stack = idle[pool]
                    assert stack is not None
                    stack.append(place)
                    idled(place, now)
                    if pool in pools or not single:
                        self._ended(this, place, now)
            elif timers and timers[0][0] <= due:
                now, _, act, subject = heapq.heappop(timers)
                act(now, subject)
            else:
                now = due
            if policy.due <= now:
                self._turn(now)
            if self._any_blocked:
                self._retry(now)
            if call == calls and self._is_over(now):
                break
        self._finish(max(now, workload.span_s))

    def _is_over(self, now: float) -> bool:
        """After the last arrival: nothing is left to be answered, and the trace's time is up."""
        if self.left and not self._timers and min(self._ends) == math.inf:
            self._give_up(now)
        return not self.left and min(self.policy.due, *self._ends) > self.workload.span_s

    def _finish(self, now: float) -> None:
        self.ended_at = now
        self.memory.pass_to(now)

    # Calls

    def _arrive(self, call: int, function: int, now: float) -> None:
        if not any(self._fits[function]):
            self._drop(call, NO_MEMORY, now)
            return
        if self._router is None:
            self._arrive_at(0, call, function, now)
            return
        front = self._fronts.get(function)
        node = NOWHERE if front is not None and front.queue.queued else self._route(function)
        if node == NOWHERE:
            if front is None:
                front = self._fronts[function] = Pool()
            self._push(front, -1 - function, call, now)
        else:
            self._arrive_at(node, call, function, now)

    def _arrive_at(self, node: int, call: int, function: int, now: float) -> None:
        pool = function * len(self.nodes) + node
        self._outstanding[node] += 1
        self._held[pool] += 1
        self.record.nodes[call] = node
        place = self._ready_place(pool, now)
        if place != NOWHERE:
            self.places.occupy(place, now)
            self._run(call, place, now)
            return
        known = self._pool(pool)
        model = self.workload.models[function]
        match known.queue.admit(places=model.queue):
            case Refuse():
                self._drop(call, QUEUE_FULL, now, pool)
                return
        self.record.kinds[call] = self._found(pool, known)
        self._push(known, pool, call, now)
        self._grow(pool, known, now)

    def _ready_place(self, pool: int, now: float) -> int:
        """An idle place that can serve at once: the pool's own, or what is loaded elsewhere."""
        stack = self.places.idle[pool]
        if stack:
            return stack[-1]
        hosted = self.places.loaded_elsewhere(pool) if self.places.hosted else NOWHERE
        return NOWHERE if hosted == NOWHERE else self._take_over(hosted, pool, now)

    def _take_over(self, hosted: int, pool: int, now: float) -> int:
        """What is loaded in the sandbox of another has that for itself now."""
        places = self.places
        host, kind = places.host[hosted], places.fresh[hosted]
        if places.missing_to_turn_mb(host, pool // len(self.nodes), Level.INSTANCE) > (
            places.private_mb(hosted)
        ):
            return NOWHERE
        places.remove(hosted, now)
        places.turn_into(host, pool, Level.INSTANCE, now)
        places.fresh[host] = kind
        return host

    def _found(self, pool: int, known: Pool) -> int:
        """The start kind of a call that has to wait: what there was for it when it came."""
        places = self.places
        template = places.templates.get(pool, NOWHERE)
        if places.instances[pool] > known.starting:
            return WARM
        if template != NOWHERE and not known.template_starts:
            return PRELOADED if places.fresh[template] else FORK
        profile = self.workload.models[pool // len(self.nodes)].profile
        spare = places.best_spare(pool)
        if spare != NOWHERE or profile.floor.level >= Level.SANDBOX:
            return POOLED
        return COLD

    def _push(self, known: Pool, pool: int, call: int, now: float) -> None:
        arrived = self.workload.times_s[call]
        deadline = arrived + self._timeout_s if self._timeout_s < math.inf else None
        known.queue.push(call, now, deadline=deadline)
        if deadline is not None and not known.watched:
            known.watched = True
            self._later(deadline, self._expire, pool)

    def _expire(self, now: float, pool: int) -> None:
        known = self._fronts[-1 - pool] if pool < 0 else self._pools[pool]
        known.watched = False
        for late in known.queue.expired(now):
            self._drop(late.call, LATE, now, pool)
        deadline = known.queue.next_deadline()
        if deadline is not None:
            known.watched = True
            self._later(deadline, self._expire, pool)

    def _run(self, call: int, place: int, now: float) -> None:
        """A call begins on a place that is busy for it."""
        places, record = self.places, self.record
        arrived = self.workload.times_s[call]
        if places.fresh[place]:
            if record.kinds[call] == WARM:
                record.kinds[call] = places.fresh[place]
            places.fresh[place] = 0
        if arrived < now:
            known = self._pools.get(places.pool[place])
            for phase, since, until in known.spans if known is not None else ():
                waited_s = min(until, now) - max(since, arrived)
                if waited_s > 0.0:
                    record.waits_s[int(phase)][call] += waited_s
        places.call[place] = call
        record.dispatched_s[call] = now
        node, share = places.node[place], self.workload.models[places.owner[place]].computes
        if share >= 1.0:
            self._cores[node].add(now, self.workload.exec_s[call], place)
        else:
            waits_s = (1.0 - share) * self.workload.exec_s[call]
            self._later(now + waits_s, self._waited, place)

    def _waited(self, now: float, place: int) -> None:
        """A call has waited as long as it does, and computes from now on."""
        share = self.workload.models[self.places.owner[place]].computes
        work_s = share * self.workload.exec_s[self.places.call[place]]
        self._cores[self.places.node[place]].add(now, work_s, place)

    def _ended(self, call: int, place: int, now: float) -> None:
        pool = self.places.pool[place]
        if self.policy.due <= now:
            self._turn(now)
        known = self._pools.get(pool)
        if known is not None:
            known.queue.finished(call, now - self.record.dispatched_s[call])
            if known.queue.queued:
                self._serve(pool, known, now)
        if self._router is not None:
            self._leave(pool, now)

    def _serve(self, pool: int, known: Pool, now: float) -> None:
        """Give waiting calls to what is idle, and start more for the others."""
        while known.queue.queued:
            place = self._ready_place(pool, now)
            if place == NOWHERE:
                self._grow(pool, known, now)
                return
            call = known.queue.pop(now)
            assert call is not None
            self.places.occupy(place, now)
            self._run(call, place, now)

    def _drop(self, call: int, reason: int, now: float, pool: int = NOWHERE) -> None:
        record = self.record
        record.reasons[call] = reason
        record.kinds[call] = NONE
        record.dispatched_s[call] = record.finished_s[call] = now
        self.left -= 1
        if pool >= 0:
            self._leave(pool, now)

    def _leave(self, pool: int, now: float) -> None:
        """A call is no longer on a node: another that is held back may go there."""
        function, node = divmod(pool, len(self.nodes))
        self._outstanding[node] -= 1
        self._held[pool] -= 1
        front = self._fronts.get(function)
        while front is not None and front.queue.queued:
            node = self._route(function)
            if node == NOWHERE:
                return
            call = front.queue.pop(now)
            assert call is not None
            front.queue.finished(call, 0.0)
            self._arrive_at(node, call, function, now)

    def _give_up(self, now: float) -> None:
        """Nothing will happen any more: what waits has no memory to run in."""
        for pool, known in self._pools.items():
            for call in known.queue.clear():
                self._drop(call, NO_MEMORY, now, pool)
        for front in self._fronts.values():
            for call in front.queue.clear():
                self._drop(call, NO_MEMORY, now)

    # Routing

    def _route(self, function: int) -> int:
        """The node that the live router chooses; none while no node has room for it."""
        assert self._router is not None
        candidates = self._candidates.get(function)
        if candidates is None:
            candidates = self._candidates[function] = self._make_candidates(function)
        near = False
        for one in candidates:
            node = int(one.worker)
            pool = function * len(self.nodes) + node
            one.outstanding, one.held = self._outstanding[node], self._held[pool]
            self._locate(one, pool)
            near = near or one.locality is not Locality.NOTHING
        if not near and len(candidates) > 1:
            # Ties go to the first: where nothing is anywhere, that is the one with most memory.
            free_mb = self.memory.ledger.free_mb
            candidates.sort(key=lambda one: (-free_mb(int(one.worker)), int(one.worker)))
        chosen = self._router.choose(candidates, self.workload.names[function])
        return NOWHERE if chosen is None else int(chosen)

    def _make_candidates(self, function: int) -> list[Candidate]:
        model = self.workload.models[function]
        return [
            Candidate(
                str(node),
                max(1, int(one.cores)),
                places=self._most[function][node],
                exec_s=model.profile.exec_s,
            )
            for node, one in enumerate(self.nodes)
            if self._fits[function][node]
        ]

    def _locate(self, one: Candidate, pool: int) -> None:
        places = self.places
        profile = self.workload.models[pool // len(self.nodes)].profile
        if places.idle[pool] or (places.hosted and places.loaded_elsewhere(pool) != NOWHERE):
            one.locality, one.start_cost_s = Locality.IDLE, 0.0
            return
        nearest = places.templates.get(pool, NOWHERE)
        if nearest == NOWHERE:
            nearest = places.best_spare(pool)
        known = nearest != NOWHERE and places.level[nearest] > profile.floor.level
        one.locality = Locality.TEMPLATE if known else Locality.NOTHING
        one.start_cost_s = (
            profile.stage(places.level[nearest]).start_s if known else profile.floor.start_s
        )

    # Starts

    def _pool(self, pool: int) -> Pool:
        known = self._pools.get(pool)
        if known is None:
            known = self._pools[pool] = Pool()
        return known

    def _grow(self, pool: int, known: Pool, now: float) -> None:
        """As many starts as the scaling rule wants for what waits; a load under way is one."""
        queued = known.queue.queued
        if not queued:
            return
        function, node = divmod(pool, len(self.nodes))
        model, places = self.workload.models[function], self.places
        if known.load is not None and known.load.low:
            self._promote(known.load, known, now)
        if model.profile.forks:
            absent = pool not in places.templates
            if known.template_starts or (absent and known.load is not None):
                return
        most = self._most[function][node]
        if places.instances[pool] >= most:
            return
        stack = places.idle[pool]
        running = places.instances[pool] - known.starting - (len(stack) if stack else 0)
        live = places.instances[pool] + (known.load is not None)
        oldest = known.queue.oldest_arrival()
        demand = Demand(
            queued=queued,
            running=running,
            live=live,
            per_instance=1,
            waited_s=0.0 if oldest is None else now - oldest,
            exec_s=model.profile.exec_s,
            start_s=known.start_s,
        )
        scaling = ConcurrencyScaling(minimum=0, maximum=most)
        missing = scaling.target(demand) - live
        for _ in range(missing):
            if not self._start(pool, known, now):
                self._blocked[node][pool] = None
                self._any_blocked = True
                return
            if known.template_starts:
                return
        if (
            missing <= 0
            and known.start_s is not None
            and not known.rechecked
            and oldest is not None
        ):
            at = oldest + known.start_s
            if at > now:
                known.rechecked = True
                self._later(at, self._recheck, pool)

    def _recheck(self, now: float, pool: int) -> None:
        """A call has waited for as long as a start takes."""
        known = self._pools[pool]
        known.rechecked = False
        self._grow(pool, known, now)

    def _retry(self, now: float) -> None:
        """Starts that were put off, the longest ago first, as far as there is room now."""
        for node, blocked in enumerate(self._blocked):
            for pool in list(itertools.islice(blocked, TRIES_AT_ONCE)):
                del blocked[pool]
                known = self._pools[pool]
                if known.queue.queued:
                    self._grow(pool, known, now)
                if pool in blocked and self._starting[node] >= self.nodes[node].starts_at_once:
                    break
        self._any_blocked = any(self._blocked)

    def _start(self, pool: int, known: Pool, now: float) -> bool:
        function, node = divmod(pool, len(self.nodes))
        if self._starting[node] >= self.nodes[node].starts_at_once:
            return False
        model = self.workload.models[function]
        start = self._start_fork if model.profile.forks else self._start_process
        job = start(pool, known, now)
        if job is None:
            return False
        self._starting[node] += 1
        if not known.starting:
            known.spans = job.spans
        known.starting += 1
        self._next_step(job, now)
        return True

    def _start_process(self, pool: int, known: Pool, now: float) -> Job | None:
        del known
        places = self.places
        function, node = divmod(pool, len(self.nodes))
        model = self.workload.models[function]
        spare = places.best_spare(pool)
        if spare == NOWHERE:
            stage = model.profile.takes(Level.INSTANCE)
            if not self._room(node, lambda: self.memory.missing_mb(node, stage), now):
                return None
            place, found = places.make(pool, Level.INSTANCE, now), model.profile.floor.level
        else:
            place, found = spare, places.level[spare]
            if not self._room_to_turn(place, function, now):
                return None
            places.turn_into(place, pool, Level.INSTANCE, now)
        if places.busy[place]:
            self.policy.began(place, function, now)
        else:
            places.occupy(place, now)
        places.fresh[place] = COLD if found is Level.ABSENT else POOLED
        return self._job(pool, model.steps(found, Level.INSTANCE), now, place=place)

    def _room_to_turn(self, place: int, function: int, now: float) -> bool:
        """Memory for a place to become an instance; meanwhile nobody is to take it away."""
        places, node = self.places, self.places.node[place]

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
        places = self.places
        function, node = divmod(pool, len(self.nodes))
        model = self.workload.models[function]
        if not self._room(node, lambda: self._missing_to_fork_mb(pool), now):
            return None
        template = places.templates.get(pool, NOWHERE)
        since, kind, template_after = model.profile.floor.level, POOLED, -1
        if template == NOWHERE:
            spare = places.best_spare(pool)
            if spare == NOWHERE:
                places.make(pool, model.template, now)
            else:
                places.turn_into(spare, pool, model.template, now)
            known.template_starts = True
            template_after = len(model.steps(since, model.template))
            kind = COLD if since is Level.ABSENT else POOLED
        else:
            since = places.level[template]
            kind = PRELOADED if places.fresh[template] else FORK
            places.fresh[template] = 0
            if since < model.template or places.host[template] != NOWHERE:
                places.turn_into(template, pool, model.template, now)
        place = places.make(pool, Level.INSTANCE, now)
        places.occupy(place, now)
        places.fresh[place] = kind
        steps = model.steps(since, Level.INSTANCE)
        return self._job(pool, steps, now, place=place, template_after=template_after)

    def _missing_to_fork_mb(self, pool: int) -> float:
        function, node = divmod(pool, len(self.nodes))
        model, places = self.workload.models[function], self.places
        instance, whole = model.profile.takes(Level.INSTANCE), model.profile.takes(model.template)
        template = places.templates.get(pool, NOWHERE)
        missing_mb = self.memory.missing_mb(node, instance, whole)
        return missing_mb if template == NOWHERE else missing_mb - places.private_mb(template)

    def _room(self, node: int, missing_mb: Callable[[], float], now: float) -> bool:
        for _ in range(ROUNDS):
            over_mb = missing_mb()
            if over_mb <= 0:
                return True
            self.policy.pressed(node, over_mb, now)
            self._turn(now)
        return missing_mb() <= 0

    # Jobs

    def _job(
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
            next(self._job_ids),
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
        return job

    def _next_step(self, job: Job, now: float) -> None:
        """The step that it was at is done."""
        if job.spans:
            job.spans[-1][2] = now
        if job.at >= 0 and job.load is not None:
            self.loader_cpu_s += job.step.computes_s
        job.at += 1
        job.computing = False
        if job.at == job.template_after:
            known = self._pools[job.pool]
            known.template_starts = False
            self._later(now, self._recheck_now, job.pool)
        if job.at == len(job.steps):
            self._later(now, self._done, job.id)
            return
        job.spans.append([job.step.phase, now, math.inf])
        if job.step.waits_s:
            self._later(now + job.step.waits_s, self._compute, job.id)
        else:
            self._compute(now, job.id)

    def _recheck_now(self, now: float, pool: int) -> None:
        self._grow(pool, self._pools[pool], now)

    def _compute(self, now: float, job_id: int) -> None:
        """The waiting part of a step is over."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.computing = True
        cores = self._cores[job.pool % len(self.nodes)]
        if job.low:
            cores.add_load(now, job.step.computes_s, -1 - job.id)
        else:
            cores.add(now, job.step.computes_s, -1 - job.id)

    def _computed(self, job_id: int, now: float) -> None:
        self._next_step(self._jobs[job_id], now)

    def _promote(self, job: Job, known: Pool, now: float) -> None:
        """A request waits for a load: it is as urgent as a start from now on."""
        job.low = False
        known.spans = job.spans
        if job.computing:
            cores, item = self._cores[job.pool % len(self.nodes)], -1 - job.id
            cores.add(now, cores.take(now, item, load=True), item)

    def _done(self, now: float, job_id: int) -> None:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        known = self._pools[job.pool]
        if job.load is not None:
            self._loaded(job, job.load, known, now)
        else:
            self._started(job, known, now)

    def _started(self, job: Job, known: Pool, now: float) -> None:
        self._starting[job.pool % len(self.nodes)] -= 1
        known.starting -= 1
        known.started(now - job.began_at)
        call = known.queue.pop(now)
        if call is not None:
            self._run(call, job.place, now)
            self._grow(job.pool, known, now)
            return
        self.places.fresh[job.place] = 0
        self.places.let_go(job.place, now)

    # What the policy wants

    def _turn(self, now: float) -> None:
        policy = self.policy
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
        places = self.places
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
        places = self.places
        pool = load.function * len(self.nodes) + load.node
        steps, stages = self._way(load, pool)
        host = NOWHERE if load.host is None else load.host
        if load.place is not None and places.busy[load.place]:
            self.policy.failed(load.id, "its place runs a call", now)
        elif host != NOWHERE and (not places.is_there(host) or places.busy[host]):
            self.policy.failed(load.id, "its sandbox is not idle", now)
        elif self.memory.missing_mb(load.node, *stages) > 0:
            self.policy.failed(load.id, "there is no room for it", now)
        else:
            for stage in stages:
                self.memory.hold(load.node, stage, now)
            if load.place is not None:
                places.begin_raising(load.place)
            known = self._pool(pool)
            job = self._job(pool, steps, now, load=load, stages=stages)
            known.load = self._loads[load.id] = job
            self.loads += 1
            if known.queue.queued:
                self._promote(job, known, now)
            self._next_step(job, now)

    def _way(self, load: Load, pool: int) -> tuple[tuple[Step, ...], tuple[Stage, ...]]:
        """The steps of a load, and what it is going to hold."""
        places, model = self.places, self.workload.models[load.function]
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
        del self._loads[load.id]
        self._pools[job.pool].load = None
        for stage in job.stages:
            self.memory.release(load.node, stage, now)
        if load.place is not None and self._is_raised(load, job.pool):
            self.places.end_raising(load.place)

    def _is_raised(self, load: Load, pool: int) -> bool:
        """Whether the place that was to be raised is still the same."""
        places, place = self.places, load.place
        if place is None or not places.is_there(place):
            return False
        return bool(places.raised[place]) and places.pool[place] == pool

    def _cancel(self, load: int, now: float) -> None:
        job = self._loads.get(load)
        if job is None:
            return
        if job.computing:
            cores = self._cores[job.pool % len(self.nodes)]
            left_s = cores.take(now, -1 - job.id, load=job.low)
            self.loader_cpu_s += job.step.computes_s - left_s
        del self._jobs[job.id]
        self._end_load(job, now)
        self._block(job.pool)

    def _block(self, pool: int) -> None:
        """Have what waits there looked at again after this event."""
        if self._pools[pool].queue.queued:
            self._blocked[pool % len(self.nodes)][pool] = None
            self._any_blocked = True

    def _loaded(self, job: Job, load: Load, known: Pool, now: float) -> None:
        places, host = self.places, NOWHERE if load.host is None else load.host
        there = load.place is None or self._is_raised(load, job.pool)
        self._end_load(job, now)
        if not there or (host != NOWHERE and not places.is_there(host)):
            self.policy.failed(load.id, "its place is gone", now)
        elif self.memory.missing_mb(load.node, *job.stages) > 0:
            self.policy.failed(load.id, "there is no room for it any more", now)
        elif load.place is not None:
            places.rise(load.place, load.level, now, load.id)
            self._mark(load.place)
        else:
            self._bring(job, load, host, now)
        if self.policy.due <= now:
            self._turn(now)
        if known.queue.queued:
            self._serve(job.pool, known, now)

    def _bring(self, job: Job, load: Load, host: int, now: float) -> None:
        places, model = self.places, self.workload.models[load.function]
        lacks = model.profile.forks and job.pool not in places.templates
        if lacks and load.level is Level.INSTANCE:
            self._mark(places.make(job.pool, model.template, now))
        self._mark(places.make(job.pool, load.level, now, load=load.id, host=host))

    def _mark(self, place: int) -> None:
        """The first call that it serves has been loaded for."""
        if self.places.level[place] > Level.LAYER:
            self.places.fresh[place] = PRELOADED

    def _later(self, at: float, act: Callable[[float, int], None], subject: int) -> None:
        heapq.heappush(self._timers, (at, next(self._order), act, subject))
