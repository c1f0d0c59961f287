"""The node as the controller uses it: revisions, starts, failures, ends. Only its sandboxes are fake."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faasd.bridges import awaited
from faasd.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    DeployFailed,
    FaasdError,
    FunctionNotFound,
    FunctionTimeout,
    HandlerError,
    InstanceDied,
    InternalError,
    QueueFull,
    Unavailable,
    UnserialisableResult,
)
from faasd.invocation import Reply, Revision, StartKind, WorkerReport
from faasd.settings import WorkerSettings, build
from tests.loops import in_loop, until
from tests.unit.worker.nodes import (
    GatedSandboxes,
    Held,
    OnDisk,
    call,
    make_node,
    outcome,
    revision,
    running,
)
from worker.node import Node
from worker.sandboxes import make_sandboxes
from worker.sandboxes.fake import FakeInstance, FakeSandbox, FakeSandboxes


def ask(node: Node, *args: Any, **kwargs: Any) -> asyncio.Future[Reply]:
    return asyncio.ensure_future(awaited(node.invoke, call(*args, **kwargs)))


def the_sandbox(sandboxes: FakeSandboxes) -> FakeSandbox:
    [sandbox] = sandboxes.open_sandboxes
    return sandbox


def the_instance(sandboxes: FakeSandboxes) -> FakeInstance:
    [instance] = the_sandbox(sandboxes).instances().values()
    assert isinstance(instance, FakeInstance)
    return instance


@in_loop
async def test_an_invocation_is_answered_by_its_function(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.register(revision())
        reply = await awaited(node.invoke, call(b"hello"))

    assert (reply.status, reply.body, reply.chunks) == (200, b"hello", None)
    assert (reply.content_type, reply.worker) == ("application/octet-stream", "n1")


@in_loop
async def test_the_settings_choose_the_kind_of_sandboxes(tmp_path: Path) -> None:
    settings = build(WorkerSettings, data=tmp_path / "node", runtime="fake", shutdown_grace_s=0)
    node = Node(settings, make_sandboxes(settings), OnDisk(tmp_path / "artifacts"))
    await node.start()
    node.register(revision())

    assert (await awaited(node.invoke, call(b"hello"))).body == b"hello"
    await node.aclose()


@in_loop
async def test_a_value_is_answered_as_json(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes({"length": len})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("length"))
        reply = await awaited(node.invoke, call(b"four", "length"))

    assert (reply.body, reply.content_type) == (b"4", "application/json")


@in_loop
async def test_what_a_handler_raises_is_the_callers_to_see(tmp_path: Path) -> None:
    def divide(body: bytes) -> float:
        return 1 / len(body)

    async with running(tmp_path, FakeSandboxes({"divide": divide})) as node:
        node.register(revision("divide"))
        with pytest.raises(HandlerError, match="ZeroDivisionError") as caught:
            await awaited(node.invoke, call(b"", "divide"))

        assert caught.value.extra["start"] == "cold"
        assert caught.value.extra["worker"] == "n1"
        assert (await awaited(node.invoke, call(b"12", "divide"))).start is StartKind.WARM


@in_loop
async def test_a_result_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, FakeSandboxes({"make": lambda _body: object()})) as node:
        node.register(revision("make"))
        with pytest.raises(UnserialisableResult):
            await awaited(node.invoke, call(b"", "make"))


@in_loop
async def test_a_revision_that_is_not_known_is_not_found(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.register(revision())
        with pytest.raises(FunctionNotFound, match="r2"):
            await awaited(node.invoke, call(identity="r2"))


@in_loop
async def test_revisions_of_one_function_live_beside_each_other(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision(identity="r1"))
        node.register(revision(identity="r2"))
        await asyncio.gather(*(awaited(node.invoke, call(identity=one)) for one in ("r1", "r2")))

        assert len(sandboxes.open_sandboxes) == 2


@in_loop
async def test_a_burst_on_a_cold_function_opens_one_sandbox_and_what_the_limits_allow(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = GatedSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"max_instances": 2}))
        burst = [ask(node, str(n).encode(), "hold") for n in range(64)]
        await until(lambda: sandboxes.asked)
        sandboxes.gate.set()
        while not all(one.done() for one in burst):
            held.finish()
            await asyncio.sleep(0)

        assert {(await one).start for one in burst} == {StartKind.COLD}
        assert (sandboxes.asked, held.most) == (1, 2)
        assert len(the_sandbox(sandboxes).instances()) == 2
        assert node.report().starts == {"cold": 64}


@in_loop
async def test_what_a_call_waited_for_is_told_by_kind_and_timings(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes(load_s=0.02, fork_s=0.01, exec_s=0.005)
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        cold, warm = await awaited(node.invoke, call()), await awaited(node.invoke, call())

    assert (cold.start, warm.start) == (StartKind.COLD, StartKind.WARM)
    assert min(cold.timings.load, cold.timings.sandbox) > 0
    assert (warm.timings.load, warm.timings.sandbox, warm.timings.libs) == (0, 0, 0)
    assert min(cold.timings.exec, warm.timings.exec) > 0


@in_loop
async def test_who_joins_a_start_under_way_is_charged_only_its_own_wait(tmp_path: Path) -> None:
    sandboxes = GatedSandboxes(load_s=0.02)
    sandboxes.gate.set()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        first = ask(node)
        await until(lambda: sandboxes.asked)
        second = ask(node)
        early, late = (await first).timings, (await second).timings

    assert early.load > late.load


@in_loop
async def test_a_call_that_finds_only_busy_instances_is_a_fork(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold", limits={"max_instances": 2}))
        first = ask(node, b"1", "hold")
        await until(lambda: held.running)
        second = ask(node, b"2", "hold")
        await until(lambda: len(held.running) == 2)
        held.finish()

        assert ((await first).start, (await second).start) == (StartKind.COLD, StartKind.FORK)
        assert node.report().starts == {"cold": 1, "fork": 1}


@in_loop
async def test_one_instance_takes_as_many_calls_at_once_as_it_may(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"concurrency": 4, "max_instances": 1}))
        calls = [ask(node, str(n).encode(), "hold") for n in range(6)]
        await until(lambda: len(held.running) == 4)
        [report] = node.report().functions
        assert (report.busy, report.queued) == (1, 2)

        while not all(one.done() for one in calls):
            held.finish()
            await asyncio.sleep(0)
        assert held.most == 4


@in_loop
async def test_an_instance_that_dies_fails_its_call_and_is_replaced(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold"))
        first = ask(node, b"1", "hold")
        await until(lambda: held.running)
        the_instance(sandboxes).kill()
        assert isinstance(error := await outcome(first), InstanceDied)
        assert "signal 9" in error.detail

        second = ask(node, b"2", "hold")
        await until(lambda: held.running)
        held.finish()
        assert (await second).start is StartKind.FORK
        assert sandboxes.opened == 1


@in_loop
async def test_a_template_that_dies_fails_what_ran_and_serves_what_waited(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        ran = ask(node, b"ran", "hold")
        await until(lambda: held.running)
        waited = ask(node, b"waited", "hold")
        await asyncio.sleep(0)

        the_sandbox(sandboxes).die()

        assert isinstance(await outcome(ran), InstanceDied)
        await until(lambda: b"waited" in held.running)
        held.finish()
        assert (await waited).start is StartKind.COLD
        assert (sandboxes.opened, len(sandboxes.open_sandboxes)) == (2, 1)


@in_loop
async def test_a_template_that_dies_idle_is_opened_again_by_the_next_call(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        await awaited(node.invoke, call())
        the_sandbox(sandboxes).die()
        await until(lambda: not node.report().functions)

        assert (await awaited(node.invoke, call())).start is StartKind.COLD
        assert sandboxes.opened == 2


@in_loop
async def test_a_sandbox_that_was_replaced_takes_nothing_along(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        await awaited(node.invoke, call())
        former = the_sandbox(sandboxes)
        former.die()
        await until(lambda: not node.report().functions)
        await awaited(node.invoke, call())

        former.die()

        assert (await awaited(node.invoke, call())).start is StartKind.WARM
        assert node.report().functions[0].template == "ready"
        assert sandboxes.opened == 2


@pytest.mark.parametrize(
    ("refusal", "kind", "attempts"),
    [
        (DeployFailed("load() raised KeyError."), DeployFailed, 1),
        (Unavailable("No memory is left."), Unavailable, 3),
        (ZeroDivisionError("a defect"), InternalError, 3),
    ],
    ids=["the function's fault", "the node's", "ours"],
)
@in_loop
async def test_a_start_that_fails_answers_all_that_wait_with_the_reason(
    tmp_path: Path, refusal: Exception, kind: type[FaasdError], attempts: int
) -> None:
    sandboxes = GatedSandboxes()
    sandboxes.refusal = refusal
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        calls = [ask(node) for _ in range(5)]
        sandboxes.gate.set()

        found = [await outcome(one) for one in calls]

        assert {type(one) for one in found} == {kind}
        assert str(refusal) in found[0].detail
        assert sandboxes.asked == attempts


@in_loop
async def test_a_queued_call_that_is_cancelled_never_runs(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        first, second, third = (ask(node, body, "hold") for body in (b"1", b"2", b"3"))
        await until(lambda: held.running)

        second.cancel()
        await until(lambda: node.report().functions[0].queued == 1)
        held.finish()
        await until(lambda: b"3" in held.running)
        held.finish()

        await asyncio.gather(first, third)
        assert held.cancelled == []
        assert sum(node.report().starts.values()) == 2


@in_loop
async def test_a_running_call_that_is_cancelled_is_stopped_and_its_instance_kept(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        first = ask(node, b"1", "hold")
        await until(lambda: held.running)
        instance = the_instance(sandboxes)

        first.cancel()
        await until(lambda: held.cancelled == [b"1"])
        second = ask(node, b"2", "hold")
        await until(lambda: held.running)
        held.finish()

        assert (await second).start is StartKind.WARM
        assert the_instance(sandboxes) is instance


class Stubborn:
    """A handler that does not stop when it is told to, but for bodies other than `stay`."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.told = 0

    async def __call__(self, body: bytes) -> bytes:
        if body == b"stay":
            self.begun.set()
            while not self.release.is_set():
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.told += 1
        return body


