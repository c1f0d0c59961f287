"""Which instance serves which session, and the calls that wait for it. Pure, with bounded memory.

A session stays with its instance while that lives: its calls wait for it although others are free.
When the instance ends they are anybody's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(slots=True)
class SessionCall:
    """A call that waits for one instance."""

    id: int
    arrived: float
    deadline: float | None
    slo_s: float | None
    priority: int
    tenant: str


class Sessions:
    """Not thread-safe; owned by the event loop of the worker."""

    __slots__ = ("_instances", "_size", "_waiting", "calls")

    def __init__(self, *, size: int = 65_536) -> None:
        self._size = size
        self._instances: OrderedDict[str, int] = OrderedDict()
        self._waiting: dict[int, deque[SessionCall]] = {}
        self.calls: dict[int, int] = {}
        """Calls that wait for an instance of their own, and which that is."""

    def __repr__(self) -> str:
        return f"<Sessions {len(self._instances)} known, {len(self.calls)} calls waiting>"

    def instance(self, session: str) -> int | None:
        """The instance that served the session last, whether or not it is still there."""
        return self._instances.get(session)

    def served(self, session: str, instance: int) -> None:
        """An instance was given a call of the session; the least recently used one is forgotten."""
        self._instances[session] = instance
        self._instances.move_to_end(session)
        if len(self._instances) > self._size:
            self._instances.popitem(last=False)

    def wait(self, instance: int, call: SessionCall) -> None:
        self._waiting.setdefault(instance, deque()).append(call)
        self.calls[call.id] = instance

    def next(self, instance: int) -> SessionCall | None:
        """The first call that waits for the instance, which does so no more."""
        waiting = self._waiting.get(instance)
        if not waiting:
            return None
        call = waiting.popleft()
        if not waiting:
            del self._waiting[instance]
        del self.calls[call.id]
        return call

    def remove(self, call: int) -> bool:
        """Forget a call that waits. False when it does not."""
        instance = self.calls.pop(call, None)
        if instance is None:
            return False
        kept = deque(one for one in self._waiting[instance] if one.id != call)
        if kept:
            self._waiting[instance] = kept
        else:
            del self._waiting[instance]
        return True

    def ended(self, instance: int) -> list[SessionCall]:
        """The instance is gone: the calls that waited for it, in order."""
        calls = list(self._waiting.pop(instance, ()))
        for call in calls:
            del self.calls[call.id]
        return calls

    def expired(self, now: float) -> list[int]:
        """Forget the calls whose deadline passed; which they were."""
        late = [
            call.id
            for waiting in self._waiting.values()
            for call in waiting
            if call.deadline is not None and call.deadline <= now
        ]
        for call in late:
            self.remove(call)
        return late

    def next_deadline(self) -> float | None:
        return min(
            (
                call.deadline
                for waiting in self._waiting.values()
                for call in waiting
                if call.deadline is not None
            ),
            default=None,
        )

    def oldest_arrival(self) -> float | None:
        return min((waiting[0].arrived for waiting in self._waiting.values()), default=None)

    def waited_for(self) -> list[int]:
        """The instances for which calls wait."""
        return list(self._waiting)
