"""What the controller expects of a worker, however far away it is.

`faasd up` passes the node itself through a thin adapter; `controller.cluster` makes one of a
connection. A link that fails tells WorkerLost to all that is under way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from faasd.invocation import (
    Invocation,
    Load,
    LogLine,
    Receiver,
    Revision,
    Started,
    WorkerReport,
)

Progress = Callable[[str, str], None]


class WorkerLink(Protocol):
    """A worker, seen from the controller. Owned by the event loop."""

    @property
    def worker_id(self) -> str: ...

    @property
    def load(self) -> Load:
        """What it has in hand, as its last reply or report said. Always the same object."""
        ...

    def report(self) -> WorkerReport:
        """The whole of it as last heard of."""
        ...

    def register(self, revision: Revision) -> None:
        """Let it know a revision before anything else is asked about it."""
        ...

    def retire(self, function: str, revision: str) -> None:
        """Let it finish with a revision and forget it."""
        ...

    async def prepare(self, revision: Revision, progress: Progress) -> None:
        """Have a first instance ready. Raises DeployFailed."""
        ...

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        """Begin an invocation. Raises FaasdError at once, or has its receiver told."""
        ...

    def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]: ...
