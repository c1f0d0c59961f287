"""What NVML says of the machine's GPUs, read through pynvml. Blocks; called in a thread.

A device that does not answer is told apart from a library that does not: the one is out of
service, of the others nothing is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_MB = 1 << 20
_NO_LIBRARY = (
    "the NVML library (libnvidia-ml.so.1) was not found: no NVIDIA driver is installed here, "
    "or the worker's container was not given it"
)
_NO_INSTANCES = "it is in MIG mode and has no MIG device"
_MISMATCH = "the NVIDIA driver's library and kernel module are of different versions"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with a context on a GPU; `used_mb` is None where the driver does not tell.

    `lineage` begins with the process itself and goes on with its ancestors.
    """

    pid: int
    used_mb: float | None
    lineage: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One placeable device: a GPU, or an instance of one in MIG mode (`parent` is its GPU).

    `utilisation` is in percent. None stands for what this device or driver does not tell.
    """

    uuid: str
    label: str
    name: str
    memory_mb: float
    used_mb: float
    parent: str = ""
    utilisation: float | None = None
    processes: tuple[GpuProcess, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Mute:
    """A device that could not be read, and whether NVML says that it is lost."""

    label: str
    fault: str
    lost: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything NVML said at one time; with a `fault`, that it said nothing."""

    gpus: tuple[GpuReading, ...] = ()
    mute: tuple[Mute, ...] = ()
    fault: str = ""


class Nvml:
    """A session with NVML. Not thread-safe; one reading at a time."""

    def __init__(self) -> None:
        self._nvml: ModuleType | None = None

    def read(self) -> Reading:
        """Every device. After any fault the session ends, since an open one would keep the
        operator from resetting a device; the next reading begins another.
        """
        try:
            import pynvml
        except ImportError:
            return Reading(fault="pynvml is not installed (pip install 'faasd[gpu]')")
        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            reading = self._read_all(pynvml)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            reading = Reading(fault=_library_fault(pynvml, error))
        if reading.fault or reading.mute:
            self.close()
        return reading

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _read_all(self, nvml: ModuleType) -> Reading:
        gpus: list[GpuReading] = []
        mute: list[Mute] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            label = f"gpu{index}"
            try:
                found = tuple(_read_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index), label))
                gpus += found
                if not found:
                    mute.append(Mute(label, _NO_INSTANCES, lost=True))
            except (nvml.NVMLError, nvml.NVMLLibraryMismatchError) as error:
                mute.append(Mute(label, str(error), _is_lost(nvml, error)))
        fault = "" if gpus or mute else "the NVIDIA driver lists no device"
        return Reading(tuple(gpus), tuple(mute), fault)


def _read_gpu(nvml: ModuleType, handle: Any, label: str) -> Iterator[GpuReading]:
    """The device itself, or in MIG mode its instances."""
    mode = _optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        yield _read_device(nvml, handle, label, parent="")
        return
    parent = nvml.nvmlDeviceGetUUID(handle)
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError_NotFound:
            continue
        yield _read_device(nvml, found, f"{label}.{index}", parent=parent)


def _read_device(nvml: ModuleType, handle: Any, label: str, *, parent: str) -> GpuReading:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    utilisation = _optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return GpuReading(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        label=label,
        name=nvml.nvmlDeviceGetName(handle),
        memory_mb=memory.total / _MB,
        used_mb=memory.used / _MB,
        parent=parent,
        utilisation=None if utilisation is None else float(utilisation),
        processes=_processes(nvml, handle),
    )


def _processes(nvml: ModuleType, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Those with a context of their own and the clients of MPS, each once."""
    found: dict[int, float | None] = {}
    plain = _optional(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    if plain is None:
        return None
    clients = _optional(nvml, lambda: nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle))
    for one in (*plain, *(clients or ())):
        used = None if one.usedGpuMemory is None else one.usedGpuMemory / _MB
        known = found.get(one.pid)
        found[one.pid] = used if known is None else max(known, used or 0.0)
    return tuple(GpuProcess(pid, used, lineage(pid)) for pid, used in found.items())


def lineage(pid: int) -> tuple[int, ...]:
    """A process and its ancestors, as far as they are to be seen from here."""
    found = [pid]
    while (parent := _parent(found[-1])) > 1 and parent not in found:
        found.append(parent)
    return tuple(found)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The name, in parentheses, may hold anything; the state and the parent come after it.
    return int(stat.rpartition(b")")[2].split()[1])


def _optional(nvml: ModuleType, ask: Callable[[], Any]) -> Any:
    """An answer that not every device, driver or user can have, or None."""
    try:
        return ask()
    except (
        nvml.NVMLError_NotSupported,
        nvml.NVMLError_NoPermission,
        nvml.NVMLError_FunctionNotFound,
        nvml.NVMLLibraryMismatchError,
    ):
        return None


def _is_lost(nvml: ModuleType, error: Exception) -> bool:
    lost = (
        nvml.NVMLError_GpuIsLost,
        nvml.NVMLError_ResetRequired,
        nvml.NVMLError_GpuNotFound,
    )
    return isinstance(error, lost)


def _library_fault(nvml: ModuleType, error: Exception) -> str:
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return _NO_LIBRARY
    if isinstance(error, nvml.NVMLError_DriverNotLoaded):
        return "the NVIDIA driver is not loaded"
    if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
        return _MISMATCH
    return f"NVML failed: {error}"
