"""The door of the HTTP API: plain invocations are served here, all else is passed on to aiohttp.

One object per connection. A connection whose next request is not a plain invocation (see `head`)
becomes aiohttp's, with what was read of it, and stays so. Requests of one connection are served one
after the other; what comes meanwhile waits, and is not read on when it is much.

Most of an invocation's cost is here, so the path of a plain one has no task, no future and no
header map of its own.
"""

from __future__ import annotations

import asyncio
import http
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate

from controller.auth import Caller, Keys
from controller.gateway import Flight, Gateway
from controller.http.bodies import check_size
from controller.http.chunked import ChunkedBody
from controller.http.head import EVENTS, UNSAID, Head, Heads
from controller.http.replies import BODYLESS, broken_off, plain_opening, problem, reply_headers
from controller.registry import Registry
from faasd import clock
from faasd.errors import BadRequest, FaasdError, InternalError, RequestTimeout
from faasd.invocation import Invocation, Reply, StartKind
from faasd.spool import Body
from faasd.streams import close, close_soon
from faasd.telemetry import get_logger

log = get_logger("controller.http")

_LONGEST_HEAD = 16_384
# Of a body more than this is taken only when it is known to be wanted: where its length is said, by
# aiohttp, and chunks once its caller and its function's limit are known.
LARGEST_WHOLE = 4 << 20
_MUCH = 1 << 18
_SWEEP_S = 5.0
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_OK = 200
# How many bytes to wait for until the end of a head is looked for again.
_ANY = 1


