"""When a failed asynchronous invocation is tried again. Pure."""

from __future__ import annotations

LONGEST_S = 300.0


def next_attempt_s(
    *,
    attempts: int,
    max_attempts: int,
    backoff_s: float,
    retry_after_s: float | None,
    platform: bool,
) -> float | None:
    """Seconds to wait after `attempts` failed runs, or None when it is dead.

    The wait doubles each time. A failure of the platform's own (`platform`: no worker, a full
    queue) is no run of the function and counts towards ten times as many attempts.
    """
    allowed = max_attempts * 10 if platform else max_attempts
    if attempts >= allowed:
        return None
    wait = min(LONGEST_S, backoff_s * 2.0 ** min(attempts - 1, 20))
    return max(wait, retry_after_s or 0.0)
