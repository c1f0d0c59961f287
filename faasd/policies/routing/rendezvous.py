"""Rendezvous hashing: everybody who knows the workers agrees on the one that a key belongs to.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (ToN'98). A worker that
joins takes keys from all others in proportion to its slots, and moves no other key; one that
leaves gives up its own only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache


def owner(key: str, slots: Mapping[str, int]) -> str | None:
    """The worker that a key belongs to, by name and slots; None without workers."""
    return max(slots, key=lambda worker: slots[worker] * draw(key, worker), default=None)


@lru_cache(maxsize=65_536)
def draw(key: str, worker: str) -> float:
    """How strongly a key is drawn to a worker. The highest product with the slots wins, in proportion."""
    digest = hashlib.blake2b(f"{worker}\0{key}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -1 / math.log(uniform) if uniform < 1 else math.inf
