"""What a function costs that nobody calls: a controller alone, a worker alone, memory and wake-ups.

As many functions are deployed twice: the second half shows what one more takes, without what the
first deploys make a process grow by once. Of both daemons, started again on what they stored, the
memory is told once more: nothing in it is left over from deploys. Sandboxes are fake, so that a
thousand deploys take seconds; what a daemon keeps of a function is the same.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import daemons, processes
from bench.daemons import Server
from bench.measure import private_mb
from bench.table import aligned, count
from faasd.client import AsyncClient

DAEMONS = ("controller", "worker")
SETTLE_S = 3.0
IDLE_S = 20.0
PARALLEL = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """One daemon that nobody asks anything, with so many functions."""

    functions: int
    private_mb: float
    wakeups: float
    cpu_ms: float
    """Per second, as `wakeups` are."""


def measure(folder: Path, source: Path, *, functions: int) -> dict[str, Any]:
    """Prints its tables; the figures for the RESULT line."""
    numbers = (0, functions, 2 * functions)
    grown: dict[str, list[Seen]] = {name: [] for name in DAEMONS}
    with _cluster(folder) as server:
        for number in numbers:
            asyncio.run(_deploy(server.url, source, range(max(0, number - functions), number)))
            for name, seen in zip(DAEMONS, _look(server, number), strict=True):
                grown[name].append(seen)
    with _cluster(folder) as server:
        fresh = _look(server, numbers[-1])
    return _print(grown, dict(zip(DAEMONS, fresh, strict=True)))


def _cluster(folder: Path) -> AbstractContextManager[Server]:
    return daemons.cluster(
        folder, FAASD_WORKER_RUNTIME="fake", FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S="0"
    )


async def _deploy(url: str, source: Path, numbers: range) -> None:
    room = asyncio.Semaphore(PARALLEL)

    async def one(client: AsyncClient, number: int) -> None:
        async with room:
            await client.deploy(source, f"idle-{number}", settings={"scaling.keep_alive": 0.0})

    async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(client, number))


def _look(server: Server, functions: int) -> list[Seen]:
    """Both daemons over the same seconds, so that what disturbs one disturbs the other."""
    print(f"{functions:,} functions, idle for {IDLE_S:.0f} s", file=sys.stderr, flush=True)
    time.sleep(SETTLE_S)
    pids = [root.pid for root in server.tree.roots]
    before = [(processes.switches(pid), _cpu_s(pid)) for pid in pids]
    time.sleep(IDLE_S)
    return [
        Seen(
            functions=functions,
            private_mb=private_mb(pid),
            wakeups=(processes.switches(pid) - switches) / IDLE_S,
            cpu_ms=(_cpu_s(pid) - cpu_s) / IDLE_S * 1000,
        )
        for pid, (switches, cpu_s) in zip(pids, before, strict=True)
    ]


def _cpu_s(pid: int) -> float:
    return processes.cpu_s(processes.snapshot(), [pid])


def each_kb(less: Seen, more: Seen) -> float:
    """What one function more takes."""
    return (more.private_mb - less.private_mb) * 1024 / max(more.functions - less.functions, 1)


def _print(grown: dict[str, list[Seen]], fresh: dict[str, Seen]) -> dict[str, Any]:
    header = ["daemon", "functions", "private MB", "KB a function more", "wake-ups/s", "CPU ms/s"]
    rows, figures = [], {}
    for name in DAEMONS:
        none, half, full = grown[name]
        again = fresh[name]
        rows += [
            _row(name, none, ""),
            _row(name, half, count(each_kb(none, half))),
            _row(name, full, count(each_kb(half, full))),
            _row(f"{name}, started again", again, count(each_kb(none, again))),
        ]
        figures[name] = {
            "function_kb": each_kb(half, full),
            "function_kb_started_again": each_kb(none, again),
            "wakeups_per_s": [none.wakeups, full.wakeups],
            "cpu_ms_per_s": [none.cpu_ms, full.cpu_ms],
        }
    print(aligned(header, rows))
    return figures


def _row(name: str, seen: Seen, each: str) -> Sequence[str]:
    numbers = (seen.private_mb, seen.wakeups, seen.cpu_ms)
    memory, wakeups, cpu_ms = map(count, numbers)
    return [name, f"{seen.functions:,}", memory, each, wakeups, cpu_ms]
