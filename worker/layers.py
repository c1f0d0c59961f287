"""Requirements layers: a requirements.txt installed once per (content, runtime), shared read-only.

pip first says what is missing beside the runtime's own packages, then exactly that is installed
into a folder of its own, without dependencies of its own choosing. The folder appears under its
name only once it is whole, and a file lock lets one process build while others wait.
"""

from __future__ import annotations

import asyncio
import compileall
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed
from faasd.telemetry import get_logger
from worker.sandbox import Progress

log = get_logger("worker.layers")

_LONGEST_LOG = 16_000
# Paths and addresses; and pip puts the environment's values, which may be secret, for ${NAME}.
_OUTSIDE = set("/\\@$")
_KEPT_UNUSED_S = 30 * 86_400.0


class Layers:
    """Builds layers below one folder. Owned by the event loop; several workers may share it."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._building: dict[str, asyncio.Lock] = {}

    def open(self) -> None:
        """Make the folder and drop what was left half built."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".building-*"):
            shutil.rmtree(left, ignore_errors=True)
        for layer in self._folder.glob("*.lock"):
            self._drop_if_unused(layer.with_suffix(""))

    def _drop_if_unused(self, layer: Path) -> None:
        """A layer's lock file is touched at each use; one long unused goes with its lock."""
        lock = layer.with_suffix(".lock")
        if clock.wall() - lock.stat().st_mtime > _KEPT_UNUSED_S:
            shutil.rmtree(layer, ignore_errors=True)
            lock.unlink(missing_ok=True)

    async def ensure(self, requirements: str, runtime: str, progress: Progress) -> Path | None:
        """The folder to put on the path, or None when nothing needs to be added.

        Raises DeployFailed with the end of the build log.
        """
        wanted = _normalised(requirements)
        if not wanted:
            return None
        key = hashlib.sha256(f"{_identity(runtime)}\n{wanted}".encode()).hexdigest()[:24]
        layer = self._folder / key
        layer.with_suffix(".lock").touch()
        if not layer.exists():
            # One build of a layer at a time in this process; the file lock says so to others.
            lock = self._building.setdefault(key, asyncio.Lock())
            async with lock, _locked(self._folder / f"{key}.lock"):
                if not layer.exists():
                    await self._build(layer, wanted, runtime, progress)
        return layer

    async def _build(self, layer: Path, wanted: str, runtime: str, progress: Progress) -> None:
        temporary = self._folder / f".building-{secrets.token_hex(6)}"
        temporary.mkdir()
        try:
            asked = temporary / "requirements.txt"
            asked.write_text(wanted + "\n")
            progress("layer", "resolving requirements.txt")
            report = temporary / "report.json"
            resolve = ["install", "--dry-run", "--quiet", "--report", str(report), "-r", str(asked)]
            await self._pip(resolve, temporary)
            missing = _missing(json.loads(report.read_text()))
            packages = temporary / "packages"
            packages.mkdir()
            if missing:
                progress("layer", f"installing {', '.join(missing)}")
                pinned = temporary / "pinned.txt"
                pinned.write_text("\n".join(missing) + "\n")
                install = ["install", "--no-deps", "--target", str(packages), "-r", str(pinned)]
                await self._pip(install, temporary)
                await asyncio.to_thread(compileall.compile_dir, packages, quiet=2, workers=1)
            packages.replace(layer)
            log.info("layer.built", layer=layer.name, runtime=runtime, packages=len(missing))
        finally:
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)

    async def _pip(self, arguments: list[str], folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PIP_ROOT_USER_ACTION": "ignore"},
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                output, _ = await process.communicate()
        except TimeoutError:
            raise DeployFailed(
                f"Installing requirements.txt took more than {self._timeout_s:g} s.",
                remedy="Raise the worker's layer_timeout_s, or ask for less.",
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            text = output.decode("utf-8", "replace")[-_LONGEST_LOG:]
            last = next((line for line in reversed(text.splitlines()) if "ERROR" in line), "")
            raise DeployFailed(
                f"Installing requirements.txt failed. {last}".strip(),
                remedy="See the build log; correct requirements.txt and deploy again.",
                traceback=text,
            )


def _normalised(requirements: str) -> str:
    """The lines that matter, in order. Raises DeployFailed for what reaches outside a layer."""
    kept = []
    for raw in requirements.splitlines():
        line = re.sub(r"(^|\s+)#.*$", "", raw).strip()
        if line.startswith(("-", ".")) or _OUTSIDE & set(line):
            raise DeployFailed(
                f"requirements.txt: {line[:200]!r} is not accepted.",
                remedy="List packages by name and version only; ship local code in the folder.",
            )
        if line:
            kept.append(line)
    return "\n".join(kept)


@functools.cache
def _identity(runtime: str) -> str:
    """What a layer depends on besides its own list: interpreter and the runtime's packages.

    Looked up once in the life of a worker, since it reads every installed package.
    """
    installed = sorted(
        f"{found.metadata['Name']}=={found.version}" for found in metadata.distributions()
    )
    digest = hashlib.sha256("\n".join(installed).encode()).hexdigest()
    return f"{runtime} {sys.version} {digest}"


def _missing(report: dict[str, Any]) -> list[str]:
    """What pip would install, pinned. Raises DeployFailed where the runtime has another version."""
    pinned = []
    for item in report.get("install", ()):
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        try:
            present = metadata.version(name)
        except metadata.PackageNotFoundError:
            pinned.append(f"{name}=={version}")
            continue
        raise DeployFailed(
            f"requirements.txt asks for {name} {version}, but the runtime has {name} {present}.",
            remedy=f"Accept {name}=={present}, or use a runtime with the version you need.",
        )
    return pinned


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
