"""The door of the HTTP API on real sockets: what it reads, what it answers, whom it waits for."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.http.front import LARGEST_WHOLE
from faasd import clock
from faasd.errors import (
    BadRequest,
    FaasdError,
    FunctionTimeout,
    HandlerError,
    InstanceDied,
    QueueFull,
    Unavailable,
)
from faasd.spool import Spool, whole
from faasd.streams import Closable
from tests.loops import in_loop, until
from tests.unit.controller.house import LIMIT_MB, Answer, Call, House, Peer, open_house, post

pytestmark = pytest.mark.usefixtures("each_loop")

# Any query makes a request aiohttp's, and this one changes nothing else.
BY_AIOHTTP = "?mode=sync"
EVENTS = b"Accept: text/event-stream"


class Chunks:
    """A body that comes piece by piece; knows what was taken of it, and whether it was closed."""

    def __init__(self, *pieces: bytes | Exception, endless: bytes = b"") -> None:
        self._pieces = pieces
        self._endless = endless
        self.taken = 0
        self.closed = False
        self.go_on = asyncio.Event()
        self.go_on.set()

    def __call__(self) -> AsyncIterator[bytes]:
        return Closable(self._items(), unread=self._close)

    def _close(self) -> None:
        self.closed = True

    async def _items(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self._pieces:
                await self.go_on.wait()
                if isinstance(piece, Exception):
                    raise piece
                self.taken += 1
                yield piece
            while self._endless:
                await self.go_on.wait()
                self.taken += 1
                yield self._endless
        finally:
            self.closed = True


async def answered(house: House, peer: Peer, count: int, body: bytes) -> None:
    """The next request gets this reply."""
    (await house.call(count)).answer(body)
    assert (await peer.reply()).body == body


async def is_served(house: House, peer: Peer) -> None:
    """Whether the connection is good for another request."""
    count = len(house.worker.calls)
    peer.send(post(b"another"))
    await answered(house, peer, count + 1, b"served")


def counted(house: House, outcome: str) -> float:
    """How many invocations ended so, by the metrics."""
    for line in house.metrics.render().decode().splitlines():
        if f'outcome="{outcome}"' in line and "_total" in line:
            return float(line.rpartition(" ")[2])
    return 0.0


@in_loop
async def test_requests_sent_ahead_are_answered_one_by_one_in_their_order(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(b"".join(post(b"%d" % n) for n in range(20)))
        for number in range(20):
            call = await house.call(number + 1)
            await house.seen()
            assert len(house.worker.calls) == number + 1
            assert call.invocation.body == b"%d" % number
            call.answer(b"answer %d" % number)
        assert [(await peer.reply()).body for _ in range(20)] == [
            b"answer %d" % n for n in range(20)
        ]


@in_loop
async def test_a_connection_serves_one_request_after_the_other(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        for number in range(1, 51):
            peer.send(post(b"x"))
            await answered(house, peer, number, b"%d" % number)
        assert len(house.fronts()) == 1


@in_loop
async def test_a_request_may_be_cut_anywhere(tmp_path: Path) -> None:
    raw = post(b"body", b"X-A: b")
    async with open_house(tmp_path) as house, house.peer() as peer:
        for number, at in enumerate(range(1, len(raw)), 1):
            peer.send(raw[:at])
            await house.seen()
            assert len(house.worker.calls) == number - 1
            peer.send(raw[at:])
            call = await house.call(number)
            assert (call.invocation.body, call.invocation.headers) == (b"body", {"x-a": "b"})
            call.answer()
            assert (await peer.reply()).status == 200


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000, LARGEST_WHOLE, LARGEST_WHOLE + 1])
@in_loop
async def test_a_body_of_any_size_arrives_whole_in_however_many_pieces(
    tmp_path: Path, size: int
) -> None:
    body = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
    raw = post(body)
    async with open_house(tmp_path) as house, house.peer() as peer:
        for number, cut in enumerate((0, len(raw) - len(body), len(raw) // 2, len(raw)), 1):
            for piece in (raw[:cut], raw[cut:]):
                peer.send(piece)
                await house.seen()
            assert whole((await house.call(number)).invocation.body) == body
            await answered(house, peer, number, b"got it")


@in_loop
async def test_what_comes_behind_a_body_is_the_next_request(tmp_path: Path) -> None:
    first, second = post(b"a" * 1_000_000), post(b"b" * 1_000_000)
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(first + second[:500_000])
        assert (await house.call(1)).invocation.body == b"a" * 1_000_000
        peer.send(second[500_000:] + post(b"c"))
        await answered(house, peer, 1, b"1")
        assert (await house.call(2)).invocation.body == b"b" * 1_000_000
        await answered(house, peer, 2, b"2")
        assert (await house.call(3)).invocation.body == b"c"


@in_loop
async def test_much_that_is_sent_ahead_waits_at_the_senders(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"first"))
        await house.call(1)
        peer.send(post(bytes(100_000)) * 1000)
        await house.seen()
        await house.seen()
        assert peer.transport.get_write_buffer_size() > 50_000_000
        for number in range(1, 5):
            await answered(house, peer, number, b"%d" % number)


@in_loop
async def test_what_a_head_says_reaches_the_worker(tmp_path: Path) -> None:
    lines = [
        b"Content-Type: text/plain; charset=utf-8", b"X-Own: yes", b"Faasd-Request-Id: order-7",
        b"Faasd-Deadline-Ms: 5000", b"Faasd-Priority: 3", b"Faasd-Slo-Ms: 250",
        b"Faasd-Tenant: them", b"Faasd-Session: s", b"Cookie: secret", EVENTS,
    ]  # fmt: skip
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi", *lines))
        found = (await house.call(1)).invocation
        peer.send(post(b"hi", *lines, query=BY_AIOHTTP))
        await answered(house, peer, 1, b"ok")
        other = (await house.call(2)).invocation

    assert found.remaining_s == 5
    assert other.remaining_s is not None
    found.remaining_s = other.remaining_s
    assert found == other
    assert (found.id, found.function, found.events) == ("order-7", "default/echo", True)
    assert found.headers == {"x-own": "yes", "accept": "text/event-stream"}
    assert (found.priority, found.slo_s, found.tenant, found.session) == (3, 0.25, "them", "s")


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("query", ["", BY_AIOHTTP], ids=["here", "by aiohttp"])
@pytest.mark.parametrize("kind", ["whole", "stream", "large"])
@in_loop
async def test_a_reply_that_may_have_no_body_has_none(
    tmp_path: Path, status: int, query: str, kind: str
) -> None:
    large = Spool()
    large.write(b"x" * 2_000_000)
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi", query=query))
        call = await house.call(1)
        if kind == "whole":
            call.answer(b"not to be seen", status=status)
        elif kind == "stream":
            call.answer(status=status, chunks=Chunks(b"not to", b"be seen")())
        else:
            call.answer(status=status, chunks=large.chunks(), length=len(large))
        reply = await peer.reply()

        assert (reply.status, reply.body) == (status, b"")
        await is_served(house, peer)


@in_loop
async def test_a_reply_says_what_the_function_set_and_what_it_cost(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi", b"Faasd-Request-Id: a"))
        (await house.call(1)).answer(
            b"made",
            status=201,
            content_type="text/csv",
            headers={
                "X-Own": "caf\u00e9",
                "Location": "/there",
                "content-length": "1",
                "Transfer-Encoding": "chunked",
                "Connection": "close",
                "faasd-worker": "forged",
            },
        )
        reply = await peer.reply()

        assert reply.start == "HTTP/1.1 201 Created"
        assert reply.body == b"made"
        del reply.headers["date"], reply.headers["faasd-revision"]
        assert reply.headers == {
            "x-own": "caf\u00e9",
            "location": "/there",
            "content-type": "text/csv",
            "content-length": "4",
            "faasd-request-id": "a",
            "faasd-start": "warm",
            "faasd-worker": "w",
            "server-timing": reply.headers["server-timing"],
        }
        assert "exec;dur=2" in reply.headers["server-timing"]
        await is_served(house, peer)


@pytest.mark.parametrize("query", ["", BY_AIOHTTP], ids=["here", "by aiohttp"])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", ["date", "Date", "cache-control", "server"])
@in_loop
async def test_a_header_that_the_platform_sets_too_is_said_once(
    tmp_path: Path, query: str, name: str, *, streams: bool
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi", EVENTS, query=query))
        headers = {name: "Sun, 06 Nov 1994 08:49:37 GMT"}
        body = {"chunks": Chunks(b"data: 1\n\n")()} if streams else {"body": b"whole"}
        (await house.call(1)).answer(content_type="text/event-stream", headers=headers, **body)

        reply = await peer.reply()

        assert reply.status == 200


@pytest.mark.parametrize(
    "said",
    [
        {"headers": {"x-a": "a\r\nx-b: c"}},
        {"headers": {"x a": "b"}},
        {"headers": {"": "b"}},
        {"content_type": "text/plain\r\nx-a: b"},
        {"content_type": "text/\udc80"},
    ],
    ids=["two lines", "no name", "empty name", "two lines of type", "no text"],
)
@pytest.mark.parametrize("streams", [False, True])
@in_loop
async def test_a_header_that_cannot_be_sent_is_the_functions_error(
    tmp_path: Path, said: dict[str, Any], *, streams: bool
) -> None:
    chunks = Chunks(b"chunk")
    async with open_house(tmp_path) as house, house.peer() as peer:
        for number, query in enumerate(("", BY_AIOHTTP), 1):
            peer.send(post(b"hi", query=query))
            (await house.call(number)).answer(**said, chunks=chunks() if streams else None)
            reply = await peer.reply()
            assert (reply.status, b"unserialisable_result" in reply.body) == (500, True)
        await is_served(house, peer)
    assert chunks.closed == streams


@in_loop
async def test_a_stream_comes_piece_by_piece(tmp_path: Path) -> None:
    chunks = Chunks(b"one", b"", b"two", b"x" * 100_000)
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        chunks.go_on.clear()
        (await house.call(1)).answer(chunks=chunks(), status=206)
        head = await peer.head()
        assert (head.status, head.headers["transfer-encoding"]) == (206, "chunked")
        assert chunks.taken == 0
        chunks.go_on.set()
        assert [chunk async for chunk in peer.chunks()] == [b"one", b"two", b"x" * 100_000]
        assert chunks.closed
        await is_served(house, peer)


@in_loop
async def test_a_large_body_goes_with_its_length_and_nothing_else(tmp_path: Path) -> None:
    large = Spool()
    large.write(bytes(range(250)) * 20_000)
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(chunks=large.chunks(), length=len(large))
        reply = await peer.reply()
        assert reply.headers["content-length"] == "5000000"
        assert reply.body == bytes(range(250)) * 20_000
        await is_served(house, peer)


@in_loop
async def test_a_large_body_that_is_cut_short_ends_the_connection_and_is_no_defect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The instance that wrote it may shorten its file while it is sent."""
    large = Spool()
    large.write(bytes(3_000_000))
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        call = await house.call(1)
        os.ftruncate(large.fd, 2_000_000)
        call.answer(chunks=large.chunks(), length=len(large))
        head = await peer.head()
        assert head.headers["content-length"] == "3000000"
        assert len(await peer.rest()) < 3_000_000
    assert "Traceback" not in "".join(capsys.readouterr())


