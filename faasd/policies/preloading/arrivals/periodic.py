"""Calls by a clock: most gaps are about as long as the last ones were."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 9
ENOUGH = 3
LOOSE = 0.05
"""The least spread, as a share of the period: clocks are met late, and gaps are few."""

ODD = 0.1
"""The share of gaps that follow no clock."""


class Periodic:
    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=WINDOW)
        self._period_s = 0.0
        self._spread_s = 0.0

    @property
    def period_s(self) -> float | None:
        return self._period_s or None

    def observe(self, gap_s: float, times: int = 1) -> None:
        for _ in range(min(times, WINDOW)):
            self._gaps.append(max(0.0, gap_s))
        if len(self._gaps) < ENOUGH:
            return
        ordered = sorted(self._gaps)
        middle = ordered[len(ordered) // 2]
        away = sorted(abs(gap - middle) for gap in ordered)[len(ordered) // 2]
        self._period_s = max(1e-3, middle)
        self._spread_s = max(1.4826 * away, LOOSE * self._period_s)

    def survival(self, gap_s: float) -> float:
        if not self._period_s:
            return math.exp(-gap_s / 3600.0)
        late = (gap_s - self._period_s) / (self._spread_s * math.sqrt(2.0))
        odd = math.exp(-gap_s / (2.0 * self._period_s))
        return (1.0 - ODD) * 0.5 * math.erfc(late) + ODD * odd
