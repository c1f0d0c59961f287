"""What the hop between controller and worker costs: an empty invocation over loopback TCP.

Two processes, so many invocations in flight, and a bare uvloop echo of messages of the same size
beside them. The worker's node is one that answers at once, so that nothing but the hop is measured.
CPU is what both threads spent, by the kernel's account.

    python -m bench.wire [--rounds 5] [--seconds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import uvloop

from bench.measure import median, result, row
from controller.cluster import ClusterServer
from controller.links import WorkerLink
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.errors import FaasdError
from faasd.invocation import (
    Invocation,
    Load,
    Receiver,
    Reply,
    Started,
    StartKind,
    Timings,
    WorkerReport,
)
from worker.node import Node
from worker.uplink import Uplink

SECRET = "a secret of the benchmark"
INVOCATION = Invocation(
    id="0123456789abcdef0123456789abcdef",
    function="default/echo",
    revision="0123456789ab",
    body=b"",
    content_type="application/json",
)
MESSAGE = b"m" * 110
IN_FLIGHT = (1, 64)
# A garbage collection in mid round would be charged to the one that it meets.
_WARM_UP_S = 0.3


class Instant:
    """A node that answers every invocation in the next round of its loop."""

    load = Load()

    def report(self) -> WorkerReport:
        return WorkerReport("n1", 1, 1.0, 1.0, 0.0, 1, [], [], [])

    def keep_only(self, *_known: object) -> None:
        return

    def invoke(self, _invocation: Invocation, receiver: Receiver) -> Started:
        reply = Reply(200, "application/json", {}, StartKind.WARM, Timings(), "n1")
        asyncio.get_running_loop().call_soon(receiver.answered, reply)
        return self

    def cancel(self) -> None:
        raise NotImplementedError


async def work(port: int) -> None:
    """The worker's side, until it is killed."""
    uplink = Uplink(
        cast("Node", Instant()),
        address=f"127.0.0.1:{port}",
        secret=SECRET,
        heartbeat_s=1.0,
    )
    await uplink.start()
    await asyncio.Event().wait()


class Driver:
    """Keeps so many invocations in flight: each reply begins the next."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._going = True
        self._left = 0
        self._idle = asyncio.Event()
        self.done = 0

    def begin(self, count: int) -> None:
        self._left = count
        for _ in range(count):
            self._link.invoke(INVOCATION, self)

    def answered(self, reply: Reply) -> None:
        assert reply.status == 200
        self.done += 1
        if self._going:
            self._link.invoke(INVOCATION, self)
            return
        self._left -= 1
        if not self._left:
            self._idle.set()

    def failed(self, error: FaasdError) -> None:
        raise error

    async def finish(self) -> None:
        self._going = False
        await self._idle.wait()


class Echo(asyncio.Protocol):
    """Sends what it gets back as it came, which is the least that can be done."""

    def __init__(self) -> None:
        self.done = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def begin(self, count: int) -> None:
        assert self.transport is not None
        self.transport.write(MESSAGE * count)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.done += len(data) // len(MESSAGE)
        self.transport.write(data)

    async def finish(self) -> None:
        assert self.transport is not None
        self.transport.abort()


async def echo(port: int) -> None:
    """The echoing side, until it is killed."""
    await asyncio.get_running_loop().create_connection(Echo, "127.0.0.1", port)
    await asyncio.Event().wait()


@contextlib.contextmanager
def far_side(role: str, port: int) -> Iterator[int]:
    """The other process: its id."""
    process = subprocess.Popen([sys.executable, "-m", "bench.wire", role, str(port)])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def cpu_s(pid: int | None = None) -> float:
    """What the first thread of a process has spent on a core so far, this one's by default."""
    spent_ns, *_ = Path(f"/proc/{pid or 'self'}/schedstat").read_text().split()
    return int(spent_ns) / 1e9


async def measured(pid: int, driver: Driver | Echo, count: int, seconds: float) -> dict[str, float]:
    """Microseconds per round trip: on the clock, on the core here, on the core there."""
    driver.begin(count)
    await asyncio.sleep(_WARM_UP_S)
    begun = (driver.done, time.perf_counter(), cpu_s(), cpu_s(pid))
    await asyncio.sleep(seconds)
    ended = (driver.done, time.perf_counter(), cpu_s(), cpu_s(pid))
    await driver.finish()
    done, *spent = (after - before for before, after in zip(begun, ended, strict=True))
    names = ("round_us", "controller_us", "worker_us")
    figures = {name: one / done * 1e6 for name, one in zip(names, spent, strict=True)}
    return {**figures, "cpu_us": figures["controller_us"] + figures["worker_us"]}


async def hop(count: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers()
        server = ClusterServer(
            workers,
            BlobStore(Path(folder)),
            host="127.0.0.1",
            port=0,
            secret=SECRET,
            heartbeat_timeout_s=30,
        )
        await server.start()
        try:
            with far_side("worker", server.port) as pid:
                await workers.any(30)
                [member] = workers.members()
                return await measured(pid, Driver(member.link), count, seconds)
        finally:
            await server.aclose()


async def bare(count: int, seconds: float) -> dict[str, float]:
    joined: asyncio.Future[Echo] = asyncio.get_running_loop().create_future()

    class Joining(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            joined.set_result(self)

    server = await asyncio.get_running_loop().create_server(Joining, "127.0.0.1", 0)
    try:
        with far_side("echo", server.sockets[0].getsockname()[1]) as pid:
            return await measured(pid, await joined, count, seconds)
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=["worker", "echo"], help=argparse.SUPPRESS)
    parser.add_argument("port", nargs="?", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    roles: dict[str, Callable[[int], Any]] = {"worker": work, "echo": echo}
    if options.role:
        uvloop.run(roles[options.role](options.port))
        return
    seen: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for count in IN_FLIGHT:
            for name, way in (("bare uvloop echo", bare), ("invocation", hop)):
                found = uvloop.run(way(count, options.seconds))
                seen.setdefault((name, count), []).append(found)
    row("us per round trip", "in flight", "clock", "CPU controller", "CPU worker", "CPU both")
    figures = {}
    for (name, count), rounds in seen.items():
        middle = {key: median([one[key] for one in rounds]) for key in rounds[0]}
        row(name, count, *(f"{value:.2f}" for value in middle.values()))
        figures[f"{name.split()[0]}_{count}"] = {k: round(v, 3) for k, v in middle.items()}
    result(bench="wire", rounds=options.rounds, **figures)


if __name__ == "__main__":
    main()
