"""The worker daemon: one node, its revisions, its memory.

The controller talks to it through the methods of `Node`, called directly when both live in one
process and through `worker.uplink` otherwise. What it holds is cache: it can be ended at any time.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import IO, Any

from faasd.errors import DeployFailed, FaasdError, FunctionNotFound, Unavailable
from faasd.invocation import (
    Invocation,
    LogLine,
    Receiver,
    Revision,
    Started,
    WorkerReport,
)
from faasd.policies.eviction import Holder, least_recently_used
from faasd.settings import WorkerSettings
from faasd.telemetry import get_logger
from worker import processes
from worker.files import ArtifactSource, RevisionFiles
from worker.folder import take
from worker.gpus.desk import GpuDesk
from worker.gpus.inventory import GpuInventory
from worker.gpus.ledger import GpuLedger, Mps
from worker.layers import Layers
from worker.output import LogBook
from worker.owners import Owners
from worker.sandbox import Progress, Sandboxes
from worker.service import RevisionService, no_progress
from worker.tally import Tally

log = get_logger("worker.node")

_SHARE_OF_FREE_MEMORY = 0.75
_OUTPUT_LINES = 100
_OUTPUT_CHARACTERS = 8000


class Node:
    """Owned by the event loop."""

    def __init__(
        self,
        settings: WorkerSettings,
        sandboxes: Sandboxes,
        source: ArtifactSource | None = None,
        inventory: GpuInventory | None = None,
    ) -> None:
        """`source` is the controller of those calls that name none."""
        self.id = settings.id or platform.node() or "worker"
        self._settings = settings
        self._sandboxes = sandboxes
        layers = Layers(
            settings.data / "layers",
            timeout_s=settings.layer_timeout_s,
            builder=sandboxes.builder,
        )
        self._owner = source
        self._owners: Owners[ArtifactSource] = Owners()
        self._files = RevisionFiles(settings.data, self._owners.of, layers)
        self._logs = LogBook(settings.log_lines)
        self._services: dict[str, RevisionService] = {}
        self._retiring: set[RevisionService] = set()
        # All that have a process or a call here are among these: the others are not looked at.
        self._awake: dict[RevisionService, None] = {}
        self.load = Tally()
        self._inventory = inventory or GpuInventory()
        # Containers share neither the daemon's pipes nor its IPC namespace.
        pipes = settings.mps_pipes if settings.runtime != "docker" else None
        self._gpus = GpuLedger(mps=Mps(pipes) if pipes is not None else None)
        self._desk = GpuDesk(self._gpus, idle=self._spare_on_gpus, end=self._end_spare)
        sandboxes.use_gpus(self._gpus)
        self._cpus = len(os.sched_getaffinity(0))
        self._budget_mb = settings.memory_budget_mb or 0.0
        self._used_mb = 0.0
        self._may_grow = True
        self._zygotes_measured: list[tuple[str, str]] = []
        self._lock: IO[str] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    def __repr__(self) -> str:
        return f"<Node {self.id}: {len(self._services)} revisions, {self._used_mb:.0f} MB>"

    async def start(self) -> None:
        """Take the data folder, clear what a former life left, and begin. Raises BadRequest."""
        self._lock = take(self._settings.data)
        if not self._budget_mb:
            self._budget_mb = processes.available_mb() * _SHARE_OF_FREE_MEMORY
        await self._refresh_gpus()
        await asyncio.to_thread(self._files.open)
        await self._sandboxes.start()
        self._spawn(self._watch_memory())
        self._spawn(self._watch_gpus())
        log.info(
            "node.started",
            node=self.id,
            cpus=self._cpus,
            memory_budget_mb=round(self._budget_mb),
            gpus=len(self._inventory.gpus),
            gpu_fault=self._inventory.fault,
        )

    async def drain(self) -> bool:
        """Take nothing more on, and wait a while for what runs; whether all of it ended."""
        self._draining = True
        give_up = asyncio.get_running_loop().time() + self._settings.shutdown_grace_s
        # Pools have no common event, and this runs once in a life.
        while self._busy() and asyncio.get_running_loop().time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return not self._busy()

    async def aclose(self) -> None:
        """Drain, then end every process."""
        await self.drain()
        for task in self._tasks:
            task.cancel()
        services = [*self._services.values(), *self._retiring]
        await asyncio.gather(*(service.aclose() for service in services))
        await self._sandboxes.aclose()
        await self._inventory.aclose()
        if self._lock is not None:
            self._lock.close()
        log.info("node.stopped", node=self.id)

    def register(self, revision: Revision, owner: ArtifactSource | None = None) -> None:
        """Know a revision, so that it can be invoked; its minimum of instances is kept up.

        Of several owners' minimums the highest counts.
        """
        self._owners.add(revision.key, self._named(owner), revision.min_instances)
        service = self._services.get(revision.key)
        if service is None:
            service = self._services[revision.key] = self._service(revision)
        service.set_min_instances(self._owners.minimum(revision.key))

    def retire(self, function: str, revision: str, owner: ArtifactSource | None = None) -> None:
        """Finish what a revision has to do, then forget it, unless another owner wants it."""
        key = f"{function}@{revision}"
        if self._owners.remove(key, self._named(owner)):
            service = self._services.pop(key)
            self._retiring.add(service)
            service.retire()
        elif key in self._services:
            self._services[key].set_min_instances(self._owners.minimum(key))

    def keep_only(self, keys: set[str], owner: ArtifactSource | None = None) -> None:
        """Retire every revision of the owner whose key (function@revision) is not among these."""
        owner = self._named(owner)
        for key in self._owners.wanted_by(owner) - keys:
            function, _, revision = key.rpartition("@")
            self.retire(function, revision, owner)

    def _named(self, owner: ArtifactSource | None) -> ArtifactSource:
        found = owner or self._owner
        assert found is not None
        return found

    async def prepare(
        self,
        revision: Revision,
        progress: Progress = no_progress,
        owner: ArtifactSource | None = None,
    ) -> None:
        """Have a first instance of a revision ready. Raises DeployFailed with the reason.

        A revision that fails is forgotten again, unless its owner knew it before.
        """
        self._check_open()
        owner = self._named(owner)
        known = revision.key in self._owners.wanted_by(owner)
        self._check_resources(revision)
        await self._sandboxes.check(revision.spec)
        self.register(revision, owner)
        try:
            await self._services[revision.key].prepare(progress)
        except BaseException as error:
            if isinstance(error, FaasdError):
                self._attach_output(error, revision)
            if not known:
                self.retire(revision.function, revision.id, owner)
            raise

    def _attach_output(self, error: FaasdError, revision: Revision) -> None:
        """What the code printed while it was tried: logs of a refused function cannot be asked for."""
        lines = self._logs.tail(revision.function, _OUTPUT_LINES)
        printed = "\n".join(line.line for line in lines if line.revision == revision.id)
        if printed:
            error.extra["output"] = printed[-_OUTPUT_CHARACTERS:]

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Started:
        """Begin an invocation. Raises FaasdError at once, or has its receiver told."""
        if self._draining:
            self._check_open()
        service = self._services.get(f"{invocation.function}@{invocation.revision}")
        if service is None:
            raise FunctionNotFound(
                f"Revision {invocation.revision} of {invocation.function} is not on this worker."
            )
        return service.invoke(invocation, receiver)

    def logs(self, function: str, *, tail: int) -> list[LogLine]:
        return self._logs.tail(function, tail)

    def follow_logs(self, function: str, *, tail: int) -> AsyncIterator[LogLine]:
        return self._logs.follow(function, tail)

    def report(self) -> WorkerReport:
        """The node as it is now; of the functions those that have a process or a call here."""
        return WorkerReport(
            id=self.id,
            cpus=self._cpus,
            memory_mb=round(processes.total_mb(), 1),
            memory_budget_mb=round(self._budget_mb, 1),
            memory_used_mb=round(self._used_mb, 1),
            slots=self._settings.slots or self._cpus,
            gpus=self._gpus.report(),
            gpu_fault=self._inventory.fault,
            runtimes=self._sandboxes.runtimes(),
            functions=[one.report() for one in self._holding() if self._serves(one)],
            starts=self.load.by_kind(),
            sandboxes=self._sandboxes.sandboxes(),
        )

    def _serves(self, service: RevisionService) -> bool:
        return self._services.get(service.revision.key) is service

    def _busy(self) -> bool:
        seen = [s.pool.statistics() for s in (*self._services.values(), *self._retiring)]
        return any(one.queued or one.running for one in seen)

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("The worker is shutting down.")

    def _check_resources(self, revision: Revision) -> None:
        wanted = revision.spec.resources
        self._gpus.check(wanted)
        if wanted.memory_mb > self._budget_mb:
            raise DeployFailed(
                f"[resources] memory_mb = {wanted.memory_mb} exceeds the worker's memory budget "
                f"of {self._budget_mb:.0f} MB.",
                remedy="Ask for less, or raise FAASD_WORKER_MEMORY_BUDGET_MB.",
            )

    def _service(self, revision: Revision) -> RevisionService:
        def output(instance: str, request_id: str, stream: str, line: str) -> None:
            self._logs.add(revision.function, revision.id, instance, request_id, stream, line)

        service = RevisionService(
            revision,
            worker_id=self.id,
            sandboxes=self._sandboxes,
            place=self._files.place,
            output=output,
            desk=self._desk,
            template_keep_alive_s=self._settings.template_keep_alive_s,
            cancel_grace_s=self._settings.cancel_grace_s,
            woken=self._on_woken,
            emptied=self._on_emptied,
            cores=self._cpus,
            tally=self.load,
        )
        service.set_may_grow(may_grow=self._may_grow)
        return service

    def _on_woken(self, service: RevisionService) -> None:
        self._awake[service] = None

    def _on_emptied(self, service: RevisionService) -> None:
        if service in self._retiring:
            self._retiring.discard(service)
            self._spawn(self._bury(service))

    async def _bury(self, service: RevisionService) -> None:
        await service.aclose()
        if service.revision.key not in self._services:
            await self._files.forget(service.revision)
            wanted = {one.revision.code_sha256 for one in self._services.values()}
            for one in self._services.values():
                wanted.update(ref.sha256 for ref in one.revision.artifacts.values())
            self._files.prune(wanted)
        function = service.revision.function
        if all(one.revision.function != function for one in self._everything()):
            self._logs.forget(function)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(self._settings.memory_interval_s)
            try:
                await self._measure()
            except OSError:
                log.exception("node.measure_failed", node=self.id)

    async def _watch_gpus(self) -> None:
        while True:
            await asyncio.sleep(self._inventory.interval_s(self._settings.memory_interval_s))
            await self._refresh_gpus()

    async def _refresh_gpus(self) -> None:
        """Read the devices; end what uses them as it must not, or lost the one that it had."""
        # Who ended while the devices were read is known from before, who began from after.
        before = self._gpu_users()
        await self._inventory.refresh()
        after = self._gpu_users()
        verdicts = self._desk.refreshed(
            self._inventory.gpus,
            self._inventory.fault,
            instances=before[0] | after[0],
            templates=before[1] | after[1],
        )
        for verdict in verdicts:
            log.warning(
                "gpu.condemned",
                owner=verdict.owner,
                code=verdict.error.code,
                detail=verdict.error.detail,
            )
            for service in self._everything():
                service.condemn(verdict.owner, verdict.error)

    def _gpu_users(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Processes of every instance, and of every template, by owner."""
        instances: dict[str, list[int]] = {}
        templates: dict[str, list[int]] = {}
        if self._inventory.gpus:
            for service in self._everything():
                found = service.gpu_users()
                instances |= found[0]
                templates |= found[1]
        return instances, templates

    def _spare_on_gpus(self) -> list[str]:
        """Instances that hold GPUs and are not needed, the longest unused first."""
        spare = sorted(one for service in self._everything() for one in service.spare_on_gpus())
        return [owner for _since, owner in spare]

    def _end_spare(self, owners: Sequence[str]) -> None:
        log.info("gpu.taken_back", owners=list(owners))
        for service in self._everything():
            service.end_spare(owners)

    async def _measure(self) -> None:
        """Measure every process, then keep the node within its budget."""
        held = self._holding()
        zygotes = [(one.name, one.state) for one in self._sandboxes.runtimes()]
        if not held and zygotes == self._zygotes_measured:
            return
        seen = {service: service.pids() for service in held}
        measured = await asyncio.to_thread(self._read_memory, seen)
        total = 0.0
        for service, (template_mb, private, pss, cpu_s) in measured.items():
            service.measured(template_mb, private, pss)
            service.used_processor(cpu_s)
            total += pss
        self._used_mb = total
        self._zygotes_measured = zygotes
        self._keep_within_budget(held)

    def _read_memory(
        self, seen: dict[RevisionService, tuple[list[int], dict[int, list[int]]]]
    ) -> dict[RevisionService, tuple[float, dict[int, float], float, dict[int, float]]]:
        self._sandboxes.measure()
        measured = {}
        for service, (template, instances) in seen.items():
            template_mb = processes.pss_mb(template)
            private, total = {}, template_mb
            for number, pids in instances.items():
                found = [processes.memory(pid) for pid in pids]
                private[number] = sum(one.private_mb for one in found)
                total += sum(one.pss_mb for one in found)
            cpu_s = {one: sum(map(processes.cpu_s, pids)) for one, pids in instances.items()}
            measured[service] = (template_mb, private, total, cpu_s)
        return measured

    def _keep_within_budget(self, held: list[RevisionService]) -> None:
        over = self._used_mb - self._budget_mb
        holders: list[Holder[RevisionService]] = []
        for service in held:
            since, memory_mb = service.idle_holders()
            if since is not None:
                holders.append(Holder(service, since, memory_mb))
        for victim in least_recently_used(holders, over_mb=over):
            service = victim.key
            log.info(
                "pool.evicted", revision=service.revision.key, memory_mb=round(victim.memory_mb)
            )
            service.evict()
        if self._may_grow != (over <= 0):
            self._may_grow = over <= 0
            for service in self._everything():
                service.set_may_grow(may_grow=self._may_grow)

    def _holding(self) -> list[RevisionService]:
        """Those that have something here, or had when it was measured last."""
        self._awake = {one: None for one in self._awake if one.memory_mb or not one.pool.empty}
        return list(self._awake)

    def _everything(self) -> list[RevisionService]:
        return [*self._services.values(), *self._retiring]
