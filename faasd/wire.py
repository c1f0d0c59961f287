"""Controller and worker over TCP: many requests in flight, both ways, on one connection.

Frames (`faasd.framing`) are arrays:

    [REQUEST, id, more, method, payload]   `more`: PARTs follow, then LAST. Answered by one of
    [REPLY, id, more, payload]             `more`: ITEMs follow, then END or ERROR
    [ERROR, id, problem, extra]
    [ITEM, id, value]  [END, id]
    [PART, id, value]  [LAST, id]
    [CANCEL, id]                           the requester wants no more of it
    [CREDIT, id, weight]                   the requester took so much of the items
    [ALLOW, id, weight]                    the server took so much of the parts
    [NOTE, method, payload]                one way

Ids are chosen by the requester, and each side counts its own. What is no such frame ends the
connection; a frame about a request that is over is ignored, since the two may have crossed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from faasd.errors import BadRequest, Cancelled, FaasdError, InternalError, WorkerLost, from_problem
from faasd.flow import Inflow, Outflow
from faasd.framing import Connection
from faasd.streams import close
from faasd.telemetry import get_logger

log = get_logger("faasd.wire")

REQUEST, REPLY, ERROR, ITEM, END, PART, LAST, CANCEL, CREDIT, ALLOW, NOTE = range(11)
# From here on it costs less to send a body by itself than to copy it into its frame.
_LARGE = 1 << 15
_UNSENDABLE = (TypeError, ValueError, OverflowError)

_Flow = TypeVar("_Flow", Inflow, Outflow)


@dataclass(slots=True)
class Answer:
    """What a request is answered with: a payload, and possibly items that follow."""

    payload: Any = None
    items: AsyncIterator[Any] | None = None


class Cancellable(Protocol):
    """Work that can be given up."""

    def cancel(self) -> object: ...


class Request:
    """A request of the other side: answered once, by `reply` or `fail`, unless it is cancelled.

    `items` are what the requester sends after it, if it does. All else is for the channel.
    """

    __slots__ = ("_channel", "id", "items", "method", "outflow", "payload", "work")

    def __init__(self, channel: Channel, identity: int, method: str, payload: Any) -> None:
        self._channel = channel
        self.id = identity
        self.method = method
        self.payload = payload
        self.items: Inflow | None = None
        self.outflow: Outflow | None = None
        self.work: Cancellable | None = None

    def reply(
        self, payload: Any, *, body: bytes | None = None, items: AsyncIterator[Any] | None = None
    ) -> None:
        """Answer it. With a body, `payload` is a list, to which the body is appended."""
        self._channel.reply(self, payload, body, items)

    def fail(self, error: FaasdError, extra: Any = None) -> None:
        """Answer it with an error, and what else there is to tell."""
        self._channel.fail(self, error, extra)


class Call:
    """A request of ours under way.

    Its subclass is told what becomes of it: `replied` or `failed`, once, and never from within
    `begin`. All else is for the channel.
    """

    __slots__ = ("channel", "id", "inflow", "outflow", "upload")

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self.id = 0
        self.inflow: Inflow | None = None
        self.outflow: Outflow | None = None
        self.upload: asyncio.Task[None] | None = None

    def replied(self, payload: Any, items: Inflow | None) -> None:
        """It was answered. What this raises is the other side's fault, and ends the connection."""
        raise NotImplementedError

    def failed(self, error: FaasdError, extra: Any) -> None:
        """As `replied`, for an error."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Want no more of it: nothing is told from now on, and its items end."""
        if self.channel is not None:
            self.channel.cancel(self)


Serve = Callable[[Request], Awaitable[Answer]]
Begin = Callable[[Request], Cancellable | None]


