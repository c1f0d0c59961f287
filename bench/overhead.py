"""What the platform adds to a warm invocation: echo through `faasd up` against a bare aiohttp echo.

One connection, one request after another, the two in turn for several rounds; the figure is the
difference of the median round trips.

    python -m bench.overhead [--rounds 5] [--requests 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import aiohttp
import uvloop

from bench.measure import EXAMPLES, median, platform, result, row
from faasd.client import Client

BARE = """
import uvloop
from aiohttp import web
async def echo(request):
    return web.Response(body=await request.read(), content_type="application/json")
async def serve():
    import asyncio
    app = web.Application()
    app.router.add_post("/invoke/echo", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()
uvloop.run(serve())
"""
BODY = b'{"text": "hello"}'


@contextlib.contextmanager
def bare() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


async def round_trips_ms(url: str, requests: int) -> list[float]:
    """Each request's time, the first tenth left out."""
    found = []
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(requests):
            started = time.perf_counter()
            async with session.post(f"{url}/invoke/echo", data=BODY, headers=headers) as reply:
                assert await reply.read() == BODY or reply.status == 200, reply.status
            found.append((time.perf_counter() - started) * 1000)
    return found[requests // 10 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    with platform() as url, bare() as bare_url, Client(url) as client:
        client.deploy(EXAMPLES / "echo")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for _ in range(options.rounds):
                theirs.append(median(runner.run(round_trips_ms(bare_url, options.requests))))
                ours.append(median(runner.run(round_trips_ms(url, options.requests))))
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    row("round trip, 1 connection, p50", "bare aiohttp", "faasd up", "added")
    row(
        "median of rounds, ms",
        f"{median(theirs):.3f}",
        f"{median(ours):.3f}",
        f"{median(differences):.3f}",
    )
    result(
        bench="overhead",
        rounds=options.rounds,
        bare_ms=median(theirs),
        faasd_ms=median(ours),
        added_ms=median(differences),
    )


if __name__ == "__main__":
    main()
