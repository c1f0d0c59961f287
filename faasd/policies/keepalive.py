"""How long an idle instance is kept. Pure: told of arrivals, asked for seconds."""

from __future__ import annotations

from collections import deque
from typing import Literal, Protocol


class KeepAlive(Protocol):
    """Decides from the arrivals seen so far."""

    def arrived(self, now: float) -> None: ...

    def idle_s(self) -> float:
        """Seconds an instance may idle before it is ended."""
        ...


class FixedKeepAlive:
    """The same time for every instance."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def arrived(self, now: float) -> None:
        del now

    def idle_s(self) -> float:
        return self._seconds


class HistogramKeepAlive:
    """Keeps as long as almost all idle times seen so far lasted.

    The keep-alive half of the hybrid histogram policy of "Serverless in the Wild" (ATC'20, section
    4): the 99th percentile of the idle times of a sliding window, 10 % added, bounded. Too few of
    them, or too many beyond the longest time kept, and the fixed default holds instead.
    """

    WINDOW = 512
    ENOUGH = 10
    MARGIN = 1.1
    OUT_OF_BOUNDS_SHARE = 0.5

    __slots__ = ("_default_s", "_gaps", "_kept", "_last", "_least_s", "_most_s")

    def __init__(
        self, *, default_s: float = 600.0, least_s: float = 10.0, most_s: float = 3600.0
    ) -> None:
        self._default_s = default_s
        self._least_s = least_s
        self._most_s = most_s
        self._gaps: deque[float] = deque(maxlen=self.WINDOW)
        self._last: float | None = None
        self._kept: float | None = None

    def arrived(self, now: float) -> None:
        if self._last is not None:
            self._gaps.append(max(0.0, now - self._last))
            self._kept = None
        self._last = now

    def idle_s(self) -> float:
        if self._kept is None:
            self._kept = self._decide()
        return self._kept

    def _decide(self) -> float:
        if len(self._gaps) < self.ENOUGH:
            return self._default_s
        within = sorted(gap for gap in self._gaps if gap <= self._most_s)
        if len(within) < self.OUT_OF_BOUNDS_SHARE * len(self._gaps):
            return self._default_s
        tail = within[min(len(within) - 1, int(0.99 * len(within)))]
        return min(self._most_s, max(self._least_s, tail * self.MARGIN))


def keep_alive(choice: float | Literal["histogram"]) -> KeepAlive:
    """The policy that a spec's scaling.keep_alive names."""
    return HistogramKeepAlive() if choice == "histogram" else FixedKeepAlive(choice)
