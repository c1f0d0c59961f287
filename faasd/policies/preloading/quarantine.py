"""Functions whose loads failed: not tried again for a while that doubles, and why."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 30.0
LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Fault:
    """`until` is when the next load may be tried."""

    reason: str
    failures: int
    since: float
    until: float


class Quarantine:
    """By function and node: what fails on one may be the node's fault."""

    def __init__(self, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._faults: dict[tuple[int, int], Fault] = {}

    def failed(self, function: int, node: int, reason: str, now: float) -> None:
        before = self._faults.get((function, node))
        failures = before.failures + 1 if before else 1
        wait_s = min(self._longest_s, self._first_s * 2.0 ** min(failures - 1, 20))
        self._faults[function, node] = Fault(reason, failures, now, now + wait_s)

    def succeeded(self, function: int, node: int) -> None:
        self._faults.pop((function, node), None)

    def forget(self, function: int) -> None:
        """It is gone, or is another one now: what failed says nothing any more."""
        for key in [key for key in self._faults if key[0] == function]:
            del self._faults[key]

    def holds(self, function: int, node: int, now: float) -> bool:
        fault = self._faults.get((function, node))
        return fault is not None and now < fault.until

    def listing(self) -> dict[tuple[int, int], Fault]:
        """By function and node; those whose time is up stay until a load succeeds."""
        return dict(self._faults)
