"""Consistent hashing with bounded loads: a key keeps its worker until that has more than its share.

Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA'18), with
rendezvous hashing in the ring's place and the bound in proportion to a worker's slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate
from faasd.policies.routing.rendezvous import draw


class BoundedHash:
    """The first worker in the key's order that has at most (1 + `epsilon`) of the mean per slot."""

    def __init__(self, *, epsilon: float = 0.25) -> None:
        self._share = 1 + epsilon

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        if not candidates:
            return None
        calls, slots = 1, 0
        for one in candidates:
            calls += one.outstanding
            slots += one.slots
        per_slot = self._share * calls / slots
        best: str | None = None
        most = -1.0
        for one in candidates:
            # Rounded up, as the call itself is whole: somebody is always below.
            if one.outstanding < math.ceil(per_slot * one.slots):
                drawn = one.slots * draw(key, one.worker)
                if drawn > most:
                    best, most = one.worker, drawn
        return best
