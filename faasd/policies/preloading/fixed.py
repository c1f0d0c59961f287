"""The same time for every idle place, and the longest unused first under pressure.

What OpenWhisk does: ten minutes.
"""

from __future__ import annotations

from typing import ClassVar

from faasd.policies.preloading.keeping import Keeping
from faasd.policies.preloading.levels import Level


class Fixed(Keeping):
    name: ClassVar[str] = "fixed"

    def __init__(self, *, idle_s: float = 600.0, keeps: Level = Level.INSTANCE) -> None:
        super().__init__(keeps=keeps)
        self._idle_s = idle_s

    def _kept_until(self, place: int) -> float:
        return self._used_at(place) + self._idle_s
