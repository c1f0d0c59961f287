"""Worlds small enough to be computed by hand: exact latencies, kinds, phases and memory."""

from __future__ import annotations

import math

import pytest

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.fixed import Fixed
from faasd.policies.preloading.levels import Level
from loadgen.simulation.api import simulate
from loadgen.simulation.node import Node
from tests.unit.loadgen.simulation.worlds import (
    BIG,
    KEPT,
    fork,
    kinds,
    latencies,
    process,
    run,
    workload,
)

HOP = 0.001
COLD = 3.5 + 1.0 + HOP
WARM = 1.0 + HOP
ONE_CORE = Node(100_000.0, cores=1)


def test_the_first_call_is_cold_the_next_warm_and_one_after_the_keep_alive_cold_again() -> None:
    outcome = run([process()], [(0.0, 0), (10.0, 0), (700.0, 0)])

    assert latencies(outcome) == [COLD, WARM, COLD]
    assert kinds(outcome) == ["cold", "warm", "cold"]


def test_a_cold_start_is_told_by_its_phases() -> None:
    outcome = run([process()], [(0.0, 0)])

    phases = {name: one.mean for name, one in outcome.figures.phases_ms.items()}
    assert phases == pytest.approx(
        {"queue": 1.0, "sandbox": 500.0, "libs": 1000.0, "load": 2000.0, "exec": 1000.0}
    )
    assert outcome.loading_ms.mean == pytest.approx(3000.0)


def test_where_nothing_is_kept_every_call_is_cold() -> None:
    outcome = run([process()], [(0.0, 0), (10.0, 0), (20.0, 0)], policy="none")

    assert latencies(outcome) == [COLD] * 3
    assert outcome.memory_mb_s == pytest.approx(3 * 600.0 * (COLD - HOP))


def test_a_kept_sandbox_saves_its_start_only() -> None:
    outcome = run([process()], [(0.0, 0), (10.0, 0)], policy=f"{KEPT},keeps=sandbox")

    assert latencies(outcome) == [COLD, COLD - 0.5]
    assert kinds(outcome) == ["cold", "pooled"]


def test_a_sandbox_of_the_same_tenant_serves_another_function() -> None:
    outcome = run([process(), process()], [(0.0, 0), (10.0, 1)], policy=f"{KEPT},keeps=sandbox")

    assert latencies(outcome) == [COLD, COLD - 0.5]
    assert outcome.peak_mb == pytest.approx(600.0)


def test_two_calls_on_one_core_take_twice_as_long() -> None:
    calls = [(0.0, 0), (10.0, 1), (40.0, 0), (40.0, 1)]

    outcome = run([process(), process()], calls, nodes=[ONE_CORE])

    assert latencies(outcome)[2:] == [2.0 + HOP, 2.0 + HOP]


def test_a_start_shares_the_cores_with_what_runs() -> None:
    """The start waits 0.25 s, then has 3.25 s to compute, one second of them beside the call."""
    outcome = run([process(), process()], [(0.0, 0), (10.0, 0), (10.25, 1)], nodes=[ONE_CORE])

    cold, warm, beside = latencies(outcome)
    assert (cold, warm) == (COLD, round(0.5 + 2 * 0.5 + HOP, 6))
    assert beside == round(0.25 + 1.0 + (3.25 - 0.5) + 1.0 + HOP, 6)


def test_what_waits_without_computing_leaves_the_core_to_others() -> None:
    waiting = process(computes=0.0)
    calls = [(0.0, 0), (10.0, 1), (40.0, 0), (40.0, 1)]

    outcome = run([waiting, waiting], calls, nodes=[ONE_CORE])

    assert latencies(outcome)[2:] == [WARM, WARM]


def test_the_longest_unused_goes_where_memory_is_short() -> None:
    calls = [(0.0, 0), (10.0, 1), (20.0, 0), (30.0, 0)]

    outcome = run([process(), process()], calls, nodes=[Node(1000.0)])

    assert kinds(outcome) == ["cold", "cold", "cold", "warm"]
    assert outcome.peak_mb == pytest.approx(600.0)


def test_a_call_waits_for_memory_until_another_has_ended() -> None:
    outcome = run([process(), process()], [(0.0, 0), (1.0, 1)], nodes=[Node(1000.0)])

    assert latencies(outcome) == [COLD, round(COLD - HOP - 1.0 + COLD, 6)]


def test_a_burst_on_a_cold_function_makes_one_template_and_forks_what_it_needs() -> None:
    outcome = run([fork()], [(0.0, 0)] * 3)

    assert latencies(outcome) == [round(1.05 + 0.02 + 0.1 + HOP, 6)] * 3
    assert kinds(outcome) == ["pooled"] * 3
    assert outcome.peak_mb == pytest.approx(20.0 + 3 * 5.0)


def test_a_burst_makes_no_more_instances_than_there_are_cores() -> None:
    outcome = run([fork()], [(0.0, 0)] * 40)

    assert outcome.peak_mb == pytest.approx(20.0 + 4 * 5.0)
    assert max(latencies(outcome)) == pytest.approx(1.05 + 0.02 + 10 * 0.1 + HOP)


def test_a_queue_that_empties_sooner_than_a_start_takes_is_left_to_what_runs() -> None:
    """The second call waits 0.5 s for the first, where a start would take 3.5."""
    outcome = run([process()], [(0.0, 0), (10.0, 0), (10.5, 0)])

    assert latencies(outcome)[1:] == [WARM, round(0.5 + 1.0 + HOP, 6)]
    assert kinds(outcome)[1:] == ["warm", "warm"]


