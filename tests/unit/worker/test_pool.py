"""The pool's decisions, one at a time: what it answers to each event, read from its actions."""

from __future__ import annotations

import pytest

from faasd.errors import QueueFull
from faasd.invocation import StartKind
from faasd.policies.keepalive import FixedKeepAlive
from worker.pool import (
    Action,
    CloseSandbox,
    Dispatch,
    Expire,
    Fail,
    Fork,
    OpenSandbox,
    Pool,
    PoolLimits,
    SandboxState,
    Stop,
)


def cold(
    *,
    keep_alive_s: float = 60.0,
    concurrency: int = 1,
    max_instances: int = 8,
    min_instances: int = 0,
    queue: int = 1000,
    batch: int = 1,
    batch_wait_s: float = 0.0,
    template_keep_alive_s: float = 600.0,
) -> Pool:
    limits = PoolLimits(
        concurrency=concurrency,
        max_instances=max_instances,
        min_instances=min_instances,
        queue=queue,
        batch=batch,
        batch_wait_s=batch_wait_s,
        template_keep_alive_s=template_keep_alive_s,
    )
    return Pool(limits, FixedKeepAlive(keep_alive_s))


def warmed(pool: Pool, *, instances: int = 1, now: float = 0.0) -> Pool:
    """The pool with a sandbox and idle instances, numbered from 1, that are ready at `now`."""
    floor, pool.min_instances = pool.min_instances, instances
    pool.decide(now)
    pool.sandbox_ready(StartKind.COLD, now)
    for action in pool.decide(now):
        assert isinstance(action, Fork)
        pool.instance_ready(action.instance, now)
    pool.min_instances = floor
    return pool


def opened(pool: Pool, *, now: float = 0.0) -> Pool:
    """The pool with a sandbox and nothing in it."""
    pool.hold_template(hold=True)
    pool.decide(now)
    pool.sandbox_ready(StartKind.COLD, now)
    pool.hold_template(hold=False)
    return pool


def calls_of(actions: list[Action]) -> list[tuple[int, ...]]:
    return [action.calls for action in actions if isinstance(action, Dispatch)]


def kinds_of(actions: list[Action]) -> list[StartKind]:
    return [kind for action in actions if isinstance(action, Dispatch) for kind in action.kinds]


def forks_of(actions: list[Action]) -> list[int]:
    return [action.instance for action in actions if isinstance(action, Fork)]


def served(pool: Pool, call: int, *, begin: float, end: float) -> None:
    """Let an idle instance serve a call, so that the pool has measured one."""
    pool.arrive(call, begin)
    assert calls_of(pool.decide(begin)) == [(call,)]
    pool.finished(call, end)


def test_an_untouched_pool_does_nothing_and_waits_for_nothing() -> None:
    pool = cold()

    actions = pool.decide(0.0)

    assert actions == []
    assert pool.next_wakeup(0.0) is None
    assert pool.empty


def test_its_repr_says_what_is_here() -> None:
    pool = warmed(cold(max_instances=1))

    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)

    assert repr(pool) == (
        "<Pool ready, instances: 0 starting, 0 idle, 1 busy, calls: 1 queued, 1 running>"
    )


def test_the_first_call_opens_the_sandbox() -> None:
    pool = cold()

    pool.arrive(1, 0.0)

    assert pool.decide(0.0) == [OpenSandbox()]


def test_further_calls_open_no_second_sandbox() -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    pool.decide(0.0)

    pool.arrive(2, 0.1)

    assert pool.decide(0.1) == []


def test_a_ready_sandbox_forks_an_instance_for_each_waiting_call() -> None:
    pool = cold()
    for call in (1, 2, 3):
        pool.arrive(call, 0.0)
    pool.decide(0.0)

    pool.sandbox_ready(StartKind.COLD, 1.0)

    assert pool.decide(1.0) == [Fork(1), Fork(2), Fork(3)]


