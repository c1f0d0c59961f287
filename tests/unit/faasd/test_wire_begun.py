"""Requests that are begun, and told what became of them, without a task on either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from faasd.errors import (
    BadRequest,
    Cancelled,
    FaasdError,
    InternalError,
    NotFound,
    WorkerLost,
)
from faasd.flow import Inflow
from faasd.wire import (
    CANCEL,
    ERROR,
    ITEM,
    REPLY,
    REQUEST,
    Cancellable,
    Request,
)
from tests.loops import in_loop, until
from tests.unit.faasd.channels import (
    CHUNK,
    Producer,
    Told,
    connected,
    framed,
    last_of,
    quiet,
    raw_peer,
    working,
)

pytestmark = pytest.mark.usefixtures("each_loop")


@pytest.mark.parametrize("size", [0, 1, 255, 256, (1 << 15) - 1, 1 << 15, 65_535, 65_536, 3 << 20])
@in_loop
async def test_bodies_cross_both_ways_whatever_their_size(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async with working() as (here, there, work):
        call = Told()
        here.begin(call, "work", ["head"], body=body)
        await until(lambda: work.requests)
        assert work.requests[0].payload == ["head", body]

        work.requests[0].reply(["back"], body=body)
        await until(lambda: call.times)
        assert call.payloads == [["back", body]]
        assert quiet(here, there)


@in_loop
async def test_a_call_is_told_once_and_not_before_it_has_begun() -> None:
    async with working() as (here, _there, work):
        answered, failed = Told(), Told()
        for call in (answered, failed):
            here.begin(call, "work", None)
            assert not call.times
        await until(lambda: len(work.requests) == 2)

        work.requests[0].reply("one")
        work.requests[0].reply("two")
        work.requests[0].fail(NotFound("None."))
        work.requests[1].fail(NotFound("None."), [1, 2, 3])
        work.requests[1].reply("late")
        await until(lambda: answered.times and failed.times)
        await here.call("echo", None)

        assert (answered.payloads, answered.items, answered.errors) == (["one"], [None], [])
        assert (failed.payloads, failed.extras) == ([], [[1, 2, 3]])
        assert type(failed.errors[0]) is NotFound


@in_loop
async def test_requests_that_are_begun_need_no_task_each() -> None:
    async with working() as (here, _there, work):
        before = len(asyncio.all_tasks())
        calls = [Told() for _ in range(100)]
        for call in calls:
            here.begin(call, "work", None)
        await until(lambda: len(work.requests) == 100)

        assert len(asyncio.all_tasks()) == before
        for request in work.requests:
            request.reply(None)
        await until(lambda: all(call.times for call in calls))


@pytest.mark.parametrize(
    ("raised", "told"), [(NotFound("None."), NotFound), (ZeroDivisionError(), InternalError)]
)
@in_loop
async def test_what_is_refused_when_it_is_begun_fails_alone(
    raised: Exception, told: type[FaasdError]
) -> None:
    def refuse(_request: Request) -> Cancellable:
        raise raised

    async with connected(begin={"refused": refuse}) as (here, there):
        call = Told()
        here.begin(call, "refused", None)
        await until(lambda: call.times)

        assert [type(error) for error in call.errors] == [told]
        assert (await here.call("echo", "alive")).payload == "alive"
        assert quiet(here, there)


@in_loop
async def test_a_reply_or_an_error_that_cannot_be_packed_is_a_defect_of_the_other_side() -> None:
    async with working() as (here, _there, work):
        calls = [Told(), Told()]
        for call in calls:
            here.begin(call, "work", None)
        await until(lambda: len(work.requests) == 2)

        work.requests[0].reply(object())
        work.requests[1].fail(NotFound("None.", detail_of_it=object()))
        await until(lambda: all(call.times for call in calls))

        assert {type(call.errors[0]) for call in calls} == {InternalError}


@in_loop
async def test_a_request_that_cannot_be_packed_is_refused_at_once_and_no_other() -> None:
    async with working() as (here, _there, work):
        kept, refused = Told(), Told()
        here.begin(kept, "work", 1)
        with pytest.raises(BadRequest):
            here.begin(refused, "work", ["\udcff"], body=b"x")
        with pytest.raises(BadRequest):
            await here.call("work", object())
        await until(lambda: work.requests)

        work.requests[0].reply(2)
        await until(lambda: kept.times)
        assert (kept.payloads, refused.times) == ([2], 0)


@in_loop
async def test_a_call_that_is_cancelled_is_told_nothing_and_its_work_given_up() -> None:
    async with working() as (here, there, work):
        call = Told()
        here.begin(call, "work", "given up")
        await until(lambda: work.requests)

        call.cancel()
        call.cancel()
        await until(lambda: work.cancelled)
        work.requests[0].reply("late")
        work.requests[0].fail(NotFound("Late."))
        await here.call("echo", None)

        assert (call.times, work.cancelled) == (0, ["given up"])
        assert quiet(here, there)


@pytest.mark.parametrize(
    "answer", [[REPLY, 1, False, None], [REPLY, 1, True, None], [ERROR, 1, {}, None]]
)
@in_loop
async def test_a_call_that_is_cancelled_while_its_answer_is_on_the_way_is_told_nothing(
    answer: list[Any],
) -> None:
    async with raw_peer() as (channel, (reader, writer), _served):
        call = Told()
        channel.begin(call, "work", None)
        asked = framed([REQUEST, 1, False, "work", None])
        assert await reader.readexactly(len(asked)) == asked
        writer.write(framed(answer) + framed([ITEM, 1, b"x"]) + framed([REQUEST, 7, False, "m", 1]))

        call.cancel()

        expected = framed([CANCEL, 1]) + framed([REPLY, 7, False, 1])
        assert await reader.readexactly(len(expected)) == expected
        assert call.times == 0
        assert quiet(channel)


@in_loop
async def test_a_cancellation_that_meets_the_answer_is_no_news_to_the_other_side() -> None:
    async with working() as (here, there, work):
        call = Told()
        here.begin(call, "work", None)
        await until(lambda: work.requests)

        work.requests[0].reply(None)
        call.cancel()
        await here.call("echo", None)

        assert (call.times, work.cancelled) == (0, [])
        assert quiet(here, there)


@in_loop
async def test_a_lost_connection_fails_calls_once_and_gives_up_the_work() -> None:
    async with working() as (here, there, work):
        calls = [Told() for _ in range(10)]
        for call in calls:
            here.begin(call, "work", "x")
        await until(lambda: len(work.requests) == 10)

        there.close()
        await until(lambda: quiet(here, there))
        for request in work.requests:
            request.reply("late")

        assert [[type(error) for error in call.errors] for call in calls] == [[WorkerLost]] * 10
        assert work.cancelled == ["x"] * 10
        with pytest.raises(WorkerLost):
            here.begin(Told(), "work", None)


@in_loop
async def test_what_is_told_of_a_lost_connection_may_give_up_the_rest() -> None:
    class Last(Told):
        __slots__ = ()

        def failed(self, error: FaasdError, extra: Any) -> None:
            super().failed(error, extra)
            for other in calls:
                other.cancel()

    async with working() as (here, there, work):
        calls = [Last() for _ in range(3)]
        for call in calls:
            here.begin(call, "work", None)
        await until(lambda: len(work.requests) == 3)

        there.close()
        await until(lambda: quiet(here))

        assert sum(call.times for call in calls) == 1


@in_loop
async def test_a_call_may_begin_another_from_what_it_is_told() -> None:
    class Chain(Told):
        __slots__ = ()

        def replied(self, payload: Any, items: Inflow | None) -> None:
            super().replied(payload, items)
            if payload < 100:
                here.begin(self, "work", payload + 1)

    def answer(request: Request) -> None:
        request.reply(request.payload)

    async with connected(begin={"work": answer}) as (here, there):
        call = Chain()
        here.begin(call, "work", 1)
        await until(lambda: call.payloads[-1:] == [100])

        assert quiet(here, there)


@in_loop
async def test_items_follow_a_reply_that_was_begun() -> None:
    producer = Producer([b"1", b"2"])
    async with working() as (here, there, work):
        call = Told()
        here.begin(call, "work", None)
        await until(lambda: work.requests)
        work.requests[0].reply("head", items=producer.run())
        await until(lambda: call.times)

        [items] = call.items
        assert items is not None
        assert [item async for item in items] == [b"1", b"2"]
        assert call.payloads == ["head"]
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize("read", [0, 2])
@in_loop
async def test_cancelling_a_call_ends_its_items_on_both_sides(read: int) -> None:
    producer = Producer([b"x" * CHUNK] * 1000)
    async with working() as (here, there, work):
        call = Told()
        here.begin(call, "work", None)
        await until(lambda: work.requests)
        work.requests[0].reply(None, items=producer.run())
        await until(lambda: call.items)
        [items] = call.items
        assert items is not None
        for _ in range(read):
            await anext(items)
        await until(lambda: producer.produced)

        call.cancel()

        with pytest.raises(Cancelled):
            await last_of(items)
        await producer.stopped.wait()
        assert quiet(here, there)


@pytest.mark.parametrize("told", ["cancelled", "answered", "unsendable"])
@in_loop
async def test_items_that_come_too_late_are_closed(told: str) -> None:
    producer = Producer([])

    class Source:
        closed = False

        def __aiter__(self) -> AsyncIterator[Any]:
            return producer.run()

        async def __anext__(self) -> Any:
            raise AssertionError

        async def aclose(self) -> None:
            self.closed = True

    source = Source()
    async with working() as (here, _there, work):
        call = Told()
        here.begin(call, "work", None)
        await until(lambda: work.requests)
        if told == "cancelled":
            call.cancel()
            await until(lambda: work.cancelled)
        elif told == "answered":
            work.requests[0].reply(None)

        work.requests[0].reply(object() if told == "unsendable" else None, items=source)

        await until(lambda: source.closed)


@in_loop
async def test_who_waits_until_all_is_served_waits_for_work_and_its_items() -> None:
    hold = asyncio.Event()

    async def items() -> AsyncIterator[Any]:
        await hold.wait()
        yield b"last"

    async with working() as (here, there, work):
        call, other = Told(), Told()
        here.begin(call, "work", None)
        here.begin(other, "work", None)
        await until(lambda: len(work.requests) == 2)
        served = asyncio.ensure_future(there.served("work"))
        await there.served("anything else")

        work.requests[0].reply(None)
        work.requests[1].reply(None, items=items())
        await here.call("echo", None)
        assert not served.done()
        hold.set()
        await served
