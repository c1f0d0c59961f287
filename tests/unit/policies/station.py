"""A worker in virtual time: calls arrive, wait in a CallQueue, share cores, and end."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from faasd.policies.queueing.discipline import ServiceTimes
from faasd.policies.queueing.queue import CallQueue


@dataclass(frozen=True, slots=True)
class Job:
    """A call to come: when, how long it runs on a core of its own, and what is asked of it."""

    arrival: float
    exec_s: float
    tenant: str = ""
    priority: int = 0
    slo_s: float | None = None
    patience_s: float | None = None

    @property
    def deadline(self) -> float | None:
        return None if self.patience_s is None else self.arrival + self.patience_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job fared: when it started and ended, or neither when it was dropped."""

    job: Job
    started: float | None
    ended: float | None

    @property
    def sojourn_s(self) -> float:
        return math.inf if self.ended is None else self.ended - self.job.arrival

    @property
    def in_time(self) -> bool:
        deadline = self.job.deadline
        return self.ended is not None and (deadline is None or self.ended <= deadline)


class Station:
    """Runs up to `slots` calls at once; more than `cores` of them share the cores equally.

    With `drops`, calls are dropped at their deadline and, once `times` knows how long runs take,
    early where more wait than slots are free.
    """

    def __init__(
        self,
        queue: CallQueue,
        *,
        cores: int = 1,
        slots: int | None = None,
        drops: bool = False,
        times: ServiceTimes | None = None,
    ) -> None:
        self.queue = queue
        self.cores = cores
        self.slots = cores if slots is None else slots
        self.drops = drops
        self.times = times
        self.now = 0.0
        self.jobs: list[Job] = []
        self.left: dict[int, float] = {}
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}

    def run(self, jobs: Iterable[Job]) -> list[Outcome]:
        self.jobs = sorted(jobs, key=lambda job: job.arrival)
        coming = 0
        while coming < len(self.jobs) or self.left:
            arrival = self.jobs[coming].arrival if coming < len(self.jobs) else math.inf
            if arrival <= self._next_end():
                self._pass(arrival)
                self._push(coming)
                coming += 1
            else:
                self._pass(self._next_end())
                self._end()
            self._start()
        return [
            Outcome(job, self.started.get(number), self.ended.get(number))
            for number, job in enumerate(self.jobs)
        ]

    def _speed(self) -> float:
        return min(1.0, self.cores / len(self.left)) if self.left else 1.0

    def _next_end(self) -> float:
        return self.now + min(self.left.values()) / self._speed() if self.left else math.inf

    def _pass(self, until: float) -> None:
        done = (until - self.now) * self._speed()
        self.left = {call: left - done for call, left in self.left.items()}
        self.now = until

    def _push(self, call: int) -> None:
        job = self.jobs[call]
        self.queue.push(
            call,
            self.now,
            deadline=job.deadline,
            slo_s=job.slo_s,
            priority=job.priority,
            tenant=job.tenant,
        )

    def _end(self) -> None:
        call = min(self.left, key=self.left.__getitem__)
        del self.left[call]
        self.ended[call] = self.now
        if self.times is not None:
            self.times.observe(self.jobs[call].exec_s, self.now)
        self.queue.finished(call, self.jobs[call].exec_s)

    def _long_run_s(self) -> float | None:
        """What a call must have left to be worth a slot that others wait for."""
        if self.times is None or len(self.queue) <= self.slots - len(self.left):
            return None
        return self.times.within_s(self.now)

    def _start(self) -> None:
        if self.drops:
            self.queue.expired(self.now, exec_s=self._long_run_s())
        while len(self.left) < self.slots and (call := self.queue.pop(self.now)) is not None:
            self.left[call] = self.jobs[call].exec_s
            self.started[call] = self.now


def arrivals(seed: str, *, rate: float, until: float) -> list[float]:
    """A Poisson process."""
    dice = random.Random(seed)
    times: list[float] = []
    now = dice.expovariate(rate)
    while now < until:
        times.append(now)
        now += dice.expovariate(rate)
    return times


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
