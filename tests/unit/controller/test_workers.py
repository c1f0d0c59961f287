"""The controller's view of the workers: who gets what, and who keeps which minimum."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from controller.links import Progress
from controller.workers import Member, Workers
from faasd.errors import DeployFailed, NotFound, Unavailable
from faasd.invocation import (
    FunctionReport,
    GpuReport,
    Invocation,
    Load,
    LogLine,
    Receiver,
    Revision,
    Started,
    WorkerReport,
)
from faasd.spec import Resources, validate_spec

KEY = "default/echo@r1"


class NearWorker:
    """A worker that only remembers what it was told."""

    def __init__(self, worker_id: str, *, slots: int = 2) -> None:
        self.worker_id = worker_id
        self.slots = slots
        self.load = Load()
        self.functions: list[FunctionReport] = []
        self.gpus: list[GpuReport] = []
        self.minimums: dict[str, int] = {}

    def report(self) -> WorkerReport:
        return WorkerReport(
            *(self.worker_id, 2, 1.0, 1.0, 0.0, self.slots),
            *(self.gpus, [], self.functions),
            gpu_fault="" if self.gpus else "no driver",
        )

    def register(self, revision: Revision) -> None:
        self.minimums[revision.key] = revision.min_instances

    def retire(self, function: str, revision: str) -> None:
        del self.minimums[f"{function}@{revision}"]

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        raise NotImplementedError

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        raise NotImplementedError

    def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]:
        raise NotImplementedError

    def holds(self, *, idle: int = 0, busy: int = 0, template: str = "ready") -> None:
        self.functions = [FunctionReport("default/echo", "r1", template, 0, idle, busy, 0, 0.0)]

    def has_gpu(self, memory_mb: float, *, fault: str = "") -> None:
        health = "lost" if fault else "ready"
        counts = (0.0, 0.0, 0.0, 0, None, None)
        self.gpus = [GpuReport("GPU-1", "gpu0", "Model", "", health, fault, memory_mb, *counts)]


@contextlib.contextmanager
def under_way(member: Member, key: str) -> Iterator[None]:
    call = member.calls.begin(key)
    yield
    member.end(call)


def revision(identity: str = "r1", *, minimum: int = 0, **keys: Any) -> Revision:
    spec = validate_spec({"name": "echo", **keys})
    return Revision("default/echo", identity, spec, "a" * 64, {}, min_instances=minimum)


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_without_a_worker_nothing_is_chosen_and_the_remedy_is_said(workers: Workers) -> None:
    with pytest.raises(Unavailable) as refused:
        workers.choose(KEY)

    assert "faasd worker" in refused.value.remedy
    assert not workers.ready


def test_the_only_worker_is_chosen(workers: Workers) -> None:
    member = workers.join(NearWorker("a"))

    assert workers.choose(KEY) is member
    assert workers.ready


def test_invocations_under_way_count_as_load(workers: Workers) -> None:
    first, second = workers.join(NearWorker("a")), workers.join(NearWorker("b"))

    with under_way(first, "default/other@r1"):
        chosen = workers.choose(KEY)

    assert chosen is second
    assert (first.outstanding, first.calls.held("default/other@r1")) == (0, 0)


def test_a_worker_that_holds_the_template_is_preferred(workers: Workers) -> None:
    workers.join(NearWorker("a"))
    holder = NearWorker("b")
    holder.holds()
    member = workers.join(holder)

    with under_way(member, "default/other@r1"):
        assert workers.choose(KEY) is member


def test_an_idle_instance_that_was_given_a_call_is_idle_no_more(workers: Workers) -> None:
    one, other = NearWorker("a", slots=8), NearWorker("b", slots=8)
    one.holds(idle=1)
    other.holds(idle=1)
    first, second = workers.join(one), workers.join(other)

    with under_way(first, KEY):
        assert workers.choose(KEY) is second


def test_calls_follow_each_other_to_where_the_first_opens_the_sandbox(workers: Workers) -> None:
    workers.join(NearWorker("a"))
    member = workers.join(NearWorker("b"))

    with under_way(member, KEY):
        assert workers.choose(KEY) is member


def test_a_worker_that_joins_learns_every_revision(workers: Workers) -> None:
    workers.activate(revision("r1"))
    workers.activate(revision("r2"))
    link = NearWorker("a")

    workers.join(link)

    assert link.minimums == {"default/echo@r1": 0, "default/echo@r2": 0}


def test_a_retired_revision_is_retired_everywhere_and_taught_no_more(workers: Workers) -> None:
    one, later = NearWorker("a"), NearWorker("b")
    workers.join(one)
    workers.activate(revision())

    workers.retire("default/echo", "r1")
    workers.join(later)

    assert workers.revision_keys() == []
    assert one.minimums == {}
    assert later.minimums == {}


def test_a_minimum_is_kept_on_one_worker(workers: Workers) -> None:
    links = [NearWorker(name) for name in "abc"]
    for link in links:
        workers.join(link)

    workers.activate(revision(minimum=2))

    assert sorted(link.minimums[KEY] for link in links) == [0, 0, 2]


def test_a_minimum_waits_for_the_first_worker(workers: Workers) -> None:
    workers.activate(revision(minimum=2))
    link = NearWorker("a")

    workers.join(link)

    assert link.minimums[KEY] == 2


def test_a_minimum_stays_where_it_is_when_others_join(workers: Workers) -> None:
    first, second = NearWorker("b"), NearWorker("a")
    workers.join(first)
    workers.activate(revision(minimum=1))

    workers.join(second)

    assert (first.minimums[KEY], second.minimums[KEY]) == (1, 0)


def test_a_minimum_moves_when_its_worker_leaves(workers: Workers) -> None:
    first, second = NearWorker("a"), NearWorker("b")
    home = workers.join(first)
    workers.join(second)
    workers.activate(revision(minimum=1))

    workers.leave(home)

    assert second.minimums[KEY] == 1


def test_a_minimum_moves_off_a_worker_that_is_drained(workers: Workers) -> None:
    first, second = NearWorker("a"), NearWorker("b")
    workers.join(first)
    workers.join(second)
    workers.activate(revision(minimum=1))

    workers.drain("a")

    assert (first.minimums[KEY], second.minimums[KEY]) == (0, 1)


def test_a_worker_that_comes_back_has_the_minimum_again_if_nobody_took_it(
    workers: Workers,
) -> None:
    workers.activate(revision(minimum=1))
    workers.leave(workers.join(NearWorker("a")))
    back = NearWorker("a")

    workers.join(back)

    assert back.minimums[KEY] == 1


def test_a_worker_that_reconnects_unnoticed_keeps_its_minimum(workers: Workers) -> None:
    workers.activate(revision(minimum=1))
    workers.join(NearWorker("a"))
    back = NearWorker("a")

    workers.join(back)

    assert back.minimums[KEY] == 1


def test_a_worker_that_rejoins_replaces_its_former_self(workers: Workers) -> None:
    former = workers.join(NearWorker("a"))

    again = workers.join(NearWorker("a"))

    assert workers.members() == [again]
    assert workers.choose(KEY) is again
    assert str(former.status) == "lost"


def test_the_former_self_that_leaves_late_takes_nothing_along(workers: Workers) -> None:
    former = workers.join(NearWorker("a"))
    again = workers.join(NearWorker("a"))

    workers.leave(former)

    assert workers.choose(KEY) is again


def test_a_lost_worker_gets_nothing(workers: Workers) -> None:
    workers.leave(workers.join(NearWorker("a")))

    with pytest.raises(Unavailable):
        workers.choose(KEY)


def test_a_drained_worker_gets_no_invocations_but_hears_of_retirements(workers: Workers) -> None:
    link = NearWorker("a")
    workers.join(link)
    workers.activate(revision())
    workers.drain("a")

    workers.retire("default/echo", "r1")

    assert link.minimums == {}
    with pytest.raises(Unavailable):
        workers.choose(KEY)


def test_an_unknown_or_lost_worker_cannot_be_drained(workers: Workers) -> None:
    workers.leave(workers.join(NearWorker("a")))

    for name in ("a", "nobody"):
        with pytest.raises(NotFound, match=name):
            workers.drain(name)


def test_whoever_waits_for_a_worker_goes_on_when_one_joins(workers: Workers) -> None:
    async def main() -> bool:
        waiting = asyncio.ensure_future(workers.any(60.0))
        await asyncio.sleep(0)
        was_waiting = not waiting.done()
        workers.join(NearWorker("a"))
        await waiting
        return was_waiting

    assert asyncio.run(main())


def test_waiting_for_a_worker_ends_with_the_patience(workers: Workers) -> None:
    asyncio.run(workers.any(0.0))

    assert not workers.ready


def test_workers_are_described_with_their_status_and_load(workers: Workers) -> None:
    member = workers.join(NearWorker("a"))
    workers.drain("a")

    with under_way(member, KEY):
        [described] = workers.describe()

    assert (described["id"], described["status"], described["outstanding"]) == ("a", "draining", 1)


def test_a_function_that_needs_a_gpu_goes_to_a_worker_that_has_one(workers: Workers) -> None:
    without, small, large = (NearWorker(name) for name in "abc")
    small.has_gpu(8_000)
    large.has_gpu(16_000)
    for link in (without, small, large):
        workers.join(link)

    chosen = [
        workers.choose(KEY, resources).link
        for resources in (Resources(), Resources(gpus=1), Resources(gpus=1, gpu_memory_mb=9_000))
    ]

    assert chosen == [without, small, large]


def test_without_such_a_gpu_the_error_says_what_the_cluster_has(workers: Workers) -> None:
    small, broken, without = (NearWorker(name) for name in "abc")
    small.has_gpu(8_000)
    broken.has_gpu(16_000, fault="GPU is lost")
    for link in (small, broken, without):
        workers.join(link)

    with pytest.raises(Unavailable) as refused:
        workers.choose(KEY, Resources(gpus=1, gpu_memory_mb=9_000))
    with pytest.raises(DeployFailed) as refused_deploy:
        workers.choose(KEY, Resources(gpus=1, gpu_memory_mb=9_000), refuse=DeployFailed)

    assert refused.value.detail == (
        "The function needs 1 GPU with 9,000 MB; worker a has gpu0 (Model) with 8,000 MB; "
        "worker b has gpu0 (Model) with 16,000 MB, out of service (GPU is lost); "
        "worker c has none (no driver)."
    )
    assert (refused.value.retry_after_s, refused_deploy.value.retry_after_s) == (5.0, None)
    assert "gpus = 0" in refused_deploy.value.remedy


def test_what_makes_no_sense_of_gpus_is_left_to_a_worker_to_say(workers: Workers) -> None:
    first = workers.join(NearWorker("a"))
    workers.join(NearWorker("b"))

    assert workers.choose(KEY, Resources(gpus=1.5)) is first


def test_the_only_worker_says_itself_why_it_has_no_such_gpu(workers: Workers) -> None:
    member = workers.join(NearWorker("a"))

    assert workers.choose(KEY, Resources(gpus=1)) is member


def test_a_minimum_that_needs_a_gpu_is_kept_where_there_is_one(workers: Workers) -> None:
    without, having = NearWorker("a"), NearWorker("b")
    having.has_gpu(16_000)
    for link in (without, having):
        workers.join(link)

    workers.activate(revision(minimum=1, resources={"gpus": 1}))

    assert (without.minimums[KEY], having.minimums[KEY]) == (0, 1)


def test_a_minimum_that_needs_a_gpu_is_tried_somewhere_when_there_is_none(
    workers: Workers,
) -> None:
    link = NearWorker("a")
    workers.join(link)

    workers.activate(revision(minimum=1, resources={"gpus": 1}))

    assert link.minimums[KEY] == 1
