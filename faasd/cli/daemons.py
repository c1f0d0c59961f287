"""The daemons as the command line composes them: the one place that knows controller and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from controller.daemon import Controller
from controller.links import Progress
from faasd.invocation import (
    Invocation,
    Load,
    LogLine,
    Receiver,
    Revision,
    Started,
    WorkerReport,
)
from faasd.settings import ControllerSettings, WorkerSettings
from worker.node import Node
from worker.sandboxes import make_sandboxes
from worker.uplink import Uplink


class LocalSource:
    """The controller's artifacts, for a worker in the same process: linked, never copied."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def local(self, sha256: str) -> Path | None:
        return self._controller.artifact(sha256)

    def read(self, sha256: str) -> AsyncIterator[bytes]:
        return self._controller.blobs.read(sha256)


class LocalLink:
    """A worker in the same process as a WorkerLink: every hop is a call."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.worker_id = node.id
        self.load: Load = node.load
        self.invoke: Callable[[Invocation, Receiver], Started] = node.invoke

    def report(self) -> WorkerReport:
        return self._node.report()

    def register(self, revision: Revision) -> None:
        self._node.register(revision)

    def retire(self, function: str, revision: str) -> None:
        self._node.retire(function, revision)

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        await self._node.prepare(revision, progress)

    async def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        if follow:
            async for line in self._node.follow_logs(function, tail=tail):
                yield line
            return
        for line in self._node.logs(function, tail=tail):
            yield line


class Embedded:
    """Controller and worker in one process."""

    def __init__(self, controller: ControllerSettings, worker: WorkerSettings) -> None:
        self.controller = Controller(controller)
        self.node = Node(worker, make_sandboxes(worker), LocalSource(self.controller))

    async def start(self) -> None:
        await self.controller.open()
        await self.node.start()
        self.controller.workers.join(LocalLink(self.node))
        await self.controller.serve()

    async def aclose(self) -> None:
        await self.controller.aclose()
        await self.node.aclose()


class ControllerDaemon:
    """A controller whose workers are elsewhere."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._controller: Controller | None = None

    async def start(self) -> None:
        self._controller = Controller(self._settings)
        await self._controller.open()
        await self._controller.serve()

    async def aclose(self) -> None:
        if self._controller is not None:
            await self._controller.aclose()


class WorkerDaemon:
    """A node whose controllers are elsewhere."""

    def __init__(self, settings: WorkerSettings, secret: str) -> None:
        self._settings = settings
        self._secret = secret
        self._node: Node | None = None
        self._uplinks: list[Uplink] = []

    async def start(self) -> None:
        self._node = Node(self._settings, make_sandboxes(self._settings))
        self._uplinks = [
            Uplink(
                self._node,
                address=address,
                secret=self._secret,
                heartbeat_s=self._settings.heartbeat_s,
            )
            for address in self._settings.addresses
        ]
        await self._node.start()
        for uplink in self._uplinks:
            await uplink.start()

    async def aclose(self) -> None:
        # Together: each says first of all that nothing more is taken on.
        await asyncio.gather(*(uplink.aclose() for uplink in self._uplinks))
        if self._node is not None:
            await self._node.aclose()
