"""The queue of a revision: what goes first, what leaves, and what it says of itself."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable
from types import FunctionType, ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.policies.queueing.call import Call
from faasd.policies.queueing.places import Displace, Refuse
from faasd.policies.queueing.queue import CallQueue, Late
from faasd.policies.queueing.slo import MOST_CLASSES
from faasd.policies.queueing.tenants import Flow


def drain(queue: CallQueue, now: float = 0.0) -> list[int]:
    """All calls in the order in which they are handed out; none ends meanwhile."""
    order = []
    while (call := queue.pop(now)) is not None:
        order.append(call)
    return order


def serve(queue: CallQueue, count: int, exec_s: Callable[[int], float]) -> list[int]:
    """So many calls in the order in which they run, one at a time."""
    order = []
    for _ in range(count):
        call = queue.pop(0.0)
        assert call is not None
        queue.finished(call, exec_s(call))
        order.append(call)
    return order


# A FIFO, as long as calls are alike.


def test_an_empty_queue_has_no_next_call() -> None:
    queue = CallQueue()

    assert queue.pop(0.0) is None
    assert len(queue) == 0
    assert queue.oldest_arrival() is None
    assert queue.next_deadline() is None


def test_calls_of_one_kind_go_in_order_of_arrival() -> None:
    queue = CallQueue()
    for call in (7, 3, 5):
        queue.push(call, 1.0)

    assert drain(queue) == [7, 3, 5]


def test_equal_calls_stay_a_plain_fifo_and_say_so() -> None:
    queue = CallQueue()
    for call in range(3):
        queue.push(call, float(call), tenant="a", slo_s=0.5, priority=2)
    queue.pop(3.0)

    assert queue.statistics().plain
    assert repr(queue) == "<CallQueue 2 queued of 1 tenants, 1 handed out, FIFO>", (
        "fits on a line and is what tests and operators read"
    )


def test_deadlines_that_come_in_order_keep_the_queue_a_plain_fifo() -> None:
    queue = CallQueue()
    for call in range(3):
        queue.push(call, float(call), deadline=call + 5.0)

    assert queue.statistics().plain
    assert queue.next_deadline() == 5.0
    assert drain(queue) == [0, 1, 2]


def test_a_call_of_another_kind_ends_the_plain_fifo_until_the_queue_is_empty() -> None:
    queue = CallQueue()
    queue.push(1, 0.0)
    queue.push(2, 0.0, tenant="b", slo_s=0.1, priority=1)

    assert repr(queue) == (
        "<CallQueue 2 queued of 2 tenants, 0 handed out, 2 priorities, 2 SLO classes>"
    )
    drain(queue)
    assert queue.statistics().plain


@pytest.mark.parametrize("other", [{}, {"tenant": "b"}, {"deadline": 3.0}])
def test_the_oldest_arrival_is_told_whatever_goes_first(other: dict[str, float | str]) -> None:
    queue = CallQueue()
    queue.push(1, 1.0)
    queue.push(2, 2.0, priority=1 if other else 0)
    queue.push(3, 3.0, **other)  # type: ignore[arg-type]

    assert queue.oldest_arrival() == 1.0
    queue.remove(1)
    assert queue.oldest_arrival() == 2.0


@pytest.mark.parametrize("tenant", ["", "other"])
def test_a_call_has_its_arrival_while_it_is_queued_or_handed_out(tenant: str) -> None:
    queue = CallQueue()
    queue.push(1, 4.0)
    queue.push(2, 5.0, tenant=tenant)

    assert (queue.arrival(1), queue.arrival(2)) == (4.0, 5.0)
    assert queue.pop(6.0) == 1
    assert queue.arrival(1) == 4.0
    queue.finished(1, 1.0)
    assert queue.arrival(1) is None


# Leaving and coming back.


@pytest.mark.parametrize("tenant", ["", "other"])
def test_a_removed_call_is_not_handed_out(tenant: str) -> None:
    queue = CallQueue()
    for call in range(3):
        queue.push(call, 0.0, tenant=tenant if call == 2 else "")

    assert queue.remove(1)
    assert not queue.remove(1)
    assert len(queue) == 2
    assert drain(queue) == [0, 2]


def test_a_call_that_was_handed_out_is_not_queued_any_more() -> None:
    queue = CallQueue()
    queue.push(1, 0.0)
    queue.pop(0.0)

    assert not queue.remove(1)


@settings(deadline=None)
@given(returned=st.permutations([0, 1, 2]), other=st.sampled_from(["", "other"]))
def test_calls_that_did_not_start_go_where_they_were(returned: list[int], other: str) -> None:
    queue = CallQueue()
    for call in range(3):
        queue.push(call, float(call))
    assert drain(queue, 3.0) == [0, 1, 2]
    queue.push(3, 3.0, tenant=other)
    for call in returned:
        queue.requeue(call)
    queue.remove(3)
    queue.push(4, 4.0)

    assert queue.oldest_arrival() == 0.0
    assert drain(queue, 5.0) == [0, 1, 2, 4]


def test_a_call_that_did_not_start_keeps_its_deadline() -> None:
    queue = CallQueue()
    queue.push(1, 0.0, deadline=5.0)
    queue.push(2, 0.0, deadline=9.0)
    queue.pop(0.0)
    queue.requeue(1)

    assert queue.next_deadline() == 5.0
    assert [late.call for late in queue.expired(6.0)] == [1]


def test_a_call_that_is_not_out_cannot_come_back_or_finish() -> None:
    queue = CallQueue()
    queue.push(1, 0.0)

    queue.requeue(1)
    queue.finished(1, 3.0)
    queue.requeue(9)

    assert drain(queue) == [1]


@pytest.mark.parametrize("tenant", ["", "other"])
def test_clearing_tells_all_queued_calls_in_order_of_arrival(tenant: str) -> None:
    queue = CallQueue()
    queue.push(5, 0.0)
    queue.push(4, 1.0, tenant=tenant)
    queue.push(3, 2.0, priority=1 if tenant else 0)

    assert queue.clear() == [5, 4, 3]
    assert len(queue) == 0
    assert queue.clear() == []


# Priorities.


def test_the_highest_priority_goes_first() -> None:
    queue = CallQueue()
    for call, priority in enumerate([0, -10, 10, 3, 10]):
        queue.push(call, 0.0, priority=priority)

    assert drain(queue) == [2, 4, 3, 0, 1]


def test_one_call_in_so_many_comes_from_a_lower_priority() -> None:
    queue = CallQueue(turns=4)
    for call in range(9):
        queue.push(call, 0.0, priority=1)
    queue.push(100, 0.0, priority=0)
    queue.push(101, 0.0, priority=0)

    assert drain(queue) == [0, 1, 2, 100, 3, 4, 5, 101, 6, 7, 8]


@settings(deadline=None)
@given(
    turns=st.integers(2, 8),
    lower=st.sets(st.integers(-10, 9), min_size=1, max_size=6),
    pops=st.integers(1, 150),
)
def test_no_priority_starves_however_many_urgent_calls_come(
    turns: int, lower: set[int], pops: int
) -> None:
    queue = CallQueue(turns=turns)
    priorities = {1000 + index: priority for index, priority in enumerate([*lower] * pops)}
    for call, priority in priorities.items():
        queue.push(call, 0.0, priority=priority)
    unserved = dict.fromkeys(lower, 0)
    urgent = 0
    for number in range(pops):
        queue.push(number, 0.0, priority=10)
        [call] = serve(queue, 1, lambda _: 1.0)
        urgent += call < 1000
        for priority in unserved:
            unserved[priority] += 1
        unserved[priorities.get(call, 10)] = 0
        unserved.pop(10, None)

        assert max(unserved.values()) < turns * len(lower)
    assert urgent >= pops * (turns - 1) // turns


@pytest.mark.parametrize("priority", [-11, 11, 1000])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    with pytest.raises(ValueError, match="not within -10 and 10"):
        CallQueue().push(1, 0.0, priority=priority)


@pytest.mark.parametrize("slo_s", [0.0, -1.0, float("inf"), float("nan")])
def test_an_slo_that_is_no_time_to_wait_is_refused(slo_s: float) -> None:
    with pytest.raises(ValueError, match="SLO"):
        CallQueue().push(1, 0.0, slo_s=slo_s)
    with pytest.raises(ValueError, match="SLO"):
        CallQueue(default_slo_s=slo_s)


@pytest.mark.parametrize("before", [None, 1.0])
def test_a_deadline_that_is_no_number_is_refused(before: float | None) -> None:
    queue = CallQueue()
    queue.push(1, 0.0, deadline=before)

    with pytest.raises(ValueError, match="deadline"):
        queue.push(2, 0.0, deadline=float("nan"))
    assert drain(queue) == [1]


def test_a_guard_that_leaves_nothing_to_the_highest_priority_is_refused() -> None:
    with pytest.raises(ValueError, match="turns = 1"):
        CallQueue(turns=1)


# SLO classes and deadlines.


def test_the_class_whose_head_waited_the_largest_part_of_its_slo_goes_first() -> None:
    """R13 of RackSched's rules: SLOs of 50, 500, 5000 us; heads that waited 40, 300, 1000 us."""
    queue = CallQueue()
    queue.push(2, 0.0, slo_s=5000e-6)
    queue.push(1, 700e-6, slo_s=500e-6)
    queue.push(0, 960e-6, slo_s=50e-6)

    assert drain(queue, 1000e-6) == [0, 1, 2]


