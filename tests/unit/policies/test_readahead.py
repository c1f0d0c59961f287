"""How many calls an instance is sent ahead: only after proof, and less easily after each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.policies.readahead import ReadAhead


def after(calls: int, took_s: float, policy: ReadAhead | None = None) -> ReadAhead:
    policy = policy or ReadAhead()
    for _ in range(calls):
        policy.ended(took_s)
    return policy


def test_nothing_goes_ahead_before_so_many_calls_in_a_row_were_short() -> None:
    policy = after(63, 0.0001)

    before = policy.depth
    policy.ended(0.0001)

    assert before == 0
    assert policy.depth > 0
    assert repr(policy) == f"<ReadAhead {policy.depth} deep, 64 of 64 short calls>"


@pytest.mark.parametrize(
    ("took_s", "depth"), [(0.00001, 16), (0.0001, 10), (0.0003, 3), (0.0009, 1), (0.002, 0)]
)
def test_an_instance_may_hold_about_a_millisecond_of_work(took_s: float, depth: int) -> None:
    assert after(1000, took_s).depth == depth


def test_the_depth_follows_the_mean() -> None:
    policy = after(200, 0.00001)

    assert after(100, 0.0005, policy).depth == 2
    assert after(100, 0.00001, policy).depth == 16


@pytest.mark.parametrize("took_s", [None, 0.0101, 60.0])
def test_a_call_that_is_long_or_must_not_be_followed_ends_it(took_s: float | None) -> None:
    policy = after(64, 0.0001)

    policy.ended(took_s)

    assert policy.depth == 0


def test_each_end_doubles_the_proof_that_it_takes_to_begin_again() -> None:
    policy = after(64, 0.0001)

    needed = []
    for _ in range(4):
        policy.ended(1.0)
        count = 0
        while not policy.depth:
            policy.ended(0.0001)
            count += 1
        needed.append(count)

    assert needed == [128, 256, 512, 1024]


def test_long_calls_before_any_proof_make_it_no_harder() -> None:
    policy = after(1000, 1.0)

    assert after(64, 0.0001, policy).depth > 0


def test_one_long_call_ends_the_row_of_short_ones() -> None:
    policy = after(63, 0.0001)
    policy.ended(1.0)

    assert after(63, 0.0001, policy).depth == 0


def test_the_proof_has_a_bound() -> None:
    policy = ReadAhead()
    for _ in range(40):
        policy._short = policy._proof
        policy.ended(0.0001)
        policy.ended(1.0)

    assert policy._proof == ReadAhead.LONGEST_PROOF


def test_an_outlier_of_long_ago_is_forgiven_by_degrees() -> None:
    policy = after(64, 0.0001)
    policy.ended(1.0)
    policy.ended(0.0001)
    assert policy._proof == 128

    after(16 * 128, 0.0001, policy)
    policy.ended(1.0)

    assert policy._proof == 128


@given(every=st.integers(2, 2048))
def test_where_one_call_in_so_many_is_long_few_calls_wait_behind_one(every: int) -> None:
    """Once the proof is as long as the calls between two long ones, nothing goes ahead any more.
    Rarer ones are forgiven.
    """
    policy = ReadAhead()
    behind = 0
    for _ in range(12):
        for _ in range(every - 1):
            policy.ended(0.0001)
        behind += policy.depth
        policy.ended(1.0)

    doublings = max(0, every.bit_length() - 6)
    assert behind <= ReadAhead.DEEPEST * doublings
    if every < ReadAhead.FIRST_PROOF:
        assert behind == 0