def test_a_burst_on_a_cold_pool_opens_one_sandbox_and_starts_no_more_than_it_may() -> None:
    pool = cold(max_instances=2)
    actions: list[Action] = []

    for call in range(64):
        pool.arrive(call, 0.0)
        actions += pool.decide(0.0)
    pool.sandbox_ready(StartKind.COLD, 1.0)
    actions += pool.decide(1.0)
    actions += pool.decide(1.1)

    assert actions == [OpenSandbox(), Fork(1), Fork(2)]
    assert pool.statistics().queued == 64


def test_instances_that_share_are_forked_for_as_many_calls_as_they_take() -> None:
    pool = opened(cold(concurrency=4))

    for call in range(9):
        pool.arrive(call, 0.0)

    assert len(forks_of(pool.decide(0.0))) == 3


def test_starting_instances_count_as_there() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    pool.decide(0.0)

    pool.arrive(2, 0.0)

    assert forks_of(pool.decide(0.0)) == [2]


def test_a_pool_that_may_not_grow_keeps_to_the_instances_it_has() -> None:
    pool = warmed(cold())
    pool.may_grow = False

    for call in range(3):
        pool.arrive(call, 1.0)

    assert forks_of(pool.decide(1.0)) == []


def test_a_pool_that_may_not_grow_still_starts_when_it_has_no_instance() -> None:
    pool = opened(cold(max_instances=1))
    pool.may_grow = False

    pool.arrive(1, 1.0)

    assert forks_of(pool.decide(1.0)) == [1]


def test_a_queue_that_empties_sooner_than_a_fork_takes_starts_nothing() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.instance_ready(1, 1.0)
    pool.decide(1.0)
    pool.finished(1, 1.001)

    for call in range(10, 20):
        pool.arrive(call, 2.0)

    assert forks_of(pool.decide(2.0)) == []


def test_a_queue_that_did_not_empty_as_expected_starts_instances_after_all() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.instance_ready(1, 1.0)
    pool.decide(1.0)
    pool.finished(1, 1.001)
    for call in range(10, 20):
        pool.arrive(call, 2.0)
    pool.decide(2.0)

    due = pool.next_wakeup(2.0)

    assert due == 3.0
    assert len(forks_of(pool.decide(3.0))) == 7


def test_a_minimum_of_instances_is_started_without_any_call() -> None:
    pool = cold(min_instances=2)

    first = pool.decide(0.0)
    pool.sandbox_ready(StartKind.COLD, 1.0)

    assert first == [OpenSandbox()]
    assert pool.decide(1.0) == [Fork(1), Fork(2)]


def test_a_held_template_is_opened_without_any_call_and_without_an_instance() -> None:
    pool = cold()
    pool.hold_template(hold=True)

    first = pool.decide(0.0)
    pool.sandbox_ready(StartKind.COLD, 1.0)

    assert first == [OpenSandbox()]
    assert pool.decide(10_000.0) == []


def test_a_ready_instance_gets_the_oldest_call() -> None:
    pool = opened(cold(max_instances=1))
    pool.arrive(7, 0.0)
    pool.arrive(8, 0.0)
    pool.decide(0.0)

    pool.instance_ready(1, 1.0)

    assert calls_of(pool.decide(1.0)) == [(7,)]


def test_the_most_recently_used_instance_is_taken_first() -> None:
    pool = warmed(cold(), instances=3)
    for call in (1, 2, 3):
        pool.arrive(call, 1.0)
    serves = {a.calls[0]: a.instance for a in pool.decide(1.0) if isinstance(a, Dispatch)}
    for call, end in ((1, 4.0), (2, 6.0), (3, 5.0)):
        pool.finished(call, end)

    pool.arrive(4, 7.0)

    [dispatch] = pool.decide(7.0)
    assert isinstance(dispatch, Dispatch)
    assert dispatch.instance == serves[2]


