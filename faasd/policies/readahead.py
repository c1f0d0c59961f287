"""How many calls an instance may be sent before their turn. Pure; told of each call that ended.

An instance that serves one call at a time is idle while its reply travels and the next call comes
back. Where calls take microseconds that is most of its time, and each of the two directions costs
a wake-up. Calls that were sent ahead wait in the instance's socket instead of the queue: no other
instance can take them, so this is done only while all calls have been short for long.
"""

from __future__ import annotations


class ReadAhead:
    """`depth` calls more than the one that runs; 0 until calls have proved short.

    Every call that is not short, or that printed or streamed, ends it, and doubles the number of
    short ones in a row that it takes to begin again: where one call in N is slow, at most about
    `depth` in N wait behind one.
    """

    HORIZON_S = 0.001
    """What an instance may hold in work ahead, by the mean of its calls."""
    LONG_S = 0.01
    DEEPEST = 16
    FIRST_PROOF = 64
    LONGEST_PROOF = 1 << 20
    _SMOOTHING = 0.1

    __slots__ = ("_mean_s", "_proof", "_short", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self._short = 0
        self._proof = self.FIRST_PROOF
        self._mean_s = 0.0

    @property
    def mean_s(self) -> float:
        """Of the calls that proved short."""
        return self._mean_s

    def __repr__(self) -> str:
        return f"<ReadAhead {self.depth} deep, {self._short} of {self._proof} short calls>"

    def ended(self, took_s: float | None) -> None:
        """A call took so long in its instance; None where it must not be followed so closely."""
        if took_s is None or took_s > self.LONG_S:
            if self.depth:
                self._proof = min(self._proof * 2, self.LONGEST_PROOF)
            self._short = self.depth = 0
            return
        self._mean_s += self._SMOOTHING * (took_s - self._mean_s)
        self._short += 1
        if self._short >= self._proof:
            self.depth = min(self.DEEPEST, int(self.HORIZON_S / max(self._mean_s, 1e-6)))
            if self._short >= 16 * self._proof > 16 * self.FIRST_PROOF:
                # Proved again and again: an outlier of long ago is forgiven by degrees.
                self._proof //= 2
                self._short = self._proof
