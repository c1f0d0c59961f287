"""What many functions, connections and workers cost, and, when asked, how faasd bears overload.

functions   CPU per request with one and with many functions deployed, few and many idle
            connections; memory and wake-ups of functions that nobody calls
idle        controller and worker each for itself, with so many functions and with twice as many:
            memory, wake-ups and CPU of functions that nobody calls
workers     throughput of a function that waits 20 ms, on several workers against one
soak        only with --soak: the peak, 90 %, 70 % for so many seconds, 300 % for a sixth of
            that; in the place of the others

python -m bench.scaling [--functions 1000] [--rounds 3] [--parts functions,idle,workers]
python -m bench.scaling --soak 600
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import wrk
from bench.daemons import leave_on_sigterm, scratch
from bench.measure import result
from bench.scaling import functions, idle, soak, workers

PARTS = ("functions", "idle", "workers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--functions", type=int, default=1000, help="of them one is measured")
    parser.add_argument("--parallel", type=int, default=4, help="deploys at once")
    parser.add_argument("--idle", type=int, default=2000, help="idle connections, against 10")
    parser.add_argument("--workers", type=int, default=4, help="against one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of each figure")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--work-ms", type=float, default=5, help="what the soaked function waits")
    options = parser.parse_args()
    wrk.require()
    leave_on_sigterm()
    with scratch() as folder:
        figures = _soak(options, folder) if options.soak else _parts(options, folder)
    result(bench="scaling", rounds=options.rounds, seconds=options.seconds, **figures)


def _soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = functions.write_function(folder, soak.WORK)
    return soak.measure(folder, source, seconds=options.soak, work_ms=options.work_ms)


def _parts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "functions" in options.parts.split(","):
        place = folder / "functions"
        place.mkdir()
        asked = functions.Asked(
            functions=options.functions,
            connections=(10, options.idle),
            parallel=options.parallel,
            rounds=options.rounds,
            seconds=options.seconds,
        )
        figures["functions"] = functions.measure(place, asked)
    if "idle" in options.parts.split(","):
        place = folder / "idle"
        place.mkdir()
        source = functions.write_function(place, functions.ECHO)
        figures["idle"] = idle.measure(place, source, functions=options.functions)
    if "workers" in options.parts.split(","):
        place = folder / "workers"
        place.mkdir()
        figures["workers"] = workers.measure(
            place,
            functions.write_function(place, workers.NAP),
            workers=options.workers,
            rounds=options.rounds,
            seconds=options.seconds,
        )
    return figures


if __name__ == "__main__":
    main()
