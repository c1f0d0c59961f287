"""Which worker gets what, and what becomes of what waits at the controller.

Functions may have one instance here, so that a bounded queue lets a worker have two calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from faasd.errors import (
    DeadlineExceeded,
    FaasdError,
    FunctionNotFound,
    HandlerError,
    InternalError,
    QueueFull,
    StorageFull,
    Unavailable,
    WorkerLost,
)
from faasd.invocation import FunctionReport, GpuReport, Reply
from faasd.policies.routing.breaker import Breakers
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.policies.routing.power_of_k import PowerOfK
from faasd.policies.routing.round_robin import RoundRobin
from faasd.policies.routing.routers import Automatic
from faasd.streams import close
from tests.loops import in_virtual_time
from tests.unit.controller.flights import Caller, HeldWorker, World, dice


def sent(links: list[HeldWorker]) -> int:
    return sum(len(link.received) for link in links)


def told(callers: list[Caller]) -> list[str]:
    """Of each caller the code of its error, "ok" for a reply, "" while it waits."""
    found = []
    for caller in callers:
        [*outcomes] = caller.told
        assert len(outcomes) <= 1
        found.append("".join("ok" if isinstance(o, Reply) else o.code for o in outcomes))
    return found


# What waits here, and what does not.


@in_virtual_time
async def test_a_lone_worker_gets_everything_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    [link] = world.join("a")

    world.calls("12345")

    assert link.has == list("12345")
    assert world.waiting == 0


@in_virtual_time
async def test_what_exceeds_the_places_and_one_more_of_each_worker_waits(tmp_path: Path) -> None:
    world = World(tmp_path)
    links = world.join("a", "b")

    world.calls("1234567")

    assert [len(link.has) for link in links] == [2, 2]
    assert world.dispatcher.waiting() == {"default/echo@r1": 3}
    assert repr(world.dispatcher) == "<Dispatcher 1 revisions, 3 waiting>"


@in_virtual_time
async def test_what_waits_goes_out_in_order_as_replies_come(tmp_path: Path) -> None:
    world = World(tmp_path)
    links = world.join("a", "b")
    callers = world.calls("1234567")

    order = []
    while busy := [link for link in links if link.has]:
        before = sent(links)
        first = busy[0].has[0]
        order.append(first)
        busy[0][first].answer()
        assert sent(links) <= before + 1

    assert [one for link in links for one in link.received if one in "567"] != []
    assert sorted(order) == list("1234567")
    assert told(callers) == ["ok"] * 7
    assert world.at_rest()


@in_virtual_time
async def test_the_order_of_what_waits_is_the_order_of_its_sending(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    world.calls("1234567")

    for identity in a.has:
        a[identity].answer()
    sent_on = a.has + [identity for identity in b.has if identity in "567"]

    assert sent_on == ["5", "6"]


@in_virtual_time
async def test_a_failure_makes_room_as_a_reply_does(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("12345")

    a[a.has[0]].fail(HandlerError("The function raised ValueError."))

    assert world.waiting == 0


@in_virtual_time
async def test_a_cancelled_call_makes_room(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")
    callers = world.calls("12345")

    callers[0].cancel()

    assert world.waiting == 0
    assert callers[0].told == []


@in_virtual_time
async def test_policies_without_a_bound_hold_nothing_back(tmp_path: Path) -> None:
    world = World(tmp_path, PowerOfK(dice()))
    links = world.join("a", "b")

    world.calls("12345678")

    assert sent(links) == 8


@in_virtual_time
async def test_functions_do_not_wait_for_each_others_calls(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    world.calls("12345")
    world.deploy("r2")

    world.call("6")

    assert "6" in a.has + b.has


# The order of what waits.


@in_virtual_time
async def test_the_higher_priority_goes_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    world.calls("1234")
    world.call("low", priority=-1)
    world.call("usual")
    world.call("high", priority=3)

    for link in (a, b):
        for identity in link.has:
            link[identity].answer()

    assert [one for one in (a.received + b.received) if len(one) > 1] == ["high", "usual", "low"]


@in_virtual_time
async def test_a_lower_priority_has_its_turn_however_many_come_before_it(tmp_path: Path) -> None:
    """One in sixteen."""
    world = World(tmp_path)
    [a, b] = world.join("a", "b")
    world.calls("1234")
    world.call("low")

    for number in range(40):
        world.call(f"high{number}", priority=5)
    for _ in range(20):
        a[a.has[0]].answer()

    assert "low" in a.received
    assert b.has == ["2", "4"] or b.has == ["3", "4"]


@in_virtual_time
async def test_tenants_take_turns(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    world.calls("mnop", tenant="many")
    world.call("few", tenant="few")

    for _ in range(2):
        a[a.has[0]].answer()

    assert a.received[-2:] == ["m", "few"]


@in_virtual_time
async def test_a_tenant_is_charged_what_its_calls_took(tmp_path: Path) -> None:
    """Where calls of one take ten times as long, the other has ten for one of them."""
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    for number in range(40):
        world.call(f"long{number}", tenant="long")
        world.call(f"short{number}", tenant="short")

    for _ in range(2):
        a[a.has[0]].answer()
    for _ in range(33):
        first = a.has[0]
        a[first].answer(exec_ms=1000 if "long" in first else 100)
    counted = Counter(one.strip("0123456789") for one in a.received)

    assert counted["long"] <= 6
    assert counted["short"] >= 25


@in_virtual_time
async def test_the_call_that_has_waited_most_of_its_slo_goes_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    world.call("patient", slo_s=10.0)
    await asyncio.sleep(0.5)
    world.call("urgent", slo_s=0.25)
    await asyncio.sleep(0.125)

    a[a.has[0]].answer()

    assert a.has[-1] == "urgent"


@in_virtual_time
async def test_the_earlier_deadline_goes_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    world.call("later", remaining_s=8.0)
    world.call("sooner", remaining_s=4.0)

    a[a.has[0]].answer()

    assert a.has[-1] == "sooner"


# A full queue.


@in_virtual_time
async def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    """As many as may wait on each worker."""
    world = World(tmp_path, limits={"queue": 2})
    world.join("a", "b")
    world.calls("12345678")

    with pytest.raises(QueueFull, match="4 invocations are waiting") as refused:
        world.call("9")

    assert refused.value.status == 429
    assert world.waiting == 4
    assert world.outcomes == {"queue_full": 1}
    # Four that take 0.1 s each, at two places.
    assert refused.value.retry_after_s == pytest.approx(0.2)


@in_virtual_time
async def test_a_function_without_a_queue_has_none_here_either(tmp_path: Path) -> None:
    world = World(tmp_path, limits={"queue": 0})
    world.join("a", "b")
    world.calls("1234")

    with pytest.raises(QueueFull):
        world.call("5")


@in_virtual_time
async def test_who_fills_the_queue_gives_a_place_to_who_has_none_and_is_told(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, limits={"queue": 2})
    world.join("a", "b")
    world.calls("1234")
    many = world.calls("mnop", tenant="many")

    few = world.call("few", tenant="few")

    assert told(many) == ["", "", "", "queue_full"]
    assert "fewer" in many[3].error.detail
    assert few.waits
    assert world.waiting == 4
    assert world.outcomes == {"queue_full": 1}


@in_virtual_time
async def test_the_queue_grows_with_the_workers(tmp_path: Path) -> None:
    world = World(tmp_path, limits={"queue": 1})
    world.join("a", "b")
    world.calls("123456")
    world.join("c")

    world.calls("789")

    assert world.waiting == 3


# Deadlines.


@in_virtual_time
async def test_a_deadline_that_passes_here_ends_the_wait(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    world.calls("1234")
    hasty = world.call("hasty", remaining_s=0.5)
    patient = world.call("patient", remaining_s=2.0)

    await asyncio.sleep(0.75)
    a[a.has[0]].answer()

    assert isinstance(hasty.error, DeadlineExceeded)
    assert patient.waits
    assert a.has[-1] == "patient"
    assert "hasty" not in a.received + b.received
    assert world.outcomes == {"deadline_exceeded": 1, "ok": 1}


@in_virtual_time
async def test_every_deadline_is_kept_in_whatever_order_they_come(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")
    world.calls("1234")
    callers = [world.call(remaining_s=seconds) for seconds in (2.0, 0.5, 1.0, 4.0)]

    seen = []
    for _ in range(4):
        await asyncio.sleep(0.75)
        seen.append(told(callers))

    late = "deadline_exceeded"
    assert seen[0] == ["", late, "", ""]
    assert seen[1] == ["", late, late, ""]
    assert seen[2] == [late, late, late, ""]
    assert seen[3] == [late, late, late, ""]


@in_virtual_time
async def test_what_reaches_the_worker_of_the_deadline_is_less_the_wait(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    world.call("w", remaining_s=8.0)

    await asyncio.sleep(3.0)
    a[a.has[0]].answer()

    assert a["w"].invocation.remaining_s == 5.0


@in_virtual_time
async def test_a_call_without_deadline_waits_for_as_long_as_it_takes(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    caller = world.call("w")

    await asyncio.sleep(10_000)
    a[a.has[0]].answer()
    a["w"].answer()

    assert caller.reply.body == b"ok"
    assert a.received[-1] == "w"


# Callers who leave.


@in_virtual_time
async def test_who_leaves_while_waiting_frees_the_place_and_is_never_sent(tmp_path: Path) -> None:
    world = World(tmp_path, limits={"queue": 1})
    a, b = world.join("a", "b")
    world.calls("1234")
    gone = world.call("gone", remaining_s=1.0)
    world.call("5")

    gone.cancel()
    world.call("6")
    await asyncio.sleep(2.0)
    for link in (a, b):
        for identity in link.has:
            link[identity].answer()

    assert "gone" not in a.received + b.received
    assert {"5", "6"} < set(a.received + b.received)
    assert gone.told == []
    assert world.outcomes == {"cancelled": 1, "ok": 4}


@in_virtual_time
async def test_leaving_twice_or_after_the_reply_counts_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = world.calls("123456")
    callers[5].cancel()
    while busy := [link for link in (a, b) if link.has]:
        busy[0][busy[0].has[0]].answer()

    for caller in callers:
        caller.cancel()
        caller.cancel()

    assert world.outcomes == {"ok": 5, "cancelled": 1}
    assert told(callers) == ["ok"] * 5 + [""]


@in_virtual_time
async def test_leaving_after_the_deadline_was_told_counts_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")
    world.calls("1234")
    late = world.call(remaining_s=0.5)
    await asyncio.sleep(1.0)

    late.cancel()

    assert world.outcomes == {"deadline_exceeded": 1}


@in_virtual_time
async def test_who_leaves_while_it_runs_has_it_stopped_and_hears_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    caller = world.call("1")
    running = a["1"]

    caller.cancel()

    assert running.cancelled
    assert caller.told == []
    assert world.outcomes == {"cancelled": 1}
    assert world.at_rest()


# Revisions that are replaced.


@in_virtual_time
async def test_what_waits_for_a_revision_that_is_replaced_goes_to_its_successor(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = world.calls("12345678")

    world.deploy("r2")
    moved = [one for link in (a, b) for one in link.under_way if one.invocation.id in "5678"]

    assert [one.invocation.revision for one in moved] == ["r2"] * 4
    assert world.waiting == 0
    while busy := [link for link in (a, b) if link.has]:
        busy[0][busy[0].has[0]].answer()
    assert [caller.reply.revision for caller in callers] == ["r1"] * 4 + ["r2"] * 4


@in_virtual_time
async def test_what_does_not_fit_the_successor_at_once_waits_for_it_in_the_same_order(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    world.calls("1234")
    late = world.call("late", remaining_s=0.75)
    world.calls("56789")
    world.call("first", priority=5)

    world.deploy("r2")
    moved = [one.invocation for link in (a, b) for one in link.under_way]
    at_once = [one.id for one in moved if one.revision == "r2"]
    await asyncio.sleep(1.0)
    a[a.has[0]].answer()
    a[a.has[0]].answer()
    a[a.has[0]].answer()

    assert at_once == ["first", "late", "5", "6"]
    assert late.waits
    assert a.has[-1] == "7"
    assert world.dispatcher.waiting() == {"default/echo@r2": 2}


@in_virtual_time
async def test_who_leaves_after_moving_to_the_successor_is_never_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = world.calls("123456789")
    world.deploy("r2")
    assert world.waiting == 1

    callers[8].cancel()
    while busy := [link for link in (a, b) if link.has]:
        busy[0][busy[0].has[0]].answer()

    assert "9" not in a.received + b.received
    assert callers[8].told == []
    assert world.outcomes == {"ok": 8, "cancelled": 1}


@in_virtual_time
async def test_what_waits_for_a_function_that_is_removed_is_told_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = world.calls("123456")

    world.remove()

    assert told(callers) == ["", "", "", "", "function_not_found", "function_not_found"]
    assert isinstance(callers[4].error, FunctionNotFound)
    assert world.waiting == 0
    while busy := [link for link in (a, b) if link.has]:
        busy[0][busy[0].has[0]].answer()
    assert world.outcomes == {"function_not_found": 2, "ok": 4}


@in_virtual_time
async def test_a_worker_that_does_not_know_a_replaced_revision_any_more_gets_its_successor(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    [a] = world.join("a")
    caller = world.call("1")
    before = a["1"]
    world.deploy("r2")

    before.fail(FunctionNotFound("Revision r1 is not on this worker."))
    a["1"].answer()

    assert caller.reply.revision == "r2"
    assert world.outcomes == {"ok": 1}
    assert world.at_rest()


@in_virtual_time
async def test_a_call_that_waits_for_its_second_try_can_be_left_and_has_its_deadline(
    tmp_path: Path,
) -> None:
    """It went out, and came back since its revision was replaced meanwhile."""
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = [world.call(identity, remaining_s=16.0) for identity in "123"]
    sent_first = [one for link in (a, b) for one in link.under_way]
    world.deploy("r2")
    world.calls("4567")

    await asyncio.sleep(1.0)
    for one in sent_first:
        one.fail(FunctionNotFound("Revision r1 is not on this worker."))
    assert world.waiting == 3
    callers[1].cancel()
    await asyncio.sleep(4.0)
    for identity in a.has:
        a[identity].answer()

    assert world.waiting == 0
    assert {a[one].invocation.remaining_s for one in a.has} == {11.0}
    assert callers[1].told == []
    for link in (a, b):
        for identity in link.has:
            link[identity].answer()
    assert told([callers[0], callers[2]]) == ["ok", "ok"]
    assert callers[0].reply.timings.queue == pytest.approx(4900)
    assert world.outcomes == {"ok": 6, "cancelled": 1}
    assert world.at_rest()


@in_virtual_time
async def test_nothing_is_kept_of_revisions_that_serve_no_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    for number in range(2, 6):
        world.calls("12")
        world.deploy(f"r{number}")
        for link in (a, b):
            for identity in link.has:
                link[identity].answer()

    assert repr(world.dispatcher) == "<Dispatcher 0 revisions, 0 waiting>"


# Workers that come and go.


@in_virtual_time
async def test_without_a_worker_a_call_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)

    with pytest.raises(Unavailable, match="No worker"):
        world.call()

    assert world.outcomes == {"unavailable": 1}


@in_virtual_time
async def test_what_waits_goes_to_a_worker_that_joins(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")
    world.calls("1234567")

    [late] = world.join("c")

    assert late.has == ["5", "6"]
    assert world.waiting == 1


@in_virtual_time
async def test_the_last_worker_that_is_left_gets_all_that_waits(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    callers = world.calls("12345678")
    before = list(a.has)

    world.leave("b")

    assert a.has == [*before, "5", "6", "7", "8"]
    assert told(callers).count("worker_lost") == 2
    world.call("9")
    for identity in a.has:
        a[identity].answer()
    assert world.at_rest()
    assert world.outcomes == {"worker_lost": 2, "ok": 7}


@in_virtual_time
async def test_nothing_that_waits_follows_a_worker_that_was_lost(tmp_path: Path) -> None:
    """Its calls fail one by one before its connection is gone: none of them makes room."""
    world = World(tmp_path)
    a, b, c = world.join("a", "b", "c")
    callers = world.calls("123456789")
    lost = list(b.has)

    world.links.pop("b").lose()

    assert b.has == []
    assert [caller.invocation.id for caller in callers if not caller.waits] == lost
    assert world.waiting == 3
    assert len(a.has) == len(c.has) == 2
    world.workers.leave(world.member("b"))
    while busy := [link for link in (a, c) if link.has]:
        busy[0][busy[0].has[0]].answer()
    assert world.outcomes == {"worker_lost": 2, "ok": 7}


@in_virtual_time
async def test_a_call_goes_to_another_worker_where_the_connection_proves_broken(
    tmp_path: Path,
) -> None:
    """It was not sent: that worker is taken for lost before the controller hears of it."""
    world = World(tmp_path, RoundRobin())
    a, b = world.join("a", "b")
    a.broken = WorkerLost("The connection between controller and worker ended.")

    world.calls("123")

    assert b.has == ["1", "2", "3"]
    assert str(world.member("a").status) == "lost"


@in_virtual_time
async def test_a_call_to_the_only_worker_whose_connection_proves_broken_is_refused(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    [a] = world.join("a")
    a.broken = WorkerLost("The connection between controller and worker ended.")

    with pytest.raises(Unavailable, match="No worker"):
        world.call()

    assert world.outcomes == {"unavailable": 1}
    assert world.at_rest()


@in_virtual_time
async def test_what_waits_is_told_when_the_last_worker_is_gone(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = world.calls("123456")
    b.broken = WorkerLost("The connection between controller and worker ended.")
    world.workers.drain("a")

    assert told(callers) == ["", "", "", "", "unavailable", "unavailable"]
    assert callers[5].error.retry_after_s == 1.0
    for link in (a, b):
        for identity in link.has:
            link[identity].answer()
    assert world.at_rest()
    assert world.outcomes == {"unavailable": 2, "ok": 4}


@in_virtual_time
async def test_a_drained_worker_gets_nothing_more_and_finishes_what_it_has(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    a, b, c = world.join("a", "b", "c")
    callers = world.calls("12345678")

    world.workers.drain("a")
    before = list(a.received)
    for identity in a.has:
        a[identity].answer()
    world.call("9")

    assert a.received == before
    assert world.waiting == 3
    while busy := [link for link in (b, c) if link.has]:
        busy[0][busy[0].has[0]].answer()
    assert told(callers) == ["ok"] * 8
    assert world.at_rest()


@in_virtual_time
async def test_a_thousand_that_wait_are_told_one_by_one_of_a_worker_that_refuses_all(
    tmp_path: Path,
) -> None:
    """Each refusal makes room for the next, which must not happen inside of it."""
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = [world.call() for _ in range(1200)]
    a.broken = b.broken = Unavailable("The worker is shutting down.")

    a[a.has[0]].answer()

    assert told(callers).count("unavailable") == 1196
    assert world.waiting == 0


# Sessions.


def worker_of(world: World, session: str) -> str:
    caller = world.call(session=session)
    [name] = [name for name, link in world.links.items() if caller.invocation.id in link.has]
    world.links[name][caller.invocation.id].answer()
    return name


SESSIONS = [f"s{number}" for number in range(40)]


@in_virtual_time
async def test_the_calls_of_a_session_go_to_one_worker_and_wait_there(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")

    for _ in range(9):
        world.call(session="s")

    assert sorted(len(link.has) for link in world.links.values()) == [0, 9]


@in_virtual_time
async def test_sessions_spread_over_the_workers(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")

    homes = Counter(worker_of(world, session) for session in SESSIONS)

    assert min(homes["a"], homes["b"]) >= 8


@in_virtual_time
async def test_a_session_stays_when_workers_join_and_others_leave(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")
    homes = {session: worker_of(world, session) for session in SESSIONS}

    world.join("c", "d")
    after_joins = {session: worker_of(world, session) for session in SESSIONS}
    world.leave("a")
    after_a_left = {session: worker_of(world, session) for session in SESSIONS}

    assert after_joins == homes
    moved = {session for session in SESSIONS if after_a_left[session] != homes[session]}
    assert moved == {session for session in SESSIONS if homes[session] == "a"}


@in_virtual_time
async def test_a_session_that_began_on_a_lone_worker_stays_when_others_join(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.join("a")
    for session in SESSIONS:
        worker_of(world, session)

    world.join("b", "c")

    assert {worker_of(world, session) for session in SESSIONS} == {"a"}


@in_virtual_time
async def test_a_session_keeps_its_worker_through_a_spell_of_being_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.join("a", "b")
    world.leave("b")
    for session in SESSIONS:
        worker_of(world, session)

    world.join("b")

    assert {worker_of(world, session) for session in SESSIONS} == {"a"}


@in_virtual_time
async def test_a_session_does_not_wait_behind_calls_that_have_none(tmp_path: Path) -> None:
    """Its worker's queue is where it has to wait anyway."""
    world = World(tmp_path)
    links = world.join("a", "b")
    world.calls("123456")

    world.call("s", session="s")

    assert "s" in links[0].has + links[1].has
    assert world.waiting == 2


