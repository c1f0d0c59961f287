"""Fan-in: what one controller gets out of several workers, by a function that only waits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench import daemons, wrk
from bench.daemons import Server
from bench.measure import median
from bench.table import aligned, count

SLOTS = 4
NAP_S = 0.02
CONNECTIONS = 64
WARM_S = 3.0
NAP = f"import time\n\ndef handle(event, context):\n    time.sleep({NAP_S})\n    return event\n"


def measure(
    folder: Path, source: Path, *, workers: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """One worker against several, in turn; prints its table, and gives the RESULT line's figures."""
    loads: dict[int, list[wrk.Load]] = {1: [], workers: []}
    cpu_us: dict[int, list[float]] = {1: [], workers: []}
    places = {number: folder / f"workers-{number}" for number in loads}
    for place in places.values():
        place.mkdir()
    slots = {"FAASD_WORKER_SLOTS": str(SLOTS)}
    with (
        daemons.cluster(places[1], workers=1, **slots) as one,
        daemons.cluster(places[workers], workers=workers, **slots) as several,
    ):
        for server in (one, several):
            daemons.deploy(server.url, source, "nap", limits__max_instances=SLOTS)
        for number in range(rounds):
            for size, server in ((1, one), (workers, several)):
                print(f"round {number + 1}: {size} workers", file=sys.stderr, flush=True)
                _drive(server, WARM_S)
                before_s = server.tree.cpu_s()
                load = _drive(server, seconds)
                cpu_us[size].append((server.tree.cpu_s() - before_s) / max(load.requests, 1) * 1e6)
                loads[size].append(load)
    return _print(workers, loads, cpu_us)


def _drive(server: Server, seconds: float) -> wrk.Load:
    return wrk.run(
        f"{server.url}/invoke/nap",
        connections=CONNECTIONS,
        seconds=seconds,
        body=b"{}",
        content_type="application/json",
    )


def _print(
    workers: int, loads: dict[int, list[wrk.Load]], cpu_us: dict[int, list[float]]
) -> dict[str, Any]:
    header = [
        "workers x slots",
        "requests/s",
        "of the ideal",
        "p50 ms",
        "p99 ms",
        "CPU µs/request",
        "errors",
    ]
    rates = {size: median([load.rate for load in found]) for size, found in loads.items()}
    rows = [
        [
            f"{size} x {SLOTS}",
            count(rates[size]),
            f"{share(rates[size], size):.0%}",
            count(median([load.p50_ms for load in found])),
            count(median([load.p99_ms for load in found])),
            count(median(cpu_us[size])),
            str(sum(load.errors for load in found)),
        ]
        for size, found in loads.items()
    ]
    print(aligned(header, rows))
    gain = median(
        [more.rate / one.rate for more, one in zip(loads[workers], loads[1], strict=True)]
    )
    print(f"  {workers} workers / 1: {gain:.2f} times the requests/s\n")
    return {
        "workers": workers,
        "rates": {str(size): rate for size, rate in rates.items()},
        "gain": gain,
        "share_of_ideal": share(rates[workers], workers),
        "errors": sum(load.errors for found in loads.values() for load in found),
    }


def share(rate: float, workers: int) -> float:
    """Of what so many workers' slots could do if nothing but the wait took time."""
    return rate * NAP_S / (workers * SLOTS)
