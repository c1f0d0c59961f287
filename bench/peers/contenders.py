"""Who is measured, and how each is started: the peers with their pinned versions, and faasd."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import daemons
from bench.daemons import Server
from bench.peers.cases import FUNCTIONS, Case
from bench.processes import Tree

SERVERS = Path(__file__).resolve().parent / "servers"
PATH = "/predict"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Peer:
    """A model server of others: what pip installs for it, its program here, and its cases.

    `arguments` go to the program after case and port; `note` says what was set for a case.
    """

    name: str
    program: str
    packages: tuple[str, ...]
    cases: tuple[str, ...]
    environment: str
    arguments: tuple[str, ...] = ()
    note: str = ""


_MOSEC = ("mosec==0.9.8",)
_FLOOR = ("uvloop==0.23.0", "msgpack==1.2.4")
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "aiohttp",
            "aiohttp_server.py",
            ("aiohttp==3.14.5", "uvloop==0.23.0", "orjson==3.13.0"),
            ("echo", "mlp", "body-1mb"),
            "aiohttp",
        ),
        Peer(
            "fastapi",
            "fastapi_server.py",
            ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
            ("echo", "mlp"),
            "fastapi",
        ),
        Peer(
            "mosec",
            "mosec_server.py",
            _MOSEC,
            ("echo", "mlp", "mlp-batched", "body-1mb"),
            "mosec",
            ("5",),
            "max_batch_size=16, max_wait_time=5 ms",
        ),
        Peer(
            "mosec-1ms",
            "mosec_server.py",
            _MOSEC,
            ("mlp-batched",),
            "mosec",
            ("1",),
            "max_batch_size=16, max_wait_time=1 ms, the shortest it takes",
        ),
        Peer(
            "litserve",
            "litserve_server.py",
            ("litserve==0.2.19",),
            ("echo", "mlp", "mlp-batched"),
            "litserve",
            note="max_batch_size=16, batch_timeout=5 ms",
        ),
        Peer(
            "bentoml",
            "bentoml_server.py",
            ("bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0"),
            ("echo", "mlp", "mlp-batched"),
            "bentoml",
            note="batchable, max_batch_size=16; it chooses the wait itself",
        ),
        Peer("protocol", "protocol_server.py", _FLOOR, ("echo",), "floor", ("flat",)),
        Peer("protocol-hop", "protocol_server.py", _FLOOR, ("echo",), "floor", ("hop",)),
        Peer("ray", "ray_server.py", ("ray[serve]==2.60.0",), ("echo", "mlp"), "ray"),
    )
}
PLATFORMS = ("faasd", "faasd-tcp", "faasd-docker")
FAASD_NOTE = "batching.max_size=16, max_wait_ms=0: what waits when the instance is free is a batch"
ALL = (*PLATFORMS, *PEERS)


@contextlib.contextmanager
def serve_peer(peer: Peer, case: Case, python: Path, folder: Path) -> Iterator[Server]:
    """The peer with the case's program, answering. Raises DidNotStart."""
    port = daemons.free_port()
    server = Server(f"http://127.0.0.1:{port}{PATH}", Tree())
    log = folder / "server.log"
    command = [str(python), str(SERVERS / peer.program), case.name, str(port), *peer.arguments]
    env = {
        **ONE_THREAD,
        "PYTHONPATH": str(FUNCTIONS / "mlp"),
        # What they keep at home goes with the folder.
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "BENTOML_DO_NOT_TRACK": "true",
        "RAY_TEMP": str(folder / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    with daemons.ended(server.tree):
        server.tree.start(command, log=log, env=env, cwd=folder)
        _await_answer(server, case, log)
        yield server


@contextlib.contextmanager
def serve_faasd(name: str, case: Case, folder: Path) -> Iterator[Server]:
    """The platform with the case's function deployed, answering. Raises DidNotStart."""
    with _STARTS[name](folder) as platform:
        daemons.deploy(platform.url, FUNCTIONS / case.function, case.name, **case.settings)
        server = Server(f"{platform.url}/invoke/{case.name}", platform.tree)
        _await_answer(server, case, folder / "up.log")
        yield server


@contextlib.contextmanager
def _docker(folder: Path) -> Iterator[Server]:
    """`faasd up --runtime docker`; its containers count as its processes, and are removed."""
    node = f"bench-{uuid.uuid4().hex[:12]}"
    tree = Tree(lambda: _containers(node))
    try:
        with daemons.up(folder, "--runtime", "docker", tree=tree, FAASD_WORKER_ID=node) as server:
            yield server
    finally:
        place = ["--id", node, "--data", str(folder / "data" / "worker")]
        command = [*daemons.FAASD, "worker", "--purge", "--runtime", "docker", *place]
        subprocess.run(command, capture_output=True, check=False)


def _containers(node: str) -> list[int]:
    """The first processes of the node's containers."""
    identities = _docker_says("ps", "-q", "--filter", f"label=faasd.node={node}").split()
    if not identities:
        return []
    found = _docker_says("inspect", "--format", "{{.State.Pid}}", *identities)
    return [int(pid) for pid in found.split() if pid != "0"]


def _docker_says(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    return done.stdout


def why_no_docker() -> str:
    """Why there is no Docker engine to use; empty where there is one."""
    try:
        done = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "docker is not installed"
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


_STARTS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Server]]] = {
    "faasd": daemons.up,
    "faasd-tcp": daemons.cluster,
    "faasd-docker": _docker,
}


def _await_answer(server: Server, case: Case, log: Path) -> None:
    def lacks() -> str:
        status, body = daemons.post(server.url, case.body, case.content_type)
        if status == 200 and case.is_answer(body):
            return ""
        return f"answered {status or 'nothing'} ({body[:200].decode(errors='replace')})"

    daemons.await_server(server, lacks, log)
