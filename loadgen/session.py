"""One replay from end to end: asks the platform what is deployed, maps, sends, and accounts for it."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from yarl import URL

from loadgen import progress
from loadgen.arrivals import Law, arrivals
from loadgen.client import HttpSender, Target, deployed, open_session
from loadgen.mapping import Assignment, assign
from loadgen.payloads import Payload
from loadgen.replay import Replay
from loadgen.results import Recorder
from loadgen.traces.model import Trace


@dataclass(frozen=True, slots=True)
class Plan:
    """How a trace is to be replayed."""

    trace: Trace
    url: URL
    speed: float
    law: Law
    seed: int
    timeout_s: float
    max_outstanding: int
    override: Mapping[str, str]
    payloads: Mapping[str, Payload]
    api_key: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay left: the rows, and what names their functions and endpoints."""

    record: Recorder
    functions: Sequence[str]
    endpoints: Sequence[str]
    mapping: Sequence[Assignment]
    duration_s: float
    sending_s: float
    held_back: int
    stopped_by: signal.Signals | None


async def replay_trace(
    plan: Plan, console: Console, announce: Callable[[Sequence[Assignment]], None]
) -> Outcome:
    """Replays the plan's trace; `announce` is told the mapping before anything is sent."""
    async with open_session(timeout_s=plan.timeout_s, api_key=plan.api_key) as session:
        offered = await deployed(session, plan.url)
        mapping = assign(plan.trace.functions, sorted(offered), plan.override)
        announce(mapping)
        targets = [
            Target(name, plan.payloads.get(name, payload))
            for name, payload in sorted(offered.items())
        ]
        names = [target.endpoint for target in targets]
        replay = Replay(
            arrivals=arrivals(plan.trace, law=plan.law, seed=plan.seed),
            targets=_targets(plan.trace, mapping, names),
            sender=HttpSender(session, plan.url, targets),
            clock=time.perf_counter,
            speed=plan.speed,
            max_outstanding=plan.max_outstanding,
        )
        expected_s = progress.expected_seconds(plan.trace.span_s, plan.speed)
        with _stopped_by_signals(replay) as stopped:
            async with progress.shown(replay, console, expected_s=expected_s):
                # What exists by now stays; collecting it again and again would make sends late.
                gc.freeze()
                await replay.run()
        return Outcome(
            record=replay.record,
            functions=[function.name for function in plan.trace.functions],
            endpoints=names,
            mapping=mapping,
            duration_s=replay.elapsed_s,
            sending_s=replay.sending_s,
            held_back=replay.held_back,
            stopped_by=stopped[0] if stopped else None,
        )


def _targets(trace: Trace, mapping: Sequence[Assignment], endpoints: Sequence[str]) -> list[int]:
    place = {name: index for index, name in enumerate(endpoints)}
    endpoint_of = {assignment.function: place[assignment.endpoint] for assignment in mapping}
    return [endpoint_of[function.name] for function in trace.functions]


@contextmanager
def _stopped_by_signals(replay: Replay) -> Iterator[list[signal.Signals]]:
    """SIGINT and SIGTERM end the sending; the list tells which came, in their order."""
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        replay.stop()

    watched = (signal.SIGINT, signal.SIGTERM)
    for number in watched:
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in watched:
            loop.remove_signal_handler(number)
