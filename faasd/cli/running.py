"""Running a daemon until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import signal
from typing import Protocol

from faasd.telemetry import configure_logging

# Objects between two collections; the default of 700 makes several of them per request at load.
_COLLECT_AFTER = 10_000
# Parameters of glibc's mallopt, and what we ask for in bytes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_FREE = 16 << 20
_MAPPED_FROM = 8 << 20


class Daemon(Protocol):
    """Something that starts, runs, and ends in order."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


def run_daemon(daemon: Daemon, *, log_level: str) -> None:
    """Run it until SIGINT or SIGTERM. Errors of its start are raised."""
    configure_logging(log_level)
    _allow_descriptors()
    _keep_heap()
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(daemon))


def _allow_descriptors() -> None:
    """Each connection takes one, and the usual soft limit is 1,024. Functions keep the usual one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_heap() -> None:
    """Have glibc keep some free memory, and take bodies from it.

    By default a body of a megabyte is given back to the kernel when it is done with, and the next
    one is found page by page: that took half the time of passing it through.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


async def _run(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    try:
        await daemon.start()
        # What lives as long as the daemon need not be looked at again; the rest is little.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        await told.wait()
    finally:
        await daemon.aclose()