def test_a_shared_instance_is_filled_before_an_idle_one_is_used() -> None:
    pool = warmed(cold(concurrency=2), instances=2)
    pool.arrive(1, 1.0)
    [first] = pool.decide(1.0)
    assert isinstance(first, Dispatch)

    pool.arrive(2, 2.0)

    [second] = pool.decide(2.0)
    assert isinstance(second, Dispatch)
    assert second.instance == first.instance


def test_an_instance_never_gets_more_calls_than_it_shares() -> None:
    pool = warmed(cold(concurrency=3, max_instances=1))

    for call in range(5):
        pool.arrive(call, 1.0)
    actions = pool.decide(1.0)

    assert calls_of(actions) == [(0, 1, 2)]
    assert pool.statistics().queued == 2


def test_a_shared_instance_takes_the_next_call_when_one_of_its_calls_ends() -> None:
    pool = warmed(cold(concurrency=2, max_instances=1))
    for call in (1, 2, 3):
        pool.arrive(call, 1.0)
    pool.decide(1.0)

    pool.finished(1, 2.0)

    assert calls_of(pool.decide(2.0)) == [(3,)]


def test_a_full_batch_goes_at_once() -> None:
    pool = warmed(cold(batch=3, batch_wait_s=1.0, max_instances=1))

    for call in (1, 2, 3, 4):
        pool.arrive(call, 1.0)

    assert calls_of(pool.decide(1.0)) == [(1, 2, 3)]


def test_a_batch_waits_for_more_calls_until_its_time_is_over() -> None:
    pool = warmed(cold(batch=3, batch_wait_s=0.5))
    pool.arrive(1, 1.0)
    early = pool.decide(1.0)
    pool.arrive(2, 1.25)

    due = pool.next_wakeup(1.25)

    assert calls_of(early) == []
    assert due == 1.5
    assert calls_of(pool.decide(due)) == [(1, 2)]


def test_a_batch_under_way_takes_no_further_call() -> None:
    pool = warmed(cold(batch=3, max_instances=1))
    pool.arrive(1, 1.0)
    pool.decide(1.0)

    pool.arrive(2, 2.0)

    assert calls_of(pool.decide(2.0)) == []


def test_an_instance_is_idle_only_once_every_call_of_its_batch_is_answered() -> None:
    pool = warmed(cold(batch=2))
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)

    pool.finished(1, 2.0)
    after_one = pool.statistics()
    pool.finished(2, 3.0)

    assert (after_one.busy, after_one.idle) == (1, 0)
    assert pool.statistics().idle == 1


@pytest.mark.parametrize("kind", [StartKind.COLD, StartKind.POOLED])
def test_a_call_that_waited_for_the_sandbox_is_of_the_sandboxs_kind(kind: StartKind) -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.sandbox_ready(kind, 1.0)
    pool.decide(1.0)

    pool.instance_ready(1, 2.0)

    assert kinds_of(pool.decide(2.0)) == [kind]


def test_a_call_that_found_a_template_is_a_fork() -> None:
    pool = opened(cold(), now=0.0)
    pool.arrive(1, 1.0)
    pool.decide(1.0)

    pool.instance_ready(1, 1.1)

    assert kinds_of(pool.decide(1.1)) == [StartKind.FORK]


def test_a_call_that_found_an_idle_instance_is_warm() -> None:
    pool = warmed(cold(), now=0.0)

    pool.arrive(1, 1.0)

    assert kinds_of(pool.decide(1.0)) == [StartKind.WARM]


def test_a_call_that_waited_for_a_busy_instance_is_warm() -> None:
    pool = warmed(cold(max_instances=1), now=0.0)
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)

    pool.finished(1, 2.0)

    assert kinds_of(pool.decide(2.0)) == [StartKind.WARM]


