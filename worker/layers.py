"""Requirements layers: a requirements.txt installed once per (content, runtime), shared read-only.

pip first says what is missing beside the runtime's own packages, then exactly that is installed
into a folder of its own, without dependencies of its own choosing. The folder appears under its
name only once it is whole, and a file lock lets one process build while others wait.

Whose pip that is, a `LayerBuilder` decides: the worker's own, or that of a runtime's image.
Installing a source distribution runs its code, so what a build leaves is read with suspicion, and
nothing is written into its folder once pip has run there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from faasd import clock
from faasd.errors import DeployFailed
from faasd.telemetry import get_logger
from worker.sandbox import LayerBuilder, PipEnd, Progress

log = get_logger("worker.layers")

PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")

_LONGEST_LOG = 16_000
_LARGEST_REPORT = 64 << 20
# Paths and addresses; and pip puts the environment's values, which may be secret, for ${NAME}.
_OUTSIDE = set("/\\@$")
_KEPT_UNUSED_S = 30 * 86_400.0
_KILLED = (-9, 137)


class InterpreterBuilder:
    """Every runtime is this process's own interpreter."""

    async def identity(self, runtime: str) -> str:
        listed = "\n".join(sorted(f"{name}=={found}" for name, found in _own_packages().items()))
        return f"{runtime} {sys.version} {hashlib.sha256(listed.encode()).hexdigest()}"

    async def installed(self, runtime: str) -> Mapping[str, str]:  # noqa: ARG002
        return _own_packages()

    async def pip(
        self,
        runtime: str,  # noqa: ARG002
        arguments: Sequence[str],
        folder: Path,
        timeout_s: float,
    ) -> PipEnd:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *PIP,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
                "TMPDIR": str(folder),
            },
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return PipEnd(process.returncode or 0, output.decode("utf-8", "replace"))


class Layers:
    """Builds layers below one folder. Owned by the event loop; several workers may share it."""

    def __init__(
        self, folder: Path, *, timeout_s: float, builder: LayerBuilder | None = None
    ) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._builder = builder or InterpreterBuilder()
        self._building: dict[str, asyncio.Lock] = {}

    def open(self) -> None:
        """Make the folder and drop what was left half built."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".building-*"):
            _discard(left)
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

        Raises DeployFailed with the end of the build log, Unavailable when it cannot be built now.
        """
        wanted = _normalised(requirements)
        if not wanted:
            return None
        identity = await self._builder.identity(runtime)
        key = hashlib.sha256(f"{identity}\n{wanted}".encode()).hexdigest()[:24]
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
        packages = temporary / "packages"
        packages.mkdir(parents=True)
        try:
            (temporary / "requirements.txt").write_text(wanted + "\n")
            progress("layer", "resolving requirements.txt")
            resolve = ["--dry-run", "--quiet", "--report", "report.json", "-r", "requirements.txt"]
            await self._install(resolve, runtime, temporary)
            report = await asyncio.to_thread(_read_report, temporary / "report.json")
            missing = _missing(report, await self._builder.installed(runtime))
            if missing:
                progress("layer", f"installing {', '.join(missing)}")
                # Compiled by the interpreter that will import it.
                install = ["--no-deps", "--compile", "--target", "packages", "--", *missing]
                await self._install(install, runtime, temporary)
            await asyncio.to_thread(make_readable, packages)
            packages.replace(layer)
            log.info("layer.built", layer=layer.name, runtime=runtime, packages=len(missing))
        except OSError as error:
            raise DeployFailed(
                f"Installing requirements.txt failed: {error.strerror or error}.",
                remedy="Ask for less, or see to the worker's disk, and deploy again.",
            ) from error
        finally:
            await asyncio.to_thread(_discard, temporary)

    async def _install(self, options: list[str], runtime: str, folder: Path) -> None:
        try:
            end = await self._builder.pip(runtime, ["install", *options], folder, self._timeout_s)
        except TimeoutError:
            raise DeployFailed(
                f"Installing requirements.txt took more than {self._timeout_s:g} s.",
                remedy="Raise the worker's layer_timeout_s, or ask for less.",
            ) from None
        if end.status != 0:
            raise _refusal(end)


def make_readable(folder: Path) -> None:
    """Let every user of the machine read a tree and none but its owner write; follow no links.

    Sandboxes run as users of their own. Raises DeployFailed when `folder` is no folder.
    """
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise DeployFailed("Installing requirements.txt put something in the place of its folder.")
    folder.chmod(0o755)
    for entry in tree(folder):
        if entry.is_symlink():
            continue
        mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
        if entry.is_dir(follow_symlinks=False):
            wanted = 0o755
        else:
            wanted = mode & 0o700 | (0o555 if mode & 0o100 else 0o444)
        # What is linked from another store is in order and may be somebody else's.
        if mode != wanted:
            Path(entry.path).chmod(wanted)


def tree(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that lies below a folder, folders before what they hold, links as such. Any depth."""
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _discard(folder: Path) -> None:
    """Remove what a build left, whatever it did to the modes of its folders."""
    with contextlib.suppress(OSError, DeployFailed):
        make_readable(folder)
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError) as error:
        log.warning("layer.not_removed", folder=str(folder), error=str(error))


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
def _own_packages() -> dict[str, str]:
    """Looked up once in the life of a worker, since it reads every installed package."""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        # The first on the path is the one that is imported; the name is missing where files are.
        if one.metadata["Name"]:
            found.setdefault(one.metadata["Name"], one.version)
    return found


def _read_report(path: Path) -> Any:
    """What pip would install. A build's own code may have put anything there."""
    try:
        # Neither a link to follow nor a pipe to wait at.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(file, "rb") as opened:
            content = opened.read(_LARGEST_REPORT)
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise DeployFailed(f"The report of pip on requirements.txt is unusable: {error}.") from None


def _missing(report: Any, installed: Mapping[str, str]) -> list[str]:
    """What pip would install, pinned. Raises DeployFailed where the runtime has another version."""
    try:
        wanted = [
            (str(item["metadata"]["name"]), str(item["metadata"]["version"]))
            for item in report.get("install", ())
        ]
    except (AttributeError, KeyError, TypeError):
        raise DeployFailed("The report of pip on requirements.txt is unusable.") from None
    present = {_canonical(name): version for name, version in installed.items()}
    pinned = []
    for name, version in wanted:
        kept = present.get(_canonical(name))
        if kept is not None:
            raise DeployFailed(
                f"requirements.txt asks for {name} {version}, but the runtime has {name} {kept}.",
                remedy=f"Accept {name}=={kept}, or use a runtime with the version you need.",
            )
        pinned.append(f"{name}=={version}")
    return pinned


def _canonical(name: str) -> str:
    """As indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _refusal(end: PipEnd) -> DeployFailed:
    text = end.output[-_LONGEST_LOG:]
    errors = (line for line in reversed(text.splitlines()) if re.search(r"ERROR|^error:", line))
    last = next(errors, "")
    if not last and end.status in _KILLED:
        last = "pip was killed, most likely for the memory that it took."
    return DeployFailed(
        f"Installing requirements.txt failed. {last}".strip(),
        remedy="See the build log; correct requirements.txt and deploy again.",
        traceback=text,
    )


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
