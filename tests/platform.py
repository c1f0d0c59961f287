"""A real platform for tests: `faasd up` as a process of its own, and functions deployed from text.

with Platform(tmp_path) as platform:
    platform.deploy("hello", "def handle(event, context): return 'hi'")
    assert platform.post("/invoke/hello").body == b"hi"
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """An HTTP response, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Daemon:
    """One process of the platform: started, watched by its log, ended politely or killed."""

    def __init__(self, arguments: list[str], folder: Path, env: dict[str, str]) -> None:
        self._arguments = arguments
        self._folder = folder
        self._env = {**os.environ, "FAASD_WORKER_MEMORY_INTERVAL_S": "0.2", **env}
        self.process: subprocess.Popen[bytes] | None = None
        self.log: list[dict[str, Any]] = []

    def start(self, ready_event: str) -> dict[str, Any]:
        """The log entry that says it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faasd", *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self._env,
        )
        found: list[dict[str, Any]] = []
        ready = threading.Event()
        arguments = (self.process, ready_event, found, ready)
        threading.Thread(target=self._read_log, args=arguments, daemon=True).start()
        assert ready.wait(30), f"did not start: {self.log[-5:]}"
        assert found, f"did not start: {self.log[-5:]}"
        return found[0]

    def _read_log(
        self,
        process: subprocess.Popen[bytes],
        ready_event: str,
        found: list[dict[str, Any]],
        ready: threading.Event,
    ) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for raw in lines:
                try:
                    entry = json.loads(raw)
                except ValueError:
                    entry = {"event": raw.decode(errors="replace")}
                self.log.append(entry)
                if entry.get("event") == ready_event:
                    found.append(entry)
                    ready.set()
        ready.set()

    def terminate(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            finally:
                self.kill()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def marked_processes(sandboxes: Path) -> list[int]:
    """Every process of the sandboxes below this folder, by what its environment holds."""
    wanted = f"FAASD_NODE_DIR={sandboxes.resolve()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def command_name(pid: int) -> str:
    """What the process calls itself, or nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Api:
    """What tests ask of a platform over HTTP; with `key` once that is set."""

    url: str
    key: str = ""

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = 60,
    ) -> Answer:
        host = urlsplit(self.url)
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=timeout)
        try:
            known = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            connection.request(method, path, body, {**known, **(headers or {})})
            response = connection.getresponse()
            return Answer(
                response.status,
                {key.lower(): value for key, value in response.getheaders()},
                response.read(),
            )
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, value: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Bytes go as they are; anything else but None as JSON."""
        if value is None or isinstance(value, bytes):
            return self.request("POST", path, value, headers)
        given = {"Content-Type": "application/json", **(headers or {})}
        return self.request("POST", path, json.dumps(value), given)

    def deploy(self, name: str, code: str | dict[str, str | bytes] | bytes, **spec: Any) -> Answer:
        """`code` is handler.py's text, files by name, or a finished archive; `spec` its keys."""
        files: dict[str, str | bytes] | bytes = (
            {"handler.py": code} if isinstance(code, str) else code
        )
        archive = files if isinstance(files, bytes) else pack(files)
        form, content_type = multipart(
            spec=("application/json", json.dumps({"name": name, **spec}).encode()),
            code=("application/gzip", archive),
        )
        return self.request("PUT", f"/v1/functions/{name}", form, {"Content-Type": content_type})

    def must_deploy(self, name: str, code: str | dict[str, str | bytes], **spec: Any) -> Any:
        answer = self.deploy(name, code, **spec)
        assert answer.status in (200, 201), answer.body
        return answer.json()

    def logs(self, name: str, tail: int = 1000) -> list[dict[str, Any]]:
        text = self.get(f"/v1/functions/{name}/logs?tail={tail}").body.decode()
        return [
            json.loads(line.removeprefix("data: "))
            for line in text.splitlines()
            if line.startswith("data: ")
        ]

    @contextlib.contextmanager
    def open_connection(self) -> Iterator[http.client.HTTPConnection]:
        host = urlsplit(self.url)
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
        try:
            yield connection
        finally:
            connection.close()


class Platform(Api):
    """`faasd up` on a free port with its data below `folder`; ended, and checked to leave no
    process behind, on exit."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        command = ["up", "--port", "0", "--data", str(self.data), *arguments]
        self.daemon = Daemon(command, folder, env or {})
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> list[dict[str, Any]]:
        return self.daemon.log

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self.daemon.process

    def start(self) -> None:
        self.url = self.daemon.start("controller.listening")["url"]

    def stop(self) -> None:
        """End it politely; nothing of it may be left."""
        if self.daemon.process is None:
            return
        self.daemon.terminate()
        assert eventually(lambda: not self.pids()), f"left behind: {self.pids()}"

    def kill(self) -> None:
        self.daemon.kill()

    def pids(self) -> list[int]:
        """Every process of its sandboxes."""
        return marked_processes(self.data / "worker" / "sandboxes")


class Cluster(Api):
    """A controller and workers as processes of their own, on free ports."""

    def __init__(
        self, folder: Path, *, workers: int = 2, env: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._env = {"FAASD_CLUSTER_SECRET": "a secret of the tests", **(env or {})}
        self._ports = (_free_port(), _free_port())
        http_port, cluster_port = self._ports
        self.url = f"http://127.0.0.1:{http_port}"
        command = ["controller", "--port", str(http_port), "--cluster-port", str(cluster_port)]
        self.controller = Daemon([*command, "--data", str(folder / "c")], folder, self._env)
        self.workers = {f"w{n}": self._worker(f"w{n}") for n in range(1, workers + 1)}

    def __enter__(self) -> Self:
        self.controller.start("controller.listening")
        for worker in self.workers.values():
            worker.start("controller.joined")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.terminate()
        self.controller.terminate()
        for name in self.workers:
            assert eventually(lambda name=name: not self.pids(name)), f"left: {self.pids(name)}"  # type: ignore[misc]

    def _worker(self, name: str) -> Daemon:
        address = f"127.0.0.1:{self._ports[1]}"
        data = str(self.folder / name)
        command = ["worker", "--controller", address, "--data", data, "--id", name]
        return Daemon(command, self.folder, self._env)

    def pids(self, worker: str) -> list[int]:
        return marked_processes(self.folder / worker / "sandboxes")

    def up(self) -> list[str]:
        """The workers the controller may send invocations to."""
        found = self.get("/v1/workers").json()["workers"]
        return sorted(one["id"] for one in found if one["status"] == "up")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pack(files: dict[str, str | bytes]) -> bytes:
    """A code archive of these files."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, content in sorted(files.items()):
            raw = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return packed.getvalue()


def multipart(**parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart form of (content type, content) parts, and its own content type."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, (content_type, content) in parts.items():
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"'
            f"\r\nContent-Type: {content_type}\r\n\r\n"
        ).encode()
        body += content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def eventually(probe: Callable[[], T], *, patience_s: float = 30.0) -> T:
    """The probe's value once it is true, or its last one: waits for a state, never for a time."""
    give_up = time.monotonic() + patience_s
    while True:
        value = probe()
        if value or time.monotonic() > give_up:
            return value
        time.sleep(0.02)


def refused(answer: Answer, status: int, code: str, *words: str) -> Any:
    """The problem of an answer that says what is wrong and what to do: its detail has `words`."""
    assert answer.status == status, (answer.status, answer.body[:2000])
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["type"] == f"urn:faasd:error:{code}"
    assert problem["request_id"] == answer.headers["faasd-request-id"]
    assert problem["title"]
    assert problem["remedy"]
    for word in words:
        assert word in problem["detail"], (word, problem)
    return problem
