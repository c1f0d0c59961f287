"""Handlers that raise, lie, crash, hang, flood and leave things behind, on the real platform.

Each time the caller gets one clear problem, the function serves its next invocation, and other
functions notice nothing.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from tests.platform import Answer, Platform, eventually, refused

STYLES = {
    "serial": {},
    "threads": {"limits": {"concurrency": 2}},
    "loop": {"limits": {"concurrency": 2}},
}
OURS = ("functions/runtime", "_faasd_runtime", "concurrent/futures", "asyncio/", "importlib")

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("hostile-handlers")
    with Platform(folder, env={"FAASD_WORKER_CANCEL_GRACE_S": "0.3"}) as platform:
        platform.must_deploy("healthy", "def handle(event, context):\n    return event\n")
        yield platform


@pytest.fixture(autouse=True)
def _service_stays_up(platform: Platform) -> Iterator[None]:
    seen = len(platform.log)
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    assert platform.post("/invoke/healthy", {"n": 1}).json() == {"n": 1}
    assert [entry for entry in platform.log[seen:] if entry.get("level") == "error"] == []


def deploy(platform: Platform, code: str, **spec: Any) -> str:
    name = f"hostile-{next(_numbers)}"
    platform.must_deploy(name, textwrap.dedent(code), **spec)
    return f"/invoke/{name}"


def misbehave(
    platform: Platform,
    body: str,
    event: Any = True,
    *,
    style: str = "serial",
    headers: dict[str, str] | None = None,
    **spec: Any,
) -> Answer:
    """What a handler of this body answers to the event. Without an event it returns "fine", which
    it must still do afterwards."""
    code = f"{'async ' if style == 'loop' else ''}def handle(event, context):\n"
    code += "    if event is None:\n        return 'fine'\n"
    code += textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    path = deploy(platform, code, **{**STYLES[style], **spec})
    answer = platform.post(path, event, headers)
    assert platform.post(path).body == b"fine"
    return answer


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def together(*calls: Callable[[], Answer]) -> list[Answer]:
    """The answers of calls made at once, in the order given."""
    with ThreadPoolExecutor(len(calls)) as threads:
        futures: list[Future[Answer]] = [threads.submit(call) for call in calls]
        return [future.result() for future in futures]


@pytest.mark.parametrize("style", STYLES)
def test_an_exception_is_told_with_the_frames_of_the_user_only(
    platform: Platform, style: str
) -> None:
    answer = misbehave(platform, "raise ValueError('no such fish')", style=style)

    problem = refused(answer, 500, "handler_error", "ValueError", "no such fish")
    assert "faasd logs" in problem["remedy"]
    assert "handler.py" in problem["traceback"]
    assert "raise ValueError('no such fish')" in problem["traceback"]
    assert [own for own in OURS if own in problem["traceback"]] == []


def test_the_whole_chain_of_causes_is_told_without_our_frames(platform: Platform) -> None:
    answer = misbehave(
        platform,
        """
        try:
            {}["pike"]
        except KeyError as error:
            raise RuntimeError("no pike") from error
        """,
    )

    problem = refused(answer, 500, "handler_error", "RuntimeError: no pike")
    assert "KeyError: 'pike'" in problem["traceback"]
    assert [own for own in OURS if own in problem["traceback"]] == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "expression",
    ["object()", "{1, 2}", "{'f': lambda: 1}", "float('nan')", "[float('-inf')]", "{(1, 2): 3}"],
)
def test_a_result_that_cannot_be_sent_is_named(
    platform: Platform, style: str, expression: str
) -> None:
    answer = misbehave(platform, f"return {expression}", style=style)

    problem = refused(answer, 500, "unserialisable_result", "cannot be sent as JSON")
    assert "context.response" in problem["remedy"]


def test_circular_and_bottomless_results_are_refused(platform: Platform) -> None:
    body = """
    result = []
    if event == "circular":
        result.append(result)
    else:
        for _ in range(100_000):
            result = [result]
    return result
    """
    for event in ("circular", "bottomless"):
        refused(misbehave(platform, body, event), 500, "unserialisable_result", "as JSON")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("raised", ["ZeroDivisionError()", "SystemExit(3)", "KeyboardInterrupt()"])
def test_an_exception_that_cannot_be_made_into_text_is_told_by_its_type(
    platform: Platform, style: str, raised: str
) -> None:
    answer = misbehave(
        platform,
        f"""
        class Mute(Exception):
            def __str__(self):
                raise {raised}
        raise Mute
        """,
        style=style,
    )

    refused(answer, 500, "handler_error", "Mute")


@pytest.mark.parametrize("style", STYLES)
def test_an_exception_with_half_a_character_is_told(platform: Platform, style: str) -> None:
    answer = misbehave(platform, "raise ValueError('half \\ud800 fish')", style=style)

    refused(answer, 500, "handler_error", "ValueError: half ? fish")


@pytest.mark.parametrize("style", ["serial", "threads"])
def test_stop_iteration_out_of_a_handler_is_an_error_like_any_other(
    platform: Platform, style: str
) -> None:
    answer = misbehave(platform, "return next(iter([]))", style=style)

    refused(answer, 500, "handler_error", "StopIteration")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("exits", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_exceptions_that_end_programs_end_only_the_invocation(
    platform: Platform, style: str, exits: str
) -> None:
    answer = misbehave(platform, f"raise {exits}('enough')", style=style)

    refused(answer, 500, "handler_error", exits, "enough")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("last_words", "how"),
    [
        ("os._exit(3)", "exited with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("os.abort()", "killed by signal 6"),
    ],
)
def test_a_process_that_ends_itself_is_told_by_how_it_ended(
    platform: Platform, style: str, last_words: str, how: str
) -> None:
    answer = misbehave(platform, f"import os, signal\n{last_words}", style=style)

    problem = refused(answer, 502, "instance_died", how)
    assert "faasd logs" in problem["remedy"]


DAEMON = """
import os, time

