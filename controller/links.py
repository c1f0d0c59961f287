"""What the controller expects of a worker, however far away it is.

`faasd up` passes the node itself through a thin adapter; `controller.cluster` makes one of a
connection. A link that fails raises WorkerLost from the calls under way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from faasd.invocation import Invocation, LogLine, Receiver, Revision, Started, WorkerReport

Progress = Callable[[str, str], None]


class WorkerLink(Protocol):
    """A worker, seen from the controller. Owned by the event loop."""

    @property
    def worker_id(self) -> str: ...

    def report(self) -> WorkerReport:
        """Its load as last heard of."""
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
        """Begin it for the receiver. Raises FaasdError at once where it cannot begin."""
        ...

    def logs(self, function: str, *, tail: int, follow: bool) -> AsyncIterator[LogLine]: ...
