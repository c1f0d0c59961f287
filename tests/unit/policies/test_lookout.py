"""When a worker looks out for a reply instead of sleeping until it comes."""

from __future__ import annotations

from faasd.policies.lookout import Lookout

SHORT_S = 10e-6


def skipped(lookout: Lookout) -> int:
    """How many calls pass until it is tried again."""
    count = 0
    while not lookout.for_s(SHORT_S):
        count += 1
    return count


def test_the_reply_to_a_short_call_is_looked_out_for() -> None:
    assert Lookout(cores=2).for_s(SHORT_S) == Lookout.LONGEST_S


def test_a_call_that_is_not_short_is_slept_for() -> None:
    assert Lookout(cores=2).for_s(2 * Lookout.SHORT_S) == 0


def test_on_the_only_core_it_is_never_tried() -> None:
    lookout = Lookout(cores=1)

    assert not any(lookout.for_s(SHORT_S) for _ in range(10_000))


def test_what_does_not_come_in_time_is_tried_again_later_and_later() -> None:
    lookout = Lookout(cores=2)
    pauses = []
    for _ in range(4):
        lookout.ended(in_time=False)
        pauses.append(skipped(lookout))

    assert pauses == [8, 16, 32, 64]


def test_the_pause_has_an_end() -> None:
    lookout = Lookout(cores=2)
    for _ in range(64):
        lookout.ended(in_time=False)
        passed = skipped(lookout)

    assert passed == Lookout.LONGEST_PAUSE


def test_a_reply_in_time_makes_good_for_those_that_were_late() -> None:
    lookout = Lookout(cores=2)
    for _ in range(5):
        lookout.ended(in_time=False)
        skipped(lookout)
    lookout.ended(in_time=True)
    lookout.ended(in_time=False)

    assert skipped(lookout) == Lookout.FIRST_PAUSE
