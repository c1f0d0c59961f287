"""The routing policies in virtual time against queueing theory, and the orders that follow from it.

Times are in mean run times where nothing else is said. Runs are seeded, and so long that 3 % are at
least two and a half standard errors; of the p99 of eight slots under a load of 0.9, one and a half.
Theory is asked about the load that the arrivals came to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from faasd.policies.routing.bounded_queue import BoundedQueue
from faasd.policies.routing.candidate import Candidate, Router
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.policies.routing.power_of_k import PowerOfK
from faasd.policies.routing.random_choice import RandomChoice
from faasd.policies.routing.routers import ROUTERS
from faasd.policies.virtual import (
    Cluster,
    Fcfs,
    Outcome,
    ProcessorSharing,
    Workload,
    deterministic,
    exponential,
    mix,
    simulate,
)

EXP = exponential(1.0)
# RackSched's mixes: mostly short, half and half, and three orders of magnitude.
RARELY_LONG = mix("90 % 50, 10 % 500", (0.9, 50.0), (0.1, 500.0))
HALF_LONG = mix("50 % 50, 50 % 500", (0.5, 50.0), (0.5, 500.0))
THREE = mix("50, 500, 5000", (1 / 3, 50.0), (1 / 3, 500.0), (1 / 3, 5000.0))
EIGHT = Cluster([8] * 8)
UNEQUAL = Cluster([7] * 4 + [4] * 4)


def power_of(k: int) -> Router:
    return PowerOfK(random.Random(5), k=k)


def blind() -> Router:
    return RandomChoice(random.Random(5))


def shortest() -> Router:
    return LeastOutstanding()


def p99(router: Router, cluster: Cluster, workload: Workload, load: float, calls: int) -> float:
    """In mean run times."""
    outcome = simulate(router, cluster, workload, load=load, calls=calls, seed=11)
    return outcome.percentile_s(99) / workload.mean_s


def one_worker(
    slots: int,
    workload: Workload,
    load: float,
    calls: int,
    station: Callable[[int], Fcfs | ProcessorSharing] = Fcfs,
) -> Outcome:
    cluster = Cluster([slots], station=station)
    return simulate(
        RandomChoice(random.Random(5)), cluster, workload, load=load, calls=calls, seed=3
    )


def pollaczek_khinchine(workload: Workload, load: float) -> float:
    """The mean sojourn in M/G/1, first come first served."""
    second_moment = math.fsum(share * mean * mean for share, mean in workload.classes)
    return workload.mean_s + load / workload.mean_s * second_moment / (2 * (1 - load))


def waiting_share(slots: int, load: float) -> float:
    """Erlang's C: the share of calls that wait in M/M/c."""
    offered = slots * load
    blocked = 1.0
    for servers in range(1, slots + 1):
        blocked = offered * blocked / (servers + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def mmc_mean(slots: int, load: float) -> float:
    return 1 + waiting_share(slots, load) / (slots * (1 - load))


def mmc_tail(slots: int, load: float, time: float) -> float:
    """P(sojourn > time) in M/M/c with runs of mean 1."""
    spare = slots * (1 - load) - 1
    waited = waiting_share(slots, load) * (1 - math.exp(-time * spare)) / spare
    return math.exp(-time) * (1 + waited)


def mean_field_mean(k: int, load: float) -> float:
    if k == 1:
        return 1 / (1 - load)
    return math.fsum(load ** ((k**level - k) / (k - 1)) for level in range(1, 40))


def mean_field_tail(k: int, load: float, time: float) -> float:
    """P(sojourn > time): a call that joins n others waits for n + 1 runs."""

    def at_least(level: int) -> float:
        longer = level if k == 1 else (k**level - 1) / (k - 1)
        return load ** (longer * k)

    later, term, runs_left = 0.0, math.exp(-time), 0.0
    for level in range(60 if k > 1 else 400):
        runs_left += term
        term *= time / (level + 1)
        later += (at_least(level) - at_least(level + 1)) * runs_left
    return later


def quantile(percent: float, tail: Callable[..., float], *given: float) -> float:
    """Where a distribution function's complement falls below what is left of 100 %."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(*given, middle) > 1 - percent / 100 else (low, middle)
    return low


def near(value: Any, share: float = 0.03) -> Any:
    return pytest.approx(value, rel=share)


# One worker.


def test_one_slot_with_exponential_runs_is_mm1() -> None:
    outcome = one_worker(1, EXP, 0.8, 1_000_000)

    assert outcome.mean_s == near(1 / (1 - outcome.load))
    assert outcome.percentile_s(99) == near(math.log(100) / (1 - outcome.load))


def test_order_of_arrival_pays_for_dispersed_runs_as_pollaczek_and_khinchine_say() -> None:
    outcome = one_worker(1, RARELY_LONG, 0.7, 600_000)

    assert pollaczek_khinchine(RARELY_LONG, 0.7) == pytest.approx(429.6, abs=0.1)
    assert outcome.mean_s == near(pollaczek_khinchine(RARELY_LONG, outcome.load))


def test_processor_sharing_does_not_mind_dispersed_runs() -> None:
    outcome = one_worker(1, RARELY_LONG, 0.7, 600_000, ProcessorSharing)

    assert outcome.mean_s == near(RARELY_LONG.mean_s / (1 - outcome.load))
    for kind, (_, run_s) in enumerate(RARELY_LONG.classes):
        times = outcome.by_class[kind]
        assert sum(times) / len(times) == near(run_s / (1 - outcome.load))


@pytest.mark.parametrize(("slots", "calls"), [(8, 1_500_000), (64, 500_000)])
def test_many_slots_with_one_queue_are_mmc(slots: int, calls: int) -> None:
    outcome = one_worker(slots, EXP, 0.9, calls)

    assert outcome.mean_s == near(mmc_mean(slots, outcome.load))
    assert outcome.percentile_s(99) == near(quantile(99, mmc_tail, slots, outcome.load))


def test_the_formulas_for_one_queue_give_the_figures_of_racksched() -> None:
    means = [50 * mmc_mean(slots, 0.9) for slots in (64, 8)]
    tails = [50 * quantile(99, mmc_tail, slots, 0.9) for slots in (64, 8)]

    assert means == near([52.3, 92.5], 0.02)
    assert tails == near([233.0, 345.0])


# Many workers of one slot: the mean field.


@pytest.mark.parametrize("load", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("k", [2, 3])
def test_the_better_of_a_few_at_random_is_as_good_as_its_mean_field(k: int, load: float) -> None:
    outcome = simulate(power_of(k), Cluster([1] * 500), EXP, load=load, calls=250_000, seed=3)

    assert outcome.mean_s == near(mean_field_mean(k, outcome.load))
    assert outcome.percentile_s(99) == near(quantile(99, mean_field_tail, k, outcome.load))


@pytest.mark.parametrize(("load", "calls"), [(0.7, 500_000), (0.9, 1_500_000)])
def test_one_worker_at_random_is_as_bad_as_if_it_were_the_only_one(load: float, calls: int) -> None:
    outcome = simulate(power_of(1), Cluster([1] * 50), EXP, load=load, calls=calls, seed=3)

    assert outcome.mean_s == near(1 / (1 - outcome.load))


def test_the_mean_field_gives_the_figures_of_racksched() -> None:
    means = [[mean_field_mean(k, load) for k in (1, 2, 3)] for load in (0.7, 0.9, 0.95)]
    tails = [quantile(99, mean_field_tail, k, 0.9) for k in (1, 2, 3)]

    assert means == [
        near(row, 0.001) for row in ([3.333, 1.614, 1.357], [10, 2.614, 2.028], [20, 3.383, 2.535])
    ]
    assert tails == near([45.5, 8.8, 7.4], 0.015)


# Queues at the controller.


@pytest.mark.parametrize("workload", [EXP, HALF_LONG, THREE], ids=lambda one: str(one.name))
def test_bounded_queues_without_a_call_to_spare_are_one_queue(workload: Workload) -> None:
    bounded = simulate(BoundedQueue(extra=0), EIGHT, workload, load=0.9, calls=50_000, seed=3)
    single = simulate(blind(), Cluster([64]), workload, load=0.9, calls=50_000, seed=3)

    assert bounded.most_held > 0
    assert [sorted(times) for times in bounded.by_class] == [
        pytest.approx(sorted(times)) for times in single.by_class
    ]


@pytest.mark.parametrize("workload", [HALF_LONG, THREE], ids=lambda one: str(one.name))
def test_calls_held_at_the_controller_beat_calls_sent_at_once(workload: Workload) -> None:
    held_back, spare, sent, at_random = (
        p99(router, EIGHT, workload, 0.9, 250_000)
        for router in (BoundedQueue(extra=0), BoundedQueue(), power_of(2), blind())
    )

    assert held_back < spare < 0.95 * sent
    assert sent < 0.8 * at_random


def test_a_call_to_spare_hides_a_dispatch_that_takes_a_tenth_of_a_run() -> None:
    cluster = Cluster([8] * 8, delay_s=0.1)

    held_back, spare, sent = (
        p99(router, cluster, EXP, 0.85, 100_000)
        for router in (BoundedQueue(extra=0), BoundedQueue(), power_of(2))
    )

    assert spare < 1.05 * sent
    assert held_back > 5 * spare


def test_a_dispatch_as_long_as_a_run_leaves_bounded_queues_empty_and_the_others_well() -> None:
    cluster = Cluster([8] * 8, delay_s=1.0)

    spare, sent = (
        p99(router, cluster, EXP, 0.85, 50_000) for router in (BoundedQueue(), power_of(2))
    )

    assert spare > 10 * sent


# What is known, and how late.


def by_reports(delay: float) -> Cluster:
    return Cluster([8] * 8, delay_s=delay, knows="reports")


def by_own_counts(delay: float) -> Cluster:
    return Cluster([8] * 8, delay_s=delay)


def test_reports_lose_their_worth_with_their_age_in_run_times() -> None:
    at_random = [p99(blind(), by_own_counts(delay), EXP, 0.9, 150_000) for delay in (0, 0.5, 1, 2)]
    informed = [p99(power_of(2), by_reports(delay), EXP, 0.9, 150_000) for delay in (0, 0.5, 1, 2)]

    gains = [1 - mine / theirs for mine, theirs in zip(informed, at_random, strict=True)]
    assert all(earlier > later for earlier, later in pairwise(gains))
    assert gains[0] > 0.25
    assert gains[3] < 0.08


def test_the_shortest_of_all_by_old_reports_herds_and_is_worse_than_chance() -> None:
    herd = p99(shortest(), by_reports(1.0), EXP, 0.9, 100_000)
    of_two = p99(power_of(2), by_reports(1.0), EXP, 0.9, 100_000)
    at_random = p99(blind(), by_own_counts(1.0), EXP, 0.9, 100_000)

    assert of_two < at_random < herd / 1.5


@pytest.mark.parametrize("router", [power_of, lambda _: shortest()], ids=["of two", "of all"])
def test_own_counts_are_worth_the_same_however_long_a_dispatch_takes(
    router: Callable[[int], Router],
) -> None:
    for delay in (1.0, 2.0):
        informed = p99(router(2), by_own_counts(delay), EXP, 0.9, 100_000)
        at_random = p99(blind(), by_own_counts(delay), EXP, 0.9, 100_000)

        assert informed - 2 * delay < 0.8 * (at_random - 2 * delay)


# Workers that share their slots among all calls, and workers that do not.


@pytest.mark.parametrize("router", [blind, lambda: power_of(2)], ids=["one queue", "of two"])
def test_sharing_slots_spares_short_calls_the_long_ones(router: Callable[[], Router]) -> None:
    slots = [16] if router is blind else [4] * 4

    in_order, shared = (
        simulate(router(), Cluster(slots, station=s), THREE, load=0.7, calls=150_000, seed=11)
        for s in (Fcfs, ProcessorSharing)
    )

    assert shared.percentile_s(99, kind=0) < in_order.percentile_s(99, kind=0) / 8
    assert shared.percentile_s(99) == near(in_order.percentile_s(99), 0.1)


def test_close_to_saturation_sharing_slots_costs_the_long_calls_more_than_it_gains() -> None:
    in_order, shared = (
        p99(power_of(2), Cluster([8] * 8, station=station), THREE, 0.95, 150_000)
        for station in (Fcfs, ProcessorSharing)
    )

    assert shared > 1.1 * in_order


@pytest.mark.parametrize("workload", [deterministic(1.0), EXP], ids=lambda one: str(one.name))
def test_where_runs_are_alike_the_order_of_arrival_is_best(workload: Workload) -> None:
    in_order, shared = (
        p99(blind(), Cluster([8], station=station), workload, 0.9, 100_000)
        for station in (Fcfs, ProcessorSharing)
    )

    assert in_order < 0.75 * shared


# Workers of unequal size: four of seven slots, four of four.


class BlindToSlots:
    """The better of two by the bare number of calls."""

    def __init__(self) -> None:
        self._rng = random.Random(5)

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        del key
        drawn = self._rng.choice(candidates), self._rng.choice(candidates)
        return min(drawn, key=lambda one: one.outstanding).worker


@pytest.mark.parametrize("workload", [EXP, THREE], ids=lambda one: str(one.name))
def test_load_per_slot_is_a_better_measure_than_load(workload: Workload) -> None:
    per_slot, bare = (
        p99(router, UNEQUAL, workload, 0.9, 150_000) for router in (power_of(2), BlindToSlots())
    )

    assert per_slot < 0.95 * bare


@pytest.mark.parametrize(
    ("workload", "patience"),
    [(EXP, 5.5), (RARELY_LONG, 7.0), (HALF_LONG, 4.0), (THREE, 5.5)],
    ids=lambda one: str(getattr(one, "name", one)),
)
def test_unequal_workers_carry_four_tenths_more_at_the_same_p99_than_at_random(
    workload: Workload, patience: float
) -> None:
    at_random = p99(blind(), UNEQUAL, workload, 0.6, 100_000)
    informed = p99(power_of(2), UNEQUAL, workload, 1.4 * 0.6, 100_000)

    assert informed < patience < at_random


def test_however_patient_random_choice_overruns_small_workers_at_32_of_44_slots() -> None:
    below, above = (
        [p99(blind(), UNEQUAL, EXP, share * 32 / 44, calls) for calls in (50_000, 200_000)]
        for share in (0.8, 1.1)
    )
    informed = p99(power_of(2), UNEQUAL, EXP, 0.8, 50_000)

    assert below[1] < 1.25 * below[0]
    assert above[1] > 2.5 * above[0]
    assert informed < below[0]


# As the settings name them, on workers that are warm.


@pytest.mark.parametrize("delay", [0.0, 0.3])
@pytest.mark.parametrize("name", ROUTERS)
def test_every_call_is_answered_and_takes_at_least_its_run_and_its_way(
    name: str, delay: float
) -> None:
    cluster = Cluster([1, 2, 3], delay_s=delay, warm=True)
    router = ROUTERS[name](random.Random(5))

    outcome = simulate(router, cluster, HALF_LONG, load=0.8, calls=2000, seed=11)

    assert sum(len(times) for times in outcome.by_class) == 1800
    for (_, run_s), times in zip(HALF_LONG.classes, outcome.by_class, strict=True):
        assert min(times) == pytest.approx(run_s + 2 * delay)


def test_every_policy_that_knows_loads_beats_those_that_do_not() -> None:
    warm = Cluster([8] * 8, warm=True)
    found = {
        name: p99(make(random.Random(5)), warm, HALF_LONG, 0.9, 60_000)
        for name, make in ROUTERS.items()
    }

    blind_ones = {"random", "round-robin"}
    best_blind = min(found[name] for name in blind_ones)
    assert all(found[name] < 0.9 * best_blind for name in found if name not in blind_ones)
    assert found["auto"] == found["bounded-queue"] == min(found.values())