@in_loop
async def test_a_stream_goes_no_faster_than_it_is_read(tmp_path: Path) -> None:
    chunks = Chunks(endless=bytes(100_000))
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(chunks=chunks())
        [front] = house.fronts()
        await until(lambda: front.idle is False and chunks.taken > 0)
        for _ in range(20):
            await house.seen()
        taken = chunks.taken
        for _ in range(20):
            await house.seen()
        assert chunks.taken == taken
        peer.transport.resume_reading()
        await peer.head()
        read = 0
        async for chunk in peer.chunks():
            read += len(chunk)
            if read > (taken + 50) * 100_000:
                break
        assert chunks.taken > taken + 50
    await until(lambda: chunks.closed)


@in_loop
async def test_an_error_in_a_stream_leaves_it_without_its_end(tmp_path: Path) -> None:
    for error in (HandlerError("It raised."), RuntimeError("a defect")):
        async with open_house(tmp_path) as house, house.peer() as peer:
            peer.send(post(b"hi") + post(b"behind"))
            (await house.call(1)).answer(chunks=Chunks(b"one", error)())
            assert (await peer.head()).status == 200
            assert await peer.rest() == b"3\r\none\r\n"
            assert len(house.worker.calls) == 1


@in_loop
async def test_an_error_in_a_stream_of_events_is_the_last_event(tmp_path: Path) -> None:
    said = []
    async with open_house(tmp_path) as house, house.peer() as peer:
        for number, query in enumerate(("", BY_AIOHTTP), 1):
            peer.send(post(b"hi", EVENTS, b"Faasd-Request-Id: a", query=query))
            chunks = Chunks(b"data: 1\n\n", FunctionTimeout("It ran too long."))
            call = await house.call(number)
            call.answer(content_type="text/event-stream", chunks=chunks())
            reply = await peer.reply()
            assert reply.headers["cache-control"] == "no-cache"
            said.append(reply.body)
        await is_served(house, peer)

    first, _, last = said[0].partition(b"event: error\n")
    assert first == b"data: 1\n\n"
    assert b'"code": "function_timeout"' in last
    assert b'"request_id": "a"' in last
    assert said[0] == said[1]


