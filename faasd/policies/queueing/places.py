"""Who gets a place of a full queue. A tenant's share of the places follows its weight."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

_SPARE = 64
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Admit:
    """There is a place."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The queue is full, and the tenant holds what it may: its queued calls and its places."""

    queued: int
    share: int


@dataclass(frozen=True, slots=True)
class Displace:
    """There is a place once this queued call is removed and answered that the queue is full."""

    call: int


Admission = Admit | Refuse | Displace


@dataclass(slots=True)
class _Holder:
    weight: float
    queued: int = 0
    listed: float = 0.0

    @property
    def load(self) -> float:
        return self.queued / self.weight


class Places:
    """How many calls each tenant has in the queue, and who has most for its weight.

    Whoever holds two or more is listed at its load or above it: a load that falls is noticed when
    it comes to the top. One place is everybody's, so who holds one is never asked to leave.
    """

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        self._holders: dict[str, _Holder] = {}
        self._weight = 0.0
        self._loads: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._holders)

    def take(self, tenant: str) -> None:
        holder = self._holders.get(tenant)
        if holder is None:
            holder = self._holders[tenant] = _Holder(self._weight_of(tenant))
            self._weight += holder.weight
        holder.queued += 1
        if holder.queued > 1 and holder.load > holder.listed:
            self._list(tenant, holder)

    def give(self, tenant: str) -> None:
        holder = self._holders[tenant]
        holder.queued -= 1
        if not holder.queued:
            del self._holders[tenant]
            self._weight -= holder.weight

    def held(self, tenant: str) -> int:
        holder = self._holders.get(tenant)
        return holder.queued if holder else 0

    def share(self, tenant: str, places: int, *, asking: float = 0.0) -> float:
        """Of so many places, by weight, one at least. `asking` is the weight of a newcomer."""
        holder = self._holders.get(tenant)
        weight = holder.weight if holder else asking
        return min(places, max(1.0, places * weight / (self._weight + asking))) + _ROUNDING

    def victim(self, tenant: str, places: int) -> str | None:
        """Who has to give a place to the tenant, or None when its share is used up."""
        asking = 0.0 if tenant in self._holders else self._weight_of(tenant)
        if self.held(tenant) + 1 > self.share(tenant, places, asking=asking):
            return None
        greatest = self.greatest()
        if greatest is None or self.held(greatest) <= self.share(greatest, places, asking=asking):
            return None
        return greatest

    def greatest(self) -> str | None:
        """The tenant of two or more calls that holds most for its weight; equals by name."""
        while self._loads:
            listed, tenant = -self._loads[0][0], self._loads[0][1]
            holder = self._holders.get(tenant)
            if holder is not None and holder.listed == listed == holder.load:
                return tenant
            heapq.heappop(self._loads)
            if holder is not None and holder.listed == listed:
                holder.listed = 0.0
                if holder.queued > 1:
                    self._list(tenant, holder)
        return None

    def _list(self, tenant: str, holder: _Holder) -> None:
        holder.listed = holder.load
        heapq.heappush(self._loads, (-holder.load, tenant))
        if len(self._loads) > 2 * len(self._holders) + _SPARE:
            listed = [(name, one) for name, one in self._holders.items() if one.listed]
            self._loads = [(-one.listed, name) for name, one in listed]
            heapq.heapify(self._loads)