def with_gpu(link: HeldWorker) -> None:
    counts = (0.0, 0.0, 0.0, 0, None, None)
    link.gpus = [GpuReport("GPU-1", "gpu0", "Model", "", "ready", "", 16_000.0, *counts)]


@in_virtual_time
async def test_sessions_of_a_gpu_function_stick_to_workers_that_have_one(tmp_path: Path) -> None:
    world = World(tmp_path, resources={"gpus": 1}, limits={"max_instances": 100})
    links = world.join("a", "b", "c", "d")
    for link in links[2:]:
        with_gpu(link)

    homes = {session: worker_of(world, session) for session in SESSIONS}
    for _ in range(10):
        world.call()
    again = {session: worker_of(world, session) for session in SESSIONS}

    assert min(Counter(homes.values())[name] for name in "cd") >= 8
    assert again == homes


# Sick workers.


@in_virtual_time
async def test_a_worker_that_fails_again_and_again_gets_one_probe_and_comes_back(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=3, base_s=1.0))
    a, b = world.join("a", "b")
    for _ in range(3):
        world.calls("12")
        a[a.has[0]].fail(StorageFull("The worker's disk is full."))
        b[b.has[0]].answer()

    world.calls("345678")
    assert (a.has, len(b.has)) == ([], 6)
    await asyncio.sleep(1.5)
    world.calls("9xyz")
    assert len(a.has) == 1
    a[a.has[0]].answer()
    world.calls("0o")
    assert len(a.has) == 1


