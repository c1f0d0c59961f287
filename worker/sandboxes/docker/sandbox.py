"""A sandbox in a container: its limits, what its processes died of, its end.

Kinds by where the template comes from: forked into the container by the runtime's zygote server,
which also puts the relay beside a program of the container's own; or forked by a zygote inside, in
an image that this project did not build.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faasd.errors import DeployFailed, FaasdError, OutOfMemory, Unavailable
from faasd.invocation import Revision, StartKind
from faasd.telemetry import get_logger
from worker import processes
from worker.control import ControlSocket, control_pair
from worker.gpus.ledger import Grant
from worker.instance import InstanceLink
from worker.output import LONGEST_LINE
from worker.sandbox import InstanceEvents, Output, Placed
from worker.sandboxes.docker import containers
from worker.sandboxes.docker.bare import alive
from worker.sandboxes.docker.cgroup import Cgroup, Limits
from worker.sandboxes.docker.engine import Container
from worker.sandboxes.docker.zygotes import ZygoteServer
from worker.sandboxes.template import TemplateSandbox, template_config
from worker.zygote import QUIET

log = get_logger("worker.sandbox")

_SETTLE_S = 0.2
_FULL = 0.75
# What of a sandbox's folder is mounted in it.
_SHOWN = "shown"
_UNCLEAN_TICKS = 3


@dataclass(frozen=True, slots=True)
class Files:
    """A revision's files: which folder belongs where in a sandbox."""

    mounts: tuple[tuple[str, str], ...]
    inside: Placed

    @classmethod
    def of(cls, placed: Placed) -> Files:
        layers = {path: f"{containers.LAYERS}/{n}" for n, path in enumerate(placed.path)}
        mounts = [(placed.code, containers.CODE), *layers.items()]
        artifacts = {}
        for name, path in placed.artifacts.items():
            mounts.append((str(Path(path).parent), f"{containers.ARTIFACTS}/{name}"))
            artifacts[name] = f"{containers.ARTIFACTS}/{name}/{Path(path).name}"
        inside = Placed(code=containers.CODE, path=list(layers.values()), artifacts=artifacts)
        return cls(tuple(mounts), inside)


