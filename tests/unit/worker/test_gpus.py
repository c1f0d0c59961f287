"""GPUs: what NVML says, who holds what, who waits, who must end.

NVML itself is a stand-in made from `nvml_stand_in.c`, read by the real pynvml in processes of
their own, as it would be loaded. What is decided from readings is tested on plain values.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from faasd.errors import (
    BadRequest,
    DeployFailed,
    FaasdError,
    HandlerError,
    InstanceDied,
    OutOfMemory,
    Unavailable,
)
from faasd.invocation import WorkerReport
from faasd.policies.placement import Refusal, Request
from faasd.spec import Resources
from tests.loops import in_loop, until
from tests.platform import Platform, eventually, refused
from worker.gpus.desk import GpuDesk
from worker.gpus.inventory import Gpu, GpuInventory, Health, merge
from worker.gpus.ledger import GpuLedger, Grant, Mps, engine_refusal
from worker.gpus.nvml import GpuProcess, GpuReading, Mute, Nvml, Reading, lineage
from worker.sandboxes.docker.engine import Engine

SOURCE = Path(__file__).with_name("nvml_stand_in.c")
WHOLE = "GPU-00000000-0000-0000-0000-000000000000"
BOARD = "GPU-11111111-1111-1111-1111-111111111111"
LARGE_PART = "MIG-11111111-0000-0000-0000-000000000000"
SMALL_PART = "MIG-11111111-2222-0000-0000-000000000000"

READER = """
import asyncio, json, sys
from dataclasses import asdict
from faasd.telemetry import configure_logging
from worker.gpus.inventory import GpuInventory

configure_logging()


async def answer(inventory):
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(beat())
    await inventory.refresh()
    beating.cancel()
    gpus = [{**asdict(gpu.last), "health": gpu.health, "fault": gpu.fault} for gpu in inventory.gpus]
    print(json.dumps({"fault": inventory.fault, "gpus": gpus, "beats": beats}), flush=True)


async def main():
    inventory = GpuInventory(patience_s=float(sys.argv[1]))
    while await asyncio.to_thread(sys.stdin.readline):
        await answer(inventory)
    await inventory.aclose()


