"""Running a daemon until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from typing import Protocol

from faasd.telemetry import configure_logging


class Daemon(Protocol):
    """Something that starts, runs, and ends in order."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


def run_daemon(daemon: Daemon, *, log_level: str) -> None:
    """Run it until SIGINT or SIGTERM. Errors of its start are raised."""
    configure_logging(log_level)
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(daemon))


async def _run(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    try:
        await daemon.start()
        await told.wait()
    finally:
        await daemon.aclose()