@in_loop
async def test_a_handler_that_does_not_stop_when_told_is_killed(tmp_path: Path) -> None:
    stubborn = Stubborn()
    sandboxes = FakeSandboxes({"stubborn": stubborn})
    async with running(tmp_path, sandboxes, cancel_grace_s=0.01) as node:
        node.register(revision("stubborn", limits={"max_instances": 1}))
        first = ask(node, b"stay", "stubborn")
        await stubborn.begun.wait()
        instance = the_instance(sandboxes)

        first.cancel()

        assert (await awaited(node.invoke, call(b"next", "stubborn"))).body == b"next"
        assert the_instance(sandboxes) is not instance
        stubborn.release.set()


@in_loop
async def test_an_instance_with_a_handler_that_should_have_stopped_gets_no_more_calls(
    tmp_path: Path,
) -> None:
    stubborn = Stubborn()
    async with running(tmp_path, FakeSandboxes({"stubborn": stubborn})) as node:
        node.register(revision("stubborn", limits={"concurrency": 2, "max_instances": 2}))
        first = ask(node, b"stay", "stubborn")
        await stubborn.begun.wait()
        first.cancel()
        await until(lambda: stubborn.told)

        assert (await awaited(node.invoke, call(b"next", "stubborn"))).start is StartKind.FORK
        stubborn.release.set()


