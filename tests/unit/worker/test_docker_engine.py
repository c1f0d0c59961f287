"""Calls to the engine that go wrong, against one in memory that speaks its HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from faasd.errors import DeployFailed, Unavailable
from tests.loops import in_loop, until
from worker.sandboxes.docker.engine import Engine, ImageMissing

CONFIG = {"Image": "some-image"}


def answer(value: dict[str, Any], status: int = 200) -> web.Response:
    body = json.dumps(value).encode()
    return web.Response(body=body, status=status, content_type="application/json")


class EngineDouble:
    """Creates, starts and removes containers of one name; the test decides what fails, and when."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.there: set[str] = set()
        self.may_create = asyncio.Event()
        self.may_create.set()
        self.create_status = 201
        self.start_status = 204
        self.conflicts = 0

    async def version(self, request: web.Request) -> web.Response:
        del request
        return answer({"Version": "20.10", "ApiVersion": "1.41"})

    async def create(self, request: web.Request) -> web.Response:
        self.seen.append("create")
        await self.may_create.wait()
        if self.create_status != 201:
            return answer({"message": "no such image"}, status=self.create_status)
        self.there.add(request.query["name"])
        return answer({"Id": request.query["name"]}, status=201)

    async def start(self, request: web.Request) -> web.Response:
        del request
        self.seen.append("start")
        if self.start_status == 204:
            return web.Response(status=204)
        return answer({"message": "no such program"}, status=self.start_status)

    async def show(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        state = {"Pid": 7, "Running": True, "ExitCode": 0}
        shown = {"Id": name, "Name": f"/{name}", "Image": "sha256:1", "State": state}
        return answer({**shown, "Config": {"Labels": None}})

    async def remove(self, request: web.Request) -> web.Response:
        self.seen.append("remove")
        if self.conflicts:
            self.conflicts -= 1
            return answer({"message": "already in progress"}, status=409)
        gone = request.match_info["name"] not in self.there
        self.there.discard(request.match_info["name"])
        return answer({"message": "none"}, status=404 if gone else 200)


@asynccontextmanager
async def engine_to(
    monkeypatch: pytest.MonkeyPatch, double: EngineDouble, timeout_s: float = 5.0
) -> AsyncIterator[Engine]:
    app = web.Application()
    prefix = "/{api:v[0-9.]+}"
    app.router.add_get("/version", double.version)
    app.router.add_get(f"{prefix}/version", double.version)
    app.router.add_post(f"{prefix}/containers/create", double.create)
    app.router.add_post(f"{prefix}/containers/{{name}}/start", double.start)
    app.router.add_get(f"{prefix}/containers/{{name}}/json", double.show)
    app.router.add_delete(f"{prefix}/containers/{{name}}", double.remove)
    # As the engine: a request goes on when its caller left.
    runner = web.AppRunner(app, handler_cancellation=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    monkeypatch.setenv("DOCKER_HOST", f"http://127.0.0.1:{port}")
    engine = Engine(timeout_s=timeout_s)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.aclose()
        await runner.cleanup()


@in_loop
async def test_a_container_whose_maker_was_cancelled_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine cannot be told to stop: what it makes all the same is waited for."""
    double = EngineDouble()
    double.may_create.clear()
    async with engine_to(monkeypatch, double) as engine:
        making = asyncio.get_running_loop().create_task(engine.run("c", CONFIG))
        await until(lambda: double.seen == ["create"])
        assert engine.is_making("c")

        making.cancel()
        await asyncio.wait([making])
        ending = asyncio.get_running_loop().create_task(engine.aclose())
        await asyncio.sleep(0)
        double.may_create.set()
        await ending

    assert making.cancelled()
    assert double.seen == ["create", "start", "remove"]
    assert not double.there


@in_loop
async def test_a_container_that_cannot_be_started_is_removed_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double = EngineDouble()
    double.start_status = 400
    async with engine_to(monkeypatch, double) as engine:
        with pytest.raises(DeployFailed, match=r"some-image cannot be started: no such program"):
            await engine.run("c", CONFIG)

    assert not double.there


@in_loop
async def test_an_engine_that_fails_to_start_is_not_the_images_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double = EngineDouble()
    double.start_status = 500
    async with engine_to(monkeypatch, double) as engine:
        with pytest.raises(Unavailable, match="refused starting a container"):
            await engine.run("c", CONFIG)

    assert not double.there


@in_loop
async def test_a_missing_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    double = EngineDouble()
    double.create_status = 404
    async with engine_to(monkeypatch, double) as engine:
        with pytest.raises(ImageMissing, match="some-image is not on this machine"):
            await engine.run("c", CONFIG)


@in_loop
async def test_an_engine_that_does_not_answer_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double = EngineDouble()
    double.may_create.clear()
    async with engine_to(monkeypatch, double, timeout_s=0.1) as engine:
        with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
            await engine.run("c", CONFIG)
        assert not engine.is_making("c")
        double.may_create.set()


@in_loop
async def test_a_container_that_somebody_else_is_removing_is_gone_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its name is free when the call returns: the next of that name can be made."""
    double = EngineDouble()
    double.conflicts = 3
    async with engine_to(monkeypatch, double) as engine:
        await engine.remove("c")

    assert double.seen == ["remove"] * 4