def test_a_full_queue_refuses_with_the_time_it_needs() -> None:
    pool = warmed(cold(max_instances=1, queue=2))
    served(pool, 1, begin=1.0, end=3.0)
    for call in (2, 3, 4):
        pool.arrive(call, 4.0)
        pool.decide(4.0)

    with pytest.raises(QueueFull) as refused:
        pool.arrive(5, 4.0)

    assert "2 invocations are waiting" in refused.value.detail
    assert refused.value.retry_after_s == 4.0


def test_a_refused_call_leaves_no_trace() -> None:
    pool = cold(queue=0, max_instances=1)
    pool.arrive(1, 0.0)
    before = pool.statistics()

    with pytest.raises(QueueFull):
        pool.arrive(2, 0.0)

    assert pool.statistics() == before


def test_without_a_queue_calls_are_taken_for_which_instances_may_be_started() -> None:
    pool = cold(queue=0, max_instances=2, concurrency=2)

    for call in range(4):
        pool.arrive(call, 0.0)

    with pytest.raises(QueueFull):
        pool.arrive(5, 0.0)


def test_a_call_whose_deadline_passes_in_the_queue_expires() -> None:
    pool = warmed(cold(max_instances=1))
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0, deadline=5.0)
    pool.decide(1.0)

    actions = pool.decide(5.0)

    assert actions == [Expire(2)]
    assert pool.statistics().queued == 0


def test_a_deadline_in_the_queue_wakes_the_pool() -> None:
    pool = cold()
    pool.arrive(1, 0.0, deadline=5.0)
    pool.arrive(2, 0.0, deadline=3.0)
    pool.decide(0.0)

    assert pool.next_wakeup(0.0) == 3.0


def test_the_deadline_of_a_running_call_is_no_matter_of_the_queue() -> None:
    pool = warmed(cold())
    pool.arrive(1, 1.0, deadline=2.0)
    pool.decide(1.0)

    assert pool.decide(3.0) == []


def test_a_call_is_not_dropped_early_while_the_instance_that_was_started_for_it_starts() -> None:
    pool = warmed(cold())
    for call in range(20):
        pool.arrive(call, 0.0)
        pool.decide(0.0)
        pool.finished(call, 0.0, 1.0)
    pool.instance_gone(1, 0.0)

    pool.arrive(20, 0.0, 0.5)

    assert forks_of(pool.decide(0.0)) == [2]
    assert pool.decide(0.0) == []
    assert pool.next_wakeup(0.0) == 0.5


def test_a_cancelled_call_that_waited_is_never_dispatched() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    pool.decide(0.0)

    where = pool.cancel(1)
    pool.instance_ready(1, 1.0)

    assert where is None
    assert calls_of(pool.decide(1.0)) == []


def test_cancelling_a_running_call_names_its_instance() -> None:
    pool = warmed(cold(), instances=1)
    pool.arrive(1, 1.0)
    pool.decide(1.0)

    assert pool.cancel(1) == 1
    assert pool.statistics().running == 1


def test_cancelling_what_is_gone_names_nothing() -> None:
    pool = warmed(cold())
    served(pool, 1, begin=1.0, end=2.0)

    assert pool.cancel(1) is None


def test_an_answer_that_comes_twice_is_ignored() -> None:
    pool = warmed(cold())
    served(pool, 1, begin=1.0, end=2.0)
    before = pool.statistics()

    pool.finished(1, 3.0)

    assert pool.statistics() == before


def test_a_final_failure_answers_every_waiting_call() -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    pool.arrive(2, 0.0)
    pool.decide(0.0)

    pool.sandbox_failed(1.0, final=True)

    assert pool.failing
    assert pool.decide(1.0) == [Fail(1), Fail(2)]


def test_a_passing_failure_is_tried_again_at_once() -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    pool.decide(0.0)

    pool.sandbox_failed(1.0, final=False)

    assert not pool.failing
    assert pool.decide(1.0) == [OpenSandbox()]


def test_the_third_failure_in_a_row_answers_the_calls() -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    for attempt in range(3):
        assert pool.decide(float(attempt)) == [OpenSandbox()]
        pool.sandbox_failed(float(attempt), final=False)

    assert pool.decide(2.0) == [Fail(1)]


