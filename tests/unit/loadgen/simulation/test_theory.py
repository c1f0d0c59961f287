"""Queueing theory, through the whole simulator: scaling rule, queue, cores and all."""

from __future__ import annotations

import math
import random
from array import array

import pytest

from faasd.policies.preloading import levels
from loadgen.simulation.api import simulate
from loadgen.simulation.model import Model
from loadgen.simulation.node import Node
from loadgen.simulation.workload import Workload

CALLS = 120_000
KEPT = "fixed:idle_s=1e9"


def erlang_c(servers: int, load: float) -> float:
    """The chance of having to wait in M/M/c."""
    offered = servers * load
    last = offered**servers / math.factorial(servers) / (1 - load)
    return last / (sum(offered**n / math.factorial(n) for n in range(servers)) + last)


def at_load(load: float, servers: int, *, law: str, cv: float, functions: int = 1) -> Workload:
    """Runs of a second on average; starts take no time."""
    profile = levels.processes(
        sandbox_s=0.0, import_s=0.0, load_s=0.0, exec_s=1.0, memory_mb=1.0, warm_s=0.0
    )
    model = Model(profile, exec_cv=cv, law=law)
    draw, rng = model.draw(), random.Random(f"{load} {servers} {law}")
    times, runs, at = array("d"), array("d"), 0.0
    for _ in range(CALLS):
        at += rng.expovariate(load * servers)
        times.append(at)
        runs.append(draw(rng))
    owners = array("I", (rng.randrange(functions) for _ in range(CALLS)))
    names = tuple(f"f{place}" for place in range(functions))
    return Workload(times, owners, runs, names, (model,) * functions, (), at)


def mean_s(workload: Workload, cores: int) -> float:
    node = Node(1e6, cores=cores, starts_at_once=1000)
    outcome = simulate(workload, policy=KEPT, nodes=[node], timeout_s=math.inf)
    mean_ms = outcome.figures.latency_ms.mean
    assert mean_ms is not None
    return mean_ms / 1000


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (3, 0.8), (8, 0.9)])
def test_exponential_runs_wait_as_in_m_m_c(servers: int, load: float) -> None:
    expected = 1.0 + erlang_c(servers, load) / (servers * (1 - load))

    found = mean_s(at_load(load, servers, law="exponential", cv=1.0), servers)

    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("cv", [0.0, 0.8])
def test_one_core_waits_as_pollaczek_and_khinchine_say(cv: float) -> None:
    load = 0.7
    expected = 1.0 + load * (1 + cv**2) / (2 * (1 - load))

    found = mean_s(at_load(load, 1, law="lognormal", cv=cv), 1)

    assert found == pytest.approx(expected, rel=0.05)


def test_many_functions_share_a_core_as_in_processor_sharing() -> None:
    """Whose mean does not depend on how runs are distributed. Few calls meet one of their own function."""
    load = 0.5

    found = mean_s(at_load(load, 1, law="lognormal", cv=0.9, functions=400), 1)

    assert found == pytest.approx(1 / (1 - load), rel=0.05)
