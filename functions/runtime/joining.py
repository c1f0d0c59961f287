"""Entering a running container: namespaces, cgroups, mounts; and giving every privilege away.

The privileged part of the zygote server, and all of it. What names the sandbox is opened first,
through one pidfd and one /proc directory, and checked to be the container that was asked for; then
the pid namespace is entered before the single fork, and the rest by the child. Linux >= 5.12.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from . import firewall, process, seccomp

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
_CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x8000000, 0x20000000, 0x40000000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _AT_FDCWD, _F_EMPTY_PATH = 0x1, 0x1000, -100, 0x4
_RDONLY, _NOSUID, _NODEV = 0x1, 0x2, 0x4
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 0x2, 0x4, 0x20
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 24, 38, 47
_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_EINVAL = 22
_CGROUPS = "/sys/fs/cgroup"
_LIMITING = {"cpu", "devices", "memory", "pids"}
_LEAST_ID = 1000
_BLOCKS_PER_MB = 256

_libc = ctypes.CDLL(None, use_errno=True)
_finders: list[Any] = []
_OF_THE_INTERPRETER = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter)


class Refused(Exception):
    """The request does not name a sandbox of this node, or is none."""


class Target:
    """A running container, held by descriptors that cannot come to mean another one."""

    def __init__(self, pid: int, container: str) -> None:
        """`container` is its full id. Raises Refused or OSError."""
        if len(container) != 64 or not container.isalnum():
            raise Refused("a container's id is 64 hexadecimal digits")
        self.fds: list[int] = []
        try:
            self.pidfd = self._keep(os.pidfd_open(pid))
            self._folder = self._keep(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY))
            lines = _read(self._folder, "cgroup").splitlines()
            status = _read(self._folder, "status")
            # Alive after it was read: the folder and the pidfd mean the same process.
            with contextlib.suppress(PermissionError):  # another user's, and alive
                signal.pidfd_send_signal(self.pidfd, 0)
            if not lines or not all(container in line for line in lines):
                raise Refused(f"process {pid} is not in container {container[:12]}")
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if numbers.split()[-1] != "1":
                raise Refused(f"process {pid} is not the first of its container")
            self.cgroups = [
                self._keep(os.open(path + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                for path in cgroup_folders(lines)
            ]
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def routes(self) -> str:
        """The kernel's table of the networks that it is in."""
        return _read(self._folder, "net/route")

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def cgroup_folders(lines: list[str]) -> list[str]:
    """Where the groups that /proc/PID/cgroup names lie; version 2 has one, version 1 one each.

    Raises Refused where one that limits a sandbox cannot be found: it is not entered without.
    """
    mounted = set(os.listdir(_CGROUPS))
    folders = []
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        name = controllers.removeprefix("name=")
        if not controllers:
            if "cgroup.controllers" in mounted:
                folders.append(_CGROUPS + path)
            elif "unified" in mounted:
                folders.append(_CGROUPS + "/unified" + path)
            continue
        # Controllers may share a folder, be it under another order of their names.
        found = mounted.intersection((name, *name.split(",")))
        if found:
            folders.append(f"{_CGROUPS}/{max(found, key=len)}{path}")
        elif _LIMITING.intersection(name.split(",")):
            raise Refused(f"the control group of {name} is not mounted in {_CGROUPS}")
    if not folders:
        raise Refused(f"there is no control group of the container in {_CGROUPS}")
    return folders


def open_mounts(wanted: list[list[str]]) -> list[tuple[int, str]]:
    """Detached read-only copies of folders and where each belongs. Raises Refused or OSError."""
    opened: list[tuple[int, str]] = []
    try:
        for source, target in wanted:
            if not target.startswith("/faasd/") or ".." in target.split("/"):
                raise Refused(f"{target!r} is no place for a function's files")
            fd = _syscall(
                _OPEN_TREE,
                ctypes.c_int(_AT_FDCWD),
                source.encode(),
                ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
            )
            opened.append((fd, target))
            attributes = struct.pack("QQQQ", _RDONLY | _NOSUID | _NODEV, 0, 0, 0)
            _syscall(
                _MOUNT_SETATTR,
                ctypes.c_int(fd),
                b"",
                ctypes.c_uint(_AT_EMPTY_PATH),
                attributes,
                ctypes.c_size_t(len(attributes)),
            )
    except BaseException:
        for fd, _target in opened:
            os.close(fd)
        raise
    return opened