def test_calls_that_come_while_starts_fail_are_answered_at_once() -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.sandbox_failed(1.0, final=True)
    pool.decide(1.0)

    pool.arrive(2, 1.5)

    assert pool.decide(1.5) == [Fail(2)]


def test_after_a_pause_starts_are_tried_again() -> None:
    pool = cold()
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.sandbox_failed(1.0, final=True)
    pool.decide(1.0)

    pool.arrive(2, 2.0)

    assert pool.decide(2.0) == [OpenSandbox()]


def test_the_pause_doubles_with_each_failure_up_to_a_minute() -> None:
    pool = cold(min_instances=1)
    now = 0.0
    pauses = []

    for _ in range(10):
        pool.decide(now)
        pool.sandbox_failed(now, final=True)
        due = pool.next_wakeup(now)
        assert due is not None
        pauses.append(due - now)
        now = due

    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]


def test_an_instance_that_starts_ends_the_count_of_failures() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    for number in (1, 2):
        pool.decide(0.0)
        pool.instance_failed(number, 0.0, final=False)
    pool.decide(0.0)
    pool.instance_ready(3, 0.0)
    pool.decide(0.0)
    pool.arrive(2, 0.0)
    pool.decide(0.0)

    pool.instance_failed(4, 0.0, final=False)

    assert not pool.failing


def test_calls_wait_for_a_busy_instance_while_further_starts_fail() -> None:
    pool = warmed(cold())
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)
    pool.instance_failed(2, 1.5, final=True)
    failed = pool.decide(1.5)

    pool.finished(1, 2.0)

    assert failed == []
    assert calls_of(pool.decide(2.0)) == [(2,)]


def test_waiting_calls_fail_when_the_last_instance_goes_while_starts_fail() -> None:
    pool = warmed(cold())
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)
    pool.instance_failed(2, 1.5, final=True)
    pool.decide(1.5)

    pool.instance_gone(1, 1.6)

    assert pool.decide(1.6) == [Fail(2)]


def test_a_template_that_dies_takes_its_starting_instances_along_as_one_failure() -> None:
    pool = opened(cold())
    for call in range(5):
        pool.arrive(call, 0.0)
    forks = forks_of(pool.decide(0.0))

    pool.sandbox_died(1.0)
    actions = pool.decide(1.0)
    for number in forks:
        pool.instance_failed(number, 1.0, final=False)
    actions += pool.decide(1.0)

    assert actions == [OpenSandbox()]
    assert not pool.failing


def test_a_template_that_dies_at_every_fork_fails_the_calls_in_the_end() -> None:
    pool = cold()
    pool.arrive(1, 0.0)

    for _ in range(3):
        assert pool.decide(0.0) == [OpenSandbox()]
        pool.sandbox_ready(StartKind.COLD, 0.0)
        [number] = forks_of(pool.decide(0.0))
        pool.sandbox_died(0.0)
        pool.instance_failed(number, 0.0, final=False)

    assert pool.decide(0.0) == [Fail(1)]


def test_instances_that_end_while_they_start_fail_the_calls_in_the_end() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)

    for number in (1, 2, 3):
        assert pool.decide(0.0) == [Fork(number)]
        pool.instance_gone(number, 0.0)

    assert pool.decide(0.0) == [Fail(1)]


def test_a_template_that_died_is_replaced_for_the_calls_that_wait() -> None:
    pool = warmed(cold(max_instances=1))
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)

    pool.sandbox_died(2.0)
    lost = pool.instance_gone(1, 2.0)

    assert lost == [1]
    assert pool.decide(2.0) == [OpenSandbox()]


def test_an_instance_that_goes_takes_its_calls_along() -> None:
    pool = warmed(cold(concurrency=3))
    for call in (3, 1, 2):
        pool.arrive(call, 1.0)
    pool.decide(1.0)

    lost = pool.instance_gone(1, 2.0)

    assert lost == [1, 2, 3]
    assert pool.statistics().running == 0


