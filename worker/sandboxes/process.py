"""Sandboxes as plain processes of this machine: the embedded default, no engine needed.

Same tree as in containers (zygote, template, instances) with resource limits instead of
namespaces: it keeps functions apart by accident, not against malice. For one trusted user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from faasd import clock
from faasd.errors import DeployFailed, FaasdError
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.settings import WorkerSettings
from faasd.spec import FunctionSpec
from faasd.telemetry import get_logger
from worker import processes
from worker.gpus.ledger import GpuLedger, environment
from worker.layers import InterpreterBuilder
from worker.sandbox import Output, Placed
from worker.sandboxes.template import TemplateSandbox, no_runtime, template_config
from worker.zygote import INHERITED, QUIET, RuntimeImage, Zygote, find_runtimes, images_folder

log = get_logger("worker.sandbox")

MARKER = "FAASD_NODE_DIR"
_STOP_PATIENCE_S = 3.0


class ProcessSandboxes:
    """Starts zygotes and, from them, sandboxes. Owned by the event loop."""

    def __init__(self, folder: Path, *, preload: list[str], output_kb: int) -> None:
        self._folder = folder.resolve()
        self._preload = preload
        self._output_bytes = output_kb * 1024
        self._images = find_runtimes(images_folder())
        self._zygotes: dict[str, Zygote] = {}
        self._sandboxes: dict[str, ProcessSandbox] = {}
        self._warming: set[asyncio.Task[None]] = set()
        self._memory_mb: dict[str, float] = {}
        self.builder = InterpreterBuilder()

    def use_gpus(self, ledger: GpuLedger) -> None:
        """Processes see every GPU of the machine, whatever they were given."""
        del ledger

    async def start(self) -> None:
        """Clear what a former life of this node left, then start the zygotes asked for."""
        killed = processes.kill_marked(MARKER, str(self._folder))
        if killed:
            log.warning("node.strays_killed", count=killed)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        for name in self._preload:
            if name in self._images:
                task = asyncio.get_running_loop().create_task(self._warm(name))
                self._warming.add(task)
                task.add_done_callback(self._warming.discard)

    async def _warm(self, name: str) -> None:
        with contextlib.suppress(FaasdError):
            await self._zygote(name).ensure()

    async def check(self, spec: FunctionSpec) -> None:
        if spec.runtime not in self._images:
            raise no_runtime(spec.runtime, self._images)
        wanted = _only_in_containers(spec)
        if wanted is not None:
            raise DeployFailed(
                f"{wanted} needs containers, and this worker runs functions as plain processes.",
                remedy="Start the worker with Docker: `faasd up --runtime docker`, or "
                "FAASD_WORKER_RUNTIME=docker.",
            )

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> ProcessSandbox:
        await self.check(revision.spec)
        zygote = self._zygote(revision.spec.runtime)
        kind = StartKind.POOLED if zygote.state == "ready" else StartKind.COLD
        begin = clock.monotonic()
        await zygote.ensure()
        libraries = clock.monotonic()
        name = f"{revision.function.rpartition('/')[2]}-{revision.id}-{secrets.token_hex(3)}"
        sandbox = self._sandboxes[name] = ProcessSandbox(
            name=name,
            revision=revision,
            died=died,
            output=output,
            output_bytes=self._output_bytes,
            zygote=zygote,
            folder=self._folder / name,
            ended=lambda name: self._sandboxes.pop(name, None),
        )
        try:
            await asyncio.to_thread(
                _furnish, self._folder / name, revision, placed, str(self._folder)
            )
            await sandbox.start(kind, begin, libraries)
        except BaseException:
            await asyncio.shield(sandbox.aclose())
            raise
        return sandbox

    def sandboxes(self) -> dict[str, int]:
        return {"claimed": len(self._sandboxes)}

    def runtimes(self) -> list[RuntimeReport]:
        return [
            RuntimeReport(
                name=name,
                state=self._zygotes[name].state if name in self._zygotes else "absent",
                memory_mb=self._memory_mb.get(name, 0.0),
                libraries=list(image.packages),
            )
            for name, image in self._images.items()
        ]

    def measure(self) -> None:
        self._memory_mb = {
            name: processes.memory(zygote.pid).pss_mb
            for name, zygote in list(self._zygotes.items())
            if zygote.pid
        }

    async def aclose(self) -> None:
        for task in self._warming:
            task.cancel()
        await asyncio.gather(*(sandbox.aclose() for sandbox in list(self._sandboxes.values())))
        await asyncio.gather(*(zygote.aclose() for zygote in self._zygotes.values()))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _zygote(self, runtime: str) -> Zygote:
        zygote = self._zygotes.get(runtime)
        if zygote is None:
            zygote = self._zygotes[runtime] = Zygote(
                self._image(runtime),
                {MARKER: str(self._folder)},
                self._folder.parent / f"zygote-{runtime}.log",
            )
        return zygote

    def _image(self, runtime: str) -> RuntimeImage:
        return self._images[runtime]


def _only_in_containers(spec: FunctionSpec) -> str | None:
    """The first thing that the function asks for and a process cannot be given."""
    if spec.image is not None:
        return f'image = "{spec.image}"'
    if spec.relayed:
        return f'contract = "{spec.contract}"'
    # Every process has the machine's network, which holds the internet; not so a named one.
    if spec.network not in ("none", "internet"):
        return f'network = "{spec.network}"'
    return None


def from_settings(settings: WorkerSettings) -> ProcessSandboxes:
    return ProcessSandboxes(
        settings.data / "sandboxes",
        preload=settings.preload_runtimes,
        output_kb=settings.log_request_kb,
    )


def _furnish(folder: Path, revision: Revision, placed: Placed, marker: str) -> None:
    """The sandbox's own folder: a place for temporary files and the template's configuration."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    base = {name: os.environ[name] for name in INHERITED if name in os.environ}
    base |= environment(revision.spec.resources)
    config = template_config(
        revision, placed, base_env={MARKER: marker, **QUIET, **base}, tmp=str(temporary)
    )
    (folder / "sandbox.json").write_text(json.dumps(config))


class ProcessSandbox(TemplateSandbox):
    """A template of the zygote's, its instances, and a folder. Owned by the event loop."""

    def __init__(
        self,
        *,
        name: str,
        revision: Revision,
        died: Callable[[], None],
        output: Output,
        output_bytes: int,
        zygote: Zygote,
        folder: Path,
        ended: Callable[[str], object],
    ) -> None:
        super().__init__(
            name=name, revision=revision, died=died, output=output, output_bytes=output_bytes
        )
        self._zygote = zygote
        self._folder = folder
        self._on_end = ended
        self._gone = asyncio.Event()

    async def _launch(self, fds: tuple[int, int, int]) -> int:
        return await self._zygote.fork(self.name, self._folder, fds, self._exited)

    def _exited(self, status: int) -> None:
        del status
        self._pid = 0
        self._gone.set()
        self._release()

    async def _clear(self) -> None:
        if self._pid:
            try:
                async with asyncio.timeout(_STOP_PATIENCE_S):
                    await self._gone.wait()
            except TimeoutError:
                self._kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_PATIENCE_S):
                        await self._gone.wait()
        self._on_end(self.name)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
