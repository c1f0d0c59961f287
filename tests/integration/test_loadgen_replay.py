"""`loadgen replay` as a process against a real HTTP server that delays, refuses and hangs up."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

FUNCTIONS = ("breaks", "echo", "hangs", "sheds")


@dataclass
class Server:
    """A platform of four functions, each with its own way to answer."""

    bodies: dict[str, list[tuple[str, bytes, str | None]]] = field(default_factory=dict)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def list_functions(self, request: web.Request) -> web.Response:
        example = {"content_type": "text/plain", "body": "hello", "base64": None}
        specs = {"echo": {"example": example}}
        found = [{"name": name, "spec": specs.get(name, {})} for name in FUNCTIONS]
        return web.json_response({"functions": found})

    async def invoke(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        sent = (request.content_type, await request.read(), request.headers.get("Authorization"))
        self.bodies.setdefault(name, []).append(sent)
        self.reached.set()
        answer: Callable[[web.Request], Awaitable[web.Response]] = getattr(self, name)
        return await answer(request)

    async def echo(self, request: web.Request) -> web.Response:
        headers = {
            "Server-Timing": "queue;dur=1, sandbox;dur=2, libs;dur=3, load;dur=4, exec;dur=5",
            "faasd-start": "cold" if len(self.bodies["echo"]) == 1 else "warm",
            "faasd-worker": "w1",
            "faasd-request-id": "r1",
        }
        return web.Response(text="hello", headers=headers)

    async def sheds(self, request: web.Request) -> web.Response:
        problem = json.dumps({"code": "queue_full", "status": 429})
        return web.Response(status=429, text=problem, content_type="application/problem+json")

    async def breaks(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def hangs(self, request: web.Request) -> web.Response:
        await self.closing.wait()
        return web.Response()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_get("/v1/functions", server.list_functions)
    app.router.add_post("/invoke/{name}", server.invoke)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        server.closing.set()
        await runner.cleanup()


async def start(
    server: Server, trace: Path, report: Path, *options: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen", "replay", str(trace), "--url", server.url),
        *("--report", str(report), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def write_trace(folder: Path, invocations: list[tuple[str, int]]) -> Path:
    path = folder / "trace.csv"
    rows = "".join(f"{name},{at}\n" for name, at in invocations)
    path.write_text(f"func_name,invoke_time_ms\n{rows}")
    return path


def test_every_request_is_accounted_for_whatever_the_platform_does(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, [(name, at) for name in FUNCTIONS for at in range(0, 1000, 100)])

    async def main() -> tuple[Server, int | None, bytes, bytes]:
        async with serving() as server:
            process = await start(
                server, trace, tmp_path / "r", "--timeout", "0.5", "--api-key", "k"
            )
            out, err = await process.communicate()
            return server, process.returncode, out, err

    server, code, out, err = asyncio.run(main())
    report = json.loads((tmp_path / "r/report.json").read_text())
    with (tmp_path / "r/invocations.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert code == 0, err
    assert (report["sent"], report["succeeded"]) == (40, 10)
    assert report["failed"] == {"connection_error": 10, "client_timeout": 10, "queue_full": 10}
    assert report["start_kinds"] == {"warm": 9, "cold": 1, "none": 30}
    assert report["functions"]["echo"]["phases_ms"]["load"]["mean"] == 4
    assert server.bodies["echo"] == [("text/plain", b"hello", "Bearer k")] * 10
    assert server.bodies["sheds"][0] == ("application/json", b"{}", "Bearer k")
    assert Counter(row["code"] for row in rows) == {"": 10, **report["failed"]}
    assert {row["function"] for row in rows if row["endpoint"] == "echo"} == {"echo"}
    assert (tmp_path / "r/report.html").read_text().startswith("<!doctype html>")
    assert b"same name" in out
    assert b"queue_full 10" in out


def test_counts_are_replayed_faster_only_in_part_to_where_the_map_says(tmp_path: Path) -> None:
    trace = tmp_path / "counts.csv"
    trace.write_text("HashFunction,1,2,3\nhot,30,20,500\nrare,5,1,500\nleast,1,1,500\n")
    options = ("--duration", "120", "--functions", "2", "--speed", "120", "--seed", "5")

    async def main() -> tuple[Server, int | None, bytes]:
        async with serving() as server:
            process = await start(
                server, trace, tmp_path / "r", *options, "--map", "hot=echo,rare=sheds", "--json"
            )
            out, _ = await process.communicate()
            return server, process.returncode, out

    server, code, out = asyncio.run(main())
    report = json.loads(out)

    assert code == 0
    assert {name: len(bodies) for name, bodies in server.bodies.items()} == {"echo": 50, "sheds": 6}
    assert report == json.loads((tmp_path / "r/report.json").read_text())
    assert report["mapping"] == {"hot": "echo", "rare": "sheds"}
    assert report["offered_rps"] >= 0.1


def test_a_replay_without_any_success_fails_but_reports(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, [("sheds", 0), ("breaks", 0)])

    async def main() -> int | None:
        async with serving() as server:
            process = await start(server, trace, tmp_path / "r")
            await process.communicate()
            return process.returncode

    code = asyncio.run(main())
    report = json.loads((tmp_path / "r/report.json").read_text())

    assert code == 1
    assert report["failed"] == {"queue_full": 1, "connection_error": 1}
    assert report["latency_ms"]["p50"] is None


def test_an_interrupt_ends_the_sending_and_still_reports(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, [("hangs", 0), ("echo", 0), ("echo", 3_600_000)])

    async def main() -> int | None:
        async with serving() as server:
            process = await start(server, trace, tmp_path / "r")
            await server.reached.wait()
            process.send_signal(signal.SIGINT)
            await process.communicate()
            return process.returncode

    code = asyncio.run(main())
    report = json.loads((tmp_path / "r/report.json").read_text())

    assert code == 130
    assert report["stopped_by"] == "SIGINT"
    assert report["sent"] == report["succeeded"] + sum(report["failed"].values())
    assert report["failed"].get("interrupted", 0) == 1
    assert report["sent"] <= 2
