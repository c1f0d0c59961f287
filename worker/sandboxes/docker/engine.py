"""The Docker engine as this project needs it: few calls, typed answers, bounded in time.

aiodocker returns the engine's own dictionaries; they are turned into values here and go no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp

from faasd.errors import BadRequest, DeployFailed, Unavailable

_GONE, _CONFLICT = 404, 409
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
        docker, self._docker = self._docker, None
        if docker is not None:
            await docker.close()

    async def image(self, name: str) -> str:
        """The id of an image. Raises ImageMissing or Unavailable."""
        async with self._asking("looking up an image") as docker:
            try:
                found: dict[str, Any] = await docker.images.inspect(name)
            except aiodocker.DockerError as error:
                if error.status == _GONE:
                    raise ImageMissing(name) from None
                raise
            return str(found["Id"])

    async def run(self, name: str, config: Mapping[str, Any]) -> Container:
        """Create and start a container. Raises ImageMissing or Unavailable; leaves none behind."""
        async with self._asking("creating a container") as docker:
            try:
                created = await docker.containers.create(dict(config), name=name)
            except aiodocker.DockerError as error:
                if error.status == _GONE:
                    raise ImageMissing(str(config["Image"])) from None
                raise
        try:
            async with self._asking("starting a container"):
                await created.start()
                return _container(await created.show())
        except BaseException:
            with contextlib.suppress(Unavailable):
                await asyncio.shield(self.remove(created.id))
            raise

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

    async def remove(self, identity: str) -> None:
        """End and remove a container, with the volumes of its own. Raises Unavailable."""
        async with self._asking("removing a container") as docker:
            try:
                await docker.containers.container(identity).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                # Gone already, or somebody else is at it.
                if error.status not in (_GONE, _CONFLICT):
                    raise

    async def wait(self, identity: str, timeout_s: float) -> int:
        """The exit status of a container once it ended. Raises Unavailable or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            async with self._translating("waiting for a container") as docker:
                ended = await docker.containers.container(identity).wait()
        return int(ended["StatusCode"])

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