def test_an_unknown_instance_takes_nothing_along() -> None:
    assert cold().instance_gone(9, 0.0) == []


def test_an_instance_being_stopped_gets_no_more_calls() -> None:
    pool = warmed(cold(concurrency=2, max_instances=1))
    pool.arrive(1, 1.0)
    pool.decide(1.0)
    pool.stopping(1)

    pool.arrive(2, 2.0)

    assert calls_of(pool.decide(2.0)) == []


def test_an_instance_being_stopped_is_not_idle_again_when_its_call_ends() -> None:
    pool = warmed(cold(max_instances=1))
    pool.arrive(1, 1.0)
    pool.decide(1.0)
    pool.stopping(1)

    pool.finished(1, 2.0)

    seen = pool.statistics()
    assert (seen.idle, seen.busy) == (0, 0)


def test_an_instance_being_stopped_holds_its_place_until_it_is_gone() -> None:
    pool = warmed(cold(max_instances=1))
    pool.arrive(1, 1.0)
    pool.decide(1.0)
    pool.stopping(1)
    pool.arrive(2, 2.0)

    before = forks_of(pool.decide(2.0))
    pool.instance_gone(1, 3.0)

    assert before == []
    assert forks_of(pool.decide(3.0)) == [2]


def test_an_instance_that_was_stopped_while_starting_never_becomes_ready() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.stopping(1)

    pool.instance_ready(1, 1.0)

    assert pool.statistics().idle == 0


def test_an_idle_instance_is_stopped_once_it_was_kept_long_enough() -> None:
    pool = warmed(cold(keep_alive_s=60.0), now=0.0)

    due = pool.next_wakeup(0.0)
    early = pool.decide(59.9)

    assert due == 60.0
    assert early == []
    assert pool.decide(60.0) == [Stop(1)]


def test_the_alarm_for_an_old_instance_finds_it_old_enough() -> None:
    """Whatever rounding makes of the sums."""
    for thousandths in range(200):
        pool = warmed(cold(keep_alive_s=1.0), now=thousandths / 1000)
        due = pool.next_wakeup(thousandths / 1000)
        assert due is not None
        assert pool.decide(due) == [Stop(1)]


def test_a_busy_instance_is_never_stopped_for_its_age() -> None:
    pool = warmed(cold(keep_alive_s=60.0))
    pool.arrive(1, 1.0)
    pool.decide(1.0)

    assert pool.decide(10_000.0) == []


def test_instances_beyond_the_minimum_are_spare_the_longest_idle_first() -> None:
    pool = warmed(cold(min_instances=1), instances=3)
    for call in (1, 2, 3):
        pool.arrive(call, 1.0)
    pool.decide(1.0)
    for call, end in ((1, 30.0), (2, 10.0)):
        pool.finished(call, end)

    assert pool.spare() == [(10.0, 2), (30.0, 1)]

    pool.finished(3, 20.0)
    assert pool.spare() == [(10.0, 2), (20.0, 3)]
    pool.retire()
    assert len(pool.spare()) == 3


def test_an_instance_that_waits_for_a_fuller_batch_is_not_spare() -> None:
    pool = warmed(cold(batch=4, batch_wait_s=5.0))
    pool.arrive(1, 1.0)

    assert pool.decide(1.0) == []
    assert pool.spare() == []


def test_a_sandbox_that_was_given_up_is_followed_by_another_at_once() -> None:
    pool = opened(cold())
    pool.arrive(1, 1.0)
    assert pool.decide(1.0) == [Fork(1)]

    pool.sandbox_closed()
    pool.instance_failed(1, 1.0, final=False)

    assert not pool.failing
    assert pool.decide(1.0) == [OpenSandbox()]
    pool.sandbox_ready(StartKind.COLD, 2.0)
    assert pool.decide(2.0) == [Fork(2)]


