"""Laws inside bins: counts and bounds are kept, streams are reproducible and independent."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import Law, arrivals, positions
from loadgen.traces.model import Cells, Counts, Instants, Trace, TraceFunction

LAWS = st.sampled_from(list(Law))


def counted(
    per_function: dict[str, dict[int, int]], *, bin_s: float = 60.0, cut_s: float = math.inf
) -> Trace:
    cells = tuple(
        Cells(array("I", sorted(bins)), array("I", (bins[b] for b in sorted(bins))))
        for bins in per_function.values()
    )
    functions = tuple(TraceFunction(name, sum(b.values())) for name, b in per_function.items())
    return Trace(Path("t"), "azure2019", functions, Counts(bin_s, cells), 600.0, cut_s)


@given(
    law=LAWS,
    seed=st.integers(),
    bins=st.dictionaries(st.integers(0, 9), st.integers(1, 40), min_size=1),
)
def test_every_law_keeps_the_count_of_each_minute(
    law: Law, seed: int, bins: dict[int, int]
) -> None:
    trace = counted({"a": bins, "b": {3: 5}})

    found = list(arrivals(trace, law=law, seed=seed))

    assert Counter(int(at // 60) for at, function in found if function == 0) == bins
    assert [int(at // 60) for at, function in found if function == 1] == [3] * 5
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(found))


@given(law=LAWS, count=st.integers(1, 200), stream=st.text(max_size=5))
def test_positions_are_ascending_and_inside_the_bin(law: Law, count: int, stream: str) -> None:
    found = list(positions(law, count, stream))

    assert len(found) == count
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] < 1


@given(law=LAWS, seed=st.integers(0, 5))
def test_the_same_seed_gives_the_same_arrivals(law: Law, seed: int) -> None:
    trace = counted({"a": {0: 9, 4: 2}, "b": {0: 3}})

    assert list(arrivals(trace, law=law, seed=seed)) == list(arrivals(trace, law=law, seed=seed))
    assert list(arrivals(trace, law=law, seed=seed)) != list(arrivals(trace, law=law, seed=9))


@given(law=LAWS)
def test_a_function_arrives_alike_whatever_the_others_do(law: Law) -> None:
    alone = arrivals(counted({"b": {0: 7, 2: 3}}), law=law)
    among = arrivals(counted({"a": {0: 50}, "b": {0: 7, 2: 3}}), law=law)

    assert [at for at, _ in alone] == [at for at, function in among if function == 1]


def test_equidistant_arrivals_keep_one_distance_across_minutes() -> None:
    times = [at for at, _ in arrivals(counted({"a": {0: 6, 1: 6}}), law=Law.EQUIDISTANT)]

    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([10.0] * 11)


def test_uniform_gaps_vary_less_than_exponential_ones() -> None:
    def variation(law: Law) -> float:
        found = list(positions(law, 5000, "s"))
        gaps = [later - earlier for earlier, later in pairwise(found)]
        return pstdev(gaps) * len(gaps)

    assert variation(Law.UNIFORM) == pytest.approx(1 / math.sqrt(3), rel=0.1)
    assert variation(Law.EXPONENTIAL) == pytest.approx(1, rel=0.1)


def test_nothing_arrives_at_or_after_the_cut() -> None:
    found = list(arrivals(counted({"a": {0: 100, 1: 100}}, cut_s=75.0)))

    assert 100 < len(found) < 200
    assert found[-1][0] < 75


def test_a_huge_count_is_not_expanded_to_get_at_the_first() -> None:
    trace = counted({"a": dict.fromkeys(range(100_000), 60)}, bin_s=1.0)

    assert len(list(islice(arrivals(trace), 10))) == 10


def test_instants_of_the_trace_are_passed_through() -> None:
    events = Instants(array("d", [0.5, 2.0]), array("I", [1, 0]))
    functions = (TraceFunction("a", 1), TraceFunction("b", 1))

    found = list(arrivals(Trace(Path("t"), "invocations", functions, events, 2.0)))

    assert found == [(0.5, 1), (2.0, 0)]
