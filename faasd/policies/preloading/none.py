"""Keeps nothing and loads nothing: every start is cold. What all others are measured against."""

from __future__ import annotations

from typing import ClassVar

from faasd.policies.preloading.keeping import Keeping


class Nothing(Keeping):
    name: ClassVar[str] = "none"

    def _kept_until(self, place: int) -> float:
        return self._idle_since[place]
