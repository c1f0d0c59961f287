"""InstaInfer: when it loads, where, instead of what, and what its ablations leave out."""

from __future__ import annotations

import math

import pytest

from faasd.policies.preloading import levels
from faasd.policies.preloading.actions import Action, Cancel, Load, Lower
from faasd.policies.preloading.instainfer import HORIZON_S, InstaInfer, load_after_s
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.registry import make


def profile(
    memory_mb: float, *, load_s: float = 1.0, tenant: str = "a", limit_mb: float = 2047.0
) -> Profile:
    """A sandbox of two gigabytes is booked whole, whatever is in it."""
    return levels.processes(
        sandbox_s=0.5,
        import_s=1.0,
        load_s=load_s,
        exec_s=0.1,
        memory_mb=memory_mb,
        warm_s=0.0,
        tenant=tenant,
        limit_mb=limit_mb,
        reserved=True,
    )


def ready(policy: InstaInfer, *profiles: Profile, budget_mb: float = 20_470.0) -> None:
    policy.node_joined(0, budget_mb, 0.0)
    for function, one in enumerate(profiles):
        policy.known(function, one, 0.0)


def idle(policy: InstaInfer, place: int, function: int, at: float) -> None:
    """A sandbox in which a function has run."""
    policy.placed(place, function, 0, Level.INSTANCE, at)
    policy.began(place, function, at)
    policy.idled(place, at)


def expected(policy: InstaInfer, function: int, gap_s: float, last: float) -> None:
    """A function that was called at such gaps, the last time then, and runs nowhere now."""
    for number in range(20, -1, -1):
        policy.arrived(function, last - number * gap_s)


def loads(actions: list[Action]) -> list[tuple[int, int | None]]:
    return [(one.function, one.host) for one in actions if isinstance(one, Load)]


def lowered(actions: list[Action]) -> list[int]:
    return [one.place for one in actions if isinstance(one, Lower)]


def until(policy: InstaInfer, start: float, end: float) -> list[Action]:
    """All that is decided in a time, second by second."""
    found: list[Action] = []
    at = start
    while at <= end:
        found += policy.decide(at)
        at += 1.0
    return found


def host(policy: InstaInfer, place: int, at: float, load: Load) -> None:
    policy.placed(place, load.function, 0, load.level, at, load=load.id, host=load.host)


def test_the_times_to_load_and_to_drop_of_the_paper() -> None:
    """A call every two minutes: loaded after 7.4 s, dropped after 5.63 min."""
    rate = 0.5 / 60.0
    assert load_after_s(0.06, rate) == pytest.approx(7.4, abs=0.03)
    assert load_after_s(0.94, rate) == pytest.approx(5.63 * 60.0, abs=0.3)
    assert load_after_s(0.06, rate) == pytest.approx(-math.log(1 - 0.06) / rate)


def test_a_function_is_loaded_into_an_idle_sandbox_from_t_load_on() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    assert loads(until(policy, 0.0, 7.0)) == []
    assert loads(until(policy, 8.0, 9.0)) == [(1, 0)]
    assert policy.book.ledger.used_mb(0) == 2047.0


def test_what_is_not_called_by_t_offload_is_dropped() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    (load,) = [one for one in until(policy, 0.0, 9.0) if isinstance(one, Load)]
    host(policy, 5, 10.0, load)
    assert lowered(until(policy, 10.0, 337.0)) == []
    assert lowered(until(policy, 338.0, 340.0)) == [5]


def test_a_call_takes_the_sandbox_over_and_its_owner_is_another_from_then_on() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    (load,) = [one for one in until(policy, 0.0, 9.0) if isinstance(one, Load)]
    host(policy, 5, 10.0, load)
    policy.arrived(1, 60.0)
    policy.dropped(5, 60.0)
    policy.placed(0, 1, 0, Level.INSTANCE, 60.0)
    policy.began(0, 1, 60.0)
    policy.idled(0, 61.0)
    assert policy.book.owner[0] == 1
    assert policy.book.places(0) == []
    assert lowered(until(policy, 61.0, 660.0)) == []
    assert lowered(until(policy, 661.0, 662.0)) == [0]


