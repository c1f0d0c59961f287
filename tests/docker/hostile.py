"""A hostile function: tries what its event names, and tells what came of it.

Deployed as the handler of the attacks' functions. An attempt is answered by "done" or by the name
of the error, so that a test can say which refusal it expects.
"""

# ruff: noqa: PTH103, PTH102, PTH110, PTH112, PTH114, PTH115, PTH116, PTH118, PTH123, PTH208

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_CLONE = {"x86_64": 56, "aarch64": 220}[platform.machine()]
_READ_MEMORY = {"x86_64": 310, "aarch64": 270}[platform.machine()]
_MARK = 0x5A
_QUIET_TREES = ("/proc", "/sys")
_BLOCK = 1 << 20


def load(context: Any) -> Any:
    """What a template may try before it has any instance."""
    hook = context.env.get("AT_LOAD")
    return globals()[hook]() if hook else None


def handle(event: Any, context: Any) -> Any:
    del context
    return {"outcome": globals()[event["attack"]](*event.get("with", []))}


def tried(act: Callable[..., Any], *arguments: Any) -> str:
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    except ValueError as error:  # what the interpreter makes of some refusals
        return str(error)
    return "done"


def nothing() -> str:
    return "still here"


# What can be seen.


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def processes() -> dict[str, str]:
    """Every process in sight: its user and name."""
    found = {}
    for pid in _pids():
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        found[str(pid)] = f"{fields['Uid'].split()[0]} {fields['Name'].strip()}"
    return found


def signalled(highest: int) -> list[int]:
    """The processes that may be signalled, of all numbers up to the highest."""
    return [pid for pid in range(1, highest) if tried(os.kill, pid, 0) == "done"]


def descriptors() -> dict[str, str]:
    return {
        name: os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}")
    }


def peers() -> list[tuple[int, int, int]]:
    """Family of each socket that was inherited, and process and user at its other end."""
    found = []
    for sock in _sockets():
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, user, _group = struct.unpack("3i", raw)
        found.append((int(sock.family), pid, user))
    return found


def surroundings() -> dict[str, Any]:
    """Environment and arguments, as the interpreter and the kernel know them."""
    return {
        "environment": dict(os.environ),
        "arguments": [*sys.argv, *sys.orig_argv],
        "cmdline": [Path(f"/proc/{pid}/cmdline").read_text() for pid in _own_pids()],
        "environ": [
            tried(Path(f"/proc/{pid}/environ").read_bytes) for pid in _pids() if pid != os.getpid()
        ],
        "initial": _initial_environment(),
    }


def writable() -> list[str]:
    """Every path outside of /proc and /sys that may be written."""
    found = []
    for folder, folders, files in os.walk("/"):
        if folder.startswith(_QUIET_TREES):
            folders.clear()
            continue
        paths = (os.path.join(folder, name) for name in folders + files)
        found += [path for path in paths if not os.path.islink(path) and os.access(path, os.W_OK)]
    return sorted(found)


def openable(*tops: str) -> list[str]:
    """Every file below these folders that can be opened for writing."""
    found = []
    for top in tops:
        for folder, _folders, files in os.walk(top):
            for name in files:
                path = os.path.join(folder, name)
                if not os.path.islink(path) and _opens(path):
                    found.append(path)
    return found


def in_memory(masked: str) -> int:
    """How often a text lies in this process's memory; looking must not put it there."""
    # A class of one character each: the text itself is nowhere in one piece.
    pattern = re.compile(b"".join(b"[\\x%02x]" % byte for byte in _unmask(masked)))
    found = 0
    for low, high in _own_memory():
        content = memoryview((ctypes.c_char * (high - low)).from_address(low))
        found += sum(1 for _match in pattern.finditer(content))
    return found


def in_files(masked: str, *tops: str) -> list[str]:
    """The files below these folders whose name or content holds a text."""
    wanted = bytes(_unmask(masked))
    found = []
    for top in tops:
        for folder, _folders, files in os.walk(top):
            paths = [os.path.join(folder, name) for name in files]
            found += [path for path in paths if wanted in path.encode() + _content(path)]
    return found


def reads(*paths: str) -> dict[str, str]:
    """Each of these paths, opened for reading or listed."""
    return {path: tried(os.listdir if os.path.isdir(path) else _first, path) for path in paths}


def writes(*paths: str) -> dict[str, str]:
    """Each of these paths, opened for writing or, where there is nothing, created."""
    return {path: tried(_create, path) for path in paths}


