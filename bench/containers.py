"""The first reply of a torch model in a container: `docker run`, a bare sandbox, a template.

Per round in turn, from the call to the end of the first inference:

    run        `docker run` of the runtime's image: the container starts, Python imports torch and the
               handler, runs load(), handles the example once, ends
    sandbox    an invocation that finds a bare sandbox and the zygote: claim, limits, fork into the
               container, import, load(), fork of an instance, inference
    template   an invocation that finds the template: fork of an instance, inference

Then, each once: memory of an instance, functions on one node within a budget, and how many bare
sandboxes can be claimed per second while the pool is refilled.

    python -m bench.containers [--rounds 5] [--functions 50] [--claim-seconds 30]

Needs a Docker engine and the images that `make images` builds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import instances, median, platform, private_mb, pss_mb, result, row
from faasd.client import Client
from faasd.policies.bare import BarePool
from worker.sandboxes.docker import containers
from worker.sandboxes.docker.bare import BareSandboxes
from worker.sandboxes.docker.cgroup import Cgroup, Limits
from worker.sandboxes.docker.engine import Container, Engine

IMAGE = "faasd-runtime-python-torch:latest"
BUDGET_MB = 4096
WIDTHS = (512, 512, 10)

# A perceptron whose weights come from a file, mapped: what the platform starts is torch, not a
# download.
HANDLER = """
import torch


def load(context):
    layers = []
    weights = torch.load(path(context), mmap=True, weights_only=True)
    for number in range(len(weights) // 2):
        layer = torch.nn.Linear(1, 1, device="meta")
        layer.weight = torch.nn.Parameter(weights[f"{number}.weight"], False)
        layer.bias = torch.nn.Parameter(weights[f"{number}.bias"], False)
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).eval()


def path(context):
    return context.artifacts["weights"]


def handle(event, context):
    with torch.inference_mode():
        return {"best": int(context.state(torch.tensor(event["x"])).argmax()), "name": NAME}


NAME = "%s"
"""
RUN = """
import json, sys
sys.path.insert(0, "/function")
from types import SimpleNamespace
import handler
context = SimpleNamespace(artifacts={"weights": "/function/weights.pt"}, state=None)
context.state = handler.load(context)
print(json.dumps(handler.handle(json.load(sys.stdin), context)))
"""
EVENT = json.dumps({"x": [0.1] * WIDTHS[0]}).encode()


def write_function(folder: Path, name: str, **scaling: float) -> Path:
    """A function's folder with its weights, different for each name."""
    import torch

    place = folder / name
    place.mkdir(parents=True)
    torch.manual_seed(sum(name.encode()))
    weights = {}
    for number, (before, after) in enumerate(itertools.pairwise(WIDTHS)):
        weights[f"{number}.weight"] = torch.randn(after, before) / before**0.5
        weights[f"{number}.bias"] = torch.randn(after)
    torch.save(weights, place / "weights.pt")
    (place / "handler.py").write_text(HANDLER % name)
    lines = [f"{key} = {value}" for key, value in scaling.items()]
    (place / "function.toml").write_text(
        f'name = "{name}"\nruntime = "python-torch"\nload = "handler:load"\n'
        '[artifacts]\nweights = "weights.pt"\n[resources]\nmemory_mb = 256\n'
        "[scaling]\n" + "\n".join(lines) + "\n"
    )
    return place


def run_ms(folder: Path) -> float:
    """A fresh container with everything to do."""
    command = [
        *("docker", "run", "--rm", "-i", "--network", "none", "-v", f"{folder}:/function:ro"),
        *("--entrypoint", "python3", IMAGE, "-c", RUN),
    ]
    started = time.monotonic()
    done = subprocess.run(command, input=EVENT, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"docker run failed:\n{done.stderr.decode()}")
    return (time.monotonic() - started) * 1000


def invoke_ms(client: Client, name: str, kind: str) -> tuple[float, dict[str, float]]:
    """One invocation that found what `kind` says: how long it took, and its phases."""
    for _ in range(10):
        started = time.monotonic()
        reply = client.invoke(name, EVENT, content_type="application/json")
        took = (time.monotonic() - started) * 1000
        if reply.start_kind == kind:
            return took, dict(reply.timings)
        time.sleep(1.0)
    sys.exit(f"no invocation of {name} found kind {kind}")


