"""The better of a few workers drawn at random: near the shortest queue, without herding on it.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (TPDS'01); between servers
for single requests, RackSched (OSDI'20, section 4): drawn with replacement, ties to the first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate


class PowerOfK:
    """Draws `k` times and takes the one that would be done soonest."""

    def __init__(self, rng: random.Random, *, k: int = 2) -> None:
        self._random = rng.random
        self._others = range(k - 1)

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        del key
        count = len(candidates)
        if count < 2:
            return candidates[0].worker if candidates else None
        draw = self._random
        best = candidates[int(draw() * count)]
        for _ in self._others:
            other = candidates[int(draw() * count)]
            if other is not best and other.expected_s < best.expected_s:
                best = other
        return best.worker
