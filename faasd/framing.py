"""A TCP connection as frames: a 4-byte big-endian length and a msgpack value each.

What is sent within one round of the loop leaves in one write, and all frames of one read are taken
in one go; that, more than anything, is what makes many small requests cheap. Frames come whole or
not at all, and whatever is none ends the connection.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgpack

from faasd.telemetry import get_logger

log = get_logger("faasd.framing")

MAX_FRAME = (1 << 30) + (1 << 24)
LENGTH = struct.Struct(">I")
# Before the other side has proved itself it gets no more room than a greeting needs.
_FIRST_ROOM = 1 << 13
_ROOM = 1 << 18
_GROWTH = 4
_NO_BODY = b"\xc4\0"
_WRITE_AT = 1 << 16
_LINGER_S = 5.0


class Packing:
    """Makes msgpack. One packer for all: each has a buffer that costs more to make than to fill.

    Not thread-safe; owned by the event loop.
    """

    LARGEST_KEPT = 1 << 20

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack

    def __call__(self, message: Any) -> bytes:
        packed: bytes = self._pack(message)
        if len(packed) > self.LARGEST_KEPT:
            # Its buffer has grown with the message, and would stay so.
            self._pack = msgpack.Packer().pack
        return packed


packed = Packing()


class Connection(asyncio.BufferedProtocol):
    """One connection, from the loop's hands until `closed`. Owned by the event loop.

    Until `serve` is called, frames are read one by one with `read`.
    """

    def __init__(self, accepted: Callable[[Connection], None] | None = None) -> None:
        """`accepted` is told once there is a connection."""
        self._loop = asyncio.get_running_loop()
        self._accepted = accepted
        self._transport: asyncio.Transport | None = None
        self._take: Callable[[Any], None] | None = None
        self._view = memoryview(bytearray(_FIRST_ROOM))
        self._begin = 0
        self._end = 0
        self._arrived: asyncio.Future[None] | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._taking = False
        self._writable: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.paused = False
        self.closed = False
        self.heard_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._accepted is not None:
            self._accepted(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        self.heard_at = self._loop.time()
        if self._take is not None:
            self._take_frames(self._take)
        else:
            if self._end == len(self._view):
                self._reading(on=False)
            _wake(self._arrived)

    def eof_received(self) -> None:
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.closed = True
        self._out.clear()
        for waiting in (self._arrived, self._writable, self._ended):
            _wake(waiting)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        _wake(self._writable)

    async def read(self, most: int) -> bytes:
        """The next frame, undecoded. Raises ValueError when it is longer than `most` bytes, and
        ConnectionError when the connection ends before it is whole.
        """
        while True:
            held = self._end - self._begin
            if held >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._view, self._begin)
                if length > most:
                    raise ValueError(f"a frame of {length} bytes")
                if held >= LENGTH.size + length:
                    begin = self._begin + LENGTH.size
                    self._begin = begin + length
                    return bytes(self._view[begin : self._begin])
            if self.closed:
                raise ConnectionResetError("The other side left.")
            self._arrived = self._loop.create_future()
            await self._arrived

    async def serve(self, take: Callable[[Any], None]) -> None:
        """Pass every frame on, until the connection ends. What `take` raises ends it."""
        self._take = take
        self._make_room(_ROOM)
        self._reading(on=True)
        self._take_frames(take)
        await self._end_of_it(None)

    def send(self, frame: list[Any]) -> None:
        """Send a frame, with the others of this round of the loop.

        Raises TypeError, ValueError or OverflowError for what cannot be packed; then nothing is
        sent.
        """
        data = packed(frame)
        if len(data) > MAX_FRAME:
            raise ValueError(f"{len(data)} bytes are too many")
        if self.closed:
            return
        self._out.append(LENGTH.pack(len(data)))
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= _WRITE_AT:
            self._flush()
        elif not (self._taking or self._flush_due):
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)

    def send_large(self, frame: list[Any], body: bytes) -> None:
        """Send a frame whose last value is the body; in its place the frame has b"".

        The body is copied nowhere on its way to the socket. Raises as `send` does.
        """
        data = packed(frame)
        if len(data) + len(body) > MAX_FRAME:
            raise ValueError(f"{len(body)} bytes are too many")
        if self.closed:
            return
        head = data[: -len(_NO_BODY)] + _bin_header(len(body))
        self._out += (LENGTH.pack(len(head) + len(body)), head)
        self._flush()
        assert self._transport is not None
        self._transport.write(body)

    async def writable(self) -> None:
        """Wait while the other side takes less than it is sent."""
        while self.paused and not self.closed:
            if self._writable is None or self._writable.done():
                self._writable = self._loop.create_future()
            # Several streams wait for the same.
            await asyncio.shield(self._writable)

    def abort(self) -> None:
        """End it now; what was not sent yet is not sent."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        """Send what is left, for a while, and end it. Safe to call twice."""
        if not self.closed:
            self._flush()
            self.closed = True
        if self._transport is not None:
            self._transport.close()
            await self._end_of_it(_LINGER_S)
            if not self._ended.done():
                self._transport.abort()

    async def _end_of_it(self, timeout: float | None) -> None:
        # Unlike awaiting it, which would cancel what others wait for when this is cancelled.
        await asyncio.wait([self._ended], timeout=timeout)

    def _take_frames(self, take: Callable[[Any], None]) -> None:
        view, begin, end = self._view, self._begin, self._end
        wanted = LENGTH.size
        self._taking = True
        try:
            while end - begin >= LENGTH.size and not self.closed:
                (length,) = LENGTH.unpack_from(view, begin)
                stop = begin + LENGTH.size + length
                if stop > end:
                    if length > MAX_FRAME:
                        raise ValueError(f"a frame of {length} bytes")
                    wanted += length
                    break
                frame = msgpack.unpackb(view[begin + LENGTH.size : stop])
                begin = stop
                take(frame)
        except Exception:  # the boundary of a connection: what it cannot take ends it
            log.warning("channel.garbage", exc_info=True)
            self.abort()
        finally:
            self._taking = False
        self._begin = begin
        self._make_room(wanted)
        if self._out:
            self._flush()

    def _make_room(self, wanted: int) -> None:
        """Have the rest of a frame of so many bytes fit behind what is there of it."""
        held = self._end - self._begin
        room = len(self._view)
        if not held and room > _ROOM:
            self._view = memoryview(bytearray(_ROOM))
        elif wanted > room:
            # By and by: that much was announced, not sent.
            larger = memoryview(bytearray(min(wanted, max(_ROOM, room * _GROWTH))))
            larger[:held] = self._view[self._begin : self._end]
            self._view = larger
        elif held and self._begin > min(room // 2, room - wanted):
            self._view[:held] = self._view[self._begin : self._end]
        elif held:
            return
        self._begin, self._end = 0, held

    def _flush_soon(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        if self._out and not self.closed:
            assert self._transport is not None
            self._transport.write(b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0

    def _reading(self, *, on: bool) -> None:
        assert self._transport is not None
        if not self.closed and self._transport.is_reading() != on:
            (self._transport.resume_reading if on else self._transport.pause_reading)()


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


def _bin_header(length: int) -> bytes:
    """How msgpack begins that many bytes."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")
