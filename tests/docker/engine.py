"""The Docker engine as tests see it: the `docker` command, and what of faasd's is on the engine.

Nodes of tests have names of their own (`new_node`), so that whatever their workers leave behind is
found, and nothing of anybody else's is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.platform import Platform, eventually

ROOT = Path(__file__).resolve().parents[2]
# What every node of this run of the tests is called, before its number.
RUN = f"test-{secrets.token_hex(4)}"
_LABEL = "faasd.node"
_numbers = itertools.count(1)


def new_node() -> str:
    """A name for a node that nothing else has, on this engine or in this run."""
    return f"{RUN}-{next(_numbers)}"


class EngineError(Exception):
    """The `docker` command failed; what it said."""


@dataclass(frozen=True, slots=True)
class Thing:
    """A container, network or volume of faasd's."""

    kind: str
    id: str
    name: str
    labels: dict[str, str]


def unreachable() -> str:
    """Why no engine can be used; nothing when one answers."""
    if shutil.which("docker") is None:
        return "no Docker engine: the docker command is not installed"
    try:
        docker("version", timeout_s=10)
    except (EngineError, subprocess.TimeoutExpired) as error:
        return f"no Docker engine: {error}"
    return ""


def docker(*arguments: str, timeout_s: float = 120.0, errors: bool = False) -> str:
    """What `docker ARGUMENTS` prints, with its `errors` too if asked for. Raises EngineError."""
    ended = subprocess.run(
        ["docker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if ended.returncode:
        raise EngineError(ended.stderr.strip() or f"docker {arguments[0]}: {ended.returncode}")
    return ended.stdout + (ended.stderr if errors else "")


def inspect(kind: str, *names: str) -> list[dict[str, Any]]:
    """What the engine knows of containers, images, networks or volumes. Raises EngineError."""
    found: list[dict[str, Any]] = json.loads(docker(kind, "inspect", *names)) if names else []
    return found


def has_image(name: str) -> bool:
    return bool(docker("image", "ls", "--quiet", name).split())


def running(**labels: str) -> list[dict[str, Any]]:
    """The running containers with these labels of faasd's, as the engine describes them."""
    filters = [f"--filter=label=faasd.{name}={value}" for name, value in labels.items()]
    return inspect("container", *docker("container", "ls", "--quiet", *filters).split())


def left(prefix: str = RUN) -> list[Thing]:
    """What is labelled as of a node whose name begins so: running, ended, or never started."""
    return [thing for thing in _labelled() if thing.labels[_LABEL].startswith(prefix)]


def _labelled() -> Iterator[Thing]:
    for kind, everything in (("container", ["--all"]), ("network", []), ("volume", [])):
        found = docker(kind, "ls", *everything, "--quiet", f"--filter=label={_LABEL}").split()
        for name in found:
            # It may be gone by now.
            with contextlib.suppress(EngineError):
                yield from (_thing(kind, raw) for raw in inspect(kind, name))


def _thing(kind: str, raw: dict[str, Any]) -> Thing:
    labels = raw["Config"]["Labels"] if kind == "container" else raw["Labels"]
    return Thing(kind, raw.get("Id", raw["Name"]), raw["Name"].lstrip("/"), labels)


def remove(things: list[Thing]) -> None:
    """Remove them, containers first; what is gone already is no error."""
    for thing in sorted(things, key=lambda thing: thing.kind != "container"):
        force = ["--force"] if thing.kind != "network" else []
        with contextlib.suppress(EngineError):
            docker(thing.kind, "rm", *force, thing.id)


class DockerPlatform(Platform):
    """`faasd up --runtime docker` on a free port, as a node of its own name.

    Ended in order, it must leave nothing on the engine; killed, what it left is for the test to
    judge, and removed in the end.
    """

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.node = new_node()
        named = {"FAASD_WORKER_ID": self.node, **(env or {})}
        super().__init__(folder, "--runtime", "docker", *arguments, env=named)

    def stop(self) -> None:
        if self.daemon.process is None:
            remove(self.left())
            return
        super().stop()
        assert eventually(lambda: not self.left()), f"left behind: {self.left()}"

    def left(self) -> list[Thing]:
        """Everything of this node that is on the engine."""
        return [thing for thing in left() if thing.labels[_LABEL] == self.node]
