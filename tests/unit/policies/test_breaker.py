"""Who is left out, for how long, and how it comes back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from faasd.policies.routing.breaker import Breakers, BreakerState

FOUR = ["a", "b", "c", "d"]


def fail(breakers: Breakers, target: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        breakers.failed(target, breakers.began(target, now), now)


def succeed(breakers: Breakers, target: str, now: float) -> None:
    breakers.succeeded(target, breakers.began(target, now))


@pytest.fixture
def breakers() -> Breakers:
    return Breakers(failures=3, base_s=1.0, cap_s=4.0)


def test_failures_in_a_row_eject_a_target_and_no_other(breakers: Breakers) -> None:
    fail(breakers, "a", 2)
    before = breakers.ejected(FOUR, 0.0)
    fail(breakers, "a", 1)

    assert before == set()
    assert breakers.ejected(FOUR, 0.0) == {"a"}
    assert breakers.state("a", 0.0) is BreakerState.EJECTED


def test_a_success_in_between_begins_the_row_anew(breakers: Breakers) -> None:
    fail(breakers, "a", 2)
    succeed(breakers, "a", 0.0)
    fail(breakers, "a", 2)

    assert breakers.ejected(FOUR, 0.0) == set()


def test_after_its_time_one_call_may_probe_and_no_second(breakers: Breakers) -> None:
    fail(breakers, "a", 3)

    barred = breakers.ejected(FOUR, 0.99)
    open_to_one = breakers.ejected(FOUR, 1.0)
    breakers.began("a", 1.0)

    assert barred == {"a"}
    assert open_to_one == set()
    assert breakers.ejected(FOUR, 1.0) == {"a"}
    assert breakers.state("a", 1.0) is BreakerState.HALF_OPEN


def test_a_probe_that_succeeds_returns_the_target(breakers: Breakers) -> None:
    fail(breakers, "a", 3)

    succeed(breakers, "a", 1.0)

    assert breakers.state("a", 1.0) is BreakerState.CLOSED
    assert breakers.ejected(FOUR, 1.0) == set()


def test_the_time_doubles_with_each_probe_that_fails_up_to_the_cap(breakers: Breakers) -> None:
    fail(breakers, "a", 3)
    now, times = 0.0, []

    for _ in range(5):
        waited = 0.0
        while breakers.ejected(FOUR, now + waited):
            waited += 0.25
        now += waited
        times.append(waited)
        fail(breakers, "a", 1, now)

    assert times == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_target_that_returned_is_ejected_for_the_shortest_time_again(breakers: Breakers) -> None:
    fail(breakers, "a", 3)
    fail(breakers, "a", 1, 1.0)
    succeed(breakers, "a", 3.0)

    fail(breakers, "a", 3, 3.0)

    assert breakers.ejected(FOUR, 3.9) == {"a"}
    assert breakers.ejected(FOUR, 4.0) == set()


def test_a_probe_that_says_nothing_lets_another_call_probe(breakers: Breakers) -> None:
    fail(breakers, "a", 3)
    probe = breakers.began("a", 1.0)

    breakers.withdrawn("a", probe)

    assert breakers.ejected(FOUR, 1.0) == set()
    assert breakers.state("a", 1.0) is BreakerState.HALF_OPEN


def test_calls_from_before_an_ejection_say_nothing_about_the_target_now(
    breakers: Breakers,
) -> None:
    early = [breakers.began("a", 0.0) for _ in range(8)]
    for ticket in early[:3]:
        breakers.failed("a", ticket, 0.0)

    breakers.succeeded("a", early[3])
    still = breakers.state("a", 0.0)
    succeed(breakers, "a", 1.0)
    for ticket in early[4:]:
        breakers.failed("a", ticket, 1.0)

    assert still is BreakerState.EJECTED
    assert breakers.state("a", 1.0) is BreakerState.CLOSED


def test_only_the_probe_decides_while_it_runs(breakers: Breakers) -> None:
    fail(breakers, "a", 3)
    probe, other = breakers.began("a", 1.0), breakers.began("a", 1.0)

    breakers.failed("a", other, 1.0)
    before = breakers.state("a", 1.0)
    breakers.failed("a", probe, 1.0)

    assert before is BreakerState.HALF_OPEN
    assert breakers.state("a", 1.0) is BreakerState.EJECTED


def test_half_of_the_targets_may_be_left_out_and_no_more(breakers: Breakers) -> None:
    for target in "ab":
        fail(breakers, target, 3)
    half = breakers.ejected(FOUR, 0.0)
    fail(breakers, "c", 3)

    assert half == {"a", "b"}
    assert breakers.ejected(FOUR, 0.0) == set()


def test_the_only_target_is_never_left_out(breakers: Breakers) -> None:
    fail(breakers, "a", 3)

    assert breakers.ejected(["a"], 0.0) == set()


def test_a_target_that_serves_while_ejection_is_ignored_returns(breakers: Breakers) -> None:
    for target in "abc":
        fail(breakers, target, 3)

    succeed(breakers, "a", 0.1)

    assert breakers.ejected(FOUR, 0.1) == {"b", "c"}


def test_a_target_that_is_gone_is_forgotten(breakers: Breakers) -> None:
    fail(breakers, "a", 3)

    breakers.forget("a")

    assert breakers.ejected(FOUR, 0.0) == set()
    assert breakers.state("a", 0.0) is BreakerState.CLOSED


class BreakersInTheWorld(RuleBasedStateMachine):
    """The table of states beside a model that keeps all calls."""

    @initialize(failures=st.integers(1, 3))
    def begin(self, failures: int) -> None:
        self.failures = failures
        self.breakers = Breakers(failures=failures, base_s=1.0, cap_s=8.0)
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []
        self.row = dict.fromkeys(FOUR, 0)
        self.changed = dict.fromkeys(FOUR, 0)
        self.until = dict.fromkeys(FOUR, 0.0)
        self.backoff = dict.fromkeys(FOUR, 1.0)
        self.out: set[str] = set()
        self.probes: dict[str, int] = {}
        self.ticket = 0

    @rule(called=st.sampled_from(FOUR))
    def call(self, called: str) -> None:
        """Of any target: when too many are out, these get calls too."""
        self.ticket = self.breakers.began(called, self.now)
        self.calls.append((called, self.ticket))
        if called in self.out and self.now >= self.until[called]:
            self.probes.setdefault(called, self.ticket)

    @rule(data=st.data(), end=st.sampled_from(["succeeded", "failed", "withdrawn"]))
    def end(self, data: st.DataObject, end: str) -> None:
        if not self.calls:
            return
        target, ticket = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        match end:
            case "succeeded":
                self.breakers.succeeded(target, ticket)
            case "failed":
                self.breakers.failed(target, ticket, self.now)
            case _:
                self.breakers.withdrawn(target, ticket)
        self.expect(target, ticket, end)

    def expect(self, target: str, ticket: int, end: str) -> None:
        probed = self.probes.get(target) == ticket
        if end == "withdrawn":
            if probed:
                del self.probes[target]
        elif ticket <= self.changed[target]:
            return
        elif end == "succeeded":
            self.row[target] = 0
            if target in self.out:
                self.out.remove(target)
                self.backoff[target] = 1.0
                self.turn(target)
        elif target not in self.out:
            self.row[target] += 1
            if self.row[target] == self.failures:
                self.eject(target)
        elif probed:
            self.eject(target)

    def eject(self, target: str) -> None:
        self.out.add(target)
        self.until[target] = self.now + self.backoff[target]
        self.backoff[target] = min(8.0, 2 * self.backoff[target])
        self.turn(target)

    def turn(self, target: str) -> None:
        self.row[target] = 0
        self.probes.pop(target, None)
        self.changed[target] = self.ticket

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def as_the_model_says(self) -> None:
        barred = {t for t in self.out if self.now < self.until[t] or t in self.probes}
        assert self.breakers.ejected(FOUR, self.now) == (barred if len(barred) <= 2 else set())
        for target in FOUR:
            closed = self.breakers.state(target, self.now) is BreakerState.CLOSED
            assert closed == (target not in self.out)


TestBreakersInTheWorld = BreakersInTheWorld.TestCase
TestBreakersInTheWorld.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
