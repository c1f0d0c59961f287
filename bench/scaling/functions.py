"""What functions that nobody calls, and connections that say nothing, cost a warm invocation.

Two platforms run side by side, one with a single function, one with many; the same function is
measured on both in turn, with few and with many idle connections open.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import daemons, processes, wrk
from bench.daemons import Server
from bench.measure import median
from bench.table import aligned, count
from faasd.client import AsyncClient

MEASURED = "measured"
BODY = b'{"text": "hello"}'
JSON = "application/json"
ECHO = "def handle(event, context):\n    return event\n"
IDLE_S = 10.0
WARM_S = 1.0
LOAD_CONNECTIONS = 64
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """How much of everything."""

    functions: int
    connections: tuple[int, int]
    parallel: int
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Idle:
    """A platform that does nothing: memory and wake-ups of its daemon and of all its processes."""

    daemon_mb: float
    all_mb: float
    daemon_wakeups: float
    all_wakeups: float


Cell = tuple[int, int]
"""Functions deployed, and idle connections."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One run of load in a cell. `closed` are idle connections that the platform gave up."""

    rate: float
    cpu_us: float
    daemon_mb: float
    errors: int
    closed: int


def measure(folder: Path, asked: Asked) -> dict[str, Any]:
    """Prints its tables; the figures for the RESULT line."""
    _allow_files(max(asked.connections) + 1024)
    places = [folder / "few", folder / "many"]
    for place in places:
        place.mkdir()
    with (
        daemons.up(places[0], FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S="0") as few,
        daemons.up(places[1], FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S="0") as many,
    ):
        source = write_function(folder, ECHO)
        for server in (few, many):
            daemons.deploy(
                server.url, source, MEASURED, scaling__min_instances=1, limits__max_instances=1
            )
        took_s = asyncio.run(_deploy_many(many.url, source, asked))
        print(
            f"{asked.functions - 1:,} more functions deployed in {took_s:.1f} s, {asked.parallel} "
            f"at a time: {took_s / max(asked.functions - 1, 1) * 1000:.0f} ms each"
        )
        _await_quiet(few, many)
        idle = _idle([few, many])
        figures = _print_idle(asked, idle) | {"deploy_s": took_s}
        return figures | _under_load(asked, few, many)


def write_function(folder: Path, handler: str) -> Path:
    """A function of this handler, to be deployed under other names and settings."""
    source = folder / "source"
    source.mkdir()
    (source / "handler.py").write_text(handler)
    (source / "function.toml").write_text('name = "unnamed"\n[resources]\nmemory_mb = 128\n')
    return source


async def _deploy_many(url: str, source: Path, asked: Asked) -> float:
    """Seconds until all are deployed, each of which starts an instance to try it."""
    room = asyncio.Semaphore(asked.parallel)
    done = 0

    async def one(client: AsyncClient, number: int) -> None:
        nonlocal done
        async with room:
            await client.deploy(source, f"idle-{number}", settings={"scaling.keep_alive": 0.0})
        done += 1
        if done % 100 == 0:
            print(f"deployed {done:,}", file=sys.stderr, flush=True)

    started = time.monotonic()
    async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
        for number in range(1, asked.functions):
            group.create_task(one(client, number))
    return time.monotonic() - started


def _await_quiet(few: Server, many: Server) -> None:
    """Until the functions that nobody calls have no process left."""
    give_up = time.monotonic() + PATIENCE_S
    while len(many.tree.pids()) > len(few.tree.pids()):
        if time.monotonic() > give_up:
            print("some functions that nobody calls still have processes")
            return
        time.sleep(0.5)


def _idle(servers: Sequence[Server]) -> list[Idle]:
    """All of them over the same seconds, so that what disturbs one disturbs the others."""
    daemon = [server.tree.roots[0].pid for server in servers]
    before = [(processes.switches(daemon[n]), one.tree.switches()) for n, one in enumerate(servers)]
    time.sleep(IDLE_S)
    after = [(processes.switches(daemon[n]), one.tree.switches()) for n, one in enumerate(servers)]
    return [
        Idle(
            daemon_mb=processes.pss_mb(pid),
            all_mb=server.tree.pss_mb(),
            daemon_wakeups=(then[0] - now[0]) / IDLE_S,
            all_wakeups=(then[1] - now[1]) / IDLE_S,
        )
        for pid, server, now, then in zip(daemon, servers, before, after, strict=True)
    ]


