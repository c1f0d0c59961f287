"""Which controllers want which revisions of a node, and how many instances of each."""

from __future__ import annotations

from typing import Generic, TypeVar

Owner = TypeVar("Owner")


class Owners(Generic[Owner]):
    """A revision has the owners that registered it, first come first, and is over with the last.

    Owners are told apart as keys of a dict are. Pure; owned by the event loop of the worker.
    """

    def __init__(self) -> None:
        self._minimums: dict[str, dict[Owner, int]] = {}

    def __repr__(self) -> str:
        return f"<Owners of {len(self._minimums)} revisions>"

    def add(self, key: str, owner: Owner, minimum: int) -> None:
        """An owner wants a revision, and so many instances kept."""
        self._minimums.setdefault(key, {})[owner] = minimum

    def remove(self, key: str, owner: Owner) -> bool:
        """An owner wants it no longer; whether it was the last of them."""
        owners = self._minimums.get(key, {})
        if owner not in owners:
            return False
        del owners[owner]
        if owners:
            return False
        del self._minimums[key]
        return True

    def of(self, key: str) -> list[Owner]:
        """Who wants a revision."""
        return list(self._minimums.get(key, ()))

    def minimum(self, key: str) -> int:
        """How many instances are kept: as many as the owner wants who wants most."""
        return max(self._minimums.get(key, {}).values(), default=0)

    def wanted_by(self, owner: Owner) -> set[str]:
        """The keys of an owner's revisions."""
        return {key for key, owners in self._minimums.items() if owner in owners}