def looks_into(pid: int) -> dict[str, str]:
    """Memory, environment and files of another process."""
    shown = {
        name: tried(_first, f"/proc/{pid}/{name}")
        for name in ("mem", "environ", "maps", "auxv", "stack", "syscall")
    }
    shown |= {name: tried(os.listdir, f"/proc/{pid}/{name}") for name in ("fd", "root", "cwd")}
    return shown | {"process_vm_readv": _read_of(pid)}


def looks_into_others() -> dict[str, str]:
    """All other processes of this user: the template, and the other instances."""
    return {
        f"{pid} {name}": how
        for pid in _pids()
        if pid != os.getpid() and _uids(pid) == _uids(os.getpid())
        for name, how in looks_into(pid).items()
    }


def template() -> int:
    return os.getppid()


# What can be called.


def calls(numbers: dict[str, int]) -> dict[str, str]:
    """System calls, all arguments zero."""
    return {name: call(number) for name, number in numbers.items()}


def call(number: int, *arguments: int) -> str:
    words = (ctypes.c_long(word) for word in arguments or (0,) * 6)
    return "done" if _libc.syscall(ctypes.c_long(number), *words) >= 0 else _error()


def clones(*flags: int) -> list[str]:
    """clone() with each of these, as fork() else."""
    return [_clone(flag) for flag in flags]


def remounts() -> dict[str, str]:
    """Every way that mount(2) could undo what holds a sandbox."""
    nodev, nosuid, remount, bind = 0x4, 0x2, 0x20, 0x1000
    ways: dict[str, tuple[bytes, bytes, bytes, int]] = {
        "root writable": (b"", b"/", b"", remount | bind),
        "tmp with devices": (b"", b"/tmp", b"", remount),
        "tmp larger": (b"", b"/tmp", b"", remount | nodev | nosuid),
        "code writable": (b"", b"/faasd/code", b"", remount | bind),
        "proc anew": (b"proc", b"/tmp", b"proc", 0),
        "etc covered": (b"/tmp", b"/etc", b"", bind),
        "cgroups": (b"cgroup", b"/tmp", b"cgroup2", 0),
        "overlay": (b"overlay", b"/etc", b"overlay", 0),
    }
    return {
        name: "done" if _libc.mount(source, target, kind, flags, None) == 0 else _error()
        for name, (source, target, kind, flags) in ways.items()
    }


def devices() -> dict[str, str]:
    """Device files made, in every place that could take them."""
    kernel_memory, disk = os.makedev(1, 1), os.makedev(8, 0)
    return {
        "character": tried(os.mknod, "/tmp/mem", 0o20666, kernel_memory),
        "block": tried(os.mknod, "/tmp/disk", 0o60666, disk),
        "in /dev": tried(os.mknod, "/dev/mem", 0o20666, kernel_memory),
    }


def sockets() -> dict[str, str]:
    """Every family and kind of socket that is not one of a program's usual ones."""
    raw = socket.SOCK_RAW
    wanted = {
        "raw IPv4": (socket.AF_INET, raw, socket.IPPROTO_ICMP),
        "raw IPv6": (socket.AF_INET6, raw, socket.IPPROTO_ICMPV6),
        "packet": (17, raw, 3),
        "vsock": (40, socket.SOCK_STREAM, 0),
        "alg": (38, socket.SOCK_SEQPACKET, 0),
        "xdp": (44, raw, 0),
        "tipc": (30, socket.SOCK_STREAM, 0),
        "rds": (21, socket.SOCK_SEQPACKET, 0),
        "can": (29, raw, 1),
        "bluetooth": (31, raw, 1),
        "kcm": (41, socket.SOCK_DGRAM, 0),
        "smc": (43, socket.SOCK_STREAM, 0),
        "qipcrtr": (42, socket.SOCK_DGRAM, 0),
        "nfc": (39, raw, 0),
        "key": (15, raw, 2),
    }
    return {name: tried(_socket, *kind) for name, kind in wanted.items()}


def ordinary_sockets() -> dict[str, str]:
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    wanted = {
        "unix": (socket.AF_UNIX, stream, 0),
        "IPv4": (socket.AF_INET, stream, 0),
        "IPv4 datagram": (socket.AF_INET, datagram, 0),
        "IPv6": (socket.AF_INET6, stream, 0),
        "netlink": (16, socket.SOCK_RAW, 0),
    }
    return {name: tried(_socket, *kind) for name, kind in wanted.items()}


def connects(*places: tuple[str, int]) -> dict[str, str]:
    """Connections to addresses and ports."""
    return {f"{host}:{port}": tried(_connect, host, port) for host, port in places}


def interfaces() -> list[str]:
    return [name for _number, name in socket.if_nameindex()]


