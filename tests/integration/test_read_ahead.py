"""Calls that lie in an instance ahead of their turn, on the real platform.

Whatever becomes of the one that runs (it prints, hangs, is cancelled, or its process is killed), those
behind it are answered as if they had waited in the queue.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.integration.raw_http import Closed, Reply, Wire, post
from tests.platform import Platform, eventually

JSON = b"Content-Type: application/json"
# So many at least are sent ahead, on slow machines too.
_AHEAD = 5

# Short unless it is told otherwise; a gate stays closed until its file is there.
FUNCTION = r"""
import ctypes, os, subprocess, sys, time
libc = ctypes.CDLL(None)

def wait_for(path):
    with open(path + ".started", "w") as file:
        file.write(str(os.getpid()))
    while not os.path.exists(path):
        time.sleep(0.002)

def say(how, word):
    if how == "print":
        print(word + " one")
        print(word + " two")
    elif how == "part":
        print(word, end="")
    elif how == "stderr":
        print(word, file=sys.stderr)
    elif how == "write":
        os.write(1, (word + "\n").encode())
    elif how == "bare":
        os.write(1, word.encode())
    elif how == "both":
        os.write(2, (word + " err\n").encode())
        os.write(1, (word + " out\n").encode())
    elif how == "c":
        libc.puts(word.encode())
        libc.fflush(None)
    elif how == "child":
        subprocess.run(["echo", word], check=True)
    elif how == "shell":
        os.system("echo " + word + " 1>&2")
    elif how == "much":
        for number in range(1500):
            print(word, number, "x" * 60)

def handle(event, context):
    if event is None:
        return os.getpid()
    if "gate" in event:
        try:
            wait_for(event["gate"])
        except BaseException as error:
            with open(event["gate"] + ".ended", "w") as file:
                file.write(type(error).__name__)
            raise
    if "say" in event:
        say(event["say"], event["word"])
    if "spin_s" in event:
        end = time.perf_counter() + event["spin_s"]
        try:
            while time.perf_counter() < end:
                pass
        except BaseException as error:
            return "spoiled by " + type(error).__name__
    if event.get("raise"):
        raise ValueError(event["raise"])
    return event.get("word", os.getpid())
"""

STREAM = (
    FUNCTION.replace("def handle(", "def answer(")
    + r"""
def handle(event, context):
    if event is not None and "stream" in event:
        return parts(event)
    return answer(event, context)

def parts(event):
    for number in range(event["stream"]):
        yield "x" * 60_000
