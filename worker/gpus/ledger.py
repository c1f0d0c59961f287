"""Which instance holds which GPU of the node, and what is to be done about those that misbehave.

Decisions over plain values: nothing here waits, asks NVML, or ends a process. What a sandbox is
made with (`sandbox`) and what an instance in it may use (`acquire`) are two things: a container's
devices are fixed at its creation, an instance's are its own for as long as it lives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faasd.errors import DeployFailed, FaasdError, HandlerError, InstanceDied, OutOfMemory
from faasd.invocation import GpuReport
from faasd.policies import placement
from faasd.policies.placement import (
    Device,
    Holding,
    Placement,
    Refusal,
    Request,
    megabytes,
)
from faasd.spec import Resources
from worker.gpus.inventory import Gpu, Health

_DRIVER_PARTS = ("compute", "utility")


@dataclass(frozen=True, slots=True)
class Mps:
    """A CUDA MPS control daemon that the operator runs: where its pipes are."""

    pipes: Path


@dataclass(frozen=True, slots=True)
class Grant:
    """Devices, by uuid, and how they are given: environment, and `DeviceRequests` of a container."""

    devices: tuple[str, ...]
    env: dict[str, str]
    device_requests: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A process that must end (an instance, or a template with all its instances), and why."""

    owner: str
    error: FaasdError


def request_of(resources: Resources) -> Request:
    return Request(resources.gpus, float(resources.gpu_memory_mb))


def needs_gpu(resources: Resources) -> bool:
    return resources.gpus > 0


