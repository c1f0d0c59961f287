"""The engine in virtual time, against platforms made of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from loadgen.replay import GRACE_S, Replay
from loadgen.results import Recorder, Reply, figures

InVirtualTime = Callable[[Callable[[], Awaitable[Any]]], Any]


class Platform:
    """Answers after a delay that depends on the time; keeps when it was called and for what."""

    def __init__(self, delay_s: Callable[[float], float]) -> None:
        self.delay_s = delay_s
        self.calls: list[tuple[float, int]] = []

    async def send(self, target: int) -> Reply:
        now = asyncio.get_running_loop().time()
        self.calls.append((now, target))
        await asyncio.sleep(self.delay_s(now))
        return Reply("", 200, "warm")


def replay(platform: Platform, times: list[float], **options: Any) -> Replay:
    return Replay(
        arrivals=[(at, 0) for at in times],
        targets=[7],
        sender=platform,
        clock=asyncio.get_running_loop().time,
        **options,
    )


def latencies_s(record: Recorder) -> list[float]:
    return [record.latency_ms(row) / 1000 for row in range(len(record))]


def test_sends_when_due_whatever_became_of_those_before(in_virtual_time: InVirtualTime) -> None:
    platform = Platform(lambda _: 100.0)

    async def main() -> Recorder:
        engine = replay(platform, [0.0, 0.5, 0.5, 3600.0])
        await engine.run()
        return engine.record

    record = in_virtual_time(main)

    assert platform.calls == [(0.0, 7), (0.5, 7), (0.5, 7), (3600.0, 7)]
    assert latencies_s(record) == pytest.approx([100.0] * 4)
    assert record.succeeded == 4


def test_speed_divides_the_times_of_the_trace(in_virtual_time: InVirtualTime) -> None:
    platform = Platform(lambda _: 0.0)

    async def main() -> None:
        await replay(platform, [1.0, 3.0, 10.0], speed=4.0).run()

    in_virtual_time(main)

    assert [at for at, _ in platform.calls] == pytest.approx([0.25, 0.75, 2.5])


def test_requests_due_during_a_stall_of_the_platform_have_waited_for_its_end(
    in_virtual_time: InVirtualTime,
) -> None:
    platform = Platform(lambda now: 3.0 - now if 1.0 <= now < 3.0 else 0.0)

    async def main() -> Recorder:
        engine = replay(platform, [0.0, 1.0, 1.5, 2.0, 2.5, 3.5])
        await engine.run()
        return engine.record

    record = in_virtual_time(main)

    assert latencies_s(record) == pytest.approx([0, 2.0, 1.5, 1.0, 0.5, 0])


def test_a_generator_that_is_held_back_still_counts_from_when_requests_were_due(
    in_virtual_time: InVirtualTime,
) -> None:
    platform = Platform(lambda now: 2.0 if now == 0 else 0.0)

    async def main() -> Replay:
        engine = replay(platform, [0.0, 0.5, 1.0, 1.5, 3.0], max_outstanding=1)
        await engine.run()
        return engine

    engine = in_virtual_time(main)

    assert [at for at, _ in platform.calls] == pytest.approx([0, 2, 2, 2, 3])
    assert latencies_s(engine.record) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0])
    assert figures(engine.record, range(5)).send_lag_ms.max == pytest.approx(1500)
    assert engine.held_back == 3


def test_stopping_sends_no_more_and_waits_for_those_that_are_nearly_done(
    in_virtual_time: InVirtualTime,
) -> None:
    platform = Platform(lambda now: 1.0 if now == 0 else GRACE_S + 60)

    async def main() -> Replay:
        engine = replay(platform, [0.0, 0.25, 50.0])
        asyncio.get_running_loop().call_later(0.5, engine.stop)
        await engine.run()
        return engine

    engine = in_virtual_time(main)
    found = figures(engine.record, range(len(engine.record)))

    assert (found.sent, found.succeeded, found.failed) == (2, 1, {"interrupted": 1})
    assert engine.outstanding == 0


def test_stopping_twice_waits_for_nothing(in_virtual_time: InVirtualTime) -> None:
    platform = Platform(lambda _: 1000.0)

    async def main() -> tuple[Replay, float]:
        engine = replay(platform, [0.0, 0.1, 90.0])
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, engine.stop)
        loop.call_later(0.6, engine.stop)
        await engine.run()
        return engine, loop.time()

    engine, ended_s = in_virtual_time(main)

    assert engine.record.code == ["interrupted", "interrupted"]
    assert ended_s < GRACE_S


def test_stopping_releases_a_generator_that_is_held_back(in_virtual_time: InVirtualTime) -> None:
    platform = Platform(lambda _: 1000.0)

    async def main() -> Replay:
        engine = replay(platform, [0.0, 0.1], max_outstanding=1)
        asyncio.get_running_loop().call_later(0.5, engine.stop)
        await engine.run()
        return engine

    engine = in_virtual_time(main)

    assert len(platform.calls) == 1
    assert engine.record.code == ["interrupted"]


def test_many_requests_due_at_once_are_all_sent(in_virtual_time: InVirtualTime) -> None:
    platform = Platform(lambda _: 1.0)

    async def main() -> Recorder:
        engine = replay(platform, [5.0] * 1000)
        await engine.run()
        return engine.record

    record = in_virtual_time(main)

    assert record.succeeded == 1000
    assert set(latencies_s(record)) == {1.0}
