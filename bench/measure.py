"""What the benchmarks share: a platform of their own, medians, and the closing RESULT line."""

from __future__ import annotations

import contextlib
import json
import os
import platform as machine
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "functions" / "examples"


@contextlib.contextmanager
def platform(data: Path | None = None, **env: str) -> Iterator[str]:
    """`faasd up` on a free port: its address. Ended on exit."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "faasd.log"
        folder = data or Path(scratch) / "data"
        command = [sys.executable, "-m", "faasd", "up", "--port", "0", "--data", str(folder)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
            )
        try:
            yield _address(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if '"controller.listening"' in line:
                return str(json.loads(line)["url"])
    sys.exit(f"faasd up did not start:\n{log.read_text()}")


def private_mb(pid: int) -> float:
    """What no other process shares."""
    return _mapped_mb(pid, "Private_Clean:", "Private_Dirty:")


def pss_mb(pid: int) -> float:
    """Its share of everything it has mapped."""
    return _mapped_mb(pid, "Pss:")


def _mapped_mb(pid: int, *fields: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(fields)) / 1024


def instances(name: str) -> list[int]:
    """Processes of the function whose parent is a process of the function too."""
    wanted = f"fn:{name}"[:15]
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_text().strip() == wanted:
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        except OSError:
            continue
    return sorted(pid for pid, parent in parents.items() if parent in parents)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def row(name: str, *cells: object) -> None:
    print(f"{name:<34}" + "".join(f"{cell!s:>16}" for cell in cells))


def result(**figures: Any) -> None:
    """The last line of every benchmark."""
    about = {"python": machine.python_version(), "cores": os.cpu_count()}
    rounded = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in figures.items()
    }
    print("RESULT " + json.dumps({**rounded, **about}))
