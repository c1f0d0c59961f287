"""Start latency of real models: a fresh interpreter, the zygote, the template.

Everything before the inference itself, per round in turn:

    fresh      python starts, imports the handler's module, runs load() (and attach())
    zygote     a new sandbox: fork from the library zygote, import, load(), fork of an instance
    template   one more instance: fork from the template that has load() done

For the last two the time is what the platform reports of the first invocation on the instance
(Server-Timing: sandbox + libs + load). Private memory is that of a further instance, as forked and
after it has served invocations, beside what the handler itself takes at its peak in the fresh
interpreter.

    python -m bench.coldstart [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import EXAMPLES, instances, median, platform, private_mb, result, row
from faasd.client import Client

FUNCTIONS = ("embed-minilm", "classify-image")

# Prints the seconds since it was called, then the MB that handling the example takes at its peak: anonymous
# memory beyond what load() left, pages of mapped files not counted.
FRESH = """
import ctypes, gc, json, os, sys, time
folder, layers, content_type, started = sys.argv[1:5]
sys.path[:0] = [folder, *json.loads(layers)]
import torch; torch.set_num_threads(1)
from types import SimpleNamespace
import handler
context = SimpleNamespace(artifacts={}, env=dict(os.environ), cpus=1.0, device="cpu", state=None)
context.state = handler.load(context)
if hasattr(handler, "attach"):
    context.state = handler.attach(context.state, context)
print(time.monotonic() - float(started))

def memory(*fields):
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return [int(lines[field].split()[0]) for field in fields]

body = sys.stdin.buffer.read()
event = json.loads(body) if content_type == "application/json" else body
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
total, mapped = memory("VmRSS", "RssFile")
for _ in range(4):
    handler.handle(event, context)
peak, mapped_after = memory("VmHWM", "RssFile")
print((peak - total - (mapped_after - mapped)) / 1024)
"""


def fresh(name: str, layers: list[str]) -> tuple[float, float]:
    """Of a fresh interpreter: ms to a loaded function, and MB that its handler takes."""
    body, content_type = example(name)
    done = subprocess.run(
        [
            *(sys.executable, "-c", FRESH, str(EXAMPLES / name), json.dumps(layers), content_type),
            str(time.monotonic()),
        ],
        input=body,
        check=True,
        capture_output=True,
        env={
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
            "PATH": "/usr/bin:/bin",
        },
    )
    seconds, handler_mb = map(float, done.stdout.split()[-2:])
    return seconds * 1000, handler_mb


@contextmanager
def deployed(url: str, name: str, **scaling: float) -> Iterator[Client]:
    """An example with other scaling than it ships with."""
    with Client(url) as client:
        settings = {f"scaling.{key}": value for key, value in scaling.items()}
        client.deploy(EXAMPLES / name, settings=settings)
        yield client


def starts_ms(client: Client, name: str, kind: str, rounds: int) -> list[float]:
    """What the platform says of starts of one kind; each invocation finds the instance gone."""
    body, content_type = example(name)
    found: list[float] = []
    while len(found) < rounds:
        reply = client.invoke(name, body, content_type=content_type)
        if reply.start_kind == kind:
            found.append(sum(reply.timings[phase] for phase in ("sandbox", "libs", "load")))
        time.sleep(0.3)
    return found


def example(name: str) -> tuple[bytes, str]:
    import base64
    import tomllib

    given = tomllib.loads((EXAMPLES / name / "function.toml").read_text())["example"]
    body = given["body"].encode() if "body" in given else base64.b64decode(given["base64"])
    return body, given.get("content_type", "application/json")


def further_instance_mb(client: Client, name: str) -> tuple[float, float]:
    """Private memory of an instance as forked, and the most of them after an invocation."""
    while len(instances(name)) < 2:
        time.sleep(0.1)
    forked = median([private_mb(pid) for pid in instances(name)])
    body, content_type = example(name)
    for _ in range(4):
        client.invoke(name, body, content_type=content_type)
    return forked, max(private_mb(pid) for pid in instances(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        bare: dict[str, list[tuple[float, float]]] = {name: [] for name in FUNCTIONS}
        zygote: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
        template: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
        memory: dict[str, tuple[float, float]] = {}
        with platform(data) as url:
            for name in FUNCTIONS:
                with deployed(url, name, min_instances=2) as client:
                    memory[name] = further_instance_mb(client, name)
        layers = [str(path) for path in (data / "worker" / "layers").iterdir() if path.is_dir()]
        for _ in range(rounds):
            for name in FUNCTIONS:
                bare[name].append(fresh(name, layers))
            with platform(data, FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S="0") as url:
                for name in FUNCTIONS:
                    with deployed(url, name, keep_alive=0.0) as client:
                        client.invoke(name, *example(name)[:1], content_type=example(name)[1])
                        time.sleep(0.3)
                        zygote[name] += starts_ms(client, name, "pooled", 1)
            with platform(data) as url:
                for name in FUNCTIONS:
                    with deployed(url, name, keep_alive=0.0) as client:
                        template[name] += starts_ms(client, name, "fork", 1)
    row("", "fresh ms", "zygote ms", "template ms", "fresh/zygote", "fresh/template")
    for name in FUNCTIONS:
        a, b, c = median([ms for ms, _ in bare[name]]), median(zygote[name]), median(template[name])
        row(name, f"{a:.0f}", f"{b:.1f}", f"{c:.1f}", f"{a / b:.0f}x", f"{a / c:.0f}x")
        handler_mb = median([mb for _, mb in bare[name]])
        key = name.replace("-", "_")
        figures |= {
            f"{key}_fresh_ms": a,
            f"{key}_zygote_ms": b,
            f"{key}_template_ms": c,
            f"{key}_zygote_ratio": a / b,
            f"{key}_template_ratio": a / c,
            f"{key}_private_forked_mb": memory[name][0],
            f"{key}_private_served_mb": memory[name][1],
            f"{key}_handler_mb": handler_mb,
            f"{key}_private_above_handler_mb": memory[name][1] - handler_mb,
        }
        print(
            f"{'':<34}private memory of a further instance: {memory[name][0]:.1f} MB as forked, "
            f"{memory[name][1]:.1f} MB after invocations; the handler alone takes "
            f"{handler_mb:.1f} MB in a fresh interpreter"
        )
    result(bench="coldstart", rounds=rounds, **figures)


if __name__ == "__main__":
    main()
