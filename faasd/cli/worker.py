"""`faasd worker`: one node of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def worker(
    controller: Annotated[str | None, typer.Option(help="HOST:PORT where it listens.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of caches and sandboxes.")] = None,
    node_id: Annotated[str | None, typer.Option("--id", help="Name of the node.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Kind of sandboxes: process or docker.")] = None,
    slots: Annotated[int | None, typer.Option(help="Instances it is meant for.")] = None,
    memory_mb: Annotated[
        float | None, typer.Option(help="Memory that functions may use together.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a worker that joins a controller (FAASD_WORKER_CLUSTER_SECRET or FAASD_CLUSTER_SECRET)."""
    from faasd.cli.daemons import WorkerDaemon
    from faasd.cli.running import run_daemon
    from faasd.errors import BadRequest
    from faasd.settings import WorkerSettings, build

    settings = build(
        WorkerSettings,
        controller=controller,
        data=data,
        id=node_id,
        runtime=runtime,
        slots=slots,
        memory_budget_mb=memory_mb,
    )
    if settings.cluster_secret is None:
        raise BadRequest(
            "A worker needs the secret that it shares with its controller.",
            remedy="Set FAASD_CLUSTER_SECRET to the controller's.",
        )
    run_daemon(
        WorkerDaemon(settings, settings.cluster_secret.get_secret_value()), log_level=log_level
    )
