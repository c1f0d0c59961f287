"""Bodies in chunks at the door of the HTTP API: what is taken of them, for whom, and how long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from pathlib import Path

import pytest

from controller.http.front import LARGEST_WHOLE
from faasd import clock
from faasd.invocation import Invocation
from faasd.spool import Growing, Spool, whole
from tests.loops import in_loop, until
from tests.unit.controller.house import LIMIT_MB, Answer, House, Peer, open_house, post

pytestmark = pytest.mark.usefixtures("each_loop")

LIMIT = LIMIT_MB << 20
PATIENCE_S = 30.0
LAST = b"0\r\n\r\n"


def begun(*lines: bytes, name: str = "echo", query: str = "") -> bytes:
    """The head of an invocation whose body will come in chunks."""
    raw = post(b"", *lines, b"Transfer-Encoding: chunked", name=name, query=query)
    return raw.replace(b"Content-Length: 0\r\n", b"")


def encoded(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + LAST


def later(seconds: float) -> float:
    return clock.monotonic() + seconds


def memory_files() -> int:
    """How many bodies are in files now."""
    gc.collect()
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        # The one that lists them is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found += "faasd-body" in str(fd.readlink())
    return found


async def served(house: House, peer: Peer, body: bytes) -> Invocation:
    """The invocation that this became, once it is answered."""
    await until(lambda: house.worker.calls)
    call = house.worker.calls.pop()
    assert whole(call.invocation.body) == body
    call.answer(b"served")
    assert (await peer.reply()).body == b"served"
    return call.invocation


async def refused(peer: Peer, status: int, code: str) -> Answer:
    """The reply that ends the connection."""
    reply = await peer.reply()
    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert code.encode() in reply.body
    assert await peer.rest() == b""
    return reply


@in_loop
async def test_chunks_may_be_cut_anywhere(tmp_path: Path) -> None:
    raw = begun(b"X-A: b") + b'2;a="b"\r\nbo\r\n02\r\ndy\r\n0;c\r\nX-T: t\r\nX-U: u\r\n\r\n'
    async with open_house(tmp_path) as house, house.peer() as peer:
        for at in range(1, len(raw)):
            peer.send(raw[:at])
            await house.seen()
            assert house.worker.calls == []
            peer.send(raw[at:])
            invocation = await served(house, peer, b"body")
            assert invocation.headers == {"x-a": "b"}
        assert len(house.fronts()) == 1


SIZES = [0, 1, Growing.SMALL, Growing.SMALL + 1, LARGEST_WHOLE, LARGEST_WHOLE + 1, LIMIT]


@pytest.mark.parametrize("size", SIZES)
@in_loop
async def test_a_body_of_any_size_is_what_was_sent_and_another_may_follow(
    tmp_path: Path, size: int
) -> None:
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    async with open_house(tmp_path) as house, house.peer() as peer:
        for piece in (300_001, 5_000_000):
            raw = begun() + encoded(body, piece)
            for cut in (0, len(raw) // 2, len(raw)):
                peer.send(raw[:cut])
                await house.seen()
                peer.send(raw[cut:] + post(b"behind"))
                invocation = await served(house, peer, body)
                assert isinstance(invocation.body, Spool) == (size > Growing.SMALL)
                await served(house, peer, b"behind")
        assert len(house.fronts()) == 1


@in_loop
async def test_requests_behind_chunks_are_answered_in_their_order(tmp_path: Path) -> None:
    chunked = begun() + b"1\r\n%d\r\n0\r\nX-Id: %d\r\n\r\n"
    raw = b"".join(chunked % (n, n) if n % 3 else post(b"%d" % n) for n in range(10))
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(raw)
        for number in range(10):
            invocation = await served(house, peer, b"%d" % number)
            assert invocation.headers == {}


@pytest.mark.parametrize("size", [2, LARGEST_WHOLE + 1])
@in_loop
async def test_an_invocation_in_chunks_is_as_aiohttp_would_make_it(
    tmp_path: Path, size: int
) -> None:
    lines = [
        b"Content-Type: text/plain", b"X-Own: yes", b"Faasd-Request-Id: order-7", b"Cookie: a=b",
        b"Faasd-Priority: 3", b"Faasd-Slo-Ms: 250", b"Faasd-Session: s", b"Accept: text/event-stream",
    ]  # fmt: skip
    body = bytes(size)
    found = []
    async with open_house(tmp_path) as house:
        for query in ("", "?mode=sync"):
            async with house.peer() as peer:
                peer.send(begun(*lines, query=query) + encoded(body, 1_000_000))
                invocation = await served(house, peer, body)
                invocation.body = b""
                found.append(invocation)
    assert found[0] == found[1]
    assert (found[0].id, found[0].headers["x-own"], found[0].session) == ("order-7", "yes", "s")


@pytest.mark.parametrize("query", ["", "?mode=sync"], ids=["here", "by aiohttp"])
@in_loop
async def test_a_deadline_runs_while_the_body_comes(tmp_path: Path, query: str) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun(b"Faasd-Deadline-Ms: 5000", query=query))
        await house.seen()
        before = clock.monotonic()
        await until(lambda: clock.monotonic() > before + 0.05)
        peer.send(b"2\r\nhi\r\n" + LAST)
        invocation = await served(house, peer, b"hi")
        assert invocation.remaining_s is not None
        assert 0 < invocation.remaining_s < 5 - 0.05


@in_loop
async def test_a_deadline_that_passed_while_the_body_came_has_passed(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun(b"Faasd-Deadline-Ms: 1"))
        await house.seen()
        before = clock.monotonic()
        await until(lambda: clock.monotonic() > before + 0.01)
        peer.send(b"2\r\nhi\r\n" + LAST)
        call = await house.call(1)
        assert call.invocation.remaining_s is not None
        assert call.invocation.remaining_s < 0


REFUSALS = [
    (begun(name="nobody"), LARGEST_WHOLE + 1, 404, "function_not_found"),
    (begun(b"Faasd-Namespace: other"), LARGEST_WHOLE + 1, 404, "function_not_found"),
    (begun(b"Authorization: Bearer fsd_x"), LARGEST_WHOLE + 1, 401, "unauthorized"),
    (begun(), LIMIT + 1, 413, "body_too_large"),
    (begun(), 1 << 60, 413, "body_too_large"),
]


@pytest.mark.parametrize(("head", "size", "status", "code"), REFUSALS)
@pytest.mark.parametrize("before", [b"", b"40000\r\n" + bytes(1 << 18) + b"\r\n"])
@in_loop
async def test_who_may_not_send_so_much_is_told_before_it_comes(
    tmp_path: Path, head: bytes, size: int, status: int, code: str, before: bytes
) -> None:
    async with open_house(tmp_path) as house:
        for behind in (b"", bytes(1000), bytes(1_000_000)):
            async with house.peer() as peer:
                peer.send(head + before + b"%x\r\n" % size + behind)
                await refused(peer, status, code)
        assert house.worker.calls == []


@pytest.mark.parametrize("lines", [(), (b"Authorization: Bearer fsd_x",)], ids=["known", "unknown"])
@in_loop
async def test_who_is_refused_a_small_body_may_send_another(
    tmp_path: Path, lines: tuple[bytes, ...]
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        for name in ("nobody", "nobody"):
            peer.send(begun(*lines, name=name) + encoded(b"hi", 1) + post(b"good"))
            assert (await peer.reply()).status == (401 if lines else 404)
            await served(house, peer, b"good")


@in_loop
async def test_a_large_body_of_who_must_be_looked_up_is_taken(tmp_path: Path) -> None:
    body = bytes(range(250)) * 24_000
    async with open_house(tmp_path) as house:
        for _ in range(3):
            _, key = await house.keys.create("one", "invoke", "default")
            async with house.peer() as peer:
                lines = (b"Authorization: Bearer " + key.encode(),)
                peer.send(begun(*lines) + encoded(body, 5_000_000) + post(b"behind", *lines))
                await served(house, peer, body)
                await served(house, peer, b"behind")


@pytest.mark.parametrize("size", [100, Growing.SMALL + 1, LARGEST_WHOLE + 1_000_000])
@in_loop
async def test_who_leaves_in_the_midst_of_a_body_leaves_nothing_behind(
    tmp_path: Path, size: int
) -> None:
    before = memory_files()
    async with open_house(tmp_path) as house:
        for _ in range(5):
            async with house.peer() as peer:
                peer.send(begun() + encoded(bytes(size), 300_000)[: -len(LAST)])
                await house.seen()
                await until(lambda: memory_files() == before + (size > Growing.SMALL))
            await until(lambda: not house.fronts())
            assert memory_files() == before
        assert house.worker.calls == []


@pytest.mark.parametrize("size", [100, LARGEST_WHOLE + 1_000_000])
@in_loop
async def test_a_body_that_is_refused_is_not_kept(tmp_path: Path, size: int) -> None:
    before = memory_files()
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun() + encoded(bytes(size), 300_000)[: -len(LAST)])
        await house.seen()
        peer.send(b"no size\r\n")
        assert (await peer.reply()).status == 400
        await house.seen()
        assert memory_files() == before


STALLED = [b"", b"2", b"2\r\n", b"2\r\nh", b"2\r\nhi", b"2\r\nhi\r\n", b"2\r\nhi\r\n0\r\n",
           b"2\r\nhi\r\n0\r\nX-A: a", b"%x\r\n" % (LARGEST_WHOLE + 1) + bytes(1000)]  # fmt: skip


@pytest.mark.parametrize("stalled", STALLED)
@in_loop
async def test_chunks_that_stop_coming_are_given_up_with_the_reason(
    tmp_path: Path, stalled: bytes
) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun() + stalled)
        await house.seen()
        [front] = house.fronts()
        front.look_at_watch(later(PATIENCE_S - 0.5))
        await house.seen()
        assert house.fronts() == [front]
        front.look_at_watch(later(PATIENCE_S + 0.5))
        reply = await refused(peer, 408, "request_timeout")
        assert b"FAASD_HTTP_PATIENCE_S" in reply.body
        peer.leave()
        await until(lambda: not house.fronts())
        assert house.worker.calls == []


@in_loop
async def test_chunks_that_go_on_coming_are_waited_for(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun() + b"2\r\nh")
        await house.seen()
        [front] = house.fronts()
        before = clock.monotonic()
        await until(lambda: clock.monotonic() > before + 0.05)
        peer.send(b"i")
        await house.seen()
        front.look_at_watch(before + PATIENCE_S + 0.01)
        peer.send(b"\r\n" + LAST)
        await served(house, peer, b"hi")
        front.look_at_watch(later(PATIENCE_S + 0.5))
        peer.send(post(b"another"))
        await served(house, peer, b"another")


@in_loop
async def test_what_comes_behind_a_refusal_is_dropped_and_not_for_ever(tmp_path: Path) -> None:
    """Closed with anything unread, the connection would take the reply with it."""
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun() + b"zz\r\n")
        await refused(peer, 400, "bad_request")
        [front] = house.fronts()
        for _ in range(20):
            peer.send(post(bytes(100_000)) * 10)
            await house.seen()
        await until(lambda: peer.transport.get_write_buffer_size() == 0)
        assert house.fronts() == [front]
        front.look_at_watch(later(PATIENCE_S - 0.5))
        await house.seen()
        assert house.fronts() == [front]
        front.look_at_watch(later(PATIENCE_S + 0.5))
        await until(lambda: not house.fronts())
        assert house.worker.calls == []


@in_loop
async def test_at_the_end_a_body_that_comes_is_waited_for_and_a_refused_one_is_not(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house, house.peer() as one, house.peer() as other:
        one.send(begun() + b"2\r\nh")
        other.send(begun() + b"zz\r\n")
        assert (await other.reply()).status == 400
        await house.seen()
        ending = asyncio.create_task(house.lobby.aclose(20))
        await until(lambda: len(house.fronts()) == 1)
        one.send(b"i\r\n" + LAST)
        await served(house, one, b"hi")
        assert await one.rest() == b""
        await ending


@in_loop
async def test_a_body_for_which_there_is_no_file_is_refused_and_told_as_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    async with open_house(tmp_path) as house, house.peer() as peer, house.peer() as other:
        monkeypatch.setattr(os, "memfd_create", full)
        peer.send(begun() + encoded(bytes(Growing.SMALL + 1), 300_000))
        await refused(peer, 500, "internal")
        other.send(begun() + encoded(b"hi", 1))
        await served(house, other, b"hi")
    assert "request.failed" in capsys.readouterr().out


@in_loop
async def test_much_that_is_sent_behind_chunks_waits_at_its_sender(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, house.peer() as peer:
        peer.send(begun() + encoded(b"first", 5))
        await house.call(1)
        peer.send(post(bytes(100_000)) * 1000)
        await house.seen()
        await house.seen()
        assert peer.transport.get_write_buffer_size() > 50_000_000
        await served(house, peer, b"first")
        for _ in range(5):
            await served(house, peer, bytes(100_000))
