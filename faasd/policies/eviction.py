"""What to end when a node's functions hold more memory than its budget. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Holder(Generic[Key]):
    """Something idle that could be ended: when it was last used, and what that would free."""

    key: Key
    last_used: float
    memory_mb: float


def least_recently_used(holders: Iterable[Holder[Key]], *, over_mb: float) -> list[Holder[Key]]:
    """The holders to end, the longest unused first, until `over_mb` is freed or none is left."""
    victims: list[Holder[Key]] = []
    for holder in sorted(holders, key=lambda one: one.last_used):
        if over_mb <= 0:
            break
        victims.append(holder)
        over_mb -= holder.memory_mb
    return victims
