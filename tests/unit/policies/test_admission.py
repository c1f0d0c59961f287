"""Places in a full queue: shares by tenant, and whom a newcomer displaces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.policies.queueing.places import Admit, Displace, Refuse
from faasd.policies.queueing.queue import CallQueue

pushes = st.lists(st.tuples(st.sampled_from(["", *"abcde"]), st.integers(-2, 2)), max_size=60)


def filled(calls: str, weights: dict[str, float] | None = None) -> CallQueue:
    """A queue with one call for each letter, whose tenant it is; ids count from 0."""
    queue = CallQueue(weights=weights)
    for call, tenant in enumerate(calls):
        queue.push(call, 0.0, tenant=tenant)
    return queue


def test_whoever_comes_is_admitted_while_there_is_a_place() -> None:
    assert filled("aaa").admit("a", places=4) == Admit()


@pytest.mark.parametrize("calls", ["aaaa", "aabb"])
def test_a_tenant_with_its_share_of_a_full_queue_is_refused(calls: str) -> None:
    queue = filled(calls)

    assert queue.admit("a", places=4) == Refuse(queued=calls.count("a"), share=calls.count("a"))


def test_a_tenant_below_its_share_displaces_the_newest_call_of_the_one_with_most() -> None:
    assert filled("aabaab").admit("c", places=6) == Displace(4)


def test_a_tenant_alone_in_the_queue_makes_room_for_another() -> None:
    queue = filled("aaaa")

    assert queue.admit("b", places=4) == Displace(3)


def test_calls_that_name_no_tenant_are_one_tenants_and_make_room_as_well() -> None:
    queue = CallQueue()
    for call in range(4):
        queue.push(call, 0.0)

    assert queue.admit("b", places=4) == Displace(3)


def test_displacing_ends_when_shares_are_equal() -> None:
    queue = filled("a" * 10)
    for call in range(10, 20):
        answer = queue.admit("b", places=10)
        if isinstance(answer, Displace):
            queue.remove(answer.call)
            queue.push(call, 0.0, tenant="b")

    assert answer == Refuse(queued=5, share=5)
    assert queue.admit("a", places=10) == Refuse(queued=5, share=5)


def test_places_follow_weights() -> None:
    queue = filled("aaabbb", {"a": 2.0})

    assert queue.admit("a", places=6) == Displace(5)
    assert queue.admit("b", places=6) == Refuse(queued=3, share=2)


def test_everybody_may_have_one_place_however_many_tenants_there_are() -> None:
    queue = filled("abcdee")

    assert queue.admit("f", places=6) == Displace(5)
    assert queue.admit("a", places=6) == Refuse(queued=1, share=1)


def test_nobody_is_displaced_where_each_holds_one_place() -> None:
    assert filled("abc").admit("d", places=3) == Refuse(queued=0, share=1)


def test_the_place_that_everybody_may_have_is_not_taken_from_a_share_that_is_kept() -> None:
    queue = filled("aab", {"a": 5.0, "b": 0.1, "c": 0.1})

    assert queue.admit("c", places=3) == Refuse(queued=0, share=1)


def test_a_tenant_of_little_weight_and_one_call_does_not_shield_one_with_many() -> None:
    queue = filled("abbbb", {"a": 0.01})

    assert queue.admit("c", places=5) == Displace(4)


def test_a_queue_without_places_refuses() -> None:
    assert CallQueue().admit("a", places=0) == Refuse(queued=0, share=0)


def test_the_victim_is_of_the_lowest_priority_that_its_tenant_has_queued() -> None:
    queue = CallQueue()
    for call, priority in enumerate([1, 0, 0, 1]):
        queue.push(call, 0.0, tenant="a", priority=priority)

    assert queue.admit("b", places=4) == Displace(2)


def test_a_tenant_may_replace_a_call_of_its_own_by_a_more_urgent_one() -> None:
    queue = filled("aabb")

    assert queue.admit("a", 1, places=4) == Displace(1)
    assert queue.admit("a", -1, places=4) == Refuse(queued=2, share=2)


def test_urgency_does_not_take_another_tenants_places() -> None:
    queue = CallQueue()
    queue.push(0, 0.0, tenant="a")
    for call in range(1, 4):
        queue.push(call, 0.0, tenant="b", priority=10)

    assert queue.admit("b", 10, places=4) == Refuse(queued=3, share=2)
    assert queue.admit("c", -10, places=4) == Displace(3)


def test_asking_changes_nothing() -> None:
    queue = filled("aaaa")

    assert queue.admit("b", places=4) == queue.admit("b", places=4)
    assert [queue.pop(0.0) for _ in range(5)] == [0, 1, 2, 3, None]


@settings(deadline=None)
@given(
    calls=pushes,
    pops=st.integers(0, 30),
    asking=st.tuples(st.sampled_from("abcdefg"), st.integers(-2, 2)),
    weights=st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from([0.01, 0.5, 2.0, 3.0])),
    short=st.integers(0, 3),
)
def test_displacement_never_hits_another_tenant_within_its_share(
    calls: list[tuple[str, int]],
    pops: int,
    asking: tuple[str, int],
    weights: dict[str, float],
    short: int,
) -> None:
    queue = CallQueue(weights=weights)
    for call, (tenant, priority) in enumerate(calls):
        queue.push(call, 0.0, tenant=tenant, priority=priority)
    out = {queue.pop(0.0) for _ in range(pops)}
    left = {call: kind for call, kind in enumerate(calls) if call not in out}
    places = max(0, len(left) - short)

    answer = queue.admit(*asking, places=places)

    present = {tenant for tenant, _ in left.values()} | {asking[0]}
    everyone = sum(weights.get(tenant, 1.0) for tenant in present)
    held = {t: sum(one == t for one, _ in left.values()) for t in present}
    share = {t: min(places, max(1.0, places * weights.get(t, 1.0) / everyone)) for t in present}
    over = [t for t in present if held[t] > share[t] + 1e-6]
    if isinstance(answer, Displace):
        victim = left[answer.call]
        assert victim[0] == asking[0] or victim[0] in over
        if victim[0] == asking[0]:
            assert victim[1] < asking[1]
        else:
            assert held[asking[0]] + 1 <= share[asking[0]] + 1e-6
    elif isinstance(answer, Refuse):
        assert answer.queued == held[asking[0]]
        assert not over or held[asking[0]] + 1 > share[asking[0]] - 1e-6