def starts(folder: Path, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"run": [], "pooled": [], "fork": []}
    phases: dict[str, dict[str, float]] = {}
    one = write_function(folder, "perceptron", keep_alive=0.0)
    with tempfile.TemporaryDirectory() as data:
        env = {"FAASD_WORKER_RUNTIME": "docker", "FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S": "1"}
        with platform(Path(data) / "data", **env) as url, Client(url) as client:
            client.deploy(one)
            for _ in range(rounds):
                found["run"].append(run_ms(one))
                # The template is given up a second after its last use; a bare sandbox takes over.
                time.sleep(3.0)
                took, phases["pooled"] = invoke_ms(client, "perceptron", "pooled")
                found["pooled"].append(took)
                took, phases["fork"] = invoke_ms(client, "perceptron", "fork")
                found["fork"].append(took)
            client.deploy(one, settings={"scaling.min_instances": 1})
            client.invoke("perceptron", EVENT, content_type="application/json")
            memory = [(pss_mb(pid), private_mb(pid)) for pid in instances("perceptron")]
    row("first reply, ms", "docker run", "bare sandbox", "template")
    run, pooled, fork = (median(found[kind]) for kind in ("run", "pooled", "fork"))
    row(
        "median",
        f"{run:.0f}",
        f"{pooled:.0f} ({run / pooled:.0f}x)",
        f"{fork:.0f} ({run / fork:.0f}x)",
    )
    for kind, measured in phases.items():
        print(
            f"  phases of the last, {kind}: "
            + ", ".join(f"{k} {v:.1f}" for k, v in measured.items())
        )
    for pss, private in memory:
        print(f"  an instance after an invocation: {pss:.1f} MB (PSS), {private:.1f} MB private")
    return found


def crowd(folder: Path, count: int) -> dict[str, Any]:
    """Many functions on one node: all must be served, whatever has to make room for it."""
    names = [f"crowd-{number}" for number in range(count)]
    places = [write_function(folder, name, keep_alive=3600) for name in names]
    with tempfile.TemporaryDirectory() as data:
        env = {"FAASD_WORKER_RUNTIME": "docker", "FAASD_WORKER_MEMORY_BUDGET_MB": str(BUDGET_MB)}
        with platform(Path(data) / "data", **env) as url, Client(url) as client:
            for place in places:
                client.deploy(place)
            served = 0
            for name in names:
                reply = client.invoke(name, EVENT, content_type="application/json")
                served += json.loads(reply.body)["name"] == name
            time.sleep(5.0)
            [worker] = client.workers()
    held = [one for one in worker.functions if one.memory_mb > 0]
    each = median([one.memory_mb for one in held]) if held else 0.0
    print(
        f"{count} functions, budget {BUDGET_MB} MB: {served} served, {len(held)} still held, "
        f"{each:.1f} MB each (median, PSS), {worker.memory_used_mb:.0f} MB in all"
    )
    return {"functions": count, "served": served, "held": len(held), "function_mb": each}


def claims(seconds: float) -> dict[str, float]:
    """Bare sandboxes claimed one after the other, limited and given up, as fast as they come."""
    return asyncio.run(_claims(seconds))


async def _claims(seconds: float) -> dict[str, float]:
    engine = Engine(timeout_s=60.0)
    await engine.open()
    labels = {"faasd.home": f"bench-{os.getpid()}"}
    names = itertools.count()
    removing: set[asyncio.Task[None]] = set()

    def discard(container: Container) -> None:
        removing.add(asyncio.ensure_future(engine.remove(container.id)))

    pool = BareSandboxes(
        engine,
        lambda: (f"faasd-bench-{os.getpid()}-{next(names)}", containers.bare(IMAGE, labels)),
        BarePool(least=1, most=16),
        gate=asyncio.Semaphore(4),
        discard=discard,
    )
    waits = []
    try:
        pool.tend()
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            asked = time.monotonic()
            container = await pool.claim()
            Cgroup(container.pid).limit(Limits(memory_mb=256, cpus=1.0, pids=256))
            waits.append((time.monotonic() - asked) * 1000)
            discard(container)
        took = time.monotonic() - begin
    finally:
        await pool.aclose()
        await asyncio.gather(*removing, return_exceptions=True)
        for left in await engine.containers(labels):
            await engine.remove(left.id)
        await engine.aclose()
    rate = len(waits) / took
    print(
        f"claims for {took:.0f} s: {rate:.1f} a second, one waits {median(waits):.0f} ms (median); "
        f"the engine makes and removes containers all the while"
    )
    return {"claims_per_s": rate, "claim_wait_ms": median(waits)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--functions", type=int, default=50)
    parser.add_argument("--claim-seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = starts(folder, options.rounds)
        figures = crowd(folder, options.functions) if options.functions else {}
    if options.claim_seconds:
        figures |= claims(options.claim_seconds)
    result(
        bench="containers",
        rounds=options.rounds,
        run_ms=median(found["run"]),
        sandbox_ms=median(found["pooled"]),
        template_ms=median(found["fork"]),
        sandbox_ratio=median(found["run"]) / median(found["pooled"]),
        template_ratio=median(found["run"]) / median(found["fork"]),
        **figures,
    )


if __name__ == "__main__":
    main()
