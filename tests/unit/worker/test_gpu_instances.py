"""Instances and their GPUs on a real node: what they are given, wait for, lose and give back.

Only the sandboxes and the devices are stand-ins: the devices are those that the test names.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faasd.bridges import awaited
from faasd.errors import (
    DeployFailed,
    FaasdError,
    HandlerError,
    InstanceDied,
    OutOfMemory,
    Unavailable,
)
from faasd.invocation import GpuReport, Reply, Revision
from tests.loops import in_loop, until
from tests.unit.worker import nodes
from tests.unit.worker.nodes import Held, call, outcome
from worker.gpus.inventory import GpuInventory
from worker.gpus.nvml import GpuProcess, GpuReading, Mute, Nvml, Reading
from worker.node import Node
from worker.sandboxes.fake import FakeInstance, FakeSandbox, FakeSandboxes

WHOLE = {"gpus": 1}
# Beyond what the kernel numbers: no process of this machine is meant.
PROCESS = 5_000_001


class Devices(Nvml):
    """Devices of 16 GB that are named by their labels; `used` has (label, process, MB)."""

    def __init__(self, *labels: str) -> None:
        super().__init__()
        self.labels = labels
        self.lost: set[str] = set()
        self.used: list[tuple[str, int, float]] = []

    def read(self) -> Reading:
        gpus = tuple(self._read(label) for label in self.labels if label not in self.lost)
        mute = tuple(Mute(label, "GPU is lost", lost=True) for label in sorted(self.lost))
        return Reading(gpus, mute, "" if self.labels else "no driver")

    def _read(self, label: str) -> GpuReading:
        processes = tuple(
            GpuProcess(pid, used, (pid,)) for where, pid, used in self.used if where == label
        )
        used_mb = sum(one.used_mb or 0.0 for one in processes)
        return GpuReading(label, label, "Model", 16_000, used_mb, processes=processes)


class Machine:
    """A node, its devices and its sandboxes."""

    def __init__(self, node: Node, devices: Devices, sandboxes: FakeSandboxes) -> None:
        self.node = node
        self.devices = devices
        self.sandboxes = sandboxes

    def register(self, name: str, *, minimum: int = 0, **spec: Any) -> Revision:
        made = revision(name, minimum=minimum, **spec)
        self.node.register(made)
        return made

    def ask(self, name: str, body: bytes = b"x", identity: str = "r1") -> asyncio.Future[Reply]:
        return asyncio.ensure_future(awaited(self.node.invoke, call(body, name, identity)))

    def instances(self) -> list[FakeInstance]:
        found = [one for box in self.sandboxes.open_sandboxes for one in box.instances().values()]
        return [one for one in found if isinstance(one, FakeInstance)]

    def visible(self) -> list[str]:
        return sorted(one.env["CUDA_VISIBLE_DEVICES"] for one in self.instances())

    def gpus(self) -> dict[str, GpuReport]:
        return {one.label: one for one in self.node.report().gpus}

    def held(self) -> int:
        return sum(one.instances for one in self.node.report().gpus)

    async def use(self, label: str, memory_mb: float) -> FakeInstance:
        """The only instance is seen to use so much of a device."""
        await until(self.instances)
        [instance] = self.instances()
        instance.processes = [PROCESS]
        self.devices.used = [(label, PROCESS, memory_mb)]
        return instance


def revision(name: str, **spec: Any) -> Revision:
    return nodes.revision(name, **{"resources": WHOLE, "limits": {"max_instances": 1}, **spec})


@contextlib.asynccontextmanager
async def machine(
    folder: Path,
    *labels: str,
    sandboxes: FakeSandboxes | None = None,
    interval_s: float = 0.01,
) -> AsyncIterator[Machine]:
    devices, sandboxes = Devices(*labels), sandboxes or FakeSandboxes()
    inventory = GpuInventory(devices)
    settings: dict[str, Any] = {"inventory": inventory, "memory_interval_s": interval_s}
    async with nodes.running(folder, sandboxes, **settings) as node:
        yield Machine(node, devices, sandboxes)


@in_loop
async def test_every_instance_is_told_the_device_of_its_own(tmp_path: Path) -> None:
    held = Held()
    async with machine(tmp_path, "gpu0", "gpu1", sandboxes=FakeSandboxes({"f": held})) as one:
        one.register("f", limits={"max_instances": 2})
        calls = [one.ask("f", body) for body in (b"1", b"2")]
        await until(lambda: len(held.running) == 2)

        assert one.visible() == ["gpu0", "gpu1"]
        assert [gpu.instances for gpu in one.gpus().values()] == [1, 1]
        held.finish()
        await asyncio.gather(*calls)


@in_loop
async def test_a_function_without_gpus_is_told_nothing_and_waits_for_nothing(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path, "gpu0") as one:
        one.register("f", resources={})
        await one.ask("f")

        assert [instance.env for instance in one.instances()] == [{}]
        assert one.held() == 0


@in_loop
async def test_an_idle_instance_makes_room_for_one_that_waits(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"first": held})
    async with machine(tmp_path, "gpu0", sandboxes=sandboxes, interval_s=3600) as one:
        one.register("first")
        one.register("second")
        first = one.ask("first")
        await until(lambda: held.running)
        second = one.ask("second")
        await until(lambda: len(one.sandboxes.open_sandboxes) == 2)
        assert not second.done()

        held.finish()
        await asyncio.gather(first, second)

        assert one.held() == 1
        states = {f.function: (f.template, f.idle) for f in one.node.report().functions}
        assert states == {"default/first": ("ready", 0), "default/second": ("ready", 1)}


@in_loop
async def test_an_instance_that_a_minimum_keeps_makes_no_room(tmp_path: Path) -> None:
    async with machine(tmp_path, "gpu0") as one:
        one.register("kept", minimum=1)
        await one.ask("kept")
        one.register("other")
        other = one.ask("other")
        await until(lambda: len(one.sandboxes.open_sandboxes) == 2)
        await one.ask("kept")

        assert not other.done()
        other.cancel()


@in_loop
async def test_an_instance_that_idles_out_gives_its_device_back_and_leaves_the_template(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path, "gpu0") as one:
        one.register("f", scaling={"keep_alive": 0})
        await one.ask("f")
        await until(lambda: one.held() == 0)
        assert len(one.sandboxes.open_sandboxes) == 1

        await one.ask("f")

        assert one.sandboxes.opened == 1


@in_loop
async def test_every_call_of_an_instance_over_its_budget_is_told_so(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes({"f": Held()})
    async with machine(tmp_path, "gpu0", sandboxes=sandboxes) as one:
        limits = {"max_instances": 1, "concurrency": 2}
        one.register("f", resources={"gpus": 0.5, "gpu_memory_mb": 4096}, limits=limits)
        calls = [one.ask("f", body) for body in (b"1", b"2")]
        await one.use("gpu0", 5120)
        errors = [await outcome(one) for one in calls]

        assert {type(error) for error in errors} == {OutOfMemory}
        assert {error.detail for error in errors} == {
            "The function used 5,120 MB of GPU memory; [resources] gpu_memory_mb = 4096."
        }
        assert errors[0] is not errors[1]
        await until(lambda: one.held() == 0)


@in_loop
async def test_an_instance_over_its_budget_is_ended_while_it_attaches(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes(fork_s=1000)
    async with machine(tmp_path, "gpu0", sandboxes=sandboxes) as one:
        wanted = revision("f", resources={"gpus": 0.5, "gpu_memory_mb": 4096})
        deploy = asyncio.ensure_future(one.node.prepare(wanted))
        await one.use("gpu0", 5120)
        error = await outcome(deploy)

        assert isinstance(error, OutOfMemory)
        assert "gpu_memory_mb = 4096" in error.detail
        assert one.held() == 0


@in_loop
async def test_an_instance_that_attaches_to_what_it_was_not_given_is_refused(
    tmp_path: Path,
) -> None:
    sandboxes = FakeSandboxes(fork_s=1000)
    async with machine(tmp_path, "gpu0", "gpu1", sandboxes=sandboxes) as one:
        deploy = asyncio.ensure_future(one.node.prepare(revision("f")))
        await one.use("gpu1", 100)
        error = await outcome(deploy)

        assert isinstance(error, DeployFailed)
        assert error.detail == "The function used gpu1 (Model), which it was not given."
        assert "CUDA_VISIBLE_DEVICES" in error.remedy


@in_loop
async def test_a_function_without_gpus_that_uses_one_is_ended(tmp_path: Path) -> None:
    async with machine(tmp_path, "gpu0", sandboxes=FakeSandboxes({"f": Held()})) as one:
        one.register("f", resources={})
        asked = one.ask("f")
        await one.use("gpu0", 100)

        error = await outcome(asked)
        assert isinstance(error, HandlerError)
        assert "gpu0 (Model), which it was not given" in error.detail


@pytest.mark.parametrize("contained", [False, True])
@in_loop
async def test_who_loses_a_device_is_told_and_the_next_one_takes_another(
    tmp_path: Path, *, contained: bool
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"f": held}, contained=contained)
    async with machine(tmp_path, "gpu0", "gpu1", sandboxes=sandboxes) as one:
        one.register("f")
        first = one.ask("f")
        await until(lambda: held.running)
        assert one.visible() == ["gpu0"]

        one.devices.lost.add("gpu0")
        error = await outcome(first)
        second = one.ask("f")
        await until(lambda: held.running)

        assert isinstance(error, InstanceDied)
        assert "gpu0 (Model) was lost while the function held it" in error.detail
        assert one.visible() == ["gpu1"]
        # A container's devices are those it was made with: another was needed.
        assert sandboxes.opened == (2 if contained else 1)
        assert len(sandboxes.open_sandboxes) == 1
        held.finish()
        await second


@in_loop
async def test_a_sandbox_whose_devices_others_hold_is_left_for_one_with_room(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"holder": held}, contained=True)
    async with machine(tmp_path, "gpu0", "gpu1", sandboxes=sandboxes) as one:
        one.register("f", scaling={"keep_alive": 0})
        one.register("holder")
        await one.ask("f")
        await until(lambda: one.held() == 0)
        holder = one.ask("holder")
        await until(lambda: held.running)
        assert one.visible() == ["gpu0"]

        await one.ask("f")

        assert sandboxes.opened == 3
        assert len(sandboxes.open_sandboxes) == 2
        held.finish()
        await holder


@in_loop
async def test_who_finds_every_device_lost_is_told_at_once(tmp_path: Path) -> None:
    async with machine(tmp_path, "gpu0", sandboxes=FakeSandboxes(contained=True)) as one:
        one.register("f", scaling={"keep_alive": 0})
        await one.ask("f")
        await until(lambda: one.held() == 0)
        one.devices.lost.add("gpu0")
        await until(lambda: one.gpus()["gpu0"].health == "lost")

        error = await outcome(one.ask("f"))

        assert isinstance(error, Unavailable)
        assert "GPU is lost" in error.detail


@in_loop
async def test_a_template_that_uses_a_device_ends_with_all_that_came_of_it(
    tmp_path: Path,
) -> None:
    held = Held()
    async with machine(tmp_path, "gpu0", sandboxes=FakeSandboxes({"f": held})) as one:
        one.register("f")
        running = one.ask("f")
        await until(lambda: held.running)
        waiting = one.ask("f", b"2")
        [sandbox] = one.sandboxes.open_sandboxes
        sandbox.processes = [PROCESS]
        one.devices.used = [("gpu0", PROCESS, 300)]

        for error in [await outcome(running), await outcome(waiting), await outcome(one.ask("f"))]:
            assert isinstance(error, DeployFailed)
            assert "attach()" in error.remedy
        assert one.sandboxes.open_sandboxes == set()
        assert one.held() == 0


@in_loop
async def test_a_deploy_whose_template_uses_a_device_fails_for_it(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes(fork_s=1000)
    async with machine(tmp_path, "gpu0", sandboxes=sandboxes) as one:
        deploy = asyncio.ensure_future(one.node.prepare(revision("f")))
        await until(one.instances)
        [sandbox] = sandboxes.open_sandboxes
        sandbox.processes = [PROCESS]
        one.devices.used = [("gpu0", PROCESS, 300)]
        error = await outcome(deploy)

        assert isinstance(error, DeployFailed)
        assert "what is there cannot be forked" in error.detail
        await until(lambda: one.held() == 0)


def kill_the_instance(one: Machine) -> None:
    for instance in one.instances():
        instance.kill()


def kill_the_template(one: Machine) -> None:
    for sandbox in list(one.sandboxes.open_sandboxes):
        assert isinstance(sandbox, FakeSandbox)
        sandbox.die()


def retire(one: Machine) -> None:
    one.node.retire("default/f", "r1")


@pytest.mark.parametrize("end", [kill_the_instance, kill_the_template, retire])
@pytest.mark.parametrize("attaches", [False, True])
@in_loop
async def test_whatever_ends_an_instance_gives_its_device_back(
    tmp_path: Path, end: Any, *, attaches: bool
) -> None:
    sandboxes = FakeSandboxes(fork_s=0.05 if attaches else 0.0)
    async with machine(tmp_path, "gpu0", sandboxes=sandboxes) as one:
        one.register("f", scaling={"keep_alive": 0})
        asked = one.ask("f")
        await until(lambda: one.held() if attaches else asked.done())

        end(one)

        with contextlib.suppress(FaasdError):
            await asked
        await until(lambda: one.held() == 0)


@in_loop
async def test_a_node_that_ends_leaves_nothing_held_by_who_attaches_or_waits(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path, "gpu0", sandboxes=FakeSandboxes(fork_s=1000)) as one:
        one.register("attaches")
        one.register("waits")
        calls = [one.ask("attaches")]
        await until(lambda: one.held() == 1)
        calls.append(one.ask("waits"))
        await until(lambda: len(one.sandboxes.open_sandboxes) == 2)

    assert {type(await outcome(each)) for each in calls} == {Unavailable}
    assert one.held() == 0


@in_loop
async def test_a_revision_that_returns_holds_devices_beside_its_former_self(
    tmp_path: Path,
) -> None:
    held = Held()
    async with machine(tmp_path, "gpu0", "gpu1", sandboxes=FakeSandboxes({"f": held})) as one:
        one.register("f")
        former = one.ask("f", b"former")
        await until(lambda: held.running)
        one.node.retire("default/f", "r1")
        one.register("f")
        present = one.ask("f", b"present")
        await until(lambda: len(held.running) == 2)
        assert one.visible() == ["gpu0", "gpu1"]

        held.running[b"former"].set_result(b"done")
        await former
        await until(lambda: one.held() == 1)

        assert one.gpus()["gpu1"].instances == 1
        held.finish()
        await present


@in_loop
async def test_a_report_counts_the_sandboxes(tmp_path: Path) -> None:
    async with machine(tmp_path, "gpu0") as one:
        one.register("f")
        await one.ask("f")

        assert one.node.report().sandboxes == {"claimed": 1}
