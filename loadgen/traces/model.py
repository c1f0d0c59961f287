"""What every trace is once it has been read, whatever its format was.

A trace knows its invocations in one of two ways: by the instant of each (`Instants`), or by how many
fell into each bin of time (`Counts`), in which case `loadgen.arrivals` draws the instants. Both are
held in arrays, a few bytes an invocation or bin; nothing is expanded here. Times are seconds since
the trace's start.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TraceFunction:
    """A function of the trace. What the trace does not tell is None."""

    name: str
    invocations: int
    duration_ms: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Instants:
    """Parallel arrays, ascending in time; `functions` holds indices into the trace's functions."""

    times_s: array[float]
    functions: array[int]


@dataclass(frozen=True, slots=True)
class Cells:
    """The bins in which one function was invoked, ascending, and how often in each."""

    bins: array[int]
    counts: array[int]


@dataclass(frozen=True, slots=True)
class Counts:
    """One `Cells` for each function of the trace; bins are `bin_s` seconds wide."""

    bin_s: float
    cells: tuple[Cells, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace, or the part of it that starts before `cut_s`."""

    path: Path
    format: str
    functions: tuple[TraceFunction, ...]
    events: Instants | Counts
    span_s: float
    cut_s: float = math.inf
    sizes: Mapping[str, array[float]] = field(default_factory=dict)

    @property
    def invocations(self) -> int:
        return sum(function.invocations for function in self.functions)

    def busiest(self, count: int) -> Trace:
        """The trace with only its `count` most invoked functions (ties by name)."""
        ranked = sorted(range(len(self.functions)), key=lambda i: rank(self.functions[i]))
        kept = sorted(ranked[:count])
        return dataclasses.replace(
            self,
            functions=tuple(self.functions[i] for i in kept),
            events=_select(self.events, kept),
        )


def rank(function: TraceFunction) -> tuple[int, str]:
    """Sort key: the most invoked function first, ties by name."""
    return (-function.invocations, function.name)


def _select(events: Instants | Counts, kept: Sequence[int]) -> Instants | Counts:
    if isinstance(events, Counts):
        return Counts(events.bin_s, tuple(events.cells[i] for i in kept))
    renumbered = {old: new for new, old in enumerate(kept)}
    pairs = zip(events.times_s, events.functions, strict=True)
    chosen = [(at, renumbered[function]) for at, function in pairs if function in renumbered]
    return Instants(array("d", (at for at, _ in chosen)), array("I", (f for _, f in chosen)))
