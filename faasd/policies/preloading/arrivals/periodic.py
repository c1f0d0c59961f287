"""Calls by a clock: most gaps are about as long as the last ones were."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 9
ENOUGH = 3
LOOSE = 0.05
"""The least spread, as a share of the period: clocks are met late, and gaps are few."""

_UNKNOWN_S = 3600.0
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

    def tail(self, gaps_s: Sequence[float]) -> list[float]:
        exp, erfc = math.exp, math.erfc
        period_s = self._period_s
        if not period_s:
            return [exp(-gap_s / _UNKNOWN_S) for gap_s in gaps_s]
        by_spread = 1.0 / (self._spread_s * math.sqrt(2.0))
        by_odd = -0.5 / period_s
        timely = 0.5 * (1.0 - ODD)
        return [
            timely * erfc((gap_s - period_s) * by_spread) + ODD * exp(gap_s * by_odd)
            for gap_s in gaps_s
        ]
