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
from collections.abc import Sequence

from faasd.policies.preloading.levels import Level
from faasd.policies.preloading.policy import Policy
from faasd.policies.queueing.places import Refuse
from faasd.policies.routing.candidate import Router
from faasd.policies.scaling import ConcurrencyScaling, Demand
from loadgen.simulation.jobs import Job, Jobs
from loadgen.simulation.loading import Loading
from loadgen.simulation.node import Node
from loadgen.simulation.places import COLD, FORK, NONE, NOWHERE, POOLED, PRELOADED, WARM
from loadgen.simulation.routes import Routes
from loadgen.simulation.starts import Starts
from loadgen.simulation.workload import Workload
from loadgen.simulation.world import Pool, World

QUEUE_FULL, LATE, NO_MEMORY = 1, 2, 3
REASONS = ("", "queue_full", "deadline_exceeded", "unavailable")
"""Why a call was dropped, by the codes that the live platform answers."""

TRIES_AT_ONCE = 4


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
        self.world = world = World(workload, policy, nodes)
        self.workload = workload
        self.policy = policy
        self.places = world.places
        self.record = Record(len(workload))
        self.left = len(workload)
        """Calls that have no end yet."""
        self.ended_at = 0.0
        self.jobs = Jobs(world, ended=self._job_ended, template_ready=self._recheck)
        self.loading = Loading(world, self.jobs)
        self._starts = Starts(world, self.jobs, self.loading.turn)
        self._timeout_s = timeout_s
        self._fronts: dict[int, Pool] = {}
        """By function: calls that the router holds back."""
        self._fits = [
            [world.needs_mb(function) <= node.memory_mb for node in nodes]
            for function in range(len(workload.models))
        ]
        self._most = [[one.at_once(node.cores) for node in nodes] for one in workload.models]
        self._routes = None
        if len(nodes) > 1:
            assert router is not None
            self._routes = Routes(world, router, self._most, self._fits)
        for place, node in enumerate(nodes):
            policy.node_joined(place, node.memory_mb, 0.0)
        for function, model in enumerate(workload.models):
            policy.known(function, model.profile, 0.0)
        self.loading.turn(0.0)

    def __repr__(self) -> str:
        return f"<Engine {self.left} calls to go, {self.world!r}>"

    def never_fit(self) -> list[int]:
        """The functions that no node has the memory for."""
        return [function for function, fits in enumerate(self._fits) if not any(fits)]

    # The loop

    def run(self) -> None:
        workload, policy, places = self.workload, self.policy, self.places
        times, functions, exec_s = workload.times_s, workload.functions, workload.exec_s
        computes = [one.computes >= 1.0 for one in workload.models]
        dispatch_s = [one.hop_s for one in workload.models]
        record, idle, busy, fresh = self.record, places.idle, places.busy, places.fresh
        pool_of, owner = places.pool, places.owner
        dispatched_s, finished_s, kinds = record.dispatched_s, record.finished_s, record.kinds
        ends, timers, cores = self.world.ends, self.world.timers, self.world.cores
        first_cores, call_at, pools = cores[0], places.call, self.world.pools
        arrived, began, idled = policy.arrived, policy.began, policy.idled
        single = len(self.world.nodes) == 1
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
                    self.loading.turn(now)
                continue
            if ends_at <= due and not (timers and timers[0][0] < ends_at):
                if ends_at == math.inf:
                    self._give_up(now)
                    break
                now = ends_at
                node = 0 if single else ends.index(now)
                place = cores[node].pop(now)
                if place < 0:
                    self.jobs.computed(place, now)
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
                self.loading.turn(now)
            if self.world.any_blocked:
                self._retry(now)
            if call == calls and self._is_over(now):
                break
        self._finish(max(now, workload.span_s))

    def _is_over(self, now: float) -> bool:
        """After the last arrival: nothing is left to be answered, and the trace's time is up."""
        if self.left and not self.world.timers and min(self.world.ends) == math.inf:
            self._give_up(now)
        return not self.left and min(self.policy.due, *self.world.ends) > self.workload.span_s

    def _finish(self, now: float) -> None:
        self.ended_at = now
        self.world.memory.pass_to(now)

    # Calls

    def _arrive(self, call: int, function: int, now: float) -> None:
        if not any(self._fits[function]):
            self._drop(call, NO_MEMORY, now)
            return
        if self._routes is None:
            self._arrive_at(0, call, function, now)
            return
        front = self._fronts.get(function)
        node = (
            NOWHERE if front is not None and front.queue.queued else self._routes.choose(function)
        )
        if node == NOWHERE:
            if front is None:
                front = self._fronts[function] = Pool()
            self._push(front, -1 - function, call, now)
        else:
            self._arrive_at(node, call, function, now)

    def _arrive_at(self, node: int, call: int, function: int, now: float) -> None:
        pool = function * len(self.world.nodes) + node
        if self._routes is not None:
            self._routes.entered(pool)
        self.record.nodes[call] = node
        place = self._ready_place(pool, now)
        if place != NOWHERE:
            self.places.occupy(place, now)
            self._run(call, place, now)
            return
        known = self.world.pool(pool)
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
        if places.missing_to_turn_mb(host, pool // len(self.world.nodes), Level.INSTANCE) > (
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
        profile = self.workload.models[pool // len(self.world.nodes)].profile
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
            self.world.later(deadline, self._expire, pool)

    def _expire(self, now: float, pool: int) -> None:
        known = self._fronts[-1 - pool] if pool < 0 else self.world.pools[pool]
        known.watched = False
        for late in known.queue.expired(now):
            self._drop(late.call, LATE, now, pool)
        deadline = known.queue.next_deadline()
        if deadline is not None:
            known.watched = True
            self.world.later(deadline, self._expire, pool)

    def _run(self, call: int, place: int, now: float) -> None:
        """A call begins on a place that is busy for it."""
        places, record = self.places, self.record
        arrived = self.workload.times_s[call]
        if places.fresh[place]:
            if record.kinds[call] == WARM:
                record.kinds[call] = places.fresh[place]
            places.fresh[place] = 0
        if arrived < now:
            known = self.world.pools.get(places.pool[place])
            for phase, since, until in known.spans if known is not None else ():
                waited_s = min(until, now) - max(since, arrived)
                if waited_s > 0.0:
                    record.waits_s[int(phase)][call] += waited_s
        places.call[place] = call
        record.dispatched_s[call] = now
        node, share = places.node[place], self.workload.models[places.owner[place]].computes
        if share >= 1.0:
            self.world.cores[node].add(now, self.workload.exec_s[call], place)
        else:
            waits_s = (1.0 - share) * self.workload.exec_s[call]
            self.world.later(now + waits_s, self._waited, place)

    def _waited(self, now: float, place: int) -> None:
        """A call has waited as long as it does, and computes from now on."""
        share = self.workload.models[self.places.owner[place]].computes
        work_s = share * self.workload.exec_s[self.places.call[place]]
        self.world.cores[self.places.node[place]].add(now, work_s, place)

    def _ended(self, call: int, place: int, now: float) -> None:
        pool = self.places.pool[place]
        if self.policy.due <= now:
            self.loading.turn(now)
        known = self.world.pools.get(pool)
        if known is not None:
            known.queue.finished(call, now - self.record.dispatched_s[call])
            if known.queue.queued:
                self._serve(pool, known, now)
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
        if self._routes is None:
            return
        self._routes.left(pool)
        function = pool // len(self.world.nodes)
        front = self._fronts.get(function)
        while front is not None and front.queue.queued:
            node = self._routes.choose(function)
            if node == NOWHERE:
                return
            call = front.queue.pop(now)
            assert call is not None
            front.queue.finished(call, 0.0)
            self._arrive_at(node, call, function, now)

    def _give_up(self, now: float) -> None:
        """Nothing will happen any more: what waits has no memory to run in."""
        for front in self._fronts.values():
            for call in front.queue.clear():
                self._drop(call, NO_MEMORY, now)
        for pool, known in self.world.pools.items():
            for call in known.queue.clear():
                self._drop(call, NO_MEMORY, now, pool)

    # Starts

    def _grow(self, pool: int, known: Pool, now: float) -> None:
        """As many starts as the scaling rule wants for what waits; a load under way is one."""
        queued = known.queue.queued
        if not queued:
            return
        function, node = divmod(pool, len(self.world.nodes))
        model, places = self.workload.models[function], self.places
        loading = self.loading.is_under_way(pool)
        if loading:
            self.loading.promote(pool, now)
        if model.profile.forks:
            absent = pool not in places.templates
            if known.template_starts or (absent and loading):
                return
        most = self._most[function][node]
        if places.instances[pool] >= most:
            return
        stack = places.idle[pool]
        running = places.instances[pool] - known.starting - (len(stack) if stack else 0)
        live = places.instances[pool] + loading
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
            if not self._starts.begin(pool, known, now):
                self.world.block(pool)
                return
            if known.template_starts:
                return
        if missing <= 0 and oldest is not None:
            self._recheck_later(pool, known, oldest, now)

    def _recheck_later(self, pool: int, known: Pool, oldest: float, now: float) -> None:
        """What waits is left to what runs for as long as a start takes."""
        if known.start_s is not None and not known.rechecked and oldest + known.start_s > now:
            known.rechecked = True
            self.world.later(oldest + known.start_s, self._recheck, pool)

    def _recheck(self, now: float, pool: int) -> None:
        """A call has waited for as long as a start takes, or there is a template to fork from."""
        known = self.world.pools[pool]
        known.rechecked = False
        self._grow(pool, known, now)

    def _retry(self, now: float) -> None:
        """Starts that were put off, the longest ago first, as far as there is room now."""
        for node, blocked in enumerate(self.world.blocked):
            for pool in list(itertools.islice(blocked, TRIES_AT_ONCE)):
                del blocked[pool]
                known = self.world.pools[pool]
                if known.queue.queued:
                    self._grow(pool, known, now)
                if pool in blocked and self._starts.is_full(node):
                    break
        self.world.any_blocked = any(self.world.blocked)

    def _job_ended(self, job: Job, now: float) -> None:
        known = self.world.pools[job.pool]
        if job.load is None:
            self._started(job, known, now)
            return
        self.loading.loaded(job, job.load, now)
        if self.policy.due <= now:
            self.loading.turn(now)
        if known.queue.queued:
            self._serve(job.pool, known, now)

    def _started(self, job: Job, known: Pool, now: float) -> None:
        self._starts.ended(job, known, now)
        call = known.queue.pop(now)
        if call is not None:
            self._run(call, job.place, now)
            self._grow(job.pool, known, now)
            return
        self.places.fresh[job.place] = 0
        self.places.let_go(job.place, now)
