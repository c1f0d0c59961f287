"""What holds for every policy of preloading, whatever it decides."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.policies.preloading import levels
from faasd.policies.preloading.actions import Cancel, Load, Lower
from faasd.policies.preloading.assigned import Assigned
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.policy import Policy
from faasd.policies.preloading.registry import POLICIES, make
from tests.unit.policies.preloading.world import World

CHOICES = [
    *POLICIES,
    "fixed:keeps=sandbox",
    "histogram:keeps=sandbox",
    "instainfer:over=histogram",
    "instainfer:over=greedy-dual",
    "instainfer:over=pagurus",
    "worth:price=0,margin=1",
    "assigned",
]
SLACK_MB = 1e-6


def build(choice: str) -> Policy:
    """One policy for all functions, or for every third another one."""
    if choice != "assigned":
        return make(choice)
    policy = Assigned()
    for function in range(40):
        if function % 3:
            policy.assign(function, ("fixed:idle_s=30", "instainfer")[function % 3 - 1])
    return policy


def process(number: int) -> Profile:
    return levels.processes(
        sandbox_s=0.5,
        import_s=0.8,
        load_s=0.3 + number % 4,
        exec_s=0.2 + 0.1 * (number % 3),
        memory_mb=300.0 + 150.0 * (number % 5),
        limit_mb=1500.0,
        tenant="even" if number % 7 else "odd",
        runtime="torch" if number % 2 else "plain",
    )


def fork(number: int) -> Profile:
    return levels.forks(
        floor_s=0.2,
        import_s=0.1,
        load_s=0.3 + number % 4,
        exec_s=0.2 + 0.1 * (number % 3),
        template_mb=10.0 + number % 5,
        weights_mb=100.0,
        weights=f"model {number % 4}",
        page_in_s=0.2 if number % 3 else 0.0,
    )


def reserved(number: int) -> Profile:
    return levels.processes(
        sandbox_s=0.5,
        import_s=0.8,
        load_s=1.0,
        exec_s=0.3,
        memory_mb=400.0 + 200.0 * (number % 3),
        limit_mb=1500.0,
        reserved=True,
    )


MAKERS = {"processes": process, "forks": fork, "reserved": reserved}


def calls(seed: int, functions: int, count: int, mean_s: float = 20.0) -> list[tuple[float, int]]:
    """By chance, in bursts, and by the clock; some at the same instant."""
    rng = random.Random(seed)
    found: list[tuple[float, int]] = []
    at = 0.0
    while len(found) < count:
        at += rng.choice([0.0, 0.1, mean_s * rng.expovariate(1.0)])
        function = min(functions - 1, int(rng.expovariate(3.0 / functions)))
        found += [(at, function)] * rng.choice([1, 1, 1, 4])
    return sorted(found)


def world(choice: str, kind: str, *, functions: int = 12, memory_mb: float = 2500.0) -> World:
    scale = 0.15 if kind == "forks" else 1.0
    nodes = {0: memory_mb * scale, 1: 2 * memory_mb * scale}
    return World(build(choice), {f: MAKERS[kind](f) for f in range(functions)}, nodes)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("choice", CHOICES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), memory_mb=st.sampled_from([1600.0, 2500.0, 9000.0]))
def test_what_a_policy_does_can_be_done_and_fits(
    choice: str, kind: str, seed: int, memory_mb: float
) -> None:
    """The world refuses loads that exceed the memory, and what names things that are not there."""
    there = world(choice, kind, memory_mb=memory_mb)
    there.run(calls(seed, 12, 150))
    there.advance(there.now + 1000.0)
    for node in there.ledger.nodes:
        assert there.ledger.used_mb(node) <= there.ledger.budget_mb(node) + SLACK_MB


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_book_of_a_policy_agrees_with_what_is_there(choice: str, kind: str) -> None:
    there = world(choice, kind)
    for at, function in calls(3, 12, 200):
        there.advance(at)
        there.call(function)
        book = there.policy.book
        assert sorted(book.everything()) == sorted(there.places)
        for node in there.ledger.nodes:
            assert book.ledger.used_mb(node) == pytest.approx(there.ledger.used_mb(node))
        for place in there.places.values():
            assert (book.owner[place.id], book.node[place.id]) == (place.function, place.node)
            assert book.level[place.id] is place.level
            assert book.is_idle(place.id) is not place.busy


@pytest.mark.parametrize("choice", CHOICES)
def test_under_pressure_idle_places_go_until_there_is_room(choice: str) -> None:
    there = world(choice, "processes", memory_mb=9000.0)
    there.run((float(at), at % 12) for at in range(24))
    there.advance(there.now + 30.0)
    used_mb = there.ledger.used_mb(1)
    there.press(1, used_mb)
    there.press(1, there.ledger.used_mb(1))
    assert there.ledger.used_mb(1) <= SLACK_MB


@pytest.mark.parametrize("choice", CHOICES)
def test_what_runs_a_call_is_never_asked_to_go(choice: str) -> None:
    there = world(choice, "forks", memory_mb=9000.0)
    for function in range(12):
        there.call(function)
    busy = {one.id for one in there.places.values() if one.busy}
    assert len(busy) >= 6
    there.actions.clear()
    there.press(0, 1e6)
    there.press(1, 1e6)
    lowered = {action.place for _, action in there.actions if isinstance(action, Lower)}
    assert not lowered & busy


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_transitions_are_bounded_by_what_loads_may_take(choice: str, kind: str) -> None:
    """However hard functions fight for memory, loads take their share of the processor and no more."""
    there = world(choice, kind, functions=30)
    bounds = there.policy.loads._bounds
    found = calls(5, 30, 600, mean_s=5.0)
    there.run(found)
    span_s = found[-1][0]
    most_cpu_s = max(MAKERS[kind](f).load_cpu_s(Level.INSTANCE) for f in range(30))
    for_one = bounds.cpu_burst_s + bounds.cpu_share * span_s + bounds.at_once * most_cpu_s
    assert there.tally.load_cpu_s <= 2 * for_one
    begun: dict[int, int] = {}
    for _, action in there.actions:
        if isinstance(action, Load):
            begun[action.id] = begun.get(action.id, 0) + 1
    assert all(count == 1 for count in begun.values())


@pytest.mark.parametrize("choice", CHOICES)
def test_each_decision_is_said_once(choice: str) -> None:
    there = world(choice, "processes")
    there.run(calls(7, 12, 100))
    assert there.policy.decide(there.now) == []
    there.policy.pressed(1, 500.0, there.now)
    once = there.policy.decide(there.now)
    assert there.policy.decide(there.now) == []
    assert len({one.place for one in once if isinstance(one, Lower)}) == len(
        [one for one in once if isinstance(one, Lower)]
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_a_policy_decides_the_same_for_the_same_events(choice: str) -> None:
    first, second = world(choice, "processes"), world(choice, "processes")
    first.run(calls(11, 12, 200))
    second.run(calls(11, 12, 200))
    assert first.actions == second.actions


@pytest.mark.parametrize("choice", CHOICES)
def test_a_load_that_fails_is_tried_again_ever_more_rarely(choice: str) -> None:
    profiles = {f: process(f) for f in range(6)}
    there = World(build(choice), profiles, {0: 20_000.0}, broken=range(6))
    there.run((60.0 * minute + f, f) for minute in range(60) for f in range(6))
    for function in range(6):
        failed = [
            at for at, act in there.actions if isinstance(act, Load) and act.function == function
        ]
        assert len(failed) <= 12
        waits = [later - sooner for sooner, later in itertools.pairwise(failed)]
        assert all(wait >= 30.0 * 2**tries for tries, wait in enumerate(waits))
        if failed:
            fault = there.policy.loads.quarantine.listing()[function, 0]
            assert fault.reason == "load() raised ValueError"
            assert fault.failures == len(failed)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_load_that_hangs_is_cancelled_and_quarantined(choice: str) -> None:
    profiles = {f: process(f) for f in range(6)}
    there = World(build(choice), profiles, {0: 20_000.0}, hanging=range(6))
    there.run((60.0 * minute + f, f) for minute in range(30) for f in range(6))
    there.advance(there.now + 100.0)
    begun = {act.id for at, act in there.actions if isinstance(act, Load) and at < there.now - 90.0}
    ended = {act.load for _, act in there.actions if isinstance(act, Cancel)}
    assert begun <= ended
    for fault in there.policy.loads.quarantine.listing().values():
        assert fault.reason.startswith("not done after")


@pytest.mark.parametrize("choice", CHOICES)
def test_functions_appear_and_vanish(choice: str) -> None:
    there = world(choice, "processes", memory_mb=20_000.0)
    there.run(calls(13, 6, 60))
    for function in range(6):
        there.policy.forgotten(function, there.now)
    there.advance(there.now + 100.0)
    assert not any(one.function < 6 for one in there.places.values())
    assert not set(range(6)) & set(there.policy.book.profiles)
    there.policy.known(3, process(3), there.now)
    served = there.tally.calls
    there.call(3)
    there.advance(there.now + 10.0)
    assert there.tally.calls == served + 1


@pytest.mark.parametrize("choice", CHOICES)
def test_a_node_that_left_is_not_loaded_to(choice: str) -> None:
    there = world(choice, "processes", memory_mb=20_000.0)
    there.run(calls(17, 12, 60))
    there.advance(there.now + 60.0)
    policy = there.policy
    policy.node_left(0, there.now)
    assert policy.book.ledger.nodes == [1]
    assert all(policy.book.node[place] == 1 for place in policy.book.everything())
    for step in range(200):
        at = there.now + 10.0 * step
        policy.arrived(step % 12, at)
        loads = [act for act in policy.decide(at) if isinstance(act, Load)]
        assert all(load.node == 1 for load in loads)


@pytest.mark.parametrize("choice", CHOICES)
def test_time_may_stand_still_and_go_back(choice: str) -> None:
    policy = build(choice)
    policy.node_joined(0, 5000.0, 100.0)
    policy.known(0, process(0), 100.0)
    for at in [100.0, 100.0, 90.0, 0.0, -5.0, 1e9, 5.0, 5.0, 1e-9]:
        policy.arrived(0, at)
        policy.decide(at)
        policy.placed(0, 0, 0, Level.INSTANCE, at)
        policy.began(0, 0, at)
        policy.idled(0, at)
        policy.decide(at)
        policy.dropped(0, at)
    assert not math.isnan(policy.due)
    assert policy.book.ledger.used_mb(0) >= 0.0


@pytest.mark.parametrize("choice", CHOICES)
def test_one_arrival_and_a_million_in_a_second_are_nothing_special(choice: str) -> None:
    policy = build(choice)
    policy.node_joined(0, 5000.0, 0.0)
    policy.known(0, process(0), 0.0)
    policy.known(1, process(1), 0.0)
    policy.arrived(0, 1.0)
    policy.decide(1.0)
    policy.placed(0, 1, 0, Level.INSTANCE, 1.0)
    for call in range(20_000):
        policy.arrived(1, 1.0 + 1e-6 * call)
        policy.began(0, 1, 1.0 + 1e-6 * call)
        policy.idled(0, 1.0 + 1e-6 * call)
    for at in (1.1, 5.0, 50.0, 500.0, 5000.0):
        assert all(not math.isnan(act.why.density or 0.0) for act in policy.decide(at))
        assert not math.isnan(policy.due)


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_held_can_be_explained(choice: str) -> None:
    there = world(choice, "processes", memory_mb=20_000.0)
    there.run(calls(19, 12, 100))
    for place in there.places:
        assert str(there.policy.explain(place, there.now))
    there.advance(there.now + 20.0)
    for place in there.places:
        assert str(there.policy.explain(place, there.now))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_smaller_budget_is_kept_by_new_loads(choice: str) -> None:
    there = world(choice, "processes", memory_mb=20_000.0)
    there.run(calls(23, 12, 60))
    for node in (0, 1):
        there.shrink(node, 1500.0)
        there.press(node, max(0.0, -there.ledger.free_mb(node)))
    found = calls(29, 12, 100)
    there.run((there.now + at, function) for at, function in found)
    there.advance(there.now + 100.0)
    assert all(there.ledger.used_mb(node) <= 1500.0 + SLACK_MB for node in (0, 1))


@pytest.mark.parametrize("choice", [one for one in POLICIES if one != "none"])
def test_a_function_that_is_called_every_second_is_cold_once(choice: str) -> None:
    there = world(choice, "processes", memory_mb=20_000.0)
    there.run((float(at), 1) for at in range(300))
    assert there.tally.found[Level.INSTANCE] >= 295


def test_bounds_hold_for_loads_at_once() -> None:
    """Two at once, and then none until one has ended."""
    policy = POLICIES["worth"](bounds=Bounds(at_once=2))
    policy.node_joined(0, 1e6, 0.0)
    for function in range(5):
        policy.known(function, process(function), 0.0)
    begun = [act for act in policy.decide(0.0) if isinstance(act, Load)]
    assert len(begun) == 2
    assert policy.decide(2.0) == []
    policy.failed(begun[0].id, "no", 3.0)
    more = [act for at in (3.0, 4.0, 5.0) for act in policy.decide(at)]
    assert len(more) == 1