@in_loop
async def test_who_leaves_in_the_midst_of_a_stream_ends_it(tmp_path: Path) -> None:
    chunks = Chunks(b"one", b"two")
    chunks.go_on.clear()
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(chunks=chunks())
        await peer.head()
        peer.leave()
        await until(lambda: chunks.closed)
        assert not house.fronts()


@in_loop
async def test_who_leaves_a_stream_unread_ends_it(tmp_path: Path) -> None:
    chunks = Chunks(endless=bytes(100_000))
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(chunks=chunks())
        await until(lambda: chunks.taken)
        await house.seen()
        peer.leave()
        await until(lambda: chunks.closed)


@in_loop
async def test_who_left_just_before_a_stream_began_ends_it_all_the_same(tmp_path: Path) -> None:
    """The stream's task has not run yet when the connection is found to be gone."""
    chunks = Chunks(b"one")
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        call = await house.call(1)
        [front] = house.fronts()
        front.end()
        call.answer(chunks=chunks())
        await until(lambda: chunks.closed)


@in_loop
async def test_who_leaves_before_the_reply_cancels_the_invocation(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi") + post(b"behind"))
        call = await house.call(1)
        assert not call.cancelled
        peer.leave()
        await until(lambda: call.cancelled)
        await house.seen()
        assert len(house.worker.calls) == 1
        assert counted(house, "cancelled") == 1
        assert not house.fronts()


@in_loop
async def test_who_leaves_after_the_reply_cancels_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        await answered(house, peer, 1, b"ok")
        peer.leave()
        await until(lambda: not house.fronts())
        assert not house.worker.calls[0].cancelled
        assert counted(house, "cancelled") == 0


@in_loop
async def test_an_invocation_that_fails_while_it_is_begun_is_over(tmp_path: Path) -> None:
    """Workers of the same process may know at once that a function does not start."""
    async with open_house(tmp_path) as house, house.peer() as peer:
        house.worker.fails_at_once = Unavailable("It does not start.")
        peer.send(post(b"hi"))
        assert (await peer.reply()).status == 503
        peer.leave()
        await until(lambda: not house.fronts())
        assert not house.worker.calls[0].cancelled
        assert (counted(house, "unavailable"), counted(house, "cancelled")) == (1, 0)


def comparable(reply: Answer) -> tuple[str, dict[str, str], bytes]:
    """All that must not depend on who answers: aiohttp names itself, and clocks go on."""
    kept = {name: value for name, value in reply.headers.items() if name not in ("date", "server")}
    assert reply.headers["date"].endswith(" GMT")
    return reply.start, kept, reply.body


ERRORS: dict[str, FaasdError] = {
    "of the handler": HandlerError(
        "It raised.", traceback="Traceback \u00e9\n", timings=[1, 0, 0, 0, 2], start="warm", worker="w"
    ),
    "of the time": FunctionTimeout("Too long.", timings=[1, 2, 3, 4, 5], start="cold", worker="w"),
    "of the queue": QueueFull("Full.", retry_after_s=2.6),
    "of the node": Unavailable("Not now."),
    "of the process": InstanceDied("It was killed by signal 9."),
    "of the body": BadRequest("The body is not JSON.", remedy="Send JSON."),
}  # fmt: skip


@pytest.mark.parametrize("how", ["told", "raised", "told at once"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@in_loop
async def test_an_error_is_told_as_aiohttp_would_tell_it(
    tmp_path: Path, error: FaasdError, how: str
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        if how == "raised":
            house.worker.raises = error
        elif how == "told at once":
            house.worker.fails_at_once = error
        found = []
        for number, query in enumerate(("", BY_AIOHTTP), 1):
            peer.send(post(b"hi", b"Faasd-Request-Id: a", query=query))
            if how == "told":
                (await house.call(number)).fail(error)
            found.append(comparable(await peer.reply()))

    assert found[0] == found[1]
    assert found[0][1]["content-type"] == "application/problem+json"
    assert found[0][1]["faasd-request-id"] == "a"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ((b"hi", "nobody"), 404),
        ((bytes((LIMIT_MB << 20) + 1), "echo"), 413),
        ((b"hi", "echo", b"Authorization: Bearer fsd_unknown"), 401),
        ((b"hi", "echo", b"Authorization: Basic x"), 401),
        ((b"hi", "echo", b"Faasd-Namespace: elsewhere"), 404),
        ((b"hi", "echo", b"Faasd-Namespace: ../x"), 400),
        ((b"hi", "echo", b"Faasd-Deadline-Ms: soon"), 400),
        ((b"hi", "echo", b"Faasd-Deadline-Ms: 0"), 504),
        ((b"hi", "echo", b"Faasd-Priority: high"), 400),
        ((b"hi", "echo", b"Origin: http://evil.example"), 403),
    ],
)
@in_loop
async def test_a_refusal_is_told_as_aiohttp_would_tell_it(
    tmp_path: Path, raw: tuple[bytes, str, bytes], status: int
) -> None:
    body, name, *lines = raw
    found = []
    async with open_house(tmp_path) as house:
        for query in ("", BY_AIOHTTP):
            async with house.peer() as peer:
                peer.send(post(body, *lines, b"Faasd-Request-Id: a", name=name, query=query))
                reply = await peer.reply()
                assert reply.status == status
                found.append(comparable(reply))
        assert house.worker.calls == []
    assert found[0] == found[1]


@pytest.mark.parametrize("lines", [(b"Faasd-Priority: 9",), (b"Faasd-Tenant: them",), ()])
@in_loop
async def test_keys_count_here_as_by_aiohttp(tmp_path: Path, lines: tuple[bytes, ...]) -> None:
    """Both when a key must be looked up in the store, and when it is known."""
    async with open_house(tmp_path) as house:
        _, here = await house.keys.create("one", "invoke", "default")
        _, there = await house.keys.create("other", "invoke", "elsewhere")
        for secret in (here, there, "unknown"):
            key = f"Authorization: Bearer {secret}".encode()
            found = []
            for number in range(4):
                async with house.peer() as peer:
                    query = BY_AIOHTTP if number % 2 else ""
                    peer.send(post(b"hi", key, *lines, b"Faasd-Request-Id: a", query=query))
                    if secret == here and not lines:
                        await until(lambda: house.worker.calls)
                        house.worker.calls.pop().answer(b"served")
                    found.append(comparable(await peer.reply()))
            assert found[1:] == found[:-1]
        async with house.peer() as peer:
            peer.send(post(b"hi"))
            reply = await peer.reply()
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")


@in_loop
async def test_who_leaves_while_a_key_is_looked_up_has_nothing_run(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        _, secret = await house.keys.create("one", "invoke", "default")
        async with house.peer() as peer:
            await until(house.fronts)
            [front] = house.fronts()
            raw = post(b"hi", f"Authorization: Bearer {secret}".encode())
            front.data_received(raw)
            front.connection_lost(None)
            peer.leave()
        await house.keys.caller(f"Bearer {secret}", None)
        await house.seen()
        assert house.worker.calls == []


@in_loop
async def test_a_defect_is_told_as_one_and_the_connection_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        house.worker.raises = RuntimeError("a defect")
        found = []
        for query in ("", BY_AIOHTTP):
            peer.send(post(b"hi", b"Faasd-Request-Id: a", query=query))
            found.append(comparable(await peer.reply()))
        assert found[0] == found[1]
        assert b"internal_error" in found[0][2]
        house.worker.raises = None
        await is_served(house, peer)
    assert "".join(capsys.readouterr()).count("request.failed") == 2


@in_loop
async def test_a_reply_is_told_as_aiohttp_would_tell_it(tmp_path: Path) -> None:
    replies: list[dict[str, Any]] = [
        {"body": b"hello"},
        {"body": b""},
        {"body": b"x" * 600_000},
        {"body": b"made", "status": 201, "headers": {"X-A": "b"}},
        {"body": b"gone", "status": 410},
        {"body": b"odd", "status": 299},
        {"body": b"no", "status": 204},
    ]
    async with open_house(tmp_path) as house, house.peer() as plain, house.peer() as other:
        for reply in replies:
            found = []
            for peer, query in ((plain, ""), (other, BY_AIOHTTP)):
                peer.send(post(b"hi", b"Faasd-Request-Id: a", query=query))
                await until(lambda: house.worker.calls)
                house.worker.calls.pop().answer(**reply)
                found.append(comparable(await peer.reply()))
            assert found[0] == found[1]


@in_loop
async def test_a_connection_is_handed_over_with_all_that_was_read_of_it(tmp_path: Path) -> None:
    aiohttps = post(b"for aiohttp", query=BY_AIOHTTP)
    for before in (0, 1, 3):
        async with open_house(tmp_path) as house, house.peer() as peer:
            peer.send(post(b"before") * before + aiohttps + post(b"behind") * 2)
            bodies = [b"before"] * before + [b"for aiohttp", b"behind", b"behind"]
            for number, body in enumerate(bodies, 1):
                assert (await house.call(number)).invocation.body == body
                await answered(house, peer, number, b"%d" % number)
            assert not house.fronts()
            await is_served(house, peer)


@in_loop
async def test_a_connection_is_handed_over_wherever_its_request_is_cut(tmp_path: Path) -> None:
    raw = post(b"cut", query=BY_AIOHTTP)
    async with open_house(tmp_path) as house:
        for number, at in enumerate(range(1, len(raw), 3)):
            async with house.peer() as peer:
                peer.send(post(b"before") + raw[:at])
                await answered(house, peer, 2 * number + 1, b"1")
                await house.seen()
                peer.send(raw[at:])
                assert (await house.call(2 * number + 2)).invocation.body == b"cut"
                await answered(house, peer, 2 * number + 2, b"2")


@in_loop
async def test_a_connection_is_handed_over_after_its_replies_have_been_read(
    tmp_path: Path,
) -> None:
    """aiohttp would not know that its peer takes no more."""
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"large"))
        (await house.call(1)).answer(bytes(20_000_000))
        await house.seen()
        peer.send(post(b"for aiohttp", query=BY_AIOHTTP))
        await house.seen()
        assert len(house.fronts()) == 1
        peer.transport.resume_reading()
        assert len((await peer.reply()).body) == 20_000_000
        await answered(house, peer, 2, b"by aiohttp")
        assert not house.fronts()


@in_loop
async def test_much_that_waits_is_handed_over_and_read_on_by_aiohttp(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"first") + post(b"second", query=BY_AIOHTTP) + post(bytes(900_000)) * 3)
        await house.call(1)
        await house.seen()
        for number in range(1, 6):
            await answered(house, peer, number, b"%d" % number)


