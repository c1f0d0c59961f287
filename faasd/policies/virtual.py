"""Routing policies in virtual time: open arrivals, workers with slots, and the production policy.

Small on purpose: what the tests hold against queueing theory, and what `bench/scheduling.py`
tabulates. One run is one call of `simulate`; the same seed gives the same arrivals and run times
whatever the policy does.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, Protocol

from faasd.policies.routing.candidate import Candidate, Locality, Router

_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Workload:
    """Run times: classes with their shares and means, each exactly its mean or exponential."""

    name: str
    classes: tuple[tuple[float, float], ...]
    exponential: bool = False

    @property
    def mean_s(self) -> float:
        return sum(share * mean for share, mean in self.classes)

    def draw(self, rng: random.Random) -> tuple[int, float]:
        """A class and a run time."""
        kind = self._kind(rng.random()) if len(self.classes) > 1 else 0
        mean = self.classes[kind][1]
        return kind, (-mean * math.log(1 - rng.random()) if self.exponential else mean)

    def _kind(self, drawn: float) -> int:
        for kind, (share, _) in enumerate(self.classes):
            drawn -= share
            if drawn < 0:
                return kind
        return len(self.classes) - 1


def exponential(mean_s: float) -> Workload:
    return Workload("exponential", ((1.0, mean_s),), exponential=True)


def deterministic(run_s: float) -> Workload:
    return Workload("deterministic", ((1.0, run_s),))


def mix(name: str, *classes: tuple[float, float]) -> Workload:
    """Of fixed run times: (share, seconds) each."""
    return Workload(name, classes)


class Call:
    """One call. `reported` is the load that its worker had when it was done."""

    __slots__ = ("arrived", "kind", "number", "reported", "run_s")

    def __init__(self, number: int, arrived: float, kind: int, run_s: float) -> None:
        self.number = number
        self.arrived = arrived
        self.kind = kind
        self.run_s = run_s
        self.reported = 0


_Wake = Callable[[float, object], None]


class Station(Protocol):
    """What runs calls on a worker. `wake` has it called again, at a time, with a token."""

    load: int

    def arrive(self, call: Call, now: float, wake: _Wake) -> None: ...

    def complete(self, token: object, now: float, wake: _Wake) -> Call | None:
        """The call that is done; None when the token was superseded."""
        ...


class Fcfs:
    """As many calls at once as there are slots, the others in the order in which they came."""

    def __init__(self, slots: int) -> None:
        self.load = 0
        self._slots = slots
        self._queue: deque[Call] = deque()

    def arrive(self, call: Call, now: float, wake: _Wake) -> None:
        self.load += 1
        if self.load <= self._slots:
            wake(now + call.run_s, call)
        else:
            self._queue.append(call)

    def complete(self, token: object, now: float, wake: _Wake) -> Call | None:
        assert isinstance(token, Call)
        self.load -= 1
        if self._queue:
            following = self._queue.popleft()
            wake(now + following.run_s, following)
        return token


class ProcessorSharing:
    """All calls at once, each on at most one slot; the slots are shared evenly where they are few.

    Keeps the work that every call present would have got since the start: a call is done when that
    has grown by its run time.
    """

    def __init__(self, slots: int) -> None:
        self.load = 0
        self._slots = slots
        self._done_at: list[tuple[float, int, Call]] = []
        self._work = 0.0
        self._since = 0.0
        self._version = 0

    def arrive(self, call: Call, now: float, wake: _Wake) -> None:
        self._advance(now)
        self.load += 1
        heapq.heappush(self._done_at, (self._work + call.run_s, call.number, call))
        self._plan(now, wake)

    def complete(self, token: object, now: float, wake: _Wake) -> Call | None:
        if token != self._version:
            return None
        self._advance(now)
        self.load -= 1
        call = heapq.heappop(self._done_at)[2]
        self._plan(now, wake)
        return call

    def _rate(self) -> float:
        return self._slots / self.load if self.load > self._slots else 1.0

    def _advance(self, now: float) -> None:
        self._work += (now - self._since) * self._rate()
        self._since = now

    def _plan(self, now: float, wake: _Wake) -> None:
        self._version += 1
        if self._done_at:
            left = max(0.0, self._done_at[0][0] - self._work)
            wake(now + left / self._rate(), self._version)


@dataclass(slots=True)
class Outcome:
    """Seconds from arrival to answer, by class, in the order of answers and without the warm-up.

    `load` is what the arrivals came to, as a share of the slots: close to what was asked for, and
    what theory has to be asked about.
    """

    by_class: list[list[float]]
    load: float = 0.0
    most_held: int = 0

    @property
    def everything(self) -> list[float]:
        return [one for times in self.by_class for one in times]

    @property
    def mean_s(self) -> float:
        return fmean(self.everything)

    def percentile_s(self, percent: float, kind: int | None = None) -> float:
        times = sorted(self.everything if kind is None else self.by_class[kind])
        return times[min(len(times) - 1, int(percent / 100 * len(times)))]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The workers, by their slots, and what the controller knows of them.

    `delay_s` passes between controller and worker, each way. `knows` is "own" for counts that the
    controller keeps itself, "reports" for what replies bring. Where `warm`, every slot has an
    instance, and candidates say whether one is idle.
    """

    slots: Sequence[int]
    station: Callable[[int], Station] = Fcfs
    delay_s: float = 0.0
    knows: Literal["own", "reports"] = "own"
    warm: bool = False

    def rate(self, load: float, workload: Workload) -> float:
        """Calls per second that keep the slots busy for a share of the time."""
        return load * sum(self.slots) / workload.mean_s


