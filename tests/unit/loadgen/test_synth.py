"""Synthetic traces: exact totals, skew, a mixture of patterns, determinism."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import UsageError
from loadgen.synth import Pattern, patterns, shares, synthesise
from loadgen.traces import invocations
from loadgen.traces.detect import read_trace


def variation(times: list[int]) -> float:
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return pstdev(gaps) / mean(gaps)


@given(
    functions=st.integers(1, 60),
    duration_s=st.floats(10, 600),
    rate=st.floats(6, 50),
    seed=st.integers(0, 99),
)
def test_makes_the_total_asked_for_inside_the_duration(
    functions: int, duration_s: float, rate: float, seed: int
) -> None:
    found = synthesise(functions=functions, duration_s=duration_s, rate=rate, seed=seed)

    assert len(found) == round(rate * duration_s)
    assert len({name for _, name in found}) == functions
    assert found == sorted(found)
    assert found[0][0] >= 0
    assert found[-1][0] < duration_s * 1000


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = synthesise(functions=9, duration_s=60, rate=10, seed=seed)
        invocations.write(tmp_path / name, made)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_file_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    made = synthesise(functions=5, duration_s=30, rate=10, seed=0)
    invocations.write(tmp_path / "t.csv", made)

    trace = read_trace(tmp_path / "t.csv")

    assert trace.invocations == 300
    assert Counter(name for _, name in made) == {f.name: f.invocations for f in trace.functions}


def test_a_few_functions_take_most_and_each_has_at_least_one() -> None:
    counts = shares(100, 10_000)

    assert sum(counts) == 10_000
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= 1
    assert sum(counts[:20]) > 0.85 * 10_000


def test_patterns_are_mixed_and_the_popular_are_no_timers() -> None:
    kinds = patterns(40, Random(0))

    assert Counter(kinds) == {Pattern.PERIODIC: 10, Pattern.BURSTY: 16, Pattern.POISSON: 14}
    assert Pattern.PERIODIC not in kinds[:13]


def test_patterns_show_in_the_variation_of_gaps() -> None:
    made = synthesise(functions=20, duration_s=600, rate=50, seed=4)
    times: dict[str, list[int]] = {}
    for at, name in made:
        times.setdefault(name, []).append(at)
    measured = {name: variation(found) for name, found in times.items()}

    assert max(cv for name, cv in measured.items() if name.endswith("periodic")) < 0.1
    assert min(cv for name, cv in measured.items() if name.endswith("bursty")) > 1.5
    assert all(0.8 < cv < 1.25 for name, cv in measured.items() if name.endswith("poisson"))


def test_fewer_invocations_than_functions_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than the 10 functions"):
        synthesise(functions=10, duration_s=1, rate=2, seed=0)
