"""The loop that zygote and template share: fork on request, report what ended, leave no orphan.

Owns the control socket and the set of known children. Single-threaded: the only wake-ups are a
packet from the worker and SIGCHLD.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

from . import frames, process

Born = Callable[[list[Any], list[int]], None]


class Parent:
    """A process whose work is to fork children and to watch them."""

    def __init__(
        self,
        control: socket.socket,
        born: Born,
        outlives: Callable[[int], bool] = lambda _status: True,
    ) -> None:
        """`born` runs in each new child with the request and its descriptors; it never returns.
        `outlives` says whether this process is of use after a child that ended with this status.
        """
        self._control = control
        self._born = born
        self._outlives = outlives
        self._known: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> None:
        """Serve until the worker closes the control socket or says stop; then end every child."""
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        helpers = process.children()
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        try:
            while True:
                for fd, _event in poll.poll():
                    if fd == self._wake_read:
                        self._collect(helpers)
                    else:
                        self._answer(*frames.recv_packet(self._control))
        except frames.Closed:
            process.kill_children(keep=set())
            os._exit(0)

    def forget(self) -> None:
        """In a child: let go of the parent's descriptors and signal handling."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._control.close()

    def _answer(self, request: list[Any], fds: list[int]) -> None:
        if request[0] == "stop":
            raise frames.Closed
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            frames.send_packet(self._control, ["failed", request[1], str(error)])
            pid = -1
        if pid == 0:
            process.die_with_parent(parent)
            self.forget()
            self._born(request, fds)
            os._exit(1)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._known.add(pid)
            frames.send_packet(self._control, ["forked", request[1], pid])

    def _collect(self, helpers: set[int]) -> None:
        while True:
            try:
                if not os.read(self._wake_read, 4096):
                    break
            except BlockingIOError:
                break
        ended = [child for child in process.reap() if child[0] in self._known]
        for pid, status in ended:
            self._known.discard(pid)
            frames.send_packet(self._control, ["exited", pid, status])
        if ended:
            process.kill_children(keep=self._known | helpers)
        if not all(self._outlives(status) for _pid, status in ended):
            raise frames.Closed
