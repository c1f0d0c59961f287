"""What holding something until the next call is worth, by a model of that call. Pure arithmetic.

To hold for at most H seconds succeeds with the probability that the call comes by then, and takes, on
average, the time until the call or H, whichever is first. The best ratio of the two over all H
is the rate at which holding pays (Gittins' index of the question "go on or stop"): for calls
that come by chance alone it is their rate; for calls by a clock it is low after a call and high before
the next, which makes unloading in between and loading ahead fall out by themselves.
"""

from __future__ import annotations

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

    chances: tuple[float, ...]
    holds: tuple[float, ...]
    rate: float
    within_s: float
    chance: float
    soon_s: float
    """When a call has come with a small probability: nothing need be looked at much before."""

    def gain_s(self, saves_s: float, cost_rate: float) -> float:
        """Seconds saved less what holding costs by the second, for the best time of holding."""
        return max(
            chance * saves_s - cost_rate * hold
            for chance, hold in zip(self.chances, self.holds, strict=True)
        )


def look_out(model: GapModel, idle_s: float) -> Outlook:
    now = model.survival(idle_s)
    if now < _LEAST:
        # Nothing of the kind was ever seen: as likely as anything in twice the time.
        return steady(1.0 / max(FIRST_S, idle_s))
    chances, holds = [], []
    area, before, at = 0.0, 1.0, 0.0
    best, within_s, likely, soon_s = 0.0, HORIZONS[0], 0.0, HORIZONS[-1]
    found = False
    for horizon in HORIZONS:
        left = model.survival(idle_s + horizon) / now
        area += 0.5 * (before + left) * (horizon - at)
        chance = 1.0 - left
        chances.append(chance)
        holds.append(area)
        if not found and chance >= SOON:
            found = True
            soon_s = at + (horizon - at) * (SOON - (1.0 - before)) / max(_LEAST, before - left)
        if chance > best * area:
            best, within_s, likely = chance / area, horizon, chance
        before, at = left, horizon
    return Outlook(tuple(chances), tuple(holds), best, within_s, likely, soon_s)


def steady(rate: float) -> Outlook:
    """Of calls that come by chance alone."""
    chances, holds = [], []
    for horizon in HORIZONS:
        missed = 2.718281828459045 ** (-rate * horizon)
        chances.append(1.0 - missed)
        holds.append((1.0 - missed) / rate if rate else horizon)
    return Outlook(
        tuple(chances), tuple(holds), rate, HORIZONS[0], chances[0], SOON / max(_LEAST, rate)
    )
