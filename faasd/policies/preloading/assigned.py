"""Policies by function: most go by the cluster's, some by one of their own, in the same memory.

Each policy has the budget less what the functions of the others take. Under pressure the cluster's policy
gives first, then the others in the order in which they were named: to name one is a wish to be kept.
"""

from __future__ import annotations

import math
from typing import ClassVar

from faasd.policies.preloading.actions import Why
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.policy import Policy
from faasd.policies.preloading.registry import DEFAULT, make
from faasd.policies.preloading.relaying import Relaying

_AS_THEY_SAY = Bounds(at_once=1000, cpu_share=1000.0, cpu_burst_s=math.inf)
"""Policies have bounds of their own."""


class Assigned(Relaying):
    name: ClassVar[str] = "assigned"

    def __init__(self, default: str = DEFAULT, bounds: Bounds | None = None) -> None:
        super().__init__(bounds=_AS_THEY_SAY)
        self._bounds = bounds
        self._default = make(default, bounds)
        self._named: dict[str, Policy] = {}
        self._choices: dict[int, Policy] = {}
        self._keepers: dict[int, Policy] = {}
        """By place."""

    @property
    def policies(self) -> list[Policy]:
        return [self._default, *self._named.values()]

    def assign(self, function: int, choice: str) -> None:
        """Have a function go by a policy of its own, before it is `known`. Raises ValueError."""
        policy = self._named.get(choice)
        if policy is None:
            policy = self._named[choice] = make(choice, self._bounds)
            for node in self.book.ledger.nodes:
                policy.node_joined(node, self.book.ledger.budget_mb(node), 0.0)
        self._choices[function] = policy

    def policy_of(self, function: int) -> Policy:
        return self._choices.get(function, self._default)

    # Events

    def known(self, function: int, profile: Profile, now: float) -> None:
        super().known(function, profile, now)
        policy = self.policy_of(function)
        policy.known(function, profile, now)
        self._follow(policy)

    def forgotten(self, function: int, now: float) -> None:
        super().forgotten(function, now)
        self.policy_of(function).forgotten(function, now)
        self._choices.pop(function, None)

    def node_joined(self, node: int, budget_mb: float, now: float) -> None:
        super().node_joined(node, budget_mb, now)
        for policy in self.policies:
            policy.node_joined(node, budget_mb, now)
            self._follow(policy)

    def node_left(self, node: int, now: float) -> None:
        super().node_left(node, now)
        for policy in self.policies:
            policy.node_left(node, now)

    def arrived(self, function: int, now: float) -> None:
        super().arrived(function, now)
        policy = self.policy_of(function)
        policy.arrived(function, now)
        self._follow(policy)

    def began(self, place: int, function: int, now: float) -> None:
        super().began(place, function, now)
        policy = self._hand_over(place, now)
        policy.began(place, function, now)
        self._follow(policy)

    def idled(self, place: int, now: float) -> None:
        super().idled(place, now)
        policy = self._keepers[place]
        policy.idled(place, now)
        self._follow(policy)

    def placed(
        self,
        place: int,
        function: int,
        node: int,
        level: Level,
        now: float,
        *,
        load: int | None = None,
        host: int | None = None,
    ) -> None:
        super().placed(place, function, node, level, now, load=load, host=host)
        policy = self.policy_of(function)
        before = self._keepers.get(place)
        if before is not None and before is not policy:
            before.dropped(place, now)
        self._keepers[place] = policy
        theirs = self._theirs_done(policy, load)
        policy.placed(place, function, node, level, now, load=theirs, host=host)
        self._follow(policy)

    def measured(self, place: int, private_mb: float) -> None:
        super().measured(place, private_mb)
        self._keepers[place].measured(place, private_mb)

    def dropped(self, place: int, now: float) -> None:
        super().dropped(place, now)
        policy = self._keepers.pop(place, None)
        if policy is not None:
            policy.dropped(place, now)
            self._follow(policy)

    def pressed(self, node: int, over_mb: float, now: float) -> None:
        over_mb -= self._leaving_mb[node]
        for policy in self.policies:
            if over_mb <= 0:
                return
            before_mb = self.book.ledger.used_mb(node)
            policy.pressed(node, over_mb + policy.leaving_mb(node), now)
            self._relay(policy, now)
            over_mb -= before_mb - self.book.ledger.used_mb(node)

    # Decisions

    def explain(self, place: int, now: float) -> Why:
        return self._keepers[place].explain(place, now)

    def _tick(self, now: float) -> float:
        for policy in self.policies:
            if policy.due <= now:
                self._share(policy)
                self._relay(policy, now)
        return min(policy.due for policy in self.policies)

    def _share(self, policy: Policy) -> None:
        """Tell a policy what the others leave it."""
        for node in self.book.ledger.nodes:
            theirs_mb = policy.book.ledger.used_mb(node)
            others_mb = max(0.0, self.book.ledger.used_mb(node) - theirs_mb)
            policy.book.ledger.open(node, self.book.ledger.budget_mb(node) - others_mb)

    def _hand_over(self, place: int, now: float) -> Policy:
        """The policy of the function that has a place now: another's place may have been taken."""
        book = self.book
        function = book.owner[place]
        policy, before = self.policy_of(function), self._keepers[place]
        if before is not policy:
            before.dropped(place, now)
            policy.placed(place, function, book.node[place], book.level[place], now)
            self._keepers[place] = policy
        return policy
