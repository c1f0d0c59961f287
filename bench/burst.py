"""How many instances a burst on a cold function starts: 64 requests at once, max_instances 2.

python -m bench.burst [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from bench.measure import median, platform, result, row
from faasd.client import AsyncClient

REQUESTS = 64
HANDLER = """
import os, time
def load(context):
    time.sleep(0.2)
def handle(event, context):
    time.sleep(0.005)
    return os.getpid()
"""


async def burst(url: str, folder: Path, number: int) -> tuple[int, int, float]:
    """Instances that served, replies, and the longest latency in ms, of a function never used."""
    name = f"burst-{number}"
    (folder / "handler.py").write_text(HANDLER + f"# {number}\n")
    (folder / "function.toml").write_text(
        f'name = "{name}"\n[limits]\nmax_instances = 2\n[scaling]\nkeep_alive = 0.0\n'
    )
    loop = asyncio.get_running_loop()
    async with AsyncClient(url) as client:
        await client.deploy(folder)
        while (await client.function(name)).instances.idle:
            await asyncio.sleep(0.05)
        started = loop.time()

        async def one() -> tuple[int, float]:
            reply = await client.invoke(name, {})
            return int(json.loads(reply.body)), (loop.time() - started) * 1000

        replies = await asyncio.gather(*(one() for _ in range(REQUESTS)))
    return len({pid for pid, _ in replies}), len(replies), max(ms for _, ms in replies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = []
    with (
        tempfile.TemporaryDirectory() as folder,
        platform(FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S="0") as url,
    ):
        found = [asyncio.run(burst(url, Path(folder), number)) for number in range(rounds)]
    row("", "requests", "replies", "instances", "slowest ms")
    for instances, replies, slowest in found:
        row("burst on a cold function", REQUESTS, replies, instances, f"{slowest:.0f}")
    result(
        bench="burst",
        rounds=rounds,
        requests=REQUESTS,
        replies=min(replies for _, replies, _ in found),
        most_instances=max(instances for instances, _, _ in found),
        slowest_ms=median([slowest for _, _, slowest in found]),
    )


if __name__ == "__main__":
    main()