def test_a_class_whose_calls_waited_longer_overtakes_one_with_a_shorter_slo() -> None:
    queue = CallQueue()
    queue.push(1, 0.0, slo_s=10.0)
    queue.push(2, 9.95, slo_s=0.1)

    assert queue.pop(10.0) == 1


def test_calls_without_slo_have_the_default_one() -> None:
    queue = CallQueue(default_slo_s=2.0)
    queue.push(1, 0.0)
    queue.push(2, 0.0, slo_s=4.0)
    queue.push(3, 0.0, slo_s=1.0)

    assert drain(queue, 1.0) == [3, 1, 2]


def test_inside_a_class_the_earliest_deadline_goes_first_and_equals_by_arrival() -> None:
    queue = CallQueue()
    for call, deadline in enumerate([9.0, 4.0, 6.0, 4.0]):
        queue.push(call, 0.0, slo_s=1.0, deadline=deadline)

    assert drain(queue) == [1, 3, 2, 0]


def test_a_call_without_deadline_counts_as_due_when_its_slo_is_spent() -> None:
    queue = CallQueue()
    queue.push(1, 0.0, slo_s=5.0, deadline=6.0)
    queue.push(2, 0.5, slo_s=5.0)
    queue.push(3, 0.5, slo_s=5.0, deadline=2.0)

    assert drain(queue, 1.0) == [3, 2, 1]


