"""A small controller that answers as docs/api.md says, for tests of what speaks to one.

Deployed functions behave by their name: `echo` gives the body back, `tokens` streams lines, and so on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web

from faasd.errors import (
    Conflict,
    DeployFailed,
    FaasdError,
    FunctionNotFound,
    HandlerError,
    NotFound,
    QueueFull,
    Unauthorized,
)

CREATED = "2025-01-02T03:04:05.678Z"
TRACEBACK = "Traceback (most recent call last):\n  File \"handler.py\", line 2\nKeyError: 'text'\n"
COSTS = {
    "Server-Timing": "queue;dur=0.1, sandbox;dur=0, libs;dur=0, load;dur=0, exec;dur=3.2",
    "faasd-start": "warm",
    "faasd-worker": "node-1",
    "faasd-revision": "r1",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ContractServer:
    """The state, and what was asked of it."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.url = ""
        self.functions: dict[str, list[str]] = {"echo": ["r1"]}
        self.artifacts: dict[str, bytes] = {}
        self.uploads = 0
        self.deployed: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.drained: list[str] = []
        self.keys: dict[str, dict[str, Any]] = {}
        self.polls_until_done = 2
        self.invocations = {
            "i-dead": self._invocation("i-dead", "dead"),
            "i-slow": self._invocation("i-slow", "queued"),
        }
        self.waiting = threading.Event()
        self.cancelled = threading.Event()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._problems], client_max_size=64 * 1024 * 1024)
        app.add_routes(
            [
                web.put("/v1/functions/{name}", self._deploy),
                web.get("/v1/functions", self._functions),
                web.get("/v1/functions/{name}", self._function),
                web.delete("/v1/functions/{name}", self._remove),
                web.post("/v1/functions/{name}/rollback", self._rollback),
                web.get("/v1/functions/{name}/logs", self._logs),
                web.head("/v1/artifacts/{sha256}", self._has_artifact),
                web.put("/v1/artifacts/{sha256}", self._put_artifact),
                web.post("/invoke/{name}", self._invoke),
                web.get("/v1/invocations", self._list_invocations),
                web.get("/v1/invocations/{id}", self._get_invocation),
                web.get("/v1/invocations/{id}/result", self._get_result),
                web.post("/v1/invocations/{id}/redrive", self._redrive),
                web.get("/v1/workers", self._workers),
                web.post("/v1/workers/{id}/drain", self._drain),
                web.post("/v1/keys", self._create_key),
                web.get("/v1/keys", self._list_keys),
                web.delete("/v1/keys/{id}", self._delete_key),
                web.get("/readyz", self._readyz),
                web.get("/html/{rest:.*}", self._html),
            ]
        )
        return app

    @web.middleware
    async def _problems(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.headers = dict(request.headers)
        try:
            if (
                self.key is not None
                and request.headers.get("Authorization") != f"Bearer {self.key}"
            ):
                raise Unauthorized("This key is not known.")
            return await handler(request)
        except FaasdError as error:
            return problem(error)

    async def _deploy(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        form = await request.post()
        code = form["code"]
        assert isinstance(code, web.FileField)
        self.deployed = {
            "spec": json.loads(raw(form["spec"])),
            "code": code.file.read(),
            "artifacts": json.loads(raw(form["artifacts"])),
        }
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await send(response, "progress", {"stage": "template", "detail": "python"})
        if name == "broken":
            error = DeployFailed("handler.py does not import.", traceback=TRACEBACK)
            await send(response, "error", error.to_problem())
        elif name != "vanishing":
            history = self.functions.setdefault(name, [])
            history.append(f"r{len(history) + 1}")
            await send(response, "result", self._describe(name))
        return response

    async def _functions(self, _: web.Request) -> web.Response:
        described = [self._describe(name) for name in sorted(self.functions)]
        return web.json_response({"functions": described})

    async def _function(self, request: web.Request) -> web.Response:
        return web.json_response(self._describe(request.match_info["name"]))

    async def _remove(self, request: web.Request) -> web.Response:
        self._describe(request.match_info["name"])
        del self.functions[request.match_info["name"]]
        return web.Response(status=204)

    async def _rollback(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        history = self.functions.get(name, [])
        revision = (await request.json()).get("revision") or "".join(history[-2:-1])
        if revision not in history:
            raise NotFound(f"There is no such revision of '{name}'.")
        history.remove(revision)
        history.append(revision)
        return web.json_response(self._describe(name))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self._describe(name)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(int(request.query["tail"])):
            await send(response, "log", log_line(name, f"[line] {number}"))
        if request.query.get("follow"):
            await self._until_gone(response)
        return response

    async def _has_artifact(self, request: web.Request) -> web.Response:
        known = request.match_info["sha256"] in self.artifacts
        return web.Response(status=200 if known else 404)

    async def _put_artifact(self, request: web.Request) -> web.Response:
        content = await request.read()
        digest = hashlib.sha256(content).hexdigest()
        assert digest == request.match_info["sha256"]
        self.artifacts[digest] = content
        self.uploads += 1
        return web.Response(status=201)

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if request.query.get("mode") == "async":
            self._describe(name)
            self.invocations["i-1"] = self._invocation("i-1", "queued")
            answer = {"id": "i-1", "status": "queued", "url": "/v1/invocations/i-1"}
            return web.json_response(answer, status=202)
        behaviour = getattr(self, f"_invoke_{name.replace('-', '_')}", None)
        if behaviour is None:
            raise FunctionNotFound(f"There is no function named '{name}' in namespace 'default'.")
        return await behaviour(request)  # type: ignore[no-any-return]

    async def _invoke_echo(self, request: web.Request) -> web.Response:
        content_type = request.headers.get("Content-Type", "application/octet-stream")
        return web.Response(
            body=await request.read(), headers={"Content-Type": content_type, **costs(request)}
        )

    async def _invoke_teapot(self, request: web.Request) -> web.Response:
        return web.Response(status=418, text="short and stout", headers=costs(request))

    async def _invoke_own_problem(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"type": "https://example.org/out-of-stock", "detail": "none left"},
            status=409,
            content_type="application/problem+json",
            headers=costs(request),
        )

    async def _invoke_fails(self, _: web.Request) -> web.Response:
        raise HandlerError("KeyError: 'text'", traceback=TRACEBACK)

    async def _invoke_full(self, _: web.Request) -> web.Response:
        raise QueueFull("The queue is full.")

    async def _invoke_tokens(self, request: web.Request) -> web.StreamResponse:
        if request.headers["Accept"] == "text/event-stream":
            body = b'data: {"n": 1}\n\ndata: two\ndata: lines\n\n'
            return await self._chunked(request, "text/event-stream", body)
        return await self._chunked(request, "application/x-ndjson", b'{"n": 1}\n{"n": 2}\n')

    async def _invoke_text(self, request: web.Request) -> web.StreamResponse:
        return await self._chunked(request, "text/plain; charset=utf-8", "grüße".encode())

    async def _invoke_raw(self, request: web.Request) -> web.StreamResponse:
        return await self._chunked(request, "application/octet-stream", b"\x00\x01\x02")

    async def _invoke_breaks(self, request: web.Request) -> web.StreamResponse:
        error = HandlerError("ValueError: late", traceback=TRACEBACK).to_problem()
        body = b"data: 1\n\nevent: error\ndata: " + json.dumps(error).encode() + b"\n\n"
        return await self._chunked(request, "text/event-stream", body)

    async def _invoke_cut_off(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=costs(request))
        await response.prepare(request)
        await response.write(b"some")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _invoke_endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-ndjson", **costs(request)}
        )
        await response.prepare(request)
        await response.write(b"1\n")
        await self._until_gone(response)
        return response

    async def _invoke_never(self, _: web.Request) -> web.StreamResponse:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError

    async def _chunked(self, request: web.Request, kind: str, body: bytes) -> web.StreamResponse:
        """The body one byte a chunk: the worst borders there are."""
        response = web.StreamResponse(headers={"Content-Type": kind, **costs(request)})
        await response.prepare(request)
        for byte in body:
            await response.write(bytes([byte]))
        return response

    async def _until_gone(self, response: web.StreamResponse) -> None:
        try:
            while True:
                await response.write(b"\n")
                await asyncio.sleep(0)
        except (ConnectionError, asyncio.CancelledError):
            self.cancelled.set()
            raise

    async def _list_invocations(self, request: web.Request) -> web.Response:
        status, function = request.query.get("status"), request.query.get("function")
        found = [
            one
            for one in self.invocations.values()
            if status in {None, one["status"]} and function in {None, one["function"]}
        ]
        return web.json_response({"invocations": found[: int(request.query["limit"])]})

    async def _get_invocation(self, request: web.Request) -> web.Response:
        found = self._find_invocation(request)
        if found["id"] == "i-1":
            self.polls_until_done -= 1
            if self.polls_until_done <= 0:
                found["status"] = "succeeded"
        return web.json_response(found)

    async def _get_result(self, request: web.Request) -> web.Response:
        if self._find_invocation(request)["status"] != "succeeded":
            raise Conflict("It is not there yet.")
        return web.json_response({"score": 1})

    async def _redrive(self, request: web.Request) -> web.Response:
        found = self._find_invocation(request)
        if found["status"] != "dead":
            raise Conflict("Only a dead invocation can be queued again.")
        found["status"] = "queued"
        return web.json_response(found, status=202)

    async def _workers(self, _: web.Request) -> web.Response:
        return web.json_response({"workers": [WORKER]})

    async def _drain(self, request: web.Request) -> web.Response:
        self.drained.append(request.match_info["id"])
        return web.json_response({}, status=202)

    async def _create_key(self, request: web.Request) -> web.Response:
        key = {"id": f"k{len(self.keys)}", "created_at": CREATED, **await request.json()}
        self.keys[key["id"]] = key
        return web.json_response({**key, "key": "faasd_secret"}, status=201)

    async def _list_keys(self, _: web.Request) -> web.Response:
        return web.json_response({"keys": list(self.keys.values())})

    async def _delete_key(self, request: web.Request) -> web.Response:
        if self.keys.pop(request.match_info["id"], None) is None:
            raise NotFound("There is no such key.")
        return web.Response(status=204)

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _html(self, _: web.Request) -> web.Response:
        return web.Response(text="<p>another site</p>", content_type="text/html")

    def _describe(self, name: str) -> dict[str, Any]:
        if name not in self.functions:
            raise FunctionNotFound(f"There is no function named '{name}' in namespace 'default'.")
        history = self.functions[name]
        return {
            "name": name,
            "namespace": "default",
            "revision": history[-1],
            "runtime": "python",
            "created_at": CREATED,
            "url": f"/invoke/{name}",
            "spec": {"name": name},
            "revisions": [
                {"revision": one, "created_at": CREATED, "active": one == history[-1]}
                for one in history
            ],
            "instances": {"starting": 0, "idle": 1, "busy": 2},
            "queued": 3,
            "memory_mb": 12.5,
            "a_key_of_later_times": True,
        }

    def _find_invocation(self, request: web.Request) -> dict[str, Any]:
        found = self.invocations.get(request.match_info["id"])
        if found is None:
            raise NotFound("There is no such invocation.")
        return found

    def _invocation(self, invocation_id: str, status: str) -> dict[str, Any]:
        error = HandlerError("KeyError: 'text'", traceback=TRACEBACK).to_problem()
        return {
            "id": invocation_id,
            "function": "echo",
            "namespace": "default",
            "revision": "r1",
            "status": status,
            "created_at": CREATED,
            "finished_at": None,
            "attempts": [
                {
                    "number": 1,
                    "started_at": CREATED,
                    "ended_at": CREATED,
                    "worker": "node-1",
                    "error": error if status == "dead" else None,
                }
            ],
            "next_attempt_at": None,
            "timings": {"exec": 3.2},
            "start": "fork",
        }


WORKER = {
    "id": "node-1",
    "status": "up",
    "cpus": 2,
    "memory_mb": 4096,
    "memory_used_mb": 512.5,
    "memory_budget_mb": 3000,
    "gpus": [],
    "gpu_fault": "no driver",
    "slots": 2,
    "outstanding": 1,
    "sandboxes": {"bare": 2, "starting": 0, "claimed": 1},
    "runtimes": [{"name": "python", "state": "up", "memory_mb": 10, "libraries": ["json"]}],
    "functions": [
        {
            "function": "default/echo",
            "revision": "r1",
            "template": "up",
            "starting": 0,
            "idle": 1,
            "busy": 2,
            "queued": 3,
            "ejected": 4,
            "memory_mb": 12.5,
        }
    ],
}


def costs(request: web.Request) -> dict[str, str]:
    return {**COSTS, "faasd-request-id": request.headers.get("Faasd-Request-Id", "made-up")}


def log_line(function: str, line: str) -> dict[str, Any]:
    return {
        "ts": 1735787045.678,
        "function": function,
        "revision": "r1",
        "instance": "i1",
        "request_id": "q1",
        "stream": "stdout",
        "line": line,
    }


def problem(error: FaasdError) -> web.Response:
    headers = {"Retry-After": "2"} if error.status in {429, 503} else {}
    return web.json_response(
        {**error.to_problem(), "request_id": "q1"},
        status=error.status,
        content_type="application/problem+json",
        headers=headers,
    )


def raw(field: str | bytes | bytearray | web.FileField) -> str | bytes | bytearray:
    assert not isinstance(field, web.FileField)
    return field


async def send(response: web.StreamResponse, event: str, data: dict[str, Any]) -> None:
    await response.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())


@contextlib.contextmanager
def serving(server: ContractServer) -> Iterator[ContractServer]:
    """Serve on a free port, on a thread of its own, until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = web.AppRunner(server.app(), shutdown_timeout=0, handler_cancellation=True)

    async def start() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    try:
        server.url = asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