class ContainerSandbox(TemplateSandbox):
    """A container with a template and its instances. Owned by the event loop."""

    def __init__(
        self,
        *,
        name: str,
        revision: Revision,
        died: Callable[[], None],
        output: Output,
        output_bytes: int,
        zygote: ZygoteServer,
        container: Container,
        files: Files,
        folder: Path,
        network: str,
        grant: Grant | None,
        ended: Callable[[ContainerSandbox], None],
    ) -> None:
        """`folder` is this sandbox's own on the node; `network` "none", "internet" or "named"."""
        super().__init__(
            name=name, revision=revision, died=died, output=output, output_bytes=output_bytes
        )
        self.container = container
        self._zygote = zygote
        self._files = files
        self._folder = folder
        self._network = network
        self._environment = grant.env if grant is not None else {}
        self.devices = grant.devices if grant is not None else None
        self._on_end = ended
        self.limits: Limits | None = None
        self.told: Limits | None = None
        self._cgroup: Cgroup | None = None
        self._kills = 0
        self._unclean = 0
        self._helpers: set[int] = set()

    @property
    def containers(self) -> tuple[Container, ...]:
        """All that is its own."""
        return (self.container,)

    async def start(self, kind: StartKind, begin: float, libraries: float) -> None:
        await super().start(kind, begin, libraries)
        if self._cgroup is not None:
            # What import and load() started is the function's own, and stays.
            self._helpers = processes.children_of(self._pid, self._cgroup.pids())

    async def _launch(self, fds: tuple[int, int, int]) -> int:
        await asyncio.to_thread(self._furnish)
        self._take_hold()
        request = self._request(self._files.mounts)
        return await self._zygote.join(self._folder.name, request, fds)

    def _take_hold(self) -> None:
        """Find the container's cgroup and set its limits. Raises Unavailable."""
        try:
            self._cgroup = Cgroup(self.container.pid)
        except OSError as error:
            raise Unavailable(f"The sandbox ended before it was used: {error}.") from None
        refusal = self._limit(instances=0)
        if refusal is not None:
            raise Unavailable(f"The sandbox's limits could not be set: {refusal}.")

    def _request(self, mounts: tuple[tuple[str, str], ...], **more: Any) -> dict[str, Any]:
        """What the zygote server is asked for, in words that say nothing of the function.

        They stay in its memory, and hence in that of the next function's template.
        """
        aliases = []
        for number, (source, place) in enumerate(mounts):
            alias = self._folder / str(number)
            alias.symlink_to(source)
            aliases.append((str(alias), place))
        return {
            "pid": self.container.pid,
            "container": self.container.id,
            "mounts": [*aliases, (str(self._folder / _SHOWN), containers.SANDBOX)],
            "user": containers.user_of(self.revision.function),
            "tmp_mb": self.revision.spec.resources.tmp_mb,
            "network": self._network,
            "folder": containers.SANDBOX,
            **more,
        }

    def _furnish(self) -> None:
        """Write the template's configuration."""
        shown = self._folder / _SHOWN
        shown.mkdir(mode=0o755, parents=True)
        config = template_config(
            self.revision,
            self._files.inside,
            base_env=QUIET | self._environment,
            tmp="/tmp",
        )
        place = shown / "sandbox.json"
        place.write_text(json.dumps(config))
        place.chmod(0o644)

    async def fork(
        self, name: str, events: InstanceEvents, env: Mapping[str, str] | None = None
    ) -> InstanceLink:
        self._limit(instances=len(self._links) + len(self._births) + 1)
        return await super().fork(name, events, env)

    def _limit(self, *, instances: int) -> OSError | None:
        """Room for the template and so many instances; what the kernel had against it."""
        if self._cgroup is None:
            return None
        wanted = self.revision.spec.resources
        limits = Limits(
            memory_mb=wanted.memory_mb * (1 + instances),
            cpus=wanted.cpus * max(1, instances),
            pids=wanted.pids,
        )
        try:
            self._cgroup.limit(limits)
            self.limits = limits
        except OSError as error:
            # A lower limit than what is in use is refused; it comes with the next change.
            log.debug("sandbox.limit_refused", sandbox=self.name, error=str(error))
            return error
        return None

    def weigh(self) -> None:
        """Its part of contended processors is that of the instances it has now."""
        if self._cgroup is not None:
            instances = len(self._links) + len(self._births)
            with contextlib.suppress(OSError):
                self._cgroup.weigh(self.revision.spec.resources.cpus * max(1, instances))

    def _outside(self, reported: int) -> int:
        """The process that has the number `reported` inside."""
        pids = self._cgroup.pids() if self._cgroup is not None else []
        return processes.known_as(pids, reported)

    def _why(self, status: int | None) -> FaasdError | None:
        del status
        if self._cgroup is None:
            return None
        kills = self._cgroup.memory_kills()
        if kills <= self._kills:
            return None
        self._kills = kills
        error = self._out_of_memory(self._cgroup)
        asyncio.get_running_loop().call_later(_SETTLE_S, self._renew_if_full)
        return error

    def tend(self) -> None:
        """End a sandbox that its template cannot keep clean; called now and then.

        What an ended instance left behind becomes the template's child, and is killed by it; a fork
        bomb breeds faster than one process can kill.
        """
        if self._cgroup is None or not self._pid:
            return
        known = {link.pid for link in self._links.values()}
        left = processes.children_of(self._pid, self._cgroup.pids()) - known - self._helpers
        if self._births or not left:
            self._unclean = 0
            return
        self._unclean += 1
        if self._unclean >= _UNCLEAN_TICKS:
            log.warning("sandbox.overrun", sandbox=self.name, processes=len(left))
            self._kill()

    def _out_of_memory(self, cgroup: Cgroup) -> OutOfMemory:
        with contextlib.suppress(OSError):
            limit, peak = cgroup.memory_limit_mb(), cgroup.memory_peak_mb()
            return OutOfMemory(
                f"The function ran out of memory: limit {limit:.0f} MB for its template and "
                f"instances together ([resources] memory_mb = "
                f"{self.revision.spec.resources.memory_mb} each), peak {peak:.0f} MB."
            )
        return OutOfMemory("The function ran out of memory.")

    def _renew_if_full(self) -> None:
        """What a function left in /tmp counts as its memory: with a full one nothing runs again."""
        if self._cgroup is None:
            return
        with contextlib.suppress(OSError):
            if self._cgroup.memory_used_mb() > _FULL * self._cgroup.memory_limit_mb():
                log.warning("sandbox.full", sandbox=self.name)
                self._kill()

    async def _clear(self) -> None:
        # Its memory is free at once, even when the engine does not answer.
        self._kill()
        self._on_end(self)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