def test_any_number_of_slos_makes_a_bounded_number_of_classes() -> None:
    queue = CallQueue()
    for call in range(1000):
        queue.push(call, 0.0, slo_s=1.0 + call / 7)

    assert queue.statistics().slo_classes == MOST_CLASSES
    assert sorted(drain(queue)) == list(range(1000))


# Dropping.


@pytest.mark.parametrize("deadlines", [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
def test_calls_are_dropped_once_their_deadline_passed(deadlines: list[float]) -> None:
    queue = CallQueue()
    for call, deadline in enumerate(deadlines):
        queue.push(call, 0.0, deadline=deadline)

    assert queue.expired(0.999) == []
    assert queue.expired(2.0) == [
        Late(deadlines.index(1.0), 0.0),
        Late(deadlines.index(2.0), 0.0),
    ]
    assert drain(queue) == [deadlines.index(3.0)]


@pytest.mark.parametrize("first", [5.0, 50.0])
def test_a_call_that_cannot_make_its_deadline_is_dropped_early(first: float) -> None:
    queue = CallQueue()
    queue.push(1, 0.0, deadline=first)
    queue.push(2, 0.0, deadline=8.0)

    late = queue.expired(4.0, exec_s=4.0)

    assert Late(2, 4.0) in late
    assert len(late) == (2 if first < 8.0 else 1), "one that may just end too late is dropped too"


def test_a_call_without_deadline_is_never_dropped() -> None:
    queue = CallQueue()
    queue.push(1, 0.0, slo_s=0.001)

    assert queue.expired(1e9, exec_s=1e9) == []


@settings(deadline=None)
@given(
    deadlines=st.lists(st.floats(0, 100), max_size=8),
    now=st.floats(0, 100),
    exec_s=st.none() | st.floats(0, 100),
)
def test_the_next_deadline_is_when_something_will_be_dropped(
    deadlines: list[float], now: float, exec_s: float | None
) -> None:
    queue = CallQueue()
    for call, deadline in enumerate(deadlines):
        queue.push(call, 0.0, deadline=deadline)

    while (due := queue.next_deadline(exec_s=exec_s)) is not None and due <= now:
        assert queue.expired(max(0.0, due), exec_s=exec_s)
    assert queue.expired(now, exec_s=exec_s) == []


# Fair shares.


def test_a_tenant_that_comes_late_gets_the_next_turn() -> None:
    queue = CallQueue()
    for call in range(100):
        queue.push(call, 0.0, tenant="loud")
    assert queue.pop(0.0) == 0
    queue.push(100, 1.0, tenant="quiet")

    assert queue.pop(1.0) == 100


def test_tenants_share_execution_time_not_calls() -> None:
    queue = CallQueue()
    for call in range(40):
        queue.push(call, 0.0, tenant="long" if call % 2 else "short")

    order = serve(queue, 22, lambda call: 1.0 if call % 2 else 0.1)

    used = {odd: sum(1.0 if odd else 0.1 for call in order if call % 2 == odd) for odd in (0, 1)}
    assert used[0] == pytest.approx(used[1], abs=1.1)


def test_what_a_tenant_gets_follows_its_weight() -> None:
    queue = CallQueue(weights={"gold": 3.0})
    for call in range(80):
        queue.push(call, 0.0, tenant="gold" if call % 2 else "basic")

    order = serve(queue, 40, lambda _: 0.5)

    assert sum(call % 2 for call in order) == pytest.approx(30, abs=1)


def test_weights_are_read_when_a_tenant_comes_to_have_calls() -> None:
    weights: dict[str, float] = {}
    queue = CallQueue(weights=weights)
    weights["gold"] = 3.0
    for call in range(80):
        queue.push(call, 0.0, tenant="gold" if call % 2 else "basic")

    assert sum(call % 2 for call in serve(queue, 40, lambda _: 0.5)) == pytest.approx(30, abs=1)


def test_calls_under_way_count_by_what_such_calls_took_before() -> None:
    queue = CallQueue()
    for call in range(20):
        queue.push(call, 0.0, tenant="long" if call % 2 else "short")
    serve(queue, 4, lambda call: 10.0 if call % 2 else 0.1)

    handed_out = [queue.pop(0.0) or 0 for _ in range(6)]

    assert sum(call % 2 for call in handed_out) == 0, "two long calls are worth 200 short ones"


def test_an_idle_tenant_gathers_no_credit() -> None:
    queue = CallQueue()
    for call in range(200):
        queue.push(call, 0.0, tenant="busy")
    queue.push(1000, 0.0, tenant="idle")
    serve(queue, 51, lambda _: 1.0)
    for call in range(1001, 1021):
        queue.push(call, 51.0, tenant="idle")

    order = serve(queue, 20, lambda _: 1.0)

    assert sum(call > 1000 for call in order) == pytest.approx(10, abs=1)


def test_going_idle_clears_no_debt() -> None:
    queue = CallQueue()
    for call in range(100):
        queue.push(call, 0.0, tenant="steady")
    queue.push(1000, 0.0, tenant="costly")
    while queue.arrival(1000) is not None:
        serve(queue, 1, lambda call: 20.0 if call == 1000 else 1.0)
    queue.push(1001, 0.0, tenant="costly")

    order = serve(queue, 25, lambda _: 1.0)

    assert order.index(1001) >= 18


def test_a_call_that_did_not_start_costs_its_tenant_nothing() -> None:
    queue = CallQueue()
    for call in range(8):
        queue.push(call, 0.0, tenant="ab"[call % 2])
    serve(queue, 2, lambda _: 1.0)
    assert queue.pop(0.0) == 2
    queue.requeue(2)

    assert [queue.pop(0.0), queue.pop(0.0)] in ([2, 3], [3, 2])


@settings(deadline=None)
@given(
    slots=st.integers(1, 4),
    weights=st.tuples(st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.5, 1.0, 4.0])),
    longest=st.tuples(st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.1, 1.0, 10.0])),
    joins=st.integers(0, 60),
    dice=st.randoms(use_true_random=False),
)
def test_what_two_backlogged_tenants_used_never_differs_by_more_than_a_constant(
    slots: int,
    weights: tuple[float, float],
    longest: tuple[float, float],
    joins: int,
    dice: random.Random,
) -> None:
    """However long both are backlogged, and however unlike their calls are."""
    queue = CallQueue(weights=dict(zip("ab", weights, strict=True)))
    tenants: dict[int, int] = {}

    def push(tenant: int) -> None:
        tenants[len(tenants)] = tenant
        queue.push(len(tenants) - 1, 0.0, tenant="ab"[tenant])

    used = [0.0, 0.0]
    running: list[int] = []
    bound = (2 * slots + 1) * sum(
        most / weight for most, weight in zip(longest, weights, strict=True)
    )
    for _ in range(5):
        push(0)
    for step in range(200):
        if step == joins:
            used = [0.0, 0.0]
            for _ in range(5):
                push(1)
        while len(running) < slots and (call := queue.pop(0.0)) is not None:
            push(tenants[call])
            running.append(call)
        done = running.pop(dice.randrange(len(running)))
        if dice.random() < 0.1:
            queue.requeue(done)
            continue
        exec_s = longest[tenants[done]] * dice.random()
        queue.finished(done, exec_s)
        used[tenants[done]] += exec_s / weights[tenants[done]]
        if step > joins:
            assert abs(used[0] - used[1]) <= bound


