"""What the controller's answers become: frozen values, and the one way from and to JSON.

Keys the client does not know are passed over, so that an older client reads a newer controller.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from faasd.client import bodies
from faasd.errors import InternalError

T = TypeVar("T")
Timestamp = dt.datetime


@dataclass(frozen=True, slots=True)
class RevisionInfo:
    """One revision in a function's history."""

    revision: str
    created_at: Timestamp
    active: bool


@dataclass(frozen=True, slots=True)
class InstanceCounts:
    """How many instances of a function there are in each state."""

    starting: int = 0
    idle: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Function:
    """A deployed function."""

    name: str
    namespace: str
    revision: str
    runtime: str
    created_at: Timestamp
    url: str
    spec: dict[str, Any] = field(default_factory=dict)
    revisions: tuple[RevisionInfo, ...] = ()
    instances: InstanceCounts = InstanceCounts()
    queued: int = 0
    memory_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a deploy."""

    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class InvokeResult:
    """What an invocation returned, and what it cost. `timings` are milliseconds by phase."""

    status: int
    content_type: str
    body: bytes
    start_kind: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    worker: str = ""
    revision: str = ""
    request_id: str = ""
    replayed: bool = False

    @property
    def value(self) -> Any:
        """The body decoded by its content type: JSON values, str, bytes, or None when empty.

        Raises UnserialisableResult when the body is not what its content type says.
        """
        return bodies.decode(self.content_type, self.body)


@dataclass(frozen=True, slots=True)
class Submitted:
    """The controller's receipt for a queued invocation."""

    id: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of an asynchronous invocation; `error` is a problem object."""

    number: int
    started_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    worker: str | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """An asynchronous invocation as the controller keeps it."""

    id: str
    function: str
    namespace: str
    revision: str | None
    status: str
    created_at: Timestamp
    finished_at: Timestamp | None = None
    attempts: tuple[Attempt, ...] = ()
    next_attempt_at: Timestamp | None = None
    timings: dict[str, float] | None = None
    start: str | None = None
    result: dict[str, Any] | None = None

    @property
    def error(self) -> dict[str, Any] | None:
        """The problem of the last attempt, if it failed."""
        return self.attempts[-1].error if self.attempts else None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a function printed. `ts` is seconds since the epoch."""

    ts: float
    function: str
    revision: str
    instance: str
    request_id: str
    stream: str
    line: str


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """A runtime's libraries on one worker."""

    name: str
    state: str
    memory_mb: float = 0.0
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """One revision of a function on one worker; `ejected` counts instances ended for failing."""

    function: str
    revision: str
    template: str = ""
    starting: int = 0
    idle: int = 0
    busy: int = 0
    queued: int = 0
    memory_mb: float = 0.0
    ejected: int = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG device, of a worker. None stands for what its driver does not tell."""

    uuid: str
    label: str = ""
    name: str = ""
    parent: str = ""
    health: str = "ready"
    fault: str = ""
    memory_mb: float = 0.0
    used_mb: float = 0.0
    held_mb: float = 0.0
    held_share: float = 0.0
    instances: int = 0
    processes: int | None = None
    utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """A node of the cluster."""

    id: str
    status: str
    cpus: float = 0
    memory_mb: float = 0.0
    memory_used_mb: float = 0.0
    memory_budget_mb: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    slots: int = 0
    outstanding: int = 0
    runtimes: tuple[RuntimeState, ...] = ()
    functions: tuple[Placement, ...] = ()
    gpu_fault: str = ""
    sandboxes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. `key` is the secret, present only in the answer that made it."""

    id: str
    name: str
    role: str
    namespace: str
    created_at: Timestamp | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster at one moment; `ready` says whether any worker can serve."""

    url: str
    ready: bool
    workers: tuple[Worker, ...]
    functions: tuple[Function, ...]


def read(cls: type[T], raw: Any) -> T:
    """The dataclass `cls` from decoded JSON. Raises InternalError when it does not fit."""
    try:
        return typing.cast("T", _convert(cls, raw))
    except (TypeError, ValueError) as error:
        raise _misfit(f"a {cls.__name__}: {error}") from None


def read_list(cls: type[T], answer: dict[str, Any], key: str) -> list[T]:
    """The dataclasses under `key` of an answer. Raises InternalError when they do not fit."""
    items = answer.get(key)
    if not isinstance(items, list):
        raise _misfit(f"a list of {key}")
    return [read(cls, item) for item in items]


def plain(value: Any) -> Any:
    """Answers as what json.dumps takes; times are ISO 8601 UTC, as the controller writes them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Timestamp):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def _misfit(what: str) -> InternalError:
    return InternalError(
        f"The controller's answer is not {what}.",
        remedy="Use a client of the controller's version; `faasd version` prints the client's.",
    )


def _convert(kind: Any, raw: Any) -> Any:
    if isinstance(kind, types.UnionType):
        return None if raw is None else _convert(typing.get_args(kind)[0], raw)
    if typing.get_origin(kind) is tuple:
        return tuple(_convert(typing.get_args(kind)[0], item) for item in raw)
    if dataclasses.is_dataclass(kind):
        return _construct(typing.cast("type[Any]", kind), raw)
    if kind is Timestamp:
        return Timestamp.fromisoformat(raw)
    if kind is str and not isinstance(raw, str):
        raise TypeError(f"a {type(raw).__name__} stands where text belongs")
    return raw


def _construct(cls: type[Any], raw: Any) -> Any:
    if not isinstance(raw, dict):
        raise TypeError(f"a {type(raw).__name__} stands where an object belongs")
    kinds = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)} & raw.keys()
    return cls(**{name: _convert(kinds[name], raw[name]) for name in known})
