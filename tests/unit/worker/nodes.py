"""Nodes for tests: real in everything but their sandboxes, which hold Python callables."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from faasd.errors import FaasdError
from faasd.invocation import Invocation, Revision
from faasd.settings import WorkerSettings, build
from faasd.spec import validate_spec
from tests.platform import pack
from worker.gpus.inventory import GpuInventory
from worker.node import Node
from worker.sandbox import Output, Placed
from worker.sandboxes.fake import FakeSandbox, FakeSandboxes, Handler

ARCHIVE = pack({"handler.py": "def handle(event, context): return event"})
CODE = hashlib.sha256(ARCHIVE).hexdigest()


class OnDisk:
    """A source whose files lie on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / CODE).write_bytes(ARCHIVE)

    def local(self, sha256: str) -> Path | None:
        return self._folder / sha256

    async def read(self, sha256: str) -> AsyncIterator[bytes]:
        raise NotImplementedError
        yield b""


class GatedSandboxes(FakeSandboxes):
    """Sandboxes that open when the test says so, or fail with `refusal` instead."""

    def __init__(self, handlers: dict[str, Handler] | None = None, *, load_s: float = 0.0) -> None:
        super().__init__(handlers, load_s=load_s)
        self.gate = asyncio.Event()
        self.asked = 0
        self.refusal: Exception | None = None

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> FakeSandbox:
        self.asked += 1
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return await super().open(revision, placed, died=died, output=output)


class Held:
    """A handler whose calls end when the test says so, and which says what became of them."""

    def __init__(self) -> None:
        self.running: dict[bytes, asyncio.Future[Any]] = {}
        self.cancelled: list[bytes] = []
        self.most = 0

    async def __call__(self, body: bytes) -> Any:
        self.running[body] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        try:
            return await self.running[body]
        except asyncio.CancelledError:
            self.cancelled.append(body)
            raise
        finally:
            del self.running[body]

    def finish(self, result: Any = b"done") -> None:
        for future in self.running.values():
            if not future.done():
                future.set_result(result)


def make_node(
    folder: Path,
    sandboxes: FakeSandboxes | None = None,
    inventory: GpuInventory | None = None,
    **settings: Any,
) -> Node:
    """A node of that folder; what it runs is not cut short unless the settings say so."""
    chosen = {"id": "n1", "memory_budget_mb": 4096, "cancel_grace_s": 1000, **settings}
    built = build(WorkerSettings, data=folder / "node", runtime="fake", **chosen)
    return Node(built, sandboxes or FakeSandboxes(), OnDisk(folder / "artifacts"), inventory)


@contextlib.asynccontextmanager
async def running(
    folder: Path, sandboxes: FakeSandboxes | None = None, **settings: Any
) -> AsyncIterator[Node]:
    """A node that is started, and ended without waiting for what it runs."""
    node = make_node(folder, sandboxes, **{"shutdown_grace_s": 0.0, **settings})
    await node.start()
    try:
        yield node
    finally:
        await node.aclose()


def revision(
    name: str = "echo", identity: str = "r1", *, minimum: int = 0, **spec: Any
) -> Revision:
    checked = validate_spec({"name": name, **spec})
    return Revision(f"default/{name}", identity, checked, CODE, {}, min_instances=minimum)


def call(
    body: bytes = b"x",
    name: str = "echo",
    identity: str = "r1",
    *,
    remaining_s: float | None = None,
) -> Invocation:
    return Invocation("request", f"default/{name}", identity, body, remaining_s=remaining_s)


async def outcome(work: asyncio.Future[Any]) -> FaasdError:
    """The error that this ends in."""
    found = (await asyncio.gather(work, return_exceptions=True))[0]
    assert isinstance(found, FaasdError), found
    return found
