"""Which GPU an instance gets. Pure: devices, holdings and a request in, a placement or a refusal out.

Invariants: the shares of a device add up to one at most, and what its holdings claim to the memory
that other programs leave; whole devices are held alone; a device with a fault is never chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG device. `foreign_mb` is what others use of it; a `fault` takes it out."""

    uuid: str
    label: str
    memory_mb: float
    foreign_mb: float = 0.0
    fault: str = ""
    partition: bool = False

    @property
    def usable_mb(self) -> float:
        return max(0.0, self.memory_mb - self.foreign_mb)


@dataclass(frozen=True, slots=True)
class Request:
    """What one instance needs: a fraction of one device or whole ones, and memory on each."""

    gpus: float
    memory_mb: float = 0.0

    def __str__(self) -> str:
        if not self.whole:
            text = f"{self.gpus:g} of a GPU"
        else:
            text = "1 GPU" if self.count == 1 else f"{self.count} GPUs"
        if self.memory_mb:
            text += f" with {megabytes(self.memory_mb)}" + (" each" if self.count > 1 else "")
        return text

    @property
    def whole(self) -> bool:
        return self.gpus >= 1

    @property
    def count(self) -> int:
        return int(self.gpus) if self.whole else 1

    @property
    def share(self) -> float:
        """Of each device."""
        return 1.0 if self.whole else self.gpus

    @property
    def fault(self) -> str:
        """What makes no sense about it, or nothing."""
        if self.whole and self.gpus != self.count:
            return f"gpus = {self.gpus:g} is neither a fraction of one GPU nor a whole number"
        if self.memory_mb and not self.gpus:
            return f"gpu_memory_mb = {self.memory_mb:g} is asked for with gpus = 0"
        return ""


@dataclass(frozen=True, slots=True)
class Holding:
    """What an instance has of one device. No `memory_mb` means its share of the memory."""

    instance: str
    device: str
    share: float
    memory_mb: float = 0.0

    def claims_mb(self, device: Device) -> float:
        return self.memory_mb or self.share * device.usable_mb


