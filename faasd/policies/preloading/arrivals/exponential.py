"""Calls that come at a rate, whatever has been: the rate is that of the last of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 20
_INSTANT_S = 1e-6


def rate_of(arrivals: Sequence[float] | deque[float]) -> float:
    """Calls per second, by so many of the last: n calls have n - 1 gaps. Zero where there is none."""
    if len(arrivals) < 2:
        return 0.0
    return (len(arrivals) - 1) / max(_INSTANT_S, arrivals[-1] - arrivals[0])


class Exponential:
    """By a sliding window of gaps. Before there is one, a call is never expected."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._gaps: deque[float] = deque()
        self._total_s = 0.0

    @property
    def rate(self) -> float:
        return len(self._gaps) / max(_INSTANT_S, self._total_s) if self._gaps else 0.0

    def observe(self, gap_s: float, times: int = 1) -> None:
        gap_s = max(0.0, gap_s)
        for _ in range(min(times, self._window)):
            self._gaps.append(gap_s)
            self._total_s += gap_s
        while len(self._gaps) > self._window:
            self._total_s -= self._gaps.popleft()

    def tail(self, gaps_s: Sequence[float]) -> list[float]:
        rate, exp = -self.rate, math.exp
        return [exp(rate * gap_s) for gap_s in gaps_s]
