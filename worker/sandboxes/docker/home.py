"""Where a node lives: its data folder, seen from the engine's side, and the labels of what it made."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from worker.sandboxes.docker.engine import Engine
from worker.zygote import runtime_folder

_CONTAINER = re.compile(r"/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf)\s")


@dataclass(frozen=True, slots=True)
class Home:
    """A node's data folder. In a container, `mounted` is the mount of `source` that it lies in."""

    node: str
    folder: Path
    mounted: Path | None = None
    source: str = ""

    def host_path(self, path: Path) -> str:
        """What a path of ours is called on the machine itself, where the engine looks.

        Raises ValueError for what is not in the data folder's mount, when in a container.
        """
        if self.mounted is None:
            return str(path)
        return str(Path(self.source) / path.relative_to(self.mounted))

    def labels(self, role: str, **more: str) -> dict[str, str]:
        """What tells a container, network or volume of this node; `role` is what it is for."""
        found = {"faasd.node": self.node, "faasd.home": self.identity, "faasd.role": role}
        return found | {f"faasd.{name}": value for name, value in more.items()}

    @property
    def identity(self) -> str:
        """Different for every data folder of a machine, and the same for every life of a node."""
        return hashlib.sha256(self.host_path(self.folder).encode()).hexdigest()[:16]


async def find_home(node: str, folder: Path, engine: Engine) -> Home:
    """The home in `folder`, wherever this process itself runs. Raises Unavailable."""
    own = _own_container()
    container = await engine.inspect(own) if own else None
    if container is not None:
        above = [mount for mount in container.mounts if folder.is_relative_to(mount.target)]
        if above:
            closest = max(above, key=lambda mount: len(mount.target))
            return Home(node, folder, Path(closest.target), closest.source)
    return Home(node, folder)


def _own_container() -> str | None:
    """The id of the container that this process runs in, or None on the machine itself."""
    try:
        found = _CONTAINER.search(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    except OSError:
        return None
    return found.group(1) if found else None


def copy_runtime(folder: Path) -> Path:
    """The code that runs in sandboxes, and msgpack, as a folder of this node that can be mounted.

    Named for its content: a worker of another version has another one.
    """
    code = runtime_folder()
    spec = importlib.util.find_spec("msgpack")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("msgpack")
    packed = Path(spec.origin).parent
    digest = hashlib.sha256()
    for path in sorted([*code.glob("*.py"), *packed.glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    place = folder / f"runtime-{digest.hexdigest()[:12]}"
    if place.exists():
        return place
    temporary = folder / f".runtime-{secrets.token_hex(6)}"
    shutil.copytree(code, temporary, ignore=shutil.ignore_patterns("__pycache__"))
    # Without its compiled part, which fits one Python only.
    kept = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(packed, temporary / "packages" / "msgpack", ignore=kept)
    for found, _folders, files in os.walk(temporary):
        Path(found).chmod(0o755)
        for name in files:
            (Path(found) / name).chmod(0o644)
    for former in [*folder.glob("runtime-*"), *folder.glob(".runtime-*")]:
        if former != temporary:
            shutil.rmtree(former, ignore_errors=True)
    temporary.replace(place)
    return place
