"""Sessions stay where they are: under joins, leaves, overflow, and every order of these."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from faasd.policies.routing.affinity import Affinity, Placement

SESSIONS = [f"session-{number}" for number in range(3000)]


def with_workers(affinity: Affinity, *names: str, slots: int = 4) -> Affinity:
    for name in names:
        affinity.join(name, slots)
    return affinity


def where(affinity: Affinity, session: str, now: float) -> str:
    found = affinity.place(session, now)
    assert found is not None
    return found.worker


def homes(affinity: Affinity, now: float, sessions: list[str] = SESSIONS) -> dict[str, str]:
    return {session: where(affinity, session, now) for session in sessions}


def test_without_a_worker_a_session_has_no_place() -> None:
    affinity = with_workers(Affinity(), "a")

    affinity.leave("a")

    assert affinity.place("s", 0.0) is None


def test_sessions_spread_by_slots() -> None:
    affinity = Affinity()
    affinity.join("a", 2)
    affinity.join("b", 6)

    shares = Counter(homes(affinity, 0.0).values())

    assert shares["b"] / len(SESSIONS) == pytest.approx(3 / 4, abs=0.03)


@pytest.mark.parametrize("size", [10_000, 1000, 0], ids=["recorded", "overflowing", "hash only"])
def test_a_worker_that_joins_breaks_no_session(size: int) -> None:
    affinity = with_workers(Affinity(size=size, idle_s=10.0), "a", "b")
    before = homes(affinity, 0.0)

    affinity.join("c", 4)

    assert homes(affinity, 10.0) == before
    assert homes(affinity, 20.0) == before


@pytest.mark.parametrize("size", [10_000, 1000, 0], ids=["recorded", "overflowing", "hash only"])
def test_a_worker_that_leaves_moves_its_own_sessions_only(size: int) -> None:
    affinity = with_workers(Affinity(size=size, idle_s=10.0), "a", "b", "c")
    before = homes(affinity, 0.0)

    affinity.leave("b")
    after = homes(affinity, 1.0)

    assert all(after[one] == before[one] for one in SESSIONS if before[one] != "b")
    assert set(after.values()) == {"a", "c"}


@pytest.mark.parametrize("size", [10_000, 1000, 0], ids=["recorded", "overflowing", "hash only"])
def test_a_worker_that_joins_gets_its_share_of_later_sessions(size: int) -> None:
    affinity = with_workers(Affinity(size=size, idle_s=10.0), "a", "b")
    homes(affinity, 0.0)

    affinity.join("c", 4)
    shares = Counter(homes(affinity, 10.5, [f"later-{s}" for s in SESSIONS]).values())

    assert shares["c"] / len(SESSIONS) == pytest.approx(1 / 3, abs=0.04)


def test_while_few_are_unrecorded_a_worker_that_joins_gets_sessions_at_once() -> None:
    affinity = with_workers(Affinity(size=1000, idle_s=10.0), "a", "b")
    old = homes(affinity, 0.0, SESSIONS[:1200])

    affinity.join("c", 4)
    fresh = Counter(where(affinity, f"later-{place}", 1.0) for place in range(1000))

    assert 200 < fresh["c"] < 370
    assert homes(affinity, 2.0, SESSIONS[:1200]) == old


def test_ten_sessions_and_three_entries_all_hit_one_worker_each() -> None:
    affinity = with_workers(Affinity(size=3), "a", "b", "c")
    ten = SESSIONS[:10]

    calls = [homes(affinity, float(now), ten) for now in range(5)]

    assert all(places == calls[0] for places in calls)
    assert affinity.statistics().recorded == 3
    for session in ten:
        affinity.end(session)
    assert affinity.statistics().recorded == 0


def test_a_session_that_hashing_would_not_find_is_never_displaced() -> None:
    affinity = with_workers(Affinity(size=1, idle_s=10.0, buckets=1), "a")
    left_to_its_bucket = where(affinity, "first", 0.0)
    affinity.join("b", 10_000)
    only_in_the_record = where(affinity, "second", 1.0)
    unrecorded = where(affinity, "third", 2.0)

    again = homes(affinity, 3.0, ["first", "second", "third"])

    assert (left_to_its_bucket, only_in_the_record, unrecorded) == ("a", "b", "a")
    assert again == {"first": "a", "second": "b", "third": "a"}
    assert affinity.statistics().unrecorded_calls == 3


def test_a_controller_that_lost_its_record_finds_sessions_by_hashing() -> None:
    before = homes(with_workers(Affinity(), "a", "b", "c"), 0.0)

    again = homes(with_workers(Affinity(size=0), "c", "a", "b"), 100.0)

    assert again == before


def test_the_instance_that_served_is_remembered_with_its_session() -> None:
    affinity = with_workers(Affinity(idle_s=10.0), "a")
    first = affinity.place("s", 0.0)

    affinity.served("s", Placement("a", "i-7"), 1.0)

    assert first == Placement("a")
    assert affinity.place("s", 11.0) == Placement("a", "i-7")


def test_a_reply_from_where_the_session_is_no_more_is_ignored() -> None:
    affinity = with_workers(Affinity(), "a")
    affinity.place("s", 0.0)
    affinity.leave("a")
    affinity.join("b", 4)
    affinity.place("s", 1.0)

    affinity.served("s", Placement("a", "i-7"), 2.0)

    assert affinity.place("s", 3.0) == Placement("b")


def test_a_session_that_rested_too_long_is_forgotten() -> None:
    affinity = with_workers(Affinity(idle_s=10.0), "a")
    affinity.place("s", 0.0)
    affinity.served("s", Placement("a", "i-7"), 0.0)

    affinity.place("other", 10.5)

    assert affinity.statistics().recorded == 1
    assert affinity.place("s", 10.5) == Placement("a")


def test_a_long_call_keeps_an_unrecorded_session_where_it_is() -> None:
    affinity = with_workers(Affinity(size=0, idle_s=10.0), "a")
    affinity.place("s", 0.0)
    affinity.join("b", 10_000)

    affinity.served("s", Placement("a", "i-7"), 9.0)

    assert where(affinity, "s", 18.0) == "a"
    assert where(affinity, "s", 28.5) == "b"


class SessionsInTheWorld(RuleBasedStateMachine):
    """A session whose calls follow one another within the idle time stays while its worker does."""

    IDLE_S = 8.0

    @initialize(size=st.integers(0, 4), buckets=st.integers(1, 5))
    def begin(self, size: int, buckets: int) -> None:
        self.size = size
        self.affinity = Affinity(size=size, idle_s=self.IDLE_S, buckets=buckets)
        self.now = 0.0
        self.live: dict[str, int] = {}
        self.lives: Counter[str] = Counter()
        self.known: dict[int, tuple[str, int, float]] = {}

    @rule(name=st.sampled_from("abcd"), slots=st.integers(1, 9))
    def join(self, name: str, slots: int) -> None:
        self.live[name] = slots
        self.affinity.join(name, slots)

    @rule(name=st.sampled_from("abcd"))
    def leave(self, name: str) -> None:
        self.live.pop(name, None)
        self.lives[name] += 1
        self.affinity.leave(name)

    @rule(session=st.integers(0, 12))
    def call(self, session: int) -> None:
        found = self.affinity.place(str(session), self.now)

        if not self.live:
            assert found is None
            return
        assert found is not None
        assert found.worker in self.live
        worker, life, last = self.known.get(session, ("", 0, 0.0))
        if worker and self.now - last <= self.IDLE_S and self.lives[worker] == life:
            assert found.worker == worker
        self.known[session] = (found.worker, self.lives[found.worker], self.now)

    @rule(session=st.integers(0, 12), late=st.booleans())
    def answered(self, session: int, *, late: bool) -> None:
        worker, life, last = self.known.get(session, ("", 0, 0.0))
        if not worker or self.now - last > self.IDLE_S:
            return
        self.affinity.served(str(session), Placement(worker, "i"), self.now)
        if late:
            self.known[session] = (worker, life, self.now)

    @rule(session=st.integers(0, 12))
    def end(self, session: int) -> None:
        self.affinity.end(str(session))
        self.known.pop(session, None)

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.9, 8.0, 8.1, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_record_is_bounded(self) -> None:
        assert self.affinity.statistics().recorded <= self.size


TestSessionsInTheWorld = SessionsInTheWorld.TestCase
TestSessionsInTheWorld.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