@in_loop
async def test_a_caller_who_leaves_hurts_no_other_of_its_instance_though_no_grace_is_given(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"held": held})
    async with running(tmp_path, sandboxes, cancel_grace_s=0.0) as node:
        node.register(revision("held", limits={"concurrency": 2, "max_instances": 1}))
        leaving, staying = ask(node, b"leaving", "held"), ask(node, b"staying", "held")
        await until(lambda: len(held.running) == 2)

        leaving.cancel()
        await until(lambda: held.cancelled)
        held.finish()

        assert (await staying).body == b"done"
        assert held.cancelled == [b"leaving"]


@in_loop
async def test_a_caller_who_leaves_as_the_deadline_passes_has_the_handler_told_once(
    tmp_path: Path,
) -> None:
    stubborn = Stubborn()
    async with running(tmp_path, FakeSandboxes({"stubborn": stubborn})) as node:
        node.register(revision("stubborn", limits={"max_instances": 1}))
        asked = ask(node, b"stay", "stubborn", remaining_s=0.05)
        await stubborn.begun.wait()
        await until_answered(node)

        asked.cancel()

        await until(lambda: asked.done() and stubborn.told)
        stubborn.release.set()
        assert (await awaited(node.invoke, call(b"next", "stubborn"))).start is StartKind.WARM
        assert stubborn.told == 1


