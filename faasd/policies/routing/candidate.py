"""What a routing policy is told of a worker, and the shape that all routing policies share."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Locality(enum.IntEnum):
    """How much of a revision a worker already has; more is better."""

    NOTHING = 0
    TEMPLATE = 1
    IDLE = 2


@dataclass(slots=True, eq=False)
class Candidate:
    """A worker that could take the next call of a revision.

    The caller keeps one per worker and revision and changes it in place: making eight of them anew
    costs more than the decision. Policies read, and never write.

    `outstanding` are the calls under way on the worker, `held` those of this revision among them,
    `places` how many of these it may run at once, `slots` how many calls it is meant to run at
    once. `start_cost_s` is what the call would wait for an instance; `exec_s` the mean run time.
    """

    worker: str
    slots: int
    outstanding: int = 0
    locality: Locality = Locality.NOTHING
    held: int = 0
    places: int = 1
    start_cost_s: float = 0.0
    exec_s: float = 0.1

    @property
    def score(self) -> float:
        """Load per slot with the call taken; unequal workers fill in proportion."""
        return (self.outstanding + 1) / self.slots

    @property
    def expected_s(self) -> float:
        """What the call would take there: its start, and its share of the work that is there."""
        return self.start_cost_s + (self.outstanding + 1) / self.slots * self.exec_s


class Router(Protocol):
    """Picks the worker for one call. Owned by whoever keeps the candidates; not thread-safe."""

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        """The name of the worker. None: hold the call until one of them has answered another.

        `key` names what should stay together, as a rule the revision.
        """
        ...
