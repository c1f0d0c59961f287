"""Bodies that travel as files in memory, on the real platform: whole, and without a file left over.

Also when the function that gets and makes them is hostile: it holds the files too.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.raw_http import ECHO as TELLING
from tests.integration.raw_http import Wire, post, post_chunked
from tests.platform import Platform, eventually, refused

ECHO = "def handle(event, context):\n    return event\n"
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "serial": (ECHO, {}),
    "batched": (
        "def handle(events, contexts):\n    return events\n",
        {"batching": {"max_size": 4, "max_wait_ms": 20}},
    ),
    "loop": (f"async {ECHO}", {"limits": {"concurrency": 4}}),
    "threads": (ECHO, {"limits": {"concurrency": 4}}),
    "stream": (
        """
def handle(event, context):
    for at in range(0, len(event), 700_000):
        yield event[at : at + 700_000]
""",
        {},
    ),
    "pid": ("import os\ndef handle(event, context):\n    return os.getpid()\n", {}),
}

# Says what it is told to on the instance's own socket.
HOSTILE = """
import array, fcntl, os, socket, sys, time
runtime = sys.modules[next(name for name in sys.modules if name.endswith("runtime.frames"))]
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

def memory(content, seals=SEALS):
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd

def handle(event, context):
    if event is None:
        return "fine"
    frame = sys._getframe()
    while "call_id" not in frame.f_locals:
        frame = frame.f_back
    serial, call = frame.f_locals["self"], frame.f_locals["call_id"]
    sock = serial._link.sock
    file = serial._files.get(call)

    def send(data, *fds):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sock.sendmsg([data], rights if fds else [])

    def result(body, *fds):
        send(runtime.pack(["result", call, 200, "text/plain", {}, 1.0, body]), *fds)

    exec(event["do"], {**globals(), **locals()})
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("large-bodies")) as platform:
        for name, (code, spec) in {**STYLES, "hostile": (HOSTILE, {})}.items():
            limits = {"max_instances": 1, "timeout_s": 60, **spec.get("limits", {})}
            rest = {"resources": {"memory_mb": 512}, **spec, "limits": limits}
            platform.must_deploy(name, code, **rest)
        yield platform


@pytest.fixture(autouse=True)
def _service_is_unharmed(platform: Platform) -> Iterator[None]:
    before = len(platform.log)
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    assert platform.post("/invoke/serial", b"hi").body == b"hi"
    assert [entry for entry in platform.log[before:] if entry.get("level") == "error"] == []


