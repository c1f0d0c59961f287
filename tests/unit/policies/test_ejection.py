"""When an instance that fails is given up for a fresh one, and when that would help nobody."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.policies.ejection import Ejection

OLD, FRESH = 1, 2


class Instances:
    """A revision's instances under the policy: each call is a moment later than the one before."""

    def __init__(self, count: int = 1) -> None:
        self.policy = Ejection()
        self.newest = count
        self.now = 0.0

    def fails(self, instance: int, times: int = 1) -> int:
        """How many failures in a row it took to end the instance; 0 when it was kept."""
        for count in range(1, times + 1):
            self.now += 0.001
            if self.policy.failed(instance, self.now, self.now):
                self.policy.ejected(instance, self.newest, self.now)
                self.policy.gone(instance)
                self.newest += 1
                return count
        return 0

    def succeeds(self, instance: int) -> None:
        self.now += 0.001
        if self.policy.watching:
            self.policy.succeeded(instance)


def test_an_instance_is_ended_after_five_failures_in_a_row() -> None:
    assert Instances().fails(OLD, 100) == 5


def test_a_success_in_between_keeps_it() -> None:
    one = Instances()

    for _ in range(100):
        assert not one.fails(OLD, 2)
        one.succeeds(OLD)


def test_failures_of_one_instance_are_not_those_of_another() -> None:
    two = Instances(2)

    assert not two.fails(1, 4)
    assert not two.fails(2, 4)


def test_calls_that_were_sent_together_count_once() -> None:
    policy = Ejection()

    assert not any(policy.failed(OLD, 1.0, 2.0) for _ in range(32))
    assert not any(policy.failed(OLD, 3.0 + sent, 9.0) for sent in range(3))
    assert policy.failed(OLD, 8.0, 9.0)


def test_a_function_that_fails_in_a_fresh_instance_too_costs_one_start() -> None:
    one = Instances()
    assert one.fails(OLD, 10)
    one.now += 3600

    assert not one.fails(FRESH, 100_000)


def test_what_succeeds_again_after_all_of_them_failed_may_be_ended_again() -> None:
    one = Instances()
    assert one.fails(OLD, 10)
    one.now += 3600
    assert not one.fails(FRESH, 1000)

    one.succeeds(FRESH)

    assert one.fails(FRESH, 10) == 5


def test_a_failure_of_everybody_does_not_teach_patience_with_a_sick_one() -> None:
    three = Instances(3)
    assert three.fails(1, 10)
    for _ in range(1000):
        assert not any(three.fails(one) for one in (4, 2, 3))

    for one in (2, 3, 4):
        three.succeeds(one)

    assert three.policy.enough == 5


def test_a_second_sick_one_is_ended_as_soon_as_a_fresh_one_has_succeeded() -> None:
    three = Instances(3)
    assert three.fails(1, 10) == 5
    assert not three.fails(2, 10)

    three.succeeds(4)
    three.now += 1.0

    assert three.fails(2)


def test_sick_ones_that_leave_no_work_to_a_fresh_one_are_ended_after_a_while() -> None:
    two = Instances(2)
    assert two.fails(1, 10)
    assert not two.fails(2, 10)

    two.now += 1.0

    assert two.fails(2)


def test_ejections_that_help_nobody_become_rare() -> None:
    """Of sessions that fail wherever they are, while all other calls succeed."""
    many = Instances()
    instance, ended = OLD, []
    while many.now < 600:
        many.now += 0.05
        if many.fails(instance):
            ended.append(many.now)
            instance = many.newest
        many.succeeds(0)

    gaps = [later - sooner for sooner, later in itertools.pairwise(ended)]
    assert gaps == sorted(gaps)
    assert len(ended) < 20


def test_an_instance_that_breaks_again_and_again_is_replaced_each_time() -> None:
    one = Instances()
    for instance in range(1, 50):
        one.now += 5.0
        for _ in range(20):
            one.succeeds(instance)
        assert one.fails(instance, 6) == 5


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_function_that_fails_at_random_is_hardly_ever_restarted(share: float) -> None:
    rng = random.Random(1)
    one = Instances()
    calls = 20_000
    for _ in range(calls):
        if rng.random() < share:
            one.fails(one.newest)
        else:
            one.succeeds(one.newest)

    assert one.policy.ejections <= calls / 1000


def test_while_nothing_fails_successes_need_not_be_told() -> None:
    one = Instances()
    assert not one.policy.watching

    one.fails(OLD)
    assert one.policy.watching
    one.succeeds(OLD)
    assert not one.policy.watching


def test_one_that_finishes_its_last_calls_is_watched_until_it_is_gone() -> None:
    policy = Ejection()
    for moment in range(5):
        policy.failed(OLD, moment, moment)
    policy.ejected(OLD, OLD, 5.0)

    policy.succeeded(FRESH)
    assert policy.watching
    assert not policy.failed(OLD, 6.0, 6.0)
    policy.gone(OLD)

    assert not policy.watching


def test_it_shows_what_it_knows() -> None:
    one = Instances()
    one.fails(OLD, 5)
    one.fails(FRESH, 5)

    assert repr(one.policy) == "<Ejection 1 ended, 1 failing, fresh ones fail too>"


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.floats(0.0, 2.0)), max_size=300),
    st.integers(1, 6),
)
def test_it_keeps_its_bounds(events: list[tuple[int, bool, float]], failures: int) -> None:
    """No ejection without so many failures in a row, nor two within a second; nothing is kept of
    instances that are gone.
    """
    policy = Ejection(failures=failures)
    runs = dict.fromkeys(range(1, 5), 0)
    now, last = 0.0, -10.0
    for place, fine, passed in events:
        now += passed + 0.001
        if fine:
            runs[place] = 0
            policy.succeeded(place)
            continue
        runs[place] += 1
        if policy.failed(place, now, now):
            assert runs[place] >= failures
            assert now - last >= 1.0
            policy.ejected(place, max(runs), now)
            policy.gone(place)
            last, runs[place] = now, 0
    for place in runs:
        policy.gone(place)
    policy.succeeded(5)

    assert not policy.watching
