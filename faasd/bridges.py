"""Invocations that are told to a receiver, for those who await them, and the other way about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from faasd.errors import FaasdError, InternalError
from faasd.invocation import Invocation, Receiver, Reply, Started
from faasd.streams import close, close_soon
from faasd.telemetry import get_logger

log = get_logger("faasd.bridges")


async def awaited(
    invoke: Callable[[Invocation, Receiver], Started], invocation: Invocation
) -> Reply:
    """What becomes of an invocation. Raises FaasdError; cancelling this cancels it."""
    waiting = _Waiting()
    started = invoke(invocation, waiting)
    try:
        await waiting.told
    except asyncio.CancelledError:
        started.cancel()
        if waiting.reply is not None:
            await close(waiting.reply.chunks)
        raise
    except FaasdError:
        # The error holds this frame, and what waits here the error: a circle that would keep the
        # body until the collector comes by.
        del waiting, started
        raise
    assert waiting.reply is not None
    return waiting.reply


class _Waiting:
    def __init__(self) -> None:
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reply: Reply | None = None

    def answered(self, reply: Reply) -> None:
        # Kept although the waiter was cancelled just now: its stream has to be closed.
        self.reply = reply
        if not self.told.done():
            self.told.set_result(None)

    def failed(self, error: FaasdError) -> None:
        if not self.told.done():
            self.told.set_exception(error)


def begun(work: Coroutine[Any, Any, Reply], receiver: Receiver) -> Started:
    """Run an invocation that is awaited as a task, and tell the receiver what became of it."""
    return _Task(work, receiver)


class _Task:
    __slots__ = ("_receiver", "_task")

    def __init__(self, work: Coroutine[Any, Any, Reply], receiver: Receiver) -> None:
        self._receiver: Receiver | None = receiver
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        self._receiver = None
        self._task.cancel()

    def _done(self, task: asyncio.Task[Reply]) -> None:
        receiver, self._receiver = self._receiver, None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if receiver is not None:
                receiver.answered(task.result())
            else:
                close_soon(task.result().chunks)
        elif receiver is not None:
            receiver.failed(_told(error))


def _told(error: BaseException) -> FaasdError:
    if isinstance(error, FaasdError):
        return error
    log.error("invocation.defect", exc_info=error)
    return InternalError("The invocation could not be completed.")
