"""What holding something until the next call is worth, by a model of that call. Pure arithmetic.

To hold for at most H seconds succeeds with the probability that the call comes by then, and takes, on
average, the time until the call or H, whichever is first. The best ratio of the two over all H
is the rate at which holding pays (Gittins' index of the question "go on or stop"): for calls
that come by chance alone it is their rate; for calls by a clock it is low after a call and high before
the next, which makes unloading in between and loading ahead fall out by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from faasd.policies.preloading.arrivals.model import GapModel

FIRST_S = 2.0
RATIO = 1.6
POINTS = 20
HORIZONS = tuple(FIRST_S * RATIO**place for place in range(POINTS))
"""Two seconds to four hours."""

SOON = 0.06
_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Outlook:
    """By horizon: the chance of a call, and the mean time of holding until it or the horizon."""

    chances: Sequence[float]
    holds: Sequence[float]
    rate: float
    within_s: float
    chance: float
    soon_s: float
    """When a call has come with a small probability: nothing need be looked at much before."""

    def gain_s(self, saves_s: float, cost_rate: float) -> float:
        """Seconds saved less what holding costs by the second, for the best time of holding."""
        return max(
            map(
                float.__sub__,
                map(saves_s.__mul__, self.chances),
                map(cost_rate.__mul__, self.holds),
            )
        )


def look_out(model: GapModel, idle_s: float) -> Outlook:
    now, *tail = model.tail([idle_s, *[idle_s + horizon for horizon in HORIZONS]])
    if now < _LEAST:
        # Nothing of the kind was ever seen: as likely as anything in twice the time.
        return steady(1.0 / max(FIRST_S, idle_s))
    chances, holds = [], []
    area, before, at, best = 0.0, 1.0, 0.0, 0.0
    within_s, likely, soon_s = HORIZONS[0], 0.0, HORIZONS[-1]
    for horizon, survival in zip(HORIZONS, tail, strict=True):
        left = survival / now
        area += 0.5 * (before + left) * (horizon - at)
        chance = 1.0 - left
        chances.append(chance)
        holds.append(area)
        if chance >= SOON > 1.0 - before:
            soon_s = at + (horizon - at) * (SOON - 1.0 + before) / max(_LEAST, before - left)
        if chance > best * area:
            best, within_s, likely = chance / area, horizon, chance
        before, at = left, horizon
    return Outlook(chances, holds, best, within_s, likely, soon_s)


def steady(rate: float) -> Outlook:
    """Of calls that come by chance alone."""
    chances, holds = [], []
    for horizon in HORIZONS:
        missed = math.exp(-rate * horizon)
        chances.append(1.0 - missed)
        holds.append((1.0 - missed) / rate if rate else horizon)
    return Outlook(chances, holds, rate, HORIZONS[0], chances[0], SOON / max(_LEAST, rate))
