"""`faasd keys bootstrap`: the first admin key, made beside the controller, without asking it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from faasd.cli.printing import say

if TYPE_CHECKING:
    from controller.auth import Keys


class BootstrapSettings(BaseSettings):
    """What the environment says about the first key."""

    model_config = SettingsConfigDict(env_prefix="FAASD_", extra="ignore", frozen=True)

    admin_key: SecretStr | None = Field(None, description="the admin key, chosen by the operator")


def bootstrap(
    data: Annotated[Path | None, typer.Option(help="The controller's --data folder.")] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "bootstrap",
) -> None:
    """Make an admin key in a data folder: what a controller needs to listen beyond loopback.

    Where FAASD_ADMIN_KEY is set, that is the key, and the one it held before is deleted.
    """
    from faasd.settings import ControllerSettings, build

    folder = build(ControllerSettings, data=data).data
    chosen = build(BootstrapSettings).admin_key
    if chosen is not None:
        identity = asyncio.run(_adopt(folder, chosen.get_secret_value()))
        say(f"Key {identity} (admin in default) is that of FAASD_ADMIN_KEY.")
        return
    identity, secret = asyncio.run(_make(folder, name))
    say(f"Key {identity} (admin in default); it is shown this once:")
    print(secret)


async def _make(data: Path, name: str) -> tuple[str, str]:
    from controller.auth import DEFAULT_NAMESPACE

    async with _keys(data) as keys:
        key, secret = await keys.create(name, "admin", DEFAULT_NAMESPACE)
    return key.id, secret


async def _adopt(data: Path, secret: str) -> str:
    async with _keys(data) as keys:
        return (await keys.adopt("FAASD_ADMIN_KEY", secret)).id


@asynccontextmanager
async def _keys(data: Path) -> AsyncIterator[Keys]:
    from controller.auth import Keys
    from controller.daemon import STORE_FILE
    from controller.store.sqlite import SqliteStore

    store = SqliteStore(data / STORE_FILE)
    await store.open()
    try:
        yield Keys(store, open_to_all=True)
    finally:
        await store.aclose()
