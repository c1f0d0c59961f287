"""Time as the daemons see it. Decisions take `now` as a plain float; only shells ask a clock."""

from __future__ import annotations

import datetime as dt
import time

monotonic = time.monotonic
"""Seconds on a clock that never goes back; the `now` of every decision."""


def wall() -> float:
    """Seconds since the epoch, for stamps that leave the process."""
    return time.time()


def iso(stamp: float) -> str:
    """A stamp as ISO 8601 in UTC."""
    moment = dt.datetime.fromtimestamp(stamp, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
