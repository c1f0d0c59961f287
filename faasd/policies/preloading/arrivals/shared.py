"""Calls that come at a rate which is not known well: what few calls say, and what all others do.

The rate of a function is drawn from a gamma distribution that describes all functions. After n gaps
of T seconds in all it is gamma again, with n and T added, and the gap that follows is longer than t
with probability (b / (b + t)) ** a. The longer a function is silent, the less soon it is expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SHAPE = 0.5
FORGET = 0.98
UNKNOWN_S = 3600.0


class Population:
    """The gaps of all functions. Functions count alike, however often they are called."""

    STRENGTH = 4.0

    def __init__(self, typical_s: float = UNKNOWN_S) -> None:
        self._log_sum = math.log(typical_s) * self.STRENGTH
        self._weight = self.STRENGTH

    @property
    def typical_s(self) -> float:
        """The geometric mean of the functions' mean gaps."""
        return math.exp(self._log_sum / self._weight)

    def replace(self, before_s: float | None, now_s: float) -> None:
        """The mean gap of a function is another than before, or is known for the first time."""
        if before_s is not None:
            self._log_sum -= math.log(max(1e-3, before_s))
            self._weight -= 1.0
        self._log_sum += math.log(max(1e-3, now_s))
        self._weight += 1.0


class SharedPrior:
    """The last fifty gaps or so, beside what is usual."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._count = 0.0
        self._total_s = 0.0
        self._told: float | None = None

    def observe(self, gap_s: float, times: int = 1) -> None:
        keep = FORGET**times
        self._count = self._count * keep + (1.0 - keep) / (1.0 - FORGET)
        self._total_s = self._total_s * keep + max(0.0, gap_s) * (1.0 - keep) / (1.0 - FORGET)
        mean_s = self._total_s / self._count
        self._population.replace(self._told, mean_s)
        self._told = mean_s

    def tail(self, gaps_s: Sequence[float]) -> list[float]:
        shape = SHAPE + self._count
        span_s = SHAPE * self._population.typical_s + self._total_s
        return [(span_s / (span_s + gap_s)) ** shape for gap_s in gaps_s]