def test_the_longest_idle_instances_are_stopped_down_to_the_minimum() -> None:
    pool = warmed(cold(keep_alive_s=60.0, min_instances=1), instances=3)
    for call in (1, 2, 3):
        pool.arrive(call, 1.0)
        pool.decide(1.0)
    for call, end in ((1, 30.0), (2, 10.0), (3, 20.0)):
        pool.finished(call, end)

    actions = pool.decide(1000.0)

    assert actions == [Stop(2), Stop(3)]


def test_the_minimum_does_not_count_instances_that_are_ending() -> None:
    pool = warmed(cold(keep_alive_s=60.0, min_instances=1), instances=2)
    first = pool.decide(100.0)

    second = pool.decide(100.0)

    assert first == [Stop(1)]
    assert second == []
    assert pool.next_wakeup(100.0) is None


def test_a_pool_with_old_instances_and_a_batch_in_the_making_sleeps_until_it_is_due() -> None:
    pool = warmed(cold(keep_alive_s=1.0, batch=2, batch_wait_s=5.0), now=0.0)
    pool.arrive(1, 0.5)
    pool.decide(2.0)

    assert pool.next_wakeup(2.0) == 5.5


def test_an_unused_template_is_closed_in_the_end() -> None:
    pool = warmed(cold(keep_alive_s=60.0, template_keep_alive_s=600.0), now=0.0)
    pool.decide(60.0)
    pool.instance_gone(1, 60.1)

    due = pool.next_wakeup(60.1)

    assert due is not None
    assert pool.decide(due) == [CloseSandbox()]
    assert pool.empty


def test_a_template_is_kept_while_an_instance_is_there() -> None:
    pool = warmed(cold(keep_alive_s=10_000.0, template_keep_alive_s=600.0))

    assert pool.decide(5000.0) == []


def test_a_template_is_kept_for_its_time_after_an_instance_that_ran_long_has_died() -> None:
    pool = warmed(cold(template_keep_alive_s=600.0), now=0.0)
    pool.arrive(1, 0.0)
    pool.decide(0.0)

    pool.instance_gone(1, 3000.0)

    assert pool.decide(3000.0) == []
    assert pool.next_wakeup(3000.0) == 3600.0


def test_a_retired_pool_ends_at_once_when_nothing_runs() -> None:
    pool = warmed(cold(min_instances=1))

    pool.retire()

    assert pool.decide(0.0) == [Stop(1), CloseSandbox()]


def test_a_retired_pool_finishes_what_runs_and_what_waits() -> None:
    pool = warmed(cold(max_instances=1))
    pool.arrive(1, 1.0)
    pool.arrive(2, 1.0)
    pool.decide(1.0)
    pool.retire()

    while_running = pool.decide(1.0)
    pool.finished(1, 2.0)
    then = pool.decide(2.0)
    pool.finished(2, 3.0)

    assert while_running == []
    assert calls_of(then) == [(2,)]
    assert pool.decide(3.0) == [Stop(1), CloseSandbox()]


def test_a_retired_pool_is_empty_once_its_instances_are_gone() -> None:
    pool = warmed(cold())
    pool.retire()
    pool.decide(0.0)
    before = pool.empty

    pool.instance_gone(1, 1.0)

    assert not before
    assert pool.empty
    assert pool.retired


def test_a_sandbox_that_is_ready_after_its_pool_was_retired_is_closed() -> None:
    pool = cold(min_instances=1)
    pool.decide(0.0)
    pool.retire()

    pool.sandbox_ready(StartKind.COLD, 1.0)

    assert pool.decide(1.0) == [CloseSandbox()]


def test_eviction_stops_idle_instances_and_closes_the_sandbox() -> None:
    pool = warmed(cold(), instances=2)

    actions = pool.evict()

    assert actions == [Stop(1), Stop(2), CloseSandbox()]
    assert pool.statistics().sandbox is SandboxState.ABSENT


