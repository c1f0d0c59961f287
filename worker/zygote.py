"""The worker's side of a zygote: starts it, has it fork templates, notices when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from faasd.errors import DeployFailed, Unavailable
from faasd.telemetry import get_logger
from worker.control import ControlSocket, control_pair

log = get_logger("worker.zygote")

# One thread each before any fork: a pool of threads does not survive it.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "CUDA_MODULE_LOADING": "LAZY",
    # What a call allocated and freed is kept for the next one, up to here, buffers of a megabyte
    # included: to get it anew page by page costs more than many a handler does.
    "MALLOC_MMAP_THRESHOLD_": "2097152",
    "MALLOC_TRIM_THRESHOLD_": "4194304",
    # Would start a thread at import, which a fork loses.
    "ORT_DISABLE_TELEMETRY": "1",
}
INHERITED = (
    "PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """What a runtime's runtime.toml says."""

    name: str
    preload: tuple[str, ...]
    packages: tuple[str, ...]

    def missing_packages(self) -> list[str]:
        return [name for name in self.packages if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def find_runtimes(folder: Path) -> dict[str, RuntimeImage]:
    """The runtimes described below `folder`, by name."""
    found = {}
    for path in sorted(folder.glob("*/runtime.toml")):
        raw = tomllib.loads(path.read_text())
        image = RuntimeImage(
            raw["name"], tuple(raw.get("preload", ())), tuple(raw.get("packages", ()))
        )
        found[image.name] = image
    return found


def runtime_folder() -> Path:
    """Where the code that runs in sandboxes lies; found without importing it."""
    return Path(__file__).resolve().parent.parent / "functions" / "runtime"


def images_folder() -> Path:
    return runtime_folder().parent / "images"


class Zygote:
    """One zygote process. Not thread-safe; owned by the event loop."""

    def __init__(self, image: RuntimeImage, marker: dict[str, str], logfile: Path) -> None:
        self.image = image
        self._marker = marker
        self._logfile = logfile
        self._process: subprocess.Popen[bytes] | None = None
        self._control: ControlSocket | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._forks: dict[str, asyncio.Future[int]] = {}
        self._exits: dict[int, Callable[[int], None]] = {}
        self.state = "absent"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def ensure(self) -> None:
        """Have it running; callers share one start. Raises DeployFailed or Unavailable."""
        if self._ready is None:
            self._start()
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def fork(
        self, name: str, folder: Path, fds: tuple[int, int, int], exited: Callable[[int], None]
    ) -> int:
        """A template for the sandbox in `folder`: its process id. Raises Unavailable."""
        await self.ensure()
        assert self._control is not None
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks[name] = forked
        try:
            await self._control.send(["fork", name, str(folder)], fds)
            pid = await forked
        except ConnectionError:
            raise Unavailable(
                f"The zygote of runtime {self.image.name} ended; a new one is being started."
            ) from None
        finally:
            self._forks.pop(name, None)
        self._exits[pid] = exited
        return pid

    async def aclose(self) -> None:
        """Have it end its children and itself. Safe to call twice."""
        process, control = self._process, self._control
        if process is None:
            return
        if control is not None:
            control.close()
        try:
            await asyncio.to_thread(process.wait, 5)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        self._gone()

    def _start(self) -> None:
        missing = self.image.missing_packages()
        if missing:
            raise DeployFailed(
                f"Runtime {self.image.name} needs {', '.join(missing)}, "
                "not installed on this worker.",
                remedy="Install it beside faasd on the worker: `pip install 'faasd[torch]'`.",
            )
        self._ready = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(_retrieve)
        self.state = "starting"
        ours, theirs = control_pair()
        env = {name: os.environ[name] for name in INHERITED if name in os.environ}
        env |= {**ONE_THREAD, **QUIET, **self._marker, "PYTHONUNBUFFERED": "0"}
        with self._logfile.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", str(runtime_folder()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                env=env,
                cwd="/",
            )
        theirs.close()
        self._control = ControlSocket(ours, message=self._on_message, closed=self._on_closed)
        self._control.send_now(["preload", list(self.image.preload)])

    def _on_message(self, packet: list[Any]) -> None:
        kind = packet[0]
        if kind == "ready" and self._ready is not None and not self._ready.done():
            self.state = "ready"
            log.info("zygote.ready", runtime=self.image.name, **_rounded(packet[1]))
            self._ready.set_result(packet[1])
        elif kind == "broken":
            self._break(packet[1], packet[2])
        elif kind == "forked" and packet[1] in self._forks:
            self._forks[packet[1]].set_result(packet[2])
        elif kind == "failed" and packet[1] in self._forks:
            self._forks[packet[1]].set_exception(
                Unavailable(f"The node could not start a process: {packet[2]}.")
            )
        elif kind == "exited":
            exited = self._exits.pop(packet[1], None)
            if exited is not None:
                exited(packet[2])

    def _break(self, module: str, trace: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                DeployFailed(
                    f"Runtime {self.image.name} cannot import {module} on this worker.",
                    remedy="Repair the worker's installation of that library.",
                    traceback=trace,
                )
            )

    def _on_closed(self) -> None:
        log.warning("zygote.died", runtime=self.image.name, pid=self.pid)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._gone()

    def _gone(self) -> None:
        """Forget the process; what waits is told, and the next `ensure` starts another."""
        self.state = "absent"
        self._process = self._control = None
        ready, self._ready = self._ready, None
        if ready is not None and not ready.done():
            ready.set_exception(
                Unavailable(f"The zygote of runtime {self.image.name} ended while it started.")
            )
        for forked in self._forks.values():
            if not forked.done():
                forked.set_exception(ConnectionError("the zygote ended"))
        exits, self._exits = self._exits, {}
        for exited in exits.values():
            exited(signal.SIGKILL)


def _retrieve(future: asyncio.Future[Any]) -> None:
    # A zygote started ahead of demand may fail with nobody waiting; the next caller is told.
    if not future.cancelled():
        future.exception()


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 1) if isinstance(v, float) else v for k, v in values.items()}
