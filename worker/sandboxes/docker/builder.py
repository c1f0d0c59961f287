"""Requirements layers built in the runtime's image: its Python, its packages, its C library.

pip may run a package's own code, so it gets a container that is thrown away: no capabilities, a
root it cannot write, bounded memory and processes, and of the machine only the build's folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faasd.errors import DeployFailed, Unavailable
from worker.layers import PIP, tree
from worker.sandbox import PipEnd
from worker.sandboxes.docker.engine import Engine

_BUILD = "/build"
_LINKS = "/links"
# Nobody's: neither a sandbox's user nor one that the machine is likely to have.
_USER = 65_533
_PROBE_TIMEOUT_S = 60.0
_PROBE = """
import json
from importlib import metadata
found = {}
for one in metadata.distributions():
    if one.metadata["Name"]:
        found.setdefault(one.metadata["Name"], one.version)
print(json.dumps(found))
"""
# The worker's settings of pip that hold in builds: as they are, or by a copy of the file they name.
_VALUES = frozenset(
    {
        "PIP_DEFAULT_TIMEOUT",
        "PIP_EXTRA_INDEX_URL",
        "PIP_INDEX_URL",
        "PIP_NO_BINARY",
        "PIP_NO_INDEX",
        "PIP_ONLY_BINARY",
        "PIP_PRE",
        "PIP_PREFER_BINARY",
        "PIP_PROXY",
        "PIP_RETRIES",
        "PIP_TIMEOUT",
        "PIP_TRUSTED_HOST",
    }
)
_PROXIES = frozenset({"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
_FILES = ("PIP_CERT", "PIP_CONSTRAINT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


class ImageBuilder:
    """A `LayerBuilder` whose pip runs in containers of the runtimes' images.

    `image` names a runtime's image, `labels` mark the containers as the worker's, and `host_path`
    says where the engine finds a path of the worker's, which may run in a container itself, or
    raises ValueError. They are asked only once the engine is open. Owned by the event loop.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        image: Callable[[str], str],
        labels: Callable[[], Mapping[str, str]],
        host_path: Callable[[Path], str] = str,
        environment: Mapping[str, str] = os.environ,
        memory_mb: int = 4096,
        pids: int = 1024,
    ) -> None:
        self._engine = engine
        self._image_of = image
        self._labels = labels
        self._host_path = host_path
        self._environment = environment
        self._memory = memory_mb << 20
        self._pids = pids
        self._installed: dict[str, dict[str, str]] = {}

    async def identity(self, runtime: str) -> str:
        return f"{runtime} {await self._image(runtime)}"

    async def installed(self, runtime: str) -> Mapping[str, str]:
        image = await self._image(runtime)
        if image not in self._installed:
            command = ["python3", "-I", "-c", _PROBE]
            config = self._config(image, command, user=f"{_USER}:{_USER}", network="none")
            try:
                end = await self._run(config, _PROBE_TIMEOUT_S)
            except TimeoutError:
                raise Unavailable(
                    f"The image of the runtime {runtime!r} did not list its packages within "
                    f"{_PROBE_TIMEOUT_S:g} s."
                ) from None
            self._installed[image] = _listed(runtime, end)
        return self._installed[image]

    async def pip(
        self, runtime: str, arguments: Sequence[str], folder: Path, timeout_s: float
    ) -> PipEnd:
        image = await self._image(runtime)
        values, links = await asyncio.to_thread(settings_for_build, self._environment, folder)
        user = await asyncio.to_thread(_hand_over, folder)
        config = self._config(
            image,
            ["python3", "-I", "-u", *PIP, *arguments],
            user=user,
            network="bridge",
            environment={
                **values,
                "HOME": _BUILD,
                "TMPDIR": _BUILD,
                # What was fetched to be looked at is not fetched again to be installed.
                "PIP_CACHE_DIR": f"{_BUILD}/cache",
                "PIP_ROOT_USER_ACTION": "ignore",
            },
            mounts=[
                self._mount(folder, _BUILD, read_only=False),
                *(self._mount(one, f"{_LINKS}/{n}") for n, one in enumerate(links)),
            ],
        )
        end = await self._run(config, timeout_s)
        await asyncio.to_thread(_take_back, folder)
        return end

    async def _image(self, runtime: str) -> str:
        return await self._engine.image(self._image_of(runtime))

    def _mount(self, path: Path, target: str, *, read_only: bool = True) -> dict[str, Any]:
        try:
            source = self._host_path(path)
        except ValueError:
            raise DeployFailed(
                f"The worker's PIP_FIND_LINKS names {path}, where the Docker engine cannot look.",
                remedy="Put the folder into the worker's data folder.",
            ) from None
        return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}

    def _config(
        self,
        image: str,
        command: Sequence[str],
        *,
        user: str,
        network: str,
        environment: Mapping[str, str] | None = None,
        mounts: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        return {
            "Image": image,
            "Entrypoint": [*command],
            "Cmd": [],
            "Env": [f"{name}={value}" for name, value in (environment or {}).items()],
            "User": user,
            "WorkingDir": _BUILD if mounts else "/",
            "Labels": {**self._labels(), "faasd.role": "builder"},
            "HostConfig": {
                "NetworkMode": network,
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "Memory": self._memory,
                "MemorySwap": self._memory,
                "PidsLimit": self._pids,
                "Tmpfs": {"/tmp": "size=64m"},
                "Mounts": [*mounts],
                # Whatever is printed without end does not fill the machine's disk.
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
            },
        }

    async def _run(self, config: Mapping[str, Any], timeout_s: float) -> PipEnd:
        name = f"faasd-builder-{secrets.token_hex(6)}"
        try:
            container = await self._engine.run(name, config)
            status = await self._engine.wait(container.id, timeout_s)
            return PipEnd(status, await self._engine.output(container.id))
        finally:
            await asyncio.shield(self._engine.remove(name))


def settings_for_build(
    environment: Mapping[str, str], folder: Path
) -> tuple[dict[str, str], list[Path]]:
    """The worker's settings of pip as they hold in a build's container, and the folders of
    packages that they name, to be found there in this order. The files they name are copied.
    """
    values = {
        name: value
        for name, value in environment.items()
        if name in _VALUES or name.upper() in _PROXIES
    }
    for name in _FILES:
        if name not in environment:
            continue
        values[name] = environment[name]
        if Path(environment[name]).is_file():
            values[name] = f"{_BUILD}/{name}"
            _copy_once(Path(environment[name]), folder / name)
    links: list[Path] = []
    places = []
    for place in environment.get("PIP_FIND_LINKS", "").split():
        local = Path(place.removeprefix("file://")).expanduser()
        if local.is_dir():
            places.append(f"{_LINKS}/{len(links)}")
            links.append(local.absolute())
        else:
            places.append(place)
    if places:
        values["PIP_FIND_LINKS"] = " ".join(places)
    return values, links


def _copy_once(source: Path, target: Path) -> None:
    """Not over what is there: a package's code may have put a link to somewhere else."""
    if not os.path.lexists(target):
        shutil.copyfile(source, target)
        target.chmod(0o644)


def _hand_over(folder: Path) -> str:
    """Make a build's folder writable for whom pip is to run as: nobody's user, if that may be."""
    owner = folder.stat()
    if owner.st_uid:
        return f"{owner.st_uid}:{owner.st_gid}"
    try:
        _give(folder, _USER, _USER)
    except PermissionError:
        return "0:0"
    return f"{_USER}:{_USER}"


def _take_back(folder: Path) -> None:
    if folder.stat().st_uid == _USER:
        _give(folder, os.geteuid(), os.getegid())


def _give(folder: Path, uid: int, gid: int) -> None:
    os.chown(folder, uid, gid, follow_symlinks=False)
    for entry in tree(folder):
        os.chown(entry.path, uid, gid, follow_symlinks=False)


def _listed(runtime: str, end: PipEnd) -> dict[str, str]:
    try:
        if end.status == 0:
            listed = json.loads(end.output.splitlines()[-1])
            return {str(name): str(version) for name, version in listed.items()}
    except (AttributeError, IndexError, ValueError):
        pass
    raise DeployFailed(
        f"The image of the runtime {runtime!r} did not list its packages.",
        remedy="It needs a python3 of version 3.9 or later on its PATH.",
        traceback=end.output,
    )
