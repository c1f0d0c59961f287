"""The configurations of the containers that functions live in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from faasd.invocation import Revision
from worker.sandboxes.docker.cgroup import shares

_BARE_MEMORY_MB = 64
# Each namespace has a user of its own, above those of the machine.
_FIRST_USER, _USERS = 1 << 20, 1 << 20

CODE, LAYERS, ARTIFACTS, SANDBOX, RUNTIME = (
    "/faasd/code", "/faasd/layers", "/faasd/artifacts", "/faasd/sandbox", "/faasd/runtime",
)  # fmt: skip

# Nothing but a first process: docker-init reaps what is orphaned inside.
_PAUSE = ["sleep", "infinity"]
_PAUSE_IN_PYTHON = ["python3", "-I", "-S", "-c", "import signal; signal.pause()"]


def user_of(function: str) -> int:
    """The user and group that functions of a namespace run as."""
    namespace = function.partition("/")[0]
    digest = hashlib.sha256(namespace.encode()).digest()
    return _FIRST_USER + int.from_bytes(digest[:8], "big") % _USERS


def bare(image: str, labels: Mapping[str, str], *, network: str = "none") -> dict[str, Any]:
    """A container that holds nothing and may do nothing, until a zygote joins it."""
    return _confined(image, labels, network) | {"Entrypoint": _PAUSE, "Cmd": []}


def bare_python(
    image: str, labels: Mapping[str, str], *, user: int, network: str
) -> dict[str, Any]:
    """The same of an image that was not made for this, of which only Python is known."""
    # What it calls Python is its maker's program: never root's, whose limits the machine needs.
    return _confined(image, labels, network) | {
        "Entrypoint": _PAUSE_IN_PYTHON,
        "Cmd": [],
        "User": f"{user}:{user}",
    }


def program(
    image: str,
    labels: Mapping[str, str],
    revision: Revision,
    *,
    network: str,
    binds: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """A container whose own program serves invocations, with its limits from the start."""
    spec = revision.spec
    user = user_of(revision.function)
    config = _confined(image, labels, network)
    host = config["HostConfig"]
    host["Memory"] = host["MemorySwap"] = 2 * spec.resources.memory_mb << 20
    host["PidsLimit"] = spec.resources.pids
    host |= processors(spec.resources.cpus)
    host["Binds"] = list(binds)
    host["LogConfig"] = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
    host["Tmpfs"]["/tmp"] = f"rw,exec,nosuid,nodev,size={spec.resources.tmp_mb}m,mode=1777"
    config["User"] = f"{user}:{user}"
    config["Env"] = [f"{name}={value}" for name, value in environment.items()]
    if spec.command is not None:
        config |= {"Entrypoint": list(spec.command), "Cmd": []}
    if spec.image is None:
        config["WorkingDir"] = CODE
    return config


def processors(cpus: float) -> dict[str, int]:
    """Quota and weight as the engine has them; it refuses more than the machine's cores."""
    return {
        "NanoCpus": round(min(cpus, float(os.cpu_count() or cpus)) * 1e9),
        "CpuShares": shares(cpus),
    }


def without_disk(config: dict[str, Any], volumes: Sequence[str]) -> dict[str, Any]:
    """With memory in the place of the volumes that an image wants, which have no limit."""
    tmpfs = config["HostConfig"]["Tmpfs"]
    for folder in volumes:
        tmpfs.setdefault(folder, "rw,nosuid,nodev,size=64m,mode=1777")
    return config


def _confined(image: str, labels: Mapping[str, str], network: str) -> dict[str, Any]:
    return {
        "Image": image,
        "User": "0:0",
        "Env": [],
        "Labels": dict(labels),
        # The engine would run an image's own outside of the filter of system calls.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Init": True,
            "NetworkMode": network,
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
