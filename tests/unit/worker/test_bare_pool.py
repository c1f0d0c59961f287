"""The pool of bare sandboxes, on an engine in memory that makes them when the test says so."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from faasd import clock
from faasd.errors import DeployFailed, Unavailable
from faasd.policies.bare import BarePool
from tests.loops import in_loop, until
from worker.sandboxes.docker.bare import BareSandboxes
from worker.sandboxes.docker.engine import Container, Engine


class EngineDouble(Engine):
    """Containers are asked for by name; the test lets each come up, or fail."""

    def __init__(self) -> None:
        super().__init__(timeout_s=1)
        self.asked: list[str] = []
        self._answers: dict[str, asyncio.Future[Container]] = {}

    async def run(self, name: str, config: Mapping[str, Any]) -> Container:
        del config
        self.asked.append(name)
        self._answers[name] = asyncio.get_running_loop().create_future()
        try:
            return await self._answers[name]
        finally:
            del self._answers[name]

    @property
    def open_requests(self) -> list[str]:
        return list(self._answers)

    def up(self, name: str, pid: int = 0) -> None:
        self._answers[name].set_result(container(name, pid))

    def fails(self, name: str, error: Exception) -> None:
        self._answers[name].set_exception(error)


def container(name: str, pid: int = 0) -> Container:
    return Container(f"id-{name}", name, "sha256:1", {}, pid=pid or os.getpid(), running=True)


class Bench:
    """A pool, its engine, what it gave away, and a clock that the test sets."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, least: int = 1, most: int = 4, parallel: int = 4
    ) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        self.engine = EngineDouble()
        self.discarded: list[str] = []
        self._numbers = itertools.count(1)
        self.pool = BareSandboxes(
            self.engine,
            self._describe,
            BarePool(least=least, most=most),
            gate=asyncio.Semaphore(parallel),
            discard=lambda one: self.discarded.append(one.name),
        )

    def _describe(self) -> tuple[str, dict[str, Any]]:
        name = f"c{next(self._numbers)}"
        return name, {"Image": f"image-of-{name}"}

    async def made(self, *names: str) -> None:
        """Have these asked for, and let them come up."""
        for name in names:
            await until(lambda name=name: name in self.engine.open_requests)  # type: ignore[misc]
            self.engine.up(name)
            await until(lambda name=name: name not in self.engine.open_requests)  # type: ignore[misc]
        await asyncio.sleep(0)

    def claims(self) -> asyncio.Task[Container]:
        return asyncio.get_running_loop().create_task(self.pool.claim())


@pytest.fixture
def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@in_loop
async def test_a_ready_one_is_claimed_at_once_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.pool.tend()
    await bench.made("c1")

    claimed = await bench.pool.claim()

    assert claimed.name == "c1"
    await bench.made("c2")
    assert (bench.pool.ready, bench.pool.making) == (1, 0)
    await bench.pool.aclose()


@in_loop
async def test_claimers_wait_in_the_order_in_which_they_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)
    first, second = bench.claims(), bench.claims()

    await bench.made("c1", "c2")

    assert ((await first).name, (await second).name) == ("c1", "c2")
    await bench.pool.aclose()


@in_loop
async def test_as_many_are_made_as_wait_and_are_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, least=1, parallel=100)
    claims = [bench.claims() for _ in range(20)]

    await until(lambda: len(bench.engine.asked) == 20 + bench.pool._policy.target(bench.now))
    await bench.pool.aclose()

    ended = await asyncio.gather(*claims, return_exceptions=True)
    assert {type(one) for one in ended} == {Unavailable}


@in_loop
async def test_no_more_are_made_at_once_than_the_node_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, parallel=2)
    claims = [bench.claims() for _ in range(5)]

    most = 0
    while not all(claim.done() for claim in claims):
        await until(lambda: bench.engine.open_requests or all(claim.done() for claim in claims))
        most = max(most, len(bench.engine.open_requests))
        for name in bench.engine.open_requests:
            await bench.made(name)

    assert most == 2
    assert len({claim.result().name for claim in claims}) == 5
    await bench.pool.aclose()


@in_loop
async def test_one_that_ended_meanwhile_is_never_handed_out(
    monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    bench = Bench(monkeypatch)
    bench.pool.adopt(container("dead", dead_pid))
    bench.pool.adopt(container("alive"))

    assert (await bench.pool.claim()).name == "alive"
    assert bench.discarded == ["dead"]
    await bench.pool.aclose()


@in_loop
async def test_ended_ones_are_replaced_without_a_claim(
    monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    """After a restart of the engine none of them is left."""
    bench = Bench(monkeypatch)
    bench.pool.adopt(container("dead", dead_pid))

    bench.pool.tend()
    await bench.made("c1")

    assert bench.discarded == ["dead"]
    assert bench.pool.ready == 1
    await bench.pool.aclose()


@in_loop
async def test_what_is_too_many_is_removed_once_demand_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, least=1)
    for number in range(4):
        bench.pool.adopt(container(f"old{number}"))

    bench.pool.tend()

    assert (bench.pool.ready, len(bench.discarded)) == (1, 3)
    await bench.pool.aclose()


@in_loop
async def test_a_failure_answers_one_claimer_and_the_others_get_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, least=0)
    first, second = bench.claims(), bench.claims()
    await until(lambda: len(bench.engine.open_requests) >= 2)

    bench.engine.fails("c1", Unavailable("The engine refused."))
    await until(first.done)
    await bench.made("c2")

    with pytest.raises(Unavailable, match="refused"):
        await first
    assert (await second).name == "c2"
    await bench.pool.aclose()


