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

    def read(self) -> list[Any]:
        """The next frame. Raises Closed when the stream ends, even inside a frame."""
        (length,) = _LENGTH.unpack(self._exactly(4))
        return msgpack.unpackb(self._exactly(length), use_list=True)  # type: ignore[no-any-return]

    def write(self, message: list[Any]) -> None:
        payload = pack(message)
        try:
            self.sock.sendall(payload)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def _exactly(self, size: int) -> bytes:
        first: bytes = self._recv(size)
        if len(first) == size:
            return first
        buffer = bytearray(size)
        view = memoryview(buffer)
        view[: len(first)] = first
        have = len(first)
        while have < size:
            try:
                got = self.sock.recv_into(view[have:])
            except ConnectionResetError:
                raise Closed from None
            if got == 0:
                raise Closed
            have += got
        return bytes(buffer)

    def _recv(self, size: int) -> bytes:
        try:
            data: bytes = self.sock.recv(min(size, 262_144))
        except ConnectionResetError:
            raise Closed from None
        if not data:
            raise Closed
        return data


def pack(message: list[Any]) -> bytes:
    """One frame: length and content."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body
