"""The calls of one function, as they come, and the outlook that follows from them.

A call costs next to nothing: short gaps are counted, and learnt together when a longer one comes or the
outlook is asked for. The outlook is reckoned when it is asked for and old.
"""

from __future__ import annotations

import math

from faasd.policies.preloading.arrivals.model import SHORT_S, GapModel
from faasd.policies.preloading.arrivals.outlook import Outlook, look_out, steady

LEAST_REVIEW_S = 5.0
STALE = 0.25
"""Of a silence: by so much it goes on before what follows from it is reckoned anew."""

INCESSANT = steady(1.0 / SHORT_S)
"""Of a function that is called all the time: what the models would say in detail is of no use."""


class Calls:
    __slots__ = (
        "_learnt_at",
        "_learnt_to",
        "_seen_at",
        "count",
        "last",
        "model",
        "outlook",
        "since",
    )

    def __init__(self, model: GapModel, now: float) -> None:
        self.model = model
        self.since = now
        self.last = now
        self.count = 0
        self.outlook: Outlook = look_out(model, 0.0)
        self._learnt_at = now
        self._learnt_to = 0
        self._seen_at = -math.inf

    def arrived(self, now: float) -> float:
        """A call came: the silence that it ended, if there was any to speak of."""
        gap_s = now - self.last
        self.last = now
        self.count += 1
        if gap_s < SHORT_S:
            return 0.0
        self._learn(gap_s, now)
        return gap_s

    def _learn(self, gap_s: float, now: float) -> None:
        short = self.count - self._learnt_to - 1
        if short > 0:
            self.model.observe(max(0.0, (now - gap_s - self._learnt_at) / short), short)
        if self.count > 1:
            self.model.observe(gap_s)
        self._learnt_at, self._learnt_to = now, self.count
        self._seen_at = -math.inf

    def outlook_at(self, now: float) -> Outlook:
        """As it is now, but for what little has changed since it was reckoned."""
        if now - self._seen_at > max(LEAST_REVIEW_S, STALE * (now - self.last)):
            return self.look_out(now)
        return self.outlook

    def look_out(self, now: float) -> Outlook:
        self._seen_at = now
        short = self.count - self._learnt_to
        silent_s = max(0.0, now - self.last)
        if short > 1:
            self.model.observe(max(0.0, (self.last - self._learnt_at) / short), short)
            self._learnt_at, self._learnt_to = self.last, self.count
            if silent_s < SHORT_S:
                self.outlook = INCESSANT
                return INCESSANT
        self.outlook = look_out(self.model, silent_s)
        return self.outlook