def leave_a_daemon(path):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(path + ".part", "w") as file:
                file.write(str(os.getpid()))
            os.rename(path + ".part", path)
            os.closerange(0, 256)
            os.execve("/bin/sleep", ["sleep", "1000"], {})
        os._exit(0)
    while not os.path.exists(path):
        time.sleep(0.01)

def handle(event, context):
    if event is None:
        return "fine"
    leave_a_daemon(event["daemon"])
    if event.get("end"):
        os._exit(1)
    return os.getpid()
"""


def test_a_daemon_left_behind_is_gone_with_its_instance(platform: Platform, tmp_path: Path) -> None:
    path = deploy(platform, DAEMON)
    pidfile = tmp_path / "daemon"

    answer = platform.post(path, {"daemon": str(pidfile), "end": True})

    refused(answer, 502, "instance_died", "status 1")
    assert eventually(lambda: gone(int(pidfile.read_text())))
    assert platform.post(path).body == b"fine"


def test_a_daemon_left_behind_is_gone_when_the_function_is_removed(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy(platform, DAEMON)
    pidfile = tmp_path / "daemon"
    assert platform.post(path, {"daemon": str(pidfile)}).status == 200
    assert not gone(int(pidfile.read_text()))

    assert platform.request("DELETE", path.replace("/invoke", "/v1/functions")).status == 204

    assert eventually(lambda: gone(int(pidfile.read_text())))


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_no_daemon_outlives_the_platform(tmp_path: Path, ending: str) -> None:
    pidfile = tmp_path / "daemon"
    with Platform(tmp_path) as own:
        path = deploy(own, DAEMON)
        pid = own.post(path, {"daemon": str(pidfile)}).json()
        assert not gone(int(pidfile.read_text()))

        getattr(own, ending)()

        assert eventually(lambda: gone(int(pidfile.read_text())) and gone(pid))


def test_children_that_are_waited_for_do_no_harm(platform: Platform) -> None:
    answer = misbehave(
        platform,
        """
        import multiprocessing, subprocess
        with multiprocessing.get_context("fork").Pool(2) as pool:
            doubled = pool.map(abs, [-1, -2])
        said = subprocess.run(["echo", "hi"], capture_output=True, check=True).stdout.decode()
        return [doubled, said]
        """,
    )

    assert answer.json() == [[1, 2], "hi\n"]


@pytest.mark.parametrize("style", STYLES)
def test_a_fork_that_returns_from_the_handler_answers_once_and_serves_nothing(
    platform: Platform, style: str
) -> None:
    code = """
    import os
    {} handle(event, context):
        if event == "fork":
            os.fork()
        return os.getpid()
    """.format("async def" if style == "loop" else "def")
    path = deploy(platform, code, **STYLES[style])
    before = platform.post(path).json()

    platform.post(path, "fork")

    assert {platform.post(path).json() for _ in range(20)} == {before}


WHAT_IS_NO_REPLY = {
    "text": b"garbage " * 100,
    "a length beyond bounds": b"\xff\xff\xff\xff",
    "no message": b"\x00\x00\x00\x01\xc1",
    "a number": b"\x00\x00\x00\x01\x05",
    "an unknown kind": b"\x00\x00\x00\x05\x91\xa3abc",
    "a result without fields": b"\x00\x00\x00\x08\x91\xa6result",
    "a chunk of no call": b"\x00\x00\x00\x09\x93\xa5chunk\x90\x90",
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("garbage", WHAT_IS_NO_REPLY.values(), ids=WHAT_IS_NO_REPLY)
def test_garbage_on_inherited_descriptors_ends_only_that_instance(
    platform: Platform, style: str, garbage: bytes
) -> None:
    answer = misbehave(
        platform,
        f"""
        import os, time
        for fd in range(3, 256):
            try:
                os.set_blocking(fd, False)
                os.write(fd, {garbage!r})
            except OSError:
                pass
        while True:
            time.sleep(0.1)
        """,
        style=style,
    )

    refused(answer, 502, "instance_died", "sent something that is not a reply")


def test_a_forged_reply_with_values_of_the_wrong_kind_leaves_no_caller_waiting(
    platform: Platform,
) -> None:
    answer = misbehave(
        platform,
        """
        import gc, os, socket, sys, time
        runtime = next(name for name in sys.modules if name.endswith("runtime.frames"))
        frame = sys._getframe()
        while "call_id" not in frame.f_locals:
            frame = frame.f_back
        forged = ["result", frame.f_locals["call_id"], "x", None, 5, "y", 7]
        for fd in range(3, 256):
            try:
                os.write(fd, sys.modules[runtime].pack(forged))
            except OSError:
                pass
        while True:
            time.sleep(0.1)
        """,
    )

    refused(answer, 502, "instance_died", "sent something that is not a reply")


@pytest.mark.parametrize("style", STYLES)
def test_an_unfinished_frame_ends_with_the_time_limit(platform: Platform, style: str) -> None:
    limits: dict[str, Any] = {**STYLES[style].get("limits", {}), "timeout_s": 1}
    answer = misbehave(
        platform,
        """
        import os
        for fd in range(3, 256):
            try:
                os.write(fd, b"\\x00\\x00\\xff\\xff")
            except OSError:
                pass
        return "unreadable"
        """,
        style=style,
        limits=limits,
    )

    refused(answer, 504, "function_timeout", "[limits] timeout_s = 1")


@pytest.mark.parametrize("style", STYLES)
def test_closing_every_descriptor_ends_only_that_instance(platform: Platform, style: str) -> None:
    answer = misbehave(platform, "import os\nos.closerange(0, 4096)\nreturn 1", style=style)

    refused(answer, 502, "instance_died")


@pytest.mark.parametrize(
    "line", ["'x' * 65_535 + '\\n'", "'x' * 65_536"], ids=["lines", "one endless line"]
)
@pytest.mark.parametrize("style", STYLES)
def test_a_flood_of_output_is_bounded_and_the_loss_is_said(
    platform: Platform, style: str, line: str
) -> None:
    code = f"""
    import sys
    {"async def" if style == "loop" else "def"} handle(event, context):
        if event:
            for _ in range(1600):
                sys.stdout.write({line})
            print()
        print("after the flood")
        return "dry"
    """
    path = deploy(platform, code, **STYLES[style])
    name = path.removeprefix("/invoke/")

    with ThreadPoolExecutor(1) as threads:
        flood = threads.submit(platform.post, path, {"size": "100 MB"})
        while not flood.done():
            assert platform.post("/invoke/healthy", 1).json() == 1
    assert flood.result().body == b"dry"
    assert platform.post(path).body == b"dry"

    assert eventually(lambda: [one for one in platform.logs(name) if "dropped" in one["line"]])
    assert eventually(lambda: platform.logs(name)[-1]["line"] == "after the flood")
    assert sum(len(one["line"]) for one in platform.logs(name)) < 300 * 1024


@pytest.mark.parametrize("style", STYLES)
def test_a_handler_that_never_returns_is_ended_at_its_limit(platform: Platform, style: str) -> None:
    limits: dict[str, Any] = {**STYLES[style].get("limits", {}), "timeout_s": 1}
    answer = misbehave(
        platform, "import time\nwhile True:\n    time.sleep(0.05)", style=style, limits=limits
    )

    problem = refused(answer, 504, "function_timeout", "[limits] timeout_s = 1")
    assert "timeout_s" in problem["remedy"]


@pytest.mark.parametrize("style", STYLES)
def test_a_handler_deaf_to_cancellation_is_killed_and_replaced(
    platform: Platform, style: str
) -> None:
    answer = misbehave(
        platform,
        """
        import time
        while True:
            try:
                time.sleep(0.01)
            except BaseException:
                pass
        """,
        style=style,
        headers={"Faasd-Deadline-Ms": "300"},
        limits={**STYLES[style].get("limits", {}), "max_instances": 1},
    )

    refused(answer, 504, "deadline_exceeded")


def test_a_cancelled_thread_does_not_go_on_for_ever_beside_its_successors(
    platform: Platform, tmp_path: Path
) -> None:
    code = """
    import os, time
    def handle(event, context):
        while event:
            try:
                if not os.path.exists(event):
                    with open(event, "w") as file:
                        file.write(str(os.getpid()))
                time.sleep(0.01)
            except BaseException:
                pass
        return "fine"
    """
    path = deploy(platform, code, limits={"concurrency": 2, "max_instances": 1})
    files = [tmp_path / "one", tmp_path / "two"]

    headers = {"Faasd-Deadline-Ms": "500"}

    answers = together(*(partial(platform.post, path, str(file), headers) for file in files))

    for answer in answers:
        refused(answer, 504, "deadline_exceeded")
    assert platform.post(path).body == b"fine"
    pids = {int(file.read_text()) for file in files}
    assert len(pids) == 1
    assert eventually(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize(
    "grow",
    [
        "held = bytearray()\nwhile True:\n    held += bytes(1 << 20)",
        "held = []\nwhile True:\n    held.append('%d' % len(held))",
        "import mmap\nwhile True:\n    held = mmap.mmap(-1, 256 << 20)\n    held.write(b'x' * (256 << 20))",
        """
        import mmap, time
        held = mmap.mmap(-1, 128 << 20)
        for page in range(0, 128 << 20, 4096):
            held[page] = 1
        while True:
            time.sleep(0.1)
        """,
    ],
    ids=["bytes", "objects", "a big mapping", "shared pages"],
)
def test_memory_past_the_limit_is_refused_by_name(platform: Platform, grow: str) -> None:
    answer = misbehave(platform, grow, resources={"memory_mb": 64})

    problem = refused(answer, 500, "out_of_memory", "[resources] memory_mb = 64")
    assert "memory_mb" in problem["remedy"]


@pytest.mark.parametrize("style", STYLES)
def test_endless_recursion_is_an_error_with_a_bounded_traceback(
    platform: Platform, style: str
) -> None:
    answer = misbehave(
        platform,
        """
        def ping(): return pong()
        def pong(): return ping()
        return ping()
        """,
        style=style,
    )

    problem = refused(answer, 500, "handler_error", "RecursionError")
    assert "in ping" in problem["traceback"]
    assert len(answer.body) < 100_000


@pytest.mark.parametrize("style", STYLES)
def test_a_result_of_fifty_megabytes_arrives_whole(platform: Platform, style: str) -> None:
    answer = misbehave(platform, "return bytes(range(250)) * 200_000", style=style)

    assert answer.status == 200
    assert answer.body == bytes(range(250)) * 200_000


@pytest.mark.parametrize("status", ["700", "0", "-1", "'200'", "None"])
def test_a_status_out_of_range_is_the_handlers_error(platform: Platform, status: str) -> None:
    answer = misbehave(platform, f"return context.response('x', status={status})")

    refused(answer, 500, "handler_error", "status")


@pytest.mark.parametrize("status", ["700", "None", "'many'"])
@pytest.mark.parametrize("style", STYLES)
def test_a_status_spoiled_after_the_check_is_refused_too(
    platform: Platform, status: str, style: str
) -> None:
    answer = misbehave(
        platform,
        f"reply = context.response('x')\nreply.status = {status}\nreturn reply",
        style=style,
    )

    refused(answer, 500, "unserialisable_result", "status")


STREAM = """
import os, time
{style} handle(event, context):
    if event is None:
        yield "fine"
        return
    for number in range(event["good"]):
        yield {{"n": number}}
    if event.get("marker"):
        try:
            while True:
                yield {{"n": "more"}}
        finally:
            os.mkdir(event["marker"])
    raise ValueError("the well ran dry")
