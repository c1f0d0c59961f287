"""The processes of a server under test: started here, measured by /proc, ended with all they left.

A server's tree is every process that descends from one started here, shares a session with it, or
carries the mark that its environment was given, and the descendants of those: daemons that detach
themselves are found by one of the three.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
MARK = "BENCH_TREE"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat. `cpu_ticks` has the collected children's in it."""

    pid: int
    parent: int
    session: int
    ended: bool
    cpu_ticks: int
    started_ticks: int


def parse_stat(text: str) -> Process:
    """The second field, the name, may hold anything, spaces and parentheses too."""
    pid, _, rest = text.partition(" ")
    fields = rest.rpartition(")")[2].split()
    return Process(
        pid=int(pid),
        parent=int(fields[1]),
        session=int(fields[3]),
        ended=fields[0] in "ZX",
        cpu_ticks=sum(map(int, fields[11:15])),
        started_ticks=int(fields[19]),
    )


def closure(processes: Mapping[int, Process], seeds: Iterable[int]) -> list[int]:
    """The seeds that exist and all their descendants, ascending."""
    children: dict[int, list[int]] = {}
    for one in processes.values():
        children.setdefault(one.parent, []).append(one.pid)
    found: set[int] = set()
    ahead = [pid for pid in seeds if pid in processes]
    while ahead:
        pid = ahead.pop()
        if pid not in found:
            found.add(pid)
            ahead += children.get(pid, [])
    return sorted(found)


def cpu_s(processes: Mapping[int, Process], pids: Iterable[int]) -> float:
    """CPU seconds of these and of the children that they have collected.

    The difference of two calls is what the tree used meanwhile, also where members ended: a
    collected process's time is its parent's.
    """
    return sum(processes[pid].cpu_ticks for pid in pids if pid in processes) / TICKS_PER_S


def snapshot() -> dict[int, Process]:
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                one = parse_stat((entry / "stat").read_text())
                found[one.pid] = one
    return found


def switches(pid: int) -> int:
    """How often its threads have given the processor up of themselves: once per wake-up."""
    total = 0
    for status in PROC.glob(f"{pid}/task/*/status"):
        with contextlib.suppress(OSError):
            total += _number(status.read_text(), "voluntary_ctxt_switches:")
    return total


def waited_s(pid: int) -> float:
    """How long its threads were ready to run, and had to wait for a processor."""
    total_ns = 0
    for stat in PROC.glob(f"{pid}/task/*/schedstat"):
        with contextlib.suppress(OSError):
            total_ns += int(stat.read_text().split()[1])
    return total_ns / 1e9


def pss_mb(pid: int) -> float:
    """Its share of all that it has mapped; 0 once it is gone."""
    return _share_mb(pid, "Pss:")


def own_mb(pid: int) -> float:
    """Its share of what no file holds. That of files changes with whoever else maps them, as every
    other Python of the machine does.
    """
    return _share_mb(pid, "Pss_Anon:")


def _share_mb(pid: int, what: str) -> float:
    try:
        return _number((PROC / str(pid) / "smaps_rollup").read_text(), what) / 1024
    except OSError:
        return 0.0


def _number(text: str, field: str) -> int:
    for line in text.splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


class Tree:
    """One server: what was started for it, and all processes that came of that.

    `outside` names further processes that count as its own, such as those of containers; they are
    not ended with it. Not thread-safe.
    """

    def __init__(self, outside: Callable[[], list[int]] = list) -> None:
        self.roots: list[subprocess.Popen[bytes]] = []
        self._outside = outside
        self._mark = f"{os.getpid()}-{uuid.uuid4().hex}"

    def start(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """A process of the server's, in a session of its own, its output in `log`."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **env, MARK: self._mark},
                cwd=cwd,
                start_new_session=True,
            )
        self.roots.append(process)
        return process

    def pids(self) -> list[int]:
        return self._all(snapshot())

    def cpu_s(self) -> float:
        processes = snapshot()
        return cpu_s(processes, self._all(processes))

    def own_mb(self) -> float:
        return sum(map(own_mb, self.pids()))

    def pss_mb(self) -> float:
        return sum(map(pss_mb, self.pids()))

    def switches(self) -> int:
        return sum(map(switches, self.pids()))

    def end(self) -> None:
        """Politely, the last started first; what is left then, and only that, is killed."""
        processes = snapshot()
        known = [processes[pid] for pid in self._members(processes)]
        for root in reversed(self.roots):
            root.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                root.wait(GRACE_S)
        give_up = time.monotonic() + GRACE_S
        while left := self._left(known):
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            if time.monotonic() > give_up:
                raise RuntimeError(f"could not be ended: {[one.pid for one in left]}")
            time.sleep(0.05)
        for root in self.roots:
            root.wait()

    def _left(self, known: list[Process]) -> list[Process]:
        """A number that has come to mean another process since is left alone."""
        processes = snapshot()
        same = {
            one.pid
            for one in known
            if (now := processes.get(one.pid)) and now.started_ticks == one.started_ticks
        }
        left = same.union(self._members(processes))
        return [processes[pid] for pid in sorted(left) if not processes[pid].ended]

    def _all(self, processes: Mapping[int, Process]) -> list[int]:
        return closure(processes, [*self._members(processes), *self._outside()])

    def _members(self, processes: Mapping[int, Process]) -> list[int]:
        roots = {root.pid for root in self.roots if root.returncode is None}
        sessions = {root.pid for root in self.roots}
        entry = f"{MARK}={self._mark}".encode()
        seeds = [
            one.pid
            for one in processes.values()
            if one.pid in roots or one.session in sessions or _has(one.pid, entry)
        ]
        return closure(processes, seeds)


def _has(pid: int, entry: bytes) -> bool:
    try:
        return entry in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
