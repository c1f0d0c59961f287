"""What a model of the gaps between the calls of one function answers.

Everything follows from the survival function, the probability that a gap is longer than this, before
anything of it has passed. It is asked for at many lengths at once: a call for each would cost more
than the answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    def tail(self, gaps_s: Sequence[float]) -> list[float]:
        """For each of some lengths, which rise: the probability that the next gap is longer."""
        ...


def survival(model: GapModel, gap_s: float) -> float:
    return model.tail((gap_s,))[0]


def chance(model: GapModel, idle_s: float, within_s: float) -> float:
    """The probability of a call within so many seconds, given for how long there was none."""
    now, then = model.tail((idle_s, idle_s + within_s))
    return 1.0 if now <= _LEAST else min(1.0, max(0.0, 1.0 - then / now))


def log_score(model: GapModel, gap_s: float) -> float:
    """The logarithm of the probability that the model gave to a gap that came, in nats."""
    if gap_s < SHORT_S:
        met = 1.0 - survival(model, SHORT_S)
    else:
        sooner, later = model.tail((gap_s / NEAR, gap_s * NEAR))
        met = sooner - later
    return math.log(max(_LEAST, met))
