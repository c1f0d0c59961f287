"""The account: percentiles, identities, missing values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.results import (
    NO_PHASES,
    Distribution,
    Recorder,
    Reply,
    distribution,
    figures,
    figures_by_endpoint,
    percentile,
)

FLOATS = st.floats(0, 1e6)


@given(values=st.lists(FLOATS, min_size=1), p=st.floats(1, 100))
def test_a_percentile_is_the_least_value_not_below_that_share(
    values: list[float], p: float
) -> None:
    found = percentile(sorted(values), p)

    assert found in values
    assert sum(value <= found for value in values) >= p / 100 * len(values) - 1e-6
    assert sum(value < found for value in values) < p / 100 * len(values) + 1e-6


def test_nothing_measured_has_no_figures() -> None:
    assert distribution([math.nan]) == Distribution(0, None, None, None, None, None)


@given(outcomes=st.lists(st.sampled_from(["", "queue_full", "client_timeout", None])))
def test_every_request_sent_succeeded_or_failed_under_one_code(outcomes: list[str | None]) -> None:
    record = Recorder()
    for outcome in outcomes:
        row = record.begin(intended_s=0, sent_s=0, function=0, endpoint=0)
        if outcome is not None:
            record.finish(row, Reply(outcome), finished_s=1)

    found = figures(record, range(len(record)))

    assert found.sent == len(outcomes)
    assert found.succeeded == outcomes.count("")
    assert found.failed.get("interrupted", 0) == outcomes.count(None)
    assert found.sent == found.succeeded + sum(found.failed.values())
    assert found.sent == sum(found.start_kinds.values())


def test_latency_counts_from_the_intended_instant_and_lag_from_it_to_the_sending() -> None:
    record = Recorder()
    row = record.begin(intended_s=1.0, sent_s=1.5, function=0, endpoint=0)
    record.finish(row, Reply("", 200, "warm", (1, 2, 3, 4, 5)), finished_s=2.0)

    found = figures(record, [row])

    assert found.latency_ms.max == pytest.approx(1000)
    assert found.send_lag_ms.max == pytest.approx(500)
    assert [found.phases_ms[phase].mean for phase in ("queue", "exec")] == [1, 5]


def test_latencies_of_failures_are_kept_apart() -> None:
    record = Recorder()
    for code, end in (("", 0.1), ("client_timeout", 60.0)):
        row = record.begin(intended_s=0, sent_s=0, function=0, endpoint=0)
        record.finish(row, Reply(code, 0, "none", NO_PHASES), finished_s=end)

    found = figures(record, [0, 1])

    assert found.latency_ms.max == pytest.approx(100)
    assert found.latency_failed_ms.max == pytest.approx(60_000)


def test_figures_of_endpoints_add_up_to_the_whole() -> None:
    record = Recorder()
    for endpoint in (1, 0, 1):
        row = record.begin(intended_s=0, sent_s=0, function=0, endpoint=endpoint)
        record.finish(row, Reply(""), finished_s=1)

    found = figures_by_endpoint(record, ["b", "a", "unused"])

    assert {name: part.sent for name, part in found.items()} == {"a": 2, "b": 1}
    assert list(found) == ["a", "b"]
