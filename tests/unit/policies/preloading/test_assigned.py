"""Policies by function, in one memory."""

from __future__ import annotations

import pytest

from faasd.policies.preloading import levels
from faasd.policies.preloading.actions import Cancel, Load, Lower, Why
from faasd.policies.preloading.assigned import Assigned
from faasd.policies.preloading.levels import Level

ONE = levels.processes(sandbox_s=0.5, import_s=0.5, load_s=2.5, exec_s=0.1, memory_mb=500.0)


def ready(policy: Assigned, functions: int, budget_mb: float) -> None:
    policy.node_joined(0, budget_mb, 0.0)
    for function in range(functions):
        policy.known(function, ONE, 0.0)


def served(policy: Assigned, place: int, function: int, at: float) -> None:
    policy.arrived(function, at)
    if not policy.book.is_there(place):
        policy.placed(place, function, 0, Level.INSTANCE, at)
    policy.began(place, function, at)
    policy.idled(place, at)


def lowered(policy: Assigned, at: float) -> list[int]:
    return [one.place for one in policy.decide(at) if isinstance(one, Lower)]


def test_each_function_is_kept_as_its_own_policy_says() -> None:
    policy = Assigned("fixed:idle_s=600")
    policy.assign(1, "fixed:idle_s=60")
    ready(policy, 2, 5000.0)
    served(policy, 0, 0, 0.0)
    served(policy, 1, 1, 0.0)
    assert lowered(policy, 59.0) == []
    assert lowered(policy, 60.0) == [1]
    policy.dropped(1, 60.0)
    assert lowered(policy, 599.0) == []
    assert lowered(policy, 600.0) == [0]


def test_functions_of_one_choice_share_one_policy() -> None:
    policy = Assigned("fixed")
    policy.assign(1, "greedy-dual")
    policy.assign(2, "greedy-dual")
    assert policy.policy_of(1) is policy.policy_of(2)
    assert len(policy.policies) == 2


def test_a_choice_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        Assigned("fixed").assign(1, "best")


def test_what_the_others_hold_is_not_free_to_load_into() -> None:
    """The cluster's policy would load its function ahead, were there not another's in the memory."""
    policy = Assigned("worth")
    policy.assign(1, "fixed")
    policy.node_joined(0, 900.0, 0.0)
    policy.known(1, ONE, 0.0)
    served(policy, 0, 1, 0.0)
    policy.decide(0.0)
    policy.known(0, ONE, 1.0)
    begun = [one for one in policy.decide(1.0) if isinstance(one, Load)]
    assert all(one.level < Level.INSTANCE for one in begun)


def test_under_pressure_the_clusters_policy_gives_first() -> None:
    policy = Assigned("fixed:idle_s=600")
    policy.assign(0, "fixed:idle_s=6000")
    ready(policy, 2, 5000.0)
    served(policy, 0, 0, 0.0)
    served(policy, 1, 1, 10.0)
    policy.pressed(0, 400.0, 20.0)
    assert lowered(policy, 20.0) == [1]
    policy.dropped(1, 20.0)
    policy.pressed(0, 400.0, 21.0)
    assert lowered(policy, 21.0) == [0]


def test_a_load_that_failed_is_no_more_tried_by_the_policy_that_wanted_it() -> None:
    policy = Assigned("fixed")
    policy.assign(0, "worth")
    ready(policy, 1, 5000.0)
    (load,) = [one for one in policy.decide(0.0) if isinstance(one, Load)]
    policy.failed(load.id, "out of memory", 1.0)
    again = [one for at in range(1, 30) for one in policy.decide(float(at))]
    assert again == []
    assert policy.policy_of(0).loads.quarantine.listing()[0, 0].reason == "out of memory"
    assert policy.loads.quarantine.listing()[0, 0].reason == "out of memory"


def test_a_place_taken_by_another_function_goes_by_the_others_policy() -> None:
    policy = Assigned("fixed:idle_s=60")
    policy.assign(1, "fixed:idle_s=600")
    ready(policy, 2, 5000.0)
    served(policy, 0, 0, 0.0)
    policy.placed(0, 1, 0, Level.INSTANCE, 10.0)
    served(policy, 0, 1, 10.0)
    assert lowered(policy, 609.0) == []
    assert lowered(policy, 610.0) == [0]
    assert policy.explain(0, 10.0).rule.startswith("kept for another")


def test_a_load_that_hangs_is_no_more_tried_by_the_policy_that_wanted_it() -> None:
    policy = Assigned("fixed")
    policy.assign(0, "worth")
    ready(policy, 1, 5000.0)
    (load,) = [one for one in policy.decide(0.0) if isinstance(one, Load)]
    assert [one for one in policy.decide(60.0) if isinstance(one, Cancel)] == [
        Cancel(load.id, Why("the load is overdue"))
    ]
    fault = policy.policy_of(0).loads.quarantine.listing()[0, 0]
    assert fault.reason == "not done after 60 s"
