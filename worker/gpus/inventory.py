"""The node's GPUs as they are now, refreshed off the event loop.

NVML may hang for as long as a driver does. Each reading has a thread of its own that nobody waits
for at the end, and none is begun before the last one came back.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from faasd.telemetry import get_logger
from worker.gpus.nvml import GpuProcess, GpuReading, Mute, Nvml, Reading

log = get_logger("worker.gpus")

_ABSENT_INTERVAL_S = 60.0
_UNLISTED = "NVML lists it no more"


class Health(enum.StrEnum):
    """Whether instances may be placed on it (ready), stay on it (unknown), or must end (lost)."""

    READY = "ready"
    UNKNOWN = "unknown"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A placeable device: what was last read of it, and why it is out of service if it is.

    A device that never answered has no uuid.
    """

    last: GpuReading
    health: Health = Health.READY
    fault: str = ""

    @property
    def uuid(self) -> str:
        return self.last.uuid

    @property
    def processes(self) -> tuple[GpuProcess, ...] | None:
        """None where they are not to be known."""
        return self.last.processes if self.health is Health.READY else None

    def __str__(self) -> str:
        return f"{self.last.label} ({self.last.name})" if self.last.name else self.last.label


def merge(known: tuple[Gpu, ...], reading: Reading) -> tuple[Gpu, ...]:
    """What is known after a reading.

    1. What was read is in service, whatever was the matter before.
    2. A device known before that was not read is lost, unless NVML said something milder of it.
    3. When NVML itself failed, nothing new is known of any device.
    4. A device that never answered is listed as long as it does not.
    """
    named = [gpu for gpu in known if gpu.uuid]
    if reading.fault:
        return tuple(
            gpu
            if gpu.health is Health.LOST
            else replace(gpu, health=Health.UNKNOWN, fault=reading.fault)
            for gpu in named
        )
    read = {one.uuid for one in reading.gpus}
    gone = [_missed(gpu, reading.mute) for gpu in named if gpu.uuid not in read]
    told = {gpu.last.label.partition(".")[0] for gpu in gone}
    strange = [_stranger(mute) for mute in reading.mute if mute.label not in told]
    everything = [*(Gpu(one) for one in reading.gpus), *gone, *strange]
    return tuple(sorted(everything, key=_order))


def _order(gpu: Gpu) -> tuple[list[int], str]:
    numbers = gpu.last.label.removeprefix("gpu").split(".")
    return [int(number) for number in numbers], gpu.uuid


def _missed(gpu: Gpu, mute: tuple[Mute, ...]) -> Gpu:
    board = gpu.last.label.partition(".")[0]
    said = next((one for one in mute if one.label == board), None)
    if said is None:
        return replace(gpu, health=Health.LOST, fault=_UNLISTED)
    return replace(gpu, health=_health(said), fault=said.fault)


def _stranger(mute: Mute) -> Gpu:
    nothing = GpuReading(uuid="", label=mute.label, name="", memory_mb=0.0, used_mb=0.0)
    return Gpu(nothing, _health(mute), mute.fault)


def _health(mute: Mute) -> Health:
    return Health.LOST if mute.lost else Health.UNKNOWN


class GpuInventory:
    """Owned by the event loop. `gpus` is what is known; `fault` says why nothing newer is."""

    def __init__(self, nvml: Nvml | None = None, *, patience_s: float = 5.0) -> None:
        self._nvml = nvml or Nvml()
        self._patience_s = patience_s
        self._under_way: asyncio.Future[Reading] | None = None
        self.gpus: tuple[Gpu, ...] = ()
        self.fault = "NVML was not asked yet"

    def __repr__(self) -> str:
        return f"<GpuInventory {len(self.gpus)} GPUs, fault={self.fault!r}>"

    async def refresh(self) -> None:
        """Read every device; a reading that does not come back counts as a failed one."""
        if self._under_way is None:
            self._under_way = _in_thread(self._nvml.read)
        reading = Reading(fault=f"NVML did not answer within {self._patience_s:g} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                reading = await asyncio.shield(self._under_way)
        if self._under_way.done():
            self._under_way = None
        self._take(reading)

    def interval_s(self, usual_s: float) -> float:
        """When to refresh next: a machine without GPUs seldom gets any."""
        if self.gpus or self._under_way is not None:
            return usual_s
        return max(usual_s, _ABSENT_INTERVAL_S)

    async def aclose(self) -> None:
        """End the session with NVML, unless NVML hangs."""
        if self._under_way is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await _in_thread(self._end)

    def _end(self) -> Reading:
        self._nvml.close()
        return Reading()

    def _take(self, reading: Reading) -> None:
        before = {gpu.uuid or gpu.last.label: gpu.health for gpu in self.gpus}
        self.gpus = merge(self.gpus, reading)
        self.fault = reading.fault
        for gpu in self.gpus:
            former = before.get(gpu.uuid or gpu.last.label, Health.READY)
            if gpu.health is former:
                continue
            if gpu.health is Health.READY:
                log.info("gpu.in_service", gpu=gpu.last.label, uuid=gpu.uuid)
            else:
                log.warning(
                    "gpu.out_of_service",
                    gpu=gpu.last.label,
                    uuid=gpu.uuid,
                    health=gpu.health,
                    fault=gpu.fault,
                )


def _in_thread(work: Callable[[], Reading]) -> asyncio.Future[Reading]:
    """Run it in a daemon thread: one of the loop's own would be waited for at the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Reading] = loop.create_future()

    def settle(reading: Reading) -> None:
        if not future.done():
            future.set_result(reading)

    def run() -> None:
        try:
            reading = work()
        except Exception as error:  # the boundary of the thread: the loop waits for an answer
            log.exception("gpu.read_failed")
            reading = Reading(fault=f"reading NVML failed: {error!r}")
        with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(settle, reading)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    return future