class ProgramSandbox(ContainerSandbox):
    """A program of its own serves invocations, in a second container; the relay is in the first.

    They share the network, and nothing else. The relay is there first: a program may look for the
    Lambda Runtime API once and never again.
    """

    def __init__(
        self,
        *,
        begin: Callable[[Container], Awaitable[Container]],
        lines: Callable[[str], AsyncIterator[tuple[str, str]]],
        **more: Any,
    ) -> None:
        """`begin` starts the program in the network of a container; `lines` is what it prints."""
        super().__init__(**more)
        self._begin = begin
        self._lines = lines
        self._program_cgroup: Cgroup | None = None
        self._following: asyncio.Task[None] | None = None
        self.program: Container | None = None

    @property
    def containers(self) -> tuple[Container, ...]:
        return (self.container, *([self.program] if self.program else []))

    def pids(self) -> list[int]:
        program = self._program_cgroup.pids() if self._program_cgroup is not None else []
        return [*super().pids(), *program]

    async def _launch(self, fds: tuple[int, int, int]) -> int:
        pid = await super()._launch(fds)
        self.program = await self._begin(self.container)
        with contextlib.suppress(OSError):
            self._program_cgroup = Cgroup(self.program.pid)
            # As for every other container, whatever the engine made of its shares.
            self._program_cgroup.weigh(self.revision.spec.resources.cpus)
        lines = self._follow(self._lines(self.program.id))
        self._following = asyncio.get_running_loop().create_task(lines)
        return pid

    async def _follow(self, lines: AsyncIterator[tuple[str, str]]) -> None:
        """Take what the program prints, (stream, line), as the function's."""
        with contextlib.suppress(FaasdError):
            async for stream, line in lines:
                self._output("program", "", stream, line[:LONGEST_LINE])

    def _why(self, status: int | None) -> FaasdError | None:
        program = self._program_cgroup
        if program is not None and program.memory_kills() > 0:
            return self._out_of_memory(program)
        return super()._why(status)

    def tend(self) -> None:
        super().tend()
        if self.program is not None and not alive(self.program):
            log.warning("program.ended", sandbox=self.name)
            self._kill()

    async def _clear(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await super()._clear()


class InnerSandbox(ContainerSandbox):
    """In an image of the user's: a zygote of that Python, started inside, forks the template."""

    def __init__(self, *, runtime: Path, **more: Any) -> None:
        """`runtime` is the node's copy of the runtime's code; the rest as for any container."""
        super().__init__(**more)
        self._runtime = runtime
        self._inner: ControlSocket | None = None
        self._answers: asyncio.Queue[list[Any] | None] = asyncio.Queue()

    async def _launch(self, fds: tuple[int, int, int]) -> int:
        await asyncio.to_thread(self._furnish)
        self._take_hold()
        ours, theirs = control_pair()
        mounts = (*self._files.mounts, (str(self._runtime), containers.RUNTIME))
        command = ["python3", "-I", "-X", "faulthandler", containers.RUNTIME, "3"]
        with theirs:
            self._inner = ControlSocket(
                ours,
                message=self._answers.put_nowait,
                closed=lambda: self._answers.put_nowait(None),
            )
            await self._zygote.join(
                self._folder.name,
                self._request(mounts, exec=command, environment=dict(QUIET)),
                (theirs.fileno(), *fds[1:]),
            )
        await self._inner.send(["preload", []])
        await self._expect("ready")
        await self._inner.send(["fork", self.name, containers.SANDBOX], fds)
        forked = await self._expect("forked")
        return self._outside(forked[2])

    async def _expect(self, kind: str) -> list[Any]:
        """The inner zygote's next answer. Raises DeployFailed."""
        answer = await self._answers.get()
        if answer is not None and answer[0] == kind:
            return answer
        told = str(answer[-1]) if answer is not None else "it ended"
        raise DeployFailed(
            f"Python of the image {self.revision.spec.image} could not be started: {told}.",
            remedy="The image needs python3 3.9 or newer on its PATH; for anything else use "
            'contract = "http".',
        )

    async def _clear(self) -> None:
        if self._inner is not None:
            self._inner.close()
        await super()._clear()