def descriptors(platform: Platform) -> int:
    assert platform.process is not None
    return len(list(Path(f"/proc/{platform.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("size", [300_000, 1 << 20, 5 << 20, 20 << 20])
@pytest.mark.parametrize("style", [style for style in STYLES if style != "pid"])
def test_a_large_body_comes_back_as_it_was(platform: Platform, style: str, size: int) -> None:
    bodies = [random.Random(number).randbytes(size) for number in range(4)]

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda body: platform.post(f"/invoke/{style}", body), bodies))

    assert [answer.status for answer in answers] == [200] * 4
    assert [answer.body == body for answer, body in zip(answers, bodies, strict=True)] == [True] * 4


def test_bodies_of_all_sizes_follow_one_another_in_the_same_files(platform: Platform) -> None:
    """What a longer one left behind in a file is no part of the next."""
    chance = random.Random(1)
    sizes = [1, 262_143, 262_144, 262_145, 1 << 20, (1 << 20) + 1, 4 << 20, (4 << 20) + 1]

    for _ in range(60):
        body = chance.randbytes(chance.choice(sizes))
        assert platform.post("/invoke/serial", body).body == body


DIGEST = """
import hashlib

def handle(event, context):
    return f"{len(event)} {hashlib.sha256(event).hexdigest()}"
"""


def peak_kb(platform: Platform, *, anew: bool = False) -> int:
    """The most memory that the daemon had since it was asked anew."""
    assert platform.process is not None
    proc = Path(f"/proc/{platform.process.pid}")
    if anew:
        (proc / "clear_refs").write_text("5")
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError


@pytest.mark.parametrize("piece", [65_536, 1 << 20, 100 << 20])
def test_a_hundred_megabytes_in_chunks_are_never_in_the_daemon_at_once(
    platform: Platform, piece: int
) -> None:
    platform.must_deploy(
        "digest", DIGEST, limits={"max_body_mb": 100}, resources={"memory_mb": 1024}
    )
    body = random.Random(piece).randbytes(100 << 20)
    raw = post_chunked("digest", *(body[at : at + piece] for at in range(0, len(body), piece)))
    wanted = f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()
    before = peak_kb(platform, anew=True)

    with Wire.to(platform.url, patience_s=60) as wire:
        for _ in range(2):
            wire.send(raw)
            assert wire.reply().body == wanted

    grown = peak_kb(platform) - before
    assert grown < 16_000, f"{grown} KB"


def test_chunks_too_many_for_a_function_are_refused_and_its_files_are_gone(
    platform: Platform,
) -> None:
    platform.must_deploy("few", TELLING, limits={"max_body_mb": 5})
    before = descriptors(platform)
    for _ in range(20):
        with Wire.to(platform.url) as wire:
            wire.send(post_chunked("few", *[bytes(1 << 18)] * 40))
            (refusal,) = wire.replies_to_the_end()
            assert (refusal.status, refusal.json()["code"]) == (413, "body_too_large")
            assert "max_body_mb = 5" in refusal.json()["detail"]
    assert eventually(lambda: descriptors(platform) <= before)


HOSTILITIES = {
    "no file": "result(1000)",
    "a pipe": "result(1000, os.pipe()[0])",
    "a folder": "result(1000, os.open('/', os.O_RDONLY))",
    "a device": "result(1 << 20, os.open('/dev/zero', os.O_RDONLY))",
    "its own socket": "result(1000, sock.fileno())",
    "a file without seals": "result(1000, os.memfd_create('x'))",
    "a file that may shrink": "result(1, memory(b'x', fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE))",
    "too short a file": "result(1001, memory(bytes(1000)))",
    "much too short a file": "result(100 << 20, memory(bytes(1000)))",
    "a size past its memory": "result(513 << 20, memory(bytes(1000)))",
    "a size past all limits": "result(1 << 62, memory(bytes(1000)))",
    "a negative size": "result(-1, memory(bytes(1000)))",
    "no size": "result(None, memory(bytes(1000)))",
    "files beside nothing": "for _ in range(300): send(b'\\x00', memory(b'x'))",
    "files beside a frame without end": (
        "send(b'\\x00\\x10\\x00\\x00', memory(b'x'))\nfor _ in range(300): send(b'x', memory(b'x'))"
    ),
    "files beside other frames": (
        "for _ in range(300): send(runtime.pack(['chunk', call, b'x']), memory(b'x'))"
    ),
    "output without end": "while True: send(runtime.pack(['printed']) * 1000)",
    "no status": ("send(runtime.pack(['result', call, float('inf'), 'text/plain', {}, 1.0, b'']))"),
    "an interim status": "send(runtime.pack(['result', call, 100, 'text/plain', {}, 1.0, b'']))",
    "headers of numbers": "send(runtime.pack(['result', call, 200, 'a/b', {1: 2}, 1.0, b'']))",
    "no time": "send(runtime.pack(['result', call, 200, 'a/b', {}, '1', b'']))",
    "a time that is no number": (
        "send(runtime.pack(['result', call, 200, 'a/b', {}, float('nan'), b'']))"
    ),
    "an error without a time": "send(runtime.pack(['error', call, {}, None]))",
    "an interim status of a stream": "send(runtime.pack(['start', call, 101, 'text/plain']))",
}


@pytest.mark.parametrize("what", HOSTILITIES.values(), ids=HOSTILITIES)
def test_a_hostile_instance_is_cut_off_and_leaves_no_descriptor(
    platform: Platform, what: str
) -> None:
    assert platform.post("/invoke/hostile").body == b"fine"
    before = descriptors(platform)

    answer = platform.post("/invoke/hostile", {"do": what})

    refused(answer, 502, "instance_died", "sent something that is not a reply")
    assert platform.post("/invoke/hostile").body == b"fine"
    assert eventually(lambda: descriptors(platform) <= before)


@pytest.mark.parametrize("size", [1000, 50 << 20])
def test_a_reply_that_is_not_in_the_file_of_its_call_is_none(platform: Platform, size: int) -> None:
    assert platform.post("/invoke/hostile").body == b"fine"
    before = descriptors(platform)
    event = {"do": f"os.ftruncate(file, {size - 1})\nresult({size})", "padding": "x" * 300_000}

    answer = platform.post("/invoke/hostile", event)

    refused(answer, 502, "instance_died", "sent something that is not a reply")
    assert platform.post("/invoke/hostile").body == b"fine"
    assert eventually(lambda: descriptors(platform) <= before)


def test_files_that_come_beside_a_reply_without_need_end_the_instance(platform: Platform) -> None:
    """The reply itself is good, and whoever comes next finds another instance."""
    assert platform.post("/invoke/hostile").body == b"fine"
    before = descriptors(platform)

    for what in (
        "result(b'good', memory(b'x'))",
        "result(b'good', *[memory(b'x') for _ in range(250)])",
        "result(4, memory(b'good'), memory(b'x'))",
        "result(4, memory(b'good'), *[memory(b'x') for _ in range(100)])",
    ):
        for _ in range(5):
            answer = platform.post("/invoke/hostile", {"do": what})
            assert (answer.status, answer.body) == (200, b"good")
            assert platform.post("/invoke/hostile").body == b"fine"

    assert eventually(lambda: descriptors(platform) <= before)


def test_a_reply_that_is_cut_short_on_its_way_ends_its_connection(
    platform: Platform, tmp_path: Path
) -> None:
    assert platform.post("/invoke/hostile").body == b"fine"
    before = descriptors(platform)
    size = 30 << 20
    go, cut_now = tmp_path / "go", tmp_path / "cut"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    cut = f"os.ftruncate(file, {size})\nresult({size})\n{wait}\nos.ftruncate(file, 0)"
    cut += f"\nopen({str(cut_now)!r}, 'w')\nos._exit(1)"
    event = {"do": cut, "padding": "x" * 300_000}

    with Wire.to(platform.url, receive_buffer=65_536) as wire:
        wire.send(post("hostile", json.dumps(event).encode(), b"Content-Type: application/json"))
        assert wire.socket.recv(10) == b"HTTP/1.1 2"
        go.touch()
        assert eventually(cut_now.exists)
        assert len(wire.rest()) < size

    # The first may have been given to the instance that is about to end.
    assert eventually(lambda: platform.post("/invoke/hostile").body == b"fine")
    assert eventually(lambda: descriptors(platform) <= before)


def test_thousands_of_large_calls_and_many_kills_leave_no_descriptor(platform: Platform) -> None:
    body = random.Random(1).randbytes(300_000)
    large = post("serial", body)
    platform.post("/invoke/pid")
    assert platform.post("/invoke/hostile").body == b"fine"
    assert platform.post("/invoke/serial", body).body == body
    before = descriptors(platform)

    with Wire.to(platform.url) as one, Wire.to(platform.url) as other:
        for _ in range(1000):
            for wire in (one, other):
                wire.send(large)
            assert [wire.reply().body == body for wire in (one, other)] == [True, True]
    for _ in range(20):
        # Killed while a large call runs, and others wait.
        event = {"do": "os.kill(os.getpid(), 9)", "padding": "x" * 300_000}
        with ThreadPoolExecutor(3) as callers:
            answers = list(callers.map(partial(platform.post, "/invoke/hostile"), [event] * 3))
        assert {answer.status for answer in answers} == {502}
        os.kill(int(platform.post("/invoke/pid").json()), signal.SIGKILL)

    assert platform.post("/invoke/hostile").body == b"fine"
    assert eventually(lambda: platform.post("/invoke/pid").status == 200)
    # Files that served calls are kept for some seconds.
    assert eventually(lambda: descriptors(platform) <= before)


def test_a_body_past_the_functions_memory_is_told_as_that(platform: Platform) -> None:
    for spec in ({}, {"batching": {"max_size": 4}}):
        code = (
            "def handle(event, context):\n    return ['ok'] if isinstance(event, list) else 'ok'\n"
        )
        platform.must_deploy("small", code, resources={"memory_mb": 16}, **spec)

        for _ in range(2):
            answer = platform.post("/invoke/small", bytes(30 << 20))
            refused(answer, 500, "out_of_memory", "[resources] memory_mb = 16")
        assert platform.post("/invoke/small", b"hi").body == b"ok"
