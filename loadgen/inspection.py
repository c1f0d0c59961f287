"""What a trace looks like: figures for the whole and for each function, without replaying it.

Rates are exact. How irregular a function is, is told by a coefficient of variation: of the gaps between its
invocations when the trace gives their instants, of its counts per bin when it gives only those; `cv_of` says which.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field

from loadgen.results import percentile
from loadgen.traces.model import Counts, Instants, Trace, rank

PEAK_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class FunctionFigures:
    name: str
    invocations: int
    share: float
    mean_interarrival_s: float | None
    cv: float | None
    duration_ms_p50: float | None
    memory_mb: float | None


@dataclass(frozen=True, slots=True)
class SizeFigures:
    name: str
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class TraceFigures:
    path: str
    format: str
    span_s: float
    invocations: int
    rate_mean_rps: float
    rate_peak_rps: float
    peak_window_s: float
    cv_of: str
    functions: tuple[FunctionFigures, ...]
    sizes: tuple[SizeFigures, ...]


def inspect_trace(trace: Trace) -> TraceFigures:
    if isinstance(trace.events, Counts):
        peak, window, cvs = _counted(trace.events, trace.span_s)
        cv_of = f"counts per {window:g} s"
    else:
        peak, window, cvs = _timed(trace.events, len(trace.functions))
        cv_of = "inter-arrival times"
    return TraceFigures(
        path=str(trace.path),
        format=trace.format,
        span_s=trace.span_s,
        invocations=trace.invocations,
        rate_mean_rps=trace.invocations / trace.span_s if trace.span_s else 0.0,
        rate_peak_rps=peak / window,
        peak_window_s=window,
        cv_of=cv_of,
        functions=_functions(trace, cvs),
        sizes=tuple(_size(name, values) for name, values in trace.sizes.items()),
    )


def _functions(trace: Trace, cvs: list[float | None]) -> tuple[FunctionFigures, ...]:
    total = trace.invocations
    order = sorted(range(len(trace.functions)), key=lambda i: rank(trace.functions[i]))
    return tuple(
        FunctionFigures(
            name=function.name,
            invocations=function.invocations,
            share=function.invocations / total if total else 0.0,
            mean_interarrival_s=trace.span_s / function.invocations
            if function.invocations > 1
            else None,
            cv=cvs[i],
            duration_ms_p50=function.duration_ms,
            memory_mb=function.memory_mb,
        )
        for i in order
        for function in (trace.functions[i],)
    )


def _size(name: str, values: array[float]) -> SizeFigures:
    ordered = sorted(values)
    return SizeFigures(name, percentile(ordered, 50), percentile(ordered, 99))


def _counted(counts: Counts, span_s: float) -> tuple[int, float, list[float | None]]:
    per_bin: Counter[int] = Counter()
    cvs: list[float | None] = []
    bins = max(1, math.ceil(span_s / counts.bin_s))
    for cells in counts.cells:
        moments = _Moments()
        for at, count in zip(cells.bins, cells.counts, strict=True):
            per_bin[at] += count
            moments.add(count)
        moments.count = bins
        cvs.append(moments.cv)
    return max(per_bin.values(), default=0), counts.bin_s, cvs


def _timed(instants: Instants, functions: int) -> tuple[int, float, list[float | None]]:
    moments = [_Moments() for _ in range(functions)]
    last: list[float | None] = [None] * functions
    peak, second, in_second = 0, -1, 0
    for at, function in zip(instants.times_s, instants.functions, strict=True):
        before = last[function]
        if before is not None:
            moments[function].add(at - before)
        last[function] = at
        if int(at / PEAK_WINDOW_S) != second:
            second, in_second = int(at / PEAK_WINDOW_S), 0
        in_second += 1
        peak = max(peak, in_second)
    return peak, PEAK_WINDOW_S, [gaps.cv for gaps in moments]


@dataclass(slots=True)
class _Moments:
    count: int = 0
    _sum: float = field(default=0.0)
    _squares: float = field(default=0.0)

    def add(self, value: float) -> None:
        self.count += 1
        self._sum += value
        self._squares += value * value

    @property
    def cv(self) -> float | None:
        if self.count < 2 or not self._sum:
            return None
        mean = self._sum / self.count
        return math.sqrt(max(0.0, self._squares / self.count - mean * mean)) / mean