@in_loop
async def test_a_deadline_that_has_passed_is_refused_at_once(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision())
        with pytest.raises(DeadlineExceeded, match="when the invocation arrived"):
            await awaited(node.invoke, call(remaining_s=0.0))

        assert sandboxes.opened == 0


@in_loop
async def test_a_deadline_that_passes_in_the_queue_ends_the_wait(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        first = ask(node, b"1", "hold")
        await until(lambda: held.running)

        with pytest.raises(DeadlineExceeded, match="while it waited"):
            await awaited(node.invoke, call(b"2", "hold", remaining_s=0.01))

        held.finish()
        assert (await first).body == b"done"


@in_loop
async def test_a_deadline_that_passes_in_the_handler_stops_it(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold"))
        with pytest.raises(DeadlineExceeded, match="while it ran"):
            await awaited(node.invoke, call(b"1", "hold", remaining_s=0.05))

        await until(lambda: held.cancelled == [b"1"])


@in_loop
async def test_a_function_past_its_timeout_is_killed_and_another_instance_serves_on(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"max_instances": 1, "timeout_s": 0.05}))
        with pytest.raises(FunctionTimeout, match=r"timeout_s = 0\.05"):
            await awaited(node.invoke, call(b"1", "hold"))

        second = ask(node, b"2", "hold")
        await until(lambda: b"2" in held.running)
        held.finish()
        assert (await second).start is StartKind.FORK


@in_loop
async def test_a_queue_at_its_limit_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held})) as node:
        node.register(revision("hold", limits={"max_instances": 1, "queue": 2}))
        calls = [ask(node, b"0", "hold")]
        await until(lambda: held.running)
        calls += [ask(node, str(n).encode(), "hold") for n in (1, 2)]
        await asyncio.sleep(0)

        with pytest.raises(QueueFull) as caught:
            await awaited(node.invoke, call(b"3", "hold"))
        assert caught.value.retry_after_s

        while not all(one.done() for one in calls):
            held.finish()
            await asyncio.sleep(0)


