"""Idempotency in the gateway: what happens to a key when its reply is not read to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from controller.gateway import Gateway
from controller.registry import Registry
from controller.store.sqlite import SqliteStore
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.invocation import Invocation, Reply, StartKind, Timings
from faasd.policies.routing import LeastOutstanding
from faasd.streams import Closable, close
from faasd.telemetry import Metrics

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


def with_words(folder: Path, leave_after: int | None) -> tuple[int, int, bytes, bool]:
    """Ask twice under one key; the first caller leaves after so many chunks, or stays."""

    async def work() -> tuple[int, int, bytes, bool]:
        store = SqliteStore(folder / "store.db")
        await store.open()
        workers = Workers(LeastOutstanding())
        blobs = BlobStore(folder)
        registry = Registry(store, blobs, workers, code_max_mb=1, deploy_timeout_s=1)
        gateway = Words(registry, workers, store, Metrics())
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