def simulate(
    router: Router, cluster: Cluster, workload: Workload, *, load: float, calls: int, seed: int
) -> Outcome:
    """Serve so many Poisson arrivals, all of them to their end. `load` is relative to the slots."""
    return _Run(router, cluster, workload).run(cluster.rate(load, workload), calls, seed)


_Act = Callable[[float, int, Any], None]


class _Run:
    """One run. An event is a time, its order among equals, what happens, where, and to what."""

    def __init__(self, router: Router, cluster: Cluster, workload: Workload) -> None:
        self._router = router
        self._workload = workload
        self._delay_s = cluster.delay_s
        self._by_reports = cluster.knows == "reports"
        self._warm = cluster.warm
        self._stations = [cluster.station(slots) for slots in cluster.slots]
        self._candidates = [
            Candidate(
                worker=str(place),
                slots=slots,
                places=slots,
                exec_s=workload.mean_s,
                locality=Locality.IDLE if cluster.warm else Locality.NOTHING,
            )
            for place, slots in enumerate(cluster.slots)
        ]
        self._held: deque[Call] = deque()
        self._outcome = Outcome([[] for _ in workload.classes])
        self._first = 0
        self._events: list[tuple[float, int, _Act, int, Any]] = []
        self._order = itertools.count()
        self._wakes = [self._wake_for(place) for place in range(len(self._stations))]

    def run(self, rate: float, calls: int, seed: int) -> Outcome:
        # Never the numbers of a router that was given the same seed.
        rng = random.Random(f"arrivals {seed}")
        self._first = int(calls * _WARM_UP)
        draw, gap = self._workload.draw, rng.expovariate
        events, arrival, work = self._events, gap(rate), 0.0
        for number in range(calls):
            while events and events[0][0] <= arrival:
                now, _, act, place, subject = heapq.heappop(events)
                act(now, place, subject)
            kind, run_s = draw(rng)
            self._arrive(Call(number, arrival, kind, run_s), arrival)
            work += run_s
            arrival += gap(rate)
        self._outcome.load = work / arrival / sum(one.slots for one in self._candidates)
        while events:
            now, _, act, place, subject = heapq.heappop(events)
            act(now, place, subject)
        return self._outcome

    def _wake_for(self, place: int) -> _Wake:
        events, order, complete = self._events, self._order, self._complete

        def wake(time: float, token: object) -> None:
            heapq.heappush(events, (time, next(order), complete, place, token))

        return wake

    def _later(self, now: float, act: _Act, place: int, subject: object) -> None:
        event = (now + self._delay_s, next(self._order), act, place, subject)
        heapq.heappush(self._events, event)

    def _arrive(self, call: Call, now: float) -> None:
        if self._held or not self._dispatch(call, now):
            self._held.append(call)
            self._outcome.most_held = max(self._outcome.most_held, len(self._held))

    def _dispatch(self, call: Call, now: float) -> bool:
        chosen = self._router.choose(self._candidates)
        if chosen is None:
            return False
        place = int(chosen)
        self._count(place, 1)
        if self._delay_s:
            self._later(now, self._reach, place, call)
        else:
            self._stations[place].arrive(call, now, self._wakes[place])
        return True

    def _reach(self, now: float, place: int, call: Call) -> None:
        self._stations[place].arrive(call, now, self._wakes[place])

    def _complete(self, now: float, place: int, token: object) -> None:
        station = self._stations[place]
        call = station.complete(token, now, self._wakes[place])
        if call is None:
            return
        call.reported = station.load
        if self._delay_s:
            self._later(now, self._answer, place, call)
        else:
            self._answer(now, place, call)

    def _answer(self, now: float, place: int, call: Call) -> None:
        if call.number >= self._first:
            self._outcome.by_class[call.kind].append(now - call.arrived)
        self._count(place, -1)
        if self._by_reports:
            self._candidates[place].outstanding = call.reported
        while self._held and self._dispatch(self._held[0], now):
            self._held.popleft()

    def _count(self, place: int, change: int) -> None:
        one = self._candidates[place]
        one.held += change
        if not self._by_reports:
            one.outstanding += change
        if self._warm:
            one.locality = Locality.IDLE if one.held < one.slots else Locality.TEMPLATE
