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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faasd.errors import DeployFailed, FaasdError, OutOfMemory, Unavailable
from faasd.invocation import Revision
from faasd.telemetry import get_logger
from worker import processes
from worker.control import ControlSocket, control_pair
from worker.instance import InstanceLink
from worker.output import LONGEST_LINE
from worker.sandbox import InstanceEvents, Output, Placed
from worker.sandboxes.docker import containers
from worker.sandboxes.docker.cgroup import Cgroup, Limits
from worker.sandboxes.docker.engine import Container
from worker.sandboxes.docker.zygotes import ZygoteServer
from worker.sandboxes.template import TemplateSandbox, template_config
from worker.zygote import QUIET

log = get_logger("worker.sandbox")

_SETTLE_S = 0.2
_FULL = 0.75


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
        self._on_end = ended
        self._cgroup: Cgroup | None = None
        self._kills = 0
        self._following: asyncio.Task[None] | None = None

    def follow(self, lines: AsyncIterator[tuple[str, str]]) -> None:
        """Take what the container's own program prints, (stream, line), as the function's."""
        self._following = asyncio.get_running_loop().create_task(self._follow(lines))

    async def _follow(self, lines: AsyncIterator[tuple[str, str]]) -> None:
        with contextlib.suppress(FaasdError):
            async for stream, line in lines:
                self._output("program", "", stream, line[:LONGEST_LINE])

    async def _launch(self, fds: tuple[int, int, int]) -> int:
        await asyncio.to_thread(self._furnish)
        self._take_hold()
        return await self._zygote.join(self.name, self._request(self._files.mounts), fds)

    def _take_hold(self) -> None:
        """Find the container's cgroup and set its limits. Raises Unavailable."""
        try:
            self._cgroup = Cgroup(self.container.pid)
        except OSError as error:
            raise Unavailable(f"The sandbox ended before it was used: {error}.") from None
        self._limit(instances=0)

    def _request(self, mounts: tuple[tuple[str, str], ...], **more: Any) -> dict[str, Any]:
        """What the zygote server is asked for."""
        return {
            "pid": self.container.pid,
            "container": self.container.id,
            "mounts": [*mounts, (str(self._folder), containers.SANDBOX)],
            "user": containers.user_of(self.revision.function),
            "tmp_mb": self.revision.spec.resources.tmp_mb,
            "network": self._network,
            "folder": containers.SANDBOX,
            **more,
        }

    def _furnish(self) -> None:
        """Write the template's configuration."""
        self._folder.mkdir(mode=0o755, exist_ok=True)
        config = template_config(
            self.revision, self._files.inside, base_env=dict(QUIET), tmp="/tmp"
        )
        place = self._folder / "sandbox.json"
        place.write_text(json.dumps(config))
        place.chmod(0o644)

    async def fork(self, name: str, events: InstanceEvents) -> InstanceLink:
        self._limit(instances=len(self._links) + len(self._births) + 1)
        return await super().fork(name, events)

    def _limit(self, *, instances: int) -> None:
        """Room for the template and so many instances."""
        if self._cgroup is None:
            return
        wanted = self.revision.spec.resources
        try:
            self._cgroup.limit(
                Limits(
                    memory_mb=wanted.memory_mb * (1 + instances),
                    cpus=wanted.cpus * max(1, instances),
                    pids=wanted.pids,
                )
            )
        except OSError as error:
            # A lower limit than what is in use is refused; it comes with the next change.
            log.debug("sandbox.limit_refused", sandbox=self.name, error=str(error))

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
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        self._on_end(self)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


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
                self.name,
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
