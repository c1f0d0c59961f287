"""What the benchmark of several controllers sends, and what it makes of the answers."""

from __future__ import annotations

import pytest

from bench.controllers import SLOTS, WORKERS, WORKLOADS, arrivals, percentile, show


@pytest.mark.parametrize("name", WORKLOADS)
def test_arrivals_keep_the_slots_as_busy_as_was_asked(name: str) -> None:
    trace = arrivals(WORKLOADS[name], 0.7, 1000.0, 1)

    busy_s = sum(one.run_s for one in trace)
    assert busy_s / (1000.0 * WORKERS * SLOTS) == pytest.approx(0.7, rel=0.05)
    assert [one.due_s for one in trace] == sorted(one.due_s for one in trace)


def test_one_trace_is_the_same_however_many_controllers_get_it() -> None:
    workload = WORKLOADS["bimodal"]

    assert arrivals(workload, 0.7, 5.0, 3) == arrivals(workload, 0.7, 5.0, 3)
    assert arrivals(workload, 0.7, 5.0, 3) != arrivals(workload, 0.7, 5.0, 4)


def test_a_trace_is_spread_evenly_over_controllers() -> None:
    trace = arrivals(WORKLOADS["exponential"], 0.7, 1000.0, 1)

    firsts = sum(int(one.lot * 3) == 0 for one in trace)
    assert firsts / len(trace) == pytest.approx(1 / 3, abs=0.01)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(one) for one in range(1000)], 99) == 990.0
    assert percentile([1.0], 99) == 1.0


def test_ratios_are_those_of_each_round(capsys: pytest.CaptureFixture[str]) -> None:
    """A round in which the machine was slow for both says as much as any other."""
    figures = show("exponential", {1: [[10.0], [100.0], [10.0]], 2: [[11.0], [110.0], [30.0]]})

    assert figures == {"exponential_1_p99_ratio": 1.0, "exponential_2_p99_ratio": 1.1}
    assert "2 controllers" in capsys.readouterr().out
