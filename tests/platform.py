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


class Platform:
    """`faasd up` on a free port with its data below `folder`; ended, and checked to leave no
    process behind, on exit."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._arguments = arguments
        self._env = env or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.log: list[dict[str, Any]] = []

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
    def marker(self) -> str:
        """What the environment of every process of its sandboxes holds."""
        return f"FAASD_NODE_DIR={(self.data / 'worker' / 'sandboxes').resolve()}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faasd", "up", "--port", "0", "--data", str(self.data)]
            + list(self._arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, "FAASD_WORKER_MEMORY_INTERVAL_S": "0.2", **self._env},
        )
        self.url = ""
        listening = threading.Event()
        threading.Thread(target=self._read_log, args=(listening,), daemon=True).start()
        assert listening.wait(30), f"faasd up did not start: {self.log[-5:]}"

    def _read_log(self, listening: threading.Event) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            try:
                entry = json.loads(raw)
            except ValueError:
                entry = {"event": raw.decode(errors="replace")}
            self.log.append(entry)
            if entry.get("event") == "controller.listening":
                self.url = entry["url"]
                listening.set()
        listening.set()

    def stop(self) -> None:
        """End it politely; nothing of it may be left."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.kill()
        assert eventually(lambda: not self.pids()), f"left behind: {self.pids()}"

    def kill(self) -> None:
        """kill -9, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stderr is not None:
                self.process.stderr.close()
            self.process = None

    def pids(self) -> list[int]:
        """Every process of its sandboxes."""
        wanted = self.marker.encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

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
            connection.request(method, path, body, headers or {})
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

    def deploy(
        self, name: str, code: str | dict[str, str | bytes] | bytes, **spec: Any
    ) -> Answer:
        """`code` is handler.py's text, files by name, or a finished archive; `spec` its keys."""
        files = {"handler.py": code} if isinstance(code, str) else code
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
