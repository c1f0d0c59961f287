"""The gateway: what is counted, and what becomes of an idempotency key whose reply is not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from controller.dispatch import Dispatcher
from controller.gateway import Gateway
from controller.links import Progress
from controller.registry import Registry
from controller.store.sqlite import SqliteStore
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.errors import HandlerError
from faasd.invocation import (
    Invocation,
    Load,
    LogLine,
    Receiver,
    Reply,
    Revision,
    Started,
    StartKind,
    Timings,
    WorkerReport,
)
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.spec import validate_spec
from faasd.streams import Closable, close
from faasd.telemetry import Metrics
from tests.loops import in_loop
from tests.platform import pack

INVOCATION = Invocation(id="one", function="default/words", revision="", body=b"x")


class Words(Gateway):
    """Every invocation yields two words; counts those whose stream was closed unread."""

    runs = 0
    unread = 0

    async def invoke(self, invocation: Invocation, *, mode: str = "sync") -> Reply:
        self.runs += 1
        chunks = Closable(self._words(), unread=self._note_unread)
        return Reply(200, "text/plain", {}, StartKind.WARM, Timings(), "w", chunks=chunks)

    async def _words(self) -> AsyncGenerator[bytes, None]:
        yield b"to "
        yield b"be"

    def _note_unread(self) -> None:
        self.unread += 1


class Nothing:
    """What is under way for a moment only."""

    def cancel(self) -> None:
        raise NotImplementedError


class Failing:
    """A worker on which every invocation fails."""

    worker_id = "w"
    load = Load()

    def report(self) -> WorkerReport:
        return WorkerReport("w", 1, 1.0, 1.0, 0.0, 1, [], [], [])

    def register(self, revision: Revision) -> None:
        del revision

    def retire(self, function: str, revision: str) -> None:
        raise NotImplementedError

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        del revision, progress

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        del invocation
        loop = asyncio.get_running_loop()
        loop.call_soon(receiver.failed, HandlerError("The function raised ValueError."))
        return Nothing()

    def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        raise NotImplementedError


async def archive() -> AsyncIterator[bytes]:
    yield pack({"handler.py": "def handle(event, context): ..."})


@in_loop
async def test_an_invocation_that_fails_is_under_way_no_longer_and_is_counted(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    workers, blobs, metrics = Workers(), BlobStore(tmp_path), Metrics()
    blobs.open()
    registry = Registry(store, blobs, workers, code_max_mb=1, deploy_timeout_s=1)
    gateway = Gateway(registry, Dispatcher(workers, LeastOutstanding()), store, metrics)
    member = workers.join(Failing())
    try:
        code = await blobs.put(archive(), sha256=None, max_mb=1)
        spec = validate_spec({"name": "words"})
        await registry.deploy("default/words", spec, code, {}, lambda _stage, _detail: None)
        with pytest.raises(HandlerError):
            await gateway.invoke(INVOCATION)
    finally:
        await store.aclose()

    assert repr(member.calls) == "Outstanding(own=0, others=0)"
    assert b'outcome="handler_error"} 1.0' in metrics.render()


def with_words(folder: Path, leave_after: int | None) -> tuple[int, int, bytes, bool]:
    """Ask twice under one key; the first caller leaves after so many chunks, or stays."""

    async def work() -> tuple[int, int, bytes, bool]:
        store = SqliteStore(folder / "store.db")
        await store.open()
        workers = Workers()
        blobs = BlobStore(folder)
        registry = Registry(store, blobs, workers, code_max_mb=1, deploy_timeout_s=1)
        gateway = Words(registry, Dispatcher(workers, LeastOutstanding()), store, Metrics())
        try:
            first, _ = await gateway.invoke_once(INVOCATION, "key")
            assert first.chunks is not None
            seen = 0
            while seen != leave_after:
                if await anext(first.chunks, None) is None:
                    break
                seen += 1
            await close(first.chunks)
            async with asyncio.timeout(10):
                second, replayed = await gateway.invoke_once(INVOCATION, "key")
            body = second.body
            if second.chunks is not None:
                body = b"".join([chunk async for chunk in second.chunks])
            return gateway.runs, gateway.unread, body, replayed
        finally:
            await store.aclose()

    return asyncio.run(work())


def test_a_stream_read_to_its_end_is_kept(tmp_path: Path) -> None:
    assert with_words(tmp_path, None) == (1, 0, b"to be", True)


def test_a_stream_left_in_its_midst_frees_the_key(tmp_path: Path) -> None:
    assert with_words(tmp_path, 1) == (2, 0, b"to be", False)


def test_a_stream_left_before_its_first_chunk_frees_the_key_and_ends_the_invocation(
    tmp_path: Path,
) -> None:
    assert with_words(tmp_path, 0) == (2, 1, b"to be", False)
