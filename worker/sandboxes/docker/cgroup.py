"""A container's control group, read and written directly: limits, weight, kills for memory, peak.

Both versions of the hierarchy. Writing the files takes microseconds where the engine's own update
takes twenty milliseconds; the engine is told afterwards.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_PERIOD_US = 100_000
# The kernel takes no less.
_LEAST_QUOTA_US = 1000
# Of the kernel, by version of the hierarchy: what is usual, which stands for one core, and bounds.
_SHARES, _LEAST_SHARES, _MOST_SHARES = 1024, 2, 1 << 18
_WEIGHT, _LEAST_WEIGHT, _MOST_WEIGHT = 100, 1, 10_000
_MB = 1 << 20
_DEEPEST = 5
_CONTROLLERS = ("memory", "cpu", "pids")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandbox may use in all."""

    memory_mb: int
    cpus: float
    pids: int


def shares(cpus: float) -> int:
    """The weight of so many cores as version 1 and the engine have it."""
    return min(_MOST_SHARES, max(_LEAST_SHARES, round(cpus * _SHARES)))


class Cgroup:
    """Of the container whose first process is given. Raises OSError where it cannot be found."""

    def __init__(self, pid: int, root: Path = ROOT, proc: Path = _PROC) -> None:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="ascii").splitlines()
        paths = {}
        for line in lines:
            _number, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path
        self._unified = "memory" not in paths
        try:
            if self._unified:
                folder = _folder(root, paths[""])
                self._folders = dict.fromkeys(_CONTROLLERS, folder)
            else:
                self._folders = {name: _folder(root / name, paths[name]) for name in _CONTROLLERS}
        except KeyError as missing:
            raise OSError(f"the machine has no control group for {missing}") from None

    def limit(self, limits: Limits) -> None:
        """Apply limits; lower memory may be refused while more is in use. Raises OSError."""
        quota = max(_LEAST_QUOTA_US, round(limits.cpus * _PERIOD_US))
        self._write("pids", "pids.max", str(limits.pids))
        self.weigh(limits.cpus)
        if self._unified:
            self._write("cpu", "cpu.max", f"{quota} {_PERIOD_US}")
            self._write("memory", "memory.max", str(limits.memory_mb * _MB))
            with contextlib.suppress(FileNotFoundError):
                self._write("memory", "memory.swap.max", "0")
        else:
            self._write("cpu", "cpu.cfs_quota_us", str(quota))
            self._limit_memory(limits.memory_mb * _MB)

    def weigh(self, cpus: float) -> None:
        """Its part of processors that others want too is in proportion to this. Raises OSError."""
        if self._unified:
            weight = min(_MOST_WEIGHT, max(_LEAST_WEIGHT, round(cpus * _WEIGHT)))
            self._write("cpu", "cpu.weight", str(weight))
        else:
            self._write("cpu", "cpu.shares", str(shares(cpus)))

    def _limit_memory(self, size: int) -> None:
        """Memory, and memory with swap as the same: the second may never be below the first."""
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if size > int(self._read("memory", names[0])):
            names.reverse()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._write("memory", name, str(size))

    def memory_limit_mb(self) -> float:
        name = self._pick("memory.max", "memory.limit_in_bytes")
        text = self._read("memory", name)
        return float("inf") if text == "max" else int(text) / _MB

    def memory_kills(self) -> int:
        """How many processes the kernel has ended for memory; 0 when the group is gone."""
        name = self._pick("memory.events", "memory.oom_control")
        with contextlib.suppress(OSError):
            for line in self._read("memory", name).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def memory_used_mb(self) -> float:
        """Without what the kernel can drop at once (pages of files). Raises OSError."""
        used = int(self._read("memory", self._pick("memory.current", "memory.usage_in_bytes")))
        for line in self._read("memory", "memory.stat").splitlines():
            if line.startswith(self._pick("inactive_file ", "total_inactive_file ")):
                used -= int(line.split()[1])
        return used / _MB

    def memory_peak_mb(self) -> float:
        """The most that was in use; 0 where the kernel does not tell."""
        name = self._pick("memory.peak", "memory.max_usage_in_bytes")
        with contextlib.suppress(OSError):
            return int(self._read("memory", name)) / _MB
        return 0.0

    def pids(self) -> list[int]:
        """Every process in it; none when the group is gone."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in self._read("memory", "cgroup.procs").split()]
        return []

    def _pick(self, unified: str, separate: str) -> str:
        return unified if self._unified else separate

    def _read(self, controller: str, name: str) -> str:
        return (self._folders[controller] / name).read_text(encoding="ascii").strip()

    def _write(self, controller: str, name: str, text: str) -> None:
        (self._folders[controller] / name).write_text(text, encoding="ascii")


def _folder(mount: Path, path: str) -> Path:
    """Where a group lies below the mount of its hierarchy. Raises OSError.

    A worker in a container may have a cgroup namespace of its own, and is then told a path that
    leads up from its own group, which it cannot place. The group's name holds the container's id.
    """
    if not path.startswith("/.."):
        return mount / path.lstrip("/")
    name = path.rpartition("/")[2]
    for depth in range(_DEEPEST):
        for found in mount.glob("*/" * depth + name):
            return found
    raise OSError(f"the machine's control group {name} is not to be seen below {mount}")