@in_loop
async def test_a_request_that_ends_its_connection_is_served_whatever_is_behind_it(
    tmp_path: Path,
) -> None:
    for before in (0, 1):
        async with open_house(tmp_path) as house, house.peer() as peer:
            last = post(b"last", b"Connection: close")
            peer.send(post(b"before") * before + last + post(b"behind"))
            for number in range(1, before + 2):
                await answered(house, peer, number, b"%d" % number)
            assert await peer.rest() == b""
            assert len(house.worker.calls) == before + 1


@in_loop
async def test_who_takes_no_replies_is_given_no_more_of_them(tmp_path: Path) -> None:
    """Each request comes alone, after the reply to the one before was made."""
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        for _ in range(40):
            before = len(house.worker.calls)
            peer.send(post(b"more"))
            await house.seen()
            for call in house.worker.calls[before:]:
                call.answer(bytes(2_000_000))
            await house.seen()
        assert len(house.worker.calls) < 20
        peer.transport.resume_reading()
        taken = 0
        while taken < 40:
            await until(lambda seen=taken: len(house.worker.calls) > seen)  # type: ignore[misc]
            if taken >= before:
                house.worker.calls[taken].answer(bytes(2_000_000))
            assert len((await peer.reply()).body) == 2_000_000
            taken += 1


