"""Removing everything that a node has made on its engine, and nothing else."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass

from faasd.settings import WorkerSettings
from worker.folder import take
from worker.sandboxes.docker.engine import Engine
from worker.sandboxes.docker.home import find_home


@dataclass(frozen=True, slots=True)
class Purged:
    """What was removed, by name."""

    containers: tuple[str, ...]
    networks: tuple[str, ...]


async def purge(settings: WorkerSettings) -> Purged:
    """Raises BadRequest while the node's worker runs, Unavailable when the engine fails."""
    engine = Engine(timeout_s=settings.docker_timeout_s)
    lock = await asyncio.to_thread(take, settings.data)
    try:
        await engine.open()
        home = await find_home(settings.node_id, settings.data.resolve(), engine)
        mine = {"faasd.home": home.identity}
        containers = await engine.containers(mine)
        await asyncio.gather(*(engine.remove(one.id) for one in containers))
        networks = await engine.remove_networks(mine)
        for name in ("sandboxes", "zygotes"):
            await asyncio.to_thread(shutil.rmtree, settings.data / name, ignore_errors=True)
        return Purged(tuple(sorted(one.name for one in containers)), tuple(sorted(networks)))
    finally:
        await engine.aclose()
        lock.close()
