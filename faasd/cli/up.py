"""`faasd up`: the whole platform in one process. The one place that knows controller and worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer

from controller.daemon import Controller
from controller.links import Progress
from faasd.cli.running import run_daemon
from faasd.invocation import Invocation, LogLine, Reply, Revision, WorkerReport
from faasd.settings import ControllerSettings, WorkerSettings, build
from worker.node import Node
from worker.sandboxes import make_sandboxes


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

    @property
    def worker_id(self) -> str:
        return self._node.id

    def report(self) -> WorkerReport:
        return self._node.report()

    def register(self, revision: Revision) -> None:
        self._node.register(revision)

    def retire(self, function: str, revision: str) -> None:
        self._node.retire(function, revision)

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        await self._node.prepare(revision, progress)

    async def invoke(self, invocation: Invocation) -> Reply:
        return await self._node.invoke(invocation)

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


def up(
    port: Annotated[
        int | None, typer.Option(help="Port of the HTTP API; 0 takes a free one.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the HTTP API.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of everything that must last.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Kind of sandboxes: process.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the whole platform here: controller and one worker, until interrupted."""
    controller = build(ControllerSettings, host=host, port=port, data=data)
    worker = build(WorkerSettings, data=controller.data / "worker", runtime=runtime)
    run_daemon(Embedded(controller, worker), log_level=log_level)