class RequestIds:
    """Names for requests that bring none: 128 random bits each, asked of the system many at once."""

    MANY = 256
    LENGTH = 32

    __slots__ = ("_at", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._at = 0

    def next(self) -> str:
        at = self._at
        if at == len(self._text):
            self._text, at = os.urandom(self.MANY * self.LENGTH // 2).hex(), 0
        self._at = end = at + self.LENGTH
        return self._text[at:end]


@dataclass(slots=True, eq=False)
class Lobby:
    """What all connections share: the parts that serve them, and who is here."""

    registry: Registry
    gateway: Gateway
    keys: Keys
    hand_over: Callable[[], asyncio.Protocol]
    """A protocol for a connection that is aiohttp's from now on."""
    keep_alive_s: float
    patience_s: float
    heads: Heads = field(default_factory=Heads)
    ids: RequestIds = field(default_factory=RequestIds)
    fronts: set[Front] = field(default_factory=set)
    passed_on: dict[asyncio.Transport, tuple[int, float]] = field(default_factory=dict)
    """Connections that are aiohttp's: the bytes of replies not taken, and since when so many."""
    closing: bool = False
    _sweep: asyncio.TimerHandle | None = None
    _date: str = ""
    _date_until: float = 0.0

    def entered(self, front: Front) -> None:
        self.fronts.add(front)
        if self._sweep is None:
            self._sweep_later()

    def pass_on(self, front: Front, transport: asyncio.Transport) -> None:
        """The front serves its connection no more; aiohttp, which waits for ever, does."""
        self.fronts.discard(front)
        self.passed_on[transport] = (0, 0.0)

    def date(self, now: float) -> str:
        """The time as HTTP tells it."""
        if now >= self._date_until:
            wall = clock.wall()
            self._date = formatdate(wall, usegmt=True)
            self._date_until = now + 1 - wall % 1
        return self._date

    async def aclose(self, grace_s: float) -> None:
        """Take no further requests; end connections once they are idle, or after the grace."""
        self.closing = True
        if self._sweep is not None:
            self._sweep.cancel()
        give_up = clock.monotonic() + grace_s
        while self.fronts:
            ending = clock.monotonic() >= give_up
            for front in list(self.fronts):
                if ending or front.idle:
                    front.end()
            if ending:
                return
            await asyncio.sleep(0.02)

    def look_round(self, now: float) -> None:
        """End the connections that nothing is to be expected of."""
        for front in list(self.fronts):
            front.look_at_watch(now)
        for transport, (before, since) in list(self.passed_on.items()):
            unsent = transport.get_write_buffer_size()
            if transport.is_closing() and not unsent:
                del self.passed_on[transport]
            elif unsent != before:
                self.passed_on[transport] = (unsent, now)
            elif unsent and now - since > self.patience_s:
                transport.abort()

    def _sweep_now(self) -> None:
        self._sweep = None
        self.look_round(clock.monotonic())
        if self.fronts or self.passed_on:
            self._sweep_later()

    def _sweep_later(self) -> None:
        pause_s = min(_SWEEP_S, self.keep_alive_s / 2, self.patience_s / 2)
        self._sweep = asyncio.get_running_loop().call_later(pause_s, self._sweep_now)


@dataclass(slots=True)
class Upload:
    """A body while it comes in chunks."""

    chunks: ChunkedBody
    since: float
    refused: bool = False
    """It was answered before its end, which is waited for no more: whatever comes is dropped."""


class Front(asyncio.Protocol):
    """One connection until it becomes aiohttp's. Owned by the event loop."""

    __slots__ = (
        "_buffer", "_drained", "_flight", "_head", "_lobby", "_paused", "_request_id", "_since",
        "_task", "_transport", "_unsent", "_upload", "_wanted",
    )  # fmt: skip

    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._buffer = bytearray()
        self._wanted = 0
        self._flight: Flight | None = None
        self._head: Head | None = None
        self._request_id = ""
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Event | None = None
        self._paused = False
        self._since = 0.0
        self._unsent = 0
        self._upload: Upload | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing of a request is here, and all replies have gone out."""
        expects = self._head is not None and not self._is_refused()
        return not expects and not self._buffer and not self._unsent_bytes()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._since = clock.monotonic()
        self._lobby.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._leave()

    def eof_received(self) -> bool:
        # Whether the peer is gone or has merely said all it had to say cannot be told; an
        # invocation that nobody waits for must not run on.
        return False

    def pause_writing(self) -> None:
        self._drained = asyncio.Event()
        # Who takes no replies gets no more of them.
        self._read_on()

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None
        if self._head is None and self._buffer:
            self._advance()
        self._read_on()

    def data_received(self, data: bytes) -> None:
        busy = self._head is not None or self._drained is not None
        if not busy and not self._buffer:
            self._take(data)
            return
        if self._upload is not None and self._task is None:
            self._take_chunks(data)
            return
        self._buffer += data
        if self._wanted > _ANY:
            self._since = clock.monotonic()
        if busy or len(self._buffer) < self._wanted:
            self._read_on()
        else:
            self._take_buffer()

    def look_at_watch(self, now: float) -> None:
        """End this connection if its peer has been idle, or in the midst of something, for long."""
        unsent = self._unsent_bytes()
        comes = self._upload is not None and self._task is None
        if self._head is not None and not comes and not unsent:
            return
        if unsent:
            if unsent != self._unsent:
                self._unsent, self._since = unsent, now
            patience_s = self._lobby.patience_s
        else:
            begun = self._buffer or comes
            patience_s = self._lobby.patience_s if begun else self._lobby.keep_alive_s
        if now - self._since <= patience_s:
            return
        if comes and not self._is_refused():
            self._refuse(RequestTimeout(f"Nothing more of the body came for {patience_s:g} s."))
        else:
            self.end()

    def end(self) -> None:
        """End the connection, whatever is under way."""
        self._transport.abort()

    def answered(self, reply: Reply) -> None:
        self._flight = None
        if reply.chunks is not None:
            if self._transport.is_closing():
                # A task would be cancelled before it had begun, and its chunks stay open.
                close_soon(reply.chunks)
                return
            self._task = asyncio.get_running_loop().create_task(self._stream(reply))
            return
        if reply.start is StartKind.WARM and reply.status == _OK and not reply.headers:
            opening = plain_opening(reply.revision, reply.content_type, reply.worker)
            if opening is not None:
                self._reply_plainly(reply, opening)
                return
        try:
            headers = reply_headers(reply, self._request_id)
        except FaasdError as error:
            self.failed(error)
            return
        self._reply(reply.status, headers, reply.body)

    def failed(self, error: FaasdError) -> None:
        self._flight = None
        self._reply(*problem(error, self._request_id, invoked=True))

    def _take_buffer(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        self._take(data)

    def _take(self, data: bytes | bytearray) -> None:
        """What was read, from the beginning of a request."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) < _LONGEST_HEAD:
                self._wait_for_more(data, _ANY)
            else:
                self._hand_over(data, len(data))
            return
        if self._lobby.closing:
            self._transport.close()
            return
        head = self._lobby.heads.read(bytes(data[:end]))
        end += 4
        if head is None or head.length > LARGEST_WHOLE:
            if head is not None and head.length == UNSAID:
                self._expect_chunks(head, data[end:])
            else:
                self._hand_over(data, end)
            return
        stop = end + head.length
        if len(data) < stop:
            self._wait_for_more(data, stop)
            return
        self._head = head
        if len(data) > stop:
            self._buffer += data[stop:]
        self._begin(head, bytes(data[end:stop]))

    def _wait_for_more(self, data: bytes | bytearray, wanted: int) -> None:
        if wanted != self._wanted:
            # A head must come whole in time; of a body something more, again and again.
            self._since = clock.monotonic()
        self._buffer = data if isinstance(data, bytearray) else bytearray(data)
        self._wanted = wanted
        self._read_on()

    def _expect_chunks(self, head: Head, data: bytes | bytearray) -> None:
        self._head = head
        self._wanted = 0
        self._request_id = head.request_id or self._lobby.ids.next()
        self._upload = Upload(ChunkedBody(LARGEST_WHOLE), clock.monotonic())
        self._take_chunks(data)

    def _take_chunks(self, data: bytes | bytearray) -> None:
        """More of a body that comes in chunks."""
        upload, head = self._upload, self._head
        assert upload is not None
        assert head is not None
        if upload.refused:
            return
        self._since = clock.monotonic()
        try:
            behind = upload.chunks.feed(data)
        except FaasdError as error:
            self._refuse(error)
        except Exception:  # the boundary of a request: there may be no file for it, or no memory
            log.exception("request.failed", name=head.name, request_id=self._request_id)
            self._refuse(_defect())
        else:
            if behind is not None:
                self._uploaded(upload, head, behind)
            elif upload.chunks.is_too_large:
                self._task = asyncio.get_running_loop().create_task(self._admit(upload, head))

    async def _admit(self, upload: Upload, head: Head) -> None:
        """A body that grows large is taken as far as its function accepts it."""
        try:
            caller = await self._lobby.keys.caller(head.authorization, head.namespace)
            function = f"{caller.namespace}/{head.name}"
            spec = self._lobby.registry.get(function).active.spec
            check_size(spec, upload.chunks.announced)
            upload.chunks.limit = spec.max_body_bytes
        except FaasdError as error:
            self._refuse(error)
            return
        except Exception:  # the boundary of a request
            log.exception("request.failed", name=head.name, request_id=self._request_id)
            self._refuse(_defect())
            return
        self._task = None
        data, self._buffer = self._buffer, bytearray()
        self._take_chunks(data)
        self._read_on()

    def _uploaded(self, upload: Upload, head: Head, behind: bytes) -> None:
        """All has come; from here on it is as if it had come at once, but for the time it took."""
        self._upload = None
        self._buffer += behind
        body = upload.chunks.body.whole()
        left_ms = head.deadline_ms
        if left_ms is not None:
            left_ms -= (clock.monotonic() - upload.since) * 1000
        self._head = head = replace(
            head, length=len(body), request_id=self._request_id, deadline_ms=left_ms
        )
        self._begin(head, body)

    def _refuse(self, error: FaasdError) -> None:
        """Tell an error before the end of its request, of which nothing can be behind then.

        The connection is closed for writing at once, and for reading when the peer has seen it:
        with anything unread the reply would be lost.
        """
        head = self._head
        assert head is not None
        self._upload = Upload(ChunkedBody(0), 0.0, refused=True)
        self._buffer.clear()
        status, headers, body = problem(error, self._request_id, invoked=True)
        headers["Connection"] = "close"
        self._reply(status, headers, body)
        # Whatever comes is no request.
        self._head = head
        if not self._transport.is_closing():
            self._transport.write_eof()
        self._read_on()

    def _is_refused(self) -> bool:
        return self._upload is not None and self._upload.refused

    def _begin(self, head: Head, body: Body) -> None:
        self._wanted = 0
        self._request_id = head.request_id or self._lobby.ids.next()
        try:
            caller = self._lobby.keys.known(head.authorization, head.namespace)
            if caller is None:
                self._task = asyncio.get_running_loop().create_task(self._look_up(head, body))
                return
            self._invoke(caller, head, body)
        except FaasdError as error:
            self._reply(*problem(error, self._request_id, invoked=True))
        except Exception:  # the boundary of a request
            log.exception("request.failed", name=head.name, request_id=self._request_id)
            self._reply(*problem(_defect(), self._request_id, invoked=True))

    async def _look_up(self, head: Head, body: Body) -> None:
        """A key that was not seen before is looked for in the store."""
        try:
            caller = await self._lobby.keys.caller(head.authorization, head.namespace)
            self._invoke(caller, head, body)
        except FaasdError as error:
            self._reply(*problem(error, self._request_id, invoked=True))
        except Exception:  # the boundary of a request
            log.exception("request.failed", name=head.name, request_id=self._request_id)
            self._reply(*problem(_defect(), self._request_id, invoked=True))

    def _invoke(self, caller: Caller, head: Head, body: Body) -> None:
        # Every key may invoke: that is the least of the roles.
        function = f"{caller.namespace}/{head.name}"
        revision = self._lobby.registry.get(function).active
        spec = revision.spec
        if head.length > revision.max_body_bytes:
            check_size(spec, head.length)
        invocation = Invocation(
            self._request_id,
            function,
            "",
            body,
            head.content_type,
            head.headers,
            None if head.deadline_ms is None else head.deadline_ms / 1000,
            1,
            head.events,
            *head.wishes.of(caller, spec.scheduling.priority),
        )
        flight = self._lobby.gateway.begin(invocation, self, revision=revision)
        if self._head is not None:
            # Nor was it answered while it was begun.
            self._flight = flight

    def _reply_plainly(self, reply: Reply, opening: str) -> None:
        """What `_reply` would send of most replies, made at once."""
        self._since = now = clock.monotonic()
        body = reply.body
        start = (
            f"{opening}{self._request_id}\r\n"
            f"Server-Timing: {reply.timings.server_timing()}\r\n"
            f"Content-Length: {len(body)}\r\nDate: {self._lobby.date(now)}\r\n\r\n"
        ).encode()
        if len(body) < _MUCH:
            self._transport.write(start + body)
        else:
            self._transport.writelines((start, body))
        self._done()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if self._transport.is_closing():
            return
        if status in BODYLESS:
            body = b""
        else:
            headers["Content-Length"] = str(len(body))
        start = self._start(status, headers)
        if len(body) < _MUCH:
            self._transport.write(start + body)
        else:
            self._transport.writelines((start, body))
        self._done()

    def _start(self, status: int, headers: dict[str, str]) -> bytes:
        """Status line and headers of a reply."""
        self._since = clock.monotonic()
        headers["Date"] = self._lobby.date(self._since)
        fields = "\r\n".join([f"{name}: {value}" for name, value in headers.items()])
        return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n{fields}\r\n\r\n".encode()

    def _done(self) -> None:
        """The reply is on its way; the next request may come, or be here."""
        self._head = self._task = None
        if self._lobby.closing:
            self._transport.close()
        elif self._buffer:
            # Not at once: of a thousand requests in one piece each would be answered on the stack
            # of the one before, and other connections would have no turn.
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Take the next request out of what was read while the last one was served."""
        if self._head is not None or not self._buffer or self._drained is not None:
            return
        if self._transport.is_closing():
            return
        self._take_buffer()
        self._read_on()

    def _read_on(self) -> None:
        """Read while what waits is little, and while the peer takes its replies."""
        waits = len(self._buffer) >= max(_MUCH, self._wanted + _MUCH) or self._drained is not None
        if waits != self._paused and not self._transport.is_closing():
            self._paused = waits
            if waits:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    async def _stream(self, reply: Reply) -> None:
        """A reply piece by piece, no faster than its reader takes it."""
        chunks = reply.chunks
        assert chunks is not None
        begun = False
        try:
            headers = reply_headers(reply, self._request_id)
            chunked = reply.length is None and reply.status not in BODYLESS
            if chunked:
                headers["Transfer-Encoding"] = "chunked"
            elif reply.status not in BODYLESS:
                headers["Content-Length"] = str(reply.length)
            await self._write(self._start(reply.status, headers))
            begun = True
            async for chunk in chunks:
                if chunked:
                    await self._write_chunk(chunk)
                elif reply.status not in BODYLESS:
                    await self._write(chunk)
            if chunked:
                self._transport.write(b"0\r\n\r\n")
        except FaasdError as error:
            if begun:
                self._break_off(reply, error)
            else:
                self.failed(error)
                return
        except Exception:  # the boundary of a request whose status has gone out already
            log.exception("request.failed", request_id=self._request_id)
            self._break_off(reply, _defect())
        finally:
            await close(chunks)
        self._done()

    def _break_off(self, reply: Reply, error: FaasdError) -> None:
        """An error after the status went out: told as an event, or by an unfinished body."""
        if reply.content_type == EVENTS:
            told = broken_off(error, self._request_id)
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(told), told))
        else:
            self._transport.close()

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    async def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._since = clock.monotonic()
        if self._drained is not None:
            await self._drained.wait()

    async def _write_chunk(self, chunk: bytes) -> None:
        if chunk:
            await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def _hand_over(self, data: bytes | bytearray, end: int) -> None:
        """The connection is aiohttp's from now on, and so is what was read of it.

        What follows the first request, whose head goes up to `end`, comes by itself: in one piece
        with something that is no request, or may not follow, the first would be refused too.
        """
        transport = self._transport
        self._lobby.pass_on(self, transport)
        if self._paused:
            self._paused = False
            transport.resume_reading()
        protocol = self._lobby.hand_over()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        cut = _cut_of(data, end)
        protocol.data_received(bytes(data[:cut]))
        if len(data) > cut:
            protocol.data_received(bytes(data[cut:]))

    def _leave(self) -> None:
        """The connection is gone, and nobody is left to take a reply."""
        self._lobby.fronts.discard(self)
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()
        if self._task is not None:
            self._task.cancel()
        self._upload = None
        self._buffer.clear()


def _cut_of(data: bytes | bytearray, end: int) -> int:
    """Where to cut what begins with a request whose head goes up to `end`."""
    if b"chunked" not in data[:end].lower():
        return end
    try:
        behind = ChunkedBody(len(data)).feed(data[end:])
    except BadRequest:
        behind = None
    # Cut before its end, chunks that turn out to be none would never be answered.
    return len(data) - len(behind or b"")


def _defect() -> FaasdError:
    return InternalError("The request could not be completed.")
