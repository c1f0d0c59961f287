"""The filter of system calls, as the kernel would run it, and as it does."""

from __future__ import annotations

import errno
import platform
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from functions.runtime import seccomp

MACHINES = {"x86_64": 0, "aarch64": 1}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
CLONE = {"x86_64": 56, "aarch64": 220}
SOCKET = {"x86_64": 41, "aarch64": 198}
SETSOCKOPT = {"x86_64": 54, "aarch64": 208}
GETPID = {"x86_64": 39, "aarch64": 172}
CLONE3 = 435
ALLOWED, KILLED = "allowed", "killed"
NAMESPACES = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
SIGCHLD, CLONE_VM, CLONE_THREAD = 17, 0x100, 0x10000


def verdict(
    machine: str, number: int, *arguments: int, architecture: int | None = None
) -> str | int:
    """What becomes of a call: the instructions one by one, as classic BPF has them."""
    wanted = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("=iIQ6Q", number, wanted, 0, *arguments, *[0] * (6 - len(arguments)))
    program = [*struct.iter_unpack("=HBBI", seccomp.build(machine))]
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return _named(operand)
        else:
            holds = {
                0x15: loaded == operand,
                0x35: loaded >= operand,
                0x45: bool(loaded & operand),
            }[code]
            at += if_true if holds else if_false


def _named(result: int) -> str | int:
    if result & 0xFFFF0000 == 0x50000:
        return result & 0xFFFF
    return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}[result]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_denied_call_is_refused(machine: str) -> None:
    for name, numbers in seccomp.DENIED.items():
        assert verdict(machine, numbers[MACHINES[machine]]) == errno.EPERM, name


@pytest.mark.parametrize("machine", MACHINES)
def test_other_calls_are_allowed(machine: str) -> None:
    denied = {numbers[MACHINES[machine]] for numbers in seccomp.DENIED.values()}
    special = {CLONE3, SOCKET[machine]}

    for number in set(range(500)) - denied - special:
        assert verdict(machine, number) == ALLOWED, number


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_new_process_may_not_have_a_new_namespace(machine: str, namespace: int) -> None:
    assert verdict(machine, CLONE[machine], namespace | SIGCHLD) == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_processes_and_threads_may_be_made(machine: str) -> None:
    assert verdict(machine, CLONE[machine], SIGCHLD) == ALLOWED
    assert verdict(machine, CLONE[machine], CLONE_VM | CLONE_THREAD) == ALLOWED


@pytest.mark.parametrize("machine", MACHINES)
def test_the_call_whose_flags_cannot_be_seen_does_not_exist(machine: str) -> None:
    assert verdict(machine, CLONE3) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_only_sockets_of_the_usual_families_may_be_made(machine: str) -> None:
    usual = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}

    for family in range(64):
        expected = ALLOWED if family in usual else errno.EAFNOSUPPORT
        assert verdict(machine, SOCKET[machine], family) == expected, family


@pytest.mark.parametrize("machine", MACHINES)
def test_no_socket_is_made_to_linger_whatever_is_said_of_it(machine: str) -> None:
    """Nor is it refused: programs that ask for it go on without."""
    number = SETSOCKOPT[machine]

    assert verdict(machine, number, 5, socket.SOL_SOCKET, socket.SO_LINGER) == 0
    for level, option in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.SO_LINGER),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_IPV6, socket.SO_LINGER),
        (socket.SO_LINGER, socket.SOL_SOCKET),
    ):
        assert verdict(machine, number, 5, level, option) == ALLOWED, (level, option)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_calls_of_another_architecture_kill(machine: str) -> None:
    assert verdict(machine, GETPID[machine], architecture=I386) == KILLED


def test_the_second_table_of_calls_of_x86_does_not_exist() -> None:
    assert verdict("x86_64", 0x40000000 | GETPID["x86_64"]) == errno.ENOSYS


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(seccomp.Unsupported, match="sparc64"):
        seccomp.build("sparc64")


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="no filter for this machine")
def test_the_kernel_applies_it_to_a_process_and_its_children() -> None:
    unshare = seccomp.DENIED["unshare"][MACHINES[platform.machine()]]
    code = f"""
import ctypes, os, socket, subprocess, sys
sys.path.insert(0, {str(Path(seccomp.__file__).parent)!r})
import seccomp
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
seccomp.load(seccomp.build())
assert libc.syscall({unshare}, 0) == -1 and ctypes.get_errno() == {errno.EPERM}
try:
    socket.socket(38, socket.SOCK_SEQPACKET)
except OSError as error:
    assert error.errno == {errno.EAFNOSUPPORT}, error
else:
    raise AssertionError("a socket of another family")
one, other = socket.socketpair()
one.send(b"x")
assert other.recv(1) == b"x"
one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 9, 0, 0, 0]))
assert one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
child = "import ctypes; assert ctypes.CDLL(None).syscall({unshare}, 0) == -1"
subprocess.run([sys.executable, "-c", child], check=True)
print("refused")
"""
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )

    assert (ran.stdout.strip(), ran.returncode) == ("refused", 0), ran.stderr