def test_a_full_queue_drops_a_call_at_once_and_a_deadline_when_it_has_come() -> None:
    short = process(queue=1, most=1)

    outcome = run([short], [(0.0, 0), (1.0, 0), (5.0, 0), (5.1, 0)], timeout_s=5.2)

    assert [outcome.recorder.code[call] for call in range(4)] == ["", "queue_full", "", ""]
    late = run([process(most=1)], [(0.0, 0), (0.5, 0)], timeout_s=2.0)
    assert late.recorder.code == ["deadline_exceeded"] * 2
    assert latencies(late) == [2.0, 2.0]


def test_what_fits_nowhere_is_dropped_as_it_comes() -> None:
    outcome = run([process(600.0), process(2000.0)], [(0.0, 0), (1.0, 1)], nodes=[Node(1000.0)])

    assert outcome.figures.failed == {"unavailable": 1}
    assert latencies(outcome) == [COLD, 0.0]


def test_calls_go_to_the_node_where_the_function_is() -> None:
    calls = [(0.0, 0), (10.0, 1), (20.0, 0), (30.0, 1), (40.0, 0)]

    outcome = run([process(), process()], calls, nodes=[Node(1000.0), Node(1000.0)])

    assert kinds(outcome) == ["cold", "cold", "warm", "warm", "warm"]
    assert list(outcome.record.nodes) == [0, 1, 0, 1, 0]


def test_starts_beyond_what_a_node_does_at_once_wait_for_others() -> None:
    one_start = Node(100_000.0, cores=4, starts_at_once=1)

    outcome = run([process(), process()], [(0.0, 0), (0.0, 1)], nodes=[one_start])

    assert latencies(outcome) == [COLD, round(3.5 + COLD, 6)]


class Ahead(Fixed):
    """Loads function 0 into memory at a time, perhaps into the sandbox of another."""

    def __init__(self, at: float, level: Level = Level.INSTANCE, host: int | None = None) -> None:
        super().__init__()
        self._at, self._to, self._host = at, level, host
        self.due = at

    def _tick(self, now: float) -> float:
        if now >= self._at:
            self._at = math.inf
            load = self.loads.start(0, 0, self._to, now, Why("it is time"), host=self._host)
            self._act(load)
        return min(super()._tick(now), self._at)


def test_what_was_loaded_ahead_is_found_and_said_to_be() -> None:
    calls = workload([process()], [(10.0, 0), (20.0, 0)])

    outcome = simulate(calls, policy=Ahead(1.0), nodes=[BIG])

    assert latencies(outcome) == [WARM, WARM]
    assert kinds(outcome) == ["preloaded", "warm"]
    assert outcome.loader_cpu_s == pytest.approx(0.25 + 1.0 + 2.0)
    assert (outcome.loads, outcome.preload_rate) == (1, 1.0)


def test_a_template_that_was_loaded_ahead_is_forked_from() -> None:
    calls = workload([fork()], [(10.0, 0), (10.0, 0)])

    outcome = simulate(calls, policy=Ahead(1.0, Level.RESIDENT), nodes=[BIG])

    assert latencies(outcome) == [round(0.02 + 0.1 + HOP, 6)] * 2
    assert kinds(outcome) == ["preloaded", "fork"]


def test_a_call_that_comes_during_a_load_waits_for_the_rest_of_it() -> None:
    calls = workload([process()], [(3.0, 0)])

    outcome = simulate(calls, policy=Ahead(1.0), nodes=[BIG])

    assert latencies(outcome) == [round(1.5 + 1.0 + HOP, 6)]
    assert kinds(outcome) == ["cold"]


def test_a_load_gets_what_a_call_leaves_of_a_core() -> None:
    """Function 1 is warm from 6 s on; the load wants 3.25 s of computing beside its call of 1 s."""
    models = [process(), process()]
    calls = [(0.0, 1), (10.0, 1), (11.5, 0)]

    outcome = simulate(workload(models, calls), policy=Ahead(9.75), nodes=[ONE_CORE])

    _, beside, waiting = latencies(outcome)
    assert beside == pytest.approx(1.01 + HOP, abs=1e-6)
    assert waiting == pytest.approx((10.0 + 1.0 + 3.25 - 11.5) + 1.0 + HOP, abs=1e-6)


def test_what_was_loaded_into_the_sandbox_of_another_takes_that_over() -> None:
    """Without the start of a sandbox. The process that was there is gone, and is started anew."""
    calls = workload([process(), process()], [(0.0, 1), (20.0, 0), (30.0, 0), (40.0, 1)])

    outcome = simulate(calls, policy=Ahead(10.0, host=0), nodes=[BIG])

    assert latencies(outcome) == [COLD, WARM, WARM, COLD]
    assert kinds(outcome) == ["cold", "preloaded", "warm", "cold"]
    assert outcome.loader_cpu_s == pytest.approx(1.0 + 2.0)
    assert outcome.peak_mb == pytest.approx(2 * 600.0)


def test_what_is_in_the_sandbox_of_a_running_call_cannot_serve() -> None:
    calls = workload([process(), process()], [(0.0, 1), (20.0, 1), (20.5, 0)])

    outcome = simulate(calls, policy=Ahead(10.0, host=0), nodes=[BIG])

    assert latencies(outcome) == [COLD, WARM, COLD]
    assert kinds(outcome) == ["cold", "warm", "cold"]
