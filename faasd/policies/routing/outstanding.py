"""How many calls are under way on one worker: this controller's by count, others' by report.

A count of one's own dispatches is exact and never late, where a load that came with a reply is as
old as that reply: RackSched (OSDI'20, section 4.2) compares the two. Reports serve to learn what
other controllers have there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a worker says of itself, on replies and heartbeats.

    `seq` numbers its reports to this controller from 1. `seen` is the number, by
    `Outstanding.begin`, of the last call that had reached it from this controller; without it all
    are taken to have. `outstanding` are the calls of all controllers there, `running` those of them
    that do not wait.
    """

    seq: int
    outstanding: int
    running: int = 0
    seen: int | None = None


class Outstanding:
    """The calls on one worker. Every `begin` is followed by one `end`; both may come late.

    Invariants: nothing is ever negative; without calls of one's own and with a last report of zero
    all is zero. A worker that restarted is `reset`: calls of its former life that end later count
    for nothing.
    """

    __slots__ = ("_last_seq", "_number", "_open", "_per_revision", "others", "running")

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[int, str] = {}
        self._per_revision: dict[str, int] = {}
        self._last_seq = 0
        self.others = 0
        self.running = 0

    def __repr__(self) -> str:
        return f"Outstanding(own={self.own}, others={self.others})"

    @property
    def own(self) -> int:
        return len(self._open)

    @property
    def heard(self) -> int:
        """The number of the last report that counted."""
        return self._last_seq

    @property
    def total(self) -> int:
        return len(self._open) + self.others

    def held(self, revision: str) -> int:
        """Calls of this controller's for one revision."""
        return self._per_revision.get(revision, 0)

    def begin(self, revision: str = "") -> int:
        """A call goes out. Its number, in the order in which calls go out."""
        self._number = number = self._number + 1
        self._open[number] = revision
        held = self._per_revision
        held[revision] = held.get(revision, 0) + 1
        return number

    def end(self, call: int) -> int:
        """It was answered, failed or was cancelled. A call that is not under way is ignored.

        How many there are now.
        """
        revision = self._open.pop(call, None)
        if revision is not None:
            held = self._per_revision
            left = held[revision] - 1
            if left:
                held[revision] = left
            else:
                del held[revision]
        return len(self._open)

    def reconcile(self, report: LoadReport) -> None:
        """Learn what others have there: what the worker counted, less what it had of ours then.

        Calls still on their way to it are ours, and not in its count; that of the reply which brought
        the report has to be ended first. Reports that were overtaken are ignored.
        """
        if report.seq <= self._last_seq:
            return
        self._last_seq = report.seq
        self.running = report.running
        self.others = max(0, report.outstanding - self.own + self._on_the_way(report.seen))

    def reset(self) -> None:
        """The worker has restarted, or its connection has: nothing of before is under way."""
        self._open.clear()
        self._per_revision.clear()
        self._last_seq = 0
        self.others = 0
        self.running = 0

    def _on_the_way(self, seen: int | None) -> int:
        if seen is None:
            return 0
        count = 0
        for call in reversed(self._open):
            if call <= seen:
                break
            count += 1
        return count
