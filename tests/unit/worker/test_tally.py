"""What a node says it has in hand, while calls queue, run, stream, fail and are given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faasd.bridges import awaited
from faasd.errors import FaasdError, QueueFull
from faasd.invocation import Reply
from faasd.streams import close
from tests.loops import in_loop, until
from tests.unit.worker.nodes import Held, call, outcome, revision, running
from worker.node import Node
from worker.sandboxes.fake import FakeSandboxes


def ask(node: Node, *args: Any) -> asyncio.Future[Reply]:
    return asyncio.ensure_future(awaited(node.invoke, call(*args)))


def in_hand(node: Node) -> tuple[int, int]:
    return node.load.outstanding, node.load.running


@in_loop
async def test_calls_are_in_hand_from_their_arrival_to_their_end(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        calls = [ask(node, body, "hold") for body in (b"1", b"2", b"3")]
        await until(lambda: held.running)
        assert in_hand(node) == (3, 1)

        calls[1].cancel()
        await until(lambda: in_hand(node) == (2, 1))
        held.finish()
        await until(lambda: b"3" in held.running)
        assert in_hand(node) == (1, 1)

        held.finish()
        await calls[2]
        assert in_hand(node) == (0, 0)


@in_loop
async def test_what_a_node_says_later_has_the_higher_number(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.register(revision())
        seen = []
        for _ in range(3):
            await awaited(node.invoke, call())
            seen.append(node.load.seq)

    assert seen == sorted(set(seen))


@in_loop
async def test_a_call_whose_instance_ends_is_in_hand_no_longer(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold"))
        asked = ask(node, b"1", "hold")
        await until(lambda: held.running)
        [sandbox] = sandboxes.open_sandboxes
        [instance] = sandbox.instances().values()

        instance.kill()

        await outcome(asked)
        assert in_hand(node) == (0, 0)


@in_loop
async def test_a_call_that_is_refused_was_never_in_hand(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold", limits={"max_instances": 1, "queue": 1}))
        first = ask(node, b"1", "hold")
        await until(lambda: held.running)
        second = ask(node, b"2", "hold")
        await until(lambda: in_hand(node) == (2, 1))

        with pytest.raises(QueueFull):
            await awaited(node.invoke, call(b"3", "hold"))
        with pytest.raises(FaasdError):
            await awaited(node.invoke, call(name="unknown"))

        assert in_hand(node) == (2, 1)
        held.finish()
        await until(lambda: b"2" in held.running)
        held.finish()
        await asyncio.gather(first, second)


@pytest.mark.parametrize("read", [True, False])
@in_loop
async def test_a_call_that_streams_is_in_hand_until_its_stream_ends(
    tmp_path: Path, *, read: bool
) -> None:
    held = asyncio.Event()

    async def stream(_body: bytes) -> AsyncIterator[bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"1"
            await held.wait()

        return chunks()

    async with running(tmp_path, FakeSandboxes({"stream": stream})) as node:
        node.register(revision("stream"))
        reply = await awaited(node.invoke, call(b"", "stream"))
        assert in_hand(node) == (1, 1)
        assert reply.chunks is not None

        held.set()
        if read:
            assert [chunk async for chunk in reply.chunks] == [b"1"]
        else:
            await close(reply.chunks)

        await until(lambda: in_hand(node) == (0, 0))
