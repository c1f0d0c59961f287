"""The worker's side of zygote servers: their containers, the connections to them, joins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from faasd.errors import DeployFailed, FaasdError, Unavailable
from faasd.telemetry import get_logger
from worker.control import ControlSocket
from worker.sandboxes.docker.engine import Container, Engine, ended_early
from worker.sandboxes.docker.home import Home
from worker.zygote import ONE_THREAD, QUIET, RuntimeImage

log = get_logger("worker.zygote")

# Joining namespaces (SYS_ADMIN, SYS_PTRACE, SYS_CHROOT), filtering a sandbox's packets (NET_ADMIN),
# becoming another user and giving up what it may (SETUID, SETGID, SETPCAP).
CAPABILITIES = (
    *("SYS_ADMIN", "SYS_PTRACE", "SYS_CHROOT", "NET_ADMIN"),
    *("SETUID", "SETGID", "SETPCAP"),
)
_RUN, _RUNTIME = "/faasd/run", "/faasd/runtime"
_CONNECT_PATIENCE_S = 30.0
_CONNECT_PAUSE_S = 0.02
_ANSWER_PATIENCE_S = 60.0
_IMPORT_PATIENCE_S = 600.0


class ZygoteServer:
    """The zygote server of one runtime. Not thread-safe; owned by the event loop."""

    def __init__(
        self, image: RuntimeImage, reference: str, *, engine: Engine, home: Home, runtime: Path
    ) -> None:
        """`reference` is the container image; `runtime` the node's copy of the runtime's code."""
        self.image = image
        self._reference = reference
        self._engine = engine
        self._home = home
        self._runtime = runtime
        self._container: Container | None = None
        self._control: ControlSocket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._joins: dict[str, asyncio.Future[int]] = {}
        self._clearing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.state = "absent"

    @property
    def pid(self) -> int:
        return self._container.pid if self._container else 0

    async def ensure(self, adopted: Container | None = None) -> None:
        """Have it running; callers share one start. Raises DeployFailed or Unavailable.

        `adopted` is a container of a former life of this worker, to be gone on with.
        """
        if self._starting is None or (self._starting.done() and self.state == "absent"):
            self.state = "starting"
            self._starting = asyncio.get_running_loop().create_task(self._start(adopted))
            self._starting.add_done_callback(_retrieve)
        await asyncio.shield(self._starting)

    async def join(self, name: str, request: dict[str, Any], fds: tuple[int, int, int]) -> int:
        """A template in the sandbox that `request` names: its process id. Raises Unavailable."""
        return await self._ask("join", name, request, fds)

    async def fence(self, container: Container, network: str) -> None:
        """Close to a container what its network does not lead to, before anything runs there.

        `network` is its kind: "internet" or "named". Raises Unavailable.
        """
        request = {"pid": container.pid, "container": container.id, "network": network}
        await self._ask("fence", container.name, request, ())

    async def _ask(
        self, kind: str, name: str, request: dict[str, Any], fds: tuple[int, ...]
    ) -> int:
        await self.ensure()
        if self._control is None:
            raise Unavailable(f"The zygote of runtime {self.image.name} ended.")
        joined: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._joins[name] = joined
        try:
            async with asyncio.timeout(_ANSWER_PATIENCE_S):
                await self._control.send([kind, name, request], fds)
                return await joined
        except TimeoutError:
            # Whatever holds it up, another one may do better; what it has forked lives on.
            self._on_closed()
            raise Unavailable(
                f"The zygote of runtime {self.image.name} did not answer within "
                f"{_ANSWER_PATIENCE_S:g} s; a new one is being started."
            ) from None
        except ConnectionError:
            raise Unavailable(
                f"The zygote of runtime {self.image.name} ended; a new one is being started."
            ) from None
        finally:
            self._joins.pop(name, None)

    async def aclose(self) -> None:
        """Remove the container. Safe to call twice."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        container = self._container
        self._gone()
        if container is not None:
            with contextlib.suppress(Unavailable):
                await self._engine.remove(container.id)
        await asyncio.gather(*self._clearing, return_exceptions=True)

    async def _start(self, adopted: Container | None) -> None:
        try:
            if adopted is not None:
                try:
                    await self._go_on_with(adopted)
                except (FaasdError, TimeoutError, ConnectionError):
                    await self._engine.remove(adopted.id)
                else:
                    return
            await self._engine.image(self._reference)
            name = f"faasd-{self._home.identity}-zygote-{self.image.name}"
            await self._engine.remove(name)
            await self._go_on_with(await self._engine.run(name, self._config()))
        except BaseException as error:
            container = self._container
            printed = ""
            if container is not None and isinstance(error, FaasdError):
                with contextlib.suppress(FaasdError):
                    printed = await self._engine.output(container.id)
            self._gone()
            if container is not None:
                await asyncio.shield(self._remove(container))
            if isinstance(error, FaasdError) and printed and error.traceback is None:
                error.traceback = printed[-16_000:]
            raise

    async def _go_on_with(self, container: Container) -> None:
        """Connect to a container's server and wait until its libraries are imported."""
        self._container = container
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._ready.add_done_callback(_retrieve_future)
        sock = await self._connect(container)
        self._control = ControlSocket(sock, message=self._on_message, closed=self._on_closed)
        await self._control.send(["preload", list(self.image.preload)])
        try:
            async with asyncio.timeout(_IMPORT_PATIENCE_S):
                report = await self._ready
        except TimeoutError:
            raise Unavailable(
                f"The zygote of runtime {self.image.name} did not import its libraries within "
                f"{_IMPORT_PATIENCE_S:g} s."
            ) from None
        self.state = "ready"
        log.info(
            "zygote.ready",
            runtime=self.image.name,
            **{k: round(v, 1) if isinstance(v, float) else v for k, v in report.items()},
        )

    async def _connect(self, container: Container) -> socket.socket:
        """The server's socket, once it is there. Raises Unavailable when the container ended."""
        folder = os.open(self._home.folder / "zygotes", os.O_PATH | os.O_DIRECTORY)
        # Addresses of sockets are short; a data folder's path may not be.
        path = f"/proc/self/fd/{folder}/{self.image.name}.sock"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            async with asyncio.timeout(_CONNECT_PATIENCE_S):
                while True:
                    try:
                        sock.setblocking(False)
                        sock.connect(path)
                    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                        seen = await self._engine.inspect(container.id)
                        if seen is not None and not seen.running:
                            raise ended_early(seen, self._reference) from None
                        if seen is None:
                            raise Unavailable(
                                f"The zygote server of runtime {self.image.name} did not start."
                            ) from None
                        await asyncio.sleep(_CONNECT_PAUSE_S)
                    else:
                        return sock
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"The zygote server of runtime {self.image.name} does not answer."
                ) from None
            raise
        finally:
            os.close(folder)

    def _config(self) -> dict[str, Any]:
        home = self._home
        return {
            "Image": self._reference,
            "Entrypoint": ["python3", "-I", "-X", "faulthandler", _RUNTIME],
            "Cmd": ["--listen", f"{_RUN}/{self.image.name}.sock"],
            "User": "0:0",
            # Its children can see the environment it was started with: nothing else may be in it.
            "Env": [f"{name}={value}" for name, value in (ONE_THREAD | QUIET).items()],
            "Labels": home.labels("zygote", runtime=self.image.name, code=self._runtime.name),
            "HostConfig": {
                "NetworkMode": "none",
                "PidMode": "host",
                "CgroupnsMode": "host",
                "IpcMode": "none",
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "CapAdd": list(CAPABILITIES),
                "SecurityOpt": ["no-new-privileges"],
                "Tmpfs": {"/tmp": "rw,nosuid,nodev,size=64m", "/faasd": "rw,size=64k,mode=755"},
                "Binds": [
                    "/sys/fs/cgroup:/sys/fs/cgroup:rw",
                    f"{home.host_path(home.folder)}:{home.folder}:ro",
                    f"{home.host_path(home.folder / 'zygotes')}:{_RUN}:rw",
                    f"{home.host_path(self._runtime)}:{_RUNTIME}:ro",
                ],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
            },
        }

    def _on_message(self, packet: list[Any]) -> None:
        kind = packet[0]
        if kind == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(packet[1])
        elif kind == "broken" and self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                DeployFailed(
                    f"The image of runtime {self.image.name} cannot import {packet[1]}.",
                    remedy="Build the image anew: `make images`.",
                    traceback=packet[2],
                )
            )
        elif kind in ("forked", "fenced", "failed") and packet[1] in self._joins:
            joined = self._joins[packet[1]]
            if joined.done():
                return
            if kind != "failed":
                joined.set_result(packet[2])
            else:
                told = f"The node could not start a process in the sandbox: {packet[2]}."
                joined.set_exception(Unavailable(told))

    def _on_closed(self) -> None:
        container = self._container
        log.warning("zygote.died", runtime=self.image.name, pid=self.pid)
        self._gone()
        if container is not None and not self._closed:
            task = asyncio.get_running_loop().create_task(self._remove(container))
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    async def _remove(self, container: Container) -> None:
        with contextlib.suppress(Unavailable):
            await self._engine.remove(container.id)

    def _gone(self) -> None:
        """Forget the container; what waits is told, and the next `ensure` starts another."""
        self.state = "absent"
        control, self._control = self._control, None
        self._container = None
        if control is not None:
            control.close()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                Unavailable(f"The zygote of runtime {self.image.name} ended while it started.")
            )
        for joined in self._joins.values():
            if not joined.done():
                joined.set_exception(ConnectionError("the zygote ended"))


def _retrieve(task: asyncio.Task[None]) -> None:
    # One started ahead of demand may fail with nobody waiting; the next caller is told.
    if not task.cancelled():
        task.exception()


def _retrieve_future(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
