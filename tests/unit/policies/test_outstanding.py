"""Counts of calls under way: exact for one's own, learnt for others', zero when all is over."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from faasd.policies.routing.outstanding import LoadReport, Outstanding


def test_own_calls_count_from_dispatch_to_reply() -> None:
    load = Outstanding()

    first, second = load.begin("f@1"), load.begin("g@1")
    load.end(first)

    assert (first, second) == (1, 2)
    assert (load.own, load.total) == (1, 1)
    assert (load.held("f@1"), load.held("g@1")) == (0, 1)


def test_a_call_ends_once() -> None:
    load = Outstanding()
    load.begin("f@1")
    call = load.begin("f@1")

    load.end(call)
    load.end(call)

    assert (load.own, load.held("f@1")) == (1, 1)


def test_with_one_controller_a_report_changes_nothing() -> None:
    load = Outstanding()
    for _ in range(5):
        load.begin()

    load.reconcile(LoadReport(seq=1, outstanding=3, running=2, seen=3))

    assert (load.own, load.others, load.running) == (5, 0, 2)


def test_what_the_worker_has_beyond_ours_is_of_others() -> None:
    load = Outstanding()
    for _ in range(5):
        load.begin()

    load.reconcile(LoadReport(seq=1, outstanding=7, seen=3))
    before = load.total
    load.reconcile(LoadReport(seq=2, outstanding=5, seen=5))

    assert (before, load.total) == (5 + 4, 5)


def test_a_report_that_does_not_say_what_it_had_seen_is_taken_to_have_seen_all() -> None:
    load = Outstanding()
    load.begin()

    load.reconcile(LoadReport(seq=1, outstanding=4))

    assert load.others == 3


def test_others_are_never_negative() -> None:
    load = Outstanding()
    for _ in range(5):
        load.begin()

    load.reconcile(LoadReport(seq=1, outstanding=1))

    assert (load.others, load.total) == (0, 5)


def test_a_report_that_was_overtaken_is_ignored() -> None:
    load = Outstanding()

    load.reconcile(LoadReport(seq=2, outstanding=0))
    load.reconcile(LoadReport(seq=1, outstanding=9))

    assert load.total == 0


def test_a_restarted_worker_begins_with_nothing_and_its_former_calls_end_unnoticed() -> None:
    load = Outstanding()
    former = load.begin("f@1")
    load.reconcile(LoadReport(seq=9, outstanding=4, running=4))

    load.reset()
    present = load.begin("f@1")
    load.end(former)
    load.reconcile(LoadReport(seq=1, outstanding=1, seen=present))

    assert (load.own, load.others, load.held("f@1"), load.running) == (1, 0, 1, 0)


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(0, 12))
@settings(max_examples=200)
def test_after_as_many_replies_as_dispatches_in_any_order_all_is_zero(
    replies: list[int], reports: list[int], restart: int
) -> None:
    load = Outstanding()
    calls = [load.begin("f@1") for _ in range(12)]
    sent = [LoadReport(seq=place + 1, outstanding=11 - place, seen=12) for place in range(12)]

    for place, (reply, report) in enumerate(zip(replies, reports, strict=True)):
        if place == restart:
            load.reset()
        load.end(calls[reply])
        load.reconcile(sent[report])
        assert load.own >= 0
        assert load.others >= 0

    load.reconcile(LoadReport(seq=13, outstanding=0, seen=12))
    assert (load.own, load.others, load.held("f@1")) == (0, 0, 0)


class ControllersInTheWorld(RuleBasedStateMachine):
    """Two controllers and a worker, joined by ordered pipes that deliver when they like."""

    @initialize()
    def begin(self) -> None:
        self.loads = [Outstanding(), Outstanding()]
        self.to_worker: list[deque[tuple[str, int]]] = [deque(), deque()]
        self.to_controller: list[deque[tuple[int | None, LoadReport]]] = [deque(), deque()]
        self.there: set[tuple[int, int]] = set()
        self.seen = [0, 0]
        self.seq = [0, 0]

    def report(self, controller: int) -> LoadReport:
        self.seq[controller] += 1
        return LoadReport(
            self.seq[controller], len(self.there), len(self.there), self.seen[controller]
        )

    @rule(controller=st.integers(0, 1))
    def dispatch(self, controller: int) -> None:
        number = self.loads[controller].begin("f@1")
        self.to_worker[controller].append(("call", number))

    @rule(controller=st.integers(0, 1), data=st.data())
    def cancel(self, controller: int, data: st.DataObject) -> None:
        sent = {number for kind, number in self.to_worker[controller] if kind == "call"}
        there = {number for owner, number in self.there if owner == controller}
        if not sent | there:
            return
        number = data.draw(st.sampled_from(sorted(sent | there)))
        self.loads[controller].end(number)
        self.to_worker[controller].append(("cancel", number))

    @rule(controller=st.integers(0, 1))
    def reach_the_worker(self, controller: int) -> None:
        if not self.to_worker[controller]:
            return
        kind, number = self.to_worker[controller].popleft()
        if kind == "call":
            self.seen[controller] = number
            self.there.add((controller, number))
        else:
            self.there.discard((controller, number))

    @precondition(lambda self: bool(self.there))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        controller, number = data.draw(st.sampled_from(sorted(self.there)))
        self.there.remove((controller, number))
        self.to_controller[controller].append((number, self.report(controller)))

    @rule(controller=st.integers(0, 1))
    def heartbeat(self, controller: int) -> None:
        self.to_controller[controller].append((None, self.report(controller)))

    @rule(controller=st.integers(0, 1))
    def reach_the_controller(self, controller: int) -> None:
        if not self.to_controller[controller]:
            return
        number, report = self.to_controller[controller].popleft()
        if number is not None:
            self.loads[controller].end(number)
        self.loads[controller].reconcile(report)

    @invariant()
    def nothing_is_negative(self) -> None:
        for load in self.loads:
            assert load.own >= 0
            assert load.others >= 0
            assert load.held("f@1") == load.own

    def teardown(self) -> None:
        for controller in (0, 1):
            while self.to_worker[controller]:
                self.reach_the_worker(controller)
        self.settle()
        mine = [len([one for one in self.there if one[0] == c]) for c in (0, 1)]
        assert [load.own for load in self.loads] == mine
        assert [load.others for load in self.loads] == mine[::-1]
        for controller, number in sorted(self.there):
            self.there.remove((controller, number))
            self.to_controller[controller].append((number, self.report(controller)))
        self.settle()
        assert [load.total for load in self.loads] == [0, 0]

    def settle(self) -> None:
        for controller in (0, 1):
            self.heartbeat(controller)
            while self.to_controller[controller]:
                self.reach_the_controller(controller)


TestControllersInTheWorld = ControllersInTheWorld.TestCase
TestControllersInTheWorld.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None
)