def environment(resources: Resources) -> dict[str, str]:
    """What a template's environment says of GPUs, wherever it runs: without them, hide them."""
    if not needs_gpu(resources):
        return {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}
    return {
        # Asking CUDA whether there is a device would leave a context that cannot be forked.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def engine_refusal(error: FaasdError) -> FaasdError:
    """What a failed start of a container with `device_requests` means to the user."""
    if "could not select device driver" in error.detail:
        return DeployFailed(
            f"The Docker engine cannot give GPUs to containers: {error.detail}",
            remedy="Install the NVIDIA Container Toolkit on the worker's machine, and restart "
            "the engine.",
        )
    if "nvidia-container-cli" in error.detail:
        return DeployFailed(
            f"The NVIDIA Container Toolkit did not give the container its GPUs: {error.detail}",
            remedy="Ask `nvidia-container-cli info` on the worker's machine for the reason.",
        )
    return error


class GpuLedger:
    """Owned by the event loop. Owners are names, unique on the node, of instances and templates."""

    def __init__(self, *, mps: Mps | None = None) -> None:
        self._mps = mps
        self._gpus: tuple[Gpu, ...] = ()
        self._fault = ""
        self._foreign: dict[str, float] = {}
        self._holdings: tuple[Holding, ...] = ()
        self._former: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<GpuLedger {len(self._gpus)} GPUs, {len(self._holdings)} holdings>"

    @property
    def holdings(self) -> tuple[Holding, ...]:
        return self._holdings

    @property
    def devices(self) -> list[Device]:
        """As placement sees them."""
        return [self._device(gpu) for gpu in self._gpus if gpu.uuid]

    def know(self, gpus: Sequence[Gpu], fault: str) -> None:
        """The inventory as it is now."""
        self._gpus, self._fault = tuple(gpus), fault

    def check(self, resources: Resources) -> None:
        """Raises DeployFailed when no instance could ever be placed, were all devices free."""
        request = request_of(resources)
        if request.fault:
            raise DeployFailed(
                f"[resources] {request.fault}.",
                remedy="Set gpus to a fraction below 1 or to a whole number; "
                "gpu_memory_mb needs gpus above 0.",
            )
        if not request.gpus or placement.candidates(request, self.devices):
            return
        raise DeployFailed(
            self._refusal(request).detail,
            remedy="Set [resources] gpus = 0, ask for less, or add a worker with such a GPU.",
        )

    def sandbox(self, resources: Resources, instances: int) -> Grant | Refusal:
        """What the sandbox of so many instances is to be made with: the devices they would use."""
        request = request_of(resources)
        found = placement.spread(request, instances, self.devices, self._holdings)
        if not found:
            return self._refusal(request)
        parts = {"NVIDIA_DRIVER_CAPABILITIES": ",".join(_DRIVER_PARTS)}
        env = environment(resources) | _visible(found) | parts
        return Grant(found, env, _device_requests(found))

    def acquire(
        self, instance: str, resources: Resources, *, within: Collection[str] | None = None
    ) -> Grant | Refusal:
        """Devices for an instance until its `release`, only of the sandbox's devices `within`."""
        request = request_of(resources)
        placed = self.plan(instance, request, within)
        if isinstance(placed, Refusal):
            return placed
        self._holdings += placed.holdings
        return Grant(
            placed.devices,
            _visible(placed.devices) | self._shared(request, len(placed.devices)),
            _device_requests(placed.devices),
        )

    def plan(
        self, instance: str, request: Request, within: Collection[str] | None = None
    ) -> Placement | Refusal:
        """Where it would be placed now."""
        if not self.devices:
            return self._refusal(request)
        return placement.place(instance, request, self.devices, self._holdings, within=within)

    def make_room(
        self,
        request: Request,
        idle: Sequence[str],
        *,
        ending: Collection[str] = (),
        within: Collection[str] | None = None,
    ) -> tuple[str, ...]:
        """The idle instances, longest unused first, to end for it besides those that are ending."""
        left = placement.release(self._holdings, ending)
        return placement.make_room(request, self.devices, left, idle, within=within) or ()

    def release(self, instance: str) -> bool:
        """What the instance held is free; whether it held anything."""
        before = len(self._holdings)
        self._holdings = placement.release(self._holdings, {instance})
        return len(self._holdings) < before

    def watch(
        self,
        instances: Mapping[str, Collection[int]],
        templates: Mapping[str, Collection[int]] | None = None,
    ) -> list[Verdict]:
        """Hold what the processes use against what they may; names the owners that must end.

        Cases, of which an owner gets the first that holds:

        1. an instance whose device is lost;
        2. a template with a context on a device: no fork of it could use that;
        3. an instance on a device that it does not hold;
        4. an instance that uses more memory on a device than it asked for.
        """
        templates = templates or {}
        owners = {
            pid: owner
            for group in (instances, templates)
            for owner, pids in group.items()
            for pid in pids
        }
        used = self._usage({**self._former, **owners})
        self._former = owners
        verdicts = self._lost(instances)
        for (owner, uuid), memory_mb in sorted(used.items()):
            if owner not in instances and owner not in templates:
                continue
            error = self._fault_of(owner, uuid, memory_mb, template=owner in templates)
            if error is not None:
                verdicts.setdefault(owner, error)
        return [Verdict(owner, error) for owner, error in verdicts.items()]

    def report(self) -> list[GpuReport]:
        """Every device as the worker reports it."""
        return [self._report(gpu) for gpu in self._gpus]

    def _refusal(self, request: Request) -> Refusal:
        """For what can never be placed: what there is, and why it does not do."""
        told = [] if self._gpus else [f"none: {self._fault}"]
        for gpu in self._gpus:
            text = f"{gpu} with {megabytes(gpu.last.memory_mb)}" if gpu.uuid else str(gpu)
            if gpu.fault:
                text += f", out of service ({gpu.fault})"
            elif gpu.last.parent and request.count > 1:
                text += ", a MIG device, of which a process can use only one"
            told.append(text)
        return Refusal(
            f"The function needs {request}; this worker has {'; '.join(told)}.",
            waiting_helps=False,
        )

    def _device(self, gpu: Gpu) -> Device:
        return Device(
            uuid=gpu.uuid,
            label=gpu.last.label,
            memory_mb=gpu.last.memory_mb,
            foreign_mb=self._foreign.get(gpu.uuid, 0.0),
            fault=gpu.fault,
            partition=bool(gpu.last.parent),
        )

    def _shared(self, request: Request, count: int) -> dict[str, str]:
        """What makes CUDA itself keep an instance within its part of a device."""
        if self._mps is None:
            return {}
        env = {"CUDA_MPS_PIPE_DIRECTORY": str(self._mps.pipes)}
        if request.memory_mb:
            # Devices are numbered as the process sees them.
            limits = (f"{number}={request.memory_mb:.0f}M" for number in range(count))
            env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = ",".join(limits)
        if not request.whole:
            env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{max(1.0, request.share * 100):g}"
        return env

    def _usage(self, owners: Mapping[int, str]) -> dict[tuple[str, str], float]:
        """Memory by owner and device; what is nobody's of ours is noted as foreign."""
        used: dict[tuple[str, str], float] = defaultdict(float)
        for gpu in self._gpus:
            if gpu.health is not Health.READY:
                continue
            ours, complete = 0.0, gpu.processes is not None
            for process in gpu.processes or ():
                owner = next((owners[pid] for pid in process.lineage if pid in owners), None)
                if owner is not None:
                    used[owner, gpu.uuid] += process.used_mb or 0.0
                    ours += process.used_mb or 0.0
                    complete = complete and process.used_mb is not None
            if not complete:
                # What is ours cannot be told from the rest: the held part counts as ours.
                ours = self._held_mb(gpu.uuid)
            self._foreign[gpu.uuid] = max(0.0, gpu.last.used_mb - ours)
        return dict(used)

    def _held_mb(self, uuid: str) -> float:
        found = next(device for device in self.devices if device.uuid == uuid)
        return sum(one.claims_mb(found) for one in self._holdings if one.device == uuid)

    def _lost(self, instances: Iterable[str]) -> dict[str, FaasdError]:
        lost = {gpu.uuid: gpu for gpu in self._gpus if gpu.health is Health.LOST}
        return {
            one.instance: InstanceDied(
                f"{lost[one.device]} was lost while the function held it: "
                f"{lost[one.device].fault}.",
                remedy="Another instance takes a GPU that works, where there is one; "
                "`faasd status` shows them.",
            )
            for one in self._holdings
            if one.device in lost and one.instance in instances
        }

    def _fault_of(
        self, owner: str, uuid: str, memory_mb: float, *, template: bool
    ) -> FaasdError | None:
        gpu = next(gpu for gpu in self._gpus if gpu.uuid == uuid)
        if template:
            return DeployFailed(
                f"Importing the function's code or load() used {gpu}; what is there cannot be "
                "forked.",
                remedy="Load to the CPU, and move the model to context.device in attach().",
            )
        held = [one for one in self._holdings if (one.instance, one.device) == (owner, uuid)]
        if not held:
            return HandlerError(
                f"The function used {gpu}, which it was not given.",
                remedy="Use only the devices that CUDA_VISIBLE_DEVICES names.",
            )
        return _over(held[0], gpu, memory_mb)

    def _report(self, gpu: Gpu) -> GpuReport:
        held = [one for one in self._holdings if gpu.uuid and one.device == gpu.uuid]
        return GpuReport(
            uuid=gpu.uuid,
            label=gpu.last.label,
            name=gpu.last.name,
            parent=gpu.last.parent,
            health=str(gpu.health),
            fault=gpu.fault,
            memory_mb=round(gpu.last.memory_mb, 1),
            used_mb=round(gpu.last.used_mb, 1),
            held_mb=round(self._held_mb(gpu.uuid), 1) if held else 0.0,
            held_share=round(sum(one.share for one in held), 3),
            instances=len(held),
            processes=None if gpu.processes is None else len(gpu.processes),
            utilisation=gpu.last.utilisation,
        )


def _over(holding: Holding, gpu: Gpu, memory_mb: float) -> OutOfMemory | None:
    """The error of an instance that uses more than its part; a whole device has no other limit."""
    if holding.memory_mb:
        limit, asked = holding.memory_mb, f"gpu_memory_mb = {holding.memory_mb:.0f}"
    elif holding.share < 1:
        limit = holding.share * gpu.last.memory_mb
        asked = f"gpus = {holding.share:g} is {megabytes(limit)} of {gpu}"
    else:
        return None
    if memory_mb <= limit:
        return None
    return OutOfMemory(
        f"The function used {megabytes(memory_mb)} of GPU memory; [resources] {asked}.",
        remedy="Raise [resources] gpu_memory_mb in function.toml, or use less GPU memory.",
    )


def _visible(uuids: Sequence[str]) -> dict[str, str]:
    names = ",".join(uuids)
    return {
        "NVIDIA_VISIBLE_DEVICES": names,
        "CUDA_VISIBLE_DEVICES": names,
    }


def _device_requests(uuids: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "Driver": "nvidia",
            "DeviceIDs": list(uuids),
            "Capabilities": [["gpu", *_DRIVER_PARTS]],
        }
    ]
