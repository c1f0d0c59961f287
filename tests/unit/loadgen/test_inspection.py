"""Figures of traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.inspection import inspect_trace
from loadgen.traces.detect import read_trace

Write = Callable[[str, str], Path]


def test_instants_give_rates_shares_and_the_variation_of_gaps(write: Write) -> None:
    rows = "".join(f"even,{at}\n" for at in range(0, 10_001, 1000))
    text = f"func_name,invoke_time_ms\n{rows}rare,2500\n"

    figures = inspect_trace(read_trace(write("t.csv", text)))

    assert (figures.invocations, figures.span_s, figures.rate_peak_rps) == (12, 10.0, 2)
    assert figures.rate_mean_rps == pytest.approx(1.2)
    assert figures.cv_of == "inter-arrival times"
    assert [(f.name, f.cv, f.mean_interarrival_s) for f in figures.functions] == [
        ("even", 0.0, pytest.approx(10 / 11)),
        ("rare", None, None),
    ]
    assert figures.functions[0].share == pytest.approx(11 / 12)


def test_counts_give_the_variation_of_counts_silent_bins_included(write: Write) -> None:
    text = "HashFunction,1,2,3,4\nsteady,2,2,2,2\nbursty,8,0,0,0\n"

    figures = inspect_trace(read_trace(write("t.csv", text)))

    assert figures.cv_of == "counts per 60 s"
    assert figures.rate_peak_rps == pytest.approx(10 / 60)
    assert {f.name: f.cv for f in figures.functions} == {
        "steady": 0.0,
        "bursty": pytest.approx(3**0.5),
    }


def test_sizes_of_requests_are_summarised(write: Write) -> None:
    rows = "".join(f"2023-11-16 18:17:{s:02d}.0000000,{s},1\n" for s in range(1, 11))
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"

    sizes = inspect_trace(read_trace(write("t.csv", text))).sizes

    assert [(size.name, size.p50, size.p99) for size in sizes] == [
        ("ContextTokens", 5, 10),
        ("GeneratedTokens", 1, 1),
    ]
