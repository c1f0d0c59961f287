"""Time as the daemons see it. Decisions take `now` as a plain float; only shells ask a clock."""

from __future__ import annotations

import datetime as dt
import time


def monotonic() -> float:
    """Seconds on a clock that never goes back; the `now` of every decision."""
    return time.monotonic()


def wall() -> float:
    """Seconds since the epoch, for stamps that leave the process."""
    return time.time()


def iso(stamp: float) -> str:
    """A stamp as ISO 8601 in UTC."""
    moment = dt.datetime.fromtimestamp(stamp, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
