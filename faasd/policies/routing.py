"""Which worker gets an invocation. Pure; the caller keeps the counts."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Locality(enum.IntEnum):
    """How much of a revision a worker already has; more is better."""

    NOTHING = 0
    TEMPLATE = 1
    IDLE = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could take the invocation."""

    worker: str
    slots: int
    outstanding: int
    locality: Locality

    @property
    def score(self) -> float:
        """Load per slot with the invocation taken; unequal workers fill in proportion."""
        return (self.outstanding + 1) / self.slots


class LeastOutstanding:
    """Least outstanding per slot, with preference for workers that hold the revision's template.

    A template saves seconds, a free slot milliseconds: holders win until the best of them is so
    loaded that each of its slots has `patience` invocations, and somebody else is less loaded.
    """

    def __init__(self, *, patience: float = 2.0) -> None:
        self._patience = patience

    def choose(self, candidates: Iterable[Candidate]) -> str | None:
        """The name of the worker, or None without candidates. Ties go to the first by name."""
        everyone = sorted(candidates, key=lambda one: (one.score, -one.locality, one.worker))
        if not everyone:
            return None
        holders = [one for one in everyone if one.locality >= Locality.TEMPLATE]
        if holders and holders[0].score <= self._patience:
            idle = [one for one in holders if one.locality is Locality.IDLE and one.score <= 1]
            return (idle or holders)[0].worker
        return everyone[0].worker
