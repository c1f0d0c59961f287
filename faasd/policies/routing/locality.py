"""Where a call would be served soonest, before load is compared. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from faasd.policies.routing.candidate import Candidate, Locality, Router

_IDLE, _TEMPLATE = Locality.IDLE, Locality.TEMPLATE


def nearest(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those with an idle instance, else those with a template, else all.

    Only workers with room count as near: where a call would have to wait, what it waits for weighs
    more than what it finds, and `Candidate.expected_s` compares the two in seconds.
    """
    idle: list[Candidate] | None = None
    template: list[Candidate] | None = None
    for one in candidates:
        locality = one.locality
        if locality and one.outstanding < one.slots and one.held < one.places:
            if locality is _IDLE:
                if idle is None:
                    idle = [one]
                else:
                    idle.append(one)
            elif template is None:
                template = [one]
            else:
                template.append(one)
    return idle or template or candidates


class LocalityFirst:
    """Lets a policy choose among the nearest workers only."""

    def __init__(self, policy: Router) -> None:
        self._policy = policy

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        return self._policy.choose(nearest(candidates), key)
