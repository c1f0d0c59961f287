"""An instance that serves one call after the other, as a process, with a worker of the test's own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.functions.nodes import Instance, Zygote

CODE = """
import os, time

def handle(event, context):
    if event is None:
        return os.getpid()
    if isinstance(event, bytes):
        return len(event)
    if "files" in event:
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return b"x" * event["files"]
    if "say" in event:
        print(event["say"])
    if "stream" in event:
        return parts(event)
    if "started" in event:
        open(event["started"], "w").close()
        while True:
            time.sleep(0.001)
    if "spin_s" in event:
        end = time.perf_counter() + event["spin_s"]
        while time.perf_counter() < end:
            pass
    return event

def parts(event):
    for number in range(event["stream"]):
        yield str(number)
    if event.get("raise"):
        raise ValueError("in its midst")
"""
JSON = {"content_type": "application/json"}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("serial")) as zygote:
        yield zygote


@pytest.fixture
def instance(zygote: Zygote) -> Instance:
    return zygote.template({"handler.py": CODE}).must_be_ready().instance()


@pytest.fixture
def mark(instance: Instance) -> Iterator[int]:
    fd = instance.mark()
    yield fd
    os.close(fd)


def kinds(instance: Instance, count: int) -> list[str]:
    return [str(instance.frame()[0]) for _ in range(count)]


def test_calls_sent_ahead_are_answered_in_their_order(instance: Instance) -> None:
    calls = [instance.send(b'{"n": %d}' % number, **JSON) for number in range(50)]

    frames = [instance.frame() for _ in calls]

    assert [(kind, call) for kind, call, *_ in frames] == [("result", call) for call in calls]
    assert [frame[-1] for frame in frames] == [b'{"n":%d}' % number for number in range(50)]


@pytest.mark.parametrize("fails", ["", ', "raise": true'])
def test_after_a_stream_the_next_call_waits_until_all_of_it_was_read(
    instance: Instance, fails: str
) -> None:
    """Else what that prints would be read while the stream's end lies unread, and be the stream's."""
    instance.send(b'{"stream": 2%b}' % fails.encode(), **JSON)
    instance.send(b"{}", **JSON)

    assert kinds(instance, 4) == ["start", "chunk", "chunk", "printed"]
    assert instance.is_silent()
    instance.tell("go")
    assert kinds(instance, 2) == ["error" if fails else "end", "result"]


def test_what_lies_ahead_is_kept_while_it_waits_to_go_on(instance: Instance) -> None:
    instance.send(b'{"stream": 1}', **JSON)
    assert kinds(instance, 3) == ["start", "chunk", "printed"]
    for number in range(3):
        instance.send(b'{"n": %d}' % number, **JSON)

    instance.tell("go")

    assert kinds(instance, 1) == ["end"]
    assert [instance.frame()[-1] for _ in range(3)] == [b'{"n":%d}' % n for n in range(3)]


def test_a_call_that_runs_is_stopped(instance: Instance, mark: int, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    call = instance.send(b'{"started": "%s"}' % str(begun).encode(), **JSON)
    while not begun.exists():
        pass

    instance.stop(call, mark)

    answer = instance.answer()
    assert (answer.kind, answer.problem["code"]) == ("error", "cancelled")
    assert instance.call(b"{}", **JSON).body == b"{}"


def test_a_call_that_is_stopped_before_it_begins_does_not_run(
    instance: Instance, mark: int
) -> None:
    """The signal comes while the instance waits for a call."""
    instance.stop(1, mark)
    assert instance.is_silent()

    call = instance.send(b'{"spin_s": 1000}', **JSON)

    assert call == 1
    assert instance.answer().problem["code"] == "cancelled"
    assert instance.call(b"{}", **JSON).body == b"{}"


def test_nobody_else_is_stopped(instance: Instance, mark: int, tmp_path: Path) -> None:
    """One that has ended, one that lies ahead, one that was never sent: the signal says nothing."""
    assert instance.call(b"{}", **JSON).kind == "result"
    begun = tmp_path / "begun"
    running = instance.send(b'{"started": "%s"}' % str(begun).encode(), **JSON)
    ahead = instance.send(b'{"ahead": 1}', **JSON)
    while not begun.exists():
        pass

    for other in (running - 1, ahead, 99, 0):
        instance.stop(other, mark)
    assert instance.is_silent()
    instance.stop(running, mark)

    assert instance.answer().problem["code"] == "cancelled"
    assert instance.answer().body == b'{"ahead":1}'


def test_signals_at_any_time_hit_the_call_that_is_meant_or_none(
    instance: Instance, mark: int
) -> None:
    chance = random.Random(3)
    stopped = 0
    for _ in range(500):
        spin_s = chance.choice([0, 0.0002, 0.002])
        calls = [instance.send(b'{"spin_s": %g}' % spin_s, **JSON) for _ in range(3)]
        for _ in range(chance.randrange(2000)):
            pass
        meant = chance.randrange(3)
        instance.stop(calls[meant], mark)
        answers = [instance.answer() for _ in calls]
        for number, answer in enumerate(answers):
            if answer.kind == "error":
                assert (number, answer.problem["code"]) == (meant, "cancelled")
                stopped += 1
    assert stopped > 0


def test_signals_without_a_file_that_says_whom_they_mean_do_nothing(instance: Instance) -> None:
    call = instance.send(b'{"spin_s": 0.1}', **JSON)
    mark = os.memfd_create("not sent")
    instance.stop(call, mark)
    os.close(mark)

    assert instance.answer().kind == "result"


def test_an_unknown_frame_is_passed_over(instance: Instance) -> None:
    instance.tell("cancel", 1)
    instance.tell("later", {"a": 1})

    assert instance.call(b"{}", **JSON).body == b"{}"


def test_a_body_past_its_memory_is_told_as_that_and_the_next_call_is_served(
    instance: Instance,
) -> None:
    fd = os.memfd_create("body")
    os.ftruncate(fd, 1 << 40)
    for size, fits in ((1 << 40, False), (1000, True), (1 << 35, False), (300_000, True)):
        instance.send_beside(fd, size)
        answer = instance.answer()
        if fits:
            assert answer.json() == size
        else:
            assert (answer.kind, answer.problem["code"]) == ("error", "out_of_memory")
    os.close(fd)

    assert instance.call(b"{}", **JSON).body == b"{}"


def test_without_a_free_descriptor_a_large_reply_goes_in_its_frame(instance: Instance) -> None:
    assert instance.call(b'{"files": 300000}', **JSON).body == b"x" * 300_000
    assert instance.call(b"{}", **JSON).body == b"{}"
