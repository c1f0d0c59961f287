"""A heap of numbers by keys that may grow without its being told.

An item has at most one live entry. A key that rose in the meantime is found out when the item comes
up: the owner computes it anew and offers it again. So what happens on every call costs nothing here.
"""

from __future__ import annotations

import heapq
import math


class LazyHeap:
    def __init__(self) -> None:
        self._keys: dict[int, float] = {}
        self._entries: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: int) -> bool:
        return item in self._keys

    @property
    def least(self) -> float:
        """The smallest key, infinite when there is none."""
        entries, keys = self._entries, self._keys
        while entries:
            key, item = entries[0]
            if keys.get(item) == key:
                return key
            heapq.heappop(entries)
        return math.inf

    def offer(self, item: int, key: float) -> None:
        """Have the item come up at this key, or earlier where it is there by a smaller one."""
        known = self._keys.get(item)
        if known is None or key < known:
            self._keys[item] = key
            heapq.heappush(self._entries, (key, item))
            if len(self._entries) > 2 * len(self._keys) + 64:
                self._tidy()

    def discard(self, item: int) -> None:
        self._keys.pop(item, None)

    def pop(self, below: float = math.inf) -> tuple[float, int] | None:
        """The item of the smallest key, if that is not above `below`, and its key."""
        if self.least > below or not self._entries:
            return None
        key, item = heapq.heappop(self._entries)
        del self._keys[item]
        return key, item

    def _tidy(self) -> None:
        self._entries = [entry for entry in self._entries if self._keys.get(entry[1]) == entry[0]]
        heapq.heapify(self._entries)