class Channel:
    """Requests over one connection. `run` serves it until it ends. Owned by the event loop."""

    def __init__(
        self,
        connection: Connection,
        *,
        serve: Serve,
        note: Callable[[str, Any], None],
        begin: Mapping[str, Begin] | None = None,
    ) -> None:
        """`begin` has the methods that are answered through their Request, without a task: each
        gives what cancels its work. `serve` is awaited for all others.
        """
        self._connection = connection
        self._serve = serve
        self._note = note
        self._begins = begin or {}
        self._ids = itertools.count(1)
        self._outgoing: dict[int, Call] = {}
        self._incoming: dict[int, Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._served = asyncio.Event()
        self._closed = False
        self._takers: dict[Any, Callable[[list[Any]], None]] = {
            REQUEST: self._on_request,
            REPLY: self._on_reply,
            ERROR: self._on_error,
            ITEM: self._on_item,
            END: self._on_end,
            PART: self._on_part,
            LAST: self._on_last,
            CANCEL: self._on_cancel,
            CREDIT: self._on_credit,
            ALLOW: self._on_allow,
            NOTE: self._on_note,
        }

    def __repr__(self) -> str:
        return f"<Channel {len(self._outgoing)} out, {len(self._incoming)} in>"

    @property
    def heard_at(self) -> float:
        """When the other side last said anything, by the loop's clock."""
        return self._connection.heard_at

    async def run(self) -> None:
        """Serve until the connection ends; then everything under way is ended."""
        try:
            await self._connection.serve(self._take)
        finally:
            await self._end()

    def close(self) -> None:
        """End the connection; `run` then returns."""
        self._connection.abort()

    def begin(
        self,
        call: Call,
        method: str,
        payload: Any,
        *,
        body: bytes | None = None,
        items: AsyncIterator[Any] | None = None,
    ) -> None:
        """Ask the other side; the call is told what becomes of it. Raises FaasdError at once.

        With a body, `payload` is a list, to which the body is appended. Items are sent after it,
        and closed in any case.
        """
        if self._closed or self._connection.closed:
            self._close_soon(items)
            raise _lost()
        identity = next(self._ids)
        try:
            self._send([REQUEST, identity, items is not None, method, payload], payload, body)
        except _UNSENDABLE as error:
            self._close_soon(items)
            raise BadRequest(f"The request cannot be sent: {error}.") from None
        call.channel, call.id = self, identity
        self._outgoing[identity] = call
        if items is not None:
            call.outflow = Outflow(items)
            call.upload = self._spawn(self._upload(call, call.outflow))
            call.upload.add_done_callback(lambda _done: self._close_soon(items))

    async def call(
        self, method: str, payload: Any, items: AsyncIterator[Any] | None = None
    ) -> Answer:
        """Ask the other side. Its errors are raised here; cancelling this cancels it there."""
        call = _Awaited()
        self.begin(call, method, payload, items=items)
        try:
            return await call.answer
        except asyncio.CancelledError:
            call.cancel()
            raise

    def cancel(self, call: Call) -> None:
        """Want no more of a call."""
        if self._outgoing.pop(call.id, None) is not None:
            _end_call(call, Cancelled("The request was cancelled."))
            self._connection.send([CANCEL, call.id])

    def notify(self, method: str, payload: Any) -> None:
        """Tell the other side something that it does not answer."""
        self._connection.send([NOTE, method, payload])

    async def served(self, method: str) -> None:
        """Wait until no request of this kind is being served, the last of its items included."""
        while any(one.method == method for one in self._incoming.values()):
            self._served.clear()
            await self._served.wait()

    def reply(
        self,
        request: Request,
        payload: Any,
        body: bytes | None,
        items: AsyncIterator[Any] | None,
    ) -> None:
        """Answer a request of the other side; see `Request.reply`."""
        if self._incoming.get(request.id) is not request or request.outflow is not None:
            self._close_soon(items)
            return
        try:
            self._send([REPLY, request.id, items is not None, payload], payload, body)
        except _UNSENDABLE as error:
            self._close_soon(items)
            self._fail_for_a_defect(request, error)
            return
        if items is None:
            self._forget(request)
            return
        request.outflow = Outflow(items)
        request.work = sending = self._spawn(self._send_items(request, request.outflow))
        sending.add_done_callback(lambda _done: self._close_soon(items))

    def fail(self, request: Request, error: FaasdError, extra: Any) -> None:
        """Answer a request of the other side with an error; see `Request.fail`."""
        if self._incoming.get(request.id) is not request:
            return
        self._forget(request)
        try:
            self._connection.send([ERROR, request.id, error.to_problem(), extra])
        except _UNSENDABLE:
            log.exception("channel.request_failed", method=request.method)
            told = InternalError("The error could not be sent.")
            self._connection.send([ERROR, request.id, told.to_problem(), None])

    def _send(self, frame: list[Any], payload: Any, body: bytes | None) -> None:
        """Send a frame that ends in the payload, whose last value is the body if there is one."""
        if body is None:
            self._connection.send(frame)
        elif len(body) < _LARGE:
            payload.append(body)
            self._connection.send(frame)
        else:
            payload.append(b"")
            self._connection.send_large(frame, body)

    async def _send_item(self, kind: int, identity: int, item: Any) -> None:
        if isinstance(item, bytes) and len(item) >= _LARGE:
            self._connection.send_large([kind, identity, b""], item)
        else:
            self._connection.send([kind, identity, item])
        await self._connection.writable()

    def _take(self, frame: Any) -> None:
        if type(frame) is not list:
            raise TypeError("a frame is an array")
        self._takers[frame[0]](frame)

    def _on_request(self, frame: list[Any]) -> None:
        _, identity, more, method, payload = frame
        if type(identity) is not int or type(more) is not bool or type(method) is not str:
            raise TypeError("a request has an id, says whether more follows, and has a method")
        if identity in self._incoming:
            raise ValueError(f"request {identity} is being served already")
        request = self._incoming[identity] = Request(self, identity, method, payload)
        if more:
            request.items = Inflow(self._granting(ALLOW, identity), given_up=_nothing)
        begin = self._begins.get(method)
        if begin is None:
            request.work = self._spawn(self._answer(request))
            return
        try:
            request.work = begin(request)
        except FaasdError as error:
            request.fail(error)
        except Exception as error:  # the boundary of a request, as in _answer
            self._fail_for_a_defect(request, error)

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._serve(request)
            request.reply(answer.payload, items=answer.items)
        except asyncio.CancelledError:
            request.fail(Cancelled("The request was cancelled."))
            raise
        except FaasdError as error:
            request.fail(error)
        except Exception as error:  # the boundary of a request: the other side hears of a defect
            self._fail_for_a_defect(request, error)

    def _fail_for_a_defect(self, request: Request, defect: Exception) -> None:
        log.error("channel.request_failed", method=request.method, exc_info=defect)
        request.fail(InternalError("The request could not be completed."))

    async def _send_items(self, request: Request, outflow: Outflow) -> None:
        try:
            await outflow.pump(lambda item: self._send_item(ITEM, request.id, item))
        except asyncio.CancelledError:
            request.fail(Cancelled("The request was cancelled."))
            raise
        except FaasdError as error:
            request.fail(error)
        except Exception as error:  # the boundary of a request, as in _answer
            self._fail_for_a_defect(request, error)
        else:
            self._forget(request)
            self._connection.send([END, request.id])

    async def _upload(self, call: Call, outflow: Outflow) -> None:
        try:
            await outflow.pump(lambda item: self._send_item(PART, call.id, item))
        except FaasdError as error:
            self._give_up(call, error)
        except Exception:  # the boundary of a request, as in _answer
            log.exception("channel.source_failed")
            self._give_up(call, InternalError("The request could not be sent whole."))
        else:
            self._connection.send([LAST, call.id])

    def _give_up(self, call: Call, error: FaasdError) -> None:
        """A call whose parts cannot be had is over."""
        if self._outgoing.pop(call.id, None) is not None:
            self._connection.send([CANCEL, call.id])
            _fail_call(call, error, None)

    def _on_reply(self, frame: list[Any]) -> None:
        _, identity, more, payload = frame
        call = self._outgoing.get(identity)
        if call is None:
            _check_stray(identity)
            return
        if type(more) is not bool or call.inflow is not None:
            raise ValueError("a request is answered once, and that says whether items follow")
        if more:
            call.inflow = Inflow(self._granting(CREDIT, identity), given_up=call.cancel)
        else:
            del self._outgoing[identity]
        try:
            call.replied(payload, call.inflow)
        except Exception:
            # It is not told yet: that the connection ends will be what it is told.
            call.inflow = None
            self._outgoing[identity] = call
            raise
        if call.upload is not None and not more:
            call.upload.cancel()

    def _on_error(self, frame: list[Any]) -> None:
        _, identity, problem, extra = frame
        call = self._outgoing.get(identity)
        if call is None:
            _check_stray(identity)
            return
        error = from_problem(problem)
        del self._outgoing[identity]
        _fail_call(call, error, extra)

    def _on_item(self, frame: list[Any]) -> None:
        _, identity, item = frame
        call = self._outgoing.get(identity)
        if call is None:
            _check_stray(identity)
            return
        _under_way(call.inflow).feed(item)

    def _on_end(self, frame: list[Any]) -> None:
        _, identity = frame
        call = self._outgoing.get(identity)
        if call is None:
            _check_stray(identity)
            return
        _under_way(call.inflow)
        del self._outgoing[identity]
        _end_call(call, None)

    def _on_allow(self, frame: list[Any]) -> None:
        _, identity, credit = frame
        call = self._outgoing.get(identity)
        if call is None:
            _check_stray(identity)
            return
        _under_way(call.outflow).refill(credit)

    def _on_part(self, frame: list[Any]) -> None:
        _, identity, item = frame
        request = self._incoming.get(identity)
        if request is None:
            _check_stray(identity)
            return
        _under_way(request.items).feed(item)

    def _on_last(self, frame: list[Any]) -> None:
        _, identity = frame
        request = self._incoming.get(identity)
        if request is None:
            _check_stray(identity)
            return
        _under_way(request.items).end()

    def _on_cancel(self, frame: list[Any]) -> None:
        _, identity = frame
        request = self._incoming.get(identity)
        if request is None:
            _check_stray(identity)
            return
        self._abandon(request)

    def _on_credit(self, frame: list[Any]) -> None:
        _, identity, credit = frame
        request = self._incoming.get(identity)
        if request is None:
            _check_stray(identity)
            return
        _under_way(request.outflow).refill(credit)

    def _on_note(self, frame: list[Any]) -> None:
        _, method, payload = frame
        if type(method) is not str:
            raise TypeError("a note has a method")
        self._note(method, payload)

    def _granting(self, kind: int, identity: int) -> Callable[[int], None]:
        return lambda weight: self._connection.send([kind, identity, weight])

    def _abandon(self, request: Request) -> None:
        """Give up a request that nobody waits for."""
        self._forget(request)
        if request.work is not None:
            request.work.cancel()

    def _forget(self, request: Request) -> None:
        self._incoming.pop(request.id, None)
        self._served.set()
        if request.items is not None:
            request.items.end(Cancelled("The request is over."))

    def _close_soon(self, items: AsyncIterator[Any] | None) -> None:
        if items is not None:
            self._spawn(_close(items))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self) -> None:
        self._closed = True
        while self._outgoing:
            _, call = self._outgoing.popitem()
            _fail_call(call, _lost(), None)
        while self._incoming:
            _, request = self._incoming.popitem()
            self._abandon(request)
        # Those that are closed may leave something to be closed in turn.
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.aclose()


