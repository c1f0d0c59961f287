"""The routing policies by the names that the setting `routing` takes, and the choice among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from faasd.policies.routing.bounded_hash import BoundedHash
from faasd.policies.routing.bounded_queue import BoundedQueue
from faasd.policies.routing.candidate import Candidate, Router
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.policies.routing.locality import LocalityFirst, nearest
from faasd.policies.routing.power_of_k import PowerOfK
from faasd.policies.routing.random_choice import RandomChoice
from faasd.policies.routing.round_robin import RoundRobin

DISPATCH_S = 0.001
_MUCH_SHORTER = 10


def choose_default(exec_s: float, *, dispatch_s: float = DISPATCH_S) -> str:
    """The name of the policy for calls of a mean run time.

    A queue at the controller is best where handing a call over takes a small part of running it;
    where it does not, workers would stand idle meanwhile, and calls go out at once.
    """
    return "bounded-queue" if exec_s >= _MUCH_SHORTER * dispatch_s else "power-of-two"


class Automatic:
    """Each revision by the policy that fits its mean run time."""

    def __init__(self, rng: random.Random) -> None:
        self._by_name: Mapping[str, Router] = {
            "bounded-queue": BoundedQueue(),
            "power-of-two": PowerOfK(rng),
        }

    def choose(self, candidates: Sequence[Candidate], key: str = "") -> str | None:
        if not candidates:
            return None
        policy = self._by_name[choose_default(candidates[0].exec_s)]
        return policy.choose(nearest(candidates), key)


ROUTERS: Mapping[str, Callable[[random.Random], Router]] = {
    "auto": Automatic,
    "bounded-queue": lambda _: LocalityFirst(BoundedQueue()),
    "power-of-two": lambda rng: LocalityFirst(PowerOfK(rng)),
    "least-outstanding": lambda _: LeastOutstanding(),
    "bounded-hash": lambda _: LocalityFirst(BoundedHash()),
    "random": RandomChoice,
    "round-robin": lambda _: RoundRobin(),
}
