"""From a trace to the instants at which its invocations are due, lazily and in order.

Traces that give instants are passed through. For those that give counts per bin, a law says how the arrivals
lie inside a bin: it is the law of the gaps between them, scaled so that the gaps before, between and after the
arrivals fill the bin exactly. Counts per bin are therefore always kept.

- `exponential`: a Poisson process with the bin's count (the arrivals are uniform in the bin)
- `uniform`: gaps uniform between 0 and twice their mean; smoother than Poisson
- `equidistant`: equal gaps; each function has its own phase, so that functions do not beat together

Each function and bin has its own random stream, made from the seed, the function's name and the bin: what one
function does depends neither on the others nor on how much of the trace is used. Memory does not grow with the
counts: the gaps of a bin are drawn twice from the same stream, once for their sum.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from random import Random

from loadgen.traces.model import Counts, Instants, Trace

Arrival = tuple[float, int]
"""Seconds since the trace's start, and the index of the function in the trace."""


class Law(StrEnum):
    EXPONENTIAL = "exponential"
    UNIFORM = "uniform"
    EQUIDISTANT = "equidistant"


def arrivals(trace: Trace, *, law: Law = Law.EXPONENTIAL, seed: int = 0) -> Iterator[Arrival]:
    """Every invocation of the trace before its cut, ascending in time."""
    if isinstance(trace.events, Instants):
        return zip(trace.events.times_s, trace.events.functions, strict=True)
    names = [function.name for function in trace.functions]
    return _drawn(trace.events, names, law, seed, trace.cut_s)


def positions(law: Law, count: int, stream: str) -> Iterator[float]:
    """`count` ascending places in [0, 1), the same for the same stream."""
    if law is Law.EQUIDISTANT:
        phase = Random(stream).random()
        yield from ((i + phase) / count for i in range(count))
        return
    total = _total(_gaps(law, stream), count + 1)
    draw = _gaps(law, stream)
    reached = 0.0
    for _ in range(count):
        reached += draw()
        yield min(reached / total, _JUST_BELOW_ONE)


_JUST_BELOW_ONE = math.nextafter(1.0, 0.0)


def _gaps(law: Law, stream: str) -> Callable[[], float]:
    random = Random(stream)
    if law is Law.UNIFORM:
        return random.random
    return lambda: random.expovariate(1.0)


def _total(draw: Callable[[], float], count: int) -> float:
    total = 0.0
    for _ in range(count):
        total += draw()
    return total


def _drawn(
    counts: Counts, names: list[str], law: Law, seed: int, cut_s: float
) -> Iterator[Arrival]:
    # The next cell of each function, the earliest bin on top: (bin, function, place in its cells).
    heap = [(cells.bins[0], index, 0) for index, cells in enumerate(counts.cells) if cells.bins]
    heapq.heapify(heap)
    while heap:
        current = heap[0][0]
        streams: list[Iterator[Arrival]] = []
        while heap and heap[0][0] == current:
            _, index, place = heap[0]
            cells = counts.cells[index]
            stream = f"{seed}/{names[index]}/{_stream_bin(law, current)}"
            streams.append(
                _in_bin(positions(law, cells.counts[place], stream), current, counts.bin_s, index)
            )
            following = place + 1
            if following < len(cells.bins):
                heapq.heapreplace(heap, (cells.bins[following], index, following))
            else:
                heapq.heappop(heap)
        for arrival in streams[0] if len(streams) == 1 else heapq.merge(*streams):
            if arrival[0] >= cut_s:
                return
            yield arrival


def _stream_bin(law: Law, current: int) -> int:
    # One phase for all bins keeps equal counts equally spaced across the edges of bins.
    return 0 if law is Law.EQUIDISTANT else current


def _in_bin(places: Iterator[float], current: int, bin_s: float, index: int) -> Iterator[Arrival]:
    start, end = current * bin_s, (current + 1) * bin_s
    below = math.nextafter(end, start)
    for place in places:
        yield min(start + place * bin_s, below), index
