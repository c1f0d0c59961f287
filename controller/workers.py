"""The workers of the cluster and what is under way on each: what routing is told of them.

Own dispatches are counted; localities, and what other controllers have there, come from the
workers' reports. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller import gpus
from controller.links import WorkerLink
from faasd.errors import FaasdError, NotFound, Unavailable
from faasd.invocation import FunctionReport, Revision, WorkerReport
from faasd.policies.routing.candidate import Candidate, Locality
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.policies.routing.outstanding import LoadReport, Outstanding
from faasd.spec import Resources
from faasd.telemetry import get_logger

log = get_logger("controller.workers")

_GPU_RETRY_S = 5.0


class WorkerStatus(enum.StrEnum):
    UP = "up"
    DRAINING = "draining"
    LOST = "lost"


class Watcher(Protocol):
    """Who is told of workers that come and go, and of revisions that go."""

    def joined(self, member: Member) -> None: ...

    def left(self, member: Member) -> None: ...

    def retired(self, key: str) -> None: ...


@dataclass(slots=True, eq=False)
class Member:
    """One worker of the cluster, and what is under way there."""

    link: WorkerLink
    status: WorkerStatus = WorkerStatus.UP
    calls: Outstanding = field(default_factory=Outstanding)
    _report: WorkerReport | None = None
    _functions: dict[str, FunctionReport] = field(default_factory=dict)

    @property
    def outstanding(self) -> int:
        """Invocations under way there, those of other controllers included."""
        self._reconcile()
        return self.calls.total

    @property
    def slots(self) -> int:
        return max(1, self.link.report().slots)

    def end(self, call: int) -> None:
        """An invocation, by the number that `calls.begin` gave, came back or will not."""
        load = self.link.load
        if self.calls.end(call) < load.outstanding or self.calls.others:
            # Rarely: others have something there, or had.
            self._reconcile()

    def _reconcile(self) -> None:
        """Learn from the last reply or report what others have there."""
        load, calls = self.link.load, self.calls
        if load.outstanding <= calls.own and not calls.others:
            return
        if load.seq != calls.heard:
            calls.reconcile(LoadReport(load.seq, load.outstanding, load.running))

    def locality(self, key: str) -> Locality:
        """What it has of a revision, by its last report and what was sent there since."""
        report = self.link.report()
        if report is not self._report:
            self._report = report
            self._functions = {f"{one.function}@{one.revision}": one for one in report.functions}
        seen = self._functions.get(key)
        held = self.calls.held(key)
        if seen is not None and (seen.template == "ready" or seen.idle + seen.busy):
            return Locality.IDLE if seen.idle + seen.busy > held else Locality.TEMPLATE
        # Dispatched there since its last report: what it opens now serves the next one too.
        return Locality.TEMPLATE if held else Locality.NOTHING


class Workers:
    """Who is there, who knows which revisions, who keeps which minimum of instances."""

    def __init__(self) -> None:
        self._least_loaded = LeastOutstanding()
        self._members: dict[str, Member] = {}
        self._up: list[Member] = []
        self.alone: Member | None = None
        """The only worker that is up, if it is the only one."""
        self._watcher: Watcher | None = None
        self._revisions: dict[str, Revision] = {}
        self._homes: dict[str, str] = {}
        self._arrived = asyncio.Event()

    def watch(self, watcher: Watcher) -> None:
        """Tell it of all that comes and goes from now on."""
        self._watcher = watcher

    def join(self, link: WorkerLink) -> Member:
        """A worker is there: it learns every revision, and may get invocations from now on."""
        member = Member(link)
        former = self._members.get(link.worker_id)
        if former is not None:
            self._set(former, WorkerStatus.LOST)
        self._members[link.worker_id] = member
        for revision in self._revisions.values():
            at_home = self._homes.get(revision.key) == link.worker_id
            link.register(revision if at_home else _without_minimum(revision))
        self._set(member, WorkerStatus.UP)
        self._settle_homes()
        self._arrived.set()
        log.info("worker.joined", worker=link.worker_id)
        return member

    def leave(self, member: Member) -> None:
        """A worker is gone for good or for a while; what ran there has failed by itself."""
        if member.status is WorkerStatus.LOST:
            return
        self._set(member, WorkerStatus.LOST)
        self._settle_homes()
        log.warning("worker.lost", worker=member.link.worker_id)

    def drain(self, worker_id: str) -> None:
        """Send a worker nothing more. Raises NotFound."""
        member = self._members.get(worker_id)
        if member is None or member.status is WorkerStatus.LOST:
            raise NotFound(
                f"There is no worker {worker_id!r}.", remedy="List them with `faasd status`."
            )
        self._set(member, WorkerStatus.DRAINING)
        self._settle_homes()

    def activate(self, revision: Revision) -> None:
        """All workers may serve the revision from now on."""
        self._revisions[revision.key] = revision
        for member in self._live():
            member.link.register(_without_minimum(revision))
        self._settle_homes()

    def retire(self, function: str, revision: str) -> None:
        """All workers finish with the revision."""
        key = f"{function}@{revision}"
        self._revisions.pop(key, None)
        self._homes.pop(key, None)
        for member in self._live():
            member.link.retire(function, revision)
        if self._watcher is not None:
            self._watcher.retired(key)

    def revision_keys(self) -> list[str]:
        """function@revision of every revision that serves."""
        return list(self._revisions)

    def choose(
        self,
        key: str,
        resources: Resources | None = None,
        *,
        refuse: type[FaasdError] = Unavailable,
    ) -> Member:
        """The least loaded worker, by preference one that has the revision already.

        Raises Unavailable without any, and `refuse` when none of them has the GPUs that `resources`
        ask for.
        """
        up = self.able(resources, refuse=refuse)
        if len(up) == 1:
            return up[0]
        return self._members[self._least_loaded_of(up, key)]

    def able(
        self, resources: Resources | None = None, *, refuse: type[FaasdError] = Unavailable
    ) -> list[Member]:
        """The workers that are up and could run it. Raises as `choose`."""
        up = self._up
        if not up:
            raise Unavailable(
                "No worker is connected.",
                remedy="Start one with `faasd worker`, then try again.",
                retry_after_s=1.0,
            )
        if len(up) > 1 and resources is not None and resources.gpus:
            return _with_gpus(up, resources, refuse)
        return up

    @property
    def count(self) -> int:
        """How many are up."""
        return len(self._up)

    def member(self, worker_id: str) -> Member:
        return self._members[worker_id]

    async def any(self, patience_s: float) -> None:
        """Wait until some worker is up, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not self._up:
                    self._arrived.clear()
                    await self._arrived.wait()

    @property
    def ready(self) -> bool:
        return bool(self._up)

    def members(self) -> list[Member]:
        return list(self._members.values())

    def describe(self) -> list[dict[str, Any]]:
        """Every worker as /v1/workers shows it."""
        return [
            {
                **member.link.report().to_plain(),
                "status": str(member.status),
                "outstanding": member.outstanding,
            }
            for member in self._members.values()
        ]

    def _live(self) -> list[Member]:
        return [m for m in self._members.values() if m.status is not WorkerStatus.LOST]

    def _set(self, member: Member, status: WorkerStatus) -> None:
        was_up = member in self._up
        member.status = status
        self._up = [m for m in self._members.values() if m.status is WorkerStatus.UP]
        self.alone = self._up[0] if len(self._up) == 1 else None
        if self._watcher is None:
            return
        if status is WorkerStatus.UP:
            self._watcher.joined(member)
        elif was_up:
            self._watcher.left(member)

    def _least_loaded_of(self, members: Iterable[Member], key: str) -> str:
        chosen = self._least_loaded.choose(
            [
                Candidate(one.link.worker_id, one.slots, one.outstanding, one.locality(key))
                for one in members
            ]
        )
        assert chosen is not None
        return chosen

    def _settle_homes(self) -> None:
        """Each minimum of instances is kept on one worker; it moves when that worker goes."""
        up = {member.link.worker_id: member for member in self._up}
        for key, revision in self._revisions.items():
            if not revision.min_instances:
                continue
            home = self._homes.get(key)
            if home in up:
                continue
            former = self._members.get(home) if home is not None else None
            if former is not None and former.status is WorkerStatus.DRAINING:
                former.link.register(_without_minimum(revision))
            able = [
                member
                for member in up.values()
                if gpus.can_place(revision.spec.resources, member.link.report())
            ]
            # Without any, one of them goes on trying: a GPU may come back.
            if not up:
                self._homes.pop(key, None)
                continue
            chosen = self._homes[key] = self._least_loaded_of(able or up.values(), key)
            up[chosen].link.register(revision)


def _with_gpus(
    members: list[Member], resources: Resources, refuse: type[FaasdError]
) -> list[Member]:
    """Those that could place an instance. Raises `refuse` when there are none."""
    reports = [member.link.report() for member in members]
    able = [
        member
        for member, report in zip(members, reports, strict=True)
        if gpus.can_place(resources, report)
    ]
    if not able:
        raise refuse(
            gpus.shortage(resources, reports),
            remedy=gpus.REMEDY,
            retry_after_s=_GPU_RETRY_S if refuse.retryable else None,
        )
    return able


def _without_minimum(revision: Revision) -> Revision:
    if not revision.min_instances:
        return revision
    return Revision(
        function=revision.function,
        id=revision.id,
        spec=revision.spec,
        code_sha256=revision.code_sha256,
        artifacts=revision.artifacts,
    )