def test_of_a_great_many_idle_tenants_those_that_owe_most_are_remembered() -> None:
    queue = CallQueue()
    for call in range(-100, 0):
        queue.push(call, 0.0, tenant="steady")
    queue.push(0, 0.0, tenant="costly")
    while queue.arrival(0) is not None:
        serve(queue, 1, lambda call: 1.0 if call else 20.0)
    for call in range(1, 500):
        queue.push(call, 0.0, tenant=f"passing {call}")
        serve(queue, 1, lambda _: 1.0)
    queue.push(1000, 0.0, tenant="costly")

    assert serve(queue, 15, lambda _: 1.0).count(1000) == 0


def test_a_tenant_that_was_forgotten_gets_no_advance_back_that_it_no_longer_owes() -> None:
    queue = CallQueue()
    for call in range(-100, 0):
        queue.push(call, 0.0, tenant="steady")
    queue.push(0, 0.0, tenant="back")
    serve(queue, 1, lambda _: 1000.0)
    assert queue.pop(0.0) == 0
    for call in range(1, 500):
        queue.push(call, 0.0, tenant=f"passing {call}")
        serve(queue, 1, lambda _: 2000.0)
    queue.push(1000, 0.0, tenant="back")
    queue.finished(0, 1100.0)

    assert queue.pop(0.0) in range(-100, 0), "it owes 1100 s, and the steady one 1000 s"


