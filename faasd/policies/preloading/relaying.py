"""What policies that stand over others have in common: to do what those want, as their own."""

from __future__ import annotations

from faasd.policies.preloading.actions import Cancel, Load, Lower, Why
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.policy import Policy


class Relaying(Policy):
    """Policies beneath have books of their own. Their loads are this one's, by other numbers."""

    def __init__(self, *, bounds: Bounds | None = None) -> None:
        super().__init__(bounds=bounds)
        self._theirs: dict[int, tuple[Policy, int]] = {}

    def failed(self, load: int, reason: str, now: float) -> None:
        theirs = self._theirs.pop(load, None)
        super().failed(load, reason, now)
        if theirs is not None:
            policy, number = theirs
            policy.failed(number, reason, now)
            self._follow(policy)

    def _follow(self, policy: Policy) -> None:
        """It may want something sooner than before."""
        self.due = min(self.due, policy.due)

    def _relay(self, policy: Policy, now: float) -> None:
        if policy.due > now:
            return
        for action in policy.decide(now):
            match action:
                case Lower(place, level, why):
                    self._lower(place, level, why)
                case Load():
                    self._load_for(policy, action, now)
                case Cancel(load, why):
                    self._cancel_for(policy, load, now, why)

    def _load_for(self, policy: Policy, load: Load, now: float) -> None:
        begun = self._begin_load(
            load.function,
            load.node,
            load.level,
            now,
            load.why,
            place=load.place,
            host=load.host,
        )
        if begun:
            self._theirs[self.loads.latest] = (policy, load.id)
        else:
            policy.loads.given_up(load.id)

    def _cancel_for(self, policy: Policy, load: int, now: float, why: Why) -> None:
        for ours, theirs in list(self._theirs.items()):
            if theirs == (policy, load):
                del self._theirs[ours]
                given_up = self.loads.under_way(ours)
                if given_up is not None:
                    self._give_up(given_up, why, now)

    def _theirs_done(self, policy: Policy, load: int | None) -> int | None:
        """The number of a load that is done, where it was the policy's."""
        found = None if load is None else self._theirs.pop(load, None)
        return found[1] if found is not None and found[0] is policy else None

    def _load_ended(self, function: int, node: int, now: float) -> None:
        """What has come to nothing here is not under way beneath either."""
        del function, node, now
        for ours, (policy, load) in list(self._theirs.items()):
            if self.loads.under_way(ours) is None:
                del self._theirs[ours]
                policy.loads.given_up(load)