@in_loop
async def test_a_revision_retired_while_it_runs_finishes_what_it_has_then_goes(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        ran, waited = ask(node, b"1", "hold"), ask(node, b"2", "hold")
        await until(lambda: held.running)

        node.retire("default/hold", "r1")

        with pytest.raises(FunctionNotFound):
            await awaited(node.invoke, call(b"3", "hold"))
        held.finish()
        await until(lambda: b"2" in held.running)
        held.finish()
        assert [(await one).body for one in (ran, waited)] == [b"done", b"done"]
        await until(lambda: not sandboxes.open_sandboxes)
        await until(lambda: not list((tmp_path / "node" / "revisions").iterdir()))
        assert node.report().functions == []


@in_loop
async def test_a_revision_registered_again_while_it_retires_serves_at_once(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold"))
        old = ask(node, b"old", "hold")
        await until(lambda: held.running)
        node.retire("default/hold", "r1")

        node.register(revision("hold"))
        new = ask(node, b"new", "hold")
        await until(lambda: len(held.running) == 2)
        held.finish()

        assert [(await one).start for one in (old, new)] == [StartKind.COLD, StartKind.COLD]
        await until(lambda: len(sandboxes.open_sandboxes) == 1)


@in_loop
async def test_retiring_what_is_not_known_is_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.retire("default/echo", "r1")
        node.register(revision())
        node.retire("default/echo", "r2")

        assert (await awaited(node.invoke, call())).body == b"x"


@in_loop
async def test_keep_only_retires_all_others(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes) as node:
        for identity in ("r1", "r2", "r3"):
            node.register(revision(identity=identity))
            await awaited(node.invoke, call(identity=identity))

        node.keep_only({"default/echo@r2", "default/other@r1"})

        await until(lambda: len(sandboxes.open_sandboxes) == 1)
        assert [one.revision for one in node.report().functions] == ["r2"]
        assert (await awaited(node.invoke, call(identity="r2"))).start is StartKind.WARM


@in_loop
async def test_a_minimum_of_instances_is_kept_and_given_up_again(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    scaling = {"keep_alive": 0.0}
    async with running(tmp_path, sandboxes, template_keep_alive_s=0.0) as node:
        node.register(revision(minimum=2, scaling=scaling))
        await until(lambda: node.report().functions[0].idle == 2)

        the_sandbox(sandboxes).die()
        await until(lambda: sandboxes.opened == 2 and node.report().functions[0].idle == 2)

        node.register(revision(scaling=scaling))
        await until(lambda: not sandboxes.open_sandboxes)


@in_loop
async def test_an_unused_function_scales_to_nothing_and_comes_back(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes, template_keep_alive_s=0.0) as node:
        node.register(revision(scaling={"keep_alive": 0.0}))
        for opened in (1, 2):
            assert (await awaited(node.invoke, call())).start is StartKind.COLD
            await until(lambda: not sandboxes.open_sandboxes)
            assert sandboxes.opened == opened


@in_loop
async def test_a_prepared_revision_has_an_instance_ready(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    stages: list[str] = []
    async with running(tmp_path, sandboxes) as node:
        await node.prepare(revision(), lambda stage, _detail: stages.append(stage))

        assert (await awaited(node.invoke, call())).start is StartKind.WARM
        await node.prepare(revision())
        assert sandboxes.opened == 1
    assert "template" in stages


@in_loop
async def test_two_who_prepare_one_revision_share_its_start(tmp_path: Path) -> None:
    sandboxes = GatedSandboxes()
    async with running(tmp_path, sandboxes) as node:
        both = [asyncio.ensure_future(node.prepare(revision())) for _ in range(2)]
        await until(lambda: sandboxes.asked)
        sandboxes.gate.set()
        await asyncio.gather(*both)

        assert sandboxes.asked == 1


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"runtime": "cobol"}, "cobol"),
        ({"resources": {"memory_mb": 5000}}, "5000"),
        ({"resources": {"gpus": 64}}, "64 GPUs"),
    ],
    ids=["runtime", "memory", "gpus"],
)
@in_loop
async def test_a_function_that_cannot_run_here_is_refused_before_anything_starts(
    tmp_path: Path, spec: dict[str, Any], word: str
) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes) as node:
        with pytest.raises(DeployFailed, match=word) as caught:
            await node.prepare(revision(**spec))

        assert caught.value.remedy
        assert (sandboxes.opened, len(node._services)) == (0, 0)


@pytest.mark.parametrize("known", [False, True])
@in_loop
async def test_a_revision_that_refuses_to_start_is_forgotten_unless_it_was_known(
    tmp_path: Path, *, known: bool
) -> None:
    sandboxes = GatedSandboxes()
    sandboxes.gate.set()
    sandboxes.refusal = DeployFailed("load() raised KeyError.", traceback="T")
    async with running(tmp_path, sandboxes) as node:
        if known:
            node.register(revision())
        with pytest.raises(DeployFailed, match="KeyError") as caught:
            await node.prepare(revision())

        assert caught.value.traceback == "T"
        assert len(node._services) == known


@in_loop
async def test_a_deploy_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    sandboxes = GatedSandboxes()
    async with running(tmp_path, sandboxes) as node:
        preparing = asyncio.ensure_future(node.prepare(revision()))
        await until(lambda: sandboxes.asked)

        preparing.cancel()
        sandboxes.gate.set()

        await until(lambda: preparing.done() and sandboxes.opened and not sandboxes.open_sandboxes)
        assert not node._services


@in_loop
async def test_a_deploy_that_is_overtaken_says_so(tmp_path: Path) -> None:
    sandboxes = GatedSandboxes()
    async with running(tmp_path, sandboxes) as node:
        preparing = asyncio.ensure_future(node.prepare(revision()))
        await until(lambda: sandboxes.asked)

        node.retire("default/echo", "r1")

        assert isinstance(await outcome(preparing), Conflict)
        sandboxes.gate.set()
        await until(lambda: sandboxes.opened and not sandboxes.open_sandboxes)