def test_a_tenant_of_no_weight_counts_as_one_of_the_least() -> None:
    queue = CallQueue(weights={"none": 0.0, "less": -1.0})
    for call, tenant in enumerate(["none", "less", "a", "a", "none", "less"]):
        queue.push(call, 0.0, tenant=tenant)

    assert serve(queue, 6, lambda _: 1.0)[-2:] == [4, 5]


# Memory.


def reachable(queue: CallQueue) -> Counter[type]:
    """What the queue holds on to, by type."""
    seen: dict[int, object] = {}
    found: list[object] = [queue]
    while found:
        one = found.pop()
        if id(one) not in seen and not isinstance(one, type | FunctionType | ModuleType):
            seen[id(one)] = one
            found += gc.get_referents(one)
    return Counter(type(one) for one in seen.values())


@pytest.mark.parametrize("kept", [1, 100])
def test_memory_follows_the_calls_that_are_there_not_those_that_were(kept: int) -> None:
    """In a busy period without end, where every call is of a tenant of its own."""
    queue = CallQueue(turns=1_000_000)
    for call in range(-kept, 0):
        queue.push(call, 0.0, tenant=f"kept {call}", priority=-1)
    for call in range(5_000):
        queue.push(
            call,
            0.0,
            tenant=f"tenant {call}",
            slo_s=1.0 + call % 50,
            priority=call % 3,
            deadline=1e6 - call,
        )
        if call % 2:
            queue.remove(call)
        else:
            serve(queue, 1, lambda _: 1.0)

    found = reachable(queue)
    assert len(queue) == kept
    assert found[Call] <= 2 * kept + 100
    assert found[Flow] <= 2 * kept + 400
    assert found.total() <= 40 * (2 * kept + 400)


