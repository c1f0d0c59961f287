"""How many instances a revision should have now. Pure; called on every arrival and departure."""

from __future__ import annotations

import math
from dataclasses import dataclass


# Not frozen: one is made for every event of a pool that may grow.
@dataclass(slots=True)
class Demand:
    """What a revision has to do and what with. Times in seconds; None where nothing was measured."""

    queued: int
    running: int
    live: int
    per_instance: int
    waited_s: float
    exec_s: float | None
    start_s: float | None


class ConcurrencyScaling:
    """As many instances as the work in hand fills, unless waiting is shorter than starting.

    A queue that the present instances empty sooner than a fork takes is left to them: a burst of
    one-millisecond calls must not start a process each.
    """

    def __init__(self, *, minimum: int, maximum: int) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def target(self, demand: Demand) -> int:
        """The number of instances to have, idle, busy and starting ones together."""
        filled = math.ceil((demand.queued + demand.running) / demand.per_instance)
        wanted = max(self._minimum, min(filled, self._maximum))
        if wanted > demand.live > 0 and self._waiting_is_shorter(demand):
            return max(demand.live, self._minimum)
        return wanted

    @staticmethod
    def _waiting_is_shorter(demand: Demand) -> bool:
        if demand.exec_s is None or demand.start_s is None or demand.waited_s >= demand.start_s:
            return False
        wait_s = demand.queued * demand.exec_s / (demand.live * demand.per_instance)
        return wait_s < demand.start_s
