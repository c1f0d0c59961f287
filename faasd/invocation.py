"""What travels between controller and worker: invocations, replies, revisions, reports.

Plain frozen values with a msgpack-able form each. Durations are seconds unless the name says ms.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from faasd.errors import FaasdError
from faasd.spec import FunctionSpec, compact, validate_spec
from faasd.spool import Body

PHASES = ("queue", "sandbox", "libs", "load", "exec")


class StartKind(enum.StrEnum):
    """What an invocation found when it arrived at the worker."""

    WARM = "warm"
    FORK = "fork"
    PRELOADED = "preloaded"
    POOLED = "pooled"
    COLD = "cold"
    NONE = "none"


# Not frozen, as is nothing that is made for every invocation: that would triple its cost.
@dataclass(slots=True)
class Timings:
    """Milliseconds an invocation spent in each phase."""

    queue: float = 0.0
    sandbox: float = 0.0
    libs: float = 0.0
    load: float = 0.0
    exec: float = 0.0

    @property
    def after_queue(self) -> float:
        """All but the wait for an instance to be free."""
        return self.sandbox + self.libs + self.load + self.exec

    def server_timing(self) -> str:
        """The value of a Server-Timing header."""
        if not (self.sandbox or self.libs or self.load):
            return (
                f"queue;dur={self.queue:.3f}, sandbox;dur=0.000, libs;dur=0.000, "
                f"load;dur=0.000, exec;dur={self.exec:.3f}"
            )
        return (
            f"queue;dur={self.queue:.3f}, sandbox;dur={self.sandbox:.3f}, "
            f"libs;dur={self.libs:.3f}, load;dur={self.load:.3f}, exec;dur={self.exec:.3f}"
        )

    def as_list(self) -> list[float]:
        return [self.queue, self.sandbox, self.libs, self.load, self.exec]


@dataclass(slots=True)
class Invocation:
    """One call of a function. `function` is "namespace/name"."""

    id: str
    function: str
    revision: str
    body: Body
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    remaining_s: float | None = None
    attempt: int = 1
    events: bool = False
    slo_s: float | None = None
    priority: int = 0
    tenant: str = ""
    session: str = ""


@dataclass(slots=True)
class Reply:
    """What came of an invocation: a whole body, or chunks as the function yields them.

    A large body comes in chunks too, and `length` is then its size.
    """

    status: int
    content_type: str
    headers: dict[str, str]
    start: StartKind
    timings: Timings
    worker: str
    body: bytes = b""
    chunks: AsyncIterator[bytes] | None = None
    revision: str = ""
    length: int | None = None


class Receiver(Protocol):
    """Who is told what became of an invocation: one of the two, once, and never from within the
    call that began it.
    """

    def answered(self, reply: Reply) -> None: ...

    def failed(self, error: FaasdError) -> None: ...


class Started(Protocol):
    """An invocation under way."""

    def cancel(self) -> None:
        """The caller is gone: neither method of its receiver is called from now on."""
        ...


@dataclass(slots=True)
class Load:
    """How much a worker has in hand, from all its controllers: the figures of the latest `seq`.

    `outstanding` are invocations queued or running there, `running` those that an instance has.
    """

    seq: int = 0
    outstanding: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """A content-addressed file and the name it is shown under."""

    sha256: str
    filename: str


@dataclass(frozen=True, slots=True)
class Revision:
    """Everything a worker needs to run one revision of a function."""

    function: str
    id: str
    spec: FunctionSpec
    code_sha256: str
    artifacts: dict[str, ArtifactRef]
    min_instances: int = 0
    key: str = field(init=False, repr=False, compare=False)
    max_body_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for with every invocation.
        object.__setattr__(self, "key", f"{self.function}@{self.id}")
        object.__setattr__(self, "max_body_bytes", self.spec.max_body_bytes)

    def to_plain(self) -> dict[str, Any]:
        return {
            "function": self.function,
            "id": self.id,
            "spec": self.spec.model_dump(mode="json"),
            "code_sha256": self.code_sha256,
            "artifacts": {name: asdict(ref) for name, ref in self.artifacts.items()},
            "min_instances": self.min_instances,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Revision:
        return cls(
            function=plain["function"],
            id=plain["id"],
            spec=compact(validate_spec(plain["spec"])),
            code_sha256=plain["code_sha256"],
            artifacts={name: ArtifactRef(**ref) for name, ref in plain["artifacts"].items()},
            min_instances=plain["min_instances"],
        )


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """One revision on one worker, as it is now; `ejected` counts instances ended for failing."""

    function: str
    revision: str
    template: str
    starting: int
    idle: int
    busy: int
    queued: int
    memory_mb: float
    ejected: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """A runtime's zygote on one worker."""

    name: str
    state: str
    memory_mb: float
    libraries: list[str]


@dataclass(frozen=True, slots=True)
class GpuReport:
    """A GPU, or a MIG device of the GPU `parent`, as it is now. Memory in megabytes.

    `health` is ready, unknown or lost, `fault` why; `held_*` is what instances were given of it.
    `processes` and `utilisation` (percent) are None where the driver does not tell.
    """

    uuid: str
    label: str
    name: str
    parent: str
    health: str
    fault: str
    memory_mb: float
    used_mb: float
    held_mb: float
    held_share: float
    instances: int
    processes: int | None
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """The load of a worker; rides on heartbeats and answers /v1/workers."""

    id: str
    cpus: int
    memory_mb: float
    memory_budget_mb: float
    memory_used_mb: float
    slots: int
    gpus: list[GpuReport]
    runtimes: list[RuntimeReport]
    functions: list[FunctionReport]
    starts: dict[str, int] = field(default_factory=dict)
    gpu_fault: str = ""
    sandboxes: dict[str, int] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> WorkerReport:
        return cls(
            **{
                **plain,
                "gpus": [GpuReport(**one) for one in plain["gpus"]],
                "runtimes": [RuntimeReport(**one) for one in plain["runtimes"]],
                "functions": [FunctionReport(**one) for one in plain["functions"]],
            }
        )


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a function printed. `ts` is seconds since the epoch."""

    ts: float
    function: str
    revision: str
    instance: str
    request_id: str
    stream: str
    line: str

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)
