"""The connection between controller and worker: multiplexed, bounded, and hard to upset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.errors import (
    BY_CODE,
    Cancelled,
    Conflict,
    FaasdError,
    InternalError,
    NotFound,
    Unauthorized,
    WorkerLost,
)
from faasd.wire import (
    CANCEL,
    CREDIT,
    END,
    ERROR,
    ITEM,
    MAX_FRAME,
    NOTE,
    REPLY,
    REQUEST,
    WINDOW,
    Answer,
    Channel,
    Serve,
    greet_controller,
    greet_worker,
)
from tests.loops import in_loop, run_bounded, until

CHUNK = 1 << 16
SECRET = "a secret of the tests"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def streams() -> tuple[Streams, Streams]:
    left, right = socket.socketpair()
    return await asyncio.open_connection(sock=left), await asyncio.open_connection(sock=right)


def ignore(_method: str, _payload: Any) -> None:
    return


async def echo(_method: str, payload: Any) -> Answer:
    return Answer(payload)


@contextlib.asynccontextmanager
async def serving(
    ends: Streams, serve: Serve = echo, note: Callable[[str, Any], None] = ignore
) -> AsyncIterator[Channel]:
    """A channel that is run; its `run` must return by itself once it is closed."""
    channel = Channel(*ends, serve=serve, note=note)
    served = asyncio.ensure_future(channel.run())
    try:
        yield channel
    finally:
        channel.close()
        await served


@contextlib.asynccontextmanager
async def connected(
    serve: Serve = echo,
    *,
    back: Serve = echo,
    note: Callable[[str, Any], None] = ignore,
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two channels: the second serves the first with `serve`, and hears its notes."""
    left, right = await streams()
    async with serving(left, back) as here, serving(right, serve, note) as there:
        yield here, there


def quiet(*channels: Channel) -> bool:
    """Nothing is under way."""
    return all(repr(channel) == "<Channel 0 out, 0 in>" for channel in channels)


class Producer:
    """A stream that says how far it came, and whether it was ended from outside."""

    def __init__(self, items: list[Any], *, fails: FaasdError | None = None) -> None:
        self.items = items
        self.fails = fails
        self.produced = 0
        self.stopped = asyncio.Event()

    async def serve(self, _method: str, payload: Any) -> Answer:
        return Answer(payload, self.run())

    async def run(self) -> AsyncIterator[Any]:
        try:
            for item in self.items:
                self.produced += 1
                yield item
            if self.fails is not None:
                raise self.fails
        finally:
            self.stopped.set()


class Waiting:
    """Serves requests that are answered only when the test says so."""

    def __init__(self) -> None:
        self.begun: dict[Any, asyncio.Future[Any]] = {}
        self.cancelled: list[Any] = []

    async def serve(self, _method: str, payload: Any) -> Answer:
        self.begun[payload] = asyncio.get_running_loop().create_future()
        try:
            return Answer(await self.begun[payload])
        except asyncio.CancelledError:
            self.cancelled.append(payload)
            raise


async def items_of(answer: Answer) -> list[Any]:
    assert answer.items is not None
    return [item async for item in answer.items]


async def close(answer: Answer) -> None:
    assert answer.items is not None
    await answer.items.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "payload", [None, b"", b"\0\xff", "text", 7, [1, [2.5]], {"a": None}, b"x" * (5 << 20)]
)
@in_loop
async def test_a_request_is_answered_with_what_the_other_side_says(payload: Any) -> None:
    async with connected() as (here, there):
        answer = await here.call("echo", payload)

        assert answer == Answer(payload, None)
        await until(lambda: quiet(here, there))


@in_loop
async def test_the_method_is_told() -> None:
    async def name(method: str, _payload: Any) -> Answer:
        return Answer(method)

    async with connected(name) as (here, _there):
        assert (await here.call("the method", None)).payload == "the method"


@in_loop
async def test_both_sides_ask_each_other_at_once() -> None:
    async def double(_method: str, payload: Any) -> Answer:
        return Answer(payload * 2)

    async with connected(double) as (here, there):
        asked = [channel.call("any", n) for n in range(50) for channel in (here, there)]
        answers = [answer.payload for answer in await asyncio.gather(*asked)]

    assert answers == [value for n in range(50) for value in (n * 2, n)]


