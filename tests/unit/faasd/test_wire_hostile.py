"""What no channel should say: it ends that connection, and all that was under way on it."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgpack
import pytest

from faasd.errors import (
    FaasdError,
    NotFound,
    WorkerLost,
)
from faasd.flow import WINDOW, Inflow
from faasd.framing import MAX_FRAME
from faasd.wire import (
    ALLOW,
    CANCEL,
    CREDIT,
    END,
    ERROR,
    ITEM,
    LAST,
    NOTE,
    PART,
    REPLY,
    REQUEST,
    Channel,
)
from tests.loops import in_loop, until
from tests.unit.faasd.channels import (
    CHUNK,
    Producer,
    Told,
    Waiting,
    framed,
    items_of,
    raw_peer,
)

pytestmark = pytest.mark.usefixtures("each_loop")

GARBAGE = {
    "no msgpack": b"\xc1",
    "half a value": b"\x93\x01",
    "more than a value": b"\x01\x02",
    "text that is none": b"\xa1\xff",
    "nothing": b"",
    "a number": 7,
    "null": None,
    "a text": "text",
    "a byte string": msgpack.packb(b"\0\1\2\3\4"),
    "a table": {"a": 1},
    "an empty array": [],
    "an array of tables": [{}, {}],
    "an unknown kind": [99, 1],
    "a negative kind": [-1, 1],
    "a kind that is a text": ["0", 1],
    "a request without an id": [REQUEST],
    "a request whose id is no key": [REQUEST, [], False, "m", None],
    "a request whose id is a text": [REQUEST, "2", False, "m", None],
    "a request whose id is a truth": [REQUEST, True, False, "m", None],
    "a request whose id is a fraction": [REQUEST, 2.0, False, "m", None],
    "a request with an id in use": [REQUEST, 1, False, "stall", None],
    "a request without a method": [REQUEST, 2, False, None, None],
    "a request that may go on": [REQUEST, 2, None, "m", None],
    "a request without a payload": [REQUEST, 2, False, "m"],
    "a request of too much": [REQUEST, 2, False, "m", None, None],
    "a reply without a payload": [REPLY, 1, False],
    "a reply that may go on": [REPLY, 1, 0, None],
    "a reply to no id": [REPLY, "1", False, None],
    "an error that is no problem": [ERROR, 1, "oops", None],
    "an error without a problem": [ERROR, 1],
    "an error of no id": [ERROR, None, {}, None],
    "an item without a value": [ITEM, 1],
    "an item before the reply": [ITEM, 1, b"x"],
    "an item of no id": [ITEM, "1", b"x"],
    "an end without an id": [END],
    "an end before the reply": [END, 1],
    "a part of a request that has none": [PART, 1, b"x"],
    "a part of no id": [PART, b"1", b"x"],
    "a last part of a request that has none": [LAST, 1],
    "a cancellation without an id": [CANCEL],
    "a cancellation of no id": [CANCEL, None],
    "credit that nobody needs": [CREDIT, 1, 5],
    "credit of no id": [CREDIT, 1.5, 5],
    "credit for parts that nobody sends": [ALLOW, 1, 5],
    "a note without a payload": [NOTE, "n"],
    "a note without a method": [NOTE, 1, None],
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@in_loop
async def test_garbage_ends_the_channel_and_nothing_else(garbage: Any) -> None:
    waiting = Waiting()
    async with raw_peer(waiting.serve) as (channel, (_reader, writer), served):
        asked = asyncio.ensure_future(channel.call("any", None))
        writer.write(framed([REQUEST, 1, False, "stall", "stalled"]))
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

        writer.write(framed([REQUEST, 1, False, "method", "payload"])[:length])
        writer.write_eof()
        await served

        with pytest.raises(WorkerLost):
            await asked


@pytest.mark.parametrize(
    "stray",
    [
        [REPLY, 99, False, None],
        [ERROR, 99, {}, None],
        [ITEM, 99, b"x"],
        [END, 99],
        [PART, 99, b"x"],
        [LAST, 99],
        [CANCEL, 99],
        [CREDIT, 99, 5],
        [ALLOW, 99, 5],
    ],
    ids=["reply", "error", "item", "end", "part", "last", "cancel", "credit", "allow"],
)
@in_loop
async def test_a_frame_about_what_is_over_is_ignored(stray: list[Any]) -> None:
    async with raw_peer() as (_channel, (reader, writer), _served):
        writer.write(framed(stray) + framed([REQUEST, 1, False, "echo", "alive"]))

        expected = framed([REPLY, 1, False, "alive"])
        assert await reader.readexactly(len(expected)) == expected


@pytest.mark.parametrize("defect", [ZeroDivisionError(), NotFound("None."), AttributeError()])
@in_loop
async def test_a_note_that_cannot_be_taken_ends_the_channel_only(defect: Exception) -> None:
    def refuse(_method: str, _payload: Any) -> None:
        raise defect

    async with raw_peer(note=refuse) as (_channel, (_reader, writer), served):
        writer.write(framed([NOTE, "any", None]))

        await served


@pytest.mark.parametrize("credit", ["lots", -1, 0, 1.5, True, None, float("inf")])
@in_loop
async def test_credit_that_is_none_ends_the_channel(credit: Any) -> None:
    producer = Producer([b"x" * CHUNK] * 1000)
    async with raw_peer(producer.serve) as (_channel, (_reader, writer), served):
        writer.write(framed([REQUEST, 1, False, "stream", None]))
        await until(lambda: producer.produced > 2)

        writer.write(framed([CREDIT, 1, credit]))
        await served

        assert producer.stopped.is_set()


@in_loop
async def test_items_without_credit_end_the_channel_and_are_not_kept() -> None:
    async with raw_peer() as (channel, (_reader, writer), served):
        call = Told()
        channel.begin(call, "stream", None)
        writer.write(framed([REPLY, 1, True, None]))
        for _ in range(2 * WINDOW // CHUNK):
            writer.write(framed([ITEM, 1, b"x" * CHUNK]))
        await served

        [items] = call.items
        assert items is not None
        for _ in range(WINDOW // CHUNK):
            assert await anext(items) == b"x" * CHUNK
        with pytest.raises(WorkerLost):
            await anext(items)


@in_loop
async def test_parts_without_credit_end_the_channel() -> None:
    waiting = Waiting()
    async with raw_peer(waiting.serve) as (_channel, (_reader, writer), served):
        writer.write(framed([REQUEST, 1, True, "upload", "stalled"]))
        for _ in range(2 * WINDOW // CHUNK):
            writer.write(framed([PART, 1, b"x" * CHUNK]))
        await served

        assert waiting.cancelled == ["stalled"]


@in_loop
async def test_a_second_reply_to_one_request_ends_the_channel() -> None:
    async with raw_peer() as (channel, (_reader, writer), served):
        call = Told()
        channel.begin(call, "stream", None)
        writer.write(framed([REPLY, 1, True, None]) * 2)
        await served

        assert call.payloads == [None]


@pytest.mark.parametrize("more", [True, False])
@in_loop
async def test_a_reply_that_its_call_cannot_read_ends_the_connection_which_the_call_is_told(
    *, more: bool
) -> None:
    class Strict(Told):
        __slots__ = ()

        def replied(self, payload: Any, items: Inflow | None) -> None:
            raise TypeError

    async with raw_peer() as (channel, (_reader, writer), served):
        call, other = Strict(), Told()
        channel.begin(call, "work", None)
        channel.begin(other, "work", None)
        writer.write(framed([REPLY, 1, more, None]))
        await served

        assert [[type(error) for error in one.errors] for one in (call, other)] == [
            [WorkerLost],
            [WorkerLost],
        ]


CONVERSATION = [
    [REPLY, 1, False, "one"],
    [REPLY, 2, True, "two"],
    [ITEM, 2, b"a"],
    [ERROR, 3, NotFound("None.").to_problem(), None],
    [ITEM, 2, b"b"],
    [END, 2],
]


@in_loop
async def test_wherever_a_conversation_is_cut_all_that_was_under_way_ends() -> None:
    said = b"".join(framed(frame) for frame in CONVERSATION)
    for cut in range(len(said) + 1):
        async with raw_peer() as (channel, (_reader, writer), served):
            calls = [asyncio.ensure_future(whole(channel)) for _ in range(3)]
            await asyncio.sleep(0)
            writer.write(said[:cut])
            writer.write_eof()
            await served

            outcomes = [await call for call in calls]
            assert outcomes[0] in ("one", WorkerLost)
            assert outcomes[1] in ([b"a", b"b"], WorkerLost)
            assert outcomes[2] in (NotFound, WorkerLost)
            assert WorkerLost in outcomes or cut == len(said)


async def whole(channel: Channel) -> Any:
    """What came of a request: its payload, its items, or the class of its error."""
    try:
        answer = await channel.call("any", None)
        return answer.payload if answer.items is None else await items_of(answer)
    except FaasdError as error:
        return type(error)
