"""The policies: cases worked out by hand, and what holds for every input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.policies.eviction import Holder, least_recently_used
from faasd.policies.keepalive import FixedKeepAlive, HistogramKeepAlive, keep_alive
from faasd.policies.retry import LONGEST_S, next_attempt_s
from faasd.policies.scaling import ConcurrencyScaling, Demand

seconds = st.floats(0, 1e6, allow_nan=False)
demands = st.builds(
    Demand,
    queued=st.integers(0, 500),
    running=st.integers(0, 500),
    live=st.integers(0, 50),
    per_instance=st.integers(1, 32),
    waited_s=seconds,
    exec_s=st.none() | seconds,
    start_s=st.none() | seconds,
)
bounds = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda b: (min(b), max(1, *b)))


def demand(
    *,
    queued: int = 0,
    running: int = 0,
    live: int = 0,
    per_instance: int = 1,
    waited_s: float = 0.0,
    exec_s: float | None = None,
    start_s: float | None = None,
) -> Demand:
    return Demand(queued, running, live, per_instance, waited_s, exec_s, start_s)


@pytest.mark.parametrize(
    ("queued", "running", "per_instance", "expected"),
    [(0, 0, 1, 0), (1, 0, 1, 1), (3, 2, 1, 5), (3, 2, 4, 2), (64, 0, 1, 8), (64, 0, 64, 1)],
)
def test_instances_are_as_many_as_the_work_fills(
    queued: int, running: int, per_instance: int, expected: int
) -> None:
    wanted = demand(queued=queued, running=running, per_instance=per_instance)

    assert ConcurrencyScaling(minimum=0, maximum=8).target(wanted) == expected


def test_the_minimum_is_kept_without_work() -> None:
    assert ConcurrencyScaling(minimum=3, maximum=8).target(demand()) == 3


def test_nothing_is_started_while_the_queue_empties_sooner_than_a_start_takes() -> None:
    wanted = demand(queued=10, live=1, exec_s=0.001, start_s=0.02)

    assert ConcurrencyScaling(minimum=0, maximum=8).target(wanted) == 1


def test_instances_are_started_when_the_queue_takes_longer_than_a_start() -> None:
    wanted = demand(queued=10, live=1, exec_s=0.003, start_s=0.02)

    assert ConcurrencyScaling(minimum=0, maximum=8).target(wanted) == 8


def test_instances_are_started_once_a_call_waited_as_long_as_a_start_takes() -> None:
    wanted = demand(queued=10, live=1, exec_s=0.001, start_s=0.02, waited_s=0.02)

    assert ConcurrencyScaling(minimum=0, maximum=8).target(wanted) == 8


def test_the_first_instance_is_started_however_short_the_calls_are() -> None:
    wanted = demand(queued=1, live=0, exec_s=0.001, start_s=10.0)

    assert ConcurrencyScaling(minimum=0, maximum=8).target(wanted) == 1


@given(demands, bounds)
def test_the_target_lies_within_its_bounds_or_at_what_is_there(
    wanted: Demand, bound: tuple[int, int]
) -> None:
    minimum, maximum = bound

    target = ConcurrencyScaling(minimum=minimum, maximum=maximum).target(wanted)

    assert minimum <= target <= maximum


@given(demands, bounds)
def test_work_without_an_instance_always_gets_one(wanted: Demand, bound: tuple[int, int]) -> None:
    minimum, maximum = bound

    target = ConcurrencyScaling(minimum=minimum, maximum=maximum).target(wanted)

    if wanted.queued and not wanted.live:
        assert target >= 1


def test_a_fixed_keep_alive_is_what_it_says() -> None:
    policy = FixedKeepAlive(42.0)
    policy.arrived(1.0)

    assert policy.idle_s() == 42.0


def test_a_histogram_of_few_idle_times_holds_the_default() -> None:
    policy = HistogramKeepAlive(default_s=600.0)

    for arrival in range(10):
        policy.arrived(arrival * 30.0)

    assert policy.idle_s() == 600.0


def test_a_histogram_of_enough_idle_times_keeps_their_tail_and_a_tenth() -> None:
    policy = HistogramKeepAlive()

    for arrival in range(11):
        policy.arrived(arrival * 30.0)

    assert policy.idle_s() == pytest.approx(33.0)


def test_one_long_idle_time_in_two_hundred_is_not_waited_for() -> None:
    policy, now = HistogramKeepAlive(), 0.0

    for arrival in range(201):
        policy.arrived(now)
        now += 2000.0 if arrival == 100 else 30.0

    assert policy.idle_s() == pytest.approx(33.0)


def test_a_histogram_keeps_no_less_than_its_least_and_no_more_than_its_most() -> None:
    busy, slow = HistogramKeepAlive(least_s=10.0), HistogramKeepAlive(most_s=3600.0)

    for arrival in range(20):
        busy.arrived(arrival * 0.001)
        slow.arrived(arrival * 3500.0)

    assert busy.idle_s() == 10.0
    assert slow.idle_s() == 3600.0


def test_a_histogram_mostly_out_of_bounds_holds_the_default() -> None:
    policy = HistogramKeepAlive(default_s=600.0, most_s=3600.0)

    for arrival in range(20):
        policy.arrived(arrival * 10_000.0)

    assert policy.idle_s() == 600.0


def test_a_histogram_forgets_what_left_its_window() -> None:
    policy, now = HistogramKeepAlive(), 0.0
    for _ in range(50):
        policy.arrived(now)
        now += 1000.0

    for _ in range(HistogramKeepAlive.WINDOW + 1):
        policy.arrived(now)
        now += 20.0

    assert policy.idle_s() == pytest.approx(22.0)


@given(st.lists(seconds, max_size=60))
def test_a_histogram_stays_in_its_bounds_whatever_arrives(arrivals: list[float]) -> None:
    policy = HistogramKeepAlive(default_s=600.0, least_s=10.0, most_s=3600.0)

    for arrival in arrivals:
        policy.arrived(arrival)

    assert 10.0 <= policy.idle_s() <= 3600.0


def test_the_spec_names_the_keep_alive_policy() -> None:
    assert isinstance(keep_alive("histogram"), HistogramKeepAlive)
    assert keep_alive(5.0).idle_s() == 5.0


def test_nothing_is_evicted_within_the_budget() -> None:
    assert least_recently_used([Holder("a", 1.0, 100.0)], over_mb=0.0) == []


def test_the_longest_unused_are_evicted_until_enough_is_freed() -> None:
    oldest, middle, newest = Holder("a", 1.0, 50.0), Holder("b", 2.0, 50.0), Holder("c", 3.0, 50.0)

    assert least_recently_used([newest, oldest, middle], over_mb=60.0) == [oldest, middle]


@given(
    st.lists(st.builds(Holder, st.integers(), seconds, st.floats(0, 1000)), max_size=10),
    st.floats(-100, 5000),
)
def test_eviction_frees_enough_or_everything_and_no_victim_too_many(
    holders: list[Holder[int]], over_mb: float
) -> None:
    victims = least_recently_used(holders, over_mb=over_mb)

    freed = sum(victim.memory_mb for victim in victims)
    assert freed >= over_mb - 1e-6 or len(victims) == len(holders)
    if victims:
        assert freed - victims[-1].memory_mb < over_mb + 1e-6
        assert [v.last_used for v in victims] == sorted(h.last_used for h in holders)[
            : len(victims)
        ]


def wait(
    attempts: int,
    *,
    max_attempts: int = 3,
    backoff_s: float = 1.0,
    retry_after_s: float | None = None,
    platform: bool = False,
) -> float | None:
    return next_attempt_s(
        attempts=attempts,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        retry_after_s=retry_after_s,
        platform=platform,
    )


def test_the_wait_doubles_until_the_attempts_are_used_up() -> None:
    assert [wait(n, max_attempts=4) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, None]


def test_one_attempt_is_never_tried_again() -> None:
    assert wait(1, max_attempts=1) is None


def test_failures_of_the_platform_are_tried_ten_times_as_often() -> None:
    assert wait(29, platform=True) == LONGEST_S
    assert wait(30, platform=True) is None


def test_what_the_platform_asked_for_is_waited() -> None:
    assert wait(1, retry_after_s=7.5) == 7.5
    assert wait(2, retry_after_s=0.5) == 2.0


def test_without_a_backoff_it_is_tried_at_once() -> None:
    assert wait(1, backoff_s=0.0) == 0.0


@given(
    st.integers(1, 2000),
    st.integers(1, 100),
    st.floats(0, 3600),
    st.none() | st.floats(0, 3600),
    st.booleans(),
)
def test_a_wait_is_bounded_and_never_negative(
    attempts: int,
    max_attempts: int,
    backoff_s: float,
    retry_after_s: float | None,
    platform: bool,
) -> None:
    found = wait(
        attempts,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        retry_after_s=retry_after_s,
        platform=platform,
    )

    assert found is None or 0 <= found <= max(LONGEST_S, retry_after_s or 0)
    assert (found is None) == (attempts >= max_attempts * (10 if platform else 1))
