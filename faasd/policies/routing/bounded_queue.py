"""Join the bounded shortest queue: what no worker would start soon waits at the controller.

JBSQ(n) of "R2P2: Making RPCs first-class datacenter citizens" (ATC'19, section 3.2). Calls that
wait in one place go to whichever worker is free first; calls that wait at a worker are stuck there
behind a long one.
"""

from __future__ import annotations

from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate


class BoundedQueue:
    """The worker that would be done soonest, of those with fewer than places + `extra` calls.

    One call more than there are places hides the time that the next one is on its way.
    """

    def __init__(self, *, extra: int = 1) -> None:
        self._extra = extra

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        """Ties go to the first. None when all are full."""
        del key
        extra = self._extra
        best: Candidate | None = None
        soonest = 0.0
        for one in candidates:
            if one.held < one.places + extra:
                expected = one.expected_s
                if best is None or expected < soonest:
                    best, soonest = one, expected
        return None if best is None else best.worker
