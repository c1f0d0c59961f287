"""One worker after the other, whatever their load: a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate


class RoundRobin:
    """In the order of the candidates; one turn for all revisions."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        del key
        if not candidates:
            return None
        self._turn = (self._turn + 1) % len(candidates)
        return candidates[self._turn].worker