def connects_unix(*names: str) -> dict[str, str]:
    """Connections to unix sockets; one that begins with @ is abstract."""
    return {name: tried(_connect_unix, name) for name in names}


def listens_unix(name: str) -> str:
    """An abstract unix socket that goes on listening."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + name[1:])
    listener.listen()
    _kept.append(listener)
    return "done"


def runs(*command: str) -> int:
    """The exit status of a program."""
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return ran.returncode


def setuid_programs() -> list[str]:
    found = subprocess.run(
        ["/usr/bin/find", "/", "-xdev", "-perm", "/6000", "-type", "f"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split()


def users_of(program: str) -> list[str]:
    """Real and effective users of a program, as it says itself when it is run setuid."""
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        # The program replaced ours before Popen returned.
        users = _uids(running.pid)
        running.kill()
    return users


def gives_capabilities() -> str:
    """A file with all capabilities."""
    Path("/tmp/able").touch()
    everything = struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    return tried(os.setxattr, "/tmp/able", "security.capability", everything)


def becomes_root() -> dict[str, str]:
    return {
        "setuid": tried(os.setuid, 0),
        "setgid": tried(os.setgid, 0),
        "setgroups": tried(os.setgroups, [0]),
        "chroot": tried(os.chroot, "/tmp"),
        "nice": tried(os.setpriority, os.PRIO_PROCESS, 0, -5),
        "real time": tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
        "more data": tried(resource.setrlimit, resource.RLIMIT_DATA, (-1, -1)),
        "more files": tried(
            resource.setrlimit,
            resource.RLIMIT_NOFILE,
            (1 << 22, 1 << 22),
        ),
    }


# What can be used up.


def allocates(megabytes: int) -> str:
    """Private memory, past what is allowed, kept and written."""
    _kept.append(b"\1" * (megabytes << 20))
    return "done"


def allocates_shared(megabytes: int) -> str:
    """Memory that no limit of the process counts."""
    area = mmap.mmap(-1, megabytes << 20)
    for _ in range(megabytes):
        area.write(b"\1" * _BLOCK)
    _kept.append(area)
    return "done"


def allocates_file(megabytes: int) -> str:
    """Memory of a file that has no name."""
    fd = os.memfd_create("memory")
    for _ in range(megabytes):
        os.write(fd, b"\1" * _BLOCK)
    return "done"


def fills(path: str, megabytes: int) -> dict[str, Any]:
    """A file of this size; what stopped it and how much was written."""
    written = 0
    with open(path, "wb", buffering=0) as file:
        try:
            for _ in range(megabytes):
                written += file.write(b"\1" * _BLOCK)
        except OSError as error:
            return {"error": errno.errorcode[error.errno or 0], "mb": written >> 20}
    return {"error": None, "mb": written >> 20}


def removes(path: str) -> str:
    return tried(os.unlink, path)


def makes_empty_files(folder: str, count: int) -> dict[str, Any]:
    os.makedirs(folder, exist_ok=True)
    for number in range(count):
        outcome = tried(os.mknod, f"{folder}/{number}")
        if outcome != "done":
            return {"error": outcome, "files": number}
    return {"error": None, "files": count}


def prints(megabytes: int) -> str:
    line = b"x" * 1023 + b"\n"
    for _ in range(megabytes << 10):
        os.write(1, line)
    return "done"


def opens_files(count: int) -> dict[str, Any]:
    """Descriptors until no more are given; they are closed again at the end of the process."""
    return _gather(count, lambda: os.open("/dev/null", os.O_RDONLY))


def inotifies(count: int) -> dict[str, Any]:
    """Inotify instances, until no more are given."""
    return _gather(count, _inotify)


def watches(count: int) -> dict[str, Any]:
    """Inotify watches, until no more are given."""
    fd = _inotify()
    for number in range(count):
        folder = f"/tmp/w{number}"
        os.mkdir(folder)
        if _libc.inotify_add_watch(fd, folder.encode(), 0x2) < 0:
            return {"error": _error(), "got": number}
    return {"error": None, "got": count}


def forks() -> None:
    """A bomb: each process of it forks for ever, apart from its parent."""
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            continue


def forks_in_background() -> str:
    """A bomb that goes on when the invocation that set it off has ended, and its instance too."""
    if os.fork() == 0:
        forks()
    return "done"


def leaves_daemon() -> int:
    """A process that ended no parent of its takes with it."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.write(writing, str(os.getpid()).encode())
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    return int(os.read(reading, 16))


def ends(status_code: int) -> None:
    """The instance itself, at once."""
    os._exit(status_code)