@dataclass(frozen=True, slots=True)
class Placement:
    """The request can be met: these holdings, one for each device."""

    holdings: tuple[Holding, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(one.device for one in self.holdings)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, in a sentence; `waiting_helps` when it would fit once others let go."""

    detail: str
    waiting_helps: bool


@dataclass(slots=True)
class _Load:
    share: float = 0.0
    memory_mb: float = 0.0
    holders: int = 0

    def add(self, holding: Holding, device: Device) -> None:
        self.share += holding.share
        self.memory_mb += holding.claims_mb(device)
        self.holders += 1


_Loads = defaultdict[str, _Load]


def megabytes(amount: float) -> str:
    return f"{amount:,.0f} MB"


def place(
    instance: str,
    request: Request,
    devices: Sequence[Device],
    holdings: Iterable[Holding] = (),
    *,
    within: Collection[str] | None = None,
) -> Placement | Refusal:
    """Best fit by memory: what remains free stays in large pieces. `within` restricts the devices."""
    loads = _loads(devices, holdings)
    chosen = _choose(request, devices, loads, within)
    if chosen is None:
        return Refusal(
            _explain(request, devices, loads, within), bool(candidates(request, devices, within))
        )
    return Placement(_holdings(instance, request, chosen))


def release(holdings: Iterable[Holding], instances: Collection[str]) -> tuple[Holding, ...]:
    """The holdings that are left when these instances are gone."""
    return tuple(one for one in holdings if one.instance not in instances)


def candidates(
    request: Request, devices: Sequence[Device], within: Collection[str] | None = None
) -> frozenset[str]:
    """The devices on which it could be placed if nobody else used any; empty when it never fits."""
    empty = [replace(device, foreign_mb=0.0) for device in devices]
    loads = _loads(empty, ())
    fitting = [one for one in empty if not _why_not(request, one, loads[one.uuid], within)]
    enough = not request.fault and request.gpus > 0 and len(fitting) >= request.count
    return frozenset(one.uuid for one in fitting) if enough else frozenset()


def make_room(
    request: Request,
    devices: Sequence[Device],
    holdings: Iterable[Holding],
    idle: Sequence[str],
    *,
    within: Collection[str] | None = None,
) -> tuple[str, ...] | None:
    """The idle instances to end so that the request fits, or None when that is not enough.

    `idle` has the longest unused first. None is ended needlessly, the most recently used least.
    """

    def fits_without(ended: Collection[str]) -> bool:
        loads = _loads(devices, release(held, ended))
        return _choose(request, devices, loads, within) is not None

    held = tuple(holdings)
    ended: list[str] = []
    for instance in idle:
        if fits_without(ended):
            break
        ended.append(instance)
    if not fits_without(ended):
        return None
    for instance in reversed(list(ended)):
        spared = [one for one in ended if one != instance]
        if fits_without(spared):
            ended = spared
    return tuple(ended)


def spread(
    request: Request, count: int, devices: Sequence[Device], holdings: Iterable[Holding] = ()
) -> tuple[str, ...]:
    """The devices that so many instances would be placed on; none when it never fits.

    First those that have room now; the instances for which there is none are placed as if nobody
    of ours held anything, and the rest as if nobody used anything.
    """
    chosen: dict[str, None] = {}
    ours: list[Holding] = []
    unused = [replace(device, foreign_mb=0.0) for device in devices]
    for known, others in ((devices, tuple(holdings)), (devices, ()), (unused, ())):
        loads = _loads(known, (*others, *ours))
        while len(ours) < count * request.count:
            found = _choose(request, known, loads, None)
            if found is None:
                break
            for device, holding in zip(found, _holdings("", request, found), strict=True):
                loads[device.uuid].add(holding, device)
                ours.append(holding)
                chosen[device.uuid] = None
    return tuple(chosen)


def _loads(devices: Sequence[Device], holdings: Iterable[Holding]) -> _Loads:
    known = {device.uuid: device for device in devices}
    loads: _Loads = defaultdict(_Load)
    for holding in holdings:
        if holding.device in known:
            loads[holding.device].add(holding, known[holding.device])
    return loads


def _choose(
    request: Request, devices: Sequence[Device], loads: _Loads, within: Collection[str] | None
) -> list[Device] | None:
    if request.fault or request.gpus <= 0:
        return None
    fitting = [one for one in devices if not _why_not(request, one, loads[one.uuid], within)]
    fitting.sort(
        key=lambda one: (
            one.usable_mb - loads[one.uuid].memory_mb,
            -loads[one.uuid].share,
            one.uuid,
        )
    )
    return fitting[: request.count] if len(fitting) >= request.count else None


def _holdings(instance: str, request: Request, devices: list[Device]) -> tuple[Holding, ...]:
    return tuple(
        Holding(instance, device.uuid, request.share, request.memory_mb) for device in devices
    )


def _why_not(request: Request, device: Device, load: _Load, within: Collection[str] | None) -> str:
    """A clause that says why the device does not fit, empty when it does."""
    if within is not None and device.uuid not in within:
        return f"{device.label} is not in this sandbox"
    if device.fault:
        return f"{device.label} is out of service ({device.fault})"
    if request.count > 1 and device.partition:
        return f"{device.label} is a MIG device, and a process can use only one of these"
    if request.whole and load.holders:
        holders = "an instance" if load.holders == 1 else f"{load.holders} instances"
        return f"{device.label} is held by {holders}"
    if load.share + request.share > 1 + _ROUNDING:
        return f"{device.label} has {max(0.0, 1 - load.share):.3g} of its share free"
    needed = request.memory_mb or request.share * device.usable_mb
    free = device.usable_mb - load.memory_mb
    if not free or needed > free + _ROUNDING:
        if free == device.memory_mb:
            return f"{device.label} has {megabytes(free)}"
        return (
            f"{device.label} has {megabytes(max(0.0, free))} free of {megabytes(device.memory_mb)}"
        )
    return ""


def _explain(
    request: Request, devices: Sequence[Device], loads: _Loads, within: Collection[str] | None
) -> str:
    if request.fault:
        return f"[resources] {request.fault}."
    clauses = [_why_not(request, one, loads[one.uuid], within) for one in devices]
    fitting = [one.label for one, clause in zip(devices, clauses, strict=True) if not clause]
    told = [clause for clause in clauses if clause]
    if fitting:
        told.insert(0, f"only {', '.join(fitting)} can be had")
    return f"The function needs {request}; {', '.join(told) or 'there is none'}."