def test_memory_follows_the_calls_when_each_is_charged_and_comes_again() -> None:
    queue = CallQueue()
    for call in range(10):
        queue.push(call, 0.0, tenant=f"tenant {call % 2}")
    for call in range(10, 5_000):
        queue.requeue(queue.pop(0.0) or 0)
        serve(queue, 1, lambda _: 1.0)
        queue.push(call, 0.0, tenant=f"tenant {call % 2}")

    found = reachable(queue)
    assert found[Call] <= 100
    assert found.total() <= 2_000


def test_memory_follows_the_calls_when_none_ever_starts() -> None:
    queue = CallQueue()
    for call in range(10):
        queue.push(call, 0.0, tenant=f"tenant {call % 2}")
    serve(queue, 2, lambda _: 1.0)
    for _ in range(5_000):
        queue.requeue(queue.pop(0.0) or 0)

    assert reachable(queue).total() <= 2_000


def test_memory_follows_the_calls_where_small_tenants_come_and_go_beside_a_large_one() -> None:
    queue = CallQueue()
    for call in range(-50, 0):
        queue.push(call, 0.0, tenant="large")
    for call in range(0, 5_000, 5):
        for number in range(call, call + 5):
            queue.push(number, 0.0, tenant="small")
        for number in range(call, call + 5):
            queue.remove(number)

    assert reachable(queue).total() <= 2_000


def test_memory_follows_the_calls_where_a_full_queue_is_asked_again_and_again() -> None:
    queue = CallQueue()
    for call in range(5_000):
        tenant = "ab"[call // 50 % 2]
        answer = queue.admit(tenant, places=50)
        if isinstance(answer, Displace):
            queue.remove(answer.call)
        if not isinstance(answer, Refuse):
            queue.push(call, 0.0, tenant=tenant)
        if call % 3 == 0:
            serve(queue, 1, lambda _: 1.0)

    assert len(queue) <= 50
    assert reachable(queue).total() <= 2_000
