"""Which workers have the GPUs that a function asks for, by what they last reported."""

from __future__ import annotations

from collections.abc import Iterable

from faasd.invocation import GpuReport, WorkerReport
from faasd.policies import placement
from faasd.policies.placement import Device, Request, megabytes
from faasd.spec import Resources

REMEDY = "Set [resources] gpus = 0, ask for less, or add a worker with such a GPU."


def can_place(resources: Resources, report: WorkerReport) -> bool:
    """Whether the worker could place an instance, were all its devices free.

    What makes no sense is left to the worker, which says what.
    """
    wanted = Request(resources.gpus, float(resources.gpu_memory_mb))
    if not wanted.gpus or wanted.fault:
        return True
    devices = [_device(gpu) for gpu in report.gpus if gpu.uuid]
    return bool(placement.candidates(wanted, devices))


def shortage(resources: Resources, reports: Iterable[WorkerReport]) -> str:
    """What is asked for, and what the cluster has instead."""
    wanted = Request(resources.gpus, float(resources.gpu_memory_mb))
    return f"The function needs {wanted}; {'; '.join(_has(report) for report in reports)}."


def _device(gpu: GpuReport) -> Device:
    return Device(
        uuid=gpu.uuid,
        label=gpu.label,
        memory_mb=gpu.memory_mb,
        fault=gpu.fault,
        partition=bool(gpu.parent),
    )


def _has(report: WorkerReport) -> str:
    told = " and ".join(_describe(gpu) for gpu in report.gpus) or f"none ({report.gpu_fault})"
    return f"worker {report.id} has {told}"


def _describe(gpu: GpuReport) -> str:
    name = f"{gpu.label} ({gpu.name})" if gpu.name else gpu.label
    memory = f" with {megabytes(gpu.memory_mb)}" if gpu.memory_mb else ""
    return name + memory + (f", out of service ({gpu.fault})" if gpu.fault else "")