@in_virtual_time
async def test_a_probe_that_fails_sends_the_worker_out_for_longer(tmp_path: Path) -> None:
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=1, base_s=1.0))
    a, _ = world.join("a", "b")
    world.calls("12")
    a[a.has[0]].fail(InternalError("The request could not be completed."))
    await asyncio.sleep(1.5)
    world.calls("34")

    a[a.has[0]].fail(InternalError("The request could not be completed."))
    await asyncio.sleep(1.5)
    world.calls("5678")
    out_for_longer = list(a.has)
    await asyncio.sleep(1.0)
    world.calls("9x")

    assert out_for_longer == []
    assert len(a.has) == 1


@in_virtual_time
async def test_a_probe_whose_caller_leaves_is_followed_by_another(tmp_path: Path) -> None:
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=1, base_s=1.0))
    a, _ = world.join("a", "b")
    world.calls("12")
    a[a.has[0]].fail(InternalError("The request could not be completed."))
    await asyncio.sleep(1.5)
    callers = world.calls("34")
    [probe] = a.has

    callers["34".index(probe)].cancel()
    world.calls("56")

    assert len(a.has) == 1


@in_virtual_time
async def test_a_sick_worker_is_probed_although_all_others_are_full(tmp_path: Path) -> None:
    world = World(tmp_path, breakers=Breakers(failures=1, base_s=1.0))
    a, b = world.join("a", "b")
    world.call("1")
    a[a.has[0]].fail(InternalError("The request could not be completed."))
    world.calls("234")
    assert (a.has, len(b.has), world.waiting) == ([], 2, 1)
    await asyncio.sleep(1.5)

    world.call("5")

    assert a.has == ["4"]
    a["4"].answer()
    assert a.has == ["5"]


