"""The node's GPUs, asked of NVML through pynvml where that is installed. Has not run on hardware."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. Memory in megabytes."""

    uuid: str
    name: str
    memory_mb: float

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def find_gpus() -> list[Gpu]:
    """Every device NVML lists; none where there is no driver or no pynvml."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return [
            Gpu(
                uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                memory_mb=pynvml.nvmlDeviceGetMemoryInfo(handle).total / (1 << 20),
            )
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
