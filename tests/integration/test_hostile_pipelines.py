"""Requests cut anywhere, glued together, and sent ahead of their replies, on the real platform.

However the bytes of a connection's requests are dealt out to segments, each request gets its own
reply, whole and in turn, and one that is slow holds up its own connection alone.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.raw_http import (
    ECHO,
    Reply,
    Wire,
    Witness,
    get,
    make,
    post,
    post_chunked,
)
from tests.platform import Platform, eventually

JSON = b"Content-Type: application/json"

ITEMS = """
def handle(event, context):
    for number in range(event):
        yield {"item": number}
"""

STATUS = """
def handle(event, context):
    return context.response("not to be seen", status=event)
"""

LARGE = """
def handle(event, context):
    return event["letter"].encode() * event["size"]
"""

FAILING = """
def handle(event, context):
    raise ValueError("as told")
"""

# Says that it runs, and runs until a file named `go` is there.
GATED = """
import os, time

def handle(event, context):
    with open(event["folder"] + "/started", "a") as file:
        file.write("x")
    while not os.path.exists(event["folder"] + "/go"):
        time.sleep(0.005)
    return "served"
"""

LAST = post("echo", b"last", b"Connection: close")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("hostile-pipelines")) as platform:
        functions = {
            "echo": ECHO,
            "items": ITEMS,
            "status": STATUS,
            "large": LARGE,
            "failing": FAILING,
            "gated": GATED,
        }
        for name, code in functions.items():
            platform.must_deploy(name, code, limits={"max_instances": 2})
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


def large(letter: str, size: int) -> bytes:
    return post("large", json.dumps({"letter": letter, "size": size}).encode(), JSON)


@dataclass(frozen=True)
class Step:
    """A request, and whether a reply is the one to it."""

    raw: bytes
    answers: Callable[[Reply], bool]
    is_head: bool = False


def echoed(text: str) -> Callable[[Reply], bool]:
    return lambda reply: reply.status == 200 and reply.event == text


def told(status: int, code: str) -> Callable[[Reply], bool]:
    return lambda reply: reply.status == status and reply.json()["code"] == code


def said(body: bytes) -> Callable[[Reply], bool]:
    return lambda reply: reply.status == 200 and reply.body == body


# What may stand in a pipeline: each from a number that is its own.
KINDS: dict[str, Callable[[int], Step]] = {
    "echo": lambda n: Step(post("echo", b"e%d" % n), echoed(f"e{n}")),
    "named": lambda n: Step(
        post("echo", b"i%d" % n, b"Faasd-Request-Id: id-%d" % n),
        lambda reply: reply.headers["faasd-request-id"] == f"id-{n}" and reply.event == f"i{n}",
    ),
    "unnamed headers": lambda n: Step(
        post("echo", b"h%d" % n, *[b"X-%d: %d" % (m, n) for m in range(20)]),
        lambda reply: set(reply.json()["headers"].values()) == {str(n)},
    ),
    "chunked": lambda n: Step(post_chunked("echo", b"c", b"%d" % n), echoed(f"c{n}")),
    "empty": lambda n: Step(
        post("echo", b"", b"X-N: %d" % n),
        lambda reply: reply.event is None and reply.json()["headers"] == {"x-n": str(n)},
    ),
    "100 KB": lambda n: Step(
        post("echo", b"%07d" % n * 15_000), lambda reply: reply.event == f"{n:07d}" * 15_000
    ),
    "stream": lambda n: Step(
        post("items", b"%d" % (n % 5 + 1), JSON),
        said(b"".join(b'{"item":%d}\n' % m for m in range(n % 5 + 1))),
    ),
    "events": lambda n: Step(
        post("items", b"2", JSON, b"Accept: text/event-stream"),
        lambda reply: reply.body.count(b"data: ") == 2,
    ),
    "large reply": lambda n: Step(
        large("abcdefg"[n % 7], 300_000), said(b"abcdefg"[n % 7 :][:1] * 300_000)
    ),
    "no content": lambda n: Step(
        post("status", b"204", JSON), lambda reply: reply.status == 204 and not reply.body
    ),
    "not modified": lambda n: Step(post("status", b"304", JSON), lambda reply: reply.status == 304),
    "status of its own": lambda n: Step(
        post("status", b"%d" % (400 + n % 50), JSON),
        lambda reply: (reply.status, reply.body) == (400 + n % 50, b"not to be seen"),
    ),
    "healthz": lambda n: Step(get("/healthz"), said(b'{"status": "ok"}')),
    "unknown function": lambda n: Step(post("nobody", b"x"), told(404, "function_not_found")),
    "impossible name": lambda n: Step(post("A_b", b"x"), told(400, "bad_request")),
    "unknown address": lambda n: Step(get(f"/nothing-{n}"), told(404, "not_found")),
    "broken JSON": lambda n: Step(post("echo", b"{", JSON), told(400, "bad_request")),
    "failing": lambda n: Step(post("failing", b"x"), told(500, "handler_error")),
    "late": lambda n: Step(
        post("echo", b"x", b"Faasd-Deadline-Ms: 0"), told(504, "deadline_exceeded")
    ),
    "wrong method": lambda n: Step(make("PUT /invoke/echo", b"x"), told(405, "bad_request")),
    "HEAD": lambda n: Step(
        make("HEAD /invoke/echo", b""), lambda reply: reply.status == 405, is_head=True
    ),
    "expecting": lambda n: Step(post("echo", b"x%d" % n, b"Expect: 100-continue"), echoed(f"x{n}")),
    "websocket": lambda n: Step(
        post("echo", b"w%d" % n, b"Connection: Upgrade", b"Upgrade: websocket"), echoed(f"w{n}")
    ),
    "HTTP/1.0 that stays": lambda n: Step(
        post("echo", b"o%d" % n, b"Connection: keep-alive", version=b"1.0"), echoed(f"o{n}")
    ),
    "key that is repeated": lambda n: Step(
        post("echo", b"k", b"Idempotency-Key: the same"),
        lambda reply: reply.event == "k",
    ),
}


# Kinds after which the connection is still the front's.
_FRONTS = {
    "echo", "named", "unnamed headers", "chunked", "empty", "100 KB", "stream", "events",
    "large reply", "no content", "not modified", "status of its own", "unknown function",
    "broken JSON", "failing",
}  # fmt: skip


def follow(wire: Wire, steps: list[Step]) -> None:
    """Reads the reply to each in turn."""
    for number, step in enumerate(steps):
        reply = wire.reply(to_head=step.is_head)
        assert step.answers(reply), (number, step.raw[:200], reply)


def end_of(kinds: list[str]) -> int | None:
    """How many are served before the connection ends, if it does: with chunks that aiohttp gets."""
    passed_on = False
    for number, kind in enumerate(kinds, 1):
        if passed_on and kind == "chunked":
            return number
        passed_on = passed_on or kind not in _FRONTS
    return None


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_requests_sent_at_once_are_answered_in_their_order(platform: Platform, count: int) -> None:
    steps = [KINDS["named"](number) for number in range(count)]

    with Wire.to(platform.url) as wire:
        wire.send(b"".join(step.raw for step in steps))
        follow(wire, steps)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "echo"])
def test_each_kind_of_request_keeps_its_place_among_others(platform: Platform, kind: str) -> None:
    kinds = ["echo", "chunked", kind, "echo", kind, kind, "healthz", kind, "echo", kind, "echo"]
    steps = [KINDS[one](number) for number, one in enumerate(kinds)]

    with Wire.to(platform.url) as wire:
        wire.send(b"".join(step.raw for step in steps))
        follow(wire, steps[: end_of(kinds)])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_requests_in_many_small_segments_are_answered(platform: Platform, size: int) -> None:
    kinds = ["echo", "chunked", "healthz", "named", "empty", "stream", "unknown function", "echo"]
    steps = [KINDS[kind](number) for number, kind in enumerate(kinds)]
    raw = b"".join(step.raw for step in steps)

    with Wire.to(platform.url) as wire:
        for at in range(0, len(raw), size):
            wire.send(raw[at : at + size])
        follow(wire, steps)


_SMALL = post("echo", b"body", b"X-A: b")
_SMALL_CHUNKED = post_chunked("echo", b"bo", b"dy")


@pytest.mark.parametrize("at", range(1, len(_SMALL)))
def test_a_request_in_two_segments_is_served_wherever_it_is_cut(
    platform: Platform, witness: Witness, at: int
) -> None:
    with Wire.to(platform.url) as wire:
        for _ in range(2):
            witness.deliver(wire, [_SMALL[:at], _SMALL[at:]])
            reply = wire.reply()
            assert (reply.event, reply.json()["headers"]) == ("body", {"x-a": "b"})


@pytest.mark.parametrize("at", range(1, len(_SMALL_CHUNKED)))
def test_a_chunked_request_in_two_segments_is_served_wherever_it_is_cut(
    platform: Platform, witness: Witness, at: int
) -> None:
    with Wire.to(platform.url) as wire:
        for _ in range(2):
            witness.deliver(wire, [_SMALL_CHUNKED[:at], _SMALL_CHUNKED[at:]])
            assert wire.reply().event == "body"


def test_a_segment_with_requests_and_a_part_of_the_next_is_served_wherever_it_is_cut(
    platform: Platform, witness: Witness
) -> None:
    steps = [
        KINDS[kind](number) for number, kind in enumerate(["named", "echo", "chunked", "echo"])
    ]
    raw = b"".join(step.raw for step in steps)

    with Wire.to(platform.url) as wire:
        for at in range(1, len(raw)):
            witness.deliver(wire, [raw[:at], raw[at:]])
            follow(wire, steps)


def test_a_request_in_three_segments_is_served_wherever_it_is_cut(
    platform: Platform, witness: Witness
) -> None:
    cuts = [(a, b) for a in range(1, len(_SMALL), 9) for b in range(a + 1, len(_SMALL), 9)]

    with Wire.to(platform.url) as wire:
        for a, b in cuts:
            witness.deliver(wire, [_SMALL[:a], _SMALL[a:b], _SMALL[b:] + _SMALL])
            assert [reply.event for reply in wire.replies(2)] == ["body", "body"], (a, b)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=8),
)
def test_any_requests_cut_anywhere_are_answered_in_their_order(
    platform: Platform, witness: Witness, kinds: list[str], cuts: list[float]
) -> None:
    end = end_of(kinds)
    # A connection that ends with anything unread takes the replies with it that were not fetched.
    steps = [KINDS[kind](number) for number, kind in enumerate(kinds[:end])]
    raw = b"".join(step.raw for step in steps)
    places = sorted({0, len(raw), *(int(cut * len(raw)) for cut in cuts)})
    pieces = [raw[a:b] for a, b in itertools.pairwise(places)]

    with Wire.to(platform.url) as wire:
        witness.deliver(wire, pieces if end else [*pieces, LAST])
        follow(wire, steps)
        behind = wire.replies_to_the_end()

    assert [reply.event for reply in behind] == ([] if end else ["last"])


_CLOSING = {
    "told to close": post("echo", b"close", b"Connection: close"),
    "told to close, with chunks": post_chunked("echo", b"close", lines=(b"Connection: close",)),
    "HTTP/1.0": post("echo", b"close", version=b"1.0"),
}


@pytest.mark.parametrize("closing", _CLOSING.values(), ids=_CLOSING)
def test_nothing_behind_a_request_that_ends_the_connection_is_served(
    platform: Platform, witness: Witness, tmp_path: Path, closing: bytes
) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(gated(tmp_path) + _SMALL + closing)
        assert eventually((tmp_path / "started").exists)
        witness.deliver(wire, [_SMALL])
        (tmp_path / "go").touch()
        served, *others = wire.replies_to_the_end()

    assert (served.status, served.body) == (200, b"served")
    assert [reply.status for reply in others] == [200, 200]
    assert [reply.event for reply in others] == ["body", "close"]


@pytest.mark.parametrize("closing", _CLOSING.values(), ids=_CLOSING)
def test_a_request_that_ends_the_connection_is_served_whatever_is_behind_it(
    platform: Platform, closing: bytes
) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(_SMALL + closing + _SMALL)
        replies = wire.replies_to_the_end()

    assert [reply.status for reply in replies] == [200, 200]
    assert [reply.event for reply in replies] == ["body", "close"]


def test_what_is_broken_is_refused_once_all_before_it_is_answered(
    platform: Platform, witness: Witness, tmp_path: Path
) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(gated(tmp_path))
        assert eventually((tmp_path / "started").exists)
        witness.deliver(wire, [_SMALL, _SMALL, b"BROKEN\r\n\r\n", _SMALL])
        (tmp_path / "go").touch()
        served, *echoes, refused = wire.replies_to_the_end()

    assert (served.body, [reply.event for reply in echoes]) == (b"served", ["body", "body"])
    assert refused.status == 400


def test_a_slow_function_holds_up_its_own_connection_alone(
    platform: Platform, witness: Witness, tmp_path: Path
) -> None:
    behind = [KINDS[kind](number) for number, kind in enumerate(["echo", "healthz", "stream"] * 5)]

    with Wire.to(platform.url) as wire, Wire.to(platform.url) as other:
        wire.send(gated(tmp_path) + b"".join(step.raw for step in behind))
        assert eventually((tmp_path / "started").exists)
        other.send(b"".join(step.raw for step in behind))
        follow(other, behind)
        witness.sees()
        assert not wire.ended()
        (tmp_path / "go").touch()
        assert wire.reply().body == b"served"
        follow(wire, behind)


def test_requests_behind_a_slow_one_wait_at_their_sender(
    platform: Platform, witness: Witness, tmp_path: Path
) -> None:
    """A hundred megabytes behind a function that does not end: the server reads on when it can use
    them, and then serves all."""
    assert platform.process is not None
    step = Step(post("echo", b"x" * 100_000), lambda reply: len(reply.event) == 100_000)
    with Wire.to(platform.url) as wire:
        wire.send(gated(tmp_path))
        assert eventually((tmp_path / "started").exists)
        before = pss_kb(platform.process.pid)
        sent: list[int] = []
        sender = threading.Thread(target=_send_each, args=(wire, step.raw, 1000, sent))
        sender.start()
        _stall(witness, sent)
        grown = pss_kb(platform.process.pid) - before
        stalled_at = len(sent)
        (tmp_path / "go").touch()
        assert wire.reply().body == b"served"
        follow(wire, [step] * 1000)
        sender.join(10)

    assert stalled_at < 1000
    assert grown < 32_000, f"{grown} KB for {stalled_at} requests that waited"


def _echoing(size: int) -> Step:
    text = "x" * size
    return Step(post("echo", text.encode()), echoed(text))


_MEGABYTE = 1_000_000
_LARGE = {
    "plain": [_echoing(_MEGABYTE)],
    "chunked": [Step(post_chunked("echo", *[b"x" * 100_000] * 10), echoed("x" * _MEGABYTE))],
    "refused": [Step(make("PUT /invoke/echo", bytes(_MEGABYTE)), told(405, "bad_request"))],
    "300 KB behind another call": [KINDS["healthz"](0), _echoing(300_000)],
    "600 KB behind another call": [KINDS["healthz"](0), _echoing(600_000)],
}
_LARGE["plain and chunked"] = _LARGE["plain"] + _LARGE["chunked"]
_LARGE["mixed"] = [
    step for name, steps in _LARGE.items() if "chunked" not in name for step in steps
]


@pytest.mark.parametrize("steps", _LARGE.values(), ids=_LARGE)
def test_large_requests_behind_a_slow_one_are_all_served(
    platform: Platform, witness: Witness, tmp_path: Path, steps: list[Step]
) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(gated(tmp_path))
        assert eventually((tmp_path / "started").exists)
        sent: list[int] = []
        raw = b"".join(step.raw for step in steps * 2)
        sender = threading.Thread(target=_send_each, args=(wire, raw, 1, sent))
        sender.start()
        _stall(witness, sent)
        (tmp_path / "go").touch()
        assert wire.reply().body == b"served"
        follow(wire, steps * 2)
        sender.join(10)


def _send_each(wire: Wire, raw: bytes, count: int, sent: list[int]) -> None:
    for number in range(count):
        wire.send(raw)
        sent.append(number)


def _stall(witness: Witness, sent: list[int]) -> None:
    """Until nothing more has been sent over two hundred requests of another connection."""
    unchanged, last = 0, -1
    while unchanged < 200:
        witness.sees()
        unchanged, last = (unchanged + 1 if len(sent) == last else 0), len(sent)


def pss_kb(pid: int) -> int:
    """The process's share of memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError
