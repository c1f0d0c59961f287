"""What a worker expects of any kind of sandbox: the ports, and the values that cross them.

Implementations are siblings in `worker.sandboxes`, chosen by name: `process`, `fake`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from faasd.errors import FaasdError
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.spec import FunctionSpec
from faasd.spool import Body
from worker.gpus.ledger import GpuLedger

Meta = tuple[str, str, dict[str, str], int, float | None, bool]
"""What a handler is told besides its event: the request's id, content type and headers, which
attempt this is, the seconds to its deadline, whether its caller takes server-sent events.
"""
Call = tuple[int, Meta, Body]
Output = Callable[[str, str, str, str], None]
Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a start and when it ran, on the worker's monotonic clock, seconds."""

    phase: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a revision's files are on this node: ready to be used, never to be written."""

    code: str
    path: list[str]
    artifacts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Opened:
    """How a sandbox came to be."""

    kind: StartKind
    spans: tuple[Span, ...]


@dataclass(slots=True)
class Exit:
    """How an instance ended: a clause such as "was killed by signal 9", and the reason if known."""

    detail: str = "ended"
    reason: FaasdError | None = None


class InstanceEvents(Protocol):
    """What an instance tells its owner. Called from the event loop, never after `on_closed`."""

    def on_result(
        self,
        call: int,
        status: int,
        content_type: str,
        headers: dict[str, str],
        exec_ms: float,
        body: Body,
    ) -> None: ...

    def on_start(
        self, call: int, status: int, content_type: str, headers: dict[str, str] | None = None
    ) -> None: ...

    def on_chunk(self, call: int, data: bytes) -> None: ...

    def on_end(self, call: int, exec_ms: float) -> None: ...

    def on_error(self, call: int, problem: dict[str, Any], exec_ms: float) -> None: ...

    def on_printed(self) -> None:
        """The call that runs has written to its standard output or error."""
        ...

    def on_caught_up(self) -> None:
        """All that has come from it by now was told, by an instance that `tells_rounds`."""
        ...

    def on_lost(self) -> None:
        """It is gone, with what it runs; `on_closed` follows when it is known how."""
        ...

    def on_closed(self, end: Exit) -> None: ...


class Instance(Protocol):
    """A process that serves calls."""

    tells_rounds: bool
    """Whether it says when it has told all that came at once."""

    def call(self, calls: Sequence[Call]) -> None: ...

    def look_out(self, for_s: float) -> bool:
        """Wait for what it says without sleeping, so long at most: whether anything came."""
        ...

    def cancel(self, call: int) -> None:
        """Ask the handler to stop: an exception where it runs. The owner kills it if it does not."""
        ...

    def kill(self) -> None: ...

    def pause(self) -> None:
        """Read no more from it until `resume`: its next writes wait."""
        ...

    def resume(self) -> None: ...

    def pids(self) -> list[int]: ...


class Sandbox(Protocol):
    """A template in its sandbox."""

    opened: Opened
    devices: tuple[str, ...] | None
    """The GPUs that it was made with, by uuid; None where it sees whatever the node has."""
    serial: bool
    """Whether its instances serve one call after the other and may be sent some ahead."""

    async def fork(
        self, name: str, events: InstanceEvents, env: Mapping[str, str] | None = None
    ) -> Instance:
        """An attached instance, with `env` set before any of the function's code runs in it.

        Raises DeployFailed when the function refuses, or Unavailable.
        """
        ...

    def instances(self) -> dict[str, Instance]:
        """Every instance by its name, those included that are not attached yet."""
        ...

    async def aclose(self) -> None:
        """End every process of it and remove its folder. Safe to call twice."""
        ...

    def pids(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class PipEnd:
    """How a run of pip ended, and what it printed last."""

    status: int
    output: str


class LayerBuilder(Protocol):
    """Runs the pip of a runtime: with its interpreter, beside its packages."""

    async def identity(self, runtime: str) -> str:
        """What a layer depends on besides its own list. Raises DeployFailed or Unavailable."""
        ...

    async def installed(self, runtime: str) -> Mapping[str, str]:
        """The runtime's own packages and their versions. Raises DeployFailed or Unavailable."""
        ...

    async def pip(
        self, runtime: str, arguments: Sequence[str], folder: Path, timeout_s: float
    ) -> PipEnd:
        """Run pip in a folder, to which the arguments' paths are relative.

        Raises DeployFailed or Unavailable when it could not run, TimeoutError when it took longer;
        it runs no more then.
        """
        ...


class Sandboxes(Protocol):
    """The kind of sandboxes a worker uses."""

    @property
    def builder(self) -> LayerBuilder:
        """Builds requirements layers with the Python that will import them."""
        ...

    def sandboxes(self) -> dict[str, int]:
        """How many sandboxes are in each state."""
        ...

    def use_gpus(self, ledger: GpuLedger) -> None:
        """Where to ask which GPUs a sandbox is made with. Called once, before `start`."""
        ...

    async def start(self) -> None: ...

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> Sandbox:
        """A sandbox whose template is ready. Raises DeployFailed with the user's traceback when
        the function's code refuses to start, Unavailable when the node could not do its part.
        """
        ...

    def runtimes(self) -> list[RuntimeReport]: ...

    def measure(self) -> None:
        """Look up the memory of the zygotes for `runtimes`. Blocks; called in a thread."""
        ...

    async def check(self, spec: FunctionSpec) -> None:
        """Raises DeployFailed when functions like this cannot run here, whatever their code."""
        ...

    async def aclose(self) -> None: ...
