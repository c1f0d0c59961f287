"""Items that follow a reply or a request: in order, bounded, and ended from either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from faasd.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    FaasdError,
    InternalError,
    NotFound,
    WorkerLost,
)
from faasd.flow import WINDOW
from faasd.streams import Closable
from faasd.wire import (
    Answer,
    Channel,
    Request,
)
from tests.loops import in_loop, until
from tests.unit.faasd.channels import (
    CHUNK,
    Producer,
    Told,
    Waiting,
    close,
    collect,
    connected,
    echo,
    items_of,
    quiet,
    raw_peer,
)

pytestmark = pytest.mark.usefixtures("each_loop")


@in_loop
async def test_items_follow_the_reply_in_order() -> None:
    items = [b"bytes", "text", None, {"a": 1}, b""]
    producer = Producer(items)
    async with connected(producer.serve) as (here, there):
        answer = await here.call("stream", "head")

        assert answer.payload == "head"
        assert await items_of(answer) == items
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_stream_may_be_empty() -> None:
    async with connected(Producer([]).serve) as (here, there):
        assert await items_of(await here.call("stream", None)) == []
        await until(lambda: quiet(here, there))


@in_loop
async def test_an_error_in_mid_stream_comes_after_the_items_before_it() -> None:
    producer = Producer([1, 2], fails=Conflict("No further."))
    async with connected(producer.serve) as (here, there):
        answer = await here.call("stream", None)
        assert answer.items is not None

        assert [await anext(answer.items), await anext(answer.items)] == [1, 2]
        with pytest.raises(Conflict, match="No further"):
            await anext(answer.items)
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_reader_that_does_not_read_holds_up_its_own_stream_only() -> None:
    total = 5 * WINDOW // CHUNK
    slow, fast = Producer([b"s" * CHUNK] * total), Producer([b"f" * CHUNK] * total)

    async def serve(request: Request) -> Answer:
        return await {"slow": slow, "fast": fast}[request.method].serve(request)

    async with connected(serve) as (here, there):
        held_up = await here.call("slow", None)
        await until(lambda: slow.produced * CHUNK >= WINDOW)

        assert len(await items_of(await here.call("fast", None))) == total
        assert WINDOW <= slow.produced * CHUNK <= WINDOW + CHUNK

        assert len(await items_of(held_up)) == total
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize("item", [b"", b"x", "x", {"line": "x"}])
@in_loop
async def test_small_items_are_held_up_too(item: Any) -> None:
    producer = Producer([item] * 20_000)

    async def serve(request: Request) -> Answer:
        return await (producer.serve if request.method == "stream" else echo)(request)

    async with connected(serve) as (here, _there):
        answer = await here.call("stream", None)
        await until(lambda: producer.produced * 256 >= WINDOW)
        for _ in range(20):
            await here.call("echo", None)

        assert producer.produced < 5000
        assert len(await items_of(answer)) == 20_000


@in_loop
async def test_an_item_larger_than_the_window_passes() -> None:
    large = b"l" * (3 * WINDOW)
    async with connected(Producer([large, large, b"end"]).serve) as (here, _there):
        assert await items_of(await here.call("stream", None)) == [large, large, b"end"]


@pytest.mark.parametrize("taken", [0, 1, 40])
@in_loop
async def test_closing_a_stream_early_ends_its_producer(taken: int) -> None:
    producer = Producer([b"x" * CHUNK] * 1000)
    async with connected(producer.serve) as (here, there):
        answer = await here.call("stream", None)
        assert answer.items is not None
        for _ in range(taken):
            await anext(answer.items)

        await close(answer)

        await producer.stopped.wait()
        await until(lambda: quiet(here, there))
        assert producer.produced < 1000


@in_loop
async def test_a_stream_closed_early_gives_no_more() -> None:
    async with connected(Producer([1, 2]).serve) as (here, _there):
        answer = await here.call("stream", None)

        await close(answer)
        await close(answer)

        assert await items_of(answer) == []


@in_loop
async def test_a_reader_that_is_cancelled_ends_the_producer() -> None:
    taken: list[Any] = []
    ended = asyncio.Event()

    async def stall() -> AsyncIterator[Any]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def read(items: AsyncIterator[Any] | None) -> None:
        assert items is not None
        async for item in items:
            taken.append(item)  # noqa: PERF401

    async def serve(_request: Request) -> Answer:
        return Answer(None, stall())

    async with connected(serve) as (here, there):
        reading = asyncio.ensure_future(read((await here.call("stream", None)).items))
        await until(lambda: taken)

        reading.cancel()

        await ended.wait()
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_lost_connection_breaks_off_a_stream_after_what_had_come() -> None:
    ended = asyncio.Event()

    async def stall() -> AsyncIterator[Any]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def serve(_request: Request) -> Answer:
        return Answer(None, stall())

    async with connected(serve) as (here, there):
        answer = await here.call("stream", None)
        assert answer.items is not None
        assert await anext(answer.items) == "first"

        there.close()

        with pytest.raises(WorkerLost):
            await anext(answer.items)
        await ended.wait()


@in_loop
async def test_a_stream_that_had_come_whole_is_read_whole_after_the_connection_is_lost() -> None:
    async with connected(Producer([1, 2, 3]).serve) as (here, there):
        answer = await here.call("stream", None)
        await until(lambda: quiet(there))
        await here.call("stream", None)

        here.close()
        await until(lambda: "0 in" in repr(here))
        with pytest.raises(WorkerLost):
            await here.call("stream", None)

        assert await items_of(answer) == [1, 2, 3]


@pytest.mark.parametrize("items", [[], [b""], [b"a", "b", None, 4], [b"x" * CHUNK] * 40])
@in_loop
async def test_a_request_may_bring_items_which_are_read_in_order(items: list[Any]) -> None:
    producer = Producer(items)
    async with connected(collect) as (here, there):
        answer = await here.call("upload", None, producer.run())

        assert answer.payload == items
        await until(lambda: quiet(here, there))


@in_loop
async def test_parts_and_items_of_one_request_cross_at_once() -> None:
    async def back(request: Request) -> Answer:
        return Answer("head", request.items)

    items = [bytes([n]) * CHUNK for n in range(100)]
    async with connected(back) as (here, there):
        answer = await here.call("both", None, Producer(items).run())

        assert answer.payload == "head"
        assert await items_of(answer) == items
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_server_that_does_not_read_holds_up_its_own_request_only() -> None:
    total = 5 * WINDOW // CHUNK
    slow = Producer([b"s" * CHUNK] * total)
    go = asyncio.Event()

    async def serve(request: Request) -> Answer:
        if request.method == "slow":
            await go.wait()
        return await collect(request)

    async with connected(serve) as (here, there):
        held_up = asyncio.ensure_future(here.call("slow", None, slow.run()))
        await until(lambda: slow.produced * CHUNK >= WINDOW)
        fast = await here.call("fast", None, Producer([b"f" * CHUNK] * total).run())

        assert len(fast.payload) == total
        assert WINDOW <= slow.produced * CHUNK <= WINDOW + CHUNK
        go.set()
        assert len((await held_up).payload) == total
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_socket_that_is_full_holds_up_the_source() -> None:
    async with raw_peer() as (channel, _streams, _served):
        calls = [Told() for _ in range(20)]
        producers = [Producer([b"x" * CHUNK] * 100) for _ in calls]
        for call, one in zip(calls, producers, strict=True):
            channel.begin(call, "upload", None, items=one.run())
        await until(lambda: channel._connection.paused)
        for _ in range(50):
            await asyncio.sleep(0)

        assert sum(one.produced for one in producers) * CHUNK < 20 * WINDOW // 2


@pytest.mark.parametrize(
    ("raised", "told"), [(NotFound("None."), NotFound), (ZeroDivisionError(), InternalError)]
)
@in_loop
async def test_a_source_that_fails_fails_its_call_and_cancels_it_on_the_other_side(
    raised: Exception, told: type[FaasdError]
) -> None:
    ends: list[BaseException] = []

    async def serve(request: Request) -> Answer:
        try:
            return await collect(request)
        except BaseException as error:
            ends.append(error)
            raise

    async def source() -> AsyncIterator[Any]:
        yield b"first"
        await until(lambda: quiet_but_one(there))
        raise raised

    def quiet_but_one(channel: Channel) -> bool:
        return repr(channel) == "<Channel 0 out, 1 in>"

    async with connected(serve) as (here, there):
        with pytest.raises(told):
            await here.call("upload", None, source())
        await until(lambda: ends)

        assert isinstance(ends[0], Cancelled | asyncio.CancelledError)
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize("started", [True, False])
@in_loop
async def test_a_call_that_is_cancelled_closes_its_source(*, started: bool) -> None:
    waiting = Waiting()
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield b"x" * CHUNK
        finally:
            closed.set()

    source = Closable(endless(), unread=closed.set)
    async with connected(waiting.serve) as (here, there):
        asked = asyncio.ensure_future(here.call("upload", "x", source))
        if started:
            await until(lambda: waiting.begun)
        else:
            await asyncio.sleep(0)

        asked.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asked
        await closed.wait()
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize("outcome", ["answered", "refused"])
@in_loop
async def test_an_answer_before_the_last_part_ends_the_source(outcome: str) -> None:
    async def serve(request: Request) -> Answer:
        assert request.items is not None
        await anext(request.items)
        if outcome == "refused":
            raise Conflict("Enough.")
        return Answer("enough")

    producer = Producer([b"x" * CHUNK] * 1000)
    async with connected(serve) as (here, there):
        call = here.call("upload", None, producer.run())
        if outcome == "refused":
            with pytest.raises(Conflict):
                await call
        else:
            assert (await call).payload == "enough"

        await producer.stopped.wait()
        assert producer.produced < 1000
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_server_that_closes_its_items_early_still_answers() -> None:
    async def serve(request: Request) -> Answer:
        assert request.items is not None
        await request.items.aclose()
        await until(lambda: producer.produced * CHUNK >= WINDOW)
        return Answer("enough")

    producer = Producer([b"x" * CHUNK] * 1000)
    async with connected(serve) as (here, there):
        assert (await here.call("upload", None, producer.run())).payload == "enough"
        await producer.stopped.wait()
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_lost_connection_ends_what_is_sent_and_what_is_read_of_it() -> None:
    seen: list[BaseException] = []

    async def serve(request: Request) -> Answer:
        try:
            return await collect(request)
        except BaseException as error:
            seen.append(error)
            raise

    async def stalled() -> AsyncIterator[Any]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            closed.set()

    closed = asyncio.Event()
    async with connected(serve) as (here, there):
        asked = asyncio.ensure_future(here.call("upload", None, stalled()))
        await until(lambda: "1 in" in repr(there))

        there.close()

        with pytest.raises(WorkerLost):
            await asked
        await closed.wait()
        await until(lambda: seen)


@in_loop
async def test_items_of_a_request_that_cannot_begin_are_closed() -> None:
    closed = asyncio.Event()

    async def never() -> AsyncGenerator[Any, None]:
        yield b"x"

    async with connected() as (here, _there):
        with pytest.raises(BadRequest):
            await here.call("upload", object(), Closable(never(), unread=closed.set))
        await closed.wait()
        closed.clear()

        here.close()
        with pytest.raises(WorkerLost):
            await here.call("upload", None, Closable(never(), unread=closed.set))
        await closed.wait()