asyncio.run(main())
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 made from the C source."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in libnvidia-ml.so.1")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    folder = tmp_path_factory.mktemp("nvml")
    made = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o"]
    command = [compiler, *made, str(folder / "libnvidia-ml.so.1"), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


class Machine:
    """A process that reads the stand-in's devices whenever it is asked to."""

    def __init__(self, library: Path | None, told: Path, *, patience_s: float) -> None:
        self.told = told
        env = {**os.environ, "NVML_STAND_IN": str(told)}
        if library is not None:
            env["LD_LIBRARY_PATH"] = str(library)
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, str(patience_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).resolve().parents[3],
        )

    def tell(self, name: str, text: str = "") -> None:
        (self.told / name).write_text(text)

    def untell(self, name: str) -> None:
        (self.told / name).unlink()

    def read(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def healths(self) -> dict[str, str]:
        return {gpu["label"]: gpu["health"] for gpu in self.read()["gpus"]}

    def end(self) -> int:
        """Its exit status, once it was told that no question follows."""
        self.process.communicate()
        return self.process.returncode


@contextlib.contextmanager
def machine(library: Path | None, told: Path, *, patience_s: float = 60.0) -> Iterator[Machine]:
    made = Machine(library, told, patience_s=patience_s)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def test_every_device_is_read_and_a_gpu_in_mig_mode_is_its_instances(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path) as one:
        found = one.read()

    assert found["fault"] == ""
    assert [
        (g["label"], g["uuid"], g["parent"], g["memory_mb"], g["used_mb"], g["utilisation"])
        for g in found["gpus"]
    ] == [
        ("gpu0", WHOLE, "", 16_000, 500, 37),
        ("gpu1.0", LARGE_PART, BOARD, 20_000, 500, None),
        ("gpu1.2", SMALL_PART, BOARD, 5_000, 500, None),
    ]
    assert {g["health"] for g in found["gpus"]} == {"ready"}
    assert found["gpus"][0]["name"] == "Stand-in 16"


def test_processes_are_read_with_their_memory_and_their_ancestors(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path) as one:
        one.tell("processes", f"0 {one.process.pid} 1000\n0 999999 24\n1.2 {os.getpid()} 300\n")
        whole, _, part = one.read()["gpus"]

    assert whole["used_mb"] == 1524
    assert [(p["pid"], p["used_mb"]) for p in whole["processes"]] == [
        (one.process.pid, 1000),
        (999_999, 24),
    ]
    assert whole["processes"][0]["lineage"][:2] == [one.process.pid, os.getpid()]
    assert whole["processes"][1]["lineage"] == [999_999]
    assert [p["pid"] for p in part["processes"]] == [os.getpid()]


def test_a_device_that_falls_off_the_bus_is_lost_and_comes_back(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path) as one:
        one.read()
        one.tell("lost0")
        gone = one.read()["gpus"]
        one.untell("lost0")
        back = one.healths()

    assert (gone[0]["label"], gone[0]["uuid"]) == ("gpu0", WHOLE)
    assert (gone[0]["health"], gone[0]["fault"]) == ("lost", "GPU is lost")
    assert [g["health"] for g in gone[1:]] == ["ready", "ready"]
    assert set(back.values()) == {"ready"}


def test_a_mig_board_takes_its_instances_along(library: Path, tmp_path: Path) -> None:
    with machine(library, tmp_path) as one:
        one.read()
        one.tell("lost1")

        assert one.healths() == {"gpu0": "ready", "gpu1.0": "lost", "gpu1.2": "lost"}


def test_a_device_that_was_lost_from_the_beginning_is_shown(library: Path, tmp_path: Path) -> None:
    with machine(library, tmp_path) as one:
        one.tell("lost0")
        first = one.read()["gpus"][0]
        one.untell("lost0")

        assert (first["uuid"], first["health"]) == ("", "lost")
        assert one.healths() == {"gpu0": "ready", "gpu1.0": "ready", "gpu1.2": "ready"}


def test_a_device_with_an_error_of_another_kind_is_not_called_lost(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path) as one:
        one.read()
        one.tell("sick0")
        found = one.read()["gpus"][0]

    assert (found["health"], found["fault"]) == ("unknown", "Unknown Error")


def test_a_device_that_is_listed_no_more_is_lost_and_the_others_keep_their_names(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path) as one:
        one.read()
        one.tell("gone0")
        found = {g["uuid"]: (g["health"], g["fault"]) for g in one.read()["gpus"]}

    assert found == {
        WHOLE: ("lost", "NVML lists it no more"),
        LARGE_PART: ("ready", ""),
        SMALL_PART: ("ready", ""),
    }


def test_no_session_is_held_open_while_a_device_is_lost(library: Path, tmp_path: Path) -> None:
    with machine(library, tmp_path) as one:
        one.read()
        whole = (tmp_path / "sessions").read_text()
        one.tell("lost0")
        one.read()
        broken = (tmp_path / "sessions").read_text()
        one.untell("lost0")
        one.read()

        assert (whole, broken) == ("1", "0")
        assert one.end() == 0
        assert (tmp_path / "sessions").read_text() == "0"


def test_a_driver_that_is_unloaded_leaves_the_devices_unknown(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path) as one:
        one.tell("unloaded")
        before = one.read()
        one.untell("unloaded")
        one.read()
        one.tell("unloaded")
        after = one.read()

    assert (before["fault"], before["gpus"]) == ("the NVIDIA driver is not loaded", [])
    assert {(g["health"], g["fault"]) for g in after["gpus"]} == {
        ("unknown", "the NVIDIA driver is not loaded")
    }


def test_an_nvml_that_hangs_blocks_nobody_and_heals(library: Path, tmp_path: Path) -> None:
    with machine(library, tmp_path, patience_s=0.2) as one:
        one.tell("hang")
        hung = one.read()
        again = one.read()
        one.untell("hang")
        while (healed := one.read())["fault"]:
            pass

    assert hung["fault"] == again["fault"] == "NVML did not answer within 0.2 s"
    assert hung["beats"] > 10
    assert len(healed["gpus"]) == 3


def test_an_nvml_that_hangs_does_not_keep_the_worker_from_ending(
    library: Path, tmp_path: Path
) -> None:
    with machine(library, tmp_path, patience_s=0.2) as one:
        one.tell("hang")
        one.read()

        assert one.end() == 0


def test_without_the_library_the_reason_is_told(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    with machine(None, tmp_path) as one:
        found = one.read()
    if found["gpus"] or "was not found" not in found["fault"]:
        pytest.skip("this machine has the NVIDIA driver's library")

    assert "libnvidia-ml.so.1" in found["fault"]
    assert "no NVIDIA driver is installed" in found["fault"]


def test_without_pynvml_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert Nvml().read().fault == "pynvml is not installed (pip install 'faasd[gpu]')"


def test_the_lineage_of_a_process_that_is_gone_is_itself() -> None:
    assert lineage(os.getpid())[:2] == (os.getpid(), os.getppid())
    assert lineage(2**22 + 1) == (2**22 + 1,)


@in_loop
async def test_a_reading_that_breaks_is_a_fault_and_not_the_end() -> None:
    class Broken(Nvml):
        def read(self) -> Reading:
            raise OSError("out of descriptors")

    inventory = GpuInventory(Broken())
    await inventory.refresh()

    assert inventory.fault == "reading NVML failed: OSError('out of descriptors')"
    assert inventory.interval_s(2.0) == 60.0


@pytest.fixture
def on_stand_in(library: Path, tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "told").mkdir()
    env = {"LD_LIBRARY_PATH": str(library), "NVML_STAND_IN": str(tmp_path / "told")}
    with Platform(tmp_path, env=env) as platform:
        yield platform


def test_a_worker_reports_its_gpus_and_refuses_what_they_cannot_do(on_stand_in: Platform) -> None:
    code = "def handle(event, context): return context.device"
    [seen] = on_stand_in.get("/v1/workers").json()["workers"]
    too_large = on_stand_in.deploy("large", code, resources={"gpus": 1, "gpu_memory_mb": 30_000})
    too_many = on_stand_in.deploy("many", code, resources={"gpus": 2})
    senseless = on_stand_in.deploy("odd", code, resources={"gpus": 0, "gpu_memory_mb": 1})

    assert [one["label"] for one in seen["gpus"]] == ["gpu0", "gpu1.0", "gpu1.2"]
    assert seen["gpu_fault"] == ""
    assert too_large.json()["detail"] == (
        "The function needs 1 GPU with 30,000 MB; this worker has gpu0 (Stand-in 16) with "
        "16,000 MB; gpu1.0 (Stand-in 40 MIG 3g.20gb) with 20,000 MB; "
        "gpu1.2 (Stand-in 40 MIG 1g.5gb) with 5,000 MB."
    )
    assert "a process can use only one" in too_many.json()["detail"]
    assert "gpu_memory_mb = 1 is asked for with gpus = 0" in senseless.json()["detail"]
    assert {one.status for one in (too_large, too_many, senseless)} == {422}


def test_status_shows_the_gpus(on_stand_in: Platform) -> None:
    (on_stand_in.folder / "told" / "processes").write_text("0 999999 1500\n")
    (on_stand_in.folder / "told" / "lost1").touch()

    def lost() -> bool:
        [seen] = on_stand_in.get("/v1/workers").json()["workers"]
        return [one["health"] for one in seen["gpus"]] == ["ready", "lost", "lost"]

    assert eventually(lost)
    command = [sys.executable, "-m", "faasd", "--url", on_stand_in.url, "status"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    rows = [line.split() for line in shown.splitlines() if line.startswith("gpu")]
    [whole, part, _] = rows
    assert whole[2:] == [
        *("Stand-in", "16", "ready", "0", "1", "37.0", "2000.0", "0.0", "16000.0", WHOLE, "-")
    ]
    assert part[-4:] == [LARGE_PART, "GPU", "is", "lost"]


HOLDER = """
import os, time

def attach(state, context):
    return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")}

def handle(event, context):
    while event is not None and not os.path.exists(event):
        time.sleep(0.01)
    return {**context.state, "device": context.device}
"""
ATTACHING = """
import os, time

def attach(state, context):
    with open(context.env["STAND_IN_FOLDER"] + "/processes", "w") as told:
        told.write(f"1.2 {os.getpid()} 5000\\n")
    while True:
        time.sleep(60)

def handle(event, context):
    return None
"""


def test_who_waits_for_a_gpu_gets_it_when_its_holder_is_idle(on_stand_in: Platform) -> None:
    # Only the larger part of the board has so much.
    large = {"gpus": 1, "gpu_memory_mb": 18_000}
    for name in ("first", "second"):
        on_stand_in.must_deploy(name, HOLDER, resources=large)
    gate = str(on_stand_in.folder / "gate")

    def starting() -> list[str]:
        [seen] = on_stand_in.get("/v1/workers").json()["workers"]
        assert [one["instances"] for one in seen["gpus"]][::2] == [0, 0]
        return [one["function"] for one in seen["functions"] if one["starting"]]

    with ThreadPoolExecutor() as threads:
        first = threads.submit(on_stand_in.post, "/invoke/first", gate)
        assert eventually(lambda: "busy" in states(on_stand_in, "first"))
        second = threads.submit(on_stand_in.post, "/invoke/second")
        assert eventually(starting) == ["default/second"]
        waited = not second.done()
        Path(gate).touch()
        answers = [first.result().json(), second.result().json()]

    assert waited
    assert (
        answers
        == [
            {
                "CUDA_VISIBLE_DEVICES": LARGE_PART,
                "NVIDIA_VISIBLE_DEVICES": LARGE_PART,
                "device": "cuda",
            }
        ]
        * 2
    )
    assert states(on_stand_in, "first") == {"template"}
    assert states(on_stand_in, "second") == {"template", "idle"}


def states(platform: Platform, function: str) -> set[str]:
    """What there is of a function."""
    [seen] = platform.get("/v1/workers").json()["workers"]
    [found] = [one for one in seen["functions"] if one["function"] == f"default/{function}"]
    template = {"template"} if found["template"] == "ready" else set()
    return template | {state for state in ("starting", "idle", "busy") if found[state]}


def test_a_function_that_moves_too_much_to_its_gpu_is_refused(on_stand_in: Platform) -> None:
    refusal = on_stand_in.deploy(
        "greedy",
        ATTACHING,
        resources={"gpus": 0.25, "gpu_memory_mb": 4096},
        env={"STAND_IN_FOLDER": str(on_stand_in.folder / "told")},
    )

    told = refused(refusal, 500, "out_of_memory", "5,000 MB of GPU memory", "gpu_memory_mb = 4096")
    assert "gpu_memory_mb" in told["remedy"]


def test_a_function_without_gpus_sees_none(on_stand_in: Platform) -> None:
    on_stand_in.must_deploy("plain", HOLDER)

    assert on_stand_in.post("/invoke/plain").json() == {
        "CUDA_VISIBLE_DEVICES": "",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "device": "cpu",
    }


def reading(
    label: str,
    memory_mb: float = 16_000,
    *,
    processes: Sequence[tuple[int, float | None]] | None = (),
    parent: str = "",
) -> GpuReading:
    """A device whose uuid is its label; the driver itself uses 500 MB of it."""
    running = (
        None
        if processes is None
        else tuple(GpuProcess(pid, used, (pid, pid // 10)) for pid, used in processes)
    )
    used = 500 + sum(used or 0 for _, used in processes or ())
    return GpuReading(label, label, "Model", memory_mb, used, parent, None, running)


def gpu(label: str, *args: Any, **kwargs: Any) -> Gpu:
    return Gpu(reading(label, *args, **kwargs))


def lost(label: str) -> Gpu:
    return replace(gpu(label), health=Health.LOST, fault="GPU is lost")


def ledger(*gpus: Gpu, mps: Mps | None = None) -> GpuLedger:
    made = GpuLedger(mps=mps)
    made.know(gpus, "" if gpus else "no driver")
    return made


def granted(found: Grant | Refusal) -> Grant:
    assert isinstance(found, Grant), found
    return found


def told(verdicts: Sequence[Any]) -> dict[str, FaasdError]:
    return {one.owner: one.error for one in verdicts}


HALF = Resources(gpus=0.5)
ONE = Resources(gpus=1)


def test_nothing_new_is_known_while_nvml_fails() -> None:
    known = (gpu("gpu0"), lost("gpu1"))

    after = merge(known, Reading(fault="hangs"))

    assert [(one.health, one.fault) for one in after] == [
        (Health.UNKNOWN, "hangs"),
        (Health.LOST, "GPU is lost"),
    ]


def test_devices_are_listed_by_number() -> None:
    readings = (reading("gpu10"), reading("gpu2"), reading("gpu1.10"), reading("gpu1.9"))

    after = merge((), Reading(readings, (Mute("gpu3", "odd", lost=False),)))

    labels = [one.last.label for one in after]
    assert labels == ["gpu1.9", "gpu1.10", "gpu2", "gpu3", "gpu10"]


def test_a_grant_names_the_devices_for_cuda_and_for_docker() -> None:
    grant = granted(ledger(gpu("gpu0")).acquire("i", HALF))

    assert grant.devices == ("gpu0",)
    assert grant.env == {"NVIDIA_VISIBLE_DEVICES": "gpu0", "CUDA_VISIBLE_DEVICES": "gpu0"}
    assert grant.device_requests == [
        {
            "Driver": "nvidia",
            "DeviceIDs": ["gpu0"],
            "Capabilities": [["gpu", "compute", "utility"]],
        }
    ]


def test_mps_keeps_a_fraction_within_its_part() -> None:
    desk = ledger(gpu("gpu0"), gpu("gpu1"), mps=Mps(Path("/run/mps")))

    part = granted(desk.acquire("part", Resources(gpus=0.25, gpu_memory_mb=4096))).env
    desk.release("part")
    pair = granted(desk.acquire("pair", Resources(gpus=2, gpu_memory_mb=1000))).env

    assert part["CUDA_MPS_PIPE_DIRECTORY"] == "/run/mps"
    assert part["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=4096M"
    assert part["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert pair["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=1000M,1=1000M"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in pair


def test_a_sandbox_is_made_with_the_devices_that_its_instances_may_come_to_use() -> None:
    made = ledger(gpu("gpu0"), gpu("gpu1"), lost("gpu2"))

    single = granted(made.sandbox(ONE, 1))
    many = granted(made.sandbox(ONE, 8))

    assert single.devices == ("gpu0",)
    assert many.devices == ("gpu0", "gpu1")
    assert many.env["NVIDIA_VISIBLE_DEVICES"] == "gpu0,gpu1"
    assert many.env["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_an_instance_that_ends_gives_its_device_back() -> None:
    made = ledger(gpu("gpu0"))
    made.acquire("first", ONE)
    full = made.acquire("second", ONE)

    assert isinstance(full, Refusal)
    assert "gpu0 is held by an instance" in full.detail
    assert made.release("first")
    assert not made.release("first")
    assert granted(made.acquire("second", ONE)).devices == ("gpu0",)


def test_memory_within_what_was_asked_for_is_fine() -> None:
    made = ledger(gpu("gpu0", processes=[(11, 4096.0)]))
    made.acquire("i", Resources(gpus=0.5, gpu_memory_mb=4096))

    assert made.watch({"i": [11]}) == []


def test_memory_beyond_what_was_asked_for_ends_the_instance() -> None:
    made = ledger(gpu("gpu0", processes=[(11, 5000.0), (110, 120.0), (22, 9000.0)]))
    made.acquire("greedy", Resources(gpus=0.5, gpu_memory_mb=4096))

    verdicts = told(made.watch({"greedy": [11]}))

    assert isinstance(verdicts["greedy"], OutOfMemory)
    assert verdicts["greedy"].detail == (
        "The function used 5,120 MB of GPU memory; [resources] gpu_memory_mb = 4096."
    )
    assert "gpu_memory_mb" in verdicts["greedy"].remedy


def test_a_fraction_without_an_amount_is_held_to_its_share() -> None:
    made = ledger(gpu("gpu0", processes=[(11, 4001.0)]), gpu("gpu1", processes=[(22, 15_000.0)]))
    made.acquire("quarter", Resources(gpus=0.25))
    made.acquire("whole", ONE)

    verdicts = told(made.watch({"quarter": [11], "whole": [22]}))

    assert set(verdicts) == {"quarter"}
    assert "gpus = 0.25 is 4,000 MB of gpu0 (Model)." in verdicts["quarter"].detail


def test_an_instance_on_a_lost_device_must_end() -> None:
    made = ledger(gpu("gpu0"), gpu("gpu1"))
    made.acquire("first", ONE)
    made.acquire("second", ONE)
    made.know((lost("gpu0"), gpu("gpu1")), "")

    verdicts = told(made.watch({"first": [11], "second": [22]}))

    assert set(verdicts) == {"first"}
    assert isinstance(verdicts["first"], InstanceDied)
    assert "gpu0 (Model) was lost while the function held it: GPU is lost." in (
        verdicts["first"].detail
    )


def test_instances_stay_where_nvml_merely_does_not_answer() -> None:
    made = ledger(gpu("gpu0"))
    made.acquire("i", HALF)
    made.know(merge((gpu("gpu0"),), Reading(fault="hangs")), "hangs")

    assert made.watch({"i": [11]}) == []
    other = made.acquire("other", HALF)
    assert isinstance(other, Refusal)
    assert "gpu0 is out of service (hangs)" in other.detail


def test_using_a_device_that_was_not_given_ends_the_instance() -> None:
    made = ledger(gpu("gpu0"), gpu("gpu1", processes=[(11, 1.0)]))
    made.acquire("i", ONE)

    error = told(made.watch({"i": [11]}))["i"]

    assert isinstance(error, HandlerError)
    assert error.detail == "The function used gpu1 (Model), which it was not given."


def test_a_template_that_uses_a_device_is_told_to_wait_for_attach() -> None:
    made = ledger(gpu("gpu0", processes=[(7, 300.0)]))

    error = told(made.watch({}, {"template": [7]}))["template"]

    assert isinstance(error, DeployFailed)
    assert "attach()" in error.remedy


def test_what_other_programs_use_is_not_given_away() -> None:
    made = ledger(gpu("gpu0", processes=[(11, 2000.0), (99, 10_000.0)]))
    made.acquire("ours", Resources(gpus=0.1, gpu_memory_mb=2000))
    made.watch({"ours": [11]})

    found = made.acquire("next", Resources(gpus=0.1, gpu_memory_mb=4000))

    assert isinstance(found, Refusal)
    assert "gpu0 has 3,500 MB free of 16,000 MB" in found.detail
    granted(made.acquire("next", Resources(gpus=0.1, gpu_memory_mb=3500)))


def test_an_instance_that_ended_between_reading_and_watching_is_not_somebody_else() -> None:
    made = ledger(gpu("gpu0", processes=[(11, 9000.0)]))
    made.watch({"ours": [11]})
    made.watch({})
    assert made.devices[0].foreign_mb == 500

    made.watch({})
    assert made.devices[0].foreign_mb == 9500


def test_where_processes_cannot_be_seen_what_is_held_counts_as_ours() -> None:
    made = ledger(gpu("gpu0", processes=None))
    made.acquire("i", Resources(gpus=0.1, gpu_memory_mb=400))

    assert made.watch({"i": [11]}) == []
    assert made.devices[0].foreign_mb == 100


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (ONE, "needs 1 GPU; this worker has none: no driver."),
        (HALF, "needs 0.5 of a GPU; this worker has none: no driver."),
        (Resources(gpus=1.5), "neither a fraction of one GPU nor a whole number"),
    ],
)
def test_a_worker_without_gpus_refuses_and_says_why(resources: Resources, expected: str) -> None:
    with pytest.raises(DeployFailed, match=expected):
        ledger().check(resources)


def test_a_worker_whose_gpus_are_busy_accepts_what_they_could_do() -> None:
    made = ledger(gpu("gpu0", processes=[(99, 15_000.0)]), lost("gpu1"))
    made.watch({})
    made.acquire("other", HALF)

    made.check(ONE)
    made.check(Resources())
    with pytest.raises(DeployFailed, match=r"gpu1 \(Model\) with 16,000 MB, out of service"):
        made.check(Resources(gpus=2))


def test_a_report_survives_the_wire() -> None:
    made = ledger(gpu("gpu0", processes=[(11, 2000.0)]), gpu("gpu1", processes=None), lost("gpu2"))
    made.acquire("i", HALF)
    report = WorkerReport("w", 1, 1, 1, 0, 1, made.report(), [], [], gpu_fault="odd")

    whole, unseen, gone = report.gpus
    assert (whole.instances, whole.held_share, whole.held_mb) == (1, 0.5, 8000)
    assert (whole.used_mb, whole.processes) == (2500, 1)
    assert unseen.processes is None
    assert (gone.health, gone.fault) == ("lost", "GPU is lost")
    assert WorkerReport.from_plain(report.to_plain()) == report


class Desk:
    """A desk whose instances are idle, or end, when the test says so."""

    def __init__(self, *gpus: Gpu, patience_s: float = 3600) -> None:
        self.idle: list[str] = []
        self.ended: list[str] = []
        self.desk = GpuDesk(
            ledger(*gpus),
            idle=lambda: [one for one in self.idle if one not in self.ended],
            end=self.ended.extend,
            patience_s=patience_s,
        )

    def ask(self, instance: str, resources: Resources, **within: Any) -> asyncio.Task[Grant]:
        return asyncio.ensure_future(self.desk.acquire(instance, resources, **within))

    def holders(self) -> list[str]:
        return [one.instance for one in self.desk.ledger.holdings]


@in_loop
async def test_who_finds_no_gpu_waits_until_one_is_released() -> None:
    desk = Desk(gpu("gpu0"))
    await desk.desk.acquire("first", ONE)
    second = desk.ask("second", ONE)
    await asyncio.sleep(0)
    assert desk.holders() == ["first"]

    desk.desk.release("first")

    assert (await second).devices == ("gpu0",)


@in_loop
async def test_who_waits_has_the_longest_unused_instance_end() -> None:
    desk = Desk(gpu("gpu0"), gpu("gpu1"))
    for one in ("old", "busy"):
        await desk.desk.acquire(one, ONE)
    desk.idle = ["old"]

    new = desk.ask("new", ONE)
    await until(lambda: desk.ended)
    other = desk.ask("other", ONE)
    await asyncio.sleep(0)
    assert desk.ended == ["old"]
    desk.desk.release("old")

    assert (await new).devices == ("gpu0",)
    desk.idle = ["busy"]
    desk.desk.became_idle()
    assert desk.ended == ["old", "busy"]
    desk.desk.release("busy")
    assert (await other).devices == ("gpu1",)


@in_loop
async def test_many_small_ones_cannot_keep_a_large_one_waiting() -> None:
    desk = Desk(gpu("gpu0"), gpu("gpu1", 4_000))
    await desk.desk.acquire("small", Resources(gpus=0.1, gpu_memory_mb=5_000))
    large = desk.ask("large", Resources(gpus=1, gpu_memory_mb=10_000))
    await asyncio.sleep(0)
    next_small = desk.ask("next", Resources(gpus=0.1, gpu_memory_mb=5_000))
    tiny = await desk.desk.acquire("tiny", Resources(gpus=0.1, gpu_memory_mb=1_000))
    assert tiny.devices == ("gpu1",)
    assert desk.holders() == ["small", "tiny"]

    desk.desk.release("small")
    assert (await large).devices == ("gpu0",)
    assert not next_small.done()
    desk.desk.release("large")

    assert (await next_small).devices == ("gpu0",)


@in_loop
async def test_who_can_never_be_placed_is_told_at_once() -> None:
    desk = Desk(gpu("gpu0"))

    with pytest.raises(Unavailable, match="gpu0 has 16,000 MB"):
        await desk.desk.acquire("i", Resources(gpus=1, gpu_memory_mb=20_000))


@in_loop
async def test_who_waits_for_a_device_that_is_lost_meanwhile_is_told() -> None:
    desk = Desk(gpu("gpu0"))
    await desk.desk.acquire("first", ONE)
    second = desk.ask("second", ONE)
    await asyncio.sleep(0)

    verdicts = desk.desk.refreshed([lost("gpu0")], "", instances={"first": [1]}, templates={})

    assert [one.owner for one in verdicts] == ["first"]
    with pytest.raises(Unavailable, match="GPU is lost"):
        await second


@in_loop
async def test_patience_has_an_end_that_names_the_reason() -> None:
    desk = Desk(gpu("gpu0"), patience_s=0.0)
    await desk.desk.acquire("first", ONE)

    with pytest.raises(Unavailable, match=r"gpu0 is held by an instance\. It waited 0 s"):
        await desk.desk.acquire("second", ONE)

    desk.desk.release("first")
    assert desk.holders() == []


@in_loop
async def test_who_goes_away_leaves_nothing_held() -> None:
    desk = Desk(gpu("gpu0"))
    await desk.desk.acquire("first", ONE)
    waiting, granted_late = desk.ask("waiting", ONE), desk.ask("late", ONE)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    desk.desk.release("first")
    granted_late.cancel()
    await asyncio.gather(granted_late, return_exceptions=True)

    assert desk.holders() == []
    assert (await desk.desk.acquire("next", ONE)).devices == ("gpu0",)


@in_loop
async def test_who_waits_within_a_sandbox_leaves_the_other_devices_alone() -> None:
    desk = Desk(gpu("gpu0"), gpu("gpu1"))
    await desk.desk.acquire("first", ONE)
    bound = desk.ask("bound", ONE, within={"gpu0"})
    await asyncio.sleep(0)

    free = await desk.desk.acquire("free", ONE)
    desk.desk.release("first")

    assert free.devices == ("gpu1",)
    assert (await bound).devices == ("gpu0",)


@contextlib.asynccontextmanager
async def empty_image(name: str) -> AsyncIterator[Engine]:
    """The engine with an image that holds nothing."""
    engine = Engine(timeout_s=60)
    try:
        await engine.open()
    except BadRequest as error:
        pytest.skip(error.detail)
    tar = io.BytesIO()
    tarfile.open(fileobj=tar, mode="w").close()
    repository, tag = name.split(":")
    given = {"fromSrc": "-", "repo": repository, "tag": tag}
    async with aiodocker.Docker() as docker:
        try:
            async with docker._query(
                "images/create",
                "POST",
                params=given,
                data=tar.getvalue(),
                headers={"Content-Type": "application/x-tar"},
            ) as answer:
                await answer.read()
            yield engine
        finally:
            await docker.images.delete(name, force=True)
            await engine.aclose()


@in_loop
async def test_an_engine_without_a_gpu_driver_says_so_and_leaves_no_container() -> None:
    if shutil.which("nvidia-container-runtime-hook"):
        pytest.skip("this machine's engine gives GPUs to containers")
    if not Path("/var/run/docker.sock").exists():
        pytest.skip("no Docker engine listens here")
    name = f"faasd-test-gpus-{uuid.uuid4().hex[:12]}"
    wanted = granted(ledger(gpu("gpu0")).acquire("i", ONE)).device_requests
    async with empty_image(f"{name}:latest") as engine:
        config = {
            "Image": f"{name}:latest",
            "Cmd": ["/nothing"],
            "Labels": {"faasd.test": name},
            "HostConfig": {"DeviceRequests": wanted, "NetworkMode": "none"},
        }
        with pytest.raises(Unavailable) as caught:
            await engine.run(name, config)
        left = await engine.containers({"faasd.test": name})

    assert left == []
    told = engine_refusal(caught.value)
    assert isinstance(told, DeployFailed)
    assert 'could not select device driver "nvidia"' in told.detail
    assert "NVIDIA Container Toolkit" in told.remedy


def test_another_refusal_of_the_engine_stays_what_it_is() -> None:
    other = Unavailable("The Docker engine refused starting a container: no space left.")

    assert engine_refusal(other) is other


def test_requests_read_as_a_person_would_say_them() -> None:
    assert str(Request(2, 1500)) == "2 GPUs with 1,500 MB each"