@in_loop
async def test_whatever_goes_wrong_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of the engine that makes no sense is a failure like any other."""
    bench = Bench(monkeypatch)
    claim = bench.claims()
    await until(lambda: bench.engine.open_requests)

    for name in bench.engine.open_requests:
        bench.engine.fails(name, KeyError("State"))

    with pytest.raises(Unavailable, match="State"):
        await claim
    assert bench.pool.making == 0
    await bench.pool.aclose()


@in_loop
async def test_after_failures_the_pool_pauses_ever_longer_but_a_claim_tries_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)

    async def fails() -> None:
        await until(lambda: bench.engine.open_requests)
        bench.engine.fails(bench.engine.open_requests[0], Unavailable("No engine."))
        await until(lambda: not bench.pool.making)

    pauses = []
    bench.pool.tend()
    for _ in range(8):
        await fails()
        begin = bench.now
        while not bench.pool.making:
            bench.now += 0.25
            bench.pool.tend()
        pauses.append(bench.now - begin)
    await fails()
    claim = bench.claims()
    await until(lambda: bench.engine.open_requests)
    bench.engine.up(bench.engine.open_requests[0])

    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert (await claim).running
    await bench.pool.aclose()


@in_loop
async def test_one_that_is_being_made_is_not_lost_with_its_claimer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)
    claim = bench.claims()
    await until(lambda: "c1" in bench.engine.open_requests)

    claim.cancel()
    await bench.made("c1")

    assert claim.cancelled()
    assert (await bench.pool.claim()).name == "c1"
    await bench.pool.aclose()


@in_loop
async def test_one_handed_over_in_the_moment_of_cancelling_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)
    first, second = bench.claims(), bench.claims()
    await until(lambda: "c1" in bench.engine.open_requests)
    bench.pool._offer(container("handed"))

    first.cancel()

    assert (await second).name == "handed"
    await bench.pool.aclose()


@in_loop
async def test_the_end_removes_what_is_ready_and_what_comes_up_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)
    bench.pool.adopt(container("ready"))

    await bench.pool.aclose()
    bench.pool._offer(container("late"))
    bench.pool.tend()

    assert bench.discarded == ["ready", "late"]
    assert (bench.pool.ready, bench.pool.making) == (0, 0)


@in_loop
async def test_one_that_ended_as_it_started_is_a_broken_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not handed out, and who asked for it hears what its image lacks."""
    bench = Bench(monkeypatch, least=0)
    claim = bench.claims()
    await until(lambda: bench.engine.open_requests)

    ended = Container("id", "c1", "sha256:1", {}, running=False, exit_code=127)
    bench.engine._answers["c1"].set_result(ended)

    with pytest.raises(DeployFailed, match=r"image-of-c1 ended .* status 127"):
        await claim
    assert bench.discarded == ["c1"]
    await bench.pool.aclose()


@in_loop
async def test_one_that_was_killed_as_it_started_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, least=0)
    claim = bench.claims()
    await until(lambda: bench.engine.open_requests)

    ended = Container("id", "c1", "sha256:1", {}, running=False, exit_code=137)
    bench.engine._answers["c1"].set_result(ended)

    with pytest.raises(Unavailable, match="status 137"):
        await claim
    await bench.pool.aclose()


@in_loop
async def test_only_what_is_ready_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.pool.tend()
    await bench.made("c1")
    assert bench.pool.holds(container("c1"))
    assert not bench.pool.holds(container("stray"))

    claimed = await bench.pool.claim()
    assert not bench.pool.holds(claimed)
    await bench.pool.aclose()


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_handed_out_twice_or_lost(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims, cancellations, failures and ends in any order: each container has one fate."""

    @in_loop
    async def run() -> None:
        chance = random.Random(seed)
        bench = Bench(monkeypatch, least=chance.randint(0, 2), parallel=chance.randint(1, 4))
        claims: list[asyncio.Task[Container]] = []
        up: list[str] = []
        for _ in range(200):
            act = chance.random()
            if act < 0.3:
                claims.append(bench.claims())
            elif act < 0.6 and bench.engine.open_requests:
                name = chance.choice(bench.engine.open_requests)
                if not bench.engine._answers[name].done():
                    up.append(name)
                    bench.engine.up(name)
            elif act < 0.7 and bench.engine.open_requests:
                name = chance.choice(bench.engine.open_requests)
                if not bench.engine._answers[name].done():
                    bench.engine.fails(name, Unavailable("No."))
            elif act < 0.8 and claims:
                chance.choice(claims).cancel()
            else:
                bench.now += chance.random() * 5
                bench.pool.tend()
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        ready = bench.pool.ready
        await bench.pool.aclose()
        ended = await asyncio.gather(*claims, return_exceptions=True)

        handed = [one.name for one in ended if isinstance(one, Container)]
        assert len(handed) == len(set(handed))
        assert sorted([*handed, *bench.discarded]) == sorted(up)
        assert ready <= len(bench.discarded)

    run()
