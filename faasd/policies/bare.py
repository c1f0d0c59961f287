"""How many bare sandboxes to keep ahead of demand. Pure: told of claims and starts, asked for a number."""

from __future__ import annotations

import math
from collections import deque


class BarePool:
    """As many as will be claimed while one is being made, doubled, within bounds.

    The rate is that of the claims of the last `window_s` seconds; starting slows down when several
    are started at once, hence the measured time of a start and not the best one.
    """

    SAFETY = 2.0
    SMOOTHING = 0.3

    def __init__(
        self, *, least: int, most: int, window_s: float = 10.0, start_s: float = 0.5
    ) -> None:
        self._least = least
        self._most = most
        self._window_s = window_s
        self._start_s = start_s
        self._claims: deque[float] = deque(maxlen=4096)

    def claimed(self, now: float) -> None:
        self._claims.append(now)

    def started(self, took_s: float) -> None:
        """One was made, in so many seconds."""
        self._start_s += self.SMOOTHING * (took_s - self._start_s)

    def target(self, now: float) -> int:
        """How many should be ready or on their way."""
        while self._claims and self._claims[0] <= now - self._window_s:
            self._claims.popleft()
        rate = len(self._claims) / self._window_s
        return max(self._least, min(self._most, math.ceil(self.SAFETY * rate * self._start_s)))