"""
)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    # A handler that ignores its cancellation would be noticed by who waits for it.
    grace = {"FAASD_WORKER_CANCEL_GRACE_S": "60"}
    with Platform(tmp_path_factory.mktemp("read-ahead"), env=grace) as platform:
        yield platform


@pytest.fixture(autouse=True)
def _service_is_unharmed(platform: Platform) -> Iterator[None]:
    before = len(platform.log)
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    assert [entry for entry in platform.log[before:] if entry.get("level") == "error"] == []


@pytest.fixture
def ahead(platform: Platform, tmp_path: Path) -> Iterator[Callable[..., Ahead]]:
    """Functions of one instance that have so far answered shortly; each is removed at the end."""
    with ExitStack() as stack:

        def deploy(code: str = FUNCTION, **limits: Any) -> Ahead:
            return stack.enter_context(Ahead(platform, tmp_path, code, **limits))

        yield deploy


class Ahead:
    """A function of one instance, and callers of it."""

    _numbers = itertools.count(1)

    def __init__(self, platform: Platform, folder: Path, code: str, **limits: Any) -> None:
        self.platform = platform
        self.name = f"ahead-{next(self._numbers)}"
        self._folder = folder
        self._gates = itertools.count(1)
        self._proof = 64
        self._stack = ExitStack()
        platform.must_deploy(
            self.name, code, limits={"max_instances": 1, "timeout_s": 60, **limits}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        assert self.platform.request("DELETE", f"/v1/functions/{self.name}").status == 204

    def ask(self, event: Any = None, *lines: bytes) -> bytes:
        return post(self.name, json.dumps(event).encode(), JSON, *lines)

    def sent(self, event: Any = None, *lines: bytes) -> Wire:
        """A call under way, of a caller of its own."""
        wire = self._stack.enter_context(Wire.to(self.platform.url, patience_s=30))
        wire.send(self.ask(event, *lines))
        return wire

    def pid(self) -> int:
        return int(self.platform.post(f"/invoke/{self.name}").json())

    def prove(self) -> None:
        """Have it answer shortly so often that calls are sent ahead again."""
        with Wire.to(self.platform.url) as wire:
            for _ in range(2 + self._proof // 50):
                wire.send(self.ask() * 50)
                assert {reply.status for reply in wire.replies(50)} == {200}

    def behind(
        self, events: list[dict[str, Any]], *, first: dict[str, Any] | None = None
    ) -> tuple[Path, list[Wire]]:
        """A call that runs until its gate, a file, is there, and others that lie ahead behind it.

        They have the ids `NAME-0` (which runs), `NAME-1` and so on.
        """
        for _ in range(6):
            self.prove()
            gate = self._folder / f"{self.name}-gate-{next(self._gates)}"
            wires = [self._numbered(0, {**(first or {}), "gate": str(gate)})]
            assert eventually(Path(f"{gate}.started").exists)
            for number, event in enumerate(events, 1):
                wires.append(self._numbered(number, event))
                assert eventually(lambda count=number: self.outstanding() == 1 + count)  # type: ignore[misc]
            # What took longer than usual, be it for the machine's sake, ends the reading ahead.
            self._proof *= 2
            if self._queued() == 0:
                return gate, wires
            gate.touch()
            for wire in wires:
                wire.reply()
        raise AssertionError("nothing was sent ahead")

    def _numbered(self, number: int, event: dict[str, Any]) -> Wire:
        return self.sent(event, f"Faasd-Request-Id: {self.name}-{number}".encode())

    def cancelled(self) -> int:
        """How many callers were seen leaving."""
        for line in self.platform.get("/metrics").body.decode().splitlines():
            if f'"default/{self.name}"' in line and 'outcome="cancelled"' in line:
                return int(float(line.rpartition(" ")[2]))
        return 0

    def outstanding(self) -> int:
        [worker] = self.platform.get("/v1/workers").json()["workers"]
        return int(worker["outstanding"])

    def _queued(self) -> int:
        [worker] = self.platform.get("/v1/workers").json()["workers"]
        return sum(
            int(one["queued"])
            for one in worker["functions"]
            if one["function"] == f"default/{self.name}"
        )

    def lines(self) -> dict[str, list[str]]:
        return printed(self.platform, self.name)


def printed(platform: Platform, name: str) -> dict[str, list[str]]:
    """What each request of a function printed."""
    found: dict[str, list[str]] = {}
    for line in platform.logs(name, tail=10_000):
        found.setdefault(line["request_id"], []).append(line["line"])
    return found


# What each way of printing a word comes to.
SAYINGS: dict[str, Callable[[str], list[str]]] = {
    "print": lambda word: [f"{word} one", f"{word} two"],
    "part": lambda word: [word],
    "stderr": lambda word: [word],
    "write": lambda word: [word],
    "bare": lambda word: [word],
    "both": lambda word: [f"{word} err", f"{word} out"],
    "c": lambda word: [word],
    "child": lambda word: [word],
    "shell": lambda word: [word],
    "much": lambda word: [f"{word} {number} {'x' * 60}" for number in range(1500)],
}


@pytest.mark.parametrize("order", range(8))
def test_what_a_call_printed_is_its_own(ahead: Callable[..., Ahead], order: int) -> None:
    function = ahead()
    ways = random.Random(order).sample([*SAYINGS, "", "", ""], _AHEAD)
    events: list[dict[str, Any]] = [
        {"say": how, "word": f"word{number}"} if how else {"word": f"word{number}"}
        for number, how in enumerate(ways, 1)
    ]

    gate, wires = function.behind(events, first={"say": "print", "word": "word0"})
    gate.touch()
    bodies = [wire.reply().body.decode() for wire in wires]

    assert bodies == [f"word{number}" for number in range(len(wires))]
    wanted = {f"{function.name}-0": ["word0 one", "word0 two"]}
    for number, how in enumerate(ways, 1):
        if how:
            wanted[f"{function.name}-{number}"] = SAYINGS[how](f"word{number}")
    assert eventually(lambda: len(function.lines()) >= len(wanted))
    found = {request: sorted(lines) for request, lines in function.lines().items()}
    assert found == {request: sorted(lines) for request, lines in wanted.items()}


@pytest.mark.parametrize("how", ["print", "write", "child"])
def test_what_follows_a_stream_prints_for_itself_however_slowly_that_is_read(
    ahead: Callable[..., Ahead], how: str
) -> None:
    function = ahead(STREAM)
    events: list[dict[str, Any]] = [
        {"stream": 100},
        {"say": how, "word": "later"},
        {"word": "silent"},
    ]

    gate, wires = function.behind(events)
    gate.touch()
    opened, streaming, *others = wires
    assert opened.reply().status == 200
    assert len(streaming.reply().body) == 100 * 60_000
    assert [wire.reply().body for wire in others] == [b"later", b"silent"]
    assert eventually(lambda: len(function.lines()) > 0)
    assert function.lines() == {f"{function.name}-2": SAYINGS[how]("later")}


def test_an_error_in_the_midst_is_told_to_its_own_caller(ahead: Callable[..., Ahead]) -> None:
    function = ahead()
    events = [{"word": "one"}, {"raise": "two"}, {"word": "three"}]

    gate, wires = function.behind(events, first={"raise": "zero"})
    gate.touch()
    replies = [wire.reply() for wire in wires]

    assert [reply.status for reply in replies] == [500, 200, 500, 200]
    assert b"ValueError: two" in replies[2].body
    assert [replies[1].body, replies[3].body] == [b"one", b"three"]


def test_a_killed_instance_takes_only_the_call_that_ran(ahead: Callable[..., Ahead]) -> None:
    function = ahead()
    pid = function.pid()
    gate, [running, *others] = function.behind([{"word": f"word{n}"} for n in range(_AHEAD)])

    os.kill(pid, signal.SIGKILL)

    died = running.reply()
    assert (died.status, died.json()["code"]) == (502, "instance_died")
    assert "signal 9" in died.json()["detail"]
    assert [wire.reply().body for wire in others] == [b"word%d" % n for n in range(_AHEAD)]
    assert function.pid() != pid
    assert not gate.exists()


def test_a_call_that_hangs_is_ended_alone(ahead: Callable[..., Ahead]) -> None:
    function = ahead(timeout_s=1)
    _gate, [running, *others] = function.behind([{"word": f"word{n}"} for n in range(_AHEAD)])

    late = running.reply()

    assert (late.status, late.json()["code"]) == (504, "function_timeout")
    assert [wire.reply().body for wire in others] == [b"word%d" % n for n in range(_AHEAD)]


def test_a_call_ahead_has_its_own_time(ahead: Callable[..., Ahead]) -> None:
    """It begins when its turn comes, not when it was sent ahead."""
    function = ahead(timeout_s=2)
    gate, [running, second, third] = function.behind([{"spin_s": 1.2}, {"spin_s": 1.2}])
    threading.Timer(1.2, gate.touch).start()

    assert [wire.reply().status for wire in (running, second, third)] == [200, 200, 200]


def test_a_call_whose_caller_leaves_while_it_lies_ahead_harms_no_other(
    ahead: Callable[..., Ahead],
) -> None:
    function = ahead()
    pid = function.pid()
    gate, wires = function.behind([{"word": f"word{n}"} for n in range(1, 6)])
    for number in (1, 3, 5):
        wires[number].reset()
    assert eventually(lambda: function.cancelled() == 3)

    gate.touch()

    assert wires[0].reply().status == 200
    for number in (2, 4):
        assert wires[number].reply().body == b"word%d" % number
    assert function.pid() == pid


def test_a_deadline_that_passes_while_a_call_lies_ahead_is_told_at_once(
    ahead: Callable[..., Ahead],
) -> None:
    function = ahead()
    pid = function.pid()
    gate, [running, *others] = function.behind([{"word": "one"}])
    late = function.sent({"word": "late"}, b"Faasd-Deadline-Ms: 200")
    last = function.sent({"word": "last"})

    refused = late.reply()
    assert (refused.status, refused.json()["code"]) == (504, "deadline_exceeded")
    gate.touch()

    assert running.reply().status == 200
    assert [wire.reply().body for wire in (*others, last)] == [b"one", b"last"]
    assert function.pid() == pid


@pytest.mark.parametrize("size", [0, 100_000, 300_000], ids=["small", "100 KB", "in a file"])
def test_a_cancelled_call_is_stopped_and_those_behind_it_are_served(
    ahead: Callable[..., Ahead], size: int
) -> None:
    function = ahead()
    pid = function.pid()
    events = [{"word": f"word{n}", "padding": "x" * size} for n in range(5)]
    gate, [running, *others] = function.behind(events)

    running.reset()

    assert [wire.reply().body for wire in others] == [b"word%d" % n for n in range(5)]
    assert Path(f"{gate}.ended").read_text() == "InvocationCancelled"
    assert function.pid() == pid


def test_a_call_cancelled_as_it_begins_is_stopped(ahead: Callable[..., Ahead]) -> None:
    """The signal may come before the handler runs; it must not be lost."""
    function = ahead()
    pid = function.pid()
    chance = random.Random(1)

    for number in range(300):
        wire = Wire.to(function.platform.url)
        wire.send(function.ask({"spin_s": 1000}))
        for _ in range(chance.randrange(0, 400)):
            pass
        if number % 3:
            wire.socket.setblocking(False)
        wire.reset()
        assert function.pid() == pid


def test_a_cancellation_never_hits_the_successor(ahead: Callable[..., Ahead]) -> None:
    """Callers leave about when their calls end, while others lie right behind."""
    function = ahead()
    chance = random.Random(2)
    function.prove()

    for _ in range(300):
        leaving = Wire.to(function.platform.url)
        leaving.send(function.ask({"spin_s": chance.random() * 0.002}))
        others = [function.sent({"spin_s": 0.0003, "word": f"{n}"}) for n in range(3)]
        for _ in range(chance.randrange(0, 40_000)):
            pass
        leaving.reset()
        assert [wire.reply().body for wire in others] == [b"0", b"1", b"2"]
        for wire in others:
            wire.socket.close()


class Load:
    """Many callers at once, each of which asks again as soon as it is answered."""

    def __init__(self, platform: Platform, raw: bytes, count: int) -> None:
        self._raw = raw
        self._platform = platform
        self._stop = threading.Event()
        self._wires = [Wire.to(platform.url, patience_s=30) for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._ask, args=(self._wires[n::8],)) for n in range(8)
        ]
        self.replies: Counter[str] = Counter()
        self.pids: Counter[int] = Counter()
        self.faults: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        for wire in self._wires:
            wire.socket.close()

    def _ask(self, wires: list[Wire]) -> None:
        try:
            for wire in wires:
                wire.send(self._raw)
            while not self._stop.is_set():
                for wire in wires:
                    self._note(wire.reply())
                    wire.send(self._raw)
            for wire in wires:
                self._note(wire.reply())
        except (AssertionError, OSError, Closed) as error:
            self.faults.append(repr(error))

    def _note(self, reply: Reply) -> None:
        if reply.status == 200:
            self.replies["ok"] += 1
            self.pids[reply.json()] += 1
        else:
            self.replies[f"{reply.status} {reply.json()['code']}"] += 1


def test_what_is_printed_under_load_is_each_calls_own(platform: Platform) -> None:
    """Of 64 callers at once, each prints now and then what names its own request."""
    chance = random.Random(4)
    numbers = itertools.count(1)
    platform.must_deploy("talks", FUNCTION, limits={"max_instances": 2})
    wanted: dict[str, list[str]] = {}

    with ExitStack() as stack:
        wires = [stack.enter_context(Wire.to(platform.url, patience_s=30)) for _ in range(64)]
        for turn in range(100):
            for wire in wires:
                event: dict[str, Any] = {}
                request = f"r-{next(numbers)}"
                if turn % 10 == 9 and chance.random() < 0.5:
                    how = chance.choice(["print", "part", "stderr", "write", "bare", "c"])
                    event = {"say": how, "word": request}
                    wanted[request] = SAYINGS[how](request)
                identity = f"Faasd-Request-Id: {request}".encode()
                wire.send(post("talks", json.dumps(event).encode(), JSON, identity))
            assert {wire.reply().status for wire in wires} == {200}

    assert eventually(lambda: len(printed(platform, "talks")) >= len(wanted))
    assert printed(platform, "talks") == wanted


@pytest.mark.parametrize("size", [0, 300_000], ids=["small", "in files"])
def test_kills_under_load_cost_one_call_each(platform: Platform, size: int) -> None:
    kills = 20
    name = f"killed-{size}"
    platform.must_deploy(name, FUNCTION, limits={"max_instances": 3})
    raw = post(name, json.dumps({"padding": "x" * size}).encode(), JSON)

    with Load(platform, raw, 64) as load:
        for _ in range(kills):
            before = load.replies["ok"]
            assert eventually(lambda seen=before: load.replies["ok"] > seen + 300)  # type: ignore[misc]
            load.pids.clear()
            assert eventually(lambda: load.pids)
            pid = max(load.pids, key=lambda one: load.pids[one])
            os.kill(pid, signal.SIGKILL)

    assert load.faults == []
    assert set(load.replies) <= {"ok", "502 instance_died"}
    assert load.replies["502 instance_died"] <= kills
    assert load.replies["ok"] > 300 * kills
