"""Sandboxes as Docker containers: bare ones claimed, limited, and joined by the runtime's zygote."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from faasd import clock
from faasd.errors import FaasdError, OutOfMemory, Unavailable
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.policies.bare import BarePool
from faasd.settings import WorkerSettings
from faasd.spec import FunctionSpec
from faasd.telemetry import get_logger
from worker import processes
from worker.sandbox import InstanceEvents, Output, Placed
from worker.sandboxes.docker.bare import BareSandboxes
from worker.sandboxes.docker.builder import ImageBuilder
from worker.sandboxes.docker.cgroup import Cgroup, Limits
from worker.sandboxes.docker.engine import Container, Engine
from worker.sandboxes.docker.home import Home, copy_runtime, find_home
from worker.sandboxes.docker.zygotes import ZygoteServer
from worker.sandboxes.template import TemplateSandbox, no_runtime, template_config
from worker.zygote import QUIET, find_runtimes, images_folder

log = get_logger("worker.docker")

_TEND_EVERY_S = 1.0
_SETTLE_S = 0.2
_FULL = 0.75
_BARE_MEMORY_MB = 64
# Each namespace has a user of its own, above those of the machine.
_FIRST_USER, _USERS = 1 << 20, 1 << 20
_CODE, _LAYERS, _ARTIFACTS, _SANDBOX = (
    "/faasd/code", "/faasd/layers", "/faasd/artifacts", "/faasd/sandbox",
)  # fmt: skip


class DockerSandboxes:
    """Zygote servers, pools of bare sandboxes, and the sandboxes in use. Owned by the event loop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._folder = settings.data.resolve()
        self._images = find_runtimes(images_folder())
        self._engine = Engine(timeout_s=settings.docker_timeout_s)
        self._gate = asyncio.Semaphore(settings.docker_parallel)
        self._known_home: Home | None = None
        self._runtime_code = Path()
        self.builder = ImageBuilder(
            self._engine,
            image=self._reference,
            labels=lambda: self._home.labels("builder"),
            host_path=lambda path: self._home.host_path(path),  # noqa: PLW0108 - not known yet
        )
        self._zygotes: dict[str, ZygoteServer] = {}
        self._bare: dict[str, BareSandboxes] = {}
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._opening = 0
        self._leaving: dict[str, str] = {}
        self._memory_mb: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Reach the engine, go on with what a former life left whole, remove the rest."""
        version = await self._engine.open()
        home = self._known_home = await find_home(
            self._settings.node_id, self._folder, self._engine
        )
        log.info("docker.found", version=version, home=home.identity)
        await asyncio.to_thread(self._make_folders)
        await self._adopt(home)
        for name in self._settings.preload_runtimes:
            if name in self._images:
                self._spawn(self._warm(name))
        self._spawn(self._tend())

    def _make_folders(self) -> None:
        shutil.rmtree(self._folder / "sandboxes", ignore_errors=True)
        for name in ("sandboxes", "zygotes"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
            # Configurations hold the environment of functions; sockets lead to the zygotes.
            (self._folder / name).chmod(0o700)
        self._runtime_code = copy_runtime(self._folder)

    async def _adopt(self, home: Home) -> None:
        """Zygote servers that run the present code, and bare sandboxes nobody used, are whole."""
        former = await self._engine.containers({"faasd.home": home.identity})
        used = self._used()
        for container in former:
            name = container.labels.get("faasd.runtime", "")
            role = container.labels.get("faasd.role")
            current = (
                container.running
                and name in self._images
                and container.image == await self._image_id(name)
            )
            code = container.labels.get("faasd.code") == self._runtime_code.name
            if current and role == "zygote" and code:
                self._spawn(self._zygote(name).ensure(adopted=container))
            elif current and role == "bare" and container.id not in used:
                self._pool(name).adopt(container)
            else:
                self._discard(container)
        await self._clear()
        log.info("docker.adopted", found=len(former), removed=len(former) - self._kept())

    def _kept(self) -> int:
        zygotes = sum(one.state != "absent" for one in self._zygotes.values())
        return zygotes + sum(pool.ready for pool in self._bare.values())

    async def _image_id(self, runtime: str) -> str:
        try:
            return await self._engine.image(self._reference(runtime))
        except FaasdError:
            return ""

    async def check(self, spec: FunctionSpec) -> None:
        if spec.runtime not in self._images:
            raise no_runtime(spec.runtime, self._images)
        await self._engine.image(self._reference(spec.runtime))

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> DockerSandbox:
        await self.check(revision.spec)
        runtime = revision.spec.runtime
        zygote, pool = self._zygote(runtime), self._pool(runtime)
        kind = StartKind.POOLED if zygote.state == "ready" and pool.ready else StartKind.COLD
        begin = clock.monotonic()
        self._opening += 1
        try:
            await zygote.ensure()
            libraries = clock.monotonic()
            container = await pool.claim()
        finally:
            self._opening -= 1
        name = f"{revision.function.rpartition('/')[2]}-{revision.id}-{secrets.token_hex(3)}"
        sandbox = self._sandboxes[name] = DockerSandbox(
            name=name,
            revision=revision,
            died=died,
            output=output,
            output_bytes=self._settings.log_request_kb * 1024,
            zygote=zygote,
            container=container,
            placed=placed,
            folder=self._folder / "sandboxes" / name,
            ended=self._on_ended,
        )
        try:
            self._note_use(container)
            await sandbox.start(kind, begin, libraries)
        except BaseException:
            await asyncio.shield(sandbox.aclose())
            raise
        return sandbox

    def _on_ended(self, sandbox: DockerSandbox) -> None:
        self._sandboxes.pop(sandbox.name, None)
        self._discard(sandbox.container)

    def runtimes(self) -> list[RuntimeReport]:
        return [
            RuntimeReport(
                name=name,
                state=self._zygotes[name].state if name in self._zygotes else "absent",
                memory_mb=self._memory_mb.get(name, 0.0),
                libraries=list(image.packages),
            )
            for name, image in self._images.items()
        ]

    def sandboxes(self) -> dict[str, int]:
        return {
            "bare": sum(pool.ready for pool in self._bare.values()),
            "starting": sum(pool.making for pool in self._bare.values()),
            "claimed": len(self._sandboxes),
        }

    def measure(self) -> None:
        self._memory_mb = {
            name: processes.memory(zygote.pid).pss_mb
            for name, zygote in list(self._zygotes.items())
            if zygote.pid
        }

    async def aclose(self) -> None:
        """Leave nothing behind, as far as the engine answers."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(pool.aclose() for pool in self._bare.values()))
        await asyncio.gather(*(sandbox.aclose() for sandbox in list(self._sandboxes.values())))
        await asyncio.gather(*(zygote.aclose() for zygote in self._zygotes.values()))
        await self._clear()
        if self._leaving:
            log.warning("docker.left_behind", containers=len(self._leaving))
        await self._engine.aclose()
        await asyncio.to_thread(shutil.rmtree, self._folder / "sandboxes", ignore_errors=True)

    @property
    def _home(self) -> Home:
        if self._known_home is None:
            raise Unavailable("The worker has not started.")
        return self._known_home

    def _reference(self, runtime: str) -> str:
        return f"{self._settings.docker_image_prefix}{runtime}:{self._settings.docker_image_tag}"

    def _zygote(self, runtime: str) -> ZygoteServer:
        zygote = self._zygotes.get(runtime)
        if zygote is None:
            zygote = self._zygotes[runtime] = ZygoteServer(
                self._images[runtime],
                self._reference(runtime),
                engine=self._engine,
                home=self._home,
                runtime=self._runtime_code,
            )
        return zygote

    def _pool(self, runtime: str) -> BareSandboxes:
        pool = self._bare.get(runtime)
        if pool is None:
            pool = self._bare[runtime] = BareSandboxes(
                self._engine,
                lambda: self._describe_bare(runtime),
                BarePool(least=self._settings.bare_least, most=self._settings.bare_most),
                gate=self._gate,
                discard=self._discard,
            )
        return pool

    def _describe_bare(self, runtime: str) -> tuple[str, Mapping[str, Any]]:
        name = f"faasd-{self._home.identity}-{secrets.token_hex(6)}"
        return name, bare_config(
            self._reference(runtime), self._home.labels("bare", runtime=runtime)
        )

    async def _warm(self, runtime: str) -> None:
        with contextlib.suppress(FaasdError):
            await self._engine.image(self._reference(runtime))
            self._pool(runtime).tend()
            await self._zygote(runtime).ensure()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(_TEND_EVERY_S)
            for pool in self._bare.values():
                pool.tend()
            await self._clear()

    def _discard(self, container: Container) -> None:
        """Remove a container when the engine can: soon, and for certain."""
        self._leaving[container.id] = container.name
        if self._known_home is not None:
            self._spawn(self._remove(container.id))

    async def _clear(self) -> None:
        await asyncio.gather(*(self._remove(identity) for identity in list(self._leaving)))

    async def _remove(self, identity: str) -> None:
        try:
            await self._engine.remove(identity)
        except Unavailable as error:
            log.warning("docker.remove_failed", container=identity[:12], detail=error.detail)
            return
        if self._leaving.pop(identity, None) is not None:
            self._forget_use(identity)

    # A bare sandbox that was claimed may hold what a function left: it is never handed out again,
    # not even by the next life of this worker. The engine's labels cannot be changed, a file can.
    def _note_use(self, container: Container) -> None:
        (self._folder / "zygotes" / f"{container.id}.used").touch()

    def _forget_use(self, identity: str) -> None:
        (self._folder / "zygotes" / f"{identity}.used").unlink(missing_ok=True)

    def _used(self) -> set[str]:
        return {path.stem for path in (self._folder / "zygotes").glob("*.used")}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except FaasdError as error:
        log.warning("docker.failed", code=error.code, detail=error.detail)
    except Exception:  # the boundary of background work: the next round tries again
        log.exception("docker.failed")