def sends_signal(pid: int, number: int) -> str:
    return tried(os.kill, pid, number)


def who() -> dict[str, int]:
    return {"pid": os.getpid(), "template": os.getppid()}


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


# What can be said to the worker.


def writes_to_sockets(text: str) -> str:
    """Garbage on every socket that was inherited."""
    for sock in _sockets():
        sock.send(text.encode("latin-1"))
    return "done"


def writes_endlessly() -> str:
    """A frame that claims to be large, and goes on."""
    piece = bytes(_BLOCK)
    for sock in _sockets():
        sock.sendall(struct.pack(">I", (1 << 30) - 1))
        while True:
            sock.sendall(piece)
    return "done"


def sends_descriptors(count: int) -> str:
    """Open files over every socket that was inherited, with a frame that means nothing."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    for sock in _sockets():
        socket.send_fds(sock, [b"\0\0\0\1\x90"], fds)
    return "done"


def sends_lingering(seconds: int) -> str:
    """A connection whose last holder waits so long, in close(), for what nobody takes."""
    [inherited] = [one.dup() for one in _sockets()]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    sock = socket.create_connection(listening.getsockname())
    reader, _ = listening.accept()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(_BLOCK))
    except BlockingIOError:
        pass
    sock.setblocking(True)
    # Beside a frame that has no end: who reads it keeps both ends, and holds them last.
    socket.send_fds(inherited, [b"\0\0\0\1"], [sock.fileno(), reader.fileno()])
    sock.close()
    reader.close()
    os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def says_garbage() -> None:
    """On the template's own socket, which is there while load() runs."""
    for sock in _sockets():
        sock.send(b"\xff garbage")


def says_descriptors() -> None:
    for sock in _sockets():
        socket.send_fds(sock, [b"\xff garbage"], [0, 1, 2])


def claims_strangers() -> None:
    """Tell the worker of instances that are none, and of the end of processes that are others'."""
    for sock in _sockets():
        for number in range(1, 100):
            # ["exited", number, 9] and ["forked", "i-1", number]
            sock.send(b"\x93\xa6exited" + bytes([number, 9]))
            sock.send(b"\x93\xa6forked\xa3i-1" + bytes([number]))


def kills_all() -> None:
    """Every process that may be signalled, this one among them."""
    os.kill(-1, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _sockets() -> Iterator[socket.socket]:
    """Every socket that was inherited."""
    for fd, kind in descriptors().items():
        if kind.startswith("socket:"):
            with socket.socket(fileno=os.dup(int(fd))) as sock:
                yield sock


_kept: list[Any] = []


def _gather(count: int, make: Callable[[], int]) -> dict[str, Any]:
    """Make and keep so many; what stopped it and how many there are."""
    for got in range(count):
        try:
            _kept.append(make())
        except OSError as error:
            return {"error": errno.errorcode[error.errno or 0], "got": got}
    return {"error": None, "got": count}


def _inotify() -> int:
    fd = int(_libc.inotify_init1(os.O_NONBLOCK))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _own_pids() -> list[int]:
    return [pid for pid in _pids() if os.stat(f"/proc/{pid}").st_uid == os.getuid() or pid == 1]


def _uids(pid: int) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return line.split()[1:3]
    return []


def _initial_environment() -> str:
    """What lies where the kernel put the environment of the program that this was forked from."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[48])
    return ctypes.string_at(begin, end - begin).strip(b"\0").decode("latin-1")


def _own_memory() -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        if rights.startswith("rw"):
            low, high = (int(word, 16) for word in span.split("-"))
            yield low, high


def _unmask(masked: str) -> Iterator[int]:
    return (byte ^ _MARK for byte in bytes.fromhex(masked))


def _content(path: str) -> bytes:
    try:
        # A pipe or a device would hold us up.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        try:
            return file.read(_BLOCK) or b""
        except OSError:
            return b""


def _first(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600))


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _socket(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


def _connect(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=5):
        return


def _connect_unix(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + name[1:] if name.startswith("@") else name)


def _read_of(pid: int) -> str:
    """process_vm_readv, of one byte."""
    buffer = ctypes.create_string_buffer(1)
    here = struct.pack("QQ", ctypes.addressof(buffer), 1)
    there = struct.pack("QQ", ctypes.addressof(buffer), 1)
    got = _libc.syscall(_READ_MEMORY, pid, here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), 0)
    return "done" if got == 1 else _error()


def _clone(flags: int) -> str:
    pid = _libc.syscall(_CLONE, ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        return _error()
    os.waitpid(pid, 0)
    return "done"


def _error() -> str:
    return errno.errorcode[ctypes.get_errno()]
