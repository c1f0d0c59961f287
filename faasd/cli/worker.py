"""`faasd worker`: one node of a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from faasd.settings import WorkerSettings


def worker(
    controller: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT where it listens; once for each of several controllers."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of caches and sandboxes.")] = None,
    node_id: Annotated[str | None, typer.Option("--id", help="Name of the node.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Kind of sandboxes: process or docker.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Instances it is meant for.")] = None,
    memory_mb: Annotated[
        float | None, typer.Option(help="Memory that functions may use together.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Remove the containers and networks that this node left on its Docker engine, "
            "then end.",
        ),
    ] = False,
) -> None:
    """Run a worker that joins its controllers (FAASD_WORKER_CLUSTER_SECRET or FAASD_CLUSTER_SECRET)."""
    from faasd.cli.daemons import WorkerDaemon
    from faasd.cli.running import run_daemon
    from faasd.errors import BadRequest
    from faasd.settings import WorkerSettings, build

    settings = build(
        WorkerSettings,
        controllers=",".join(controller or []) or None,
        data=data,
        id=node_id,
        runtime=runtime,
        slots=slots,
        memory_budget_mb=memory_mb,
    )
    if purge:
        _purge(settings)
        return
    if settings.cluster_secret is None:
        raise BadRequest(
            "A worker needs the secret that it shares with its controller.",
            remedy="Set FAASD_CLUSTER_SECRET to the controller's.",
        )
    run_daemon(
        WorkerDaemon(settings, settings.cluster_secret.get_secret_value()), log_level=log_level
    )


def _purge(settings: WorkerSettings) -> None:
    import asyncio

    from worker.sandboxes.docker.purge import purge

    removed = asyncio.run(purge(settings))
    for name in (*removed.containers, *removed.networks):
        print(name)
    containers, networks = len(removed.containers), len(removed.networks)
    print(
        f"removed {containers} container{'s' * (containers != 1)} "
        f"and {networks} network{'s' * (networks != 1)} of the node {settings.node_id}",
        file=sys.stderr,
    )
