"""The worker's end of a control socket: packets with descriptors, on the event loop."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import msgpack

MAX_PACKET = 128 * 1024


class ControlSocket:
    """Owns one end of a SOCK_SEQPACKET pair. Not thread-safe; owned by the event loop."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        message: Callable[[list[Any]], None],
        closed: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._message = message
        self._closed = closed
        self._open = True
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    async def send(self, message: list[Any], fds: tuple[int, ...] = ()) -> None:
        """Send a packet; the descriptors stay the caller's. Raises ConnectionError when closed."""
        while True:
            try:
                self.send_now(message, fds)
            except BlockingIOError:
                # The peer has many packets to read first; control traffic is a few a second.
                await asyncio.sleep(0.002)
            else:
                return

    def send_now(self, message: list[Any], fds: tuple[int, ...] = ()) -> None:
        """Send a packet, or raise BlockingIOError or ConnectionError."""
        if not self._open:
            raise ConnectionError("the other end is gone")
        ancillary = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
        self._sock.sendmsg([msgpack.packb(message)], ancillary)

    def close(self) -> None:
        """Close without telling the owner. Safe to call twice."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        for _ in range(64):
            try:
                data = self._sock.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            try:
                packet = msgpack.unpackb(data) if data else None
            except ValueError:
                packet = None
            if not isinstance(packet, list) or not packet:
                # Closed, or a function wrote garbage to it: either way there is nothing to trust.
                self.close()
                self._closed()
                return
            self._message(packet)
            if not self._open:
                return


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new control socket; the second is for the child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ours, theirs


def describe_status(status: int) -> str:
    """A wait status as a clause: how the process ended."""
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"
