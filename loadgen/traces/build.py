"""Collects the invocations of a trace that gives the instant of each, then puts them in order."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise
from pathlib import Path
from statistics import median

from loadgen.errors import TraceError
from loadgen.traces.model import Instants, Trace, TraceFunction


class InstantsBuilder:
    """Fed one invocation at a time in any order; `build` makes the trace.

    With `shift`, the trace starts at its first invocation; without it, at the zero of its times.
    """

    def __init__(self, path: Path, format_name: str, *, shift: bool, cut_s: float) -> None:
        self._path = path
        self._format = format_name
        self._shift = shift
        self._cut_s = cut_s
        self._index: dict[str, int] = {}
        self._times = array("d")
        self._functions = array("I")
        self._durations: array[float] = array("d")
        self._sizes: dict[str, array[float]] = {}

    def add(
        self,
        function: str,
        at_s: float,
        *,
        duration_ms: float = math.nan,
        sizes: dict[str, float] | None = None,
    ) -> None:
        self._times.append(at_s)
        self._functions.append(self._index.setdefault(function, len(self._index)))
        self._durations.append(duration_ms)
        for name, size in (sizes or {}).items():
            self._sizes.setdefault(name, array("d")).append(size)

    def build(
        self,
        *,
        durations_ms: dict[str, float] | None = None,
        memory_mb: dict[str, float] | None = None,
    ) -> Trace:
        """The trace; the two tables add what a metadata file told about functions."""
        if not self._times:
            raise TraceError(self._path, "holds no invocations; expected one a line.")
        self._put_in_order()
        self._cut()
        measured = self._medians()
        functions = tuple(
            TraceFunction(
                name,
                invocations=count,
                duration_ms=measured.get(index, (durations_ms or {}).get(name)),
                memory_mb=(memory_mb or {}).get(name),
            )
            for (name, index), count in zip(self._index.items(), self._per_function(), strict=True)
        )
        trace = Trace(
            path=self._path,
            format=self._format,
            functions=functions,
            events=Instants(self._times, self._functions),
            span_s=self._times[-1] if self._times else 0.0,
            cut_s=self._cut_s,
            sizes=self._sizes,
        )
        invoked = sum(1 for function in functions if function.invocations)
        return trace.busiest(invoked) if invoked < len(functions) else trace

    def _put_in_order(self) -> None:
        if any(later < earlier for earlier, later in pairwise(self._times)):
            order = sorted(range(len(self._times)), key=self._times.__getitem__)
            self._functions = array("I", (self._functions[i] for i in order))
            self._durations = array("d", (self._durations[i] for i in order))
            self._sizes = {
                name: array("d", (values[i] for i in order)) for name, values in self._sizes.items()
            }
            self._times = array("d", (self._times[i] for i in order))
        if self._shift:
            start = self._times[0]
            self._times = array("d", (at - start for at in self._times))

    def _cut(self) -> None:
        if not self._times or self._times[-1] < self._cut_s:
            return
        end = next(i for i, at in enumerate(self._times) if at >= self._cut_s)
        self._times = self._times[:end]
        self._functions = self._functions[:end]
        self._durations = self._durations[:end]
        self._sizes = {name: values[:end] for name, values in self._sizes.items()}

    def _per_function(self) -> list[int]:
        counts = [0] * len(self._index)
        for function in self._functions:
            counts[function] += 1
        return counts

    def _medians(self) -> dict[int, float]:
        by_function: dict[int, list[float]] = {}
        for function, duration in zip(self._functions, self._durations, strict=True):
            if not math.isnan(duration):
                by_function.setdefault(function, []).append(duration)
        return {function: median(durations) for function, durations in by_function.items()}