@in_virtual_time
async def test_a_worker_that_is_well_again_gets_what_waits_for_any_revision(
    tmp_path: Path,
) -> None:
    """Whichever function's call it was that showed it."""
    world = World(tmp_path, breakers=Breakers(failures=1, base_s=1.0))
    a, b = world.join("a", "b")
    world.call("1")
    a["1"].fail(InternalError("The request could not be completed."))
    await asyncio.sleep(1.5)
    world.call("probe")
    world.deploy("r2")
    world.calls("2345")
    assert (a.has, b.has, world.waiting) == (["probe"], ["2", "3"], 2)

    a["probe"].answer()

    assert a.has == ["4", "5"]


@in_virtual_time
async def test_a_probe_that_ends_while_its_worker_is_alone_is_not_forgotten(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=1, base_s=1.0))
    a, _ = world.join("a", "b")
    world.calls("12")
    a[a.has[0]].fail(InternalError("The request could not be completed."))
    await asyncio.sleep(1.5)
    world.calls("34")
    [probe] = a.has

    world.leave("b")
    a[probe].answer()
    world.join("c")
    world.calls("567890")

    assert len(a.has) == 3


@in_virtual_time
async def test_failures_with_successes_between_them_are_no_sickness_on_a_lone_worker_either(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=3))
    [a] = world.join("a")
    for _ in range(9):
        world.calls("12")
        a[a.has[0]].fail(InternalError("The request could not be completed."))
        a[a.has[0]].answer()

    world.join("b")
    world.calls("3456")

    assert len(a.has) == 2


