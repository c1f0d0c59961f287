"""The worker's end of an instance's data socket: frames out, events in."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from faasd import clock
from faasd.errors import FaasdError
from faasd.framing import packed
from faasd.spool import Body, Spool, whole
from worker.control import describe_status
from worker.output import OutputPipe
from worker.sandbox import Call, Exit, InstanceEvents, Meta

MAX_FRAME = 1 << 30
_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_EXIT_STATUS_PATIENCE_S = 0.3
_READ = 262_144
_MAX_FDS = 8
_RIGHTS_SPACE = socket.CMSG_SPACE(_MAX_FDS * 4)
# From here on a body goes beside its frame, as a file in memory; the instance does the same.
LARGE = 256 * 1024
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Where all links read to: what is read is taken out before another one reads.
_room = memoryview(bytearray(_READ))
_GO = _LENGTH.pack(len(packed(["go"]))) + packed(["go"])
_MARK = packed(["mark"])
# For frames that are never large, so that its buffer never is.
_pack = msgpack.Packer().pack
# Frames are joined into one write up to this size, and read so many times before others get a turn.
_SMALL = 65_536
_MOST_SPARE = 16 << 20
# A larger body of a reply is not read here: it is passed on piece by piece.
_LARGEST_WHOLE = 1 << 20
_SPARE_S = 5.0
_READS_AT_ONCE = 4


class InstanceLink:
    """One instance process. Owns its data socket and output pipes; the template is its parent.

    Small frames of one round of the loop are written together. Owned by the event loop.
    """

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
        `largest` is the size of the largest frame, or body beside one, that it may send.
        """
        self.name = name
        self.tells_rounds = True
        self.pid = 0
        self._pidfd = -1
        self._largest = largest
        self._loop = asyncio.get_running_loop()
        self.attached: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._events = events
        self.pipes = pipes
        self._tags = tags
        self._sock: socket.socket | None = None
        self._buffer = bytearray()
        self._wanted = 4
        self._paused = False
        self._go_due = False
        self._received: deque[int] = deque()
        self._outgoing: deque[tuple[bytes | memoryview, Sequence[int]]] = deque()
        self._flush_due = False
        self._blocked = False
        self._lost = False
        self._closed = False
        self._fault: str | None = None
        self._status: int | None = None
        self._why: FaasdError | None = None
        self._requests: dict[int, str] = {}
        self._mark = -1
        self._poll: select.poll | None = None
        self._touched = False
        self._files: dict[int, int] = {}
        self._spare: list[tuple[int, int]] = []
        self._spare_until: asyncio.TimerHandle | None = None
        for pipe in pipes:
            pipe.before_reading = self.catch_up

    def pids(self) -> list[int]:
        return [self.pid] if self.pid else []

    def connect(self, sock: socket.socket) -> None:
        """Serve this end of the data socket, which is the link's from here on."""
        sock.setblocking(False)
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        if not self._tags:
            self._mark = _new_mark()
            self._send(_MARK, (self._mark,))

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
        if self._sock is None or self._lost:
            return
        if len(calls) == 1 and not self._tags:
            self._call_one(calls[0])
            return
        if not self._tags and any(len(body) >= LARGE for _call, _meta, body in calls):
            self._call_beside(calls)
        else:
            self._send(packed(["call", [(call, meta, whole(body)) for call, meta, body in calls]]))
        for call, meta, _body in calls:
            request = meta[0]
            if self._tags:
                for pipe in self.pipes:
                    pipe.expect(request)
            self._requests[call] = request if self._tags else ""

    def _call_one(self, call: Call) -> None:
        identity, meta, body = call
        if len(body) >= LARGE:
            self._call_beside((call,))
        else:
            frame = _pack(("call", (call,)))
            self._outgoing.append((_LENGTH.pack(len(frame)) + frame, ()))
            if not self._requests and len(self._outgoing) == 1:
                # There is nothing that this could be joined with.
                self._flush()
            elif not self._flush_due:
                self._flush_due = True
                self._loop.call_soon(self._flush)
        self._requests[identity] = meta[0]

    def _call_beside(self, calls: Sequence[Call]) -> None:
        """Send calls with their large bodies as files in memory, as far as one message can hold."""
        slim: list[tuple[int, Meta, bytes | int]] = []
        fds: list[int] = []
        for call, meta, body in calls:
            if len(body) >= LARGE and len(fds) < _MAX_FDS and self._put_into_file(call, body):
                fds.append(self._files[call])
                slim.append((call, meta, len(body)))
            else:
                slim.append((call, meta, whole(body)))
        try:
            frame = packed(["call", slim])
        except (ValueError, TypeError, OverflowError):
            for call, _, _ in calls:
                self._put_away(call)
            raise
        self._send(frame, fds)

    def _put_into_file(self, call: int, body: Body) -> bool:
        """Have a file in memory hold the body of a call until that is over. False without one."""
        try:
            if isinstance(body, Spool):
                self._files[call] = os.dup(body.fd)
                return True
            fd = self._spare.pop()[0] if self._spare else _new_file("faasd-body")
        except OSError:
            return False
        self._files[call] = fd
        try:
            view = memoryview(body)
            at = 0
            while at < len(view):
                at += os.pwrite(fd, view[at:], at)
        except OSError:
            self._put_away(call)
            return False
        return True

    def _put_away(self, call: int) -> None:
        """The file of a call that is over serves another soon: its memory need not be found anew."""
        fd = self._files.pop(call, -1)
        if fd < 0:
            return
        size = os.fstat(fd).st_size
        if self._lost or size + sum(kept for _, kept in self._spare) > _MOST_SPARE:
            os.close(fd)
            return
        self._spare.append((fd, size))
        if self._spare_until is None:
            self._spare_until = self._loop.call_later(_SPARE_S, self._drop_spare)

    def _drop_spare(self) -> None:
        self._spare_until = None
        while self._spare:
            os.close(self._spare.pop()[0])

    def _send(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        self._send_later(_LENGTH.pack(len(frame)) + frame, fds)

    def _send_later(self, frame: bytes, fds: Sequence[int]) -> None:
        self._outgoing.append((frame, fds))
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._sock is None or self._blocked:
            return
        outgoing = self._outgoing
        while outgoing:
            data, fds = outgoing.popleft()
            if not fds and outgoing and len(data) < _SMALL:
                data = self._joined(data)
            try:
                sent = _send_with(self._sock, data, fds) if fds else self._sock.send(data)
            except BlockingIOError:
                outgoing.appendleft((data, fds))
                self._wait_for_room()
                return
            except OSError:
                # It ended; the reading side hears of it.
                return
            if sent < len(data):
                outgoing.appendleft((memoryview(data)[sent:], ()))

    def _joined(self, first: bytes | memoryview) -> bytes:
        """The frames that can go in one write with the first."""
        parts, size = [first], len(first)
        while self._outgoing and not self._outgoing[0][1] and size < _SMALL:
            parts.append(self._outgoing.popleft()[0])
            size += len(parts[-1])
        return b"".join(parts)

    def _wait_for_room(self) -> None:
        assert self._sock is not None
        self._blocked = True
        self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        if self._sock is not None:
            self._loop.remove_writer(self._sock.fileno())
            self._blocked = False
            self._flush()

    def cancel(self, call: int) -> None:
        """Ask for a call to be given up; one that waits for its turn there runs all the same."""
        if self._sock is None or self._lost:
            return
        if self._tags:
            self._send(packed(["cancel", call]))
        elif call == next(iter(self._requests), None):
            os.pwrite(self._mark, _NUMBER.pack(call), 0)
            self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.resume()

    def pause(self) -> None:
        if self._sock is not None and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._sock.fileno())

    def resume(self) -> None:
        if self._sock is not None and self._paused:
            self._paused = False
            self._loop.add_reader(self._sock.fileno(), self._readable)
            self._let_go_on()

    def discard(self) -> None:
        """Give up an instance that did not come to serve: nobody will hear of it."""
        self._closed = True
        self.kill()
        self._let_go()
        self._disconnect()
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
        self._lose()

    def catch_up(self) -> None:
        """Take what it has said by now, before what it printed: that may be a later call's."""
        if self._sock is not None and not self._paused:
            self._readable()
        self._name_output()

    def look_out(self, for_s: float) -> bool:
        if self._sock is None or self._paused:
            return False
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLIN)
        give_up = clock.monotonic() + for_s
        while not poll.poll(0):
            if clock.monotonic() > give_up:
                return False
            # It may have been given the very processor that this keeps busy.
            os.sched_yield()
        self._readable()
        return True

    def _readable(self) -> None:
        self._read()
        self._events.on_caught_up()
        if self._outgoing and not self._flush_due:
            self._flush()

    def _read(self) -> None:
        for _ in range(_READS_AT_ONCE):
            if self._sock is None:
                return
            try:
                size, ancillary, _, _ = self._sock.recvmsg_into(
                    [_room], _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                size, ancillary = 0, []
            if ancillary:
                self._receive(ancillary)
            if not size:
                self._lose()
                return
            try:
                self._take(_room[:size])
                self._check_descriptors()
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:
                self._reject(f"sent something that is not a reply ({type(error).__name__})")
                return
            if size < _READ:
                return

    def _receive(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, content in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            fds = array.array("i")
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            self._received.extend(fds)

    def _check_descriptors(self) -> None:
        """One may have come with the beginning of a frame. Raises ValueError if others lie here."""
        if len(self._received) > (1 if self._buffer else 0):
            raise ValueError("descriptors that belong to no frame")

    def _take(self, data: memoryview) -> None:
        """Parse what arrived after what is left of before; a frame that is not whole waits."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return
            data, self._buffer = memoryview(self._buffer), bytearray()
        start, size = 0, len(data)
        self._wanted = 4
        while size - start >= 4:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > self._largest:
                raise ValueError("frame too large")
            end = start + 4 + length
            if size < end:
                self._wanted = end - start
                break
            frame = msgpack.unpackb(data[start + 4 : end])
            start = end
            self._event(frame)
        if start < size:
            self._buffer = bytearray(data[start:])

    def _lose(self) -> None:
        """The connection ended, and the process with it or soon."""
        if self._lost:
            return
        self._lost = True
        self._disconnect()
        self._signal(signal.SIGKILL)
        idle = self.attached.done() and not self._requests
        if self._status is not None or idle:
            self._finish()
            return
        # How it ended comes from its parent, on another socket.
        self._loop.call_later(_EXIT_STATUS_PATIENCE_S, self._finish)
        self._events.on_lost()

    def _disconnect(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        sock.close()
        _close_all(self._received)
        _close_all(self._files.values())
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1
        self._received.clear()
        self._files.clear()
        self._outgoing.clear()
        if self._spare_until is not None:
            self._spare_until.cancel()
        self._drop_spare()

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._let_go()
        self._name_output()
        for pipe in self.pipes:
            pipe.close()
        detail = self._fault or "ended"
        if self._fault is None and self._status is not None:
            detail = describe_status(self._status)
        if not self.attached.done():
            self.attached.set_exception(ConnectionError(f"the instance {detail}"))
            self.attached.exception()
        self._events.on_closed(Exit(detail, self._why))

    def _event(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == "result":
            _, call, status, content_type, headers, exec_ms, body = frame
            if type(body) is int:
                body = self._of_call(call, body) if call in self._files else self._beside(body)
            if self._files:
                self._put_away(call)
            self._settle_output(call)
            self._events.on_result(call, status, content_type, headers, exec_ms, body)
        elif kind == "chunk":
            self._events.on_chunk(frame[1], frame[2])
        elif kind == "start":
            self._events.on_start(*frame[1:5])
        elif kind == "end":
            self._put_away(frame[1])
            self._settle_output(frame[1])
            self._events.on_end(frame[1], frame[2])
        elif kind == "error":
            self._put_away(frame[1])
            self._settle_output(frame[1])
            self._events.on_error(frame[1], dict(frame[2]), frame[3])
        elif kind == "printed":
            self._printed()
        elif kind in ("attached", "refused") and not self.attached.done():
            self.attached.set_result({"kind": kind, **frame[1]})
        else:
            raise ValueError(f"unknown frame {kind!r}")

    def _printed(self) -> None:
        """It waits until what it printed was read. Raises ValueError when it did not."""
        if self._go_due or any(frame is _GO for frame, _ in self._outgoing):
            raise ValueError("it did not wait")
        self._name_output()
        for pipe in self.pipes:
            pipe.drain()
        self._events.on_printed()
        self._go_due = True
        if not self._paused:
            self._let_go_on()

    def _let_go_on(self) -> None:
        """Not while it is paused: the end of its stream lies unread, and what it prints next would
        be taken for that one's.
        """
        if self._go_due:
            self._go_due = False
            self._send_later(_GO, ())

    def _of_call(self, call: int, size: int) -> Body:
        """The body of a reply in the file of its call. Raises ValueError when it is not there."""
        self._check_size(size)
        if size > _LARGEST_WHOLE:
            if os.fstat(self._files[call]).st_size < size:
                raise ValueError("the body is shorter than it was said to be")
            return Spool(self._files.pop(call), size)
        body = os.pread(self._files[call], size, 0)
        if len(body) != size:
            raise ValueError("the body is shorter than it was said to be")
        return body

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self._largest:
            raise ValueError("body too large")

    def _beside(self, size: int) -> Body:
        """The body beside a frame. Raises ValueError unless it is what it is said to be."""
        self._check_size(size)
        body = Spool(self._received.popleft(), size)
        try:
            # A file in memory that can neither shrink nor block; what else was sent is refused.
            sealed = fcntl.fcntl(body.fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        except OSError:
            raise ValueError("the body is no file in memory") from None
        if not sealed or os.fstat(body.fd).st_size < size:
            raise ValueError("the body is not sealed, or shorter than it was said to be")
        return body if size > _LARGEST_WHOLE else os.pread(body.fd, size, 0)

    def _settle_output(self, call: int) -> None:
        request = self._requests.pop(call, "")
        if self._tags:
            for pipe in self.pipes:
                pipe.settle(request)
            return
        if self._touched:
            # What it printed was read already: it says so before its reply, and waits.
            self._touched = False
            for pipe in self.pipes:
                pipe.switch("")

    def _name_output(self) -> None:
        """What is read of its output from here on is of the call that runs."""
        if self._tags:
            return
        self._touched = True
        request = next(iter(self._requests.values()), "")
        for pipe in self.pipes:
            pipe.request = request

    def _reject(self, fault: str) -> None:
        self._fault = fault
        self._signal(signal.SIGKILL)
        self._lose()

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


def _send_with(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return sock.sendmsg([data], rights)


def _new_file(name: str, flags: int = 0) -> int:
    """A file in memory; nobody can seal it without the flag for that."""
    return os.memfd_create(name, os.MFD_CLOEXEC | flags)


def _new_mark() -> int:
    """A file for the number of a call, and for nothing more: an instance may write to it too."""
    fd = _new_file("faasd-mark", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, _NUMBER.size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
