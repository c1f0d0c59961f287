"""The open-loop engine: sends every arrival when it is due, whatever became of those before.

It knows neither HTTP nor files: arrivals come from an iterator, requests go to a `Sender`, rows into a `Recorder`. When
the generator itself is late (overloaded, or held back by `max_outstanding`), it sends the overdue at once and
their latency still counts from when they were due; how late they were is on record as the send lag.

Not thread-safe; owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from loadgen.arrivals import Arrival
from loadgen.results import Recorder, Reply

GRACE_S = 3.0
LONGEST_SLEEP_S = 0.25
SENDS_BEFORE_YIELD = 32


class Sender(Protocol):
    """Sends one request to a target, given by number; never raises for what the platform does."""

    async def send(self, target: int) -> Reply: ...


class Replay:
    """One replay. `run` once; `stop` may be called from the loop meanwhile, twice to be impatient."""

    def __init__(
        self,
        *,
        arrivals: Iterable[Arrival],
        targets: Sequence[int],
        sender: Sender,
        clock: Callable[[], float],
        speed: float = 1.0,
        max_outstanding: int = 10_000,
    ) -> None:
        self.record = Recorder()
        self.held_back = 0
        self.stopped = False
        self._arrivals = arrivals
        self._targets = targets
        self._sender = sender
        self._clock = clock
        self._speed = speed
        self._max_outstanding = max_outstanding
        self._outstanding: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._started = 0.0
        self._sending_s = 0.0

    def __repr__(self) -> str:
        return f"<Replay {self.record!r} outstanding={self.outstanding}>"

    @property
    def outstanding(self) -> int:
        return len(self._outstanding)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def sending_s(self) -> float:
        """How long the sending took, once it has ended."""
        return self._sending_s

    async def run(self) -> None:
        """Returns when every request that was sent has its outcome."""
        self._started = self._clock()
        async with asyncio.TaskGroup() as group:
            await self._send_all(group)
            self._sending_s = self.elapsed_s

    def stop(self) -> None:
        """Sends no more and, after a little grace (none the second time), gives up on the rest."""
        if self.stopped:
            self._abandon()
            return
        self.stopped = True
        self._room.set()
        asyncio.get_running_loop().call_later(GRACE_S, self._abandon)

    async def _send_all(self, group: asyncio.TaskGroup) -> None:
        unyielding = 0
        for at_s, function in self._arrivals:
            intended_s = at_s / self._speed
            unyielding += 1
            if await self._wait_until(intended_s):
                unyielding = 0
            elif unyielding >= SENDS_BEFORE_YIELD:
                unyielding = 0
                await asyncio.sleep(0)
            if len(self._outstanding) >= self._max_outstanding:
                await self._wait_for_room()
            if self.stopped:
                return
            task = group.create_task(self._invoke(intended_s, function))
            self._outstanding.add(task)
            task.add_done_callback(self._done)

    async def _wait_until(self, intended_s: float) -> bool:
        waited = False
        while not self.stopped and (ahead := intended_s - self.elapsed_s) > 0:
            await asyncio.sleep(min(ahead, LONGEST_SLEEP_S))
            waited = True
        return waited

    async def _wait_for_room(self) -> None:
        self.held_back += 1
        while not self.stopped and len(self._outstanding) >= self._max_outstanding:
            self._room.clear()
            await self._room.wait()

    async def _invoke(self, intended_s: float, function: int) -> None:
        target = self._targets[function]
        row = self.record.begin(
            intended_s=intended_s, sent_s=self.elapsed_s, function=function, endpoint=target
        )
        reply = await self._sender.send(target)
        self.record.finish(row, reply, finished_s=self.elapsed_s)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._outstanding.discard(task)
        self._room.set()

    def _abandon(self) -> None:
        for task in self._outstanding:
            task.cancel()
