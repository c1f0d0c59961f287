"""Which worker serves a session. Pure, with bounded memory.

**Guarantee.** A session whose calls follow one another within `idle_s` stays on its worker for as
long as that worker is live: whatever joins, whoever else leaves, however many sessions there are.
When a worker leaves, its sessions move, and no others.

**How.** A session's first worker is its hash bucket's, which is where rendezvous hashing over the
live workers put the bucket. Up to `size` sessions are recorded; the others are found by their
bucket alone. A bucket may move, to a worker that joined, only once no unrecorded session was
served through it for `idle_s`: nobody is left to be moved with it. A recorded session does not
hold its bucket. It is dropped from the record, the least recently used first, only where its bucket
leads to the same worker, or can be made to; else the newcomer goes unrecorded.

**Limits.** With far more unrecorded sessions at once than buckets, no bucket rests, and a worker
that joins gets no sessions until some end. A controller that lost its record, or another one, finds
the sessions whose buckets lie where hashing over the workers that are live now would put them; the
others move once.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from faasd.policies.routing import rendezvous

# How many of the least recently used are looked at for one that can be dropped.
_PATIENCE = 8


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a session is served; `instance` is a hint, the last one that served it, if known."""

    worker: str
    instance: str = ""


@dataclass(frozen=True, slots=True)
class AffinityStatistics:
    recorded: int
    unrecorded_calls: int


class Affinity:
    """Owned by the event loop of one controller. `now` may be any clock that never goes back."""

    def __init__(self, *, size: int = 65_536, idle_s: float = 1800.0, buckets: int = 4096) -> None:
        self._size = size
        self._idle_s = idle_s
        self._live: dict[str, int] = {}
        self._sessions: OrderedDict[str, tuple[Placement, float]] = OrderedDict()
        self._owners: list[str | None] = [None] * buckets
        self._used = array("d", [-math.inf]) * buckets
        self._unrecorded_calls = 0

    def join(self, worker: str, slots: int) -> None:
        """A worker is live, or has another number of slots; it gets sessions in proportion."""
        self._live[worker] = slots

    def leave(self, worker: str) -> None:
        self._live.pop(worker, None)

    def place(self, session: str, now: float) -> Placement | None:
        """Where the session's next call goes; None without a worker."""
        self._expire(now)
        known = self._sessions.get(session)
        if known is not None and known[0].worker in self._live:
            self._record(session, known[0], now)
            return known[0]
        bucket = self._bucket(session)
        worker = self._settle(bucket, now)
        if worker is None:
            return None
        placement = Placement(worker)
        if known is not None or self._make_room(now):
            self._record(session, placement, now)
        else:
            self._used[bucket] = now
            self._unrecorded_calls += 1
        return placement

    def served(self, session: str, placement: Placement, now: float) -> None:
        """An instance has served the session where it was placed: a hint for its next call."""
        known = self._sessions.get(session)
        if known is not None:
            if known[0].worker == placement.worker:
                self._record(session, placement, now)
            return
        bucket = self._bucket(session)
        if self._owners[bucket] == placement.worker:
            self._used[bucket] = max(self._used[bucket], now)

    def end(self, session: str) -> None:
        """The session is over."""
        self._sessions.pop(session, None)

    def statistics(self) -> AffinityStatistics:
        return AffinityStatistics(len(self._sessions), self._unrecorded_calls)

    def _record(self, session: str, placement: Placement, now: float) -> None:
        self._sessions[session] = (placement, now)
        self._sessions.move_to_end(session)

    def _expire(self, now: float) -> None:
        while self._sessions:
            session = next(iter(self._sessions))
            if now - self._sessions[session][1] <= self._idle_s:
                return
            del self._sessions[session]

    def _bucket(self, session: str) -> int:
        return zlib.crc32(session.encode()) % len(self._owners)

    def _settle(self, bucket: int, now: float) -> str | None:
        """The bucket's worker: the present one while somebody depends on it, else by hashing."""
        present = self._owners[bucket]
        if present in self._live and not self._rests(bucket, now):
            return present
        owner = rendezvous.owner(str(bucket), self._live)
        self._owners[bucket] = owner
        return owner

    def _rests(self, bucket: int, now: float) -> bool:
        return now - self._used[bucket] > self._idle_s

    def _make_room(self, now: float) -> bool:
        """Whether one more can be recorded, perhaps in the place of one that is left to hashing."""
        if len(self._sessions) < self._size:
            return True
        for session in list(islice(self._sessions, _PATIENCE)):
            placement, used = self._sessions[session]
            if self._leave_to_bucket(session, placement.worker, used, now):
                del self._sessions[session]
                return True
        return False

    def _leave_to_bucket(self, session: str, worker: str, used: float, now: float) -> bool:
        """Whether the session's bucket leads to its worker, and will for as long as it may last."""
        if worker not in self._live:
            return True
        bucket = self._bucket(session)
        if self._rests(bucket, now):
            self._owners[bucket] = worker
        elif self._owners[bucket] != worker:
            return False
        self._used[bucket] = max(self._used[bucket], used)
        return True