@in_virtual_time
async def test_what_failed_as_a_worker_left_is_not_held_against_its_successor(
    tmp_path: Path,
) -> None:
    """It drained, and was ended with calls under way."""
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=2))
    world.join("a", "b")
    world.calls("123456")
    world.workers.drain("a")
    world.leave("a")

    [again] = world.join("a")
    world.calls("7890")

    assert len(again.has) == 2


@in_virtual_time
async def test_errors_of_the_functions_own_make_no_worker_sick(tmp_path: Path) -> None:
    world = World(tmp_path, RoundRobin(), breakers=Breakers(failures=1))
    a, _ = world.join("a", "b")
    for _ in range(5):
        world.calls("12")
        for link in world.links.values():
            link[link.has[0]].fail(HandlerError("The function raised ValueError."))

    world.calls("34")

    assert len(a.has) == 1


@in_virtual_time
async def test_a_session_stays_on_a_sick_worker(tmp_path: Path) -> None:
    """What it has there is nowhere else."""
    world = World(tmp_path, breakers=Breakers(failures=1))
    world.join("a", "b")
    home = worker_of(world, "s")
    world.call("1", session="s")
    world.links[home]["1"].fail(InternalError("The request could not be completed."))

    world.call("2", session="s")

    assert world.links[home].has == ["2"]


