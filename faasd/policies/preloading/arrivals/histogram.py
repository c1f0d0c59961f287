"""Gaps as they were, in bins that grow with the gap: bursts with pauses between, and other shapes.

The bins of all functions together are the prior: few gaps of a rare function are read in the light of
what gaps of that length usually led to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from faasd.policies.preloading.arrivals.model import SHORT_S

RATIO = 2.0**0.5
BINS = 32
EDGES = tuple(SHORT_S * RATIO**place for place in range(BINS))
"""The upper edge of each bin; what is longer than the last one, a day and more, is in one more."""

_ENDS = (0.0, *EDGES, 2 * EDGES[-1])
_PRIOR = 2.0
_MOST = 128.0


def bin_of(gap_s: float) -> int:
    return bisect_right(EDGES, gap_s)


class Counts:
    """Of one function, or of all. The older half is forgotten when there are too many."""

    __slots__ = ("counts", "most", "total")

    def __init__(self, most: float = _MOST, each: float = 0.0) -> None:
        self.counts = [each] * (BINS + 1)
        self.total = each * (BINS + 1)
        self.most = most

    def add(self, place: int, times: float) -> None:
        self.counts[place] += times
        self.total += times
        if self.total > self.most:
            self.counts = [one * 0.5 for one in self.counts]
            self.total *= 0.5


class GapHistogram:
    """Bins are mixed with those of all functions, which are as good as two gaps."""

    def __init__(self, everyone: Counts) -> None:
        self._own = Counts()
        self._everyone = everyone
        self._above: list[float] | None = None

    def observe(self, gap_s: float, times: int = 1) -> None:
        place = bin_of(max(0.0, gap_s))
        self._own.add(place, min(float(times), _MOST / 2))
        # A function that is called all the time must not speak for the others.
        self._everyone.add(place, 1.0)
        self._above = None

    def tail(self, gaps_s: Sequence[float]) -> list[float]:
        above = self._above
        if above is None:
            above = self._above = self._sum_up()
        found = []
        place = bin_of(gaps_s[0])
        for gap_s in gaps_s:
            while gap_s >= _ENDS[place + 1] and place < BINS:
                place += 1
            low = _ENDS[place]
            inside = min(1.0, (gap_s - low) / (_ENDS[place + 1] - low))
            here = above[place]
            found.append(here + inside * (above[place + 1] - here))
        return found

    def _sum_up(self) -> list[float]:
        """The probability of each bin and all above it, and none beyond."""
        total = self._own.total + _PRIOR
        scale = _PRIOR / max(1e-9, self._everyone.total) / total
        pairs = zip(reversed(self._own.counts), reversed(self._everyone.counts), strict=True)
        sums = list(accumulate(own / total + scale * usual for own, usual in pairs))
        sums.reverse()
        sums.append(0.0)
        return sums


def everyone() -> Counts:
    """The bins of all functions, before any is known."""
    return Counts(most=4096.0, each=0.25)
