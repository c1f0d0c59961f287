"""What the controller keeps: the port, and the records that cross it.

Every method that changes something returns only once the change would survive a kill -9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from faasd.invocation import Revision


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision and when it was deployed, in seconds since the epoch."""

    revision: Revision
    created_at: float
    active: bool


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An API key without its secret."""

    id: str
    name: str
    role: str
    namespace: str
    created_at: float


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A reply that is kept."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of an asynchronous invocation."""

    number: int
    started_at: float
    ended_at: float | None = None
    worker: str | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredInvocation:
    """An asynchronous invocation. `status` is queued, running, succeeded or dead."""

    id: str
    function: str
    revision: str | None
    status: str
    content_type: str
    headers: dict[str, str]
    body: bytes
    created_at: float
    next_attempt_at: float | None
    finished_at: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    timings: list[float] | None = None
    start: str | None = None
    result: StoredResult | None = None


class Store(Protocol):
    """Not thread-safe; every call is awaited on the controller's loop."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def activate(self, revision: Revision, now: float) -> None:
        """Store a revision and make it the active one of its function, in one step."""
        ...

    async def revisions(self, function: str | None = None) -> list[StoredRevision]:
        """All revisions, or those of one function, the oldest first."""
        ...

    async def remove_function(self, function: str) -> None: ...

    async def accept(self, invocation: StoredInvocation) -> bool:
        """Store a new invocation; False, and nothing done, when its id is taken."""
        ...

    async def update(self, invocation: StoredInvocation) -> None:
        """Everything but the request itself."""
        ...

    async def invocation(self, identity: str) -> StoredInvocation | None: ...

    async def invocations(
        self, *, namespace: str, status: str | None, function: str | None, limit: int
    ) -> list[StoredInvocation]:
        """The newest first, without bodies."""
        ...

    async def due(self, now: float, limit: int) -> list[StoredInvocation]:
        """Queued ones whose next attempt is due, the longest due first."""
        ...

    async def next_due(self) -> float | None: ...

    async def requeue_running(self, now: float) -> int:
        """After a restart: what was running is queued again; how many there were."""
        ...

    async def backlog(self) -> dict[str, int]:
        """Asynchronous invocations by status."""
        ...

    async def remember(
        self, scope: str, key: str, fingerprint: str, result: StoredResult, now: float
    ) -> None:
        """Keep the reply under an idempotency key."""
        ...

    async def recall(self, scope: str, key: str) -> tuple[str, StoredResult] | None:
        """Fingerprint of the request and the reply kept under an idempotency key."""
        ...

    async def expire(self, *, finished_before: float, keys_before: float) -> None:
        """Drop what has been kept long enough."""
        ...

    async def add_key(self, key: StoredKey, digest: str) -> None: ...

    async def key_by_digest(self, digest: str) -> StoredKey | None: ...

    async def keys(self) -> list[StoredKey]: ...

    async def remove_key(self, identity: str) -> bool: ...