"""
STREAM_STYLES = {
    "serial": ("def", {}),
    "threads": ("def", {"limits": {"concurrency": 2, "max_instances": 1}}),
    "loop": ("async def", {"limits": {"concurrency": 2, "max_instances": 1}}),
}


def deploy_stream(platform: Platform, style: str) -> str:
    keyword, spec = STREAM_STYLES[style]
    return deploy(
        platform, STREAM.format(style=keyword), **{"limits": {"max_instances": 1}, **spec}
    )


@pytest.mark.parametrize("style", STREAM_STYLES)
def test_a_generator_that_raises_at_once_is_an_ordinary_error(
    platform: Platform, style: str
) -> None:
    path = deploy_stream(platform, style)

    answer = platform.post(path, {"good": 0})

    problem = refused(answer, 500, "handler_error", "ValueError: the well ran dry")
    assert [own for own in OURS if own in problem["traceback"]] == []
    assert platform.post(path).body == b"fine"


@pytest.mark.parametrize("style", STREAM_STYLES)
def test_a_generator_that_raises_in_the_middle_ends_its_events_with_the_error(
    platform: Platform, style: str
) -> None:
    path = deploy_stream(platform, style)

    answer = platform.post(path, {"good": 2}, {"Accept": "text/event-stream"})

    assert answer.status == 200
    *items, last, rest = answer.body.decode().split("\n\n")
    assert items == ['data: {"n":0}', 'data: {"n":1}']
    kind, _, data = last.partition("\n")
    problem = json.loads(data.removeprefix("data: "))
    assert (kind, rest) == ("event: error", "")
    assert problem["code"] == "handler_error"
    assert "the well ran dry" in problem["detail"]
    assert "raise ValueError" in problem["traceback"]
    assert problem["request_id"] == answer.headers["faasd-request-id"]
    assert platform.post(path).body == b"fine"


@pytest.mark.parametrize("style", STREAM_STYLES)
def test_a_generator_that_raises_in_the_middle_breaks_its_chunks_off(
    platform: Platform, style: str
) -> None:
    path = deploy_stream(platform, style)

    with pytest.raises(IncompleteRead) as broken:
        platform.post(path, {"good": 2})

    assert broken.value.partial == b'{"n":0}\n{"n":1}\n'
    assert platform.post(path).body == b"fine"


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
@pytest.mark.parametrize("style", STREAM_STYLES)
def test_an_endless_generator_ends_when_its_reader_leaves(
    platform: Platform, tmp_path: Path, style: str, accept: str
) -> None:
    path = deploy_stream(platform, style)
    marker = tmp_path / "closed"

    with platform.open_connection() as connection:
        body = json.dumps({"good": 1, "marker": str(marker)})
        headers = {"Content-Type": "application/json", "Accept": accept}
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        assert b'{"n":0}' in response.readline()
        # Only from here on is it where it notices its end.
        while b"more" not in response.readline():
            pass
        response.close()

    assert eventually(marker.exists)
    assert platform.post(path).body == b"fine"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "spoil",
    [
        "sys.stdout = sys.stderr = None",
        "sys.stdout = open(os.devnull, 'w')",
        "sys.stdout.close(); sys.stderr.close()",
        "del sys.stdout, sys.stderr",
        "sys.stdout = Broken()",
        "os.close(1); os.close(2)",
    ],
)
def test_a_handler_may_spoil_its_standard_output(
    platform: Platform, style: str, spoil: str
) -> None:
    answer = misbehave(
        platform,
        f"""
        import os, sys
        class Broken:
            def flush(self): raise RuntimeError("no flushing")
        {spoil}
        return "quiet"
        """,
        style=style,
    )

    assert (answer.status, answer.body) == (200, b"quiet")


MEET = {
    "threads": """
    import sys, threading
    meeting = threading.Barrier(2, timeout=60)
    def handle(event, context):
        if event is None:
            return "fine"
        meeting.wait()
        {end}
    """,
    "loop": """
    import asyncio, sys
    present = []
    async def handle(event, context):
        if event is None:
            return "fine"
        present.append(event)
        while len(present) < 2:
            await asyncio.sleep(0)
        {end}
    """,
}


@pytest.mark.parametrize("style", MEET)
def test_invocations_of_one_instance_run_at_the_same_time(platform: Platform, style: str) -> None:
    code = MEET[style].format(end="return event")
    path = deploy(platform, code, limits={"concurrency": 2, "max_instances": 1})

    answers = together(lambda: platform.post(path, "a"), lambda: platform.post(path, "b"))

    assert [answer.body for answer in answers] == [b"a", b"b"]


@pytest.mark.parametrize("style", MEET)
@pytest.mark.parametrize("failure", ["raise ValueError('mine alone')", "sys.exit('mine alone')"])
def test_a_failing_invocation_does_not_harm_its_sibling(
    platform: Platform, style: str, failure: str
) -> None:
    code = MEET[style].format(end=f"if event == 'bad': {failure}\n        return event")
    path = deploy(platform, code, limits={"concurrency": 2, "max_instances": 1})

    bad, good = together(lambda: platform.post(path, "bad"), lambda: platform.post(path, "good"))

    refused(bad, 500, "handler_error", "mine alone")
    assert good.body == b"good"
    assert platform.post(path).body == b"fine"


@pytest.mark.parametrize("style", MEET)
def test_siblings_of_a_process_that_dies_are_told_so(platform: Platform, style: str) -> None:
    end = "import os; os._exit(4)"
    path = deploy(
        platform, MEET[style].format(end=end), limits={"concurrency": 2, "max_instances": 1}
    )

    answers = together(lambda: platform.post(path, "a"), lambda: platform.post(path, "b"))

    for answer in answers:
        refused(answer, 502, "instance_died", "exited with status 4")
    assert platform.post(path).body == b"fine"


BATCHED = {"batching": {"max_size": 3, "max_wait_ms": 60_000}, "limits": {"max_instances": 1}}


def in_a_batch(platform: Platform, path: str, *bodies: bytes) -> list[Answer]:
    headers = {"Content-Type": "application/json"}
    return together(*(lambda body=body: platform.post(path, body, headers) for body in bodies))


def test_an_item_that_fails_in_a_batch_harms_only_itself(platform: Platform) -> None:
    code = """
    def handle(events, contexts):
        return [ValueError("not this one") if event == 1 else event * 10 for event in events]
    """
    path = deploy(platform, code, **BATCHED)

    answers = in_a_batch(platform, path, b"1", b"2", b"3")

    refused(answers[0], 500, "handler_error", "ValueError: not this one")
    assert [answer.json() for answer in answers[1:]] == [20, 30]


def test_an_item_whose_result_cannot_be_sent_harms_only_itself(platform: Platform) -> None:
    code = """
    def handle(events, contexts):
        return [object() if event == 1 else event * 10 for event in events]
    """
    path = deploy(platform, code, **BATCHED)

    answers = in_a_batch(platform, path, b"1", b"2", b"3")

    refused(answers[0], 500, "unserialisable_result")
    assert [answer.json() for answer in answers[1:]] == [20, 30]


def test_an_item_that_is_not_json_harms_only_itself(platform: Platform) -> None:
    path = deploy(platform, "def handle(events, contexts):\n    return events\n", **BATCHED)

    answers = in_a_batch(platform, path, b"{not json", b"2", b"3")

    refused(answers[0], 400, "bad_request", "not JSON")
    assert [answer.json() for answer in answers[1:]] == [2, 3]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("events[:-1]", "2 results for a batch of 3"),
        ("[*events, 1]", "4 results for a batch of 3"),
        ("None", "NoneType"),
    ],
)
def test_a_batch_answered_with_another_number_of_results_is_refused_whole(
    platform: Platform, result: str, words: str
) -> None:
    path = deploy(platform, f"def handle(events, contexts):\n    return {result}\n", **BATCHED)

    for answer in in_a_batch(platform, path, b"1", b"2", b"3"):
        assert answer.status == 500
        assert words in refused(answer, 500, answer.json()["code"])["detail"]


def test_a_batch_that_raises_fails_whole_and_the_next_one_works(platform: Platform) -> None:
    code = """
    def handle(events, contexts):
        if 1 in events:
            raise RuntimeError("the batch")
        return events
    """
    path = deploy(platform, code, **BATCHED)

    for answer in in_a_batch(platform, path, b"1", b"2", b"3"):
        refused(answer, 500, "handler_error", "RuntimeError: the batch")
    assert [one.json() for one in in_a_batch(platform, path, b"4", b"5", b"6")] == [4, 5, 6]


def test_a_caller_that_gives_up_on_a_batch_harms_no_sibling(
    platform: Platform, tmp_path: Path
) -> None:
    code = """
    import os, time
    def handle(events, contexts):
        folder = next(event["folder"] for event in events if "folder" in event)
        os.mkdir(folder + "/started")
        while not os.path.exists(folder + "/go"):
            time.sleep(0.01)
        return events
    """
    path = deploy(platform, code, **BATCHED)
    event = {"folder": str(tmp_path)}

    with ThreadPoolExecutor(3) as threads:
        siblings = [threads.submit(platform.post, path, event) for _ in range(2)]
        hasty = threads.submit(platform.post, path, event, {"Faasd-Deadline-Ms": "3000"})
        assert eventually((tmp_path / "started").exists)
        refused(hasty.result(), 504, "deadline_exceeded")
        _outlast_the_grace(platform, tmp_path / "deaf")
        (tmp_path / "go").mkdir()

    assert [sibling.result().json() for sibling in siblings] == [event, event]


def _outlast_the_grace(platform: Platform, pidfile: Path) -> None:
    """Return once a handler that was told to stop later than any before has been killed."""
    code = """
    import os, time
    def handle(event, context):
        with open(event, "w") as file:
            file.write(str(os.getpid()))
        while True:
            try:
                time.sleep(0.01)
            except BaseException:
                pass
    """
    path = deploy(platform, code)
    refused(
        platform.post(path, str(pidfile), {"Faasd-Deadline-Ms": "300"}), 504, "deadline_exceeded"
    )
    assert eventually(lambda: gone(int(pidfile.read_text())))
