"""Serial instances in the pool: calls that are sent ahead of their turn, one decision at a time."""

from __future__ import annotations

import pytest

from faasd.errors import QueueFull
from faasd.policies.readahead import ReadAhead
from tests.unit.worker.test_pool import calls_of, cold, forks_of, warmed
from worker.pool import Action, Dispatch, Pool

SHORT_S = 0.0001


def proved(pool: Pool, *, instances: int = 1) -> Pool:
    """The pool with idle serial instances, whose calls have been short for long."""
    pool.read_ahead = ReadAhead()
    warmed(pool, instances=instances)
    for call in range(-ReadAhead.FIRST_PROOF, 0):
        pool.arrive(call, 0.0)
        pool.decide(0.0)
        pool.finished(call, 0.0, SHORT_S)
    assert pool.read_ahead.depth > 0
    return pool


def arrive(pool: Pool, *calls: int, now: float = 0.0) -> list[tuple[int, int]]:
    """Let them come one by one; instance and call of each that was sent."""
    sent = []
    for call in calls:
        pool.arrive(call, now)
        for action in pool.decide(now):
            if isinstance(action, Dispatch):
                sent += [(action.instance, one) for one in action.calls]
    return sent


def arrived(pool: Pool, call: int) -> list[Action]:
    pool.arrive(call, 0.0)
    return pool.decide(0.0)


def test_nothing_is_sent_ahead_until_calls_have_proved_short() -> None:
    pool = warmed(cold(max_instances=1))
    pool.read_ahead = ReadAhead()

    assert arrive(pool, 1, 2) == [(1, 1)]
    assert pool.statistics().queued == 1


def test_a_busy_instance_is_sent_calls_ahead_up_to_the_depth() -> None:
    pool = proved(cold(max_instances=1))

    sent = arrive(pool, *range(30))

    assert pool.read_ahead is not None
    depth = pool.read_ahead.depth
    assert sent == [(1, call) for call in range(1 + depth)]
    assert pool.statistics().queued == 30 - 1 - depth
    assert pool.statistics().running == 1 + depth


def test_an_idle_instance_goes_before_one_that_would_hold_the_call() -> None:
    pool = proved(cold(max_instances=2), instances=2)

    sent = arrive(pool, 1, 2, 3, 4, 5)

    assert sorted(instance for instance, _ in sent[:2]) == [1, 2]
    assert sorted(instance for instance, _ in sent[2:4]) == [1, 2]


def test_the_next_call_comes_when_one_is_answered() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, *range(30))
    waiting = pool.statistics().queued

    pool.finished(0, 0.0, SHORT_S)

    assert calls_of(pool.decide(0.0)) == [(30 - waiting,)]


def test_a_long_call_ends_it_and_what_was_sent_stays() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, *range(30))

    pool.finished(0, 1.0, 1.0)

    assert calls_of(pool.decide(1.0)) == []
    assert pool.read_ahead is not None
    assert pool.read_ahead.depth == 0
    assert pool.statistics().busy == 1


@pytest.mark.parametrize("took_s", [None, 0.02])
def test_the_instance_is_idle_only_after_the_last_that_it_holds(took_s: float | None) -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, 1, 2, 3)

    pool.finished(1, 0.0, took_s)
    pool.finished(2, 0.0, took_s)
    busy = pool.statistics().busy
    pool.finished(3, 0.0, took_s)

    assert (busy, pool.statistics().idle) == (1, 1)


def test_what_a_dead_instance_had_not_begun_waits_again_before_all_others() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, *range(30))
    pool.finished(0, 0.0, SHORT_S)

    lost = pool.instance_gone(1, 0.0)
    [fork] = forks_of(pool.decide(0.0))
    pool.instance_ready(fork, 0.0)

    assert lost == [1]
    assert pool.read_ahead is not None
    sent = 1 + pool.read_ahead.depth
    assert calls_of(pool.decide(0.0)) == [tuple(range(2, 2 + sent))]


def test_a_call_that_was_told_to_stop_is_not_begun_anew_elsewhere() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, 1, 2, 3)
    pool.doubt(2)

    assert pool.instance_gone(1, 0.0) == [1, 2]
    assert pool.statistics().queued == 1


def test_an_instance_with_a_call_that_was_told_to_stop_is_sent_nothing_more() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, 1, 2)
    pool.doubt(2)

    sent_meanwhile = arrive(pool, 3)
    pool.finished(1, 0.0, SHORT_S)
    pool.finished(2, 0.0, SHORT_S)

    assert sent_meanwhile == []
    assert calls_of(pool.decide(0.0)) == [(3,)]


def test_cancelling_a_call_that_is_held_names_the_instance_that_has_it() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, 1, 2)

    assert pool.cancel(2) == 1
    assert pool.statistics().running == 2


def test_what_an_instance_that_is_ended_holds_goes_to_the_next() -> None:
    """Its running call was stopped for good."""
    pool = proved(cold(max_instances=2), instances=2)
    arrive(pool, 1, 2, 3, 4)
    [victim] = [i.id for i in pool._instances.values() if 1 in i.calls]

    pool.stopping(victim)
    lost = pool.instance_gone(victim, 0.0)

    assert lost == [1]
    assert calls_of(pool.decide(0.0)) != []
    assert pool.statistics().queued == 0


def test_a_retired_pool_finishes_what_its_instances_hold() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, 1, 2, 3)

    pool.retire()
    assert pool.decide(0.0) == []
    for call in (1, 2, 3):
        pool.finished(call, 0.0, SHORT_S)
    pool.decide(0.0)
    pool.instance_gone(1, 0.0)
    pool.decide(0.0)

    assert pool.empty


def test_a_pool_that_holds_calls_is_in_use() -> None:
    pool = proved(cold(max_instances=1))
    arrive(pool, 1, 2)

    pool.finished(1, 0.0, SHORT_S)

    assert pool.idle_since() is None
    assert pool.spare() == []


def test_what_is_held_calls_for_further_instances_once_more_than_that_waits() -> None:
    pool = proved(cold(max_instances=4))
    assert pool.read_ahead is not None
    held = range(1 + pool.read_ahead.depth)

    pool._start_s = 0.0
    forks_for_held = [forks_of(arrived(pool, call)) for call in held]
    forks_for_more = forks_of(arrived(pool, 100))

    assert forks_for_held == [[]] * len(held)
    assert len(forks_for_more) == 3


def test_an_instance_is_not_started_for_what_is_held_and_ended_since_it_gets_nothing() -> None:
    pool = proved(cold(max_instances=2, min_instances=1, keep_alive_s=0.0))

    arrive(pool, 1, 2, 3)

    assert [pool.decide(0.0) for _ in range(3)] == [[], [], []]
    assert pool.statistics().starting == 0


def test_an_instance_that_holds_many_takes_no_place_of_an_idle_one() -> None:
    """A function without a queue is refused calls only where no instance could take them."""
    pool = proved(cold(max_instances=2, queue=0))
    arrive(pool, 1, 2)
    pool.min_instances = 2
    [fork] = forks_of(pool.decide(0.0))
    pool.instance_ready(fork, 0.0)
    pool.decide(0.0)

    assert arrive(pool, 3) == [(fork, 3)]
    with pytest.raises(QueueFull):
        pool.arrive(4, 0.0)
