"""The memory of nodes: what places hold privately, and what they share, counted once per node."""

from __future__ import annotations

from dataclasses import dataclass, field

from faasd.policies.preloading.levels import Stage


@dataclass(slots=True)
class _Account:
    budget_mb: float
    private_mb: float = 0.0
    shared_mb: float = 0.0
    holders: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)


class Ledger:
    """Counts by stages as they are held and released. Policies and the simulator have one each."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}

    def __repr__(self) -> str:
        held = ", ".join(f"{n}: {self.used_mb(n):.0f}/{self.budget_mb(n):.0f}" for n in self.nodes)
        return f"<Ledger {held} MB>"

    @property
    def nodes(self) -> list[int]:
        return list(self._accounts)

    def open(self, node: int, budget_mb: float) -> None:
        """Know a node, or its new budget."""
        account = self._accounts.get(node)
        if account is None:
            self._accounts[node] = _Account(budget_mb)
        else:
            account.budget_mb = budget_mb

    def close(self, node: int) -> None:
        self._accounts.pop(node, None)

    def budget_mb(self, node: int) -> float:
        return self._accounts[node].budget_mb

    def used_mb(self, node: int) -> float:
        account = self._accounts[node]
        return account.private_mb + account.shared_mb

    def free_mb(self, node: int) -> float:
        """Below zero where more is held than there is."""
        account = self._accounts[node]
        return account.budget_mb - account.private_mb - account.shared_mb

    def hold(self, node: int, stage: Stage) -> None:
        account = self._accounts[node]
        account.private_mb += stage.private_mb
        for key, size_mb in stage.shared:
            held = account.holders.get(key, 0)
            account.holders[key] = held + 1
            if not held:
                account.sizes[key] = size_mb
                account.shared_mb += size_mb

    def release(self, node: int, stage: Stage) -> None:
        account = self._accounts[node]
        account.private_mb -= stage.private_mb
        for key, _ in stage.shared:
            account.holders[key] -= 1
            if not account.holders[key]:
                del account.holders[key]
                account.shared_mb -= account.sizes.pop(key)

    def adds_mb(self, node: int, stage: Stage) -> float:
        """What holding one more like this would add."""
        shared = stage.shared
        if not shared:
            return stage.private_mb
        holders = self._accounts[node].holders
        return stage.private_mb + sum(size for key, size in shared if key not in holders)

    def frees_mb(self, node: int, stage: Stage) -> float:
        """What releasing one that is held would free."""
        shared = stage.shared
        if not shared:
            return stage.private_mb
        account = self._accounts[node]
        return stage.private_mb + sum(
            account.sizes[key] for key, _ in shared if account.holders.get(key) == 1
        )
