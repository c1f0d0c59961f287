"""Messages between the worker and the processes of a sandbox, blocking side.

Control sockets are SOCK_SEQPACKET: one msgpack array per packet, descriptors riding along
(SCM_RIGHTS). Data sockets are streams of frames: a 4-byte big-endian length, then a msgpack array.
"""

from __future__ import annotations

import array
import socket
import struct
from typing import Any

import msgpack

MAX_PACKET = 128 * 1024
MAX_FDS = 8
_LENGTH = struct.Struct(">I")
_READ = 65_536


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
    """A blocking stream of frames on a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._ahead = b""

    def read(self) -> list[Any]:
        """The next frame. Raises Closed when the stream ends, even inside a frame."""
        data: bytes | bytearray = self._ahead
        while len(data) < 4:
            data += self._recv(_READ)
        (length,) = _LENGTH.unpack_from(data)
        end = 4 + length
        if len(data) < end:
            data = self._complete(data, end)
        self._ahead = bytes(data[end:])
        return msgpack.unpackb(memoryview(data)[4:end], use_list=True)  # type: ignore[no-any-return]

    def write(self, message: list[Any]) -> None:
        payload = pack(message)
        try:
            self.sock.sendall(payload)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def _complete(self, data: bytes | bytearray, size: int) -> bytearray:
        """The `size` bytes that `data` begins; reads no further, so that a body is copied once."""
        buffer = bytearray(size)
        buffer[: len(data)] = data
        view = memoryview(buffer)
        have = len(data)
        while have < size:
            try:
                got = self.sock.recv_into(view[have:])
            except ConnectionResetError:
                raise Closed from None
            if got == 0:
                raise Closed
            have += got
        return buffer

    def _recv(self, size: int) -> bytes:
        try:
            data: bytes = self.sock.recv(size)
        except ConnectionResetError:
            raise Closed from None
        if not data:
            raise Closed
        return data


def pack(message: list[Any]) -> bytes:
    """One frame: length and content."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body
