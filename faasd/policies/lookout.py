"""Whether to look out for a reply instead of sleeping until it comes. Pure; told what came of it.

A thread that sleeps on an idle processor is woken 20 to 40 microseconds late, and pays as much
processor time for going to sleep and waking as some calls take. So where one call is all that there
is, and calls are that short, its reply is looked for again and again for a moment. Where it did not
come in time it is not tried for a while, for twice as long each time in a row.
"""

from __future__ import annotations


class Lookout:
    """Of one function on one worker."""

    LONGEST_S = 100e-6
    SHORT_S = 50e-6
    """The mean run time up to which it is tried: half of the patience, the rest is the way."""
    FIRST_PAUSE = 8
    LONGEST_PAUSE = 4096

    __slots__ = ("_pause", "_skip")

    def __init__(self, *, cores: int) -> None:
        self._pause = self.FIRST_PAUSE
        # On the only core this would keep the instance from running.
        self._skip = -1 if cores < 2 else 0

    def __repr__(self) -> str:
        return f"<Lookout, not for {self._skip} calls>" if self._skip else "<Lookout>"

    def for_s(self, mean_s: float) -> float:
        """Seconds to look out for the reply to a lone call; 0 for not at all."""
        if self._skip:
            if self._skip > 0:
                self._skip -= 1
            return 0.0
        return self.LONGEST_S if mean_s <= self.SHORT_S else 0.0

    def ended(self, *, in_time: bool) -> None:
        if in_time:
            self._pause = self.FIRST_PAUSE
        else:
            self._skip = self._pause
            self._pause = min(2 * self._pause, self.LONGEST_PAUSE)