@in_loop
async def test_a_request_may_ask_back_before_it_is_answered() -> None:
    async with contextlib.AsyncExitStack() as stack:
        left, right = await streams()
        here = await stack.enter_async_context(serving(left))

        async def ask_back(_method: str, payload: Any) -> Answer:
            return Answer([(await there.call("echo", payload)).payload])

        there = await stack.enter_async_context(serving(right, ask_back))

        assert (await here.call("nested", "x")).payload == ["x"]


@in_loop
async def test_many_in_flight_are_answered_in_any_order() -> None:
    waiting = Waiting()
    async with connected(waiting.serve) as (here, there):
        calls = [asyncio.ensure_future(here.call("wait", n)) for n in range(300)]
        await until(lambda: len(waiting.begun) == 300)

        for n in reversed(range(300)):
            waiting.begun[n].set_result(-n)
        answers = await asyncio.gather(*calls)

        assert [answer.payload for answer in answers] == [-n for n in range(300)]
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize("kind", sorted(BY_CODE))
@in_loop
async def test_every_class_of_error_crosses_and_comes_back(kind: str) -> None:
    raised = BY_CODE[kind](
        "What was wrong.", remedy="Do this.", retry_after_s=1.5, traceback="T", worker="w", n=[1]
    )

    async def refuse(_method: str, _payload: Any) -> Answer:
        raise raised

    async with connected(refuse) as (here, there):
        with pytest.raises(FaasdError) as caught:
            await here.call("refused", None)

        assert type(caught.value) is BY_CODE[kind]
        assert caught.value.to_problem() == raised.to_problem()
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize(
    "defect", [ZeroDivisionError("inner"), BrokenPipeError("inner"), TimeoutError("inner")]
)
@in_loop
async def test_a_defect_is_answered_and_keeps_its_details(defect: Exception) -> None:
    async def fail(method: str, _payload: Any) -> Answer:
        if method == "fail":
            raise defect
        return Answer("still here")

    async with connected(fail) as (here, _there):
        with pytest.raises(InternalError) as caught:
            await here.call("fail", None)

        assert "inner" not in str(caught.value.to_problem())
        assert (await here.call("work", None)).payload == "still here"


@in_loop
async def test_an_answer_that_cannot_be_packed_is_a_defect_of_the_other_side() -> None:
    async def answer(_method: str, payload: Any) -> Answer:
        return Answer(object() if payload else None)

    async with connected(answer) as (here, _there):
        with pytest.raises(InternalError):
            await here.call("any", payload=True)

        assert (await here.call("any", payload=False)).payload is None


@in_loop
async def test_cancelling_a_call_cancels_it_on_the_other_side_and_no_other() -> None:
    waiting = Waiting()
    async with connected(waiting.serve) as (here, there):
        first, second = (asyncio.ensure_future(here.call("wait", n)) for n in (1, 2))
        await until(lambda: len(waiting.begun) == 2)

        first.cancel()
        await until(lambda: waiting.cancelled)
        waiting.begun[2].set_result("served")

        assert (await second).payload == "served"
        assert waiting.cancelled == [1]
        with pytest.raises(asyncio.CancelledError):
            await first
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_cancellation_that_meets_the_answer_leaves_nothing_behind() -> None:
    waiting = Waiting()
    async with connected(waiting.serve) as (here, there):
        call = asyncio.ensure_future(here.call("wait", 1))
        await until(lambda: waiting.begun)

        waiting.begun[1].set_result("too late")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        await until(lambda: quiet(here, there))
        assert waiting.cancelled == []


@in_loop
async def test_what_the_serving_side_cancels_by_itself_comes_back_as_cancelled() -> None:
    async def give_up(_method: str, _payload: Any) -> Answer:
        raise asyncio.CancelledError

    async with connected(give_up) as (here, _there):
        with pytest.raises(Cancelled):
            await here.call("any", None)


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

    async def serve(method: str, payload: Any) -> Answer:
        return await {"slow": slow, "fast": fast}[method].serve(method, payload)

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

    async def serve(method: str, payload: Any) -> Answer:
        return await (producer.serve if method == "stream" else echo)(method, payload)

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

    async def serve(_method: str, _payload: Any) -> Answer:
        return Answer(None, stall())

    async with connected(serve) as (here, there):
        reading = asyncio.ensure_future(read((await here.call("stream", None)).items))
        await until(lambda: taken)

        reading.cancel()

        await ended.wait()
        await until(lambda: quiet(here, there))


