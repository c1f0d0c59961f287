"""Axes: where ticks stand, what they say, how wide bins are."""

from __future__ import annotations

import math
from dataclasses import dataclass

BIN_WIDTHS_S = (
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    1800,
    3600,
    7200,
    21600,
)
MOST_BINS = 100
MOST_TIME_TICKS = 9
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Linear:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Logarithmic:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def linear_ticks(high: float, *, whole: bool = False) -> list[float]:
    """From 0 to the first round value that is not below `high`; only whole numbers for counts."""
    step = _round_step(max(high, 1e-9) / 5)
    if whole:
        step = max(1.0, step)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)] if high > 0 else [0.0, 1.0]


def time_ticks(end_s: float) -> list[float]:
    """Round times from 0 up to `end_s`, few enough to be labelled."""
    fitting = (step for step in BIN_WIDTHS_S if end_s / step < MOST_TIME_TICKS)
    step = next(fitting, DAY_S * math.ceil(end_s / DAY_S / MOST_TIME_TICKS))
    return [step * i for i in range(int(end_s / step * 1.0001) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """From at or below `low` to at or above `high`: powers of ten, with 2 and 5 when they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 3:
        return [10.0**power for power in range(first, last + 1)]
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    start = max(tick for tick in ticks if tick <= low)
    end = min(tick for tick in ticks if tick >= high)
    if start == end:
        end = next(tick for tick in [*ticks, start * 10] if tick > start)
    return [tick for tick in ticks if start <= tick <= end] or [start, end]


def bin_width_s(span_s: float) -> float:
    """The narrowest round width that needs no more than `MOST_BINS` bins."""
    fitting = (width for width in BIN_WIDTHS_S if span_s / width <= MOST_BINS)
    return next(fitting, span_s / MOST_BINS)


def ms_label(value: float) -> str:
    return f"{_short(value / 1000)} s" if value >= 1000 else f"{_short(value)} ms"


def s_label(value: float) -> str:
    if value >= 2 * 3600:
        return f"{_short(value / 3600)} h"
    if value >= 300:
        return f"{_short(value / 60)} min"
    return f"{_short(value)} s"


def count_label(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
