"""Sandboxes as plain processes of this machine: the embedded default, no engine needed.

Same tree as in containers (zygote, template, instances) with resource limits instead of
namespaces: it keeps functions apart by accident, not against malice. For one trusted user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed, FaasdError, OutOfMemory, Unavailable
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.settings import WorkerSettings
from faasd.telemetry import get_logger
from worker import processes
from worker.control import ControlSocket, control_pair
from worker.instance import InstanceLink
from worker.output import OutputPipe
from worker.sandbox import InstanceEvents, Opened, Output, Placed, Span
from worker.zygote import INHERITED, QUIET, RuntimeImage, Zygote, find_runtimes, images_folder

log = get_logger("worker.sandbox")

MARKER = "FAASD_NODE_DIR"
_STOP_PATIENCE_S = 3.0
_ATTACH_PATIENCE_S = 120.0


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

    async def check(self, runtime: str) -> None:
        if runtime not in self._images:
            raise DeployFailed(
                f"There is no runtime {runtime!r}; this worker has {', '.join(self._images)}.",
                remedy='Name one of these in function.toml: runtime = "...".',
            )

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> ProcessSandbox:
        await self.check(revision.spec.runtime)
        zygote = self._zygote(revision.spec.runtime)
        kind = StartKind.POOLED if zygote.state == "ready" else StartKind.COLD
        begin = clock.monotonic()
        await zygote.ensure()
        libraries = clock.monotonic()
        sandbox = ProcessSandbox(
            name=f"{revision.function.rpartition('/')[2]}-{revision.id}-{uuid.uuid4().hex[:6]}",
            revision=revision,
            died=died,
            output=output,
            output_bytes=self._output_bytes,
            ended=lambda name: self._sandboxes.pop(name, None),
        )
        folder = self._folder / sandbox.name
        try:
            await asyncio.to_thread(_furnish, folder, revision, placed, str(self._folder))
            sandbox.attach_folder(folder)
            self._sandboxes[sandbox.name] = sandbox
            await sandbox.start(zygote, kind, begin, libraries)
        except BaseException:
            await asyncio.shield(sandbox.aclose())
            raise
        return sandbox

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
    spec = revision.spec
    config = {
        "function": revision.function,
        "revision": revision.id,
        "handler": spec.handler,
        "load": spec.load,
        "code": placed.code,
        "path": placed.path,
        "artifacts": placed.artifacts,
        "env": spec.env,
        "base_env": {
            MARKER: marker,
            **QUIET,
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
        },
        "cpus": spec.resources.cpus,
        "gpus": spec.resources.gpus,
        "memory_mb": spec.resources.memory_mb,
        "concurrency": spec.limits.concurrency,
        "batch": spec.batching.max_size,
        "tmp": str(temporary),
    }
    (folder / "sandbox.json").write_text(json.dumps(config))


@dataclass(slots=True)
class _Birth:
    """An instance asked for and not yet forked."""

    forked: asyncio.Future[int]
    link: InstanceLink = field(repr=False)


class ProcessSandbox:
    """A template and its instances. Owned by the event loop."""

    def __init__(
        self,
        *,
        name: str,
        revision: Revision,
        died: Callable[[], None],
        output: Output,
        output_bytes: int,
        ended: Callable[[str], object],
    ) -> None:
        self.name = name
        self._on_end = ended
        self.opened = Opened(StartKind.COLD, ())
        self._revision = revision
        self._died = died
        self._output = output
        self._output_bytes = output_bytes
        self._folder: Path | None = None
        self._control: ControlSocket | None = None
        self._pipes: tuple[OutputPipe, ...] = ()
        self._pid = 0
        self._gone = asyncio.Event()
        self._verdict: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._verdict.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._births: dict[str, _Birth] = {}
        self._links: dict[int, InstanceLink] = {}
        self._style = "sync"
        self._closing = False
        self._serving = False

    def attach_folder(self, folder: Path) -> None:
        self._folder = folder

    def pids(self) -> list[int]:
        return [self._pid] if self._pid else []

    async def start(self, zygote: Zygote, kind: StartKind, begin: float, libraries: float) -> None:
        """Fork the template and wait for its load(). Raises DeployFailed or Unavailable."""
        assert self._folder is not None
        ours, theirs = control_pair()
        self._pipes = self._make_pipes("template")
        try:
            self._control = ControlSocket(ours, message=self._on_message, closed=self._on_closed)
            stdout, stderr = self._pipes
            fds = (theirs.fileno(), stdout.write_end, stderr.write_end)
            self._pid = await zygote.fork(self.name, self._folder, fds, self._template_exited)
        finally:
            theirs.close()
            for pipe in self._pipes:
                pipe.handed_over()
        forked = clock.monotonic()
        verdict = await self._wait_for_verdict()
        ready = clock.monotonic()
        if self._control is None:
            raise Unavailable("The function's template ended right after load().")
        self._style = verdict["style"]
        self._serving = True
        loaded = max(forked, ready - verdict["load_ms"] / 1000)
        self.opened = Opened(
            kind,
            (
                Span("libs", begin, libraries),
                Span("sandbox", libraries, forked),
                Span("libs", forked, loaded),
                Span("load", loaded, ready),
            ),
        )

    async def _wait_for_verdict(self) -> dict[str, Any]:
        limit = self._revision.spec.limits.load_timeout_s
        try:
            async with asyncio.timeout(limit):
                verdict = await self._verdict
        except TimeoutError:
            raise DeployFailed(
                f"The function did not finish importing and load() within {limit:g} s.",
                remedy="Raise [limits] load_timeout_s in function.toml, or load less.",
            ) from None
        if verdict["kind"] == "refused":
            raise refusal(verdict, self._revision)
        return verdict

    async def fork(self, name: str, events: InstanceEvents) -> InstanceLink:
        if self._control is None or self._closing:
            raise Unavailable("The sandbox is closing.")
        link = InstanceLink(name, events, self._make_pipes(name), tags=self._style == "async")
        try:
            async with asyncio.timeout(_ATTACH_PATIENCE_S):
                await self._bear(link)
                verdict = await asyncio.shield(link.attached)
        except ConnectionError as error:
            link.discard()
            raise Unavailable(f"An instance could not be started: {error}.") from None
        except TimeoutError:
            link.discard()
            raise DeployFailed(f"attach() took more than {_ATTACH_PATIENCE_S:g} s.") from None
        except BaseException:
            link.discard()
            raise
        if verdict["kind"] == "refused":
            link.discard()
            raise refusal(verdict, self._revision)
        return link

    async def _bear(self, link: InstanceLink) -> None:
        """Have the template fork the process, and connect the link to it."""
        assert self._control is not None
        loop = asyncio.get_running_loop()
        birth = self._births[link.name] = _Birth(loop.create_future(), link)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fds = (theirs.fileno(), *(pipe.write_end for pipe in link.pipes))
                await self._control.send(["fork", link.name], fds)
            for pipe in link.pipes:
                pipe.handed_over()
            await birth.forked
        except BaseException:
            ours.close()
            raise
        finally:
            self._births.pop(link.name, None)
        # The transport owns the socket from here on.
        await loop.create_unix_connection(lambda: link, sock=ours)

    async def aclose(self) -> None:
        self._closing = True
        if self._control is not None:
            with contextlib.suppress(ConnectionError):
                await self._control.send(["stop"])
        if self._pid:
            try:
                async with asyncio.timeout(_STOP_PATIENCE_S):
                    await self._gone.wait()
            except TimeoutError:
                self._kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_PATIENCE_S):
                        await self._gone.wait()
        self._release()
        self._on_end(self.name)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _make_pipes(self, instance: str) -> tuple[OutputPipe, ...]:
        def emit(request_id: str, stream: str, line: str) -> None:
            self._output(instance, request_id, stream, line)

        return tuple(
            OutputPipe(stream, emit, budget=self._output_bytes) for stream in ("stdout", "stderr")
        )

    def _on_message(self, packet: list[Any]) -> None:
        try:
            self._handle(packet)
        except (IndexError, KeyError, TypeError, ValueError):
            # The template's socket is open while load() runs: a function can write garbage to it.
            log.warning("template.garbage", sandbox=self.name)
            self._kill()

    def _handle(self, packet: list[Any]) -> None:
        kind = packet[0]
        if kind in ("ready", "refused"):
            if not self._verdict.done():
                self._verdict.set_result({"kind": kind, **packet[1]})
        elif kind == "forked":
            birth = self._births.get(packet[1])
            if birth is not None and not birth.forked.done():
                birth.link.pid = packet[2]
                self._links[packet[2]] = birth.link
                birth.forked.set_result(packet[2])
        elif kind == "failed":
            birth = self._births.get(packet[1])
            if birth is not None and not birth.forked.done():
                birth.forked.set_exception(ConnectionError(str(packet[2])))
        elif kind == "exited":
            link = self._links.pop(packet[1], None)
            if link is not None:
                link.exited(packet[2])
        else:
            raise ValueError(kind)

    def _template_exited(self, status: int) -> None:
        del status
        self._pid = 0
        self._gone.set()
        self._release()

    def _on_closed(self) -> None:
        # The socket ends before the zygote has collected the process; a template that merely
        # closed it is useless too.
        self._kill()
        self._release()

    def _release(self) -> None:
        """The template can do nothing more: end what depended on it. Safe to call twice."""
        if self._control is None:
            return
        control, self._control = self._control, None
        control.close()
        if not self._verdict.done():
            self._verdict.set_exception(
                DeployFailed(
                    "The function's process ended while its code was imported or load() ran.",
                    remedy="See its output; does it call exit, or need more than "
                    "[resources] memory_mb?",
                )
            )
        for birth in self._births.values():
            if not birth.forked.done():
                birth.forked.set_exception(ConnectionError("the template ended"))
        links, self._links = self._links, {}
        for link in links.values():
            link.abandon()
        for pipe in self._pipes:
            pipe.close()
        if self._serving and not self._closing:
            self._died()

    def _kill(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def refusal(verdict: dict[str, Any], revision: Revision) -> FaasdError:
    """The error for a function whose import, load() or attach() raised."""
    where = {"import": "Importing the function's code", "load": "load()", "attach": "attach()"}
    what = where.get(str(verdict.get("phase")), "The function's code")
    message = str(verdict.get("message"))
    detail = f"{what} raised {verdict.get('type')}" + (f": {message}" if message else "") + "."
    trace = str(verdict.get("traceback"))
    if verdict.get("memory"):
        limit = revision.spec.resources.memory_mb
        return DeployFailed(
            f"{what} needed more than [resources] memory_mb = {limit}.",
            remedy=OutOfMemory.default_remedy,
            traceback=trace,
        )
    return DeployFailed(detail, traceback=trace)
