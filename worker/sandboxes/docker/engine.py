"""The Docker engine as this project needs it: few calls, typed answers, bounded in time.

aiodocker returns the engine's own dictionaries; they are turned into values here and go no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer

from faasd.errors import BadRequest, DeployFailed, FaasdError, Unavailable
from worker.sandboxes.docker.containers import processors

_BAD_REQUEST, _GONE, _CONFLICT = 400, 404, 409
_CONFLICT_PAUSE_S = 0.05
_BROKEN_IMAGE = (
    "Build the image anew (`make images` for the runtimes): it needs what is started in it on "
    "its PATH, python3 and, of a runtime, sleep."
)
_KILLED = 128 + signal.SIGKILL
_LONGEST_PARTIAL = 65_536


class ImageMissing(DeployFailed):
    """The engine has no image of this name, and fetching is the operator's to do."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The image {name} is not on this machine.",
            remedy="Build it (`make images` for the runtimes) or `docker pull` it, "
            "then deploy again.",
        )


@dataclass(frozen=True, slots=True)
class Container:
    """A container as it was when the engine was asked. `pid` is 0 unless it runs."""

    id: str
    name: str
    image: str
    labels: dict[str, str]
    pid: int = 0
    running: bool = False
    exit_code: int = 0
    detail: str = ""
    mounts: tuple[Mount, ...] = ()


def ended_early(container: Container, image: str) -> FaasdError:
    """Why a container that should have stayed did not."""
    told = (
        f"A container of the image {image} ended as soon as it was started, with status "
        f"{container.exit_code}{f': {container.detail}' if container.detail else ''}."
    )
    if container.exit_code == _KILLED:
        return Unavailable(told)
    return DeployFailed(told, remedy=_BROKEN_IMAGE)


