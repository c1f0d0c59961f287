"""`faasd keys bootstrap`: the first admin key, made beside the controller, without asking it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from faasd.cli.printing import say


def bootstrap(
    data: Annotated[Path | None, typer.Option(help="The controller's --data folder.")] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "bootstrap",
) -> None:
    """Make an admin key in a data folder: what a controller needs to listen beyond loopback."""
    from faasd.settings import ControllerSettings, build

    identity, secret = asyncio.run(_make(build(ControllerSettings, data=data).data, name))
    say(f"Key {identity} (admin in default); it is shown this once:")
    print(secret)


async def _make(data: Path, name: str) -> tuple[str, str]:
    from controller.auth import DEFAULT_NAMESPACE, Keys
    from controller.daemon import STORE_FILE
    from controller.store.sqlite import SqliteStore

    store = SqliteStore(data / STORE_FILE)
    await store.open()
    try:
        key, secret = await Keys(store, open_to_all=True).create(name, "admin", DEFAULT_NAMESPACE)
    finally:
        await store.aclose()
    return key.id, secret
