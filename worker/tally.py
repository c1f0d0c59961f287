"""What a node has in hand and what its invocations found, counted as it happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from faasd.invocation import Load, StartKind


@dataclass(slots=True)
class Tally(Load):
    """The load of a node, kept by its services: each call arrives, may start, and ends, once."""

    starts: Counter[str] = field(default_factory=Counter)
    warm: int = 0

    def arrived(self) -> None:
        self.seq += 1
        self.outstanding += 1

    def started(self, kind: StartKind) -> None:
        """An instance was given the call."""
        self.running += 1
        # Hashing a member of an enumeration costs more than all the rest here.
        if kind is StartKind.WARM:
            self.warm += 1
        else:
            self.starts[kind.value] += 1

    def returned(self, kind: StartKind) -> None:
        """The instance ended before it came to the call, which waits again."""
        self.running -= 1
        if kind is StartKind.WARM:
            self.warm -= 1
        else:
            self.starts[kind.value] -= 1

    def by_kind(self) -> dict[str, int]:
        """How many invocations found what."""
        every = {**self.starts, StartKind.WARM.value: self.warm}
        return {kind: count for kind, count in every.items() if count}

    def ended(self, *, ran: bool) -> None:
        """The call is over, its stream included; `ran` when it had started."""
        self.seq += 1
        self.outstanding -= 1
        self.running -= ran