@in_loop
async def test_at_the_end_what_is_idle_ends_at_once_and_what_runs_is_answered(
    tmp_path: Path,
) -> None:
    async with (
        open_house(tmp_path) as house,
        house.peer() as idle,
        house.peer() as used,
        house.peer() as busy,
        house.peer() as half,
    ):
        used.send(post(b"hi"))
        await answered(house, used, 1, b"ok")
        busy.send(post(b"hi") + post(b"behind"))
        half.send(post(b"hi")[:-1])
        call = await house.call(2)
        await house.seen()
        async with asyncio.TaskGroup() as group:
            closing = group.create_task(house.lobby.aclose(1000))
            assert await idle.rest() == b""
            assert await used.rest() == b""
            half.send(b"i")
            assert await half.rest() == b""
            assert not closing.done()
            call.answer(b"the last")
            assert (await busy.reply()).body == b"the last"
            assert await busy.rest() == b""
        assert len(house.worker.calls) == 2


@in_loop
async def test_at_the_end_nobody_is_waited_for_longer_than_the_grace(tmp_path: Path) -> None:
    async with (
        open_house(tmp_path) as house,
        house.peer() as busy,
        house.peer() as half,
        house.peer(reads=False) as unread,
    ):
        busy.send(post(b"hi"))
        call = await house.call(1)
        half.send(post(b"hi")[:-1])
        unread.send(post(b"hi"))
        (await house.call(2)).answer(bytes(20_000_000))
        await house.seen()

        await house.lobby.aclose(0.05)

        assert await busy.rest() == b""
        assert await half.rest() == b""
        await until(lambda: call.cancelled and not house.fronts())


