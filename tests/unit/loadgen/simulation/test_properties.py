"""What holds whatever the policy: every call has one end, memory is never exceeded, runs repeat."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from faasd.policies.preloading import levels
from faasd.policies.preloading.registry import POLICIES, make
from loadgen.simulation.api import router_of, simulate
from loadgen.simulation.engine import Engine
from loadgen.simulation.model import Model
from loadgen.simulation.node import Cores, Node
from loadgen.simulation.outcome import Outcome
from loadgen.simulation.workload import Workload
from tests.unit.loadgen.simulation.worlds import workload

CHOICES = [
    *POLICIES,
    "fixed:keeps=sandbox",
    "histogram:keeps=sandbox",
    "instainfer:over=pagurus",
    "instainfer:over=histogram",
]


def process(number: int) -> Model:
    return Model(
        levels.processes(
            sandbox_s=0.5,
            import_s=0.8,
            load_s=0.3 + number % 4,
            exec_s=0.2 + 0.1 * (number % 3),
            memory_mb=300.0 + 150.0 * (number % 5),
            limit_mb=1500.0,
            tenant="even" if number % 7 else "odd",
            runtime="torch" if number % 2 else "plain",
        ),
        exec_cv=0.5 * (number % 4),
        computes=1.0 if number % 3 else 0.4,
        most=1 + number % 8,
        queue=5 if number == 3 else 1000,
    )


def fork(number: int) -> Model:
    return Model(
        levels.forks(
            floor_s=0.2,
            import_s=0.1,
            load_s=0.3 + number % 4,
            exec_s=0.2,
            template_mb=10.0 + number % 5,
            weights_mb=100.0,
            weights=f"model {number % 4}",
            page_in_s=0.2 if number % 3 else 0.0,
        ),
    )


def reserved(number: int) -> Model:
    model = process(number)
    return replace(model, profile=replace(model.profile, reserved_mb=1500.0))


KINDS = {"processes": (process, 2600.0), "forks": (fork, 500.0), "reserved": (reserved, 4000.0)}


def calls(seed: int, functions: int, count: int) -> list[tuple[float, int]]:
    """By chance, in bursts, and many at one instant; after a long silence as well."""
    rng = random.Random(seed)
    found: list[tuple[float, int]] = []
    at = 0.0
    for number in range(count):
        at += 4000.0 if number == count // 2 else rng.choice([0.0, 0.1, 8.0 * rng.random()])
        found.append((at, min(functions - 1, int(rng.expovariate(3.0 / functions)))))
    return found


def scene(kind: str, seed: int = 1, count: int = 600) -> tuple[Workload, list[Node]]:
    make_model, memory_mb = KINDS[kind]
    models = [make_model(number) for number in range(14)]
    nodes = [Node(memory_mb, cores=2, starts_at_once=3), Node(memory_mb / 2, cores=3)]
    return workload(models, calls(seed, 14, count)), nodes


def account(outcome: Outcome) -> None:
    """Every call was answered once, after it came, or dropped for a reason."""
    record, times = outcome.record, outcome.workload.times_s
    for call, arrived in enumerate(times):
        assert arrived <= record.dispatched_s[call] <= record.finished_s[call]
        served = outcome.recorder.start[call] != "none"
        assert served is not bool(outcome.recorder.code[call])
    total = outcome.figures
    assert total.succeeded + sum(total.failed.values()) == total.sent == len(times)
    assert sum(total.start_kinds.values()) == total.sent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_call_has_one_end_and_no_node_holds_more_than_it_has(choice: str, kind: str) -> None:
    drawn, nodes = scene(kind)

    for some in (nodes[:1], nodes):
        engine = Engine(drawn, make(choice), some, router=router_of("auto", 1), timeout_s=30.0)
        engine.run()

        assert engine.world.memory.least_free_mb >= -1e-3
        assert engine.left == 0
        for node in range(len(some)):
            believed_mb = engine.policy.book.ledger.used_mb(node)
            assert believed_mb == pytest.approx(engine.world.memory.ledger.used_mb(node), abs=1e-3)
        account(simulate(drawn, policy=choice, nodes=some, timeout_s=30.0))


@pytest.mark.parametrize("choice", CHOICES)
def test_the_same_seed_gives_the_same_run(choice: str) -> None:
    drawn, nodes = scene("processes", seed=5, count=300)

    one, other = (simulate(drawn, policy=choice, nodes=nodes, seed=3) for _ in range(2))

    assert one.record.finished_s == other.record.finished_s
    assert one.record.kinds == other.record.kinds
    assert {**one.row(), "calls_simulated_per_s": 0} == {**other.row(), "calls_simulated_per_s": 0}


@pytest.mark.parametrize("routing", ["random", "round-robin", "power-of-two", "bounded-hash"])
def test_every_routing_serves_all_calls(routing: str) -> None:
    drawn, nodes = scene("forks", count=300)

    outcome = simulate(drawn, policy="fixed", nodes=nodes, routing=routing, timeout_s=math.inf)

    account(outcome)
    assert set(outcome.record.nodes) == {0, 1}


def test_a_million_calls_a_second_are_shed_and_do_not_stop_the_clock() -> None:
    drawn = workload([fork(1)], ((number * 1e-6, 0) for number in range(20_000)))

    outcome = simulate(drawn, policy="worth", nodes=[Node(500.0, cores=2)], timeout_s=5.0)

    account(outcome)
    assert set(outcome.figures.failed) == {"queue_full", "deadline_exceeded"}


def test_no_calls_make_an_empty_outcome() -> None:
    outcome = simulate(workload([fork(1)], []), policy="worth")

    assert (outcome.figures.sent, outcome.preload_rate) == (0, 0.0)


def test_cores_do_all_the_work_that_they_are_given_and_no_more() -> None:
    rng = random.Random(2)
    ends: list[float] = [math.inf]
    cores = Cores(2.0, ends, 0)
    given = now = 0.0
    loads: set[int] = set()
    finished: Counter[str] = Counter()
    for item in range(200):
        until = now + rng.expovariate(1.0)
        while ends[0] <= until:
            now = ends[0]
            done = cores.pop(now)
            finished["load" if done in loads else "call"] += 1
        now = until
        work_s = 1.0 + rng.random()
        given += work_s
        if rng.random() < 0.3:
            loads.add(item)
            cores.add_load(now, work_s, item)
        else:
            cores.add(now, work_s, item)
    while ends[0] < math.inf:
        now = ends[0]
        finished["load" if cores.pop(now) in loads else "call"] += 1

    assert finished == {"load": len(loads), "call": 200 - len(loads)}
    assert given / 2 <= now <= given
