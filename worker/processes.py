"""What the kernel knows of processes: their memory, and which of them belong to a node."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process: its share of everything mapped, and what is its own. Megabytes."""

    pss_mb: float
    private_mb: float


def memory(pid: int) -> Memory:
    """Zero for a process that is gone."""
    pss = private = 0
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (OSError, ValueError):
        return Memory(0.0, 0.0)
    for line in text.splitlines():
        if line.startswith("Pss:"):
            pss = int(line.split()[1])
        elif line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1])
    return Memory(pss / 1024, private / 1024)


def cpu_s(pid: int) -> float:
    """Processor time that a process has used by now; zero for one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        user, system = stat.rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(system)) / _TICKS


def pss_mb(pids: Iterable[int]) -> float:
    return sum(memory(pid).pss_mb for pid in pids)


def available_mb() -> float:
    """Memory that could be had without swapping, of the machine or the enclosing cgroup."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) / 1024, _cgroup_limit_mb())
    return _cgroup_limit_mb()


def total_mb() -> float:
    line = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0]
    return min(int(line.split()[1]) / 1024, _cgroup_limit_mb())


def _cgroup_limit_mb() -> float:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text) / 1024 / 1024
    return float("inf")


def marked(name: str, value: str) -> list[int]:
    """Processes of ours whose environment holds `name=value`: forks and their children keep it."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_marked(name: str, value: str, *, patience_s: float = 5.0) -> int:
    """End every such process and wait until none is left; how many there were."""
    killed: set[int] = set()
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        strays = marked(name, value)
        if not strays:
            break
        killed.update(strays)
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return len(killed)


def children_of(parent: int, pids: Iterable[int]) -> set[int]:
    """Those of these processes whose parent it is."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.add(pid)
    return found


def known_as(pids: Iterable[int], inside: int) -> int:
    """The one of these processes that has the number `inside` in its own pid namespace, or 0."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("NSpid:") and int(line.split()[-1]) == inside:
                    return pid
    return 0
