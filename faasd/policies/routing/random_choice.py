"""Any worker, whatever its load: the baseline that every other policy has to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate


class RandomChoice:
    """Each worker with the same probability."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        del key
        return candidates[int(self._random() * len(candidates))].worker if candidates else None
