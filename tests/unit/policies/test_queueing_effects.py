"""What the queue does to callers, in virtual time: noisy neighbours, deadlines, overload."""

from __future__ import annotations

import random

import pytest

from faasd.policies.queueing.discipline import ServiceTimes
from faasd.policies.queueing.places import Displace, Refuse
from faasd.policies.queueing.queue import CallQueue
from tests.unit.policies.station import Job, Outcome, Station, arrivals, percentile

EXEC_S = 0.1


def about(exec_s: float, dice: random.Random) -> float:
    """An execution time with a CV of a quarter."""
    return exec_s * dice.lognormvariate(-(0.25**2) / 2, 0.25)


def jobs_of(
    tenant: str,
    *,
    rate: float,
    until: float,
    patience_s: tuple[float, ...] | None = None,
    seed: str = "",
) -> list[Job]:
    dice = random.Random(f"{tenant} {seed}")
    return [
        Job(
            time,
            about(EXEC_S, dice),
            tenant=tenant,
            patience_s=dice.choice(patience_s) if patience_s else None,
        )
        for time in arrivals(f"{tenant} {seed}", rate=rate, until=until)
    ]


def p99(outcomes: list[Outcome], tenant: str) -> float:
    return percentile((one.sojourn_s for one in outcomes if one.job.tenant == tenant), 0.99)


@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_a_tenant_with_a_hundred_times_the_calls_hardly_slows_a_quiet_one(
    cores: int, seed: str
) -> None:
    """The quiet tenant asks for a twentieth of the capacity, the loud one for five times it."""
    quiet = jobs_of("quiet", rate=0.05 * cores / EXEC_S, until=60.0, seed=seed)
    loud = jobs_of("loud", rate=5.0 * cores / EXEC_S, until=60.0, seed=seed)

    alone = p99(Station(CallQueue(), cores=cores).run(quiet), "quiet")
    together = p99(Station(CallQueue(), cores=cores).run(quiet + loud), "quiet")

    assert together <= 2 * alone + EXEC_S


def test_without_shares_the_same_neighbour_makes_the_quiet_tenant_wait_without_end() -> None:
    quiet = jobs_of("quiet", rate=1.0, until=60.0)
    loud = jobs_of("loud", rate=100.0, until=60.0)
    jobs = sorted(quiet + loud, key=lambda job: job.arrival)

    outcomes = Station(CallQueue(), cores=2).run(Job(job.arrival, job.exec_s) for job in jobs)

    of_quiet = [one for one, job in zip(outcomes, jobs, strict=True) if job.tenant == "quiet"]
    assert percentile((one.sojourn_s for one in of_quiet), 0.5) > 60.0


def test_long_calls_of_one_tenant_leave_the_other_its_share_of_the_time() -> None:
    """Both are backlogged for the first 50 s; a call of one takes twenty of the other."""
    long = [Job(0.0, 2.0, tenant="long") for _ in range(100)]
    short = [Job(0.0, 0.1, tenant="short") for _ in range(2000)]

    outcomes = Station(CallQueue(), cores=2).run(long + short)

    early = [one.job for one in outcomes if one.ended is not None and one.ended <= 50.0]
    used = sum(job.exec_s for job in early if job.tenant == "short")
    assert used == pytest.approx(50.0, abs=5.0)


def test_a_flood_leaves_the_other_tenant_its_places_in_a_full_queue() -> None:
    queue = CallQueue()
    refused = {"loud": 0, "quiet": 0}
    for call in range(5000):
        tenant = "loud" if call % 50 else "quiet"
        answer = queue.admit(tenant, places=20)
        if isinstance(answer, Displace):
            assert queue.remove(answer.call)
        if isinstance(answer, Refuse):
            refused[tenant] += 1
        else:
            queue.push(call, call / 1000, tenant=tenant)
        if call % 10 == 0 and (out := queue.pop(call / 1000)) is not None:
            queue.finished(out, 0.01)

    assert refused["quiet"] == 0
    assert refused["loud"] > 4000
    assert len(queue) == 20


@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_deadlines_are_met_that_a_fifo_misses(seed: str) -> None:
    """At a load of 0.8; a quarter of the callers can wait ten times as long as the others."""
    jobs = jobs_of("", rate=0.8 * 4 / EXEC_S, until=200.0, patience_s=(0.25, 2.5), seed=seed)
    undated = [Job(job.arrival, job.exec_s) for job in jobs]

    by_deadline = Station(CallQueue(), cores=4).run(jobs)
    fifo = Station(CallQueue(), cores=4).run(undated)

    missed = sum(not one.in_time for one in by_deadline)
    missed_by_fifo = sum(
        (one.ended or 0.0) > (job.deadline or 0.0) for one, job in zip(fifo, jobs, strict=True)
    )
    assert missed_by_fifo > 0.01 * len(jobs)
    assert missed < missed_by_fifo / 4


def goodput(outcomes: list[Outcome], *, cores: int, begin: float, end: float) -> float:
    """The part of the capacity that went into calls which ended in time."""
    useful = [one for one in outcomes if one.in_time and begin < (one.ended or 0.0) <= end]
    return sum(one.job.exec_s for one in useful) / ((end - begin) * cores)


@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("patience_s", [0.5, 2.0])
def test_early_drops_keep_goodput_where_three_times_the_capacity_is_asked_for(
    cores: int, patience_s: float
) -> None:
    jobs = jobs_of("", rate=3 * cores / EXEC_S, until=60.0, patience_s=(patience_s,))
    times = ServiceTimes()

    early = Station(CallQueue(), cores=cores, drops=True, times=times).run(jobs)
    late = Station(CallQueue(), cores=cores, drops=True).run(jobs)
    never = Station(CallQueue(), cores=cores).run(jobs)

    useful = [
        goodput(outcomes, cores=cores, begin=patience_s, end=60.0)
        for outcomes in (early, late, never)
    ]
    assert useful[0] >= 0.9
    assert useful[1] < 0.2
    assert useful[2] < 0.05


def test_a_call_that_has_a_free_core_is_not_dropped_for_what_others_took() -> None:
    times = ServiceTimes()
    for _ in range(20):
        times.observe(1.0, 0.0)

    outcome, *_ = Station(CallQueue(), drops=True, times=times).run([Job(1.0, 0.2, patience_s=0.5)])

    assert outcome.in_time


def test_calls_run_again_after_drops_that_went_by_times_long_gone() -> None:
    """Runs took 1 s, now 0.1 s: by what was known, no call of 0.5 s patience could make it."""
    slow = [Job(float(at), 1.0) for at in range(30)]
    quick = [Job(30.0 + at / 20, 0.1, patience_s=0.5) for at in range(10_000)]

    outcomes = Station(CallQueue(), drops=True, times=ServiceTimes()).run(slow + quick)

    assert goodput(outcomes, cores=1, begin=300.0, end=530.0) >= 0.9
