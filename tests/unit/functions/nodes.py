"""A worker's end of the runtime: a real zygote, templates and instances, as plain processes.

with Zygote(tmp_path) as zygote:
    template = zygote.template(contract="http", http={"port": 8080, ...})
    answer = template.instance().call(b"{}")
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from functions.runtime import frames

RUNTIME = Path(frames.__file__).parent
PATIENCE_S = 30
# Notes what a template or an instance imports from files: in a sandbox there may be none.
WATCHER = """
    import os, sys

    HOME = os.getpid()

    class Watcher:
        def find_spec(self, name, path=None, target=None):
            if os.getpid() != HOME and not name.startswith("user_"):
                with open({notes!r}, "a") as notes:
                    notes.write(name + "\\n")
            return None

    sys.meta_path.insert(0, Watcher())
"""


@dataclass
class Answer:
    """What an instance said of one call."""

    kind: str
    status: int = 0
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    problem: dict[str, Any] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)


class Instance:
    """The worker's end of a data socket."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        sock.settimeout(PATIENCE_S)
        self.pid = pid
        self._stream = frames.FrameStream(sock)
        self._numbers = itertools.count(1)
        self.said = self._stream.read()

    def send(self, body: bytes, **meta: Any) -> int:
        call = next(self._numbers)
        given = _meta(call, **meta)
        self._stream.write(["call", [[call, given, body]]])
        return call

    def send_beside(self, fd: int, size: int, **meta: Any) -> int:
        """A call whose body is in a file in memory."""
        call = next(self._numbers)
        given = _meta(call, **meta)
        self._stream.write_with(["call", [[call, given, size]]], fd)
        return call

    def tell(self, *frame: Any) -> None:
        self._stream.write(list(frame))

    def cancel(self, call: int) -> None:
        self._stream.write(["cancel", call])

    def mark(self) -> int:
        """The file that says which call is to be stopped: the caller's to close."""
        fd = os.memfd_create("mark")
        self._stream.write_with(["mark"], fd)
        return fd

    def stop(self, call: int, mark: int) -> None:
        """What a worker does to end a call of an instance that serves one after the other."""
        os.pwrite(mark, call.to_bytes(8, "big"), 0)
        os.kill(self.pid, signal.SIGUSR1)

    def is_silent(self) -> bool:
        """Whether it has nothing more to say, as far as is known by now."""
        readable, _, _ = select.select([self._stream.sock], [], [], 0.2)
        return not readable

    def frame(self) -> list[Any]:
        return self._stream.read()

    def answer(self) -> Answer:
        """The next whole answer, of whichever call."""
        streamed = Answer("stream")
        while True:
            kind, _call, *rest = self.frame()
            if kind == "result":
                status, content_type, headers, _ms, body = rest
                return Answer("result", status, content_type, headers, body)
            if kind == "error":
                streamed.kind, streamed.problem = "error", rest[0]
                return streamed
            if kind == "start":
                streamed.status, streamed.content_type, streamed.headers = rest
            elif kind == "chunk":
                streamed.chunks.append(rest[0])
                streamed.body += rest[0]
            else:
                return streamed

    def call(self, body: bytes, **meta: Any) -> Answer:
        self.send(body, **meta)
        return self.answer()

    def close(self) -> None:
        self._stream.sock.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Template:
    """The worker's end of a template's control socket."""

    def __init__(self, control: socket.socket, output: Path) -> None:
        control.settimeout(PATIENCE_S)
        self._control = control
        self._output = output
        self._open: list[Instance] = []

    def said(self) -> list[Any]:
        return frames.recv_packet(self._control)[0]

    def must_be_ready(self) -> Template:
        said = self.said()
        assert said[0] == "ready", said
        return self

    def instance(self) -> Instance:
        ours, theirs = socket.socketpair()
        with theirs, self._output.open("ab") as output:
            fds = (theirs.fileno(), output.fileno(), output.fileno())
            frames.send_packet(self._control, ["fork", "instance"], fds)
            kind, _name, pid = self.said()
        assert kind == "forked"
        instance = Instance(ours, pid)
        assert instance.said[0] == "attached", instance.said
        self._open.append(instance)
        return instance

    def output(self) -> str:
        return self._output.read_text()

    def close(self) -> None:
        self._control.close()
        for instance in self._open:
            instance.close()


class Zygote:
    """A zygote process of the runtime, with templates forked from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes = folder / "late-imports"
        (folder / "watcher.py").write_text(textwrap.dedent(WATCHER.format(notes=str(self._notes))))
        self._numbers = itertools.count(1)
        self._templates: list[Template] = []

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(RUNTIME), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self._folder)},
            )
        ours.settimeout(PATIENCE_S)
        self._control = ours
        frames.send_packet(ours, ["preload", ["watcher"]])
        assert frames.recv_packet(ours)[0][0] == "ready"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for template in self._templates:
            template.close()
        self._control.close()
        assert self._process.wait(PATIENCE_S) == 0

    def late_imports(self) -> list[str]:
        """What processes of sandboxes looked for in files after they were forked."""
        return self._notes.read_text().split() if self._notes.exists() else []

    def template(self, files: dict[str, str] | None = None, **config: Any) -> Template:
        """A template of code in these files; what it `said` is to be asked."""
        number = next(self._numbers)
        folder = self._folder / f"sandbox-{number}"
        (folder / "code").mkdir(parents=True)
        for name, text in (files or {}).items():
            (folder / "code" / name).write_text(textwrap.dedent(text))
        (folder / "sandbox.json").write_text(json.dumps(_config(folder, config)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output = folder / "output"
        with theirs, output.open("ab") as out:
            fds = (theirs.fileno(), out.fileno(), out.fileno())
            frames.send_packet(self._control, ["fork", f"sandbox-{number}", str(folder)], fds)
            while True:
                said, _fds = frames.recv_packet(self._control)
                # Templates of before may end at any time.
                if said[0] != "exited":
                    break
        assert said[0] == "forked", said
        template = Template(ours, output)
        self._templates.append(template)
        return template


def _config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "function": "default/tested",
        "revision": "abc123abc123",
        "contract": "faasd",
        "handler": "handler:handle",
        "load": None,
        "code": str(folder / "code"),
        "path": [],
        "artifacts": {},
        "env": {},
        "base_env": {},
        "cpus": 1,
        "gpus": 0,
        "memory_mb": 512,
        "concurrency": 1,
        "batch": 1,
        "timeout_s": 60,
        "load_timeout_s": 20,
        "http": {"port": 8080, "path": "/", "ready": None},
        "tmp": str(folder),
        **config,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _meta(
    call: int,
    request_id: str = "",
    content_type: str = "",
    headers: dict[str, str] | None = None,
    attempt: int = 1,
    remaining_s: float | None = None,
    events: bool = False,
) -> list[Any]:
    """What goes with a call's body; see functions.runtime.instance."""
    named = request_id or f"request-{call}"
    return [named, content_type, headers or {}, attempt, remaining_s, events]