@in_loop
async def test_notes_arrive_in_the_order_they_were_sent() -> None:
    heard: list[tuple[str, Any]] = []
    async with connected(note=lambda *note: heard.append(note)) as (here, _there):
        for n in range(100):
            here.notify("note", n)
        await here.call("echo", None)

    assert heard == [("note", n) for n in range(100)]


@in_loop
async def test_a_lost_connection_fails_all_that_is_asked_and_cancels_all_that_is_served() -> None:
    waiting = Waiting()
    async with connected(waiting.serve, back=waiting.serve) as (here, there):
        calls = [asyncio.ensure_future(here.call("wait", f"out{n}")) for n in range(20)]
        calls += [asyncio.ensure_future(there.call("wait", f"in{n}")) for n in range(20)]
        await until(lambda: len(waiting.begun) == 40)

        here.close()

        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {WorkerLost}
        await until(lambda: quiet(here, there))
        assert len(waiting.cancelled) == 40


@in_loop
async def test_a_lost_connection_breaks_off_a_stream_after_what_had_come() -> None:
    ended = asyncio.Event()

    async def stall() -> AsyncIterator[Any]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def serve(_method: str, _payload: Any) -> Answer:
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


@in_loop
async def test_a_closed_channel_refuses_calls_and_swallows_notes() -> None:
    left, _right = await streams()
    async with serving(left) as here:
        here.close()
        await until(lambda: here._closed)

        here.notify("note", None)
        with pytest.raises(WorkerLost):
            await here.call("echo", None)
    _right[1].close()


@contextlib.asynccontextmanager
async def raw_peer(
    serve: Serve = echo, note: Callable[[str, Any], None] = ignore
) -> AsyncIterator[tuple[Channel, Streams, asyncio.Future[None]]]:
    """A channel whose other end is bytes, and its `run`."""
    left, right = await streams()
    channel = Channel(*left, serve=serve, note=note)
    served = asyncio.ensure_future(channel.run())
    try:
        yield channel, right, served
    finally:
        right[1].close()
        await served


def framed(value: Any) -> bytes:
    body = value if isinstance(value, bytes) else msgpack.packb(value)
    return struct.pack(">I", len(body)) + body


GARBAGE = {
    "no msgpack": b"\xc1",
    "half a value": b"\x93\x01",
    "more than a value": b"\x01\x02",
    "text that is none": b"\xa1\xff",
    "nothing": b"",
    "a number": 7,
    "null": None,
    "a table": {"a": 1},
    "an empty array": [],
    "an array of tables": [{}, {}],
    "a request without an id": [REQUEST],
    "a request whose id is no key": [REQUEST, [], "m", None],
    "a request with an id in use": [REQUEST, 1, "stall", None],
    "a request without a payload": [REQUEST, 2, "m"],
    "a reply without a payload": [REPLY, 1],
    "an error that is no problem": [ERROR, 1, "oops"],
    "an error without a problem": [ERROR, 1],
    "an item without a value": [ITEM, 1],
    "an end without an id": [END],
    "a cancellation without an id": [CANCEL],
    "credit that is no number": [CREDIT, 1, "lots"],
    "credit without end": [CREDIT, 1, float("inf")],
    "a note without a payload": [NOTE, "n"],
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@in_loop
async def test_garbage_ends_the_channel_and_nothing_else(garbage: Any) -> None:
    waiting = Waiting()
    async with raw_peer(waiting.serve) as (channel, (_reader, writer), served):
        asked = asyncio.ensure_future(channel.call("any", None))
        writer.write(framed([REQUEST, 1, "stall", "stalled"]))
        await until(lambda: waiting.begun)

        writer.write(framed(garbage))
        await served

        with pytest.raises(WorkerLost):
            await asked
        assert waiting.cancelled == ["stalled"]


@in_loop
async def test_a_frame_that_announces_too_much_ends_the_channel_before_it_comes() -> None:
    async with raw_peer() as (_channel, (_reader, writer), served):
        writer.write(struct.pack(">I", MAX_FRAME + 1))

        await served


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 10])
@in_loop
async def test_a_frame_cut_short_ends_the_channel(length: int) -> None:
    async with raw_peer() as (channel, (_reader, writer), served):
        asked = asyncio.ensure_future(channel.call("any", None))
        await asyncio.sleep(0)

        writer.write(framed([REQUEST, 1, "method", "payload"])[:length])
        writer.write_eof()
        await served

        with pytest.raises(WorkerLost):
            await asked


