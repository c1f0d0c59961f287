"""Sandboxes as Docker containers: bare ones claimed, limited, and joined by the runtime's zygote."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import secrets
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed, FaasdError, Unavailable
from faasd.invocation import Revision, RuntimeReport, StartKind
from faasd.policies.bare import BarePool
from faasd.settings import WorkerSettings
from faasd.spec import FunctionSpec
from faasd.telemetry import get_logger
from worker import processes
from worker.gpus.ledger import GpuLedger, Grant, engine_refusal, needs_gpu
from worker.sandbox import Output, Placed
from worker.sandboxes.docker import containers, networks
from worker.sandboxes.docker.bare import BareSandboxes, alive
from worker.sandboxes.docker.builder import ImageBuilder
from worker.sandboxes.docker.engine import Container, Engine, ended_early
from worker.sandboxes.docker.home import Home, copy_runtime, find_home
from worker.sandboxes.docker.sandbox import (
    ContainerSandbox,
    Files,
    InnerSandbox,
    ProgramSandbox,
)
from worker.sandboxes.docker.zygotes import ZygoteServer
from worker.sandboxes.template import no_runtime
from worker.zygote import find_runtimes, images_folder

log = get_logger("worker.docker")

# The runtime whose zygote becomes the relay beside a program.
_RELAYS = "python"
_TEND_EVERY_S = 1.0
_SWEEP_EVERY = 5
# The engine notices the end of a container a moment after its processes are gone.
_EXIT_PATIENCE_S = 1.0
_PATH = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DockerSandboxes:
    """Zygote servers, pools of bare sandboxes, and the sandboxes in use. Owned by the event loop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._folder = settings.data.resolve()
        self._images = find_runtimes(images_folder())
        self._engine = Engine(timeout_s=settings.docker_timeout_s)
        self._networks = networks.Networks(self._engine, settings.allowed_networks)
        self._holders: dict[str, Container] = {}
        self._gpus = GpuLedger()
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
        self._sandboxes: dict[str, ContainerSandbox] = {}
        self._strays: set[str] = set()
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
        if spec.image is not None:
            await self._engine.image(spec.image)
        await self._networks.check(spec.network)

    async def open(
        self, revision: Revision, placed: Placed, *, died: Callable[[], None], output: Output
    ) -> ContainerSandbox:
        spec = revision.spec
        await self.check(spec)
        # A program's own container comes later; the relay beside it needs a runtime with Python.
        runtime = _RELAYS if spec.relayed else spec.runtime
        zygote = self._zygote(runtime)
        grant = self._devices(spec)
        pooled = (
            spec.network == "none"
            and (spec.image is None or spec.relayed)
            and (grant is None or spec.relayed)
        )
        pool = self._pool(runtime) if pooled else None
        ready = zygote.state == "ready" and pool is not None and pool.ready
        begin = clock.monotonic()
        name = f"{revision.function.rpartition('/')[2]}-{revision.id}-{secrets.token_hex(3)}"
        await zygote.ensure()
        libraries = clock.monotonic()
        container = await (pool.claim() if pool else self._make(name, revision, grant))
        kind, more = self._kind(revision, name, placed, grant)
        sandbox = self._sandboxes[name] = kind(
            name=name,
            revision=revision,
            died=died,
            output=output,
            output_bytes=self._settings.log_request_kb * 1024,
            zygote=zygote,
            container=container,
            files=Files.of(placed),
            # A name that says nothing: the zygote is told it, and so are its other children.
            folder=self._folder / "sandboxes" / secrets.token_hex(12),
            network=networks.kind(spec.network),
            grant=grant,
            ended=self._on_ended,
            **more,
        )
        try:
            self._note_use(container)
            await sandbox.start(StartKind.POOLED if ready else StartKind.COLD, begin, libraries)
        except BaseException as error:
            ended = await self._ended_by_itself(sandbox, error)
            await asyncio.shield(sandbox.aclose())
            if ended is not None:
                raise ended from None
            raise
        return sandbox

    def use_gpus(self, ledger: GpuLedger) -> None:
        self._gpus = ledger

    def _devices(self, spec: FunctionSpec) -> Grant | None:
        """The GPUs that a sandbox is made with, since it cannot be given others later.

        Raises Unavailable when there is no room for any now.
        """
        if not needs_gpu(spec.resources):
            return None
        found = self._gpus.sandbox(spec.resources, spec.limits.max_instances)
        if isinstance(found, Grant):
            return found
        raise Unavailable(found.detail)

    def _kind(
        self, revision: Revision, name: str, placed: Placed, grant: Grant | None
    ) -> tuple[type[ContainerSandbox], dict[str, Any]]:
        """The class for a revision's sandboxes, and what it is made with beside the usual."""
        if revision.spec.relayed:
            files = Files.of(placed)
            return ProgramSandbox, {
                "begin": lambda relay: self._begin(name, revision, files, relay, grant),
                "lines": self._engine.lines,
            }
        if revision.spec.image is not None:
            return InnerSandbox, {"runtime": self._runtime_code}
        return ContainerSandbox, {}

    async def _make(self, name: str, revision: Revision, grant: Grant | None) -> Container:
        """A bare container for one revision: of an image of its own, or with a network."""
        spec, labels = revision.spec, self._labels(revision)
        network = await self._networks.ensure(self._home, spec.network)
        runtime = _RELAYS if spec.relayed else spec.runtime
        bare = containers.bare(self._reference(runtime), labels, network=network)
        name = f"faasd-{self._home.identity}-{name}"
        if spec.image is None or spec.relayed:
            return await self._run(name, bare, None if spec.relayed else grant)
        user = containers.user_of(revision.function)
        volumes = await self._engine.volumes(spec.image)
        if network == "none":
            config = containers.bare_python(spec.image, labels, user=user, network=network)
            return await self._run(name, containers.without_disk(config, volumes), grant)
        # What the image calls Python runs at once, before a zygote could fence it in.
        kind = networks.kind(spec.network)
        async with self._gate:
            holder = await networks.hold(
                self._engine, self._zygote(runtime), f"{name}-network", bare, kind
            )
        within = f"container:{holder.id}"
        config = containers.bare_python(spec.image, labels, user=user, network=within)
        try:
            container = await self._run(name, containers.without_disk(config, volumes), grant)
        except BaseException:
            self._discard(holder)
            raise
        self._holders[container.id] = holder
        return container

    async def _run(self, name: str, config: dict[str, Any], grant: Grant | None) -> Container:
        """Make a container, with the GPUs of a grant. Raises FaasdError."""
        if grant is not None:
            config["HostConfig"]["DeviceRequests"] = grant.device_requests
            config["Env"] += [f"{key}={value}" for key, value in grant.env.items()]
        async with self._gate:
            try:
                return await self._engine.run(name, config)
            except FaasdError as error:
                raise engine_refusal(error) from None

    async def _begin(
        self,
        name: str,
        revision: Revision,
        files: Files,
        relay: Container,
        grant: Grant | None,
    ) -> Container:
        """Start a revision's own program, in the network of the container where its relay is."""
        spec = revision.spec
        image = spec.image or self._reference(spec.runtime)
        config = containers.program(
            image,
            self._labels(revision),
            revision,
            network=f"container:{relay.id}",
            binds=[f"{self._home.host_path(Path(a))}:{b}:ro" for a, b in files.mounts],
            environment=_program_environment(spec, files),
        )
        config = containers.without_disk(config, await self._engine.volumes(image))
        return await self._run(f"faasd-{self._home.identity}-{name}-program", config, grant)

    def _labels(self, revision: Revision) -> dict[str, str]:
        return self._home.labels(
            "sandbox",
            runtime=revision.spec.runtime,
            function=revision.function,
            revision=revision.id,
        )

    async def _ended_by_itself(
        self, sandbox: ContainerSandbox, error: BaseException
    ) -> FaasdError | None:
        """Why a sandbox could not be started, when the container's own program ended."""
        spec, container = sandbox.revision.spec, sandbox.containers[-1]
        if not isinstance(error, FaasdError) or alive(container):
            return None
        with contextlib.suppress(Unavailable, TimeoutError):
            status = await self._engine.wait(container.id, _EXIT_PATIENCE_S)
            if not spec.relayed:
                image = spec.image or self._reference(spec.runtime)
                return ended_early(dataclasses.replace(container, exit_code=status), image)
            what = f"of the image {spec.image}" if spec.image else " ".join(spec.command or ())
            return DeployFailed(
                f"The program {what[:200]} ended with status {status} before it was ready.",
                traceback=await self._engine.output(container.id),
            )
        return None

    def _on_ended(self, sandbox: ContainerSandbox) -> None:
        self._sandboxes.pop(sandbox.name, None)
        for container in sandbox.containers:
            self._discard(container)
        if sandbox.container.id in self._holders:
            self._discard(self._holders.pop(sandbox.container.id))

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
        if self._known_home is not None:
            with contextlib.suppress(Unavailable):
                mine = await self._engine.containers({"faasd.home": self._known_home.identity})
                self._leaving |= {container.id: container.name for container in mine}
        await self._clear()
        if self._known_home is not None:
            await self._networks.remove(self._known_home)
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
        return name, containers.bare(
            self._reference(runtime), self._home.labels("bare", runtime=runtime)
        )

    async def _warm(self, runtime: str) -> None:
        with contextlib.suppress(FaasdError):
            await self._engine.image(self._reference(runtime))
            self._pool(runtime).tend()
            await self._zygote(runtime).ensure()

    async def _tend(self) -> None:
        for number in itertools.count(1):
            await asyncio.sleep(_TEND_EVERY_S)
            await _quietly(self._tend_pools())
            if number % _SWEEP_EVERY == 0:
                await _quietly(self._sweep())
            sandboxes = list(self._sandboxes.values())
            await asyncio.gather(*(_quietly(self._look_after(one)) for one in sandboxes))

    async def _tend_pools(self) -> None:
        for pool in self._bare.values():
            pool.tend()
        await self._clear()

    async def _sweep(self) -> None:
        """Remove what nobody knows of: an engine that stalled, or died, may have made it since."""
        found = await self._engine.containers({"faasd.home": self._home.identity})
        held = {one.id for sandbox in self._sandboxes.values() for one in sandbox.containers}
        held |= {holder.id for holder in self._holders.values()}
        strays = {
            container.id
            for container in found
            if container.labels.get("faasd.role") in ("bare", "sandbox")
            and container.id not in held
            and not self._engine.is_making(container.name)
            and not any(pool.holds(container) for pool in self._bare.values())
        }
        for container in found:
            # Seen twice: what is on its way from the pool to a sandbox is nobody's for a moment.
            if container.id in strays & self._strays:
                log.warning("docker.stray", container=container.name)
                self._discard(container)
        self._strays = strays

    async def _look_after(self, sandbox: ContainerSandbox) -> None:
        sandbox.tend()
        await self._tell(sandbox)
        # Instances end, and engines convert weights for version 2 as they think fit.
        sandbox.weigh()

    async def _tell(self, sandbox: ContainerSandbox) -> None:
        """Let the engine know limits that were written past it: it may write its own again."""
        limits = sandbox.limits
        if limits is None or limits == sandbox.told:
            return
        try:
            await self._engine.update(
                sandbox.container.id,
                memory_mb=limits.memory_mb,
                cpus=limits.cpus,
                pids=limits.pids,
            )
            sandbox.told = limits
        except Unavailable as error:
            log.debug("docker.update_failed", sandbox=sandbox.name, detail=error.detail)

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


def _program_environment(spec: FunctionSpec, files: Files) -> dict[str, str]:
    """What a program sees beside what its image sets."""
    environment = {"HOME": "/tmp", "TMPDIR": "/tmp", **spec.program_env, **spec.env}
    if spec.image is None:
        path = [*files.inside.path, containers.CODE]
        environment = {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "PYTHONPATH": ":".join(path),
            **environment,
        }
    return environment


def from_settings(settings: WorkerSettings) -> DockerSandboxes:
    return DockerSandboxes(settings)