class _Awaited(Call):
    """A call that somebody awaits."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        super().__init__()
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def replied(self, payload: Any, items: Inflow | None) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(payload, items))

    def failed(self, error: FaasdError, extra: Any) -> None:
        del extra
        if not self.answer.done():
            self.answer.set_exception(error)
            # Who waited may be cancelled at the same moment, and never look at it.
            self.answer.exception()


def _fail_call(call: Call, error: FaasdError, extra: Any) -> None:
    """Tell a call, or who reads its items, of its error."""
    _end_call(call, error)
    if call.inflow is None:
        call.failed(error, extra)


def _end_call(call: Call, error: FaasdError | None) -> None:
    """Nothing more comes of a call, nor is more of it sent."""
    if call.upload is not None:
        call.upload.cancel()
    if call.inflow is not None:
        call.inflow.end(error)


def _under_way(flow: _Flow | None) -> _Flow:
    if flow is None:
        raise ValueError("there is no such stream")
    return flow


def _check_stray(identity: Any) -> None:
    """What was over when the frame arrived is nothing to worry about; what is no id is."""
    if type(identity) is not int:
        raise TypeError("an id is a number")


async def _close(items: AsyncIterator[Any]) -> None:
    try:
        await close(items)
    except Exception:  # the boundary of a request: it is over, and nobody is left to be told
        log.exception("channel.source_failed")


def _nothing() -> None:
    return


def _lost() -> FaasdError:
    return WorkerLost("The connection between controller and worker ended.")
