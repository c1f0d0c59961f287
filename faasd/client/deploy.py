"""One deploy: packs the folder, uploads the artifacts the controller lacks, then sends the function."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from faasd.client import bodies
from faasd.client.answers import Function, Progress, read
from faasd.client.items import Events, json_object, problem_of
from faasd.client.transport import Transport, segment
from faasd.errors import FaasdError, Forbidden, Unauthorized, Unavailable
from faasd.packing import Artifact, Package, pack

OnProgress = Callable[[Progress], None]
_CHUNK = 1024 * 1024
_MB = 1024 * 1024


async def deploy(
    transport: Transport,
    folder: Path,
    on_progress: OnProgress,
    *,
    name: str | None,
    settings: Mapping[str, Any] | None,
) -> Function:
    """The function as the controller has it once it serves. Raises what the controller refuses."""
    on_progress(Progress("pack", str(folder)))
    package = await asyncio.to_thread(pack, folder, name=name, settings=settings)
    for artifact in package.artifacts:
        await _upload(transport, artifact, on_progress)
    on_progress(Progress("send", f"{_size(len(package.code))} of code"))
    return await _put(transport, package, on_progress)


async def _upload(transport: Transport, artifact: Artifact, on_progress: OnProgress) -> None:
    path = f"/v1/artifacts/{artifact.sha256}"
    async with transport.request("HEAD", path) as response:
        if response.status == 200:
            on_progress(Progress("upload", f"{artifact.name} is there already"))
            return
        if response.status in {401, 403}:
            raise _refusal(response.status)
    async with transport.request(
        "PUT",
        path,
        data=_chunks(artifact, on_progress),
        headers={"Content-Length": str(artifact.size), "Content-Type": bodies.BYTES},
    ) as response:
        if not response.ok:
            raise transport.foreign(response)


async def _chunks(artifact: Artifact, on_progress: OnProgress) -> AsyncIterator[bytes]:
    """The file's content, telling of each tenth; reading never blocks the loop."""
    done, told = 0, -1
    with artifact.path.open("rb") as file:
        while done < artifact.size:
            if (tenth := 10 * done // artifact.size) > told:
                told = tenth
                on_progress(Progress("upload", _share(artifact, done)))
            chunk = await asyncio.to_thread(file.read, min(_CHUNK, artifact.size - done))
            if not chunk:
                raise Unavailable(
                    f"'{artifact.path}' shrank while it was sent.",
                    remedy="Deploy again when it is at rest.",
                )
            done += len(chunk)
            yield chunk


def _share(artifact: Artifact, done: int) -> str:
    return f"{artifact.name}: {_size(done)} of {_size(artifact.size)}"


def _size(count: int) -> str:
    return f"{count / _MB:.1f} MB" if count >= _MB else f"{count / 1024:.1f} kB"


def _refusal(status: int) -> FaasdError:
    # The answer to HEAD has no body that could say more.
    if status == 401:
        return Unauthorized("The controller does not know this key, or wants one.")
    return Forbidden("This key may not deploy.")


async def _put(transport: Transport, package: Package, on_progress: OnProgress) -> Function:
    form = aiohttp.FormData()
    form.add_field("spec", package.spec_json(), content_type=bodies.JSON)
    form.add_field("code", package.code, filename="code.tar.gz", content_type="application/gzip")
    form.add_field("artifacts", json.dumps(package.digests()), content_type=bodies.JSON)
    path = f"/v1/functions/{segment(package.spec.name)}"
    async with transport.request(
        "PUT", path, data=form, headers={"Accept": bodies.EVENTS}
    ) as response:
        if response.content_type == bodies.EVENTS:
            return await _follow(response, on_progress)
        return read(Function, await transport.object_of(response))


async def _follow(response: aiohttp.ClientResponse, on_progress: OnProgress) -> Function:
    events = Events()
    async for chunk in response.content.iter_any():
        for event in events.feed(chunk):
            if event.name == "progress":
                on_progress(read(Progress, json_object(event.data)))
            elif event.name == "result":
                return read(Function, json_object(event.data))
            elif event.name == "error":
                raise problem_of(event)
    raise Unavailable(
        "The controller went away before the deploy was done.",
        remedy="See `faasd ls`; the same content may be deployed again without harm.",
    )
