"""How many calls a worker runs at once: in turn where runs are alike, together where they differ.

FCFS, one call per core, is best while runs take about the same time. Once the squared coefficient
of variation of their times (CV2) is well above one, a short call behind a long one loses more than
sharing the cores costs: more instances than cores run then, and the kernel shares the cores among
them by cpu.weight, which is processor sharing (RackSched, OSDI'20).
"""

from __future__ import annotations

import math


class ServiceTimes:
    """Mean and variance of execution times, exponentially weighted.

    The first ENOUGH runs are looked at together, without the slowest: a fresh instance's first run
    is often slow in a way that no later one is, and would look like dispersion for long.

    After a pause of PAUSE mean times, and of LEAST_PAUSE_S, the next ENOUGH runs are looked at
    afresh. Calls are dropped by what is known here; if it is wrong and nothing runs any more,
    this is how that is noticed.
    """

    SMOOTHING = 0.02
    ENOUGH = 20
    PAUSE = 100.0
    LEAST_PAUSE_S = 0.1

    __slots__ = ("_first", "_known", "_last", "_mean_s", "_variance")

    def __init__(self) -> None:
        self._first: list[float] = []
        self._known = False
        self._mean_s = 0.0
        self._variance = 0.0
        self._last = 0.0

    def __repr__(self) -> str:
        known = f"{self._mean_s:.3g} s, CV2 {self.cv2:.2g}" if self._known else "not known yet"
        return f"<ServiceTimes {known}>"

    def observe(self, exec_s: float, now: float) -> None:
        """A run that took so long has ended."""
        if self._paused(now):
            self._first = []
        self._last = now
        if len(self._first) == self.ENOUGH:
            change = exec_s - self._mean_s
            part = self.SMOOTHING * change
            self._mean_s += part
            self._variance = (1 - self.SMOOTHING) * (self._variance + part * change)
        else:
            self._look_at_first(exec_s)

    @property
    def mean_s(self) -> float | None:
        """None before the first run."""
        return self._mean_s if self._known or self._first else None

    @property
    def cv2(self) -> float | None:
        """Variance over squared mean; None until ENOUGH runs were seen."""
        if not self._known:
            return None
        return self._variance / self._mean_s**2 if self._mean_s > 0 else 0.0

    def within_s(self, now: float, *, deviations: float = 2.0) -> float | None:
        """Seconds that nearly every run stays within; None while ENOUGH recent runs are missing.

        Two standard deviations above the mean hold 98 % of a normal and 95 % of an exponential
        distribution, and of any at least 80 % (Cantelli).
        """
        if len(self._first) < self.ENOUGH or self._paused(now):
            return None
        return self._mean_s + deviations * math.sqrt(self._variance)

    def _paused(self, now: float) -> bool:
        # Between calls of microseconds the least hitch is many of them.
        gap_s = now - self._last
        return gap_s > self.LEAST_PAUSE_S and self._known and gap_s > self.PAUSE * self._mean_s

    def _look_at_first(self, exec_s: float) -> None:
        self._first.append(exec_s)
        enough = len(self._first) == self.ENOUGH
        if self._known and not enough:
            return
        self._known = enough
        usual = sorted(self._first)[:-1] or self._first
        self._mean_s = math.fsum(usual) / len(usual)
        self._variance = math.fsum((one - self._mean_s) ** 2 for one in usual) / len(usual)


class ProcessorUse:
    """Whether calls compute or wait, from the processor time and the run time of a while."""

    SMOOTHING = 0.3
    LEAST_S = 0.1
    COMPUTES = 0.5

    __slots__ = ("_share",)

    def __init__(self) -> None:
        self._share: float | None = None

    def observe(self, cpu_s: float, run_s: float) -> None:
        """Calls that ran for so long in all have used so much of the processors."""
        if run_s < self.LEAST_S:
            return
        share = min(1.0, cpu_s / run_s)
        before = share if self._share is None else self._share
        self._share = before + self.SMOOTHING * (share - before)

    @property
    def computes(self) -> bool:
        """Whether calls compete for processors: more of them at once would only share these."""
        return self._share is not None and self._share >= self.COMPUTES


def sharing(
    exec_cv2: float | None,
    cores: int,
    *,
    most_per_core: float = 4.0,
    limit: int | None = None,
) -> int:
    """How many calls to run at once: `cores` up to a CV2 of one or while it is not known.

    Above, as many per core as the CV2 says, at most `most_per_core`: the more runs differ, the
    more of them must run together for a short one to find room, and the more memory that takes.
    There is no threshold at which the number jumps. `limit` bounds it, as memory may.
    """
    per_core = 1.0 if exec_cv2 is None else min(max(exec_cv2, 1.0), most_per_core)
    slots = max(1, int(cores * per_core))
    return slots if limit is None else max(1, min(slots, limit))
