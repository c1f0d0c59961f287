"""Networks of functions: the node's own way to the internet, and networks that operators name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from faasd.errors import DeployFailed, Unavailable
from faasd.telemetry import get_logger
from worker.sandboxes.docker.engine import Container, Engine
from worker.sandboxes.docker.home import Home
from worker.sandboxes.docker.zygotes import ZygoteServer

log = get_logger("worker.networks")

_OWN = ("none", "internet")
# The machine's own network stack, and no network at all.
_NOT_NETWORKS = ("host", "null")


def kind(name: str) -> str:
    """What a zygote server is told of a network: "none", "internet" or "named"."""
    return name if name in _OWN else "named"


class Networks:
    """What functions of this node may be connected to. Owned by the event loop."""

    def __init__(self, engine: Engine, allowed: Sequence[str]) -> None:
        self._engine = engine
        self._allowed = tuple(allowed)
        # The engine may make two networks of one name when it is asked for them at once.
        self._making = asyncio.Lock()

    async def check(self, name: str) -> None:
        """Raises DeployFailed when functions may not use this network, or Unavailable."""
        if name in _OWN:
            return
        if name not in self._allowed:
            accepted = ", ".join(repr(one) for one in (*_OWN, *self._allowed))
            raise DeployFailed(
                f"Functions may not use the network {name!r}; this worker allows {accepted}.",
                remedy="Name one of these in function.toml, or add the network to the worker's "
                "FAASD_WORKER_ALLOWED_NETWORKS.",
            )
        found = await self._engine.network(name)
        if found is None:
            raise DeployFailed(
                f"There is no network {name!r} on this worker's Docker engine.",
                remedy=f"Create it on every worker: `docker network create {name}`.",
            )
        if found.driver in _NOT_NETWORKS:
            raise DeployFailed(
                f"The network {name!r} is the machine's own and not for functions.",
                remedy="Create one for them with `docker network create`.",
            )

    async def ensure(self, home: Home, name: str) -> str:
        """The engine's name of a function's network, which is there. Raises FaasdError."""
        await self.check(name)
        if name != "internet":
            return name
        config = internet_config(home)
        async with self._making:
            if await self._engine.network(config["Name"]) is None:
                await self._engine.create_network(config)
                log.info("network.created", network=config["Name"])
        return str(config["Name"])

    async def remove(self, home: Home) -> None:
        """Remove what `ensure` made, if the engine lets it: containers must be gone before."""
        try:
            await self._engine.remove_networks({"faasd.home": home.identity})
        except Unavailable as error:
            log.warning("network.left_behind", detail=error.detail)


def internet_config(home: Home) -> dict[str, Any]:
    """A network of the node, whose containers cannot see each other."""
    return {
        "Name": f"faasd-{home.identity}-internet",
        "Driver": "bridge",
        "EnableIPv6": False,
        "Options": {"com.docker.network.bridge.enable_icc": "false"},
        "Labels": home.labels("network"),
    }


async def hold(
    engine: Engine, zygote: ZygoteServer, name: str, config: Mapping[str, Any], network: str
) -> Container:
    """A container that does nothing but have a network, with the fence of that kind around it.

    For what runs code of its own from its first moment, and so could not be fenced in time: it is
    started in the network of this one, "container:ID". Raises FaasdError.
    """
    holder = await engine.run(name, config)
    try:
        await zygote.fence(holder, network)
    except BaseException:
        with contextlib.suppress(Unavailable):
            await asyncio.shield(engine.remove(holder.id))
        raise
    return holder
