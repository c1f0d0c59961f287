"""`faasd controller`: the cluster's front, without a worker of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def controller(
    port: Annotated[int | None, typer.Option(help="Port of the HTTP API.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the HTTP API.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of everything that must last.")] = None,
    cluster_port: Annotated[
        int | None, typer.Option(help="Port where workers join; 8081 unless set.")
    ] = None,
    cluster_host: Annotated[str | None, typer.Option(help="Address where workers join.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a controller that workers join over TCP (FAASD_CLUSTER_SECRET is theirs too)."""
    from faasd.cli.daemons import ControllerDaemon
    from faasd.cli.running import run_daemon
    from faasd.errors import BadRequest
    from faasd.settings import ControllerSettings, build

    settings = build(
        ControllerSettings,
        host=host,
        port=port,
        data=data,
        cluster_port=cluster_port,
        cluster_host=cluster_host,
    )
    if settings.cluster_port is None:
        settings = settings.model_copy(update={"cluster_port": 8081})
    if settings.cluster_secret is None:
        raise BadRequest(
            "A controller needs the secret that it shares with its workers.",
            remedy="Set FAASD_CLUSTER_SECRET to at least 16 characters, e.g. of `openssl rand "
            "-hex 16`.",
        )
    run_daemon(ControllerDaemon(settings), log_level=log_level)
