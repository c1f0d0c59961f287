"""What a node has in hand and what its invocations found, counted as it happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from faasd.invocation import Load, StartKind


@dataclass(slots=True)
class Tally(Load):
    """The load of a node, kept by its services: each call arrives, may start, and ends, once."""

    starts: Counter[str] = field(default_factory=Counter)

    def arrived(self) -> None:
        self.seq += 1
        self.outstanding += 1

    def started(self, kind: StartKind) -> None:
        """An instance was given the call."""
        self.running += 1
        self.starts[kind.value] += 1

    def ended(self, *, ran: bool) -> None:
        """The call is over, its stream included; `ran` when it had started."""
        self.seq += 1
        self.outstanding -= 1
        self.running -= ran
