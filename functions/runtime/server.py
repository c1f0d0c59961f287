"""The zygote server: forks templates into containers. The only privileged program on a node.

Runs from the runtime's own image, single-threaded, beside the sandboxes. It imports the operator's
libraries and never a function's code, holds no secret, and takes requests from one worker at a
time, on a socket that only its own user can reach:

    worker -> server   ["preload", [module, ...]]                   first
                       ["join", sandbox id, {"pid", "container", "mounts", "user", "tmp_mb", "folder",
                                             "network": "none" | "internet" | "named"}]
                           (with "exec" and "environment" a program, in the template's place)
                           with control, stdout, stderr descriptors
                       ["fence", sandbox id, {"pid", "container", "network"}]
    server -> worker   ["ready", {"import_ms", "modules", "threads"}] | ["broken", module, traceback]
                       ["forked", sandbox id, pid] | ["fenced", sandbox id, pid]
                       ["failed", sandbox id, reason]
    child  -> worker   ["unjoined", reason] on its control socket, when it could not enter

A worker that goes away leaves the sandboxes as they are; the next one connects and goes on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
from typing import Any

from . import frames, joining, process, seccomp, template, zygote

_CREDENTIALS = struct.Struct("3i")
_CONTROL, _STDOUT, _STDERR = 3, 4, 5


class Server:
    """The listening socket and what has been imported."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A place of its own in a folder of the worker's: what a former life left is no one's.
        if os.path.lexists(path):
            os.unlink(path)
        old_mask = os.umask(0o177)
        self._listener.bind(path)
        os.umask(old_mask)
        self._listener.listen(1)
        self._home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._home_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._ready: list[Any] | None = None
        self._modules: list[str] = []
        self._filter = seccomp.build()

    def serve(self) -> None:
        """Serve one worker after the other; never returns."""
        while True:
            worker, _ = self._listener.accept()
            with worker:
                try:
                    self._serve(worker)
                except (frames.Closed, OSError):
                    continue

    def _serve(self, worker: socket.socket) -> None:
        if not _same_user(worker):
            return
        self._preload(worker)
        while True:
            request, fds = frames.recv_packet(worker)
            try:
                answer = self._answer(request, fds)
            except (joining.Refused, OSError, LookupError, TypeError, ValueError) as error:
                answer = ["failed", _named(request), str(error) or repr(error)]
            finally:
                for fd in fds:
                    os.close(fd)
            frames.send_packet(worker, answer)

    def _preload(self, worker: socket.socket) -> None:
        request, fds = frames.recv_packet(worker)
        if request[0] != "preload" or fds:
            raise frames.Closed
        modules = list(request[1])
        if self._ready is None or not set(modules) <= set(self._modules):
            self._ready, self._modules = zygote.preload(modules), modules
            # The kernel collects children by itself: one that nobody collects would hold its
            # container's pid namespace open, and the engine could not end the container.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        frames.send_packet(worker, self._ready)
        if self._ready[0] == "broken":
            os._exit(1)

    def _answer(self, request: list[Any], fds: list[int]) -> list[Any]:
        kind, sandbox, asked = request
        if (kind, len(fds)) not in (("join", 3), ("fence", 0)):
            raise joining.Refused("not a request of this protocol")
        target = joining.Target(int(asked["pid"]), str(asked["container"]))
        try:
            joining.fence(target, asked["network"], self._home_network)
            if kind == "fence":
                return ["fenced", sandbox, asked["pid"]]
            return ["forked", sandbox, self._join(target, asked, fds)]
        finally:
            target.close()

    def _join(self, target: joining.Target, asked: dict[str, Any], fds: list[int]) -> int:
        mounts = joining.open_mounts(asked["mounts"])
        try:
            with joining.pid_namespace(target, self._home):
                pid = os.fork()
                if pid == 0:
                    self._become(target, mounts, asked, fds)
            return pid
        finally:
            for fd, _place in mounts:
                os.close(fd)

    def _become(
        self,
        target: joining.Target,
        mounts: list[tuple[int, str]],
        asked: dict[str, Any],
        fds: list[int],
    ) -> None:
        """In the child: a template in the sandbox. Never returns."""
        control = fds[0]
        try:
            joining.enter(
                target,
                mounts,
                user=int(asked["user"]),
                tmp_mb=int(asked["tmp_mb"]),
                keep=lambda: _arrange(fds),
            )
            control = _CONTROL
            joining.confine(self._filter)
            if "exec" in asked:
                _execute(asked["exec"], asked["environment"])
            template.main(str(asked["folder"]), _CONTROL, _STDOUT, _STDERR)
        except BaseException as error:  # whatever it is, the worker waits for a word
            _say_unjoined(control, error)
        os._exit(1)


def main(path: str) -> None:
    """Never returns."""
    process.set_name("faasd-zygote")
    os.umask(0o077)
    Server(path).serve()


def _same_user(worker: socket.socket) -> bool:
    """Whether the other end runs as this user: the socket's folder says so too."""
    raw = worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, user, _group = _CREDENTIALS.unpack(raw)
    return bool(user == os.geteuid())


def _execute(command: list[str], environment: dict[str, str]) -> None:
    """Become another program of the sandbox, with the control socket left open. Raises OSError."""
    process.redirect(_STDOUT, _STDERR)
    os.set_inheritable(_CONTROL, True)
    path = os.defpath + ":/usr/local/bin:/opt/venv/bin"
    os.execvpe(command[0], command, {"PATH": path, **environment})


def _named(request: list[Any]) -> str:
    return str(request[1]) if len(request) > 1 else ""


def _arrange(fds: list[int]) -> set[int]:
    """Give the three descriptors their places; which those are."""
    # Out of the way first: one of them may have another's place.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _STDERR + 1) for fd in fds]
    for fd, place in zip(high, (_CONTROL, _STDOUT, _STDERR)):
        os.dup2(fd, place)
    return {_CONTROL, _STDOUT, _STDERR}


def _say_unjoined(control: int, error: BaseException) -> None:
    try:
        told = socket.socket(fileno=os.dup(control))
        frames.send_packet(told, ["unjoined", f"{type(error).__name__}: {error}"])
    except (frames.Closed, OSError):
        return