@pytest.mark.parametrize(
    "stray",
    [
        [REPLY, 99, None, False],
        [ERROR, 99, {}],
        [ITEM, 99, b"x"],
        [END, 99],
        [CANCEL, 99],
        [CREDIT, 99, 5],
        [99, 99],
    ],
    ids=["reply", "error", "item", "end", "cancel", "credit", "unknown"],
)
@in_loop
async def test_a_frame_about_what_is_over_is_ignored(stray: list[Any]) -> None:
    async with raw_peer() as (_channel, (reader, writer), _served):
        writer.write(framed(stray) + framed([REQUEST, 1, "echo", "alive"]))

        expected = framed([REPLY, 1, "alive", False])
        assert await reader.readexactly(len(expected)) == expected


@pytest.mark.parametrize("defect", [ZeroDivisionError(), NotFound("None."), AttributeError()])
@in_loop
async def test_a_note_that_cannot_be_taken_ends_the_channel_only(defect: Exception) -> None:
    def refuse(_method: str, _payload: Any) -> None:
        raise defect

    async with raw_peer(note=refuse) as (_channel, (_reader, writer), served):
        writer.write(framed([NOTE, "any", None]))

        await served


@in_loop
async def test_whoever_was_heard_is_remembered() -> None:
    async with connected() as (here, there):
        before = there.heard_at
        await here.call("echo", None)

        assert there.heard_at > before


Step = tuple[str, int, int, int | None]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reply", "error", "items", "broken"]),
        st.integers(0, 6),
        st.integers(0, 5),
        st.none() | st.integers(0, 12),
    ),
    max_size=25,
)


async def _ask(channel: Channel, number: int, step: Step) -> Any:
    """What came of one request: a value, the items, or the class of an error."""
    seen: list[Any] = []
    try:
        answer = await channel.call(step[0], [number, *step[1:3]])
        if answer.items is None:
            return answer.payload
        async for item in answer.items:
            seen.append(item)  # noqa: PERF401
    except FaasdError as error:
        return (seen, type(error), error.detail)
    return seen


def _expected(number: int, step: Step) -> Any:
    kind, _turns, count, _cancelled = step
    items = [[number, n] for n in range(count)]
    return {
        "reply": number,
        "error": ([], NotFound, str(number)),
        "items": items,
        "broken": (items, NotFound, str(number)),
    }[kind]


async def _act(method: str, payload: Any) -> Answer:
    number, turns, count = payload
    for _ in range(turns):
        await asyncio.sleep(0)
    if method == "reply":
        return Answer(number)
    if method == "error":
        raise NotFound(str(number))

    async def items() -> AsyncIterator[Any]:
        for n in range(count):
            yield [number, n]
            await asyncio.sleep(0)
        if method == "broken":
            raise NotFound(str(number))

    return Answer(None, items())


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS)
def test_however_requests_interleave_each_gets_its_own_answer(
    ours: list[Step], theirs: list[Step]
) -> None:
    async def cancel_after(call: asyncio.Future[Any], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()

    async def main() -> None:
        async with connected(_act, back=_act) as (here, there):
            asked = [(here, n, step) for n, step in enumerate(ours)]
            asked += [(there, n, step) for n, step in enumerate(theirs)]
            calls = [asyncio.ensure_future(_ask(*one)) for one in asked]
            cancelling = [
                cancel_after(call, step[3])
                for call, (_, _, step) in zip(calls, asked, strict=True)
                if step[3] is not None
            ]
            await asyncio.gather(*cancelling)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)

            for outcome, (_, number, step) in zip(outcomes, asked, strict=True):
                if not isinstance(outcome, asyncio.CancelledError):
                    assert outcome == _expected(number, step)
                else:
                    assert step[3] is not None
            await until(lambda: quiet(here, there))

    run_bounded(main())


async def greet(worker_secret: str, controller_secret: str) -> tuple[Any, Any]:
    """What came of a greeting, on the worker's side and on the controller's."""
    (worker_reader, worker_writer), (reader, writer) = await streams()

    async def controller() -> None:
        try:
            await greet_worker(reader, writer, controller_secret)
        except FaasdError:
            writer.close()
            raise

    outcomes = await asyncio.gather(
        greet_controller(worker_reader, worker_writer, worker_secret),
        controller(),
        return_exceptions=True,
    )
    worker_writer.close()
    writer.close()
    return outcomes[0], outcomes[1]


