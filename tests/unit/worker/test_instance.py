"""The worker's end of an instance's socket, before an instance that is the test's to play."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import math
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faasd.invocation import Invocation, Reply, StartKind, Timings
from faasd.spool import Body, Spool, whole
from functions.runtime import frames
from tests.loops import in_loop, until
from worker.calls import Pending, Running
from worker.instance import LARGE, InstanceLink
from worker.output import OutputPipe
from worker.sandbox import Exit, Meta

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LARGEST = 64 << 20


def meta(request_id: str, headers: dict[str, str] | None = None) -> Meta:
    return (request_id, "", headers or {}, 1, None, False)


@dataclass
class Heard:
    """What the link told."""

    results: list[tuple[int, Body]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    end: Exit | None = None
    pauses: InstanceLink | None = None
    """Whom a chunk fills the window of."""

    def on_result(
        self,
        call: int,
        status: int,
        content_type: str,
        headers: dict[str, str],
        exec_ms: float,
        body: Body,
    ) -> None:
        del status, content_type, headers, exec_ms
        self.results.append((call, body))
        self.events.append(f"result {call}")

    def on_start(
        self, call: int, status: int, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        del status, content_type, headers
        self.events.append(f"start {call}")

    def on_chunk(self, call: int, data: bytes) -> None:
        del data
        self.events.append(f"chunk {call}")
        if self.pauses is not None:
            self.pauses.pause()

    def on_end(self, call: int, exec_ms: float) -> None:
        del exec_ms
        self.events.append(f"end {call}")

    def on_error(self, call: int, problem: dict[str, Any], exec_ms: float) -> None:
        del problem, exec_ms
        self.events.append(f"error {call}")

    def on_printed(self) -> None:
        self.events.append("printed")

    def on_caught_up(self) -> None:
        return

    def on_lost(self) -> None:
        self.events.append("lost")

    def on_closed(self, end: Exit) -> None:
        self.end = end


class Played:
    """An instance that says what the test has it say, and the link to it."""

    def __init__(self, *, worker: bool, reaped: bool) -> None:
        self.heard = Heard()
        self.lines: list[tuple[str, str]] = []
        self.pipes = tuple(OutputPipe(name, self._emit, budget=65_536) for name in ("out", "err"))
        events = running(heard=self.heard) if worker else self.heard
        self.link = InstanceLink("i", events, self.pipes, tags=False, largest=_LARGEST)
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(10)
        self.stream = frames.FrameStream(self.sock)
        self.link.connect(ours)
        if reaped:
            self.link.exited(0)

    def _emit(self, request: str, _stream: str, line: str) -> None:
        self.lines.append((request, line))

    def call(self, *numbers: int, body: Body = b"") -> None:
        self.link.call([(number, meta(f"r{number}"), body) for number in numbers])

    async def read(self) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(None, self.stream.read)

    async def is_marked(self) -> None:
        """What every instance of one call at a time is told first."""
        assert await self.read() == ["mark"]
        os.close(self.stream.file())

    def say(self, *frame: Any, fds: tuple[int, ...] = ()) -> None:
        self.sock.sendmsg(
            [frames.pack(list(frame))],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [],
        )

    def result(self, call: int, body: Any, *fds: int) -> None:
        self.say("result", call, 200, "text/plain", {}, 1.0, body, fds=fds)

    async def is_cut_off(self) -> None:
        await until(lambda: self.heard.end is not None)
        assert self.heard.end is not None
        assert "sent something that is not a reply" in self.heard.end.detail


@contextlib.asynccontextmanager
async def played(*, worker: bool = False, reaped: bool = True) -> AsyncIterator[Played]:
    """With a `worker`'s own events in the place of the test's. `reaped`: how it ended is known."""
    instance = Played(worker=worker, reaped=reaped)
    try:
        yield instance
    finally:
        instance.link.discard()
        instance.sock.close()
        with contextlib.suppress(IndexError):
            while True:
                os.close(instance.stream.file())


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() <= before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory(content: bytes, *, seals: int = _SEALS) -> int:
    fd = os.memfd_create("played", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@contextlib.contextmanager
def opened(*fds: int) -> Iterator[tuple[int, ...]]:
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("size", [1, 1000, LARGE, 1 << 20, 5 << 20])
@in_loop
async def test_a_body_beside_its_frame_is_taken(size: int) -> None:
    body = os.urandom(size)
    async with played() as instance:
        instance.call(1, 2)
        with opened(memory(body)) as fds:
            instance.result(1, size, *fds)
        await until(lambda: instance.heard.results)
        instance.result(2, b"small")
        await until(lambda: len(instance.heard.results) == 2)

        (_, first), (_, second) = instance.heard.results
        assert (whole(first), second) == (body, b"small")
        instance.heard.results.clear()
        del first


@in_loop
async def test_bodies_beside_frames_that_come_together_are_each_their_frames() -> None:
    async with played() as instance:
        instance.call(*range(1, 21))
        for number in range(1, 21):
            with opened(memory(b"%d" % number)) as fds:
                instance.result(number, len(b"%d" % number), *fds)
        await until(lambda: len(instance.heard.results) == 20)
        assert instance.heard.results == [(number, b"%d" % number) for number in range(1, 21)]


def _pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


WRONG = {
    "no descriptor": (lambda: (), 1000),
    "a pipe": (lambda: (_pipe(),), 1000),
    "a folder": (lambda: (os.open("/", os.O_RDONLY),), 1000),
    "a device": (lambda: (os.open("/dev/zero", os.O_RDONLY),), 1000),
    "a file": (lambda: (os.open(__file__, os.O_RDONLY),), 1000),
    "a process": (lambda: (os.pidfd_open(os.getpid()),), 1000),
    "a file in memory that may shrink": (
        lambda: (memory(bytes(1000), seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE),),
        1000,
    ),
    "a file in memory that may change": (
        lambda: (memory(bytes(1000), seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK),),
        1000,
    ),
    "a file in memory without seals": (lambda: (os.memfd_create("played"),), 1000),
    "too short a file": (lambda: (memory(bytes(1000)),), 1001),
    "much too short a file": (lambda: (memory(bytes(1000)),), 5 << 20),
    "a size past the limit": (lambda: (memory(bytes(1000)),), _LARGEST + 1),
    "a size past all limits": (lambda: (memory(bytes(1000)),), 1 << 63),
    "a negative size": (lambda: (memory(bytes(1000)),), -1),
    "more files than one": (lambda: tuple(memory(bytes(1000)) for _ in range(2)), 1000),
    "many more files": (lambda: tuple(memory(bytes(1000)) for _ in range(200)), 1000),
    "a file for a body that is there": (lambda: (memory(bytes(1000)),), b"body"),
    "a size that is true": (lambda: (memory(b"x"),), True),
    "a size with a fraction": (lambda: (memory(b"x"),), 1.0),
    "a size in words": (lambda: (memory(b"x"),), "1"),
    "no size": (lambda: (memory(b"x"),), None),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@in_loop
async def test_a_body_that_is_not_what_it_is_said_to_be_cuts_the_instance_off(wrong: Any) -> None:
    made, size = wrong
    async with played(worker=True) as instance:
        instance.call(1)
        with opened(*made()) as fds:
            instance.result(1, size, *fds)
        await instance.is_cut_off()
        assert instance.heard.results == []


@in_loop
async def test_descriptors_that_belong_to_nothing_cut_the_instance_off() -> None:
    for frame in (["chunk", 1, b"x"], ["end", 1, 1.0], ["printed"], ["attached", {}]):
        async with played() as instance:
            instance.call(1)
            with opened(memory(b"x")) as fds:
                instance.say(*frame, fds=fds)
            await instance.is_cut_off()


@in_loop
async def test_descriptors_are_not_heaped_up_beside_a_frame_that_never_ends() -> None:
    async with played() as instance:
        before = descriptors()
        with opened(memory(b"x")) as fds, contextlib.suppress(BrokenPipeError):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            instance.sock.sendmsg([b"\x00\x10\x00\x00"], rights)
            for _ in range(500):
                instance.sock.sendmsg([b"x"], rights)
                await asyncio.sleep(0)
                assert descriptors() < before + 20
        await instance.is_cut_off()


@pytest.mark.parametrize("size", [1000, 2 << 20])
@in_loop
async def test_the_file_of_a_call_must_hold_the_reply_that_is_said_to_be_in_it(size: int) -> None:
    async with played() as instance:
        instance.call(1, body=bytes(LARGE))
        await instance.is_marked()
        await instance.read()
        with opened(instance.stream.file()) as [fd]:
            os.ftruncate(fd, size - 1)
            instance.result(1, size)
        await instance.is_cut_off()


@in_loop
async def test_a_call_without_a_file_has_no_reply_in_it() -> None:
    async with played() as instance:
        instance.call(1, body=bytes(LARGE))
        instance.call(2)
        instance.result(2, 1000)
        await instance.is_cut_off()


@in_loop
async def test_who_says_again_and_again_that_it_printed_is_cut_off() -> None:
    """It has to wait for an answer each time; these would heap up."""
    async with played() as instance:

        def say_it() -> None:
            with contextlib.suppress(BrokenPipeError):
                for _ in range(10_000):
                    instance.say("printed")

        await asyncio.get_running_loop().run_in_executor(None, say_it)
        await instance.is_cut_off()
        assert instance.heard.events.count("printed") < 10


@in_loop
async def test_who_waits_after_it_printed_may_do_so_again_and_again() -> None:
    async with played() as instance:
        await instance.is_marked()
        for number in range(1, 100):
            instance.call(number)
            assert (await instance.read())[0] == "call"
            instance.say("printed")
            assert await instance.read() == ["go"]
            instance.result(number, b"")
        await until(lambda: len(instance.heard.results) == 99)
        assert instance.heard.end is None


@in_loop
async def test_who_printed_goes_on_only_when_its_stream_is_read_on() -> None:
    async with played() as instance:
        await instance.is_marked()
        instance.call(1)
        await instance.read()
        instance.heard.pauses = instance.link
        instance.sock.sendall(frames.pack(["chunk", 1, b"x"]) + frames.pack(["printed"]))
        instance.say("end", 1, 1.0)
        told = asyncio.ensure_future(instance.read())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not told.done()

        instance.link.resume()

        assert await told == ["go"]
        await until(lambda: "end 1" in instance.heard.events)


@in_loop
async def test_a_call_that_cannot_be_sent_leaves_nothing_behind() -> None:
    """Else it would count as the one that runs, and those after it be neither stopped nor heard."""
    async with played() as instance:
        await instance.is_marked()
        for body in (b"", bytes(LARGE)):
            with pytest.raises(ValueError, match="surrogate"):
                instance.link.call([(1, meta("r1", {"a": "\udc80"}), body)])
        instance.call(2)
        assert (await instance.read())[1][0][0] == 2
        os.write(instance.pipes[0].write_end, b"of the second\n")
        await until(lambda: instance.lines)
        assert instance.lines == [("r2", "of the second")]


@in_loop
async def test_without_a_free_descriptor_a_large_body_goes_in_its_frame() -> None:
    async with played() as instance:
        await instance.is_marked()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spool = Spool()
        spool.write(b"y" * LARGE)
        taken: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 5, hard))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            instance.call(1, body=b"x" * LARGE)
            instance.call(2, body=spool)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        assert (await instance.read())[1][0][2] == b"x" * LARGE
        assert (await instance.read())[1][0][2] == b"y" * LARGE
        del spool


@in_loop
async def test_files_of_calls_serve_again_and_are_given_up_in_the_end() -> None:
    async with played() as instance:
        await instance.is_marked()
        before = descriptors()
        for number in range(1, 200):
            instance.call(number, body=b"%d" % number * LARGE)
            frame = await instance.read()
            fd = instance.stream.file()
            assert os.pread(fd, 3, 0)[:1] == b"%d" % (number // 10 ** (len(str(number)) - 1))
            os.close(fd)
            instance.result(number, b"") if number % 3 else instance.say("error", number, {}, 1.0)
            await until(lambda count=number: len(instance.heard.events) == count)  # type: ignore[misc]
            assert frame[1][0][2] == len(b"%d" % number * LARGE)
            assert descriptors() <= before + 1


@in_loop
async def test_an_instance_that_ends_in_the_midst_of_large_calls_leaves_no_file() -> None:
    for number in range(20):
        async with played() as instance:
            instance.call(1, body=bytes(LARGE))
            instance.call(2, body=bytes(LARGE))
            if number % 2:
                instance.result(1, b"")
                await until(lambda heard=instance.heard: heard.results)  # type: ignore[misc]
            instance.sock.shutdown(socket.SHUT_RDWR)
            await until(lambda heard=instance.heard: heard.end is not None)  # type: ignore[misc]


class Owner:
    """Who is told what became of a call."""

    worker_id = "w"

    def __init__(self, heard: Heard | None = None) -> None:
        self._heard = heard or Heard()

    def timings(self, pending: Pending, exec_ms: float) -> Timings:
        del pending
        return Timings(exec=exec_ms)

    def abandoned(self, pending: Pending) -> None:
        del pending

    def chunks(self, pending: Pending) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def answered(self, pending: Pending, reply: Reply | None, took_s: float | None) -> None:
        del pending, reply, took_s

    def failed(self, pending: Pending, error: Any, *, exec_ms: float) -> None:
        del pending, error, exec_ms

    def user_error(self, problem: dict[str, Any]) -> Any:
        return problem

    def caught_up(self) -> None:
        return

    def instance_lost(self, running: Running) -> None:
        del running

    def instance_closed(self, running: Running, end: Exit) -> None:
        del running
        self._heard.on_closed(end)


class Nobody:
    def answered(self, reply: Reply) -> None:
        del reply

    def failed(self, error: Any) -> None:
        del error


def running(link: InstanceLink | None = None, heard: Heard | None = None) -> Running:
    """An instance that runs the call 1."""
    owner = Owner(heard)
    found = Running(owner, 1, "i", 0.0, (), link)
    invocation = Invocation("r1", "default/f", "", b"")
    found.calls[1] = Pending(1, invocation, Nobody(), owner, 0.0, None, found, StartKind.WARM)
    return found


GOOD: dict[str, Any] = {
    "status": 200, "content_type": "text/plain", "headers": {}, "exec_ms": 1.0, "body": b"",
}  # fmt: skip
BAD: dict[str, list[Any]] = {
    "status": ["200", None, True, 200.0, math.inf, 99, 100, 199, 600, -200],
    "content_type": [None, 5, b"text/plain", ["a"]],
    "headers": [None, [], {1: "a"}, {"a": 1}, {"a": None}, {b"a": b"b"}],
    "exec_ms": ["1", None, math.nan, math.inf, -math.inf, -1.0, [1]],
    "body": [None, "text", 5, [b"x"], {}],
}
FORGED = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("name", "value"), FORGED)
@in_loop
async def test_a_forged_result_is_refused_and_its_call_still_under_way(
    name: str, value: Any
) -> None:
    """So that its caller hears what became of the instance."""
    events = running()
    events.on_result(1, **GOOD)
    assert events.calls == {}
    events = running()

    with pytest.raises((TypeError, ValueError)):
        events.on_result(1, **{**GOOD, name: value})

    assert list(events.calls) == [1]


@pytest.mark.parametrize(
    ("name", "value"), [one for one in FORGED if one[0] in ("status", "content_type", "headers")]
)
@in_loop
async def test_a_forged_beginning_of_a_stream_is_refused(name: str, value: Any) -> None:
    async with played() as instance:
        events = running(instance.link)
        good = {key: GOOD[key] for key in ("status", "content_type", "headers")}

        if (name, value) != ("headers", None):
            with pytest.raises((TypeError, ValueError)):
                events.on_start(1, **{**good, name: value})

            assert events.calls[1].stream is None


@pytest.mark.parametrize("chunk", ["text", None, 5, {}, [b"x"]])
@in_loop
async def test_a_chunk_that_is_none_is_refused(chunk: Any) -> None:
    async with played() as instance:
        events = running(instance.link)
        with contextlib.suppress(NotImplementedError):
            events.on_start(1, 200, "text/plain")

        with pytest.raises((TypeError, ValueError)):
            events.on_chunk(1, chunk)


@pytest.mark.parametrize("took", ["1", None, math.nan, math.inf, -1.0])
@in_loop
async def test_a_forged_end_is_refused_and_its_call_still_under_way(took: Any) -> None:
    events = running()

    with pytest.raises((TypeError, ValueError)):
        events.on_error(1, {"code": "handler_error"}, took)

    assert list(events.calls) == [1]


@in_loop
async def test_what_a_stream_printed_does_not_count_for_the_next_call() -> None:
    for ending in ("on_end", "on_error"):
        events = running()
        events.on_printed()
        if ending == "on_end":
            events.on_end(1, 1.0)
        else:
            events.on_error(1, {}, 1.0)

        assert not events.printed


@in_loop
async def test_an_idle_instance_that_ends_is_told_of_at_once() -> None:
    """Nobody has to hear how it ended, and calls that were sent to it would be lost."""
    async with played(reaped=False) as instance:
        instance.say("attached", {})
        await until(instance.link.attached.done)
        instance.call(1)
        instance.result(1, b"")
        await until(lambda: instance.heard.results)

        instance.sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: instance.heard.end is not None)

        assert instance.heard.end == Exit("ended")
        assert "lost" not in instance.heard.events


@in_loop
async def test_a_busy_instance_that_ends_is_said_to_be_lost_until_it_is_known_how() -> None:
    async with played(reaped=False) as instance:
        instance.say("attached", {})
        await until(instance.link.attached.done)
        instance.call(1)

        instance.sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: instance.heard.events)

        assert instance.heard.events == ["lost"]
        assert instance.heard.end is None
        instance.link.exited(9)
        assert instance.heard.end == Exit("was killed by signal 9")


@in_loop
async def test_the_last_words_of_an_instance_are_those_of_the_call_that_it_ran() -> None:
    async with played() as instance:
        instance.say("attached", {})
        await until(instance.link.attached.done)
        instance.call(1)

        os.write(instance.pipes[1].write_end, b"last words\n")
        instance.link.abandon()

        assert instance.lines == [("r1", "last words")]