def from_settings(settings: WorkerSettings) -> DockerSandboxes:
    return DockerSandboxes(settings)


def bare_config(reference: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """A container that holds nothing and may do nothing, until a zygote joins it."""
    return {
        "Image": reference,
        # Nothing but a first process: docker-init reaps what is orphaned inside.
        "Entrypoint": ["sleep"],
        "Cmd": ["infinity"],
        "User": "0:0",
        "Env": [],
        "Labels": dict(labels),
        "HostConfig": {
            "Init": True,
            "NetworkMode": "none",
            "IpcMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": 64,
            "Memory": _BARE_MEMORY_MB << 20,
            "MemorySwap": _BARE_MEMORY_MB << 20,
            "Tmpfs": {
                "/tmp": "rw,exec,nosuid,nodev,size=64m,mode=1777",
                # Where the zygote mounts a function's files; only root may write there.
                "/faasd": "rw,nosuid,nodev,noexec,size=64k,mode=755",
            },
            "LogConfig": {"Type": "none"},
        },
    }


class DockerSandbox(TemplateSandbox):
    """A claimed container with a template and its instances. Owned by the event loop."""

    def __init__(
        self,
        *,
        name: str,
        revision: Revision,
        died: Callable[[], None],
        output: Output,
        output_bytes: int,
        zygote: ZygoteServer,
        container: Container,
        placed: Placed,
        folder: Path,
        ended: Callable[[DockerSandbox], None],
    ) -> None:
        super().__init__(
            name=name, revision=revision, died=died, output=output, output_bytes=output_bytes
        )
        self.container = container
        self._zygote = zygote
        self._placed = placed
        self._folder = folder
        self._on_end = ended
        self._cgroup: Cgroup | None = None
        self._kills = 0

    async def _launch(self, fds: tuple[int, int, int]) -> int:
        mounts = await asyncio.to_thread(self._furnish)
        try:
            self._cgroup = Cgroup(self.container.pid)
            self._limit(instances=0)
        except OSError as error:
            raise Unavailable(f"The sandbox's limits could not be set: {error}.") from None
        request = {
            "pid": self.container.pid,
            "container": self.container.id,
            "mounts": mounts,
            "user": user_of(self._revision.function),
            "tmp_mb": self._revision.spec.resources.tmp_mb,
            "folder": _SANDBOX,
        }
        return await self._zygote.join(self.name, request, fds)

    def _furnish(self) -> list[list[str]]:
        """Write the template's configuration; which folders belong where in the sandbox."""
        placed = self._placed
        self._folder.mkdir(mode=0o755)
        layers = {path: f"{_LAYERS}/{number}" for number, path in enumerate(placed.path)}
        mounts = [[placed.code, _CODE], [str(self._folder), _SANDBOX]]
        mounts += [[path, place] for path, place in layers.items()]
        artifacts = {}
        for name, path in placed.artifacts.items():
            mounts.append([str(Path(path).parent), f"{_ARTIFACTS}/{name}"])
            artifacts[name] = f"{_ARTIFACTS}/{name}/{Path(path).name}"
        inside = Placed(code=_CODE, path=list(layers.values()), artifacts=artifacts)
        config = template_config(self._revision, inside, base_env=dict(QUIET), tmp="/tmp")
        place = self._folder / "sandbox.json"
        place.write_text(json.dumps(config))
        place.chmod(0o644)
        return mounts

    async def fork(self, name: str, events: InstanceEvents) -> Any:
        self._limit(instances=len(self._links) + len(self._births) + 1)
        return await super().fork(name, events)

    def _limit(self, *, instances: int) -> None:
        """Room for the template and so many instances."""
        wanted = self._revision.spec.resources
        if self._cgroup is None:
            return
        count = 1 + instances
        try:
            self._cgroup.limit(
                Limits(
                    memory_mb=wanted.memory_mb * count,
                    cpus=wanted.cpus * max(1, instances),
                    pids=wanted.pids,
                )
            )
        except OSError as error:
            # A lower limit than what is in use is refused; it comes with the next change.
            log.debug("sandbox.limit_refused", sandbox=self.name, error=str(error))

    def _outside(self, reported: int) -> int:
        """A child of the template, by the number it has inside."""
        return processes.child_known_as(self._pid, reported)

    def _why(self, status: int | None) -> FaasdError | None:
        del status
        if self._cgroup is None:
            return None
        kills = self._cgroup.memory_kills()
        if kills <= self._kills:
            return None
        self._kills = kills
        error = self._out_of_memory()
        asyncio.get_running_loop().call_later(_SETTLE_S, self._renew_if_full)
        return error

    def _renew_if_full(self) -> None:
        """What a function left in /tmp counts as its memory: with a full one nothing runs again."""
        if self._cgroup is None:
            return
        with contextlib.suppress(OSError):
            if self._cgroup.memory_used_mb() > _FULL * self._cgroup.memory_limit_mb():
                log.warning("sandbox.full", sandbox=self.name)
                self._kill()

    def _out_of_memory(self) -> OutOfMemory:
        assert self._cgroup is not None
        with contextlib.suppress(OSError):
            limit, peak = self._cgroup.memory_limit_mb(), self._cgroup.memory_peak_mb()
            return OutOfMemory(
                f"The function ran out of memory: limit {limit:.0f} MB for its template and "
                f"instances together ([resources] memory_mb = "
                f"{self._revision.spec.resources.memory_mb} each), peak {peak:.0f} MB."
            )
        return OutOfMemory("The function ran out of memory.")

    async def _clear(self) -> None:
        # Its memory is free at once, even when the engine does not answer.
        self._kill()
        self._on_end(self)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def user_of(function: str) -> int:
    """The user and group that functions of a namespace run as."""
    namespace = function.partition("/")[0]
    digest = hashlib.sha256(namespace.encode()).digest()
    return _FIRST_USER + int.from_bytes(digest[:8], "big") % _USERS


def purge_label(home: Home) -> dict[str, str]:
    return {"faasd.home": home.identity}