@in_loop
async def test_a_node_that_ends_lets_what_runs_finish(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    node = make_node(tmp_path, sandboxes, shutdown_grace_s=1000)
    await node.start()
    node.register(revision("hold", limits={"max_instances": 1}))
    ran, waited = ask(node, b"1", "hold"), ask(node, b"2", "hold")
    await until(lambda: held.running)

    closing = asyncio.ensure_future(node.aclose())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await awaited(node.invoke, call(b"3", "hold"))
    with pytest.raises(Unavailable):
        await node.prepare(revision("hold"))
    held.finish()
    await until(lambda: b"2" in held.running)
    held.finish()
    await closing

    assert [(await one).body for one in (ran, waited)] == [b"done", b"done"]
    assert not sandboxes.open_sandboxes


@in_loop
async def test_a_node_that_may_not_wait_answers_all_that_do(tmp_path: Path) -> None:
    held = Held()
    sandboxes = GatedSandboxes({"hold": held})
    sandboxes.gate.set()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("hold", limits={"max_instances": 1}))
        calls = [ask(node, b"1", "hold"), ask(node, b"2", "hold")]
        await until(lambda: held.running)
        sandboxes.gate.clear()
        node.register(revision())
        starting = ask(node)
        preparing = asyncio.ensure_future(node.prepare(revision("other")))
        await until(lambda: sandboxes.asked == 3)

    for one in (*calls, starting):
        assert isinstance(await outcome(one), Unavailable)
    assert isinstance(await outcome(preparing), Unavailable)
    assert not sandboxes.open_sandboxes
    assert held.running == {}


@in_loop
async def test_two_nodes_cannot_share_a_folder_but_follow_each_other(tmp_path: Path) -> None:
    async with running(tmp_path):
        with pytest.raises(BadRequest, match="Another worker uses the folder") as refused:
            await make_node(tmp_path).start()
        assert "--data" in refused.value.remedy

    async with running(tmp_path) as next_one:
        next_one.register(revision())
        assert (await awaited(next_one.invoke, call())).body == b"x"