@in_loop
async def test_both_sides_that_know_the_secret_let_each_other_in() -> None:
    assert await greet(SECRET, SECRET) == (None, None)


@pytest.mark.parametrize("other", ["", SECRET + " ", SECRET.upper()])
@in_loop
async def test_sides_with_different_secrets_refuse_each_other(other: str) -> None:
    for pair in ((SECRET, other), (other, SECRET)):
        worker, controller = await greet(*pair)

        assert isinstance(worker, Unauthorized)
        assert "FAASD_CLUSTER_SECRET" in worker.remedy
        assert isinstance(controller, Unauthorized)


@in_loop
async def test_a_proof_that_was_overheard_is_worth_nothing_later() -> None:
    (reader, writer), (far_reader, far_writer) = await streams()
    known = asyncio.ensure_future(greet_worker(far_reader, far_writer, SECRET))
    recorded = await overhear(reader, writer)
    await known
    writer.close()
    far_writer.close()

    (reader, writer), (far_reader, far_writer) = await streams()
    writer.write(recorded)
    with pytest.raises(Unauthorized):
        await greet_worker(far_reader, far_writer, SECRET)
    writer.close()
    far_writer.close()


async def overhear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Greet as a true worker does; the bytes that it sent."""
    sent: list[bytes] = []
    write = writer.write

    def recording(data: Any) -> None:
        sent.append(bytes(data))
        write(data)

    writer.write = recording  # type: ignore[method-assign]
    await greet_controller(reader, writer, SECRET)
    return b"".join(sent)


async def read_frame(reader: asyncio.StreamReader) -> list[bytes]:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    parts: list[bytes] = msgpack.unpackb(await reader.readexactly(length))
    return parts


@in_loop
async def test_a_worker_is_not_content_with_its_own_proof_sent_back() -> None:
    (reader, writer), (far_reader, far_writer) = await streams()
    greeting = asyncio.ensure_future(greet_controller(reader, writer, SECRET))

    far_writer.write(framed([b"n" * 32]))
    _nonce, mac = await read_frame(far_reader)
    far_writer.write(framed([mac]))

    with pytest.raises(Unauthorized):
        await greeting
    writer.close()
    far_writer.close()


@in_loop
async def test_a_controller_proves_nothing_to_who_has_not_proved_himself() -> None:
    (reader, writer), (far_reader, far_writer) = await streams()
    greeting = asyncio.ensure_future(greet_worker(reader, writer, SECRET))
    await read_frame(far_reader)

    far_writer.write(framed([b"n" * 32, b"m" * 32]))
    with pytest.raises(Unauthorized):
        await greeting
    writer.close()

    assert await far_reader.read() == b""
    far_writer.close()


HELLOS = {
    "no msgpack": framed(b"\xc1"),
    "text that is none": framed(b"\xa1\xff"),
    "nothing": framed(b""),
    "a table": framed({"nonce": b""}),
    "a number": framed(1),
    "text for bytes": framed(["a", "b"]),
    "numbers": framed([1, 2]),
    "no parts": framed([]),
    "too many parts": framed([b"", b"", b""]),
    "too much": framed([b"n" * 5000, b"m"]),
    "too much announced": struct.pack(">I", 1 << 31),
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("hello", HELLOS.values(), ids=HELLOS.keys())
@pytest.mark.parametrize("greeting", [greet_worker, greet_controller])
@in_loop
async def test_a_hello_of_another_kind_is_refused(greeting: Any, hello: bytes) -> None:
    (reader, writer), (_far_reader, far_writer) = await streams()
    far_writer.write(hello)

    with pytest.raises(Unauthorized):
        await greeting(reader, writer, SECRET)

    writer.close()
    far_writer.close()


@pytest.mark.parametrize("said", [b"", b"\0", framed([b"n" * 32, b"m"])[:-1]])
@pytest.mark.parametrize("greeting", [greet_worker, greet_controller])
@in_loop
async def test_a_peer_that_leaves_in_mid_greeting_is_not_refused_but_gone(
    greeting: Any, said: bytes
) -> None:
    (reader, writer), (_far_reader, far_writer) = await streams()
    far_writer.write(said)
    far_writer.close()

    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await greeting(reader, writer, SECRET)

    writer.close()