def test_neighbours_stay_where_there_is_room_and_go_where_there_is_none() -> None:
    """1,000 MB run in 2,047: one neighbour of 700 MB stays, of two the one worth less goes."""
    policy = InstaInfer()
    small, other = profile(600.0, load_s=1.0), profile(700.0, load_s=3.0)
    ready(policy, profile(100.0), small, other, profile(1000.0))
    for function in (1, 2, 3):
        expected(policy, function, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    policy.placed(5, 1, 0, Level.INSTANCE, 1.0, host=0)
    policy.placed(6, 2, 0, Level.INSTANCE, 1.0, host=0)
    policy.decide(1.0)
    policy.placed(0, 3, 0, Level.INSTANCE, 2.0)
    policy.began(0, 3, 2.0)
    assert lowered(policy.decide(2.0)) == [5]


def test_functions_are_placed_where_they_fit_best() -> None:
    """Of 2,047 MB, 1,500 and 900 are taken: 500 MB go to the fuller one, 900 to the other."""
    policy = InstaInfer()
    ready(policy, profile(1500.0), profile(900.0), profile(500.0), profile(900.0))
    expected(policy, 2, 60.0, 0.0)
    expected(policy, 3, 60.0, 0.0)
    idle(policy, 0, 0, 0.0)
    idle(policy, 1, 1, 0.0)
    assert dict(loads(until(policy, 0.0, 6.0))) == {2: 0, 3: 1}


def test_what_is_worth_less_is_replaced_and_enough_of_it() -> None:
    """1,100 MB need both of 500 and 400 gone, where 1,000 are the owner's."""
    policy = InstaInfer()
    ready(
        policy,
        profile(1000.0),
        profile(500.0, load_s=0.2),
        profile(400.0, load_s=0.1),
        profile(1040.0, load_s=9.0),
    )
    expected(policy, 1, 600.0, 0.0)
    expected(policy, 2, 600.0, 0.0)
    expected(policy, 3, 30.0, 0.0)
    idle(policy, 0, 0, 0.0)
    policy.placed(5, 1, 0, Level.INSTANCE, 0.5, host=0)
    policy.placed(6, 2, 0, Level.INSTANCE, 0.5, host=0)
    actions = until(policy, 1.0, 10.0)
    assert (3, 0) in loads(actions)
    assert sorted(lowered(actions)) == [5, 6]


def test_what_is_worth_more_is_not_replaced() -> None:
    policy = InstaInfer()
    ready(policy, profile(1000.0), profile(1000.0, load_s=5.0), profile(1000.0, load_s=0.1))
    expected(policy, 1, 60.0, 0.0)
    expected(policy, 2, 60.0, 0.0)
    idle(policy, 0, 0, 0.0)
    policy.placed(5, 1, 0, Level.INSTANCE, 0.5, host=0)
    assert loads(until(policy, 1.0, 30.0)) == []


def test_sandboxes_of_other_tenants_are_never_used() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0, tenant="a"), profile(900.0, tenant="b"))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    assert loads(until(policy, 0.0, 300.0)) == []


def test_worth_is_the_chance_of_a_call_within_a_minute_times_what_loading_takes() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0, load_s=2.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    policy.placed(5, 1, 0, Level.INSTANCE, 0.5, host=0)
    why = policy.explain(5, 1.0)
    assert why.chance == pytest.approx(1 - math.exp(-HORIZON_S / 120.0))
    assert why.saves_s == pytest.approx(3.0)