@in_loop
async def test_logs_are_kept_per_function_and_followed(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(tmp_path, sandboxes, log_lines=10) as node:
        node.register(revision())
        await awaited(node.invoke, call())
        output = the_sandbox(sandboxes).output
        for n in range(15):
            output("i1", "q1", "stdout", f"line {n}")

        kept = node.logs("default/echo", tail=100)
        assert [line.line for line in kept] == [f"line {n}" for n in range(5, 15)]
        first = kept[0]
        assert (first.function, first.revision) == ("default/echo", "r1")
        assert (first.instance, first.request_id, first.stream) == ("i1", "q1", "stdout")
        assert [line.line for line in node.logs("default/echo", tail=1)] == ["line 14"]
        assert node.logs("default/other", tail=5) == []

        followed = node.follow_logs("default/echo", tail=1)
        assert (await anext(followed)).line == "line 14"
        output("i1", "", "stderr", "more")
        assert (await anext(followed)).line == "more"
        await followed.aclose()  # type: ignore[attr-defined]


@in_loop
async def test_what_is_known_and_not_used_costs_a_few_kilobytes(tmp_path: Path) -> None:
    functions = 64
    async with running(tmp_path) as node:
        node.register(revision("first"))
        told = [json.dumps(revision(f"idle-{n}").to_plain()) for n in range(functions)]
        gc.collect()
        tracemalloc.start()
        try:
            for plain in told:
                node.register(Revision.from_plain(json.loads(plain)))
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert taken / functions / 1024 < 6


@in_loop
async def test_only_what_has_something_here_is_looked_at(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with running(
        tmp_path, sandboxes, template_keep_alive_s=0.0, memory_interval_s=0.1
    ) as node:
        for name in ("echo", "idle"):
            node.register(revision(name, scaling={"keep_alive": 0.0}))
        assert node._holding() == []

        await awaited(node.invoke, call())
        assert [one.revision.function for one in node._holding()] == ["default/echo"]

        await until(lambda: not sandboxes.open_sandboxes)
        assert node._holding() == []


@in_loop
async def test_memory_is_looked_at_once_more_when_its_processes_have_ended(tmp_path: Path) -> None:
    async with running(tmp_path, memory_interval_s=0.1) as node:
        node.register(revision(scaling={"keep_alive": 0.0}))
        await awaited(node.invoke, call())
        [service] = node._holding()
        service.memory_mb = 50.0
        service.evict()

        await until(lambda: not node._holding())

        assert service.memory_mb == 0
        assert node.report().memory_used_mb == 0


@in_loop
async def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    held = Held()
    async with running(tmp_path, FakeSandboxes({"hold": held}), slots=3) as node:
        node.register(revision("hold", limits={"max_instances": 2}))
        before = node.report().functions
        calls = [ask(node, str(n).encode(), "hold") for n in range(5)]
        await until(lambda: len(held.running) == 2)

        report = node.report()
        [function] = report.functions
        assert before == []
        assert (function.function, function.revision) == ("default/hold", "r1")
        assert (function.template, function.idle, function.busy) == ("ready", 0, 2)
        assert function.queued == 3
        assert (report.id, report.slots, report.memory_budget_mb) == ("n1", 3, 4096)
        assert (report.memory_used_mb, report.starts) == (0, {"cold": 2})
        assert [runtime.name for runtime in report.runtimes] == ["python"]
        assert WorkerReport.from_plain(report.to_plain()) == report

        while not all(one.done() for one in calls):
            held.finish()
            await asyncio.sleep(0)
        [after] = node.report().functions
        assert (after.idle, after.busy, after.queued) == (2, 0, 0)


class Streaming:
    """A handler that yields chunks, and says how far it came and how it ended."""

    def __init__(self, chunks: list[bytes], *, fails: Exception | None = None) -> None:
        self.chunks = chunks
        self.fails = fails
        self.produced = 0
        self.ended = asyncio.Event()
        self.hold: asyncio.Event | None = None

    async def __call__(self, _body: bytes) -> Any:
        return self.run()

    async def run(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self.chunks:
                self.produced += 1
                yield chunk
            if self.fails is not None:
                raise self.fails
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.ended.set()


@in_loop
async def test_a_generator_is_answered_with_its_chunks(tmp_path: Path) -> None:
    streaming = Streaming([b"a", b"b", b"c"])
    async with running(tmp_path, FakeSandboxes({"stream": streaming})) as node:
        node.register(revision("stream"))
        reply = await awaited(node.invoke, call(b"", "stream"))
        assert reply.chunks is not None

        assert [chunk async for chunk in reply.chunks] == [b"a", b"b", b"c"]
        assert (await awaited(node.invoke, call(b"", "stream"))).start is StartKind.WARM


@in_loop
async def test_a_stream_that_fails_gives_what_it_had_and_then_the_reason(tmp_path: Path) -> None:
    streaming = Streaming([b"a"], fails=KeyError("b"))
    async with running(tmp_path, FakeSandboxes({"stream": streaming})) as node:
        node.register(revision("stream"))
        reply = await awaited(node.invoke, call(b"", "stream"))
        assert reply.chunks is not None

        assert await anext(reply.chunks) == b"a"
        with pytest.raises(HandlerError, match="KeyError"):
            await anext(reply.chunks)


@in_loop
async def test_an_instance_that_dies_in_mid_stream_breaks_it_off(tmp_path: Path) -> None:
    streaming = Streaming([b"a"])
    streaming.hold = asyncio.Event()
    sandboxes = FakeSandboxes({"stream": streaming})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("stream"))
        reply = await awaited(node.invoke, call(b"", "stream"))
        assert reply.chunks is not None
        assert await anext(reply.chunks) == b"a"

        the_instance(sandboxes).kill()

        with pytest.raises(InstanceDied):
            await anext(reply.chunks)


@in_loop
async def test_a_stream_that_nobody_reads_pauses_its_producer(tmp_path: Path) -> None:
    streaming = Streaming([b"x" * (1 << 16)] * 100)
    async with running(tmp_path, FakeSandboxes({"stream": streaming})) as node:
        node.register(revision("stream", limits={"max_instances": 1}))
        node.register(revision("echo"))
        reply = await awaited(node.invoke, call(b"", "stream"))
        assert reply.chunks is not None
        await until(lambda: streaming.produced > 16)
        for _ in range(20):
            await awaited(node.invoke, call())

        assert streaming.produced < 20
        assert sum([len(chunk) async for chunk in reply.chunks]) == 100 << 16


@pytest.mark.parametrize("taken", [0, 1])
@in_loop
async def test_closing_a_stream_early_cancels_its_handler(tmp_path: Path, taken: int) -> None:
    streaming = Streaming([b"a", b"b"])
    streaming.hold = asyncio.Event()
    async with running(tmp_path, FakeSandboxes({"stream": streaming})) as node:
        node.register(revision("stream", limits={"max_instances": 1}))
        reply = await awaited(node.invoke, call(b"", "stream"))
        assert reply.chunks is not None
        for _ in range(taken):
            await anext(reply.chunks)

        await reply.chunks.aclose()  # type: ignore[attr-defined]

        await streaming.ended.wait()
        await until(lambda: node.report().functions[0].idle == 1)


@in_loop
async def test_a_caller_who_leaves_as_the_stream_begins_cancels_its_handler(tmp_path: Path) -> None:
    streaming = Streaming([b"a"])
    streaming.hold = asyncio.Event()
    sandboxes = FakeSandboxes({"stream": streaming})
    async with running(tmp_path, sandboxes) as node:
        node.register(revision("stream", limits={"max_instances": 1}))
        await node.prepare(revision("stream"))
        asked = ask(node, b"", "stream")
        await until_answered(node)

        asked.cancel()

        await streaming.ended.wait()
        await until(lambda: node.report().functions[0].idle == 1)
        with pytest.raises(asyncio.CancelledError):
            await asked


async def until_answered(node: Node) -> None:
    """Until the answer of the only call is there, and its caller has not run since."""
    [service] = node._services.values()
    while not service._pending:
        await asyncio.sleep(0)
    [pending] = service._pending.values()
    while not pending.told:
        await asyncio.sleep(0)


@in_loop
async def test_a_revision_of_two_controllers_lives_until_both_have_retired_it(
    tmp_path: Path,
) -> None:
    first, second = OnDisk(tmp_path / "artifacts"), OnDisk(tmp_path / "artifacts")
    async with running(tmp_path) as node:
        node.register(revision(), first)
        node.register(revision(), second)
        node.retire("default/echo", "r1", first)
        node.retire("default/echo", "r1", first)

        assert (await awaited(node.invoke, call())).body == b"x"
        node.keep_only(set(), second)
        with pytest.raises(FunctionNotFound):
            await awaited(node.invoke, call())


@in_loop
async def test_the_highest_minimum_of_several_controllers_is_kept(tmp_path: Path) -> None:
    first, second = OnDisk(tmp_path / "artifacts"), OnDisk(tmp_path / "artifacts")
    async with running(tmp_path) as node:
        node.register(revision(minimum=1), first)
        node.register(revision(minimum=3), second)
        await until(lambda: node.report().functions[0].idle == 3)

        node.retire("default/echo", "r1", second)

        [service] = node._services.values()
        assert service.pool.min_instances == 1


@in_loop
async def test_what_one_controller_keeps_only_is_its_own(tmp_path: Path) -> None:
    first, second = OnDisk(tmp_path / "artifacts"), OnDisk(tmp_path / "artifacts")
    async with running(tmp_path) as node:
        for identity, owner in (("r1", first), ("r2", first), ("r3", second)):
            node.register(revision(identity=identity), owner)

        node.keep_only({"default/echo@r1"}, first)

        assert sorted(node._services) == ["default/echo@r1", "default/echo@r3"]


@in_loop
async def test_a_deploy_that_fails_takes_nothing_from_another_controller(tmp_path: Path) -> None:
    first, second = OnDisk(tmp_path / "artifacts"), OnDisk(tmp_path / "artifacts")
    sandboxes = GatedSandboxes()
    async with running(tmp_path, sandboxes) as node:
        node.register(revision(), first)
        sandboxes.refusal = DeployFailed("It does not import.")
        sandboxes.gate.set()
        with pytest.raises(DeployFailed):
            await node.prepare(revision(), owner=second)

        assert list(node._services) == ["default/echo@r1"]
        node.retire("default/echo", "r1", first)
        assert not node._services
