"""What several controllers on one set of workers do to the slowest calls, against a single one.

Two workers of four slots, joined to as many controllers as asked for; a function that sleeps, on
every slot. The same open-loop arrivals and run times are sent through the first controller, then
spread at random over two, and so on: in alternation, on the same workers and instances, so that
nothing differs but how many decide. The ratio is that of the p99s of one round.

python -m bench.controllers [--controllers 3] [--rounds 5] [--seconds 20] [--load 0.7]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.daemons import (
    FAASD,
    Server,
    await_server,
    deploy,
    ended,
    free_port,
    get,
    leave_on_sigterm,
    scratch,
)
from bench.measure import ROOT, median, result, row
from bench.processes import Tree
from faasd.client import AsyncClient
from faasd.policies.virtual import Workload, exponential, mix

WORKERS, SLOTS = 2, 4
WORKLOADS = {
    "exponential": exponential(0.04),
    "bimodal": mix("bimodal", (0.9, 0.02), (0.1, 0.2)),
}
NAME = "sleeps"
HANDLER = """
import time
def handle(event, context):
    time.sleep(event["ms"] / 1000)
"""
SPEC = f"""
name = "{NAME}"
[limits]
max_instances = {SLOTS}
[scaling]
keep_alive = 600.0
"""


@dataclass(frozen=True, slots=True)
class Arrival:
    """`lot` decides which controller gets it, whatever their number."""

    due_s: float
    run_s: float
    lot: float


def arrivals(workload: Workload, load: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson, until so many seconds are over."""
    rng = random.Random(seed)
    rate = load * WORKERS * SLOTS / workload.mean_s
    found, due_s = [], 0.0
    while (due_s := due_s + rng.expovariate(rate)) < seconds:
        found.append(Arrival(due_s, workload.draw(rng)[1], rng.random()))
    return found


@contextlib.contextmanager
def shared(folder: Path, controllers: int, routing: str) -> Iterator[list[str]]:
    """The addresses of controllers with the same workers. Ended on exit."""
    tree, log = Tree(), folder / "cluster.log"
    env = {
        "FAASD_CLUSTER_SECRET": secrets.token_hex(16),
        "FAASD_ROUTING": routing,
        "FAASD_WORKER_SLOTS": str(SLOTS),
    }
    fronts, joining = [], []
    with ended(tree):
        for number in range(controllers):
            ports = free_port(), free_port()
            command = [*FAASD, "controller", "--port", str(ports[0])]
            command += ["--cluster-port", str(ports[1]), "--data", str(folder / f"c{number}")]
            tree.start(command, log=log, env=env, cwd=ROOT)
            fronts.append(f"http://127.0.0.1:{ports[0]}")
            joining.append(f"127.0.0.1:{ports[1]}")
        env["FAASD_WORKER_CONTROLLERS"] = ",".join(joining)
        for number in range(WORKERS):
            name = f"w{number}"
            command = [*FAASD, "worker", "--id", name, "--data", str(folder / name)]
            tree.start(command, log=log, env=env, cwd=ROOT)
        for front in fronts:
            await_server(Server(front, tree), partial(_lacks, front), log)
        yield fronts


def _lacks(front: str) -> str:
    status, body = get(f"{front}/v1/workers")
    workers = json.loads(body)["workers"] if status == 200 else []
    joined = sum(one["status"] == "up" for one in workers)
    return "" if joined == WORKERS else f"{joined} of {WORKERS} workers had joined"


@contextlib.asynccontextmanager
async def clients(fronts: Sequence[str]) -> AsyncIterator[list[AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(AsyncClient(front)) for front in fronts]


async def fill(fronts: Sequence[str]) -> None:
    """Calls through every controller until all slots of all workers have an instance."""
    async with clients(fronts) as those:
        while True:
            for client in those:
                calls = (client.invoke(NAME, {"ms": 200}) for _ in range(3 * WORKERS * SLOTS))
                await asyncio.gather(*calls)
            workers = await those[0].workers()
            if all(sum(f.idle + f.busy for f in one.functions) == SLOTS for one in workers):
                return
            await asyncio.sleep(1.0)


async def replay(fronts: Sequence[str], trace: Sequence[Arrival]) -> list[float]:
    """Latencies in ms, each call sent when it is due, whatever became of those before."""
    loop = asyncio.get_running_loop()

    async def one(client: AsyncClient, due: float, run_s: float) -> float:
        await client.invoke(NAME, {"ms": run_s * 1000})
        return (loop.time() - due) * 1000

    async with clients(fronts) as those, asyncio.TaskGroup() as group:
        await asyncio.gather(*(client.invoke(NAME, {"ms": 1}) for client in those))
        gc.collect()
        begin = loop.time()
        calls = []
        for arrival in trace:
            due = begin + arrival.due_s
            await asyncio.sleep(max(0.0, due - loop.time()))
            client = those[int(arrival.lot * len(those))]
            calls.append(group.create_task(one(client, due, arrival.run_s)))
    return [call.result() for call in calls]


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))]


def measure(
    fronts: Sequence[str], workload: Workload, options: argparse.Namespace
) -> dict[int, list[list[float]]]:
    """Latencies of each round, by the number of controllers."""
    found: dict[int, list[list[float]]] = {count: [] for count in range(1, len(fronts) + 1)}
    for number in range(options.rounds):
        trace = arrivals(workload, options.load, options.seconds, number)
        # What the machine does besides grows and shrinks: each comes first in its turn.
        counts = sorted(found, key=lambda count: (count + number) % len(found))
        for count in counts:
            found[count].append(asyncio.run(replay(fronts[:count], trace)))
    return found


def show(name: str, found: dict[int, list[list[float]]]) -> dict[str, float]:
    row(name, "p50 ms", "p99 ms", "p99 ratio", "of all calls")
    figures = {}
    alone = [percentile(latencies, 99) for latencies in found[1]]
    all_alone = percentile([one for latencies in found[1] for one in latencies], 99)
    for count, rounds in found.items():
        p99 = [percentile(latencies, 99) for latencies in rounds]
        ratio = median([mine / one for mine, one in zip(p99, alone, strict=True)])
        together = [one for latencies in rounds for one in latencies]
        row(
            f"{count} controller{'s' * (count > 1)}",
            f"{percentile(together, 50):.1f}",
            f"{median(p99):.1f}",
            f"{ratio:.2f}",
            f"{percentile(together, 99) / all_alone:.2f}",
        )
        figures[f"{name}_{count}_p99_ratio"] = ratio
    print()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--controllers", type=int, default=3, help="at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="of each round")
    parser.add_argument("--load", type=float, default=0.7, help="share of the slots")
    parser.add_argument("--routing", default="auto")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="by commas")
    options = parser.parse_args()
    leave_on_sigterm()
    figures: dict[str, float] = {}
    with scratch() as folder, shared(folder, options.controllers, options.routing) as fronts:
        source = folder / NAME
        source.mkdir()
        (source / "handler.py").write_text(HANDLER)
        (source / "function.toml").write_text(SPEC)
        for front in fronts:
            deploy(front, source, NAME)
        asyncio.run(fill(fronts))
        for name in options.workloads.split(","):
            figures |= show(name, measure(fronts, WORKLOADS[name], options))
    result(
        bench="controllers",
        rounds=options.rounds,
        seconds=options.seconds,
        load=options.load,
        **figures,
    )


if __name__ == "__main__":
    main()