def test_preloads_go_before_any_sandbox_where_that_frees_memory() -> None:
    policy = InstaInfer()
    one = levels.processes(
        sandbox_s=0.5, import_s=1.0, load_s=1.0, exec_s=0.1, memory_mb=900.0, limit_mb=2047.0
    )
    ready(policy, one, one)
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    policy.placed(5, 1, 0, Level.INSTANCE, 0.5, host=0)
    policy.pressed(0, 500.0, 1.0)
    assert lowered(policy.decide(1.0)) == [5]
    policy.dropped(5, 1.0)
    policy.pressed(0, 500.0, 2.0)
    assert lowered(policy.decide(2.0)) == [0]


def test_a_function_with_a_place_of_its_own_is_not_loaded_elsewhere() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    idle(policy, 1, 1, 0.0)
    assert loads(until(policy, 0.0, 300.0)) == []


def test_without_predictor_whatever_was_called_is_placed_at_once() -> None:
    policy = make("instainfer-no-predictor")
    assert isinstance(policy, InstaInfer)
    ready(policy, profile(900.0), profile(900.0))
    policy.arrived(1, 0.0)
    idle(policy, 0, 0, 0.0)
    assert loads(until(policy, 0.0, 1.0)) == [(1, 0)]


def test_without_scheduler_a_function_gets_a_sandbox_without_others_or_none() -> None:
    policy = make("instainfer-no-scheduler")
    assert isinstance(policy, InstaInfer)
    ready(policy, profile(100.0), profile(500.0, load_s=0.1), profile(500.0, load_s=9.0))
    expected(policy, 1, 120.0, 0.0)
    expected(policy, 2, 120.0, 1.0)
    idle(policy, 0, 0, 0.0)
    actions = until(policy, 0.0, 60.0)
    assert loads(actions) == [(1, 0)]
    assert lowered(actions) == []


def test_alone_it_keeps_what_the_policy_beneath_keeps() -> None:
    policy = make("instainfer-self-only")
    assert isinstance(policy, InstaInfer)
    ready(policy, profile(900.0), profile(900.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    actions = until(policy, 0.0, 600.0)
    assert loads(actions) == []
    assert lowered(actions) == [0]


def test_the_policy_beneath_loads_ahead_too() -> None:
    """Histogram unloads and loads again by its windows; its loads are this one's to answer for."""
    policy = InstaInfer(over="histogram")
    ready(policy, profile(900.0))
    at = 0.0
    for number in range(20):
        at = 630.0 * number
        for action in policy.decide(at):
            if isinstance(action, Lower):
                policy.dropped(action.place, at)
        policy.arrived(0, at)
        idle(policy, 0, 0, at)
    assert lowered(policy.decide(at)) == [0]
    policy.dropped(0, at)
    found = [one for one in until(policy, at, at + 560.0) if isinstance(one, Load)]
    assert loads(list(found)) == [(0, None)]
    policy.placed(3, 0, 0, Level.INSTANCE, at + 560.0, load=found[0].id)
    assert lowered(until(policy, at + 560.0, at + 600.0)) == []


def test_a_load_that_takes_no_memory_of_the_node_is_not_given_up_for_any() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0), profile(100.0), budget_mb=2 * 2047.0)
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 2, 2, 0.0)
    idle(policy, 0, 0, 1.0)
    assert loads(until(policy, 1.0, 9.0)) == [(1, 0)]
    policy.pressed(0, 100.0, 9.5)
    assert lowered(policy.decide(9.5)) == [2]
    assert len(policy.loads) == 1


def test_a_load_into_a_sandbox_that_is_gone_is_no_fault_of_the_function() -> None:
    policy = InstaInfer()
    ready(policy, profile(900.0), profile(900.0))
    expected(policy, 1, 120.0, 0.0)
    idle(policy, 0, 0, 0.0)
    (load,) = [one for one in until(policy, 0.0, 9.0) if isinstance(one, Load)]
    policy.dropped(0, 9.5)
    assert [one.load for one in policy.decide(9.5) if isinstance(one, Cancel)] == [load.id]
    assert policy.loads.quarantine.listing() == {}
