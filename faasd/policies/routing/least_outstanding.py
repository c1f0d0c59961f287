"""Least outstanding per slot, with patience for workers that hold the template. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate, Locality

_Rank = tuple[float, int, str]


class LeastOutstanding:
    """Least outstanding per slot, with preference for workers that hold the revision's template.

    A template saves seconds, a free slot milliseconds: holders win until the best of them is so
    loaded that each of its slots has `patience` calls, and somebody else is less loaded.
    """

    def __init__(self, *, patience: float = 2.0) -> None:
        self._patience = patience

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        """Ties go to the better locality, then to the first by name."""
        del key
        best: _Rank | None = None
        holder: _Rank | None = None
        idle: _Rank | None = None
        for one in candidates:
            score, locality = one.score, one.locality
            rank = (score, -locality, one.worker)
            if best is None or rank < best:
                best = rank
            if locality:
                if holder is None or rank < holder:
                    holder = rank
                if locality is Locality.IDLE and score <= 1 and (idle is None or rank < idle):
                    idle = rank
        if holder is not None and holder[0] <= self._patience:
            best = idle or holder
        return None if best is None else best[2]
