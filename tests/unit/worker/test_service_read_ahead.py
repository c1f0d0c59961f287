"""A service whose serial instances are sent calls ahead of their turn: who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from faasd.invocation import Reply
from faasd.policies.readahead import ReadAhead
from tests.loops import in_virtual_time
from tests.unit.worker.serials import Caller, SerialInstance, SerialService


async def settle() -> None:
    """Let forks and what they cause come about."""
    for _ in range(10):
        await asyncio.sleep(0)


async def proved(*, instances: int = 1, **options: object) -> tuple[SerialService, SerialInstance]:
    """A service and its only instance, whose calls have been short for long."""
    limits = {"max_instances": instances, "timeout_s": 8.0}
    await asyncio.sleep(1.0)
    world = SerialService(limits=limits, **options)  # type: ignore[arg-type]
    first = world.call()
    await settle()
    [instance] = world.living
    instance.answer()
    for _ in range(ReadAhead.FIRST_PROOF):
        world.call()
        instance.answer()
    await settle()
    assert first.code == "ok"
    world.callers.clear()
    return world, instance


def codes(callers: list[Caller]) -> list[str]:
    return [caller.code for caller in callers]


@in_virtual_time
async def test_calls_are_sent_ahead_and_answered_in_turn() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(4)]

    assert instance.calls == [caller.id for caller in callers]
    for _ in range(4):
        instance.answer()
    await settle()

    assert codes(callers) == ["ok"] * 4
    assert (world.tally.outstanding, world.tally.running) == (0, 0)


@in_virtual_time
async def test_the_wait_in_the_instance_is_queue_time() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(3)]

    for _ in callers:
        await asyncio.sleep(1.0)
        instance.answer(exec_ms=1000.0)

    queues = [caller.told[0].timings.queue for caller in callers if caller.told]  # type: ignore[union-attr]
    assert queues == [0.0, 1000.0, 2000.0]


@in_virtual_time
async def test_an_instance_that_dies_fails_what_it_ran_and_the_next_serves_the_rest() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(4)]
    instance.answer()

    instance.die()
    await settle()
    [following] = world.living
    assert following.calls == [caller.id for caller in callers[2:]]
    for _ in range(2):
        following.answer()
    await settle()

    assert codes(callers) == ["ok", "instance_died", "ok", "ok"]
    assert (world.tally.outstanding, world.tally.running) == (0, 0)


@in_virtual_time
async def test_a_call_held_ahead_whose_caller_leaves_hurts_nobody() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(3)]

    callers[1].leave()
    await asyncio.sleep(4.0)
    for _ in range(3):
        instance.answer()
    await settle()

    assert not instance.killed
    assert codes(callers) == ["ok", "", "ok"]
    assert (world.tally.outstanding, world.tally.running) == (0, 0)


@in_virtual_time
async def test_nor_does_it_where_there_is_no_time_to_stop() -> None:
    """FAASD_WORKER_CANCEL_GRACE_S = 0: what is told to stop is killed at once, if it runs."""
    world, instance = await proved(cancel_grace_s=0.0)
    callers = [world.call() for _ in range(3)]

    callers[1].leave()
    await asyncio.sleep(1.0)
    assert not instance.killed
    for _ in range(3):
        instance.answer()
    await settle()

    assert codes(callers) == ["ok", "", "ok"]


@in_virtual_time
async def test_a_running_call_whose_caller_leaves_is_killed_alone() -> None:
    world, instance = await proved(cancel_grace_s=0.0)
    callers = [world.call() for _ in range(3)]

    callers[0].leave()
    await asyncio.sleep(1.0)
    [following] = world.living

    assert instance.killed
    assert following.calls == [caller.id for caller in callers[1:]]
    following.answer()
    following.answer()
    assert codes(callers) == ["", "ok", "ok"]


@in_virtual_time
async def test_a_call_held_ahead_that_was_left_is_not_begun_anew_elsewhere() -> None:
    for grace_s in (0.0, 1.0):
        world, instance = await proved(cancel_grace_s=grace_s)
        callers = [world.call() for _ in range(3)]

        callers[1].leave()
        instance.die()
        await asyncio.sleep(0.5)
        [following] = world.living

        assert following.calls == [callers[2].id]
        following.answer()
        await settle()
        assert codes(callers) == ["instance_died", "", "ok"]
        assert (world.tally.outstanding, world.tally.running) == (0, 0)


@in_virtual_time
async def test_a_deadline_that_passes_while_a_call_is_held_ahead_is_told_and_hurts_nobody() -> None:
    for grace_s in (0.0, 1.0):
        world, instance = await proved(cancel_grace_s=grace_s)
        running, late, last = world.call(), world.call(0.5), world.call()

        await asyncio.sleep(4.0)
        assert codes([running, late, last]) == ["", "deadline_exceeded", ""]
        assert not instance.killed
        for _ in range(3):
            instance.answer()
        await settle()

        assert codes([running, late, last]) == ["ok", "deadline_exceeded", "ok"]
        assert (world.tally.outstanding, world.tally.running) == (0, 0)


@in_virtual_time
async def test_the_functions_time_limit_begins_with_a_calls_turn() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(2)]

    await asyncio.sleep(6.0)
    instance.answer()
    await asyncio.sleep(6.0)
    still_waits = not callers[1].told
    await asyncio.sleep(4.0)

    assert still_waits
    assert codes(callers) == ["ok", "function_timeout"]


@in_virtual_time
async def test_a_call_past_the_limit_ends_its_instance_and_what_it_held_is_served() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(3)]

    await asyncio.sleep(9.0)
    [following] = world.living
    for _ in range(2):
        following.answer()
    await settle()

    assert instance.gone
    assert codes(callers) == ["function_timeout", "ok", "ok"]


@pytest.mark.parametrize("take_along", [True, False])
def test_what_was_printed_ends_sending_ahead(*, take_along: bool) -> None:
    @in_virtual_time
    async def scenario() -> None:
        world, instance = await proved()
        callers = [world.call() for _ in range(2)]

        instance.answer(printed=take_along)
        callers += [world.call() for _ in range(2)]

        assert len(instance.calls) == (1 if take_along else 3)

    scenario()


@in_virtual_time
async def test_a_stream_is_followed_by_nothing_until_calls_have_proved_short_again() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(2)]

    instance.begin_stream()
    instance.end_stream()
    callers += [world.call() for _ in range(2)]

    assert isinstance(callers[0].told[0], Reply)
    assert callers[0].told[0].chunks is not None
    assert [chunk async for chunk in callers[0].told[0].chunks] == [b"to be"]
    assert instance.calls == [callers[1].id]


@in_virtual_time
async def test_a_retired_service_finishes_what_is_held_and_is_empty_then() -> None:
    world, instance = await proved()
    callers = [world.call() for _ in range(3)]

    world.service.retire()
    for _ in range(3):
        instance.answer()
    await asyncio.sleep(1.0)

    assert codes(callers) == ["ok"] * 3
    assert world.emptied


@in_virtual_time
async def test_a_service_in_which_calls_are_held_ahead_cannot_be_evicted() -> None:
    world, _ = await proved()
    world.call()
    world.call()

    assert world.service.idle_holders()[0] is None


@in_virtual_time
async def test_closing_a_service_tells_those_whose_calls_are_held_ahead() -> None:
    world, _ = await proved()
    callers = [world.call() for _ in range(3)]

    await world.service.aclose()

    assert codes(callers) == ["unavailable"] * 3
    assert (world.tally.outstanding, world.tally.running) == (0, 0)


Act = Callable[[SerialInstance], None]


@pytest.mark.parametrize(
    ("act", "code"),
    [(SerialInstance.answer, "ok"), (SerialInstance.fail, "handler_error")],
)
def test_each_end_of_a_call_lets_the_next_begin(act: Act, code: str) -> None:
    @in_virtual_time
    async def scenario() -> None:
        world, instance = await proved()
        assert world.service.pool.read_ahead is not None
        depth = world.service.pool.read_ahead.depth
        callers = [world.call() for _ in range(depth + 5)]

        act(instance)
        await settle()

        assert callers[0].code == code
        assert len(instance.calls) == depth + 1

    scenario()