def later(seconds: float) -> float:
    return clock.monotonic() + seconds


async def ends_after(house: House, peer: Peer, seconds: float) -> bool:
    """Whether the one connection lasts until then, and no longer."""
    await house.seen()
    await until(lambda: len(house.fronts()) == 1)
    [front] = house.fronts()
    front.look_at_watch(later(seconds - 0.5))
    await house.seen()
    if front not in house.lobby.fronts:
        return False
    front.look_at_watch(later(seconds + 0.5))
    assert await peer.rest() == b""
    return True


PATIENCE_S, KEEP_ALIVE_S = 30.0, 75.0


@pytest.mark.parametrize("before", [b"", post(b"before")], ids=["first", "second"])
@pytest.mark.parametrize(
    ("begun", "seconds"),
    [
        (b"", KEEP_ALIVE_S),
        (b"P", PATIENCE_S),
        (post(b"hi")[:40], PATIENCE_S),
        (post(b"hi")[:-3], PATIENCE_S),
        (post(b"hi")[:-2], PATIENCE_S),
        (post(b"hi")[:-1], PATIENCE_S),
    ],
    ids=[
        "nothing",
        "a letter",
        "half a head",
        "a head short of a letter",
        "no body",
        "half a body",
    ],
)
@in_loop
async def test_what_does_not_come_whole_is_waited_for_so_long(
    tmp_path: Path, before: bytes, begun: bytes, seconds: float
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(before)
        if before:
            await answered(house, peer, 1, b"ok")
        peer.send(begun)
        assert await ends_after(house, peer, seconds)


@in_loop
async def test_a_head_that_grows_is_waited_for_no_longer(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi")[:40])
        await house.seen()
        [front] = house.fronts()
        begun = clock.monotonic()
        await until(lambda: clock.monotonic() > begun + 0.05)
        for _ in range(3):
            peer.send(b"x")
            await house.seen()
        front.look_at_watch(begun + PATIENCE_S + 0.01)
        assert await peer.rest() == b""


@in_loop
async def test_a_body_that_grows_is_waited_for(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        raw = post(bytes(1_000_000))
        peer.send(raw[:1000])
        await house.seen()
        [front] = house.fronts()
        begun = clock.monotonic()
        await until(lambda: clock.monotonic() > begun + 0.05)
        peer.send(raw[1000:500_000])
        await house.seen()
        front.look_at_watch(begun + PATIENCE_S + 0.01)
        peer.send(raw[500_000:])
        await answered(house, peer, 1, b"ok")


@in_loop
async def test_a_reply_that_is_not_taken_is_waited_for_so_long(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(bytes(20_000_000))
        await house.seen()
        [front] = house.fronts()
        front.look_at_watch(later(0))
        front.look_at_watch(later(PATIENCE_S - 0.5))
        await house.seen()
        assert house.fronts() == [front]
        front.look_at_watch(later(PATIENCE_S + 0.5))
        await until(lambda: not house.fronts())


@in_loop
async def test_a_stream_that_is_not_taken_is_waited_for_so_long_and_then_closed(
    tmp_path: Path,
) -> None:
    chunks = Chunks(endless=bytes(100_000))
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(chunks=chunks())
        await until(lambda: chunks.taken)
        await house.seen()
        [front] = house.fronts()
        front.look_at_watch(later(0))
        front.look_at_watch(later(PATIENCE_S - 0.5))
        await house.seen()
        assert not chunks.closed
        front.look_at_watch(later(PATIENCE_S + 0.5))
        await until(lambda: chunks.closed and not house.fronts())


@in_loop
async def test_a_reply_that_is_taken_slowly_is_waited_for(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"hi"))
        (await house.call(1)).answer(bytes(20_000_000))
        await house.seen()
        [front] = house.fronts()
        now = later(0)
        front.look_at_watch(now)
        for _ in range(5):
            peer.transport.resume_reading()
            await peer.reader.readexactly(1_500_000)
            peer.transport.pause_reading()
            await house.seen()
            now += PATIENCE_S - 1
            front.look_at_watch(now)
        await house.seen()
        assert house.fronts() == [front]


@in_loop
async def test_a_function_may_take_longer_than_any_patience(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi") + b"POST /inv")
        call = await house.call(1)
        [front] = house.fronts()
        front.look_at_watch(later(1e6))
        await house.seen()
        assert house.fronts() == [front]
        call.answer(b"at last")
        assert (await peer.reply()).body == b"at last"


@in_loop
async def test_a_stream_may_be_silent_for_longer_than_any_patience(tmp_path: Path) -> None:
    chunks = Chunks(b"one", b"two")
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi"))
        chunks.go_on.clear()
        (await house.call(1)).answer(chunks=chunks())
        await peer.head()
        [front] = house.fronts()
        front.look_at_watch(later(1e6))
        chunks.go_on.set()
        assert [chunk async for chunk in peer.chunks()] == [b"one", b"two"]


@in_loop
async def test_an_idle_connection_keeps_nothing_of_its_last_request(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        for number in range(1, 4):
            peer.send(post(b"x" * 3_000_000))
            (await house.call(number)).answer(b"y" * 3_000_000)
            await peer.reply()
            house.worker.calls[-1] = Call(None, None)  # type: ignore[arg-type]
            if number == 2:
                gc.collect()
                tracemalloc.start()
        await house.seen()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert held < 500_000


def upload(line: bytes, kind: bytes, body: bytes) -> bytes:
    """A request of which more will be announced than comes."""
    head = b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return line + head % (kind, len(body) + 1) + body


PART = b'--b\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: application/json\r\n\r\n'
STALLED = {
    "half a large body": post(bytes(LARGEST_WHOLE + 1))[:-1],
    "no body": post(b"hi", query=BY_AIOHTTP)[:-2],
    "half a body": post(b"hi", query=BY_AIOHTTP)[:-1],
    "no chunk": post(b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""),
    "half an artifact": upload(b"PUT /v1/artifacts/" + b"0" * 64, b"a/b", b"x" * 1000),
    "half a key": upload(b"POST /v1/keys", b"application/json", b'{"name": '),
    "half a form": upload(b"PUT /v1/functions/a", b"multipart/form-data; boundary=b", b"--b\r\n"),
    "half a spec": upload(
        b"PUT /v1/functions/a", b"multipart/form-data; boundary=b", PART % b"spec" + b'{"name": '
    ),
    "half an archive": upload(
        b"PUT /v1/functions/a", b"multipart/form-data; boundary=b", PART % b"code" + bytes(500_000)
    ),
}


@pytest.mark.parametrize("raw", STALLED.values(), ids=STALLED)
@in_loop
async def test_a_body_that_stops_coming_is_given_up_with_the_reason(
    tmp_path: Path, raw: bytes
) -> None:
    async with open_house(tmp_path, patience_s=0.1) as house, house.peer() as peer:
        peer.send(raw)
        reply = await peer.reply()

        assert (reply.status, reply.headers["connection"]) == (408, "close")
        assert reply.headers["content-type"] == "application/problem+json"
        assert b'"request_timeout"' in reply.body
        assert b"FAASD_HTTP_PATIENCE_S" in reply.body
        assert await peer.rest() == b""
        assert house.worker.calls == []
    assert not list((tmp_path / "incoming").glob("*"))


def forgotten(house: House) -> bool:
    """Whether nothing is remembered of connections that aiohttp had."""
    house.lobby.look_round(later(0))
    return not house.lobby.passed_on


@pytest.mark.parametrize("streams", [False, True])
@in_loop
async def test_what_aiohttp_serves_is_waited_for_no_longer(
    tmp_path: Path, *, streams: bool
) -> None:
    chunks = Chunks(endless=bytes(100_000))
    async with open_house(tmp_path) as house, house.peer(reads=False) as peer:
        peer.send(post(b"hi", query=BY_AIOHTTP))
        call = await house.call(1)
        if streams:
            call.answer(chunks=chunks())
            await until(lambda: chunks.taken)
        else:
            call.answer(bytes(20_000_000))
        await house.seen()
        now = later(0)
        house.lobby.look_round(now)
        house.lobby.look_round(now + PATIENCE_S - 0.5)
        await house.seen()
        assert house.lobby.passed_on
        peer.transport.resume_reading()
        await peer.reader.readexactly(1_500_000)
        peer.transport.pause_reading()
        house.lobby.look_round(now + PATIENCE_S + 0.5)
        house.lobby.look_round(now + 2 * PATIENCE_S)
        await house.seen()
        assert house.lobby.passed_on

        house.lobby.look_round(now + 2 * PATIENCE_S + 1)

        await until(lambda: chunks.closed or not streams)
        await until(lambda: forgotten(house))


@in_loop
async def test_connections_that_aiohttp_serves_are_not_ended_for_being_idle_by_us(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(post(b"hi", query=BY_AIOHTTP))
        call = await house.call(1)
        for seconds in (0, 1e3, 1e6):
            house.lobby.look_round(later(seconds))
        call.answer(b"at last")
        assert (await peer.reply()).body == b"at last"
        peer.leave()
        await until(lambda: forgotten(house))
