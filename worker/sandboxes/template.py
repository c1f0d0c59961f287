"""A template and its instances, wherever they run: what all kinds of sandboxes share.

What differs between kinds is how the template comes to be, what its instances are called outside
of it, and what is left to do at the end.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed, FaasdError, OutOfMemory, Unavailable
from faasd.invocation import Revision, StartKind
from faasd.telemetry import get_logger
from worker.control import ControlSocket, control_pair
from worker.instance import MAX_FRAME, InstanceLink
from worker.output import OutputPipe
from worker.sandbox import Instance, InstanceEvents, Opened, Output, Placed, Span

log = get_logger("worker.sandbox")

_ATTACH_PATIENCE_S = 120.0


@dataclass(slots=True)
class _Birth:
    """An instance asked for and not yet forked."""

    forked: asyncio.Future[int]
    link: InstanceLink = field(repr=False)


class TemplateSandbox(abc.ABC):
    """A template and its instances. Owned by the event loop."""

    def __init__(
        self,
        *,
        name: str,
        revision: Revision,
        died: Callable[[], None],
        output: Output,
        output_bytes: int,
    ) -> None:
        self.name = name
        self.opened = Opened(StartKind.COLD, ())
        self.devices: tuple[str, ...] | None = None
        self.revision = revision
        self._died = died
        self._output = output
        self._output_bytes = output_bytes
        self._control: ControlSocket | None = None
        self._pipes: tuple[OutputPipe, ...] = ()
        self._pid = 0
        self._pidfd = -1
        self._verdict: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._verdict.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._births: dict[str, _Birth] = {}
        self._links: dict[int, InstanceLink] = {}
        self._style = "sync"
        self._closing = False
        self._serving = False

    @property
    def serial(self) -> bool:
        return self._style == "sync"

    def pids(self) -> list[int]:
        return [self._pid] if self._pid else []

    def instances(self) -> dict[str, Instance]:
        return {link.name: link for link in self._links.values()}

    @abc.abstractmethod
    async def _launch(self, fds: tuple[int, int, int]) -> int:
        """Bring the template to life with control socket, stdout, stderr: its process id."""

    @abc.abstractmethod
    async def _clear(self) -> None:
        """End what is left of the sandbox and remove it. Called once, after `stop` was said."""

    def _outside(self, reported: int) -> int:
        """The process id, as this process sees it, of a child that the template reports."""
        return reported

    def _why(self, status: int | None) -> FaasdError | None:
        """What an instance, or the template, died of, where that is known better than its status."""
        del status
        return None

    async def start(self, kind: StartKind, begin: float, libraries: float) -> None:
        """Start the template and wait for its load(). Raises DeployFailed or Unavailable."""
        ours, theirs = control_pair()
        self._pipes = self._make_pipes("template")
        try:
            self._control = ControlSocket(ours, message=self._on_message, closed=self._on_closed)
            stdout, stderr = self._pipes
            fds = (theirs.fileno(), stdout.write_end, stderr.write_end)
            self._pid = await self._launch(fds)
            # A number may come to mean another process; this never does.
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(self._pid)
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
        limit = self.revision.spec.limits.load_timeout_s
        try:
            async with asyncio.timeout(limit):
                verdict = await self._verdict
        except TimeoutError:
            raise DeployFailed(
                f"The function did not finish importing and load() within {limit:g} s.",
                remedy="Raise [limits] load_timeout_s in function.toml, or load less.",
            ) from None
        if verdict["kind"] == "refused":
            raise refusal(verdict, self.revision)
        return verdict

    async def fork(
        self, name: str, events: InstanceEvents, env: Mapping[str, str] | None = None
    ) -> InstanceLink:
        if self._control is None or self._closing:
            raise Unavailable("The sandbox is closing.")
        link = InstanceLink(
            name,
            events,
            self._make_pipes(name),
            tags=self._style == "async",
            # Nobody can return more than they may hold.
            largest=min(MAX_FRAME, self.revision.spec.resources.memory_mb << 20),
        )
        try:
            async with asyncio.timeout(_ATTACH_PATIENCE_S):
                await self._bear(link, env)
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
            raise refusal(verdict, self.revision)
        return link

    async def _bear(self, link: InstanceLink, env: Mapping[str, str] | None) -> None:
        """Have the template fork the process, and connect the link to it."""
        assert self._control is not None
        loop = asyncio.get_running_loop()
        birth = self._births[link.name] = _Birth(loop.create_future(), link)
        ours, theirs = socket.socketpair()
        try:
            with theirs, select.epoll() as watch:
                for pipe in link.pipes:
                    watch.register(pipe.read_end, select.EPOLLIN)
                ends = (pipe.write_end for pipe in link.pipes)
                fds = (theirs.fileno(), *ends, watch.fileno())
                await self._control.send(["fork", link.name, *([dict(env)] if env else ())], fds)
            for pipe in link.pipes:
                pipe.handed_over()
            await birth.forked
        except BaseException:
            ours.close()
            raise
        finally:
            self._births.pop(link.name, None)
        link.connect(ours)

    async def aclose(self) -> None:
        """End every process of it and remove it. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self._control is not None:
            with contextlib.suppress(ConnectionError):
                await self._control.send(["stop"])
        await self._clear()
        self._release()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

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
                birth.link.born(self._outside(packet[2]))
                self._links[packet[2]] = birth.link
                birth.forked.set_result(packet[2])
        elif kind == "failed":
            birth = self._births.get(packet[1])
            if birth is not None and not birth.forked.done():
                birth.forked.set_exception(ConnectionError(str(packet[2])))
        elif kind == "exited":
            link = self._links.pop(packet[1], None)
            if link is not None:
                link.exited(packet[2], self._why(packet[2]))
        elif kind == "unjoined" and not self._verdict.done():
            self._verdict.set_exception(
                Unavailable(f"The node could not start a process in the sandbox: {packet[1]}.")
            )
        else:
            raise ValueError(kind)

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
                self._why(None)
                or DeployFailed(
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
            link.abandon(self._why(None))
        for pipe in self._pipes:
            pipe.close()
        if self._serving and not self._closing:
            self._died()

    def _kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


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


def template_config(
    revision: Revision, placed: Placed, *, base_env: dict[str, str], tmp: str
) -> dict[str, Any]:
    """What a template reads from sandbox.json; the paths are those it will see."""
    spec = revision.spec
    return {
        "function": revision.function,
        "revision": revision.id,
        "contract": spec.contract,
        "handler": spec.handler,
        "load": spec.load,
        "code": placed.code,
        "path": placed.path,
        "artifacts": placed.artifacts,
        "env": spec.env,
        "base_env": base_env,
        "cpus": spec.resources.cpus,
        "gpus": spec.resources.gpus,
        "memory_mb": spec.resources.memory_mb,
        "concurrency": spec.limits.concurrency,
        "batch": spec.batching.max_size,
        "timeout_s": spec.limits.timeout_s,
        "load_timeout_s": spec.limits.load_timeout_s,
        "http": spec.http.model_dump(),
        "tmp": tmp,
    }


def no_runtime(name: str, known: Iterable[str]) -> DeployFailed:
    return DeployFailed(
        f"There is no runtime {name!r}; this worker has {', '.join(known)}.",
        remedy='Name one of these in function.toml: runtime = "...".',
    )
