"""Invocations between those who await and those who are told."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncGenerator

import pytest

from faasd.bridges import awaited, begun
from faasd.errors import FaasdError, InternalError, NotFound
from faasd.invocation import Invocation, Receiver, Reply, Started, StartKind, Timings
from faasd.spool import Spool
from faasd.streams import Closable
from tests.loops import in_loop, until

INVOCATION = Invocation("request", "default/echo", "r1", b"x")


def reply(chunks: Closable[bytes] | None = None) -> Reply:
    return Reply(200, "", {}, StartKind.WARM, Timings(), "n1", chunks=chunks)


class Worker:
    """Begins invocations, and lets the test say what becomes of them."""

    def __init__(self) -> None:
        self.receivers: list[Receiver] = []
        self.cancelled = 0
        self.unread = 0

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        assert invocation is INVOCATION
        self.receivers.append(receiver)
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def stream(self) -> Closable[bytes]:
        async def chunks() -> AsyncGenerator[bytes, None]:
            yield b"never read"

        return Closable(chunks(), unread=self._note_unread)

    def _note_unread(self) -> None:
        self.unread += 1


class Told:
    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.errors: list[FaasdError] = []

    def answered(self, reply: Reply) -> None:
        self.replies.append(reply)

    def failed(self, error: FaasdError) -> None:
        self.errors.append(error)


@in_loop
async def test_who_awaits_gets_the_reply_or_the_error() -> None:
    worker, given = Worker(), reply()
    calls = [asyncio.ensure_future(awaited(worker.invoke, INVOCATION)) for _ in range(2)]
    await until(lambda: len(worker.receivers) == 2)

    worker.receivers[0].answered(given)
    worker.receivers[1].failed(NotFound("It is gone."))

    assert await calls[0] is given
    with pytest.raises(NotFound):
        await calls[1]
    assert worker.cancelled == 0


@in_loop
async def test_the_body_of_an_invocation_that_failed_is_not_kept() -> None:
    """Its error knows where it was raised, and what stood there: a circle that is freed late."""
    receivers: list[Receiver] = []

    class Idle:
        def cancel(self) -> None:
            raise NotImplementedError

    def invoke(_invocation: Invocation, receiver: Receiver) -> Started:
        receivers.append(receiver)
        return Idle()

    async def ask() -> int:
        body = Spool()
        try:
            await awaited(invoke, Invocation("request", "default/echo", "r1", body))
        except NotFound:
            return body.fd
        raise AssertionError

    gc.disable()
    try:
        asked = asyncio.ensure_future(ask())
        await until(lambda: receivers)
        receivers.pop().failed(NotFound("It is gone."))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(await asked)
    finally:
        gc.enable()


@in_loop
async def test_who_stops_awaiting_cancels_the_invocation() -> None:
    worker = Worker()
    asked = asyncio.ensure_future(awaited(worker.invoke, INVOCATION))
    await until(lambda: worker.receivers)

    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    assert worker.cancelled == 1


@pytest.mark.parametrize("cancelled_first", [True, False])
@in_loop
async def test_a_stream_that_meets_its_callers_leaving_is_closed(*, cancelled_first: bool) -> None:
    worker = Worker()
    asked = asyncio.ensure_future(awaited(worker.invoke, INVOCATION))
    await until(lambda: worker.receivers)

    if cancelled_first:
        asked.cancel()
    worker.receivers[0].answered(reply(worker.stream()))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    assert worker.unread == 1


@in_loop
async def test_a_receiver_is_told_what_a_coroutine_comes_to() -> None:
    told, given = Told(), reply()

    async def succeed() -> Reply:
        return given

    async def refuse() -> Reply:
        raise NotFound("It is gone.")

    async def break_down() -> Reply:
        raise ZeroDivisionError

    for work in (succeed(), refuse(), break_down()):
        begun(work, told)
    assert (told.replies, told.errors) == ([], [])
    await until(lambda: len(told.replies) + len(told.errors) == 3)

    assert told.replies == [given]
    assert [type(error) for error in told.errors] == [NotFound, InternalError]


@in_loop
async def test_a_receiver_that_cancelled_hears_nothing() -> None:
    worker, told = Worker(), Told()

    async def wait() -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def stream() -> Reply:
        return reply(worker.stream())

    waiting, streaming = begun(wait(), told), begun(stream(), told)
    await asyncio.sleep(0)
    for one in (waiting, streaming):
        one.cancel()

    await until(lambda: worker.unread == 1)
    assert (told.replies, told.errors) == ([], [])