# What is told and counted.


@in_virtual_time
async def test_the_wait_here_is_part_of_the_queue_time_that_callers_see(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    caller = world.call("w")

    await asyncio.sleep(2.0)
    a[a.has[0]].answer()
    await asyncio.sleep(1.0)
    a["w"].answer(exec_ms=250.0, queue_ms=125.0)

    assert caller.reply.timings.server_timing().startswith("queue;dur=2750.000,")
    assert caller.reply.timings.exec == 250.0
    assert world.metrics.of("default/echo").queue.total == pytest.approx(2.75)


@in_virtual_time
async def test_the_queue_time_of_a_call_that_did_not_wait_here_is_the_workers(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    caller = world.call("1")

    await asyncio.sleep(2.0)
    a["1"].answer(queue_ms=125.0)

    assert caller.reply.timings.queue == 125.0


@in_virtual_time
async def test_errors_tell_the_wait_here_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, _ = world.join("a", "b")
    world.calls("1234")
    late = world.call("late", remaining_s=1.5)
    failing = world.call("failing")

    await asyncio.sleep(2.0)
    a[a.has[0]].answer()
    error = HandlerError("The function raised ValueError.")
    error.extra["timings"] = [125.0, 0.0, 0.0, 0.0, 500.0]
    await asyncio.sleep(1.0)
    a["failing"].fail(error)

    assert late.error.extra["timings"] == [1500.0, 0.0, 0.0, 0.0, 0.0]
    assert failing.error.extra["timings"] == [2500.0, 0.0, 0.0, 0.0, 500.0]


@in_virtual_time
async def test_each_invocation_is_counted_once_whatever_becomes_of_it(tmp_path: Path) -> None:
    world = World(tmp_path, limits={"queue": 2})
    a, _ = world.join("a", "b")
    callers = world.calls("1234")
    callers.append(world.call("late", remaining_s=0.5))
    callers.append(world.call("displaced"))
    callers += world.calls("mn", tenant="many")
    callers.append(world.call("few", tenant="few"))
    with pytest.raises(QueueFull):
        world.call("refused", tenant="many")
    await asyncio.sleep(1.0)
    callers[6].cancel()
    a[a.has[0]].fail(HandlerError("The function raised ValueError."))
    world.leave("b")
    for identity in a.has:
        a[identity].answer()

    for caller in callers:
        caller.cancel()
    assert world.outcomes == {
        "queue_full": 2,
        "deadline_exceeded": 1,
        "cancelled": 1,
        "handler_error": 1,
        "worker_lost": 2,
        "ok": 3,
    }
    assert world.at_rest()


@in_virtual_time
async def test_a_receiver_that_fails_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    class Broken(Caller):
        def answered(self, reply: Reply) -> None:
            raise RuntimeError("the connection is no more")

        def failed(self, error: FaasdError) -> None:
            raise RuntimeError("the connection is no more")

    world = World(tmp_path)
    a, b = world.join("a", "b")
    broken = [Broken(world, caller.invocation) for caller in world.calls("1234")]
    for one, held in zip(broken, [*a.under_way, *b.under_way], strict=True):
        flight = held._receiver
        flight._receiver = one  # type: ignore[attr-defined]
    world.calls("56")

    with pytest.raises(RuntimeError):
        a[a.has[0]].answer()
    with pytest.raises(RuntimeError):
        b[b.has[0]].fail(HandlerError("The function raised ValueError."))

    assert world.waiting == 0
    assert a.has[-1] == "5"
    assert b.has[-1] == "6"
    assert [world.member(name).calls.own for name in "ab"] == [2, 2]


# What is known of the workers.


@in_virtual_time
async def test_a_stream_keeps_its_place_until_its_end(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    callers = world.calls("12345")

    a[a.has[0]].begin_stream(b"to ", b"be")
    assert world.waiting == 1
    [streaming] = [caller for caller in callers if not caller.waits]
    assert streaming.reply.chunks is not None
    body = [chunk async for chunk in streaming.reply.chunks]

    assert body == [b"to ", b"be"]
    assert world.waiting == 0
    for link in (a, b):
        for identity in link.has:
            link[identity].answer()
    assert world.at_rest()


@in_virtual_time
async def test_a_stream_that_nobody_reads_to_its_end_gives_its_place_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = world.join("a", "b")
    first, second = world.calls("12")
    for link in (a, b):
        for identity in link.has:
            link[identity].begin_stream(b"to ", b"be")

    assert first.reply.chunks is not None
    assert second.reply.chunks is not None
    await anext(first.reply.chunks)
    await close(first.reply.chunks)
    await close(second.reply.chunks)
    await close(second.reply.chunks)

    assert world.at_rest()
    assert world.outcomes == {"ok": 2}


@in_virtual_time
async def test_what_other_controllers_have_on_a_worker_is_forgotten_when_it_says_so(
    tmp_path: Path,
) -> None:
    """A worker that gets nothing because it was busy has no other way to tell."""
    world = World(tmp_path, LeastOutstanding(patience=0.0))
    a, b = world.join("a", "b")
    world.call("1")
    a.others = 50
    a["1"].answer()
    world.calls("23")
    assert b.has == ["2", "3"]

    a.others = 0
    a.tell_load()
    world.call("4")

    assert a.has == ["4"]
    assert [world.member(name).outstanding for name in "ab"] == [1, 2]


@in_virtual_time
async def test_long_calls_wait_here_and_short_ones_go_out_at_once(tmp_path: Path) -> None:
    """The automatic policy, which learns from replies how long calls take."""
    world = World(tmp_path, Automatic(dice()))
    a, b = world.join("a", "b")
    world.calls("123456")
    waited_before = world.waiting
    for _ in range(60):
        world.call()
        busy = max(a, b, key=lambda link: len(link.has))
        busy[busy.has[0]].answer(exec_ms=0.5)

    world.calls("uvwxyz")

    assert waited_before == 2
    assert world.waiting == 0


@in_virtual_time
async def test_streams_count_as_long_as_they_last(tmp_path: Path) -> None:
    """Else a function that streams would pass for a short one."""
    world = World(tmp_path, Automatic(dice()))
    a, b = world.join("a", "b")
    for _ in range(60):
        caller = world.call("s")
        link = a if a.has else b
        link["s"].begin_stream(b"word")
        await asyncio.sleep(0.5)
        assert caller.reply.chunks is not None
        async for _chunk in caller.reply.chunks:
            pass

    world.calls("123456")

    assert world.waiting == 2


@in_virtual_time
async def test_a_worker_with_an_idle_instance_is_preferred_until_it_is_full(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, Automatic(dice()), limits={"max_instances": 2})
    a, b = world.join("a", "b")
    b.functions = [FunctionReport("default/echo", "r1", "ready", 0, 2, 0, 0, 0.0)]

    world.calls("1234")

    assert (a.has, b.has) == (["4"], ["1", "2", "3"])
