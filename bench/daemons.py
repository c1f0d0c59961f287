"""faasd as users start it: by its command line, on free ports of the loopback address.

What is used of it is the command line and HTTP, so that one harness measures every version.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.measure import ROOT
from bench.processes import Tree

PATIENCE_S = 120.0
ANSWER_S = 30.0
FAASD = (sys.executable, "-m", "faasd")


class DidNotStart(Exception):
    """A server that ended, or did not answer in time: what it said last."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test: where it listens, and its processes."""

    url: str
    tree: Tree


@contextlib.contextmanager
def up(folder: Path, *arguments: str, tree: Tree | None = None, **env: str) -> Iterator[Server]:
    """`faasd up`, its data below the folder. Ended on exit."""
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", tree or Tree())
    log = folder / "up.log"
    command = [*FAASD, "up", "--port", str(port), "--data", str(folder / "data"), *arguments]
    with ended(server.tree):
        server.tree.start(command, log=log, env=env, cwd=ROOT)
        await_server(server, lambda: _lacks(server.url, "/readyz"), log)
        yield server


@contextlib.contextmanager
def cluster(folder: Path, *, workers: int = 1, **env: str) -> Iterator[Server]:
    """`faasd controller` and so many of `faasd worker`, joined over TCP. Ended on exit."""
    port, joining = free_port(), free_port()
    server = Server(f"http://127.0.0.1:{port}", Tree())
    log = folder / "cluster.log"
    env = {"FAASD_CLUSTER_SECRET": secrets.token_hex(16), **env}
    ports = ["--port", str(port), "--cluster-port", str(joining)]
    with ended(server.tree):
        command = [*FAASD, "controller", *ports, "--data", str(folder / "c")]
        server.tree.start(command, log=log, env=env, cwd=ROOT)
        await_server(server, lambda: _lacks(server.url, "/healthz"), log)
        for number in range(1, workers + 1):
            name = f"w{number}"
            place = ["--id", name, "--data", str(folder / name)]
            command = [*FAASD, "worker", "--controller", f"127.0.0.1:{joining}", *place]
            server.tree.start(command, log=log, env=env, cwd=ROOT)
        await_server(server, lambda: _lacks_workers(server.url, workers), log)
        yield server


def leave_on_sigterm() -> None:
    """A benchmark that is told to end, ends its servers first; Ctrl-C does so anyway."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))


@contextlib.contextmanager
def ended(tree: Tree) -> Iterator[None]:
    try:
        yield
    finally:
        tree.end()


def await_server(server: Server, missing: Callable[[], str], log: Path) -> None:
    """Until nothing is missing. Raises DidNotStart if a process ends first, or patience does."""
    give_up = time.monotonic() + PATIENCE_S
    while lacks := missing():
        if any(root.poll() is not None for root in server.tree.roots):
            raise DidNotStart(f"ended: {_last_lines(log)}")
        if time.monotonic() > give_up:
            raise DidNotStart(f"{lacks} after {PATIENCE_S:.0f} s: {_last_lines(log)}")
        time.sleep(0.02)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-12:])


def deploy(url: str, folder: Path, name: str, **settings: object) -> None:
    """`faasd deploy`; a setting's dot is written as two underscores. Raises DidNotStart."""
    command = [*FAASD, "--url", url, "deploy", str(folder), "--name", name]
    for key, value in settings.items():
        command += ["--set", f"{key.replace('__', '.')}={json.dumps(value)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        # Before the error stand the steps that went well.
        raise DidNotStart(done.stderr.rpartition("Error: ")[2].strip())


def post(url: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """Status and body of one POST; status 0 where no answer came."""
    return _ask("POST", url, body, {"Content-Type": content_type})


def get(url: str) -> tuple[int, bytes]:
    """Status and body of one GET; status 0 where no answer came."""
    return _ask("GET", url, None, {})


def _ask(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=ANSWER_S)
    try:
        connection.request(method, address.path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _lacks(url: str, path: str) -> str:
    status, _ = get(url + path)
    return "" if status == 200 else f"{path} answered {status or 'nothing'}"


def _lacks_workers(url: str, wanted: int) -> str:
    status, body = get(f"{url}/v1/workers")
    workers = json.loads(body)["workers"] if status == 200 else []
    joined = sum(one["status"] == "up" for one in workers)
    return "" if joined == wanted else f"{joined} of {wanted} workers had joined"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder whose name is short enough for the sockets that some servers keep in theirs."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
