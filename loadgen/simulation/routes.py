"""Which node a call goes to, where there are several: the live router, told what it is told live."""

from __future__ import annotations

from faasd.policies.routing.candidate import Candidate, Locality, Router
from loadgen.simulation.places import NOWHERE
from loadgen.simulation.world import World


class Routes:
    def __init__(
        self, world: World, router: Router, most: list[list[int]], fits: list[list[bool]]
    ) -> None:
        """`most` instances, and whether it `fits`, by function and node."""
        self._world = world
        self._router = router
        self._most = most
        self._fits = fits
        self._outstanding = [0] * len(world.nodes)
        self._held = [0] * (len(world.workload.models) * len(world.nodes))
        self._candidates: dict[int, list[Candidate]] = {}

    def entered(self, pool: int) -> None:
        """A call went to a node."""
        self._outstanding[pool % len(self._outstanding)] += 1
        self._held[pool] += 1

    def left(self, pool: int) -> None:
        self._outstanding[pool % len(self._outstanding)] -= 1
        self._held[pool] -= 1

    def choose(self, function: int) -> int:
        """The node that the live router chooses; none while no node has room for it."""
        candidates = self._candidates.get(function)
        if candidates is None:
            candidates = self._candidates[function] = self._make_candidates(function)
        near = False
        for one in candidates:
            node = int(one.worker)
            pool = function * len(self._world.nodes) + node
            one.outstanding, one.held = self._outstanding[node], self._held[pool]
            self._locate(one, pool)
            near = near or one.locality is not Locality.NOTHING
        if not near and len(candidates) > 1:
            # Ties go to the first: where nothing is anywhere, that is the one with most memory.
            free_mb = self._world.memory.ledger.free_mb
            candidates.sort(key=lambda one: (-free_mb(int(one.worker)), int(one.worker)))
        chosen = self._router.choose(candidates, self._world.workload.names[function])
        return NOWHERE if chosen is None else int(chosen)

    def _make_candidates(self, function: int) -> list[Candidate]:
        model = self._world.workload.models[function]
        return [
            Candidate(
                str(node),
                max(1, int(one.cores)),
                places=self._most[function][node],
                exec_s=model.profile.exec_s,
            )
            for node, one in enumerate(self._world.nodes)
            if self._fits[function][node]
        ]

    def _locate(self, one: Candidate, pool: int) -> None:
        places = self._world.places
        profile = self._world.workload.models[pool // len(self._world.nodes)].profile
        if places.idle[pool] or (places.hosted and places.loaded_elsewhere(pool) != NOWHERE):
            one.locality, one.start_cost_s = Locality.IDLE, 0.0
            return
        nearest = places.templates.get(pool, NOWHERE)
        if nearest == NOWHERE:
            nearest = places.best_spare(pool)
        known = nearest != NOWHERE and places.level[nearest] > profile.floor.level
        one.locality = Locality.TEMPLATE if known else Locality.NOTHING
        one.start_cost_s = (
            profile.stage(places.level[nearest]).start_s if known else profile.floor.start_s
        )
