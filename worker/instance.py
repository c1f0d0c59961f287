"""The worker's end of an instance's data socket: frames out, events in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import Sequence
from typing import Any, cast

import msgpack

from faasd.errors import FaasdError
from worker.control import describe_status
from worker.output import OutputPipe
from worker.sandbox import Call, Exit, InstanceEvents

MAX_FRAME = 1 << 30
_LENGTH = struct.Struct(">I")
_EXIT_STATUS_PATIENCE_S = 0.3
# Below this, a copy costs less than a second buffer in a write.
_SMALL = 65_536


class InstanceLink(asyncio.Protocol):
    """One instance process. Owns its data socket and output pipes; the template is its parent."""

    def __init__(
        self,
        name: str,
        events: InstanceEvents,
        pipes: tuple[OutputPipe, ...],
        *,
        tags: bool,
        largest: int = MAX_FRAME,
    ) -> None:
        """`tags`: the process marks its output itself, since it serves several calls at once.
        `largest` is the size of the largest frame that it may send.
        """
        self.name = name
        self.pid = 0
        self._pidfd = -1
        self._largest = largest
        self.attached: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._events = events
        self.pipes = pipes
        self._tags = tags
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._buffer = bytearray()
        self._lost = False
        self._closed = False
        self._fault: str | None = None
        self._status: int | None = None
        self._why: FaasdError | None = None
        self._requests: dict[int, str] = {}
        self._calls = 0

    def pids(self) -> list[int]:
        return [self.pid] if self.pid else []

    def born(self, pid: int) -> None:
        """The process, held: its template need not tell of its end, and its number may be reused."""
        self._let_go()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(pid)
                self.pid = pid

    def _let_go(self) -> None:
        self.pid = 0
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def call(self, calls: Sequence[Call]) -> None:
        if self._transport is None or self._lost:
            return
        if self._tags:
            for call, meta, _body in calls:
                self._requests[call] = meta.get("request_id", "")
                for pipe in self.pipes:
                    pipe.expect(self._requests[call])
        else:
            self._calls += 1
            request = calls[0][1].get("request_id", "") if len(calls) == 1 else ""
            for pipe in self.pipes:
                pipe.switch(request)
        body = msgpack.packb(["call", calls])
        frame = _LENGTH.pack(len(body)) + body if len(body) < _SMALL else None
        if frame is None or not self._write_now(frame):
            self._transport.writelines((frame,) if frame else (_LENGTH.pack(len(body)), body))

    def _write_now(self, frame: bytes) -> bool:
        """Write a small frame past the transport, which would wait for the end of the loop's round."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size():
            return False
        try:
            written = os.write(self._fd, frame)
        except OSError:
            return False
        if written < len(frame):
            self._transport.write(frame[written:])
        return True

    def cancel(self, call: int) -> None:
        if self._transport is None or self._lost:
            return
        if self._tags:
            body = msgpack.packb(["cancel", call])
            self._transport.writelines((_LENGTH.pack(len(body)), body))
            return
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.resume_reading()

    def pause(self) -> None:
        if self._transport is not None and not self._lost:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._lost:
            self._transport.resume_reading()

    def discard(self) -> None:
        """Give up an instance that did not come to serve: nobody will hear of it."""
        self._closed = True
        self.kill()
        self._let_go()
        if self._transport is not None:
            self._transport.abort()
        for pipe in self.pipes:
            pipe.close()

    def exited(self, status: int, why: FaasdError | None = None) -> None:
        """The template collected the process; `why` is the reason where it is known."""
        self._status = status
        self._why = why
        self._let_go()
        if self._lost:
            self._finish()

    def abandon(self, why: FaasdError | None = None) -> None:
        """The template is gone, and the kernel ended this process with it."""
        self._why = why
        self._status = self._status if self._status is not None else signal.SIGKILL
        if self._transport is None:
            self.connection_lost(None)
        else:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._fd = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            self._parse()
        except (ValueError, TypeError, KeyError, IndexError, LookupError) as error:
            self._reject(f"sent something that is not a reply ({type(error).__name__})")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._lost:
            return
        self._lost = True
        if self._status is not None:
            self._finish()
            return
        # How it ended comes from its parent, on another socket.
        asyncio.get_running_loop().call_later(_EXIT_STATUS_PATIENCE_S, self._finish)
        self._signal(signal.SIGKILL)

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._let_go()
        for pipe in self.pipes:
            pipe.close()
        detail = self._fault or "ended"
        if self._fault is None and self._status is not None:
            detail = describe_status(self._status)
        if not self.attached.done():
            self.attached.set_exception(ConnectionError(f"the instance {detail}"))
            self.attached.exception()
        self._events.on_closed(Exit(detail, self._why))

    def _parse(self) -> None:
        buffer = self._buffer
        start = 0
        while len(buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._largest:
                raise ValueError("frame too large")
            end = start + 4 + length
            if len(buffer) < end:
                break
            frame = msgpack.unpackb(memoryview(buffer)[start + 4 : end])
            start = end
            self._event(frame)
        if start:
            del buffer[:start]

    def _event(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == "result":
            _, call, status, content_type, headers, exec_ms, body = frame
            self._settle_output(call)
            self._events.on_result(call, status, content_type, headers, exec_ms, body)
        elif kind == "chunk":
            self._events.on_chunk(frame[1], frame[2])
        elif kind == "start":
            self._events.on_start(*frame[1:5])
        elif kind == "end":
            self._settle_output(frame[1])
            self._events.on_end(frame[1], frame[2])
        elif kind == "error":
            self._settle_output(frame[1])
            self._events.on_error(frame[1], dict(frame[2]), frame[3])
        elif kind in ("attached", "refused") and not self.attached.done():
            self.attached.set_result({"kind": kind, **frame[1]})
        else:
            raise ValueError(f"unknown frame {kind!r}")

    def _settle_output(self, call: int) -> None:
        if self._tags:
            request = self._requests.pop(call, "")
            for pipe in self.pipes:
                pipe.settle(request)
            return
        # What it printed is in the pipes already, and may be read when the reply is on its way;
        # twice, since what a loop's round writes goes out at the end of the round.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._settle_idle, self._calls)

    def _settle_idle(self, calls: int) -> None:
        """The output of a call that ended, unless the next call came first and did this."""
        if calls == self._calls and not self._closed:
            for pipe in self.pipes:
                pipe.switch("")

    def _reject(self, fault: str) -> None:
        self._fault = fault
        self._signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
