"""`faasd up`: the whole platform in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    port: Annotated[
        int | None, typer.Option(help="Port of the HTTP API; 0 takes a free one.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the HTTP API.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of everything that must last.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Kind of sandboxes: process or docker.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the whole platform here: controller and one worker, until interrupted."""
    from faasd.cli.daemons import Embedded
    from faasd.cli.running import run_daemon
    from faasd.settings import ControllerSettings, WorkerSettings, build

    controller = build(ControllerSettings, host=host, port=port, data=data)
    worker = build(WorkerSettings, data=controller.data / "worker", runtime=runtime)
    run_daemon(Embedded(controller, worker), log_level=log_level)