def test_an_evicted_pool_starts_again_with_the_next_call() -> None:
    pool = warmed(cold())
    pool.evict()

    pool.arrive(1, 1.0)

    assert pool.decide(1.0) == [OpenSandbox()]


def test_eviction_spares_a_template_that_an_instance_is_started_from() -> None:
    pool = opened(cold())
    pool.arrive(1, 0.0)
    pool.decide(0.0)
    pool.cancel(1)

    assert pool.evict() == []


def test_it_is_idle_since_its_last_use() -> None:
    pool = warmed(cold(), now=0.0)
    served(pool, 1, begin=1.0, end=5.0)

    assert pool.idle_since() == 5.0


def test_it_is_not_idle_while_a_call_waits_or_runs() -> None:
    pool = warmed(cold(max_instances=1))
    pool.arrive(1, 1.0)
    waiting = pool.idle_since()

    pool.decide(1.0)

    assert waiting is None
    assert pool.idle_since() is None


def session_of(pool: Pool, call: int, session: str, now: float) -> list[Action]:
    pool.arrive(call, now, session=session)
    return pool.decide(now)


def test_a_session_stays_with_the_instance_that_served_it() -> None:
    pool = warmed(cold(), instances=2)
    [first] = session_of(pool, 1, "a", 1.0)
    assert isinstance(first, Dispatch)
    pool.finished(1, 2.0)

    pool.arrive(2, 3.0)
    [other] = pool.decide(3.0)
    pool.finished(2, 4.0)
    assert isinstance(other, Dispatch)

    for call, now in ((3, 5.0), (4, 7.0)):
        [again] = session_of(pool, call, "a", now)
        assert isinstance(again, Dispatch)
        assert again.instance == first.instance
        pool.finished(call, now + 1)


def test_a_call_of_a_session_waits_for_its_instance_though_others_are_free() -> None:
    pool = warmed(cold(), instances=2)
    [first] = session_of(pool, 1, "a", 1.0)

    assert session_of(pool, 2, "a", 1.0) == []
    pool.finished(1, 2.0)

    assert isinstance(first, Dispatch)
    assert pool.decide(2.0) == [Dispatch(first.instance, (2,), (StartKind.WARM,))]


def test_calls_of_a_session_are_anybodys_once_its_instance_is_gone() -> None:
    pool = warmed(cold(), instances=2)
    [first] = session_of(pool, 1, "a", 1.0)
    session_of(pool, 2, "a", 1.0)
    assert isinstance(first, Dispatch)

    pool.instance_gone(first.instance, 2.0)

    [second] = [one for one in pool.decide(2.0) if isinstance(one, Dispatch)]
    assert (second.calls, second.instance != first.instance) == ((2,), True)


def test_a_call_that_waits_for_its_sessions_instance_expires_and_is_cancelled() -> None:
    pool = warmed(cold(), instances=1)
    session_of(pool, 1, "a", 1.0)
    pool.arrive(2, 1.0, 1.5, session="a")
    pool.arrive(3, 1.0, session="a")
    pool.decide(1.0)

    assert pool.next_wakeup(1.0) == 1.5
    assert pool.decide(1.5) == [Expire(2)]
    assert pool.cancel(3) is None
    assert not pool.waiting


def test_what_waits_for_an_instance_counts_against_the_queue() -> None:
    pool = warmed(cold(max_instances=1, queue=1), instances=1)
    session_of(pool, 1, "a", 1.0)
    pool.arrive(2, 1.0, session="a")
    pool.decide(1.0)

    with pytest.raises(QueueFull):
        pool.arrive(3, 1.0, session="a")


def test_no_more_instances_are_started_than_are_of_use_at_once() -> None:
    pool = opened(cold(max_instances=8))
    pool.at_once = 2

    for call in range(5):
        pool.arrive(call, 1.0)

    assert len(forks_of(pool.decide(1.0))) == 2
