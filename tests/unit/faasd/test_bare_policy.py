"""How many bare sandboxes are kept ahead of demand."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from faasd.policies.bare import BarePool


def pool(least: int = 1, most: int = 16, start_s: float = 0.5) -> BarePool:
    return BarePool(least=least, most=most, window_s=10.0, start_s=start_s)


def test_without_claims_the_least_is_kept() -> None:
    assert pool(least=2).target(0.0) == 2


def test_none_is_kept_where_none_is_asked_for() -> None:
    assert pool(least=0).target(0.0) == 0


def test_twice_what_is_claimed_while_one_starts_is_kept() -> None:
    """4 claims a second and half a second for a start: 2 are claimed meanwhile, 4 are kept."""
    busy = pool()
    for number in range(40):
        busy.claimed(number / 4)

    assert busy.target(9.9) == 4


def test_the_first_claim_after_a_pause_keeps_no_more_than_the_least() -> None:
    quiet = pool()
    quiet.claimed(100.0)

    assert quiet.target(100.0) == 1


def test_a_burst_asks_for_no_more_than_the_most() -> None:
    burst = pool(most=5)
    for _ in range(1000):
        burst.claimed(1.0)

    assert burst.target(1.0) == 5


def test_claims_are_forgotten_after_the_window() -> None:
    busy = pool()
    for _ in range(100):
        busy.claimed(1.0)

    assert busy.target(10.9) == 10
    assert busy.target(11.0) == 1


def test_slower_starts_ask_for_more_ahead() -> None:
    fast, slow = pool(), pool()
    for number in range(40):
        fast.claimed(number / 4)
        slow.claimed(number / 4)
    for _ in range(20):
        fast.started(0.25)
        slow.started(1.0)

    assert (fast.target(9.9), slow.target(9.9)) == (3, 8)


def test_one_slow_start_is_no_measure() -> None:
    """An engine that hung once does not fill the node with containers."""
    busy = pool(start_s=0.5)
    for number in range(40):
        busy.claimed(number / 4)
    busy.started(2.0)

    assert busy.target(9.9) == math.ceil(2 * 4 * (0.5 + 0.3 * 1.5))


@given(
    claims=st.lists(st.floats(0, 100), max_size=200),
    starts=st.lists(st.floats(0, 100), max_size=20),
    now=st.floats(0, 200),
    least=st.integers(0, 4),
    more=st.integers(0, 20),
)
def test_the_target_is_always_within_its_bounds(
    claims: list[float], starts: list[float], now: float, least: int, more: int
) -> None:
    tried = BarePool(least=least, most=least + more)
    for at in sorted(claims):
        tried.claimed(at)
    for took in starts:
        tried.started(took)

    assert least <= tried.target(now) <= least + more
