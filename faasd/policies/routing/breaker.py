"""Which sick workers or instances get no calls for a while. Pure.

| state | calls | becomes |
|---|---|---|
| closed | all | ejected after `failures` failures in a row |
| ejected | none | half-open after `base_s`, doubled for each ejection in a row, at most `cap_s` |
| half-open | one, the probe | closed when it succeeds, ejected again when it fails |

Failures are the platform's: a worker that is lost, an instance that died. An error of the user's
code is a success here. Outlier ejection and panic threshold as Envoy has them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

_NOBODY: frozenset[str] = frozenset()


class BreakerState(enum.StrEnum):
    CLOSED = "closed"
    EJECTED = "ejected"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class _Breaker:
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    ejections: int = 0
    until: float = 0.0
    since: int = 0
    probe: int | None = None


class Breakers:
    """The breakers of all targets. `now` is any clock that never goes back.

    Each call is told of twice: `began`, then one of `succeeded`, `failed` and `withdrawn`, with the
    ticket that `began` gave. What began before the target's last change of state says nothing
    about it now, and is not counted.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        base_s: float = 1.0,
        cap_s: float = 60.0,
        most_ejected: float = 0.5,
    ) -> None:
        self._failures = failures
        self._base_s = base_s
        self._cap_s = cap_s
        self._most_ejected = most_ejected
        self._breakers: dict[str, _Breaker] = {}
        self._tripped: set[str] = set()
        self._tickets = 0

    @property
    def quiet(self) -> bool:
        """Whether no target is left out, or on probation."""
        return not self._tripped

    def state(self, target: str, now: float) -> BreakerState:
        breaker = self._breakers.get(target)
        return BreakerState.CLOSED if breaker is None else self._seen(breaker, now)

    def ejected(self, targets: Sequence[str], now: float) -> frozenset[str]:
        """Those of the targets to leave out.

        None when that would be more than the share `most_ejected`: so many sick at once are a
        fault of something else, and the few that are left would go under.
        """
        if not self._tripped:
            return _NOBODY
        out = frozenset(one for one in targets if one in self._tripped and self._bars(one, now))
        return out if len(out) <= self._most_ejected * len(targets) else _NOBODY

    def began(self, target: str, now: float) -> int:
        """A call goes to the target; the first one after its time was over is the probe."""
        self._tickets += 1
        if target in self._tripped:
            breaker = self._breakers[target]
            if self._seen(breaker, now) is BreakerState.HALF_OPEN and breaker.probe is None:
                breaker.probe = self._tickets
        return self._tickets

    def succeeded(self, target: str, ticket: int) -> None:
        breaker = self._breakers.get(target)
        if breaker is None or ticket <= breaker.since:
            return
        breaker.failures = 0
        if breaker.state is not BreakerState.CLOSED:
            self._close(target, breaker)

    def failed(self, target: str, ticket: int, now: float) -> None:
        """The platform failed, not the user's code."""
        breaker = self._breakers.setdefault(target, _Breaker())
        if ticket <= breaker.since:
            return
        if breaker.state is BreakerState.CLOSED:
            breaker.failures += 1
            if breaker.failures >= self._failures:
                self._eject(target, breaker, now)
        elif ticket == breaker.probe:
            self._eject(target, breaker, now)

    def withdrawn(self, target: str, ticket: int) -> None:
        """The call ended without saying anything about the target; if it was the probe, another
        may be sent.
        """
        breaker = self._breakers.get(target)
        if breaker is not None and breaker.probe == ticket:
            breaker.probe = None

    def forget(self, target: str) -> None:
        """The target is gone for good."""
        self._breakers.pop(target, None)
        self._tripped.discard(target)

    def _bars(self, target: str, now: float) -> bool:
        breaker = self._breakers[target]
        return self._seen(breaker, now) is BreakerState.EJECTED or breaker.probe is not None

    @staticmethod
    def _seen(breaker: _Breaker, now: float) -> BreakerState:
        if breaker.state is BreakerState.EJECTED and now >= breaker.until:
            breaker.state = BreakerState.HALF_OPEN
        return breaker.state

    def _eject(self, target: str, breaker: _Breaker, now: float) -> None:
        breaker.state = BreakerState.EJECTED
        breaker.until = now + min(self._cap_s, self._base_s * 2.0**breaker.ejections)
        breaker.ejections = min(breaker.ejections + 1, 64)
        self._changed(breaker)
        self._tripped.add(target)

    def _close(self, target: str, breaker: _Breaker) -> None:
        breaker.state = BreakerState.CLOSED
        breaker.ejections = 0
        self._changed(breaker)
        self._tripped.discard(target)

    def _changed(self, breaker: _Breaker) -> None:
        breaker.failures = 0
        breaker.probe = None
        breaker.since = self._tickets
