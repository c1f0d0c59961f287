"""Messages between the worker and the processes of a sandbox, blocking side.

Control sockets are SOCK_SEQPACKET: one msgpack array per packet, descriptors riding along
(SCM_RIGHTS). Data sockets are streams of frames: a 4-byte big-endian length, then a msgpack array.
A large body is not in its frame but beside it: a file in memory, whose descriptor rides along and
whose size stands where the body would. A large reply to a large call is put into the call's file.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from collections import deque
from typing import Any

import msgpack

MAX_PACKET = 128 * 1024
MAX_FDS = 8
# F_ADD_SEALS; against shrinking, growing and writing. Python 3.9 has names for none of them here.
_ADD_SEALS = 1033
_SEALS = 0x2 | 0x4 | 0x8
_LENGTH = struct.Struct(">I")
_READ = 65_536
_RIGHTS_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)
# From here on a body goes beside its frame: two copies at the speed of memory cost less than
# passing it through the socket's buffer piece by piece.
LARGE = 256 * 1024


class Closed(Exception):
    """The other end is gone."""


def send_packet(sock: socket.socket, message: list[Any], fds: tuple[int, ...] = ()) -> None:
    ancillary = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
    try:
        sock.sendmsg([msgpack.packb(message)], ancillary)
    except (BrokenPipeError, ConnectionResetError):
        raise Closed from None


def recv_packet(sock: socket.socket) -> tuple[list[Any], list[int]]:
    """The next packet and the descriptors that came with it. Raises Closed at the end."""
    try:
        data, fds, _flags, _addr = socket.recv_fds(sock, MAX_PACKET, MAX_FDS)
    except ConnectionResetError:
        raise Closed from None
    if not data:
        raise Closed
    return msgpack.unpackb(data), list(fds)


class FrameStream:
    """A blocking stream of frames on a connected socket. What one read brings may be many frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b""
        self._at = 0
        self._fds: deque[int] = deque()
        # One buffer for all reads: a fresh one each time would grow and trim the heap.
        self._room = memoryview(bytearray(_READ))

    def read(self) -> list[Any]:
        """The next frame. Raises Closed when the stream ends, even inside a frame."""
        data, at = self._data, self._at
        while len(data) - at < 4:
            data, at = data[at:] + self._recv(), 0
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        end = at + length
        if len(data) < end:
            frame: list[Any] = msgpack.unpackb(self._complete(data[at:], length))
            self._data, self._at = b"", 0
            return frame
        self._data, self._at = data, end
        return msgpack.unpackb(memoryview(data)[at:end])  # type: ignore[no-any-return]

    def file(self) -> int:
        """The descriptor that came beside a frame, in the order of the frames; now the caller's."""
        return self._fds.popleft()

    def write(self, message: list[Any]) -> None:
        self.write_packed(pack(message))

    def write_packed(self, payload: bytes) -> None:
        """Write frames that `pack` made."""
        try:
            self.sock.sendall(payload)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def write_with(self, message: list[Any], fd: int) -> None:
        """Write a frame with a descriptor beside it."""
        payload = pack(message)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            sent = self.sock.sendmsg([payload], rights)
            if sent < len(payload):
                self.sock.sendall(payload[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def _complete(self, begun: bytes, size: int) -> bytearray:
        """The `size` bytes that `begun` begins; reads no further, so that a body is copied once."""
        buffer = bytearray(size)
        buffer[: len(begun)] = begun
        view = memoryview(buffer)
        have = len(begun)
        while have < size:
            try:
                got = self.sock.recv_into(view[have:])
            except ConnectionResetError:
                raise Closed from None
            if got == 0:
                raise Closed
            have += got
        return buffer

    def _recv(self) -> bytes:
        try:
            size, ancillary, _flags, _address = self.sock.recvmsg_into([self._room], _RIGHTS_SPACE)
        except ConnectionResetError:
            raise Closed from None
        if not size:
            raise Closed
        for _level, _kind, content in ancillary:
            fds = array.array("i")
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            self._fds.extend(fds)
        return bytes(self._room[:size])


def in_memory(body: bytes) -> int:
    """A sealed file in memory that holds `body`: its descriptor, to be sent beside a frame."""
    fd = os.memfd_create("faasd-body", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        to_memory(fd, body)
        fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def from_memory(fd: int, size: int) -> bytes:
    """The first `size` bytes of a file in memory."""
    parts = []
    at = 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            raise Closed
        parts.append(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def to_memory(fd: int, body: bytes) -> None:
    """Put `body` at the beginning of a file in memory."""
    view = memoryview(body)
    at = 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], at)


class Packing:
    """Makes msgpack. One packer for all: each has a buffer that costs more to make than to fill."""

    LARGEST_KEPT = 1 << 20

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack

    def __call__(self, message: Any) -> bytes:
        packed: bytes = self._pack(message)
        if len(packed) > self.LARGEST_KEPT:
            # Its buffer has grown with the message, and would stay so.
            self._pack = msgpack.Packer().pack
        return packed


_packed = Packing()


def pack(message: list[Any]) -> bytes:
    """One frame: length and content."""
    body = _packed(message)
    return _LENGTH.pack(len(body)) + body
