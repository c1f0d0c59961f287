"""The policies of the literature, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from faasd.policies.preloading import levels
from faasd.policies.preloading.actions import Action, Load, Lower
from faasd.policies.preloading.fixed import Fixed
from faasd.policies.preloading.greedy_dual import GreedyDual
from faasd.policies.preloading.histogram import RANGE_S, Histogram, IdleTimes, Windows, forecast
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.none import Nothing
from faasd.policies.preloading.pagurus import Gaps, Pagurus
from faasd.policies.preloading.policy import Policy
from faasd.policies.preloading.rainbowcake import RainbowCake, Recent, break_even_s, clamp
from faasd.policies.preloading.registry import DEFAULT, POLICIES, make, options


def profile(memory_mb: float = 100.0, cold_s: float = 4.0, runtime: str = "torch") -> Profile:
    """Half a second to a sandbox, one to libraries, the rest to load; 0 s when warm."""
    return levels.processes(
        sandbox_s=0.5,
        import_s=1.0,
        load_s=cold_s - 1.5,
        exec_s=0.1,
        memory_mb=memory_mb,
        libraries_mb=50.0,
        warm_s=0.0,
        runtime=runtime,
    )


def ready(policy: Policy, *profiles: Profile, budget_mb: float = 1000.0) -> None:
    policy.node_joined(0, budget_mb, 0.0)
    for function, one in enumerate(profiles):
        policy.known(function, one, 0.0)


def served(policy: Policy, place: int, function: int, at: float, run_s: float = 0.0) -> None:
    """A call, in a new place unless it is there."""
    policy.arrived(function, at)
    if not policy.book.is_there(place):
        policy.placed(place, function, 0, Level.INSTANCE, at)
    policy.began(place, function, at)
    policy.idled(place, at + run_s)


def lowered(actions: list[Action]) -> list[tuple[int, Level]]:
    return [(one.place, one.level) for one in actions if isinstance(one, Lower)]


def loaded(actions: list[Action]) -> list[tuple[int, Level]]:
    return [(one.function, one.level) for one in actions if isinstance(one, Load)]


# None and fixed


def test_none_ends_a_place_as_soon_as_it_is_idle() -> None:
    policy = Nothing()
    ready(policy, profile())
    served(policy, 0, 0, 1.0, run_s=2.0)
    assert policy.due <= 3.0
    assert lowered(policy.decide(3.0)) == [(0, Level.ABSENT)]


def test_fixed_keeps_for_its_time_since_the_last_use() -> None:
    policy = Fixed(idle_s=600.0)
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    served(policy, 0, 0, 500.0)
    assert lowered(policy.decide(1099.9)) == []
    assert policy.due == 1100.0
    assert lowered(policy.decide(1100.0)) == [(0, Level.ABSENT)]


def test_fixed_drops_the_longest_unused_first_under_pressure() -> None:
    policy = Fixed()
    ready(policy, profile(), profile(), profile())
    for function in range(3):
        served(policy, function, function, float(function))
    served(policy, 0, 0, 10.0)
    policy.pressed(0, 150.0, 11.0)
    assert lowered(policy.decide(11.0)) == [(1, Level.ABSENT), (2, Level.ABSENT)]


def test_pressure_is_met_by_what_is_leaving_already() -> None:
    policy = Fixed()
    ready(policy, profile(), profile())
    served(policy, 0, 0, 0.0)
    served(policy, 1, 1, 1.0)
    policy.pressed(0, 80.0, 2.0)
    policy.pressed(0, 80.0, 2.1)
    assert lowered(policy.decide(2.1)) == [(0, Level.ABSENT)]


def test_a_call_that_came_first_keeps_its_place() -> None:
    """The driver ignores what it was asked then, and the memory counts as held again."""
    policy = Fixed()
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    policy.pressed(0, 50.0, 1.0)
    assert policy.book.ledger.used_mb(0) == pytest.approx(0.0)
    policy.began(0, 0, 1.0)
    assert policy.book.ledger.used_mb(0) == pytest.approx(100.0)
    policy.idled(0, 2.0)
    policy.decide(2.0)
    policy.pressed(0, 50.0, 3.0)
    assert lowered(policy.decide(3.0)) == [(0, Level.ABSENT)]


def test_a_plain_platform_keeps_the_sandbox_and_not_the_process() -> None:
    policy = make("fixed:keeps=sandbox")
    ready(policy, profile())
    served(policy, 0, 0, 0.0, run_s=1.0)
    assert lowered(policy.decide(1.0)) == [(0, Level.SANDBOX)]
    policy.placed(0, 0, 0, Level.SANDBOX, 1.1)
    assert policy.book.ledger.used_mb(0) == pytest.approx(3.0)
    assert lowered(policy.decide(600.9)) == []
    assert lowered(policy.decide(601.0)) == [(0, Level.ABSENT)]


def test_a_template_is_kept_with_the_calls_of_its_function() -> None:
    policy = Fixed(idle_s=60.0)
    forked = levels.forks(
        floor_s=0.2, import_s=0.1, load_s=1.0, exec_s=0.1, template_mb=20.0, weights="w"
    )
    ready(policy, forked)
    policy.placed(0, 0, 0, Level.MAPPED, 0.0)
    served(policy, 1, 0, 0.0)
    served(policy, 1, 0, 50.0)
    assert lowered(policy.decide(109.0)) == []
    assert lowered(policy.decide(110.0)) == [(1, Level.ABSENT), (0, Level.ABSENT)]


# Histogram


def windows_of(*idle_minutes: float) -> Windows:
    known = IdleTimes()
    for minutes in idle_minutes:
        known.observe(60.0 * minutes)
    return known.windows()


def test_histogram_windows_are_the_5th_and_99th_percentile_with_a_tenth_around() -> None:
    """All idle times in the bin of minute 10: ahead at 10 x 0.9, kept until 11 x 1.1."""
    windows = windows_of(*[10.5] * 20)
    assert windows.prewarm_s == pytest.approx(10 * 60 * 0.9)
    assert windows.prewarm_s + windows.keep_s == pytest.approx(11 * 60 * 1.1)


def test_histogram_takes_the_bins_where_the_percentiles_are_reached() -> None:
    """Of 100, the fifth is in minute 3 and the 99th in minute 30; the last one, at 100, is cut."""
    windows = windows_of(*[3.2] * 5, *[20.1] * 90, *[30.7] * 4, 100.0)
    assert windows.prewarm_s == pytest.approx(3 * 60 * 0.9)
    assert windows.prewarm_s + windows.keep_s == pytest.approx(31 * 60 * 1.1)


def test_histogram_unloads_nothing_where_idle_times_begin_at_once() -> None:
    windows = windows_of(*[0.2] * 10, *[5.5] * 10)
    assert windows.prewarm_s == 0.0
    assert windows.keep_s == pytest.approx(6 * 60 * 1.1)


def test_histogram_keeps_for_its_range_where_it_knows_too_little() -> None:
    assert windows_of(*[10.5] * 9) == Windows(0.0, RANGE_S, "too few idle times")
    assert windows_of() == Windows(0.0, RANGE_S, "too few idle times")


def test_histogram_keeps_for_its_range_where_there_is_no_pattern() -> None:
    """One idle time in every bin: the counts do not vary at all."""
    even = windows_of(*[minute + 0.5 for minute in range(240)])
    assert even == Windows(0.0, RANGE_S, "no pattern")


def test_the_variation_of_bins_is_that_of_their_counts() -> None:
    known = IdleTimes()
    for _ in range(12):
        known.observe(100.0)
    assert known.cv == pytest.approx(math.sqrt(239))


def test_histogram_forecasts_where_idle_times_are_beyond_its_range() -> None:
    """Five hours each time: ahead at 85 % of that, and kept for 30 %."""
    windows = windows_of(*[300.0] * 6)
    assert windows.rule == "forecast"
    assert windows.prewarm_s == pytest.approx(0.85 * 300 * 60)
    assert windows.keep_s == pytest.approx(0.3 * 300 * 60)


def test_the_forecast_is_the_regression_on_the_idle_time_before() -> None:
    """Means 2; 1, 3, 1, 3 turns around each time: slope -1, so that 1 follows."""
    assert forecast([1.0, 3.0, 1.0, 3.0]) == pytest.approx(1.0)
    assert forecast([5.0, 5.0, 5.0]) == 5.0


def regular(policy: Policy, period_s: float, count: int) -> float:
    """Calls of function 0 by the clock, each in a place that is new where the last one is gone."""
    at = 0.0
    for number in range(count):
        at = number * period_s
        actions = policy.decide(at)
        for place, _ in lowered(actions):
            policy.dropped(place, at)
        served(policy, 0, 0, at)
    return at


def test_histogram_unloads_after_a_call_and_loads_ahead_of_the_next() -> None:
    policy = Histogram()
    ready(policy, profile())
    last = regular(policy, 630.0, 20)
    windows = policy.idle_times[0].windows()
    assert windows.prewarm_s == pytest.approx(540.0)
    assert lowered(policy.decide(last)) == [(0, Level.ABSENT)]
    policy.dropped(0, last)
    assert loaded(policy.decide(last + 539.0)) == []
    at = last + 540.0
    (load,) = policy.decide(at)
    assert isinstance(load, Load)
    policy.placed(0, 0, 0, Level.INSTANCE, at + 4.0, load=load.id)
    until = at + 4.0 + windows.keep_s
    assert lowered(policy.decide(until - 1.0)) == []
    assert lowered(policy.decide(until)) == [(0, Level.ABSENT)]


def test_histogram_loads_one_ahead_only_where_none_is_there() -> None:
    policy = Histogram()
    ready(policy, profile())
    last = regular(policy, 630.0, 20)
    policy.decide(last)
    assert loaded(policy.decide(last + 545.0)) == []


def test_an_idle_time_is_none_while_another_call_runs() -> None:
    policy = Histogram()
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    policy.arrived(0, 100.0)
    policy.began(0, 0, 100.0)
    policy.arrived(0, 400.0)
    assert policy.idle_times[0].counts[1] == 1
    assert policy.idle_times[0].counts[0] == 1


# Greedy-dual


def test_the_priority_is_the_clock_and_frequency_times_cost_by_size() -> None:
    policy = GreedyDual()
    ready(policy, profile(memory_mb=100.0, cold_s=4.0), profile(memory_mb=200.0, cold_s=2.0))
    served(policy, 0, 0, 0.0)
    served(policy, 0, 0, 1.0)
    served(policy, 1, 1, 2.0)
    assert policy.priority(0) == pytest.approx(0 + 2 * 4.0 / 100.0)
    assert policy.priority(1) == pytest.approx(0 + 1 * 2.0 / 200.0)


def test_the_clock_is_the_priority_of_what_was_evicted_last() -> None:
    policy = GreedyDual()
    ready(policy, profile(), profile(), profile(memory_mb=50.0))
    served(policy, 0, 0, 0.0)
    served(policy, 0, 0, 1.0)
    served(policy, 1, 1, 2.0)
    policy.pressed(0, 50.0, 3.0)
    assert lowered(policy.decide(3.0)) == [(1, Level.ABSENT)]
    policy.dropped(1, 3.0)
    assert policy.clock == pytest.approx(4.0 / 100.0)
    # One hit by this clock is worth what one more hit was before.
    served(policy, 1, 1, 4.0)
    assert policy.priority(1) == pytest.approx(0.04 + 1 * 4.0 / 100.0)
    assert policy.priority(0) == pytest.approx(2 * 4.0 / 100.0)


def test_a_hit_lifts_all_places_of_a_function_to_the_present_clock() -> None:
    policy = GreedyDual()
    ready(policy, profile(), profile())
    served(policy, 0, 0, 0.0)
    policy.placed(1, 0, 0, Level.INSTANCE, 1.0)
    policy.clock = 0.5
    served(policy, 1, 0, 2.0)
    assert policy.priority(0) == policy.priority(1) == pytest.approx(0.5 + 2 * 4.0 / 100.0)


def test_a_place_takes_its_hits_along_and_the_last_one_everything() -> None:
    policy = GreedyDual()
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    served(policy, 1, 0, 1.0)
    served(policy, 1, 0, 2.0)
    policy.dropped(1, 3.0)
    assert policy.priority(0) == pytest.approx(1 * 4.0 / 100.0)
    policy.dropped(0, 4.0)
    policy.placed(0, 0, 0, Level.INSTANCE, 5.0)
    assert policy.priority(0) == 0.0


def test_greedy_dual_never_lets_anything_expire() -> None:
    policy = GreedyDual()
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    assert policy.decide(1e9) == []


# Pagurus


def test_pagurus_lends_after_95_percent_of_the_gaps() -> None:
    """21 arrivals with gaps 1..20: the 19th of them, from the end of the period on."""
    gaps = Gaps(0.0, 60.0)
    at = 0.0
    gaps.arrived(at)
    for gap in range(1, 21):
        at += gap
        gaps.arrived(at)
    assert gaps.zygote_s == 60.0
    gaps.arrived(900.0)
    assert gaps.zygote_s == 19.0


def test_pagurus_keeps_its_time_where_there_were_few_calls() -> None:
    gaps = Gaps(0.0, 60.0)
    for at in (0.0, 100.0, 200.0, 950.0):
        gaps.arrived(at)
    assert gaps.zygote_s == 60.0


def test_an_idle_place_becomes_a_lender_and_serves_another_function() -> None:
    policy = Pagurus()
    ready(policy, profile(), profile())
    served(policy, 0, 0, 0.0)
    assert lowered(policy.decide(59.0)) == []
    assert lowered(policy.decide(60.0)) == [(0, Level.SANDBOX)]
    policy.placed(0, 0, 0, Level.SANDBOX, 60.1)
    assert policy.lends(0)
    policy.arrived(1, 70.0)
    policy.placed(0, 1, 0, Level.INSTANCE, 70.0)
    policy.began(0, 1, 70.0)
    assert not policy.lends(0)
    assert policy.book.owner[0] == 1


def test_a_function_has_one_lender_at_most() -> None:
    policy = Pagurus()
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    served(policy, 1, 0, 0.0)
    first = [one for at in range(60, 90) for one in lowered(policy.decide(float(at)))]
    assert first == [(0, Level.SANDBOX)]
    policy.dropped(0, 90.0)
    second = [one for at in range(90, 95) for one in lowered(policy.decide(float(at)))]
    assert second == [(1, Level.SANDBOX)]


def test_executors_and_lenders_live_for_900_seconds() -> None:
    policy = Pagurus()
    ready(policy, profile())
    served(policy, 0, 0, 0.0)
    policy.decide(60.0)
    policy.placed(0, 0, 0, Level.SANDBOX, 60.0)
    assert lowered(policy.decide(959.0)) == []
    assert lowered(policy.decide(960.0)) == [(0, Level.ABSENT)]


# RainbowCake


def test_the_quantile_of_recent_arrivals() -> None:
    """Six arrivals since 500 s: a mean of 100 s at 600, and 80 % of gaps are within 161 s."""
    recent = Recent()
    for at in (0.0, 500.0, 510.0, 520.0, 530.0, 540.0, 550.0):
        recent.arrived(at)
    assert recent.quantile_s(1100.0) == pytest.approx(1.6094 * 100.0, rel=1e-4)
    assert Recent().quantile_s(5.0) is None


def test_a_layer_is_kept_no_longer_than_it_is_worth() -> None:
    """0.996 of a second waited against 0.004 of a megabyte and second: 249 s for 1 s and 1 MB."""
    assert break_even_s(1.0, 1.0) == 249
    assert break_even_s(3.0, 100.0) == math.ceil(7.47)
    assert break_even_s(1.0, 0.0) == math.inf


def test_the_clamp_is_a_minute_below_and_the_worth_above() -> None:
    assert clamp(10.0, 600.0) == 60.0
    assert clamp(100.0, 600.0) == 100.0
    assert clamp(1000.0, 600.0) == 600.0


def test_the_clamp_does_not_invert_where_the_worth_is_less_than_a_minute() -> None:
    assert clamp(10.0, 8.0) == 8.0
    assert clamp(1000.0, 8.0) == 8.0


def test_layers_are_stripped_one_by_one_each_after_its_time() -> None:
    """Instance: 2.5 s for 2 MB, 312 s at most; libraries 1 s for 1 MB, 249; sandbox 0.5 s, 125."""
    policy = RainbowCake()
    one = levels.processes(
        sandbox_s=0.5,
        import_s=1.0,
        load_s=2.5,
        exec_s=0.1,
        memory_mb=2.0,
        libraries_mb=1.0,
        sandbox_mb=1.0,
        warm_s=0.0,
    )
    ready(policy, one)
    for at in (0.0, 1000.0):
        served(policy, 0, 0, at)
    assert policy.kept_s(0, Level.INSTANCE, 1000.0) == math.ceil(249 * 2.5 / 2)
    assert lowered(policy.decide(1311.9)) == []
    assert lowered(policy.decide(1312.0)) == [(0, Level.LIBRARIES)]
    policy.placed(0, 0, 0, Level.LIBRARIES, 1312.0)
    assert lowered(policy.decide(1560.9)) == []
    assert lowered(policy.decide(1561.0)) == [(0, Level.SANDBOX)]
    policy.placed(0, 0, 0, Level.SANDBOX, 1561.0)
    assert lowered(policy.decide(1685.9)) == []
    assert lowered(policy.decide(1686.0)) == [(0, Level.ABSENT)]


def test_a_layer_is_kept_by_the_calls_of_all_that_it_serves() -> None:
    policy = RainbowCake()
    small = levels.processes(
        sandbox_s=0.5, import_s=5.0, load_s=5.0, exec_s=0.1, memory_mb=2.0, runtime="torch"
    )
    other = levels.processes(
        sandbox_s=0.5, import_s=5.0, load_s=5.0, exec_s=0.1, memory_mb=2.0, runtime="plain"
    )
    ready(policy, small, small, other)
    policy.arrived(0, 0.0)
    policy.arrived(1, 100.0)
    policy.arrived(2, 140.0)
    factor = -math.log(0.2)
    assert policy.kept_s(0, Level.INSTANCE, 200.0) == pytest.approx(factor * 200.0)
    assert policy.kept_s(0, Level.LIBRARIES, 200.0) == pytest.approx(factor * 100.0)


def test_rainbowcake_loads_ahead_when_the_next_call_has_likely_come() -> None:
    policy = RainbowCake()
    ready(policy, profile())
    for at in (0.0, 100.0):
        served(policy, 0, 0, at)
    # The mean is 50 s, as two calls count; 80.47 s at the quantile, whole seconds.
    found = []
    for at in range(100, 190):
        for action in policy.decide(float(at)):
            if isinstance(action, Lower):
                policy.dropped(action.place, float(at))
            elif isinstance(action, Load):
                found.append((at, action.level))
    assert found == [(181, Level.INSTANCE)]


# The registry


def test_policies_are_made_by_name_and_options() -> None:
    assert make().name == DEFAULT == "worth"
    assert set(POLICIES) >= {"none", "fixed", "histogram", "greedy-dual", "pagurus", "rainbowcake"}
    assert options(Fixed) == {"idle_s": 600.0, "keeps": Level.INSTANCE}
    policy = make("fixed: idle_s=60, keeps=sandbox")
    assert (policy._idle_s, policy._keeps) == (60.0, Level.SANDBOX)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("best", "choose one of worth, none"),
        ("fixed:ttl=5", "its options: idle_s, keeps"),
        ("fixed:idle_s=soon", "'soon' is no value for idle_s"),
        ("fixed:keeps=cellar", "'cellar' is no value for keeps"),
        ("fixed:idle_s", "has no option"),
        ("none:idle_s=5", "its options: keeps"),
        ("instainfer:over=worth", "not made to go over 'worth'"),
    ],
)
def test_a_choice_that_makes_no_sense_says_what_would(choice: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(choice)
