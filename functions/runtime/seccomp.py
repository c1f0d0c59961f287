"""The system calls that no function may make, as a seccomp filter in classic BPF.

The zygote's container runs under the engine's default policy, opened by the capabilities that joining
a sandbox needs (mount, setns and the like). Its children inherit that policy, and this filter takes
the openings away again: both together are the engine's default policy for a container without
capabilities. It needs no library, so that it can be loaded in any image.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

# Instructions: load a word of the call's data, jump on a condition, return a verdict.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net.
_NEW_NAMESPACES = 0x7E020000
_CLONE3 = 435
_X32 = 0x40000000

# Name: (x86_64, aarch64).
DENIED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
# Unix, IPv4, IPv6, and netlink, which the C library asks for the machine's interfaces. Others reach
# past the network namespace (between a virtual machine and its host) or load modules of the kernel.
FAMILIES = (1, 2, 10, 16)
# Index into DENIED, AUDIT_ARCH, numbers of clone, socket and setsockopt.
_MACHINES = {"x86_64": (0, 0xC000003E, 56, 41, 54), "aarch64": (1, 0xC00000B7, 220, 198, 208)}
_SOL_SOCKET, _SO_LINGER = 1, 13


class Unsupported(Exception):
    """This machine's system call numbers are not known here."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def build(machine: str | None = None) -> bytes:
    """The filter's instructions. Raises Unsupported."""
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise Unsupported(f"no system call filter for {machine}")
    column, architecture, clone, socket, setsockopt = _MACHINES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_instruction(_AT_LEAST, _X32, 0, 1), _refuse(errno.ENOSYS)]
    # Its flags lie in memory, where a filter cannot look; libraries fall back to clone.
    program += [_instruction(_EQUAL, _CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    program += [
        _instruction(_EQUAL, clone, 0, 4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _refuse(errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
    program += [_instruction(_EQUAL, socket, 0, len(FAMILIES) + 3)]
    program += [_instruction(_LOAD, _FIRST_ARGUMENT)]
    for number, family in enumerate(FAMILIES):
        program += [_instruction(_EQUAL, family, len(FAMILIES) - number, 0)]
    program += [_refuse(errno.EAFNOSUPPORT), _instruction(_RETURN, _ALLOW)]
    # Passed to the worker, a socket that lingers would hold that up when it closes it. To say that
    # it does, and have it not, breaks no program.
    program += [
        _instruction(_EQUAL, setsockopt, 0, 6),
        _instruction(_LOAD, _SECOND_ARGUMENT),
        _instruction(_EQUAL, _SOL_SOCKET, 0, 3),
        _instruction(_LOAD, _THIRD_ARGUMENT),
        _instruction(_EQUAL, _SO_LINGER, 0, 1),
        _refuse(0),
        _instruction(_RETURN, _ALLOW),
    ]
    for numbers in DENIED.values():
        program += [_instruction(_EQUAL, numbers[column], 0, 1), _refuse(errno.EPERM)]
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def load(program: bytes) -> None:
    """Apply a filter to this process and all it will start. Needs no_new_privs. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.byref(_Program(len(program) // 8, program))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, argument, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "loading the system call filter failed")


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, operand)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)
