"""Connections that stall, break off, say half, read slowly or only stand there, on the real platform.

What they cost is bounded, the server ends what will come to nothing, and all others are served.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.raw_http import ECHO, Closed, Wire, Witness, get, make, post, post_chunked
from tests.platform import Platform, eventually

JSON = b"Content-Type: application/json"

# 20 MB whose every part is known.
LARGE = """
def handle(event, context):
    return bytes(range(256)) * (event["size"] // 256)
"""

# Says that it runs, and how it ends; runs until a file named `go` is there.
GATED = """
import os, time

def note(folder, word):
    with open(os.path.join(folder, word), "a") as file:
        file.write("x")

def handle(event, context):
    if event is None:
        return "free"
    note(event["folder"], "started")
    try:
        while not os.path.exists(event["folder"] + "/go"):
            time.sleep(0.005)
    except BaseException as error:
        note(event["folder"], type(error).__name__)
        raise
    return "served"
"""

FLOWING = """
def handle(event, context):
    if event is None:
        yield "free"
        return
    while True:
        yield bytes(65_536)
"""

COUNTED = """
def handle(event, context):
    with open(event["file"], "a") as file:
        file.write("x")
    return "counted"
"""

TWENTY_MB = 20 << 20
_WANTED_IDLE = 10_000
_SPARE_DESCRIPTORS = 500
_ECHO = post("echo", b"hi")


@pytest.fixture(scope="module", autouse=True)
def _as_many_descriptors_as_allowed() -> Iterator[None]:
    """For the connections of this module, and for the platforms that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = _WANTED_IDLE + 2 * _SPARE_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(need, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, _as_many_descriptors_as_allowed: None
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("hostile-connections")
    with Platform(folder, env={"FAASD_WORKER_CANCEL_GRACE_S": "0.3"}) as platform:
        functions = {
            "echo": ECHO,
            "large": LARGE,
            "gated": GATED,
            "flowing": FLOWING,
            "counted": COUNTED,
        }
        for name, code in functions.items():
            platform.must_deploy(name, code, limits={"max_instances": 1})
        yield platform


@pytest.fixture(scope="module")
def witness(platform: Platform) -> Iterator[Witness]:
    with Witness(platform.url) as witness:
        yield witness


@pytest.fixture(autouse=True)
def _service_is_unharmed(platform: Platform) -> Iterator[None]:
    before = len(platform.log)
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    assert platform.post("/invoke/echo", {"n": 1}).json()["event"] == {"n": 1}
    assert [entry for entry in platform.log[before:] if entry.get("level") == "error"] == []


def gated(folder: Path) -> bytes:
    return post("gated", json.dumps({"folder": str(folder)}).encode(), JSON)


def large(size: int = TWENTY_MB) -> bytes:
    return post("large", json.dumps({"size": size}).encode(), JSON)


def pss_kb(platform: Platform) -> int:
    """The daemon's share of memory."""
    assert platform.process is not None
    for line in Path(f"/proc/{platform.process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError


@contextlib.contextmanager
def wires(platform: Platform, count: int, source: str | None = None) -> Iterator[list[Wire]]:
    """Connections that leave no port of theirs waiting behind."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            wire = Wire.to(platform.url, source=source)
            stack.callback(wire.reset)
            opened.append(wire)
        yield opened


def test_two_hundred_heads_that_come_byte_by_byte_hold_nobody_up(
    platform: Platform, witness: Witness
) -> None:
    raw = post("echo", b"hi", b"X-Slow: yes")

    with wires(platform, 200) as slow, Wire.to(platform.url) as other:
        for at in range(len(raw)):
            for wire in slow:
                wire.send(raw[at : at + 1])
            other.send(_ECHO)
            assert other.reply().event == "hi"
        assert [wire.reply().event for wire in slow] == ["hi"] * 200


def test_a_hundred_bodies_that_come_by_halves_hold_nobody_up(
    platform: Platform, witness: Witness
) -> None:
    kinds = [post("echo", b"x" * 100_000), post_chunked("echo", b"x" * 60_000, b"x" * 40_000)]

    with wires(platform, 100) as slow, Wire.to(platform.url) as other:
        for half in (slice(0, 50_000), slice(50_000, None)):
            for number, wire in enumerate(slow):
                wire.send(kinds[number % 2][half])
            other.send(_ECHO)
            assert other.reply().event == "hi"
        assert all(wire.reply().event == "x" * 100_000 for wire in slow)


@dataclass(frozen=True)
class Stalled:
    """A request that comes to nothing: what is sent at first, and what then, again and again."""

    first: bytes
    then: bytes = b""


_HALF = _ECHO[:40]
STALLED = {
    "half a head": Stalled(_HALF),
    "a head without its last line": Stalled(_ECHO[: _ECHO.index(b"\r\n\r\n") + 2]),
    "a head that grows by a byte": Stalled(_HALF + b"\r\nX-A: ", b"a"),
    "half a head of another call": Stalled(get("/healthz")[:-2]),
    "half a head after a request": Stalled(_ECHO + _HALF),
    "half a head after another call": Stalled(get("/healthz") + _HALF),
    "no body": Stalled(_ECHO[:-2]),
    "half a body": Stalled(_ECHO[:-1]),
    "half a large body": Stalled(post("echo", bytes(8 << 20))[: 4 << 20]),
    "half a body after another call": Stalled(get("/healthz") + _ECHO[:-1]),
    "no chunk": Stalled(post("echo", b"", b"Transfer-Encoding: chunked")),
    "half the chunks": Stalled(post_chunked("echo", b"hi", b"there")[:-10]),
    "no end of the chunks": Stalled(post_chunked("echo", b"hi")[:-2]),
    "half an upload": Stalled(make("PUT /v1/artifacts/" + "0" * 64, bytes(1000))[:-1]),
    "a refused body that does not come": Stalled(post("echo", b"", b"Content-Length: 1073741824")),
    "nothing": Stalled(b""),
    "nothing more": Stalled(_ECHO),
    "nothing more after another call": Stalled(get("/healthz")),
    "a reply that is not read": Stalled(large()),
}
_EACH = 12


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    """Those that a server ends by itself whose patience is a second: two hundred wait at once,
    while another is served."""
    patience = dict.fromkeys(("FAASD_HTTP_PATIENCE_S", "FAASD_HTTP_KEEP_ALIVE_S"), "1")
    with Platform(tmp_path_factory.mktemp("impatient"), env=patience) as platform:
        for name, code in {"echo": ECHO, "large": LARGE}.items():
            platform.must_deploy(name, code, limits={"max_instances": 1})
            platform.post(f"/invoke/{name}", {"size": 256})
        assert platform.process is not None
        pid = platform.process.pid
        before = open_files(pid)
        with (
            wires(platform, _EACH * (len(STALLED) - 1)) as opened,
            Wire.to(platform.url, receive_buffer=4096) as reader,
        ):
            names = [name for name in STALLED if name != "a reply that is not read"] * _EACH
            reader.send(STALLED["a reply that is not read"].first)
            for name, wire in zip(names, opened, strict=True):
                wire.send(STALLED[name].first)
            found = _ended(platform, list(zip(names, opened, strict=True)))
            eventually(lambda: open_files(pid) <= before)
            if not _is_whole(reader):
                found.add("a reply that is not read")
            yield found


def _ended(platform: Platform, stalled: list[tuple[str, Wire]]) -> set[str]:
    def are_open() -> set[str]:
        return {name for name, wire in stalled if not wire.ended()}

    def all_ended() -> bool:
        assert platform.post("/invoke/echo", b"hi").json()["event"] == "hi"
        for name, wire in stalled:
            wire.send(STALLED[name].then)
        return not are_open()

    eventually(all_ended, patience_s=15)
    return {name for name, _ in stalled} - are_open()


def _is_whole(reader: Wire) -> bool:
    try:
        return len(reader.reply().body) == TWENTY_MB
    except (AssertionError, Closed):
        return False


@pytest.mark.parametrize("name", STALLED)
def test_a_server_ends_what_comes_to_nothing(ended: set[str], name: str) -> None:
    assert name in ended


def test_half_a_request_and_no_more_to_come_runs_nothing_and_ends(
    platform: Platform, witness: Witness, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    body = json.dumps({"file": str(counter)}).encode()
    whole = post("counted", body, JSON)
    chunked = post_chunked("counted", body, lines=(JSON,))

    for raw, last in ((whole, whole[-1:]), (chunked, chunked[-7:])):
        for at in (*range(1, 60, 7), len(raw) - len(last)):
            with Wire.to(platform.url) as wire:
                wire.send_last(raw[:at])
                rest = wire.rest()
                assert rest == b"" or rest.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), at
    assert platform.post("/invoke/counted", {"file": str(tmp_path / "next")}).status == 200
    assert not counter.exists()


_LEFT = "a peer that has no more to say is taken for gone: its requests are dropped or cancelled"


# An invocation alone may be answered before it is seen that no more will come.
@pytest.mark.xfail(strict=True, reason=_LEFT)
@pytest.mark.parametrize(
    ("raw", "count"),
    [(get("/healthz"), 1), (_ECHO + get("/healthz") + _ECHO, 3)],
    ids=["another call", "both"],
)
def test_whole_requests_with_no_more_to_come_are_answered(
    platform: Platform, raw: bytes, count: int
) -> None:
    for _ in range(10):
        with Wire.to(platform.url) as wire:
            wire.send_last(raw)
            assert [reply.status for reply in wire.replies_to_the_end()] == [200] * count


@pytest.mark.xfail(strict=True, reason=_LEFT)
def test_a_caller_with_no_more_to_say_gets_the_reply_of_a_running_function(
    platform: Platform, witness: Witness, tmp_path: Path
) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(gated(tmp_path))
        assert eventually((tmp_path / "started").exists)
        wire.half_close()
        witness.sees()
        (tmp_path / "go").touch()
        assert [reply.body for reply in wire.replies_to_the_end()] == [b"served"]


@pytest.mark.parametrize("at", range(0, len(_ECHO), 11))
def test_a_reset_within_a_request_is_no_matter(
    platform: Platform, witness: Witness, at: int
) -> None:
    for before in (b"", _ECHO, get("/healthz")):
        wire = Wire.to(platform.url)
        wire.send(before + _ECHO[:at])
        witness.sees()
        wire.reset()
    witness.sees()


def test_a_reset_while_a_function_runs_stops_it(platform: Platform, tmp_path: Path) -> None:
    wire = Wire.to(platform.url)
    wire.send(gated(tmp_path))
    assert eventually((tmp_path / "started").exists)

    wire.reset()

    assert eventually((tmp_path / "InvocationCancelled").exists)
    assert platform.post("/invoke/gated").body == b"free"


def test_requests_behind_one_that_runs_are_dropped_by_a_reset(
    platform: Platform, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    wire = Wire.to(platform.url)
    counted = post("counted", json.dumps({"file": str(counter)}).encode(), JSON)
    wire.send(gated(tmp_path) + counted * 20)
    assert eventually((tmp_path / "started").exists)

    wire.reset()

    assert eventually((tmp_path / "InvocationCancelled").exists)
    assert platform.post("/invoke/gated").body == b"free"
    assert platform.post("/invoke/counted", {"file": str(tmp_path / "next")}).status == 200
    assert not counter.exists()


def test_resets_within_replies_free_instance_and_memory(platform: Platform) -> None:
    before = pss_kb(platform)

    for _ in range(30):
        wire = Wire.to(platform.url, receive_buffer=65_536)
        wire.send(large())
        assert wire.socket.recv(10) == b"HTTP/1.1 2"
        wire.reset()

    assert platform.post("/invoke/large", {"size": 256}).body == bytes(range(256))
    grown = pss_kb(platform) - before
    assert grown < 5 * TWENTY_MB // 1024, f"{grown} KB after thirty replies of 20 MB"


def test_a_reset_within_a_stream_frees_the_instance(platform: Platform) -> None:
    for _ in range(5):
        wire = Wire.to(platform.url, receive_buffer=65_536)
        wire.send(post("flowing", b"1", JSON))
        assert wire.socket.recv(10) == b"HTTP/1.1 2"
        wire.reset()

        assert platform.post("/invoke/flowing").body == b"free"


def test_an_endless_stream_that_is_not_read_is_not_kept(
    platform: Platform, witness: Witness
) -> None:
    before = pss_kb(platform)

    with Wire.to(platform.url, receive_buffer=65_536) as slow:
        slow.send(post("flowing", b"1", JSON))
        assert slow.socket.recv(10) == b"HTTP/1.1 2"
        for _ in range(5000):
            witness.sees()
        grown = pss_kb(platform) - before

    assert grown < 16_000, f"{grown} KB of a stream that nobody reads"
    assert platform.post("/invoke/flowing").body == b"free"


def test_a_slow_reader_of_a_large_reply_holds_nobody_up(
    platform: Platform, witness: Witness
) -> None:
    before = pss_kb(platform)

    with Wire.to(platform.url, receive_buffer=65_536) as slow, Wire.to(platform.url) as other:
        slow.send(large() + _ECHO)
        assert slow.socket.recv(1, socket.MSG_PEEK) == b"H"
        other.send((_ECHO + get("/healthz")) * 100)
        assert {reply.status for reply in other.replies(200)} == {200}
        assert platform.post("/invoke/large", {"size": 256}).body == bytes(range(256))
        held = pss_kb(platform) - before
        reply, next_reply = slow.reply(), slow.reply()

    assert reply.status == 200
    assert hashlib.sha256(reply.body).digest() == _digest(TWENTY_MB)
    assert next_reply.event == "hi"
    assert held < 3 * TWENTY_MB // 1024, f"{held} KB for a reply of 20 MB"


def _digest(size: int) -> bytes:
    return hashlib.sha256(bytes(range(256)) * (size // 256)).digest()


def test_ten_thousand_idle_connections_cost_little_and_harm_nobody(
    platform: Platform, witness: Witness, capsys: pytest.CaptureFixture[str]
) -> None:
    count = min(_WANTED_IDLE, _descriptors_left(platform))
    half = count // 2
    for _ in range(50):
        platform.post("/invoke/echo", b"hi")
    before = pss_kb(platform)

    with wires(platform, half, "127.0.0.2") as fresh, wires(platform, half, "127.0.0.3") as used:
        witness.sees()
        silent = pss_kb(platform) - before
        for wire in used:
            wire.send(_ECHO)
            assert wire.reply().event == "hi"
        both = pss_kb(platform) - before
        assert platform.post("/invoke/echo", b"hi").json()["event"] == "hi"
        for wire in (*fresh[::50], *used[::50]):
            wire.send(_ECHO + get("/healthz"))
            assert [reply.status for reply in wire.replies(2)] == [200, 200]
    witness.sees()

    with capsys.disabled():
        print(f"\n{2 * half} idle connections: {silent / half:.1f} KB each before", end="")
        print(f" a first request, {(both - silent) / half:.1f} KB each after one")
    assert silent < 64 * half
    assert both < 64 * 2 * half


def _descriptors_left(platform: Platform) -> int:
    """How many connections both ends may have open."""
    assert platform.process is not None
    left = (
        resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] - open_files(pid)
        for pid in (os.getpid(), platform.process.pid)
    )
    return min(left) - _SPARE_DESCRIPTORS


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_a_server_without_free_descriptors_serves_whom_it_has_and_then_others_again(
    platform: Platform, witness: Witness
) -> None:
    assert platform.process is not None
    pid = platform.process.pid
    allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with Wire.to(platform.url) as known:
        known.send(_ECHO)
        assert known.reply().event == "hi"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files(pid) + 20, allowed[1]))
        try:
            with wires(platform, 200):
                for _ in range(20):
                    known.send(_ECHO + get("/healthz"))
                    assert [reply.status for reply in known.replies(2)] == [200, 200]
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
    witness.sees()

    assert platform.post("/invoke/echo", b"hi").json()["event"] == "hi"


def test_a_server_takes_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with Platform(tmp_path) as platform:
            assert platform.process is not None
            assert resource.prlimit(platform.process.pid, resource.RLIMIT_NOFILE)[0] > 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_that_is_told_to_end_does_so_whatever_stands_in_its_connections(
    tmp_path: Path,
) -> None:
    grace = {"FAASD_SHUTDOWN_GRACE_S": "1", "FAASD_WORKER_SHUTDOWN_GRACE_S": "1"}
    with Platform(tmp_path, env=grace) as platform, contextlib.ExitStack() as opened:
        for name, code in {"echo": ECHO, "large": LARGE}.items():
            platform.must_deploy(name, code, limits={"max_instances": 1})
        wires = {}
        for name, one in STALLED.items():
            wires[name] = opened.enter_context(Wire.to(platform.url, receive_buffer=4096))
            wires[name].send(one.first)
        platform.post("/invoke/echo", b"hi")

        platform.stop()

        reader = wires.pop("a reply that is not read")
        assert all(wire.ended() for wire in wires.values())
        assert not _is_whole(reader)


def test_a_server_that_is_told_to_end_answers_what_runs_and_takes_no_more(
    tmp_path: Path,
) -> None:
    with Platform(tmp_path) as platform:
        platform.must_deploy("gated", GATED, limits={"max_instances": 1})
        assert platform.process is not None
        with Wire.to(platform.url) as wire, Wire.to(platform.url) as idle:
            idle.send(get("/healthz"))
            assert idle.reply().status == 200
            wire.send(gated(tmp_path))
            assert eventually((tmp_path / "started").exists)
            platform.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: _refuses(platform))
            (tmp_path / "go").touch()
            (served,) = wire.replies_to_the_end()

            assert (served.status, served.body) == (200, b"served")
            assert idle.rest() == b""
        platform.process.wait(30)


def _refuses(platform: Platform) -> bool:
    try:
        with Wire.to(platform.url):
            return False
    except ConnectionError:
        return True
