"""The default policy: what is worth its memory, and what is not."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from faasd.policies.preloading import levels
from faasd.policies.preloading.actions import Action, Cancel, Load, Lower
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.registry import make
from faasd.policies.preloading.worth import Worth
from tests.unit.policies.preloading.world import World


def process(
    memory_mb: float = 500.0, *, load_s: float = 2.5, exec_s: float = 0.5, import_s: float = 0.5
) -> Profile:
    return levels.processes(
        sandbox_s=0.5, import_s=import_s, load_s=load_s, exec_s=exec_s, memory_mb=memory_mb
    )


def fork(name: str, *, template_mb: float = 20.0, weights_mb: float = 100.0) -> Profile:
    return levels.forks(
        floor_s=0.2,
        import_s=0.2,
        load_s=2.0,
        exec_s=0.2,
        template_mb=template_mb,
        weights_mb=weights_mb,
        weights=name,
    )


def ready(policy: Worth, *profiles: Profile, budget_mb: float) -> None:
    policy.node_joined(0, budget_mb, 0.0)
    for function, one in enumerate(profiles):
        policy.known(function, one, 0.0)


def idle(policy: Worth, place: int, function: int, at: float, *, node: int = 0) -> None:
    policy.arrived(function, at)
    policy.placed(place, function, node, Level.INSTANCE, at)
    policy.began(place, function, at)
    policy.idled(place, at + 0.1)


def loads(actions: list[Action]) -> list[tuple[int, Level]]:
    return [(one.function, one.level) for one in actions if isinstance(one, Load)]


def lowered(actions: list[Action]) -> list[tuple[int, Level]]:
    return [(one.place, one.level) for one in actions if isinstance(one, Lower)]


def by_chance(seed: int, mean_s: dict[int, float], span_s: float) -> list[tuple[float, int]]:
    rng, found = random.Random(seed), []
    for function, gap_s in mean_s.items():
        at = rng.expovariate(1.0 / gap_s)
        while at < span_s:
            found.append((at, function))
            at += rng.expovariate(1.0 / gap_s)
    return sorted(found)


def test_a_function_is_loaded_as_soon_as_it_is_known_where_memory_is_free() -> None:
    policy = Worth()
    ready(policy, process(), budget_mb=10_000.0)
    assert loads(policy.decide(0.0)) == [(0, Level.INSTANCE)]


def test_a_load_that_would_not_pay_for_itself_is_not_made() -> None:
    policy = Worth(loader_price=10.0)
    ready(policy, process(), budget_mb=10_000.0)
    assert loads(policy.decide(0.0)) == []


def test_nothing_is_loaded_that_does_not_fit() -> None:
    policy = Worth()
    ready(policy, process(500.0), budget_mb=499.0)
    assert all(level < Level.INSTANCE for _, level in loads(policy.decide(0.0)))


def test_forks_get_their_template_first_and_instances_by_their_own_worth() -> None:
    policy = Worth()
    ready(policy, fork("bert"), budget_mb=130.0)
    (load,) = policy.decide(0.0)
    assert isinstance(load, Load)
    assert load.level >= Level.RESIDENT


def test_the_least_worth_goes_first_under_pressure() -> None:
    """One is called every ten seconds, the other every two minutes, and that one was used last."""
    policy = Worth()
    ready(policy, process(), process(), budget_mb=1100.0)
    for number in range(40):
        idle(policy, 0, 0, 10.0 * number)
    for number in range(4):
        idle(policy, 1, 1, 120.0 * number + 39.0)
    policy.decide(400.0)
    policy.pressed(0, 300.0, 400.0)
    assert [place for place, _ in lowered(policy.decide(400.0))] == [1]


def test_of_equally_likely_functions_the_one_that_saves_less_per_megabyte_goes() -> None:
    policy = Worth()
    ready(policy, process(500.0, load_s=5.0), process(900.0, load_s=1.0), budget_mb=1500.0)
    for number in range(20):
        idle(policy, 0, 0, 30.0 * number)
        idle(policy, 1, 1, 30.0 * number + 1.0)
    policy.decide(580.0)
    policy.pressed(0, 100.0, 580.0)
    assert [place for place, _ in lowered(policy.decide(580.0))] == [1]


def test_a_place_goes_down_by_one_step_where_that_is_enough() -> None:
    policy = Worth()
    ready(policy, process(1000.0, import_s=2.0), budget_mb=1100.0)
    idle(policy, 0, 0, 0.0)
    policy.decide(0.5)
    policy.pressed(0, 300.0, 1.0)
    assert lowered(policy.decide(1.0)) == [(0, Level.LIBRARIES)]
    policy.placed(0, 0, 0, Level.LIBRARIES, 1.0)
    policy.pressed(0, 100.0, 2.0)
    assert lowered(policy.decide(2.0)) == [(0, Level.SANDBOX)]


def test_a_place_goes_whole_where_its_steps_are_not_enough() -> None:
    policy = Worth()
    ready(policy, process(1000.0, import_s=2.0), budget_mb=1100.0)
    idle(policy, 0, 0, 0.0)
    policy.decide(0.5)
    policy.pressed(0, 1000.0, 1.0)
    assert lowered(policy.decide(1.0)) == [(0, Level.ABSENT)]


def test_a_stripped_place_is_raised_again_and_no_other_made() -> None:
    policy = Worth()
    ready(policy, process(1000.0), budget_mb=5000.0)
    for number in range(11):
        idle(policy, 0, 0, 10.0 * number)
    policy.decide(101.0)
    policy.placed(0, 0, 0, Level.SANDBOX, 102.0)
    found = [one for at in range(102, 110) for one in policy.decide(float(at))]
    (load,) = [one for one in found if isinstance(one, Load)]
    assert (load.place, load.level) == (0, Level.INSTANCE)


def test_loads_are_given_up_before_anything_else_under_pressure() -> None:
    policy = Worth()
    ready(policy, process(), process(), budget_mb=1100.0)
    idle(policy, 0, 0, 0.0)
    begun = [one for at in (0.2, 3.0) for one in policy.decide(at) if isinstance(one, Load)]
    assert [load.function for load in begun] == [1]
    policy.pressed(0, 300.0, 4.0)
    assert [type(one) for one in policy.decide(4.0)] == [Cancel]


def test_what_is_worth_more_displaces_what_is_worth_less() -> None:
    """Memory for one. The rare one is there; the other turns out to be called all the time."""
    there = World(make("worth"), {0: process(), 1: process()}, {0: 600.0})
    there.run(by_chance(1, {0: 900.0, 1: 15.0}, 7200.0))
    busy = there.tally.found_by[1]
    assert busy[Level.INSTANCE] / busy.total() > 0.9


def test_a_like_thing_is_not_displaced_by_its_like() -> None:
    """Ten functions that are called alike, and memory for five: loads are few, and most pay."""
    profiles = dict.fromkeys(range(10), process())
    there = World(make("worth"), profiles, {0: 2600.0})
    there.run(by_chance(2, dict.fromkeys(range(10), 60.0), 7200.0))
    assert there.tally.calls > 1000
    raised = [one for _, one in there.actions if isinstance(one, Load)]
    assert len(raised) < 0.2 * there.tally.calls


def test_memory_that_was_just_taken_is_not_free_at_its_face() -> None:
    """What is left over after an eviction is as dear as what was evicted, until that is long ago."""
    policy = Worth()
    ready(policy, process(500.0), process(400.0), budget_mb=1000.0)
    for number in range(40):
        idle(policy, 0, 0, 10.0 * number)
        for action in policy.decide(10.0 * number + 1.0):
            if isinstance(action, Load):
                policy.failed(action.id, "not here", 10.0 * number + 2.0)
    before = policy._price_of(0, 395.0)
    policy.pressed(0, 400.0, 395.0)
    assert lowered(policy.decide(395.0))
    assert policy._price_of(0, 395.0) > 100 * before
    assert policy._price_of(0, 395.0 + 3600.0) == pytest.approx(before)


def test_calls_by_the_clock_take_turns_in_memory_for_one() -> None:
    """Two functions every ten minutes, five minutes apart: each is loaded ahead of its call."""
    profiles = {0: process(), 1: process()}
    calls = sorted((600.0 * n + 300.0 * f + 10.0, f) for n in range(60) for f in (0, 1))
    there = World(make("worth"), profiles, {0: 600.0})
    there.run(calls)
    fixed = World(make("fixed"), profiles, {0: 600.0})
    fixed.run(calls)
    assert fixed.tally.found[Level.INSTANCE] == 0
    assert there.tally.share(Level.INSTANCE) > 0.8


def test_rare_functions_are_loaded_where_they_share_what_is_large() -> None:
    """Forty functions of four models, called once an hour: greedy-dual waits for a first call."""
    profiles = {f: fork(f"model {f % 4}") for f in range(40)}
    calls = by_chance(3, dict.fromkeys(range(40), 3600.0), 7200.0)
    ours = World(make("worth"), profiles, {0: 2000.0})
    ours.run(calls)
    others = World(make("greedy-dual"), profiles, {0: 2000.0})
    others.run(calls)
    ready_levels = (Level.MAPPED, Level.RESIDENT, Level.INSTANCE)
    assert ours.tally.share(*ready_levels) > 0.9
    assert others.tally.share(*ready_levels) < 0.7


def test_what_nobody_calls_is_dropped_in_the_end() -> None:
    policy = Worth(price=1e-7)
    ready(policy, process(), budget_mb=10_000.0)
    idle(policy, 0, 0, 0.0)
    found: list[tuple[int, Level]] = []
    for minute in range(48 * 60):
        for action in policy.decide(60.0 * minute + 1.0):
            assert not isinstance(action, Load)
            if isinstance(action, Lower):
                found.append((minute, action.level))
                if action.level is Level.ABSENT:
                    policy.dropped(action.place, 60.0 * minute + 2.0)
                else:
                    policy.placed(0, 0, 0, action.level, 60.0 * minute + 2.0)
    assert found
    assert found[0][0] > 10


def test_a_copy_more_is_held_where_calls_overlap() -> None:
    """Pairs of calls: after some, the second finds a place as ready as the first does."""
    profiles = {0: process(exec_s=5.0)}
    there = World(make("worth"), profiles, {0: 5000.0})
    pairs = sorted([(120.0 * n, 0) for n in range(30)] + [(120.0 * n + 0.5, 0) for n in range(30)])
    there.run(pairs)
    assert there.tally.share(Level.INSTANCE) > 0.9
    assert there.levels(0).count(Level.INSTANCE) == 2


def test_a_copy_lost_is_loaded_again_where_calls_overlapped_often() -> None:
    policy = Worth(bounds=Bounds(at_once=4))
    ready(policy, process(), budget_mb=5000.0)
    policy.placed(0, 0, 0, Level.INSTANCE, 0.0)
    for number in range(20):
        at = 30.0 * number
        policy.arrived(0, at)
        policy.began(0, 0, at)
        policy.arrived(0, at + 0.1)
        policy.placed(1, 0, 0, Level.INSTANCE, at + 0.1)
        policy.began(1, 0, at + 0.1)
        policy.idled(0, at + 1.0)
        policy.idled(1, at + 1.0)
        policy.dropped(1, at + 2.0)
    found = [one for at in range(600, 660) for one in policy.decide(float(at))]
    assert loads(found) == [(0, Level.INSTANCE)]


def test_a_rare_second_copy_is_worth_less_than_the_first_one_of_another() -> None:
    policy = Worth()
    ready(policy, process(), process(), budget_mb=1600.0)
    for number in range(20):
        idle(policy, 0, 0, 20.0 * number)
    idle(policy, 1, 1, 200.0)
    idle(policy, 1, 1, 260.0)
    policy.arrived(0, 385.0)
    policy.began(0, 0, 385.0)
    policy.arrived(0, 385.1)
    policy.placed(2, 0, 0, Level.INSTANCE, 385.1)
    policy.began(2, 0, 385.1)
    policy.idled(0, 386.0)
    policy.idled(2, 387.0)
    first, second = policy.explain(2, 400.0), policy.explain(0, 400.0)
    assert first.density is not None
    assert second.density is not None
    assert second.density < first.density


def test_a_template_goes_with_its_instances_and_not_under_a_call() -> None:
    policy = Worth()
    ready(policy, fork("bert"), budget_mb=130.0)
    policy.placed(0, 0, 0, Level.RESIDENT, 0.0)
    policy.placed(1, 0, 0, Level.INSTANCE, 0.0)
    policy.began(1, 0, 0.0)
    policy.decide(0.0)
    policy.pressed(0, 100.0, 1.0)
    assert lowered(policy.decide(1.0)) == []
    policy.idled(1, 2.0)
    policy.pressed(0, 100.0, 3.0)
    assert lowered(policy.decide(3.0)) == [(1, Level.ABSENT), (0, Level.ABSENT)]


def test_a_decision_says_what_it_was_made_of() -> None:
    policy = Worth()
    ready(policy, process(500.0), budget_mb=10_000.0)
    (load,) = policy.decide(0.0)
    assert isinstance(load, Load)
    assert load.why.saves_s == pytest.approx(3.499)
    assert load.why.memory_mb == pytest.approx(500.0)
    assert load.why.chance is not None
    assert 0.0 < load.why.chance < 1.0
    text = str(load.why)
    assert "called within" in text
    assert "saves 3.5 s" in text
    assert "for 500.0 MB" in text
    policy.placed(0, 0, 0, Level.INSTANCE, 4.0, load=load.id)
    held = policy.explain(0, 5.0)
    assert held.density is not None
    assert held.memory_mb == pytest.approx(500.0)


def test_replicas_go_to_the_node_with_most_room() -> None:
    policy = Worth()
    policy.node_joined(0, 600.0, 0.0)
    policy.node_joined(1, 5000.0, 0.0)
    policy.known(0, process(), 0.0)
    (load,) = policy.decide(0.0)
    assert isinstance(load, Load)
    assert load.node == 1


def test_hot_medium_and_rare_functions_are_served_in_that_order_of_certainty() -> None:
    means = dict.fromkeys(range(4), 5.0) | dict.fromkeys(range(4, 12), 60.0)
    means |= dict.fromkeys(range(12, 60), 3600.0)
    profiles = {f: fork(f"model {f % 8}", weights_mb=60.0) for f in means}
    there = World(make("worth"), profiles, {0: 1100.0})
    there.run(by_chance(5, means, 3600.0))
    found: dict[str, Counter[Level]] = {"hot": Counter(), "medium": Counter(), "rare": Counter()}
    for function, levels_found in there.tally.found_by.items():
        kind = "hot" if function < 4 else "medium" if function < 12 else "rare"
        found[kind] += levels_found
    shares = [
        sum(one[level] for level in (Level.MAPPED, Level.RESIDENT, Level.INSTANCE)) / one.total()
        for one in found.values()
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.95
    assert shares[1] > 0.8


def test_parts_of_it_can_be_left_out_to_see_what_they_are_good_for() -> None:
    policy = make("worth:ahead=no")
    policy.node_joined(0, 5000.0, 0.0)
    policy.known(0, process(), 0.0)
    assert [one for at in range(100) for one in policy.decide(float(at))] == []
    whole = Worth(steps=False)
    ready(whole, process(1000.0, import_s=2.0), budget_mb=1100.0)
    idle(whole, 0, 0, 0.0)
    whole.pressed(0, 300.0, 1.0)
    assert lowered(whole.decide(1.0)) == [(0, Level.ABSENT)]
    with pytest.raises(ValueError, match="choose one of exponential, shared"):
        make("worth:arrivals=crystal ball")


def test_one_more_node_is_held_where_calls_had_to_go_there_often() -> None:
    """Its template was made on the second node twice by calls, and evicted again."""
    policy = Worth()
    policy.node_joined(0, 5000.0, 0.0)
    policy.node_joined(1, 5000.0, 0.0)
    policy.known(0, fork("bert"), 0.0)
    (load,) = policy.decide(0.0)
    assert isinstance(load, Load)
    policy.placed(0, 0, 0, Level.INSTANCE, 3.0)
    policy.placed(1, 0, 0, Level.RESIDENT, 3.0, load=load.id)
    for number in range(3):
        at = 10.0 + 20.0 * number
        policy.arrived(0, at)
        policy.began(0, 0, at)
        policy.placed(2, 0, 1, Level.RESIDENT, at)
        policy.idled(0, at + 1.0)
        policy.dropped(2, at + 2.0)
    found = [one for at in range(60, 120) for one in policy.decide(float(at))]
    assert [(one.node, one.level) for one in found if isinstance(one, Load)] == [
        (1, Level.RESIDENT)
    ]
