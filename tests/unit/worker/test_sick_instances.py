"""An instance that fails call after call makes way for a fresh one. Only the sandboxes are fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faasd.bridges import awaited
from faasd.errors import FaasdError, HandlerError, UnserialisableResult
from faasd.invocation import Invocation, Reply, StartKind
from tests.loops import in_loop, until
from tests.unit.worker.nodes import call, revision, running
from worker.node import Node
from worker.sandboxes.fake import FakeSandboxes


class Patient:
    """A handler of a revision that is sick, or not, as the test says."""

    def __init__(self) -> None:
        self.sick = False
        self.held: dict[bytes, asyncio.Future[None]] = {}

    async def __call__(self, body: bytes) -> bytes:
        if body.startswith(b"hold"):
            self.held[body] = asyncio.get_running_loop().create_future()
            await self.held[body]
        if self.sick:
            raise RuntimeError("context is destroyed")
        return body

    def let_go(self) -> None:
        for held in self.held.values():
            held.set_result(None)


def names(sandboxes: FakeSandboxes) -> set[str]:
    [sandbox] = sandboxes.open_sandboxes
    return set(sandbox.instances())


async def fail(node: Node, times: int) -> None:
    for _ in range(times):
        with pytest.raises(HandlerError):
            await awaited(node.invoke, call())


def ejected(node: Node) -> int:
    return node.report().functions[0].ejected


@in_loop
async def test_what_fails_five_times_in_a_row_is_replaced(tmp_path: Path) -> None:
    patient = Patient()
    sandboxes = FakeSandboxes({"echo": patient})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        await awaited(node.invoke, call())
        [former] = names(sandboxes)

        patient.sick = True
        await fail(node, 4)
        assert names(sandboxes) == {former}
        await fail(node, 1)
        await until(lambda: former not in names(sandboxes))
        patient.sick = False

        assert (await awaited(node.invoke, call())).start is StartKind.FORK
        assert ejected(node) == 1
        assert sandboxes.opened == 1


@in_loop
async def test_what_fails_in_a_fresh_instance_too_is_not_replaced_again(tmp_path: Path) -> None:
    patient = Patient()
    sandboxes = FakeSandboxes({"echo": patient})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        patient.sick = True
        await fail(node, 5)
        await until(lambda: not names(sandboxes))
        await fail(node, 1)
        kept = names(sandboxes)
        await fail(node, 50)

        assert names(sandboxes) == kept
        assert ejected(node) == 1


@in_loop
async def test_calls_that_run_on_it_are_let_finish(tmp_path: Path) -> None:
    patient = Patient()
    sandboxes = FakeSandboxes({"echo": patient})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision(limits={"concurrency": 8, "max_instances": 2}))
        long = asyncio.ensure_future(awaited(node.invoke, call(b"hold")))
        await until(lambda: patient.held)
        [former] = names(sandboxes)

        patient.sick = True
        await fail(node, 5)
        patient.sick = False
        reply = await awaited(node.invoke, call())
        assert reply.start is StartKind.FORK
        assert former in names(sandboxes)

        patient.let_go()
        assert (await long).body == b"hold"
        await until(lambda: former not in names(sandboxes))


async def unserialisable(_body: bytes) -> Any:
    return object()


@in_loop
async def test_errors_that_are_no_failure_of_the_code_do_not_count(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes({"echo": unserialisable})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        for _ in range(20):
            with pytest.raises(UnserialisableResult):
                await awaited(node.invoke, call())

        assert ejected(node) == 0


@in_loop
async def test_a_call_that_was_told_to_stop_does_not_count(tmp_path: Path) -> None:
    """What a handler raises then is what stopping it made of it."""

    async def stubborn(_body: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("interrupted") from None
        return b""

    sandboxes = FakeSandboxes({"echo": stubborn})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        for _ in range(20):
            with pytest.raises(FaasdError, match="deadline"):
                await awaited(node.invoke, call(remaining_s=0.01))
            await until(lambda: node.report().functions[0].idle == 1)

        assert ejected(node) == 0


@in_loop
async def test_a_batch_that_fails_counts_as_one_failure(tmp_path: Path) -> None:
    patient = Patient()
    sandboxes = FakeSandboxes({"echo": patient})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision(batching={"max_size": 8, "max_wait_ms": 1000}))
        patient.sick = True
        calls = [asyncio.ensure_future(awaited(node.invoke, call())) for _ in range(8)]
        await asyncio.gather(*calls, return_exceptions=True)

        assert ejected(node) == 0


@in_loop
async def test_an_instance_in_which_sessions_have_their_state_is_kept(tmp_path: Path) -> None:
    patient = Patient()
    sandboxes = FakeSandboxes({"echo": patient})

    def of_session() -> Invocation:
        return Invocation("request", "default/echo", "r1", b"x", session="s")

    async def invoke(make: Callable[[], Invocation]) -> Reply:
        return await awaited(node.invoke, make())

    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        await invoke(of_session)
        patient.sick = True
        await fail(node, 50)
        patient.sick = False

        assert (await invoke(of_session)).start is StartKind.WARM
        assert ejected(node) == 0


@in_loop
async def test_it_is_kept_while_nothing_else_could_be_started(tmp_path: Path) -> None:
    """The template has died, and another one is refused: what is there is the last hope."""
    patient = Patient()
    sandboxes = FakeSandboxes({"echo": patient})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        await awaited(node.invoke, call())
        service = node._services["default/echo@r1"]
        service.pool.sandbox_closed()
        patient.sick = True
        await fail(node, 20)

        assert ejected(node) == 0