def _print_idle(asked: Asked, idle: Sequence[Idle]) -> dict[str, Any]:
    header = ["idle", "daemon PSS MB", "all PSS MB", "daemon wake-ups/s", "all wake-ups/s"]
    rows = [
        [
            f"{functions:,} function{'s' * (functions > 1)}",
            *map(count, (one.daemon_mb, one.all_mb, one.daemon_wakeups, one.all_wakeups)),
        ]
        for functions, one in zip((1, asked.functions), idle, strict=True)
    ]
    print(aligned(header, rows))
    few, many = idle
    more = max(asked.functions - 1, 1)
    each_kb = (many.daemon_mb - few.daemon_mb) * 1024 / more
    print(f"  the daemon's memory for each function that nobody calls: {each_kb:.1f} KB\n")
    return {
        "function_kb": each_kb,
        "idle_daemon_mb": [few.daemon_mb, many.daemon_mb],
        "idle_wakeups_per_s": [few.daemon_wakeups, many.daemon_wakeups],
        "idle_all_wakeups_per_s": [few.all_wakeups, many.all_wakeups],
    }


def _under_load(asked: Asked, few: Server, many: Server) -> dict[str, Any]:
    cells = [
        (functions, server, connections)
        for functions, server in ((1, few), (asked.functions, many))
        for connections in asked.connections
    ]
    loaded: dict[Cell, list[Loaded]] = {}
    for number in range(1, asked.rounds + 1):
        for functions, server, connections in cells:
            cell = f"{functions:,} functions, {connections:,} idle connections"
            print(f"round {number}: {cell}", file=sys.stderr, flush=True)
            run = _loaded(server, connections, asked.seconds)
            loaded.setdefault((functions, connections), []).append(run)
    return _print_loaded(asked, loaded)


def _loaded(server: Server, connections: int, seconds: float) -> Loaded:
    with idle_connections(server.url, connections) as opened:
        _drive(server, WARM_S)
        daemon_mb = processes.pss_mb(server.tree.roots[0].pid)
        before_s = server.tree.cpu_s()
        load = _drive(server, seconds)
        return Loaded(
            rate=load.rate,
            cpu_us=(server.tree.cpu_s() - before_s) / max(load.requests, 1) * 1e6,
            daemon_mb=daemon_mb,
            errors=load.errors,
            closed=connections - still_open(opened),
        )


def _drive(server: Server, seconds: float) -> wrk.Load:
    return wrk.run(
        f"{server.url}/invoke/{MEASURED}",
        connections=LOAD_CONNECTIONS,
        seconds=seconds,
        body=BODY,
        content_type=JSON,
    )


def _print_loaded(asked: Asked, loaded: dict[Cell, list[Loaded]]) -> dict[str, Any]:
    header = ["functions", "idle connections", "requests/s", "CPU µs/request", "daemon PSS MB"]
    rows = [
        [
            f"{functions:,}",
            f"{connections:,}",
            count(median([run.rate for run in runs])),
            count(median([run.cpu_us for run in runs])),
            count(median([run.daemon_mb for run in runs])),
            str(sum(run.errors for run in runs)),
            str(sum(run.closed for run in runs)),
        ]
        for (functions, connections), runs in loaded.items()
    ]
    print(aligned([*header, "errors", "idle closed"], rows))
    few, many = asked.connections
    least = loaded[1, few]
    by_functions = cpu_ratio(loaded[asked.functions, few], least)
    by_connections = cpu_ratio(loaded[1, many], least)
    # Of the first round: an allocator keeps for the later ones what connections have given back.
    more_mb = loaded[1, many][0].daemon_mb - least[0].daemon_mb
    each_kb = more_mb * 1024 / max(many - few, 1)
    print(f"  CPU per request, {asked.functions:,} functions / 1: {by_functions:.2f}")
    print(f"  CPU per request, {many:,} idle connections / {few:,}: {by_connections:.2f}")
    print(f"  the daemon's memory for each idle connection: {each_kb:.1f} KB\n")
    return {
        "cpu_us": {
            f"{functions} functions, {connections} idle": median([run.cpu_us for run in runs])
            for (functions, connections), runs in loaded.items()
        },
        "cpu_ratio_functions": by_functions,
        "cpu_ratio_connections": by_connections,
        "connection_kb": each_kb,
        "connections_closed": sum(run.closed for runs in loaded.values() for run in runs),
        "errors": sum(run.errors for runs in loaded.values() for run in runs),
    }


def cpu_ratio(more: Sequence[Loaded], less: Sequence[Loaded]) -> float:
    """The median of the ratios within each round."""
    return median([a.cpu_us / b.cpu_us for a, b in zip(more, less, strict=True)])


@contextlib.contextmanager
def idle_connections(url: str, wanted: int) -> Iterator[list[http.client.HTTPConnection]]:
    """So many connections, each of which has had one answer and then says nothing."""
    opened: list[http.client.HTTPConnection] = []
    try:
        for _ in range(wanted):
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
            opened.append(connection)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        yield opened
    finally:
        for connection in opened:
            connection.close()


def still_open(connections: Sequence[http.client.HTTPConnection]) -> int:
    return sum(_is_open(connection.sock) for connection in connections)


def _is_open(sock: socket.socket | None) -> bool:
    if sock is None:
        return False
    # With a time-out of its own, the socket would wait for that first.
    sock.setblocking(False)
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _allow_files(wanted: int) -> None:
    """Raises the limit of open files, which the daemons inherit, as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < room:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
