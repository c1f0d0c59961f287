"""Functions and their revisions: deploy, rollback, removal. Deploys of one function are serial."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakValueDictionary

from controller.links import Progress
from controller.store.port import Store, StoredRevision
from controller.workers import Workers
from faasd import archive, clock
from faasd.blobs import BlobStore
from faasd.errors import Conflict, DeployFailed, FunctionNotFound, InvalidSpec, NotFound
from faasd.invocation import ArtifactRef, Revision
from faasd.spec import FunctionSpec, compact, revision_of
from faasd.telemetry import get_logger

log = get_logger("controller.registry")

_WORKER_PATIENCE_S = 5.0
_UPLOAD_PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """What came of a deploy."""

    function: Function
    created: bool


@dataclass(slots=True)
class Function:
    """A function's revisions; `active` serves new requests."""

    name: str
    active: Revision
    created_at: float
    history: list[StoredRevision] = field(default_factory=list)


class Registry:
    """Owned by the event loop. The store is written before anything becomes visible."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        workers: Workers,
        *,
        code_max_mb: float,
        deploy_timeout_s: float,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._workers = workers
        self._code_max_mb = code_max_mb
        self._deploy_timeout_s = deploy_timeout_s
        self._functions: dict[str, Function] = {}
        # One deploy of a function at a time: activation reads and replaces what is active. Whoever
        # holds a lock, or waits for it, keeps it here.
        self._deploying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """Take up what is stored."""
        history: dict[str, list[StoredRevision]] = {}
        for stored in await self._store.revisions():
            history.setdefault(stored.revision.function, []).append(stored)
        for name, revisions in history.items():
            active = next((one for one in revisions if one.active), revisions[-1])
            self._show(Function(name, active.revision, active.created_at, revisions))

    def get(self, name: str) -> Function:
        """Raises FunctionNotFound. `name` is "namespace/name"."""
        function = self._functions.get(name)
        if function is None:
            namespace, _, short = name.partition("/")
            raise FunctionNotFound(f"There is no function {short!r} in namespace {namespace!r}.")
        return function

    def list(self, namespace: str) -> list[Function]:
        return [f for name, f in sorted(self._functions.items()) if _in(namespace, name)]

    async def deploy(
        self,
        name: str,
        spec: FunctionSpec,
        code_sha256: str,
        artifacts: dict[str, str],
        progress: Progress,
    ) -> Deployment:
        """Try a revision on a worker, then make it the active one.

        The former revision serves until the new one has an instance ready, and goes on serving
        when that fails. Raises InvalidSpec, InvalidArchive or DeployFailed.
        """
        revision = self._revision(name, spec, code_sha256, artifacts)
        await asyncio.to_thread(self._check_code, revision)
        async with self._deploying.setdefault(name, asyncio.Lock()):
            known = self._functions.get(name)
            if known is not None and known.active.id == revision.id:
                return Deployment(known, created=False)
            await self._prepare(revision, progress)
            function = await self._activate(revision)
            log.info("function.deployed", function=name, revision=revision.id)
            return Deployment(function, created=True)

    async def rollback(self, name: str, revision_id: str | None, progress: Progress) -> Function:
        """Make an earlier revision active again; without an id the one before the active one."""
        async with self._deploying.setdefault(name, asyncio.Lock()):
            function = self.get(name)
            wanted = _find(function, revision_id)
            if wanted.id == function.active.id:
                return function
            await self._prepare(wanted, progress)
            log.info("function.rolled_back", function=name, revision=wanted.id)
            return await self._activate(wanted)

    async def remove(self, name: str) -> None:
        async with self._deploying.setdefault(name, asyncio.Lock()):
            function = self.get(name)
            await self._store.remove_function(name)
            del self._functions[name]
            self._workers.retire(name, function.active.id)
            log.info("function.removed", function=name)
            await self._prune()

    def _revision(
        self, name: str, spec: FunctionSpec, code_sha256: str, artifacts: dict[str, str]
    ) -> Revision:
        if set(artifacts) != set(spec.artifacts):
            raise InvalidSpec(
                f"The spec names the artifacts {sorted(spec.artifacts)}, the request gives digests "
                f"for {sorted(artifacts)}."
            )
        for artifact, sha256 in artifacts.items():
            if not self._blobs.has(sha256):
                raise Conflict(
                    f"The artifact {artifact!r} ({sha256[:12]}...) has not been uploaded.",
                    remedy=f"PUT it to /v1/artifacts/{sha256} first; `faasd deploy` does.",
                )
        return Revision(
            function=name,
            id=revision_of(spec, code_sha256, artifacts),
            spec=compact(spec),
            code_sha256=code_sha256,
            artifacts={
                artifact: ArtifactRef(sha256, Path(spec.artifacts[artifact]).name)
                for artifact, sha256 in artifacts.items()
            },
            min_instances=spec.scaling.min_instances,
        )

    def _check_code(self, revision: Revision) -> None:
        files = set(archive.check(self._blobs.path(revision.code_sha256), max_mb=self._code_max_mb))
        files |= {name.removeprefix("./") for name in files}
        for key, attribute in revision.spec.attributes.items():
            module = attribute.partition(":")[0].replace(".", "/")
            if not {f"{module}.py", f"{module}/__init__.py"} & files:
                listing = ", ".join(sorted(n for n in files if n.endswith(".py"))[:20]) or "none"
                raise InvalidSpec(
                    f"{key} = {attribute!r}: there is no {module}.py in the archive; "
                    f"its Python files are {listing}."
                )
        requirements = revision.spec.requirements
        if requirements is not None and requirements.removeprefix("./") not in files:
            raise InvalidSpec(f"requirements = {requirements!r}: the archive has no such file.")

    async def _prepare(self, revision: Revision, progress: Progress) -> None:
        await self._workers.any(_WORKER_PATIENCE_S)
        member = self._workers.choose(revision.key, revision.spec.resources, refuse=DeployFailed)
        progress("worker", f"trying it on {member.link.worker_id}")
        try:
            async with asyncio.timeout(self._deploy_timeout_s):
                await member.link.prepare(revision, progress)
        except TimeoutError:
            raise DeployFailed(
                f"The deploy took more than {self._deploy_timeout_s:g} s.",
                remedy="Raise FAASD_DEPLOY_TIMEOUT_S of the controller.",
            ) from None

    async def _activate(self, revision: Revision) -> Function:
        now = clock.wall()
        await self._store.activate(revision, now)
        former = self._functions.get(revision.function)
        history = [
            replace(one, revision=revision) if one.revision.id == revision.id else one
            for one in await self._store.revisions(revision.function)
        ]
        function = Function(revision.function, revision, now, history)
        self._show(function)
        if former is not None:
            self._workers.retire(revision.function, former.active.id)
        return function

    def _show(self, function: Function) -> None:
        self._workers.activate(function.active)
        self._functions[function.name] = function

    async def _prune(self) -> None:
        """Drop the blobs that no stored revision needs."""
        wanted: set[str] = set()
        for stored in await self._store.revisions():
            wanted.add(stored.revision.code_sha256)
            wanted.update(ref.sha256 for ref in stored.revision.artifacts.values())
        # A young blob may belong to a deploy whose other parts are still on their way.
        await asyncio.to_thread(self._blobs.keep_only, wanted, younger_than_s=_UPLOAD_PATIENCE_S)


def _in(namespace: str, name: str) -> bool:
    return name.startswith(f"{namespace}/")


def _find(function: Function, revision_id: str | None) -> Revision:
    others = [one.revision for one in function.history if one.revision.id != function.active.id]
    if revision_id is None:
        if not others:
            raise Conflict(
                f"{function.name} has no other revision.", remedy="Deploy one to roll back to."
            )
        return max(
            (one for one in function.history if one.revision.id != function.active.id),
            key=lambda one: one.created_at,
        ).revision
    matching = [one.revision for one in function.history if one.revision.id == revision_id]
    if not matching:
        have = ", ".join(one.revision.id for one in function.history)
        raise NotFound(
            f"{function.name} has no revision {revision_id!r}.", remedy=f"It has {have}."
        )
    return matching[0]
