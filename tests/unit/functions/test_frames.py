"""Frames and packets over real sockets, against the worker's own parser where there is one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.spool import Body
from functions.runtime import frames
from functions.runtime.frames import Closed, FrameStream, pack
from worker.control import describe_status
from worker.instance import InstanceLink
from worker.sandbox import Exit, Meta

Pair = tuple[socket.socket, socket.socket]

_META: Meta = ("r", "", {}, 1, None, False)


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def packets() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


class Seen:
    """What the worker's end of a data socket heard, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.closed = asyncio.get_running_loop().create_future()

    def on_result(
        self,
        call: int,
        status: int,
        content_type: str,
        headers: dict[str, str],
        exec_ms: float,
        body: Body,
    ) -> None:
        self.events.append(("result", call, status, content_type, headers, exec_ms, body))

    def on_start(
        self, call: int, status: int, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self.events.append(("start", call, status, content_type, *([headers] if headers else [])))

    def on_chunk(self, call: int, data: bytes) -> None:
        self.events.append(("chunk", call, data))

    def on_end(self, call: int, exec_ms: float) -> None:
        self.events.append(("end", call, exec_ms))

    def on_error(self, call: int, problem: dict[str, Any], exec_ms: float) -> None:
        self.events.append(("error", call, problem, exec_ms))

    def on_caught_up(self) -> None:
        return

    def on_printed(self) -> None:
        self.events.append(("printed",))

    def on_lost(self) -> None:
        self.events.append(("lost",))

    def on_closed(self, end: Exit) -> None:
        self.closed.set_result(end.detail)


async def heard(sock: socket.socket, writing: Any) -> tuple[list[tuple[Any, ...]], Any, str]:
    """Events, attach verdict and end at the worker's side while `writing` runs in a thread."""
    loop = asyncio.get_running_loop()
    seen = Seen()
    link = InstanceLink("i1", seen, (), tags=False)
    link.connect(sock)
    link.exited(0)
    with ThreadPoolExecutor(1) as thread:
        await loop.run_in_executor(thread, writing)
    detail = await seen.closed
    verdict = link.attached.result() if link.attached.exception() is None else None
    return seen.events, verdict, detail


def test_a_frame_comes_back_as_it_was(pair: Pair) -> None:
    one, other = pair

    FrameStream(one).write(["call", [[1, list(_META), b"\x00\xff"]]])

    assert FrameStream(other).read() == ["call", [[1, list(_META), b"\x00\xff"]]]


def test_frames_that_arrive_together_are_read_one_by_one(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    one.sendall(pack(["call", 1]) + pack(["call", b"x" * 100]) + pack(["call", 3])[:3])

    reader = FrameStream(other)

    assert reader.read() == ["call", 1]
    assert reader.read() == ["call", b"x" * 100]
    one.sendall(pack(["call", 3])[3:])
    assert reader.read() == ["call", 3]


def test_frames_that_come_together_are_read_one_by_one(pair: Pair) -> None:
    one, other = pair
    one.sendall(frames.pack(["a"]) + frames.pack(["b"]))

    reader = FrameStream(other)

    assert [reader.read(), reader.read()] == [["a"], ["b"]]


def test_a_frame_larger_than_a_socket_holds_arrives_whole(pair: Pair) -> None:
    one, other = pair
    body = os.urandom(5_000_000)

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(FrameStream(one).write, ["result", body])
        received = FrameStream(other).read()
        sending.result()

    assert received == ["result", body]


@pytest.mark.parametrize("left", [0, 2, 4, 7])
def test_the_end_of_a_stream_is_told_even_inside_a_frame(pair: Pair, left: int) -> None:
    one, other = pair
    one.sendall(frames.pack(["result", b"body"])[:left])
    one.close()

    with pytest.raises(Closed):
        FrameStream(other).read()


def test_writing_to_nobody_is_told(pair: Pair) -> None:
    one, other = pair
    other.close()

    with pytest.raises(Closed):
        FrameStream(one).write(["x", b"y" * 1_000_000])


def test_a_packet_brings_its_descriptors(packets: Pair) -> None:
    one, other = packets
    read_end, write_end = os.pipe()
    try:
        frames.send_packet(one, ["fork", "i1"], (write_end,))
        message, [received] = frames.recv_packet(other)
        os.write(received, b"through")
        os.close(received)

        assert message == ["fork", "i1"]
        assert os.read(read_end, 10) == b"through"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_packet_without_descriptors_is_a_packet(packets: Pair) -> None:
    one, other = packets

    frames.send_packet(one, ["stop"])

    assert frames.recv_packet(other) == (["stop"], [])


def test_the_end_of_packets_is_told(packets: Pair) -> None:
    one, other = packets
    one.close()

    with pytest.raises(Closed):
        frames.recv_packet(other)
    with pytest.raises(Closed):
        frames.send_packet(other, ["x"])


def test_the_worker_understands_every_frame_of_an_instance() -> None:
    async def main() -> tuple[list[tuple[Any, ...]], Any, str]:
        ours, theirs = socket.socketpair()

        def writing() -> None:
            with theirs:
                stream = FrameStream(theirs)
                stream.write(["attached", {"attach_ms": 1.5}])
                stream.write(["result", 1, 200, "text/plain", {"a": "b"}, 2.5, b"body"])
                stream.write(["start", 2, 200, "application/x-ndjson"])
                stream.write(["chunk", 2, b"{}\n"])
                stream.write(["end", 2, 3.5])
                stream.write(["error", 3, {"code": "handler_error"}, 4.5])
                stream.write(["start", 4, 201, "text/csv", {"vary": "a"}])

        return await heard(ours, writing)

    events, verdict, detail = asyncio.run(main())

    assert verdict == {"kind": "attached", "attach_ms": 1.5}
    assert events == [
        ("result", 1, 200, "text/plain", {"a": "b"}, 2.5, b"body"),
        ("start", 2, 200, "application/x-ndjson"),
        ("chunk", 2, b"{}\n"),
        ("end", 2, 3.5),
        ("error", 3, {"code": "handler_error"}, 4.5),
        ("start", 4, 201, "text/csv", {"vary": "a"}),
    ]
    assert detail == describe_status(0)


def test_the_worker_understands_frames_however_they_are_cut() -> None:
    async def main() -> tuple[list[tuple[Any, ...]], Any, str]:
        ours, theirs = socket.socketpair()
        whole = b"".join(frames.pack(["chunk", n, bytes(n * 37)]) for n in range(40))

        def writing() -> None:
            with theirs:
                for begin in range(0, len(whole), 61):
                    theirs.sendall(whole[begin : begin + 61])

        return await heard(ours, writing)

    events, _, _ = asyncio.run(main())

    assert events == [("chunk", n, bytes(n * 37)) for n in range(40)]


def test_an_instance_understands_the_calls_of_the_worker() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        link = InstanceLink("i1", Seen(), (), tags=True)
        link.connect(ours)
        with theirs, ThreadPoolExecutor(1) as thread:
            link.call([(7, _META, b"body" * 100_000)])
            link.cancel(7)
            stream = FrameStream(theirs)
            found = [await loop.run_in_executor(thread, stream.read) for _ in range(2)]
            link.discard()
        return found

    assert asyncio.run(main()) == [
        ["call", [[7, list(_META), b"body" * 100_000]]],
        ["cancel", 7],
    ]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        frames.pack(["nonsense"]),
        frames.pack(["result", 1]),
        frames.pack([]),
        b"\x00\x00\x00\x01\x05",
        b"\x00\x00\x00\x00",
        frames.pack(["attached", 5]),
        frames.pack(["error", 1, "no problem", 2.0]),
    ],
    ids=[
        "too long",
        "no msgpack",
        "unknown",
        "too short",
        "empty",
        "a number",
        "nothing",
        "odd verdict",
        "odd problem",
    ],
)
def test_an_instance_that_sends_garbage_is_cut_off_with_the_reason(garbage: bytes) -> None:
    async def main() -> str:
        ours, theirs = socket.socketpair()
        with theirs:
            _, _, detail = await heard(ours, lambda: theirs.sendall(garbage))
        return detail

    assert "sent something that is not a reply" in asyncio.run(main())


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_whatever_an_instance_sends_the_worker_hears_its_end(sent: bytes) -> None:
    async def main() -> str:
        ours, theirs = socket.socketpair()

        def writing() -> None:
            with theirs:
                theirs.sendall(sent)

        _, _, detail = await heard(ours, writing)
        return detail

    assert asyncio.run(main())
