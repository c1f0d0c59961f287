"""A worker's data folder: one worker at a time uses it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from faasd.errors import BadRequest


def take(folder: Path) -> IO[str]:
    """Its lock, held until closed: two workers in one folder would kill each other's processes.

    Raises BadRequest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BadRequest(
            f"Another worker uses the folder {folder}.",
            remedy="Stop it first, or give each worker a folder of its own with --data.",
        ) from None
    return lock
