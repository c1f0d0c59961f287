"""The workers of the cluster and what is under way on each: where the router's view comes from.

Counts its own dispatches; localities come from the workers' reports. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from controller import gpus
from controller.links import WorkerLink
from faasd.errors import FaasdError, NotFound, Unavailable
from faasd.invocation import Revision
from faasd.policies.routing.candidate import Candidate, Locality, Router
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.spec import Resources
from faasd.telemetry import get_logger

log = get_logger("controller.workers")

_GPU_RETRY_S = 5.0


class WorkerStatus(enum.StrEnum):
    UP = "up"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class Member:
    """One worker of the cluster."""

    link: WorkerLink
    status: WorkerStatus = WorkerStatus.UP
    outstanding: int = 0
    per_revision: Counter[str] = field(default_factory=Counter)

    def begin(self, key: str) -> None:
        """An invocation of a revision is under way there, until `end`."""
        self.outstanding += 1
        self.per_revision[key] += 1

    def end(self, key: str) -> None:
        self.outstanding -= 1
        self.per_revision[key] -= 1
        if not self.per_revision[key]:
            del self.per_revision[key]


class Workers:
    """Who is there, who gets the next invocation, who keeps which minimum of instances."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._least_loaded = LeastOutstanding()
        self._members: dict[str, Member] = {}
        self._revisions: dict[str, Revision] = {}
        self._homes: dict[str, str] = {}
        self._arrived = asyncio.Event()

    def join(self, link: WorkerLink) -> Member:
        """A worker is there: it learns every revision, and may get invocations from now on."""
        member = Member(link)
        former = self._members.get(link.worker_id)
        if former is not None:
            former.status = WorkerStatus.LOST
        self._members[link.worker_id] = member
        for revision in self._revisions.values():
            at_home = self._homes.get(revision.key) == link.worker_id
            link.register(revision if at_home else _without_minimum(revision))
        self._settle_homes()
        self._arrived.set()
        log.info("worker.joined", worker=link.worker_id)
        return member

    def leave(self, member: Member) -> None:
        """A worker is gone for good or for a while; what ran there has failed by itself."""
        if self._members.get(member.link.worker_id) is not member:
            return
        member.status = WorkerStatus.LOST
        self._settle_homes()
        log.warning("worker.lost", worker=member.link.worker_id)

    def drain(self, worker_id: str) -> None:
        """Send a worker nothing more. Raises NotFound."""
        member = self._members.get(worker_id)
        if member is None or member.status is WorkerStatus.LOST:
            raise NotFound(
                f"There is no worker {worker_id!r}.", remedy="List them with `faasd status`."
            )
        member.status = WorkerStatus.DRAINING
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
        """The worker for the next invocation of a revision. Raises Unavailable without any, and
        `refuse` when none of them has the GPUs that `resources` ask for.
        """
        up = [m for m in self._members.values() if m.status is WorkerStatus.UP]
        if len(up) == 1:
            # It knows better than its last report does, and says so if it cannot.
            return up[0]
        if up and resources is not None and resources.gpus:
            up = _with_gpus(up, resources, refuse)
        candidates = [self._candidate(member, key) for member in up]
        # A call that the policy would hold back waits at the least loaded worker.
        chosen = self._router.choose(candidates, key) or self._least_loaded.choose(candidates)
        if chosen is None:
            raise Unavailable(
                "No worker is connected.",
                remedy="Start one with `faasd worker`, then try again.",
                retry_after_s=1.0,
            )
        return self._members[chosen]

    async def any(self, patience_s: float) -> None:
        """Wait until some worker is up, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not any(m.status is WorkerStatus.UP for m in self._members.values()):
                    self._arrived.clear()
                    await self._arrived.wait()

    @property
    def ready(self) -> bool:
        return any(member.status is WorkerStatus.UP for member in self._members.values())

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

    def _candidate(self, member: Member, key: str) -> Candidate:
        seen = next(
            (f for f in member.link.report().functions if f"{f.function}@{f.revision}" == key), None
        )
        locality = Locality.NOTHING
        if seen is not None and (seen.template == "ready" or seen.idle + seen.busy):
            free = seen.idle + seen.busy - member.per_revision[key]
            locality = Locality.IDLE if free > 0 else Locality.TEMPLATE
        elif member.per_revision[key]:
            # Dispatched there since its last report: what it opens now serves the next one too.
            locality = Locality.TEMPLATE
        slots = max(1, member.link.report().slots)
        revision = self._revisions.get(key)
        limits = None if revision is None else revision.spec.limits
        return Candidate(
            worker=member.link.worker_id,
            slots=slots,
            outstanding=member.outstanding,
            locality=locality,
            held=member.per_revision[key],
            places=slots if limits is None else limits.max_instances * limits.concurrency,
        )

    def _settle_homes(self) -> None:
        """Each minimum of instances is kept on one worker; it moves when that worker goes."""
        up = {m.link.worker_id: m for m in self._members.values() if m.status is WorkerStatus.UP}
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
            chosen = self._least_loaded.choose(
                [self._candidate(member, key) for member in able or up.values()]
            )
            if chosen is None:
                self._homes.pop(key, None)
                continue
            self._homes[key] = chosen
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
    return Revision(
        function=revision.function,
        id=revision.id,
        spec=revision.spec,
        code_sha256=revision.code_sha256,
        artifacts=revision.artifacts,
    )