@contextlib.contextmanager
def pid_namespace(target: Target, home: int) -> Iterator[None]:
    """What is forked inside is born in the target's pid namespace; `home` is our own one's fd."""
    _setns(target.pidfd, _CLONE_NEWPID)
    parent = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == parent:
            _setns(home, _CLONE_NEWPID)


def fence(target: Target, network: str, home: int) -> None:
    """Close to a container what its kind of network does not lead to; again does no harm.

    `home` is the descriptor of our own network namespace. Raises Refused or OSError.
    """
    if network not in firewall.KINDS:
        raise Refused(f"{network!r} is no kind of network")
    if network == "none":
        return
    program = firewall.build(
        firewall.denied(network, machine=_machine_addresses(), routes=target.routes())
    )
    _setns(target.pidfd, _CLONE_NEWNET)
    try:
        # A socket stays in the namespace where it was made.
        kernel = firewall.connect()
    finally:
        _setns(home, _CLONE_NEWNET)
    with kernel:
        firewall.load(kernel, program)


def enter(
    target: Target,
    mounts: list[tuple[int, str]],
    *,
    user: int,
    tmp_mb: int,
    keep: Callable[[], set[int]],
) -> None:
    """In the child: become an unprivileged process of the container. Raises Refused or OSError.

    `user` is uid and gid, `tmp_mb` the size of the container's /tmp; `keep` names the descriptors
    that stay open, once it has moved them where they belong.
    """
    if user < _LEAST_ID:
        raise Refused(f"user {user} is not one for functions")
    for fd in target.cgroups:
        os.write(fd, b"0")
    namespaces = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWCGROUP
    # The container's files are not ours: nothing of them may be imported while this may do anything.
    _finders[:] = sys.meta_path
    sys.meta_path[:] = [finder for finder in _finders if finder in _OF_THE_INTERPRETER]
    _setns(target.pidfd, namespaces)
    os.umask(0o022)
    for fd, place in mounts:
        os.makedirs(place, exist_ok=True)
        _syscall(
            _MOVE_MOUNT,
            ctypes.c_int(fd),
            b"",
            ctypes.c_int(_AT_FDCWD),
            place.encode(),
            ctypes.c_uint(_F_EMPTY_PATH),
        )
    # Empty files take the kernel's memory and no block: no more of them than of blocks.
    size = f"size={tmp_mb}m,nr_inodes={tmp_mb * _BLOCKS_PER_MB}".encode()
    flags = ctypes.c_ulong(_MS_REMOUNT | _MS_NOSUID | _MS_NODEV)
    _check(_libc.mount(None, b"/tmp", None, flags, size), "sizing /tmp")
    os.chdir("/")
    os.umask(0o077)
    _default_signals()
    process.close_all_but({0, 1, 2} | keep())
    os.environ.clear()
    _forget_command()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _drop_privileges(user)


def confine(program: bytes) -> None:
    """Nothing may be regained: no new privileges, the call filter, no look into this process."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    seccomp.load(program)
    # Other processes of the same user could otherwise read its memory and environment.
    _prctl(_PR_SET_DUMPABLE, 0)
    sys.meta_path[:] = _finders


def _drop_privileges(user: int) -> None:
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == _EINVAL:
                break
            raise
    _prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "giving up capabilities")


def _forget_command() -> None:
    """Overwrite how the zygote was started: its arguments and environment are not the function's."""
    sys.orig_argv[:] = []
    with open("/proc/self/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    # arg_start, arg_end, env_start, env_end: of proc(5)'s fields, 48 to 51.
    for begin, end in (fields[45:47], fields[47:49]):
        ctypes.memset(int(begin), 0, int(end) - int(begin))


def _default_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Python relies on it: a write to a closed pipe is an error to be handled.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _machine_addresses() -> str:
    """The kernel's table of the machine's own addresses: those of its first process."""
    machine = os.open("/proc/1", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _read(machine, "net/fib_trie")
    finally:
        os.close(machine)


def _read(folder: int, name: str) -> str:
    # What is long comes in pieces.
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), encoding="utf-8") as file:
        return file.read()


def _setns(fd: int, kinds: int) -> None:
    _check(_libc.setns(fd, kinds), f"joining namespaces {kinds:#x}")


def _prctl(option: int, argument: int) -> None:
    words = (ctypes.c_ulong(word) for word in (argument, 0, 0, 0))
    _check(_libc.prctl(option, *words), f"prctl {option}")


def _syscall(number: int, *arguments: Any) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
