"""What a user sees while a replay runs: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadgen.replay import Replay
from loadgen.results import percentile

LIVE_EVERY_S = 0.5
PLAIN_EVERY_S = 5.0
RECENT = 1000


@asynccontextmanager
async def shown(replay: Replay, console: Console, *, expected_s: float) -> AsyncIterator[None]:
    """Shows the replay's progress on the console for the length of the block."""
    async with asyncio.TaskGroup() as group:
        show = _live if console.is_terminal else _plain
        task = group.create_task(show(replay, console, expected_s))
        try:
            yield
        finally:
            task.cancel()


def status_line(replay: Replay, expected_s: float) -> str:
    record = replay.record
    p50 = recent_p50_ms(replay)
    return (
        f"{replay.elapsed_s:.0f} of {expected_s:.0f} s  sent {len(record)}  "
        f"ok {record.succeeded}  failed {record.failed}  outstanding {replay.outstanding}  "
        f"p50 {'-' if p50 is None else f'{p50:.1f} ms'}"
    )


def recent_p50_ms(replay: Replay) -> float | None:
    """Of the last thousand sent that have succeeded."""
    record = replay.record
    recent = range(max(0, len(record) - RECENT), len(record))
    latencies = [record.latency_ms(row) for row in recent if not record.code[row]]
    return percentile(sorted(latencies), 50) if latencies else None


async def _live(replay: Replay, console: Console, expected_s: float) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(status_line(replay, expected_s)), refresh=True)
            await asyncio.sleep(LIVE_EVERY_S)


async def _plain(replay: Replay, console: Console, expected_s: float) -> None:
    while True:
        await asyncio.sleep(PLAIN_EVERY_S)
        console.print(status_line(replay, expected_s), soft_wrap=True, highlight=False)


def expected_seconds(span_s: float, speed: float) -> float:
    return math.ceil(span_s / speed)
