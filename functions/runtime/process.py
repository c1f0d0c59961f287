"""What the processes of a sandbox ask of the kernel: who reaps orphans, who dies with whom, limits."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import sys
import termios
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_COUNT = b"\0\0\0\0"
_MADV_COLLAPSE = 25
_HUGE_PAGE = 2 << 20
_USUAL_DESCRIPTORS = 1024
_libc = ctypes.CDLL(None, use_errno=True)


def set_name(name: str) -> None:
    """Show this process under `name` (at most 15 bytes) in ps and top."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents ended, so that none escapes."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Process ids of the direct children, adopted ones included."""
    found: set[int] = set()
    pid = os.getpid()
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found.update(int(child) for child in file.read().split())
        except OSError:
            continue
    return found


def reap() -> list[tuple[int, int]]:
    """Collect ended children: (pid, wait status) of each."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def kill_children(keep: set[int], patience_s: float = 2.0) -> None:
    """End every child not in `keep`, and what it leaves behind, until none is there."""
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        strays = children() - keep
        if not strays:
            return
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def data_bytes() -> int:
    """Private writable memory that the kernel counts against RLIMIT_DATA, in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def limit(memory_mb: int) -> None:
    """Allow `memory_mb` beyond what is mapped now; no core files."""
    ceiling = data_bytes() + memory_mb * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def usual_descriptors() -> None:
    """The soft limit that programs expect; who needs more descriptors may raise it again."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = _USUAL_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_USUAL_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def redirect(stdout: int, stderr: int) -> None:
    """Make the descriptors standard output and error; standard input becomes empty."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in {null, stdout, stderr} - {0, 1, 2}:
        os.close(fd)


def close_all_but(keep: set[int]) -> None:
    low = 3
    for fd in sorted(keep):
        if fd >= low:
            os.closerange(low, fd)
            low = fd + 1
    os.closerange(low, 65_536)


def end_copy_of(pid: int) -> None:
    """End this process when it is not `pid` but a fork of it that a handler let return.

    Two processes that read calls from one socket would each get parts of them.
    """
    if os.getpid() != pid:
        os._exit(0)


def flush_output() -> None:
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except Exception:  # user code: a function may have put anything in their place, or nothing
            continue


class OutputWatch:
    """Tells whether anything lies in the pipes of standard output and error, unread.

    Asked after every call. One look at an epoll object that the worker made, with its ends of the
    pipes in it, takes a sixth of the time that asking each pipe does.
    """

    def __init__(self, fd: int | None) -> None:
        self._poll: Callable[[float], list[tuple[int, int]]] | None = None
        if fd is not None:
            os.set_inheritable(fd, False)
            self._poll = select.epoll.fromfd(fd).poll

    def waits(self) -> bool:
        if self._poll is not None:
            try:
                found = self._poll(0)
            except (OSError, ValueError):  # user code may have closed it
                self._poll = None
            else:
                return bool(found) and any(event & select.EPOLLIN for _, event in found)
        return _waits(1) or _waits(2)


def _waits(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, termios.FIONREAD, _COUNT) != _COUNT
    except OSError:  # user code may have put anything there, or nothing
        return False


def gather_pages() -> None:
    """Put this process's own memory into huge pages, where the kernel can (Linux 6.1).

    A fork copies one entry of a page table per page: with libraries of some 200 MB imported, huge
    pages take more than half off it. A child that writes to one gets a copy of 4 KB, as before.
    """
    with open("/proc/self/maps") as file:
        mappings = [line.split() for line in file]
    for addresses, permissions, _offset, _device, inode, *name in mappings:
        if permissions != "rw-p" or inode != "0" or name[:1] == ["[stack]"]:
            continue
        low, high = (int(address, 16) for address in addresses.split("-"))
        low = -(-low // _HUGE_PAGE) * _HUGE_PAGE
        size = (high - low) // _HUGE_PAGE * _HUGE_PAGE
        if size > 0:
            # Refused by older kernels, and where nothing is mapped yet: nothing is lost then.
            _libc.madvise(ctypes.c_void_p(low), ctypes.c_size_t(size), _MADV_COLLAPSE)


def trim_heap() -> None:
    """Give free heap pages back: what a hook allocated for a moment is this process's own."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
