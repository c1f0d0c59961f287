"""A connection as frames: however the bytes come, and however much of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.framing import MAX_FRAME, Connection
from tests.loops import in_loop, run_bounded, until
from tests.unit.faasd.channels import connection, framed

pytestmark = pytest.mark.usefixtures("each_loop")

VALUES = [[0, 1, False, "method", ["payload", b"body"]], "", ["\u00fc" * 50], [1, {"a": [2.5]}]]


class Taken:
    """A connection that is served, the frames that came on it, and the far end of its socket."""

    def __init__(self, end: Connection, far: socket.socket) -> None:
        self.end = end
        self.far = far
        self.frames: list[Any] = []

    def feed(self, data: bytes) -> None:
        """Let the connection read these bytes in one go, as far as it has room."""
        while data:
            room = self.end.get_buffer(-1)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.end.buffer_updated(count)
            data = data[count:]


@contextlib.asynccontextmanager
async def taking() -> AsyncIterator[Taken]:
    near, far = socket.socketpair()
    far.setblocking(False)
    taken = Taken(await connection(near), far)
    served = asyncio.ensure_future(taken.end.serve(taken.frames.append))
    await asyncio.sleep(0)
    try:
        yield taken
    finally:
        taken.end.abort()
        await served
        far.close()


@in_loop
async def test_frames_may_be_cut_at_every_byte() -> None:
    said = b"".join(framed(value) for value in VALUES)
    async with taking() as taken:
        for first in range(len(said) + 1):
            for second in range(first, len(said) + 1, 7):
                taken.frames.clear()
                for piece in (said[:first], said[first:second], said[second:]):
                    taken.feed(piece)

                assert taken.frames == VALUES


@in_loop
async def test_frames_may_come_byte_by_byte() -> None:
    async with taking() as taken:
        for byte in b"".join(framed(value) for value in VALUES):
            taken.feed(bytes([byte]))

        assert taken.frames == VALUES


@in_loop
async def test_many_frames_of_one_read_are_all_taken() -> None:
    async with taking() as taken:
        taken.feed(b"".join(framed([n]) for n in range(20_000)))

        assert taken.frames == [[n] for n in range(20_000)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 300, 8_000, 70_000, 300_000, 2_000_000]), max_size=6),
    st.lists(st.sampled_from([1, 3, 4, 5, 1000, 8192, 100_000, 1_000_000]), min_size=1, max_size=9),
)
def test_whatever_the_sizes_of_frames_and_reads_every_frame_comes_whole(
    sizes: list[int], reads: list[int]
) -> None:
    async def main() -> None:
        values = [[n, b"x" * size] for n, size in enumerate(sizes)]
        said = b"".join(framed(value) for value in values)
        async with taking() as taken:
            taken.feed(said[: reads[0]])
            at, turn = reads[0], 1
            while at < len(said):
                # Single bytes only where frames begin: millions of them would say no more.
                count = max(reads[turn % len(reads)], 0 if at < 64 else 997)
                taken.feed(said[at : at + count])
                at, turn = at + count, turn + 1

            assert taken.frames == values

    run_bounded(main())


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, 1 << 20])
@in_loop
async def test_a_body_that_is_sent_by_itself_is_read_like_any_other(length: int) -> None:
    near, far = socket.socketpair()
    async with taking() as taken:
        sender = await connection(near)
        body = bytes(length)
        sender.send([1, "before"])
        sender.send_large([2, ["head", b""]], body)
        sender.send([3, "after"])
        reader, writer = await asyncio.open_connection(sock=far)
        expected = framed([1, "before"]) + framed([2, ["head", body]]) + framed([3, "after"])

        assert await reader.readexactly(len(expected)) == expected
        taken.feed(expected)
        assert taken.frames == [[1, "before"], [2, ["head", body]], [3, "after"]]
        sender.abort()
        writer.close()


@in_loop
async def test_what_is_sent_in_one_round_leaves_in_one_write() -> None:
    async with taking() as taken:
        for n in range(100):
            taken.end.send([n])
        with pytest.raises(BlockingIOError):
            taken.far.recv(1)
        for _ in range(3):
            await asyncio.sleep(0)

        assert taken.far.recv(1 << 16) == b"".join(framed([n]) for n in range(100))


@in_loop
async def test_what_is_sent_in_answer_to_a_read_leaves_with_it() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    echoing = await connection(near)
    served = asyncio.ensure_future(echoing.serve(echoing.send))
    await asyncio.sleep(0)
    said = framed([1]) + framed([2])
    echoing.get_buffer(-1)[: len(said)] = said

    echoing.buffer_updated(len(said))

    assert far.recv(100) == said
    echoing.abort()
    await served
    far.close()


@in_loop
async def test_more_than_a_write_should_hold_does_not_wait_for_the_end_of_the_round() -> None:
    async with taking() as taken:
        for _ in range(5):
            taken.end.send([b"x" * (1 << 15)])

        assert len(taken.far.recv(1 << 20)) >= 1 << 16


@in_loop
async def test_a_frame_that_is_only_announced_takes_no_room() -> None:
    async with taking() as taken:
        taken.feed(struct.pack(">I", MAX_FRAME) + b"x" * 1000)

        assert len(taken.end._view) <= 1 << 20


@in_loop
async def test_room_for_a_large_frame_is_given_back() -> None:
    async with taking() as taken:
        taken.feed(framed([b"x" * (8 << 20)]))
        assert len(taken.frames[0][0]) == 8 << 20

        assert len(taken.end._view) <= 1 << 20


@pytest.mark.parametrize(
    "said",
    [struct.pack(">I", MAX_FRAME + 1), struct.pack(">I", 0xFFFFFFFF), framed(b"\xc1"), framed(b"")],
    ids=["too long", "negative", "no msgpack", "empty"],
)
@in_loop
async def test_what_is_no_frame_ends_the_connection_and_what_follows_is_not_taken(
    said: bytes,
) -> None:
    near, far = socket.socketpair()
    frames: list[Any] = []
    end = await connection(near)
    served = asyncio.ensure_future(end.serve(frames.append))
    far.send(framed([1]) + said + framed([2]))

    await served

    assert frames == [[1]]
    assert far.recv(1) == b""
    far.close()


@in_loop
async def test_what_comes_after_an_abort_is_not_taken() -> None:
    near, far = socket.socketpair()
    end = await connection(near)
    frames: list[Any] = []

    def take(frame: Any) -> None:
        frames.append(frame)
        end.abort()

    far.send(framed([1]) + framed([2]))
    await end.serve(take)

    assert frames == [[1]]
    far.close()


@in_loop
async def test_a_connection_that_is_closed_swallows_what_is_sent() -> None:
    async with taking() as taken:
        taken.end.abort()
        taken.end.send([1])
        taken.end.send_large([b""], b"x" * 100_000)
        await asyncio.sleep(0)

        assert taken.far.recv(1) == b""


@in_loop
async def test_closing_sends_what_is_left() -> None:
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=far)
    end = await connection(near)
    for _ in range(100):
        end.send([b"x" * 20_000])

    closing = asyncio.ensure_future(end.aclose())
    expected = framed([b"x" * 20_000]) * 100
    assert await reader.readexactly(len(expected)) == expected
    assert await reader.read() == b""
    await closing
    await end.aclose()
    writer.close()


@in_loop
async def test_who_sends_faster_than_the_other_side_takes_can_wait() -> None:
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=far, limit=1 << 16)
    end = await connection(near)
    sent = 0
    while not end.paused:
        end.send([b"x" * (1 << 16)])
        sent += 1
    waiting = [asyncio.ensure_future(end.writable()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    waiting[0].cancel()

    expected = framed([b"x" * (1 << 16)]) * sent
    assert await reader.readexactly(len(expected)) == expected
    await asyncio.gather(*waiting[1:])
    end.abort()
    writer.close()


@in_loop
async def test_who_waits_for_the_other_side_waits_no_longer_when_it_is_gone() -> None:
    async with taking() as taken:
        while not taken.end.paused:
            taken.end.send([b"x" * (1 << 16)])
        waiting = asyncio.ensure_future(taken.end.writable())
        await asyncio.sleep(0)

        taken.end.abort()

        await waiting


@in_loop
async def test_frames_are_read_one_by_one_until_they_are_served() -> None:
    near, far = socket.socketpair()
    end = await connection(near)
    reading = asyncio.ensure_future(end.read(100))
    far.send(framed([1]) + framed([2]) + framed([3])[:3])

    assert msgpack.unpackb(await reading) == [1]
    assert msgpack.unpackb(await end.read(100)) == [2]

    frames: list[Any] = []
    served = asyncio.ensure_future(end.serve(frames.append))
    far.send(framed([3])[3:] + framed([4]))
    await until(lambda: len(frames) == 2)
    assert frames == [[3], [4]]
    far.close()
    await served


@in_loop
async def test_a_frame_to_be_read_may_not_be_long() -> None:
    near, far = socket.socketpair()
    end = await connection(near)
    far.send(struct.pack(">I", 101))

    with pytest.raises(ValueError, match="101"):
        await end.read(100)
    end.abort()
    far.close()


@in_loop
async def test_who_talks_on_before_it_is_served_is_not_listened_to() -> None:
    near, far = socket.socketpair()
    end = await connection(near)
    far.setblocking(False)
    said = 0
    with contextlib.suppress(BlockingIOError):
        while said < 64 << 20:
            said += far.send(b"x" * (1 << 16))
            await asyncio.sleep(0)

    assert said < 8 << 20
    assert len(end._view) < 1 << 16
    end.abort()
    far.close()


@in_loop
async def test_reading_ends_with_the_connection() -> None:
    near, far = socket.socketpair()
    end = await connection(near)
    reading = asyncio.ensure_future(end.read(100))
    far.send(framed([1])[:-1])
    far.close()

    with pytest.raises(ConnectionError):
        await reading


@in_loop
async def test_what_is_too_long_for_a_frame_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faasd.framing.MAX_FRAME", 1000)
    async with taking() as taken:
        with pytest.raises(ValueError, match="too many"):
            taken.end.send([b"x" * 1000])
        with pytest.raises(ValueError, match="too many"):
            taken.end.send_large([b""], b"x" * 1000)
        taken.end.send([1])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert taken.far.recv(100) == framed([1])
