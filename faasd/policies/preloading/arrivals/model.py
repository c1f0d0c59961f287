"""What a model of the gaps between the calls of one function answers.

Everything follows from the survival function: the probability that a gap is longer than this.
"""

from __future__ import annotations

import math
from typing import Protocol

SHORT_S = 4.0
"""Gaps below this are all alike: nothing is loaded or dropped for so short a time."""

NEAR = 1.1
"""Gaps are scored by the probability of being met to within so much, either way."""

_LEAST = 1e-12


class GapModel(Protocol):
    def observe(self, gap_s: float, times: int = 1) -> None:
        """So many gaps of this length, on average, ended in calls."""
        ...

    def survival(self, gap_s: float) -> float:
        """The probability that the next gap is longer, before anything of it has passed."""
        ...


def chance(model: GapModel, idle_s: float, within_s: float) -> float:
    """The probability of a call within so many seconds, given for how long there was none."""
    left = model.survival(idle_s)
    if left <= _LEAST:
        return 1.0
    return min(1.0, max(0.0, 1.0 - model.survival(idle_s + within_s) / left))


def log_score(model: GapModel, gap_s: float) -> float:
    """The logarithm of the probability that the model gave to a gap that came, in nats."""
    if gap_s < SHORT_S:
        met = 1.0 - model.survival(SHORT_S)
    else:
        met = model.survival(gap_s / NEAR) - model.survival(gap_s * NEAR)
    return math.log(max(_LEAST, met))