@dataclass(frozen=True, slots=True)
class Network:
    """A network as it was when the engine was asked."""

    id: str
    name: str
    driver: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a folder of the machine appears in a container."""

    source: str
    target: str


class Engine:
    """A connection to the engine. Owned by the event loop; `aclose` ends it."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._docker: aiodocker.Docker | None = None
        self._making: set[str] = set()
        self._undoing: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Connect; the engine's version. Raises BadRequest when there is none to be had."""
        try:
            self._docker = aiodocker.Docker()
            async with asyncio.timeout(self._timeout_s):
                version: dict[str, Any] = await self._docker.version()
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, ValueError) as error:
            await self.aclose()
            raise BadRequest(
                f"The Docker engine cannot be reached: {error}.",
                remedy="Start it, name its socket in DOCKER_HOST, or use --runtime process.",
            ) from None
        return str(version["Version"])

    async def aclose(self) -> None:
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=self._timeout_s)
        docker, self._docker = self._docker, None
        if docker is not None:
            await docker.close()

    async def image(self, name: str) -> str:
        """The id of an image. Raises ImageMissing or Unavailable."""
        return str((await self._image(name))["Id"])

    async def volumes(self, name: str) -> list[str]:
        """The folders of which an image wants volumes. Raises ImageMissing or Unavailable."""
        return sorted((await self._image(name))["Config"].get("Volumes") or ())

    async def _image(self, name: str) -> dict[str, Any]:
        async with self._asking("looking up an image") as docker:
            try:
                found: dict[str, Any] = await docker.images.inspect(name)
            except aiodocker.DockerError as error:
                if error.status == _GONE:
                    raise ImageMissing(name) from None
                raise
            return found

    async def run(self, name: str, config: Mapping[str, Any]) -> Container:
        """Create and start a container. Raises ImageMissing, DeployFailed or Unavailable.

        One that cannot be started, or whose caller was cancelled, is removed. What an engine that
        did not answer makes of the request later is for the caller to find, by its labels.
        """
        making = asyncio.get_running_loop().create_task(self._run(name, config))
        try:
            # Half a request sent is a container that nobody knows.
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            undoing = asyncio.get_running_loop().create_task(self._undo(making))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise

    def is_making(self, name: str) -> bool:
        """Whether a container of this name is on its way."""
        return name in self._making

    async def _run(self, name: str, config: Mapping[str, Any]) -> Container:
        self._making.add(name)
        try:
            async with self._asking("creating a container") as docker:
                try:
                    created = await docker.containers.create(dict(config), name=name)
                except aiodocker.DockerError as error:
                    if error.status == _GONE:
                        raise ImageMissing(str(config["Image"])) from None
                    raise
            try:
                return await self._started(created, str(config["Image"]))
            except BaseException:
                with contextlib.suppress(Unavailable):
                    await self.remove(created.id)
                raise
        finally:
            self._making.discard(name)

    async def _started(self, created: DockerContainer, image: str) -> Container:
        async with self._asking("starting a container"):
            try:
                await created.start()
            except aiodocker.DockerError as error:
                if error.status in (_BAD_REQUEST, _GONE):
                    raise DeployFailed(
                        f"A container of the image {image} cannot be started: {error.message}.",
                        remedy=_BROKEN_IMAGE,
                    ) from None
                raise
            return _container(await created.show())

    async def _undo(self, making: asyncio.Task[Container]) -> None:
        with contextlib.suppress(FaasdError):
            await self.remove((await making).id)

    async def inspect(self, identity: str) -> Container | None:
        """A container, or None when there is none of this id or name. Raises Unavailable."""
        async with self._asking("inspecting a container") as docker:
            try:
                found = await docker.containers.get(identity)
            except aiodocker.DockerError as error:
                if error.status == _GONE:
                    return None
                raise
            return _container(found._container)  # noqa: SLF001

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """Every container with these labels, ended ones too. Raises Unavailable."""
        filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
        async with self._asking("listing containers") as docker:
            listed = await docker.containers.list(all=True, filters=json.dumps(filters))
        found = [await self.inspect(one.id) for one in listed]
        return [one for one in found if one is not None]

    async def update(self, identity: str, *, memory_mb: int, cpus: float, pids: int) -> None:
        """Set the limits of a running container. Raises Unavailable."""
        limits = {
            "Memory": memory_mb << 20,
            "MemorySwap": memory_mb << 20,
            "PidsLimit": pids,
            **processors(cpus),
        }
        async with self._asking("updating a container") as docker:
            # aiodocker has no call of its own for this one.
            await docker._query_json(  # noqa: SLF001
                f"containers/{identity}/update",
                method="POST",
                data=json.dumps(limits),
                headers={"content-type": "application/json"},
            )

    async def remove(self, identity: str) -> None:
        """End and remove a container, with the volumes of its own. Raises Unavailable."""
        async with self._asking("removing a container") as docker:
            while True:
                try:
                    await docker.containers.container(identity).delete(force=True, v=True)
                except aiodocker.DockerError as error:
                    if error.status == _GONE:
                        return
                    if error.status != _CONFLICT:
                        raise
                    # Somebody else is at it; its name is free once it is gone.
                    await asyncio.sleep(_CONFLICT_PAUSE_S)
                else:
                    return

    async def wait(self, identity: str, timeout_s: float) -> int:
        """The exit status of a container once it ended. Raises Unavailable or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            async with self._translating("waiting for a container") as docker:
                ended = await docker.containers.container(identity).wait()
        return int(ended["StatusCode"])

    async def network(self, name: str) -> Network | None:
        """A network, or None when there is none of this name. Raises Unavailable."""
        async with self._asking("inspecting a network") as docker:
            # Asked for one, the engine would also take the beginning of an id for its name.
            listed = await docker.networks.list(filters={"name": [name]})
        found = (_network(raw) for raw in listed)
        return next((one for one in found if one.name == name), None)

    async def create_network(self, config: Mapping[str, Any]) -> None:
        """Create a network, unless there is one of its name. Raises Unavailable."""
        async with self._asking("creating a network") as docker:
            try:
                await docker.networks.create({**config, "CheckDuplicate": True})
            except aiodocker.DockerError as error:
                if error.status != _CONFLICT:
                    raise

    async def networks(self, labels: Mapping[str, str]) -> list[Network]:
        """Every network with these labels. Raises Unavailable."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        async with self._asking("listing networks") as docker:
            return [_network(raw) for raw in await docker.networks.list(filters={"label": wanted})]

    async def remove_network(self, identity: str) -> None:
        """Remove a network that no container is in. Raises Unavailable."""
        async with self._asking("removing a network") as docker:
            try:
                await (await docker.networks.get(identity)).delete()
            except aiodocker.DockerError as error:
                if error.status != _GONE:
                    raise

    async def remove_networks(self, labels: Mapping[str, str]) -> list[str]:
        """Remove every network with these labels; their names. Raises Unavailable."""
        found = await self.networks(labels)
        for one in found:
            await self.remove_network(one.id)
        return [one.name for one in found]

    async def output(self, identity: str, lines: int = 200) -> str:
        """What a container has printed last. Raises Unavailable."""
        async with self._asking("reading a container's output") as docker:
            container = docker.containers.container(identity)
            printed = await container.log(stdout=True, stderr=True, tail=lines)
        return "".join(printed)

    async def lines(self, identity: str) -> AsyncIterator[tuple[str, str]]:
        """What a container prints from now on, as (stream, line). Raises Unavailable."""
        async with self._translating("following a container's output") as docker:
            container = docker.containers.container(identity)
            partial = ""
            async for text in container.log(stdout=True, stderr=True, follow=True):
                *whole, partial = (partial + text).split("\n")
                for line in whole:
                    yield "stdout", line
                if len(partial) > _LONGEST_PARTIAL:
                    yield "stdout", partial
                    partial = ""

    @contextlib.asynccontextmanager
    async def _asking(self, what: str) -> AsyncIterator[aiodocker.Docker]:
        try:
            async with asyncio.timeout(self._timeout_s), self._translating(what) as docker:
                yield docker
        except TimeoutError:
            raise Unavailable(
                f"The Docker engine did not answer within {self._timeout_s:g} s ({what})."
            ) from None

    @contextlib.asynccontextmanager
    async def _translating(self, what: str) -> AsyncIterator[aiodocker.Docker]:
        if self._docker is None:
            raise Unavailable("The worker is shutting down.")
        try:
            yield self._docker
        except aiodocker.DockerError as error:
            raise Unavailable(f"The Docker engine refused {what}: {error.message}.") from None
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Unavailable(f"The Docker engine cannot be reached ({what}: {error}).") from None


def _container(raw: Mapping[str, Any]) -> Container:
    state = raw["State"]
    return Container(
        id=raw["Id"],
        name=raw["Name"].lstrip("/"),
        image=raw["Image"],
        labels=dict(raw["Config"]["Labels"] or {}),
        pid=int(state["Pid"]),
        running=bool(state["Running"]) and not state.get("Paused"),
        exit_code=int(state["ExitCode"]),
        detail=str(state.get("Error") or ""),
        mounts=tuple(Mount(one["Source"], one["Destination"]) for one in raw.get("Mounts") or ()),
    )


def _network(raw: Mapping[str, Any]) -> Network:
    return Network(
        id=raw["Id"], name=raw["Name"], driver=raw["Driver"], labels=dict(raw["Labels"] or {})
    )
