"""The Python client and the `faasd` command against the platform itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faasd.cli.main import main
from faasd.client import AsyncClient, Client, Progress
from faasd.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    DeployFailed,
    Forbidden,
    FunctionNotFound,
    HandlerError,
    IdempotencyMismatch,
    NotFound,
    Unauthorized,
    Unavailable,
)
from tests.platform import Platform, eventually

HANDLER = """
import time
from pathlib import Path

calls = []

def load(context):
    return Path(context.artifacts["weights"]).read_bytes() if context.artifacts else None

def handle(event, context):
    calls.append(event)
    command = event.get("do") if isinstance(event, dict) else None
    if command == "fail":
        raise KeyError("text")
    if command == "sleep":
        time.sleep(60)
    if command == "count":
        return len(calls)
    if command == "weights":
        return context.state
    if command == "print":
        print("[line]", event["n"])
    if command == "teapot":
        return context.response("short and stout", status=418)
    if command == "stream":
        return items(event)
    return event

def items(event):
    for item in event["items"]:
        yield item
    if event.get("fail"):
        raise ValueError("late")
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("function")
    write(root, 'name = "echo"\nload = "handler:load"\n[retries]\nmax_attempts = 1\n')
    (root / "handler.py").write_text(HANDLER)
    return root


@pytest.fixture(scope="module")
def client(platform: Platform, folder: Path) -> Iterator[Client]:
    """A client of a platform where `echo` serves."""
    with Client(platform.url) as client:
        client.deploy(folder)
        yield client


def write(folder: Path, spec: str) -> None:
    (folder / "function.toml").write_text(spec)


def copy(folder: Path, target: Path, spec: str) -> Path:
    (target / "handler.py").write_bytes((folder / "handler.py").read_bytes())
    write(target, spec)
    return target


def test_a_deploy_tells_its_steps_and_equal_content_is_the_same_revision(
    client: Client, folder: Path
) -> None:
    steps: list[Progress] = []

    first = client.deploy(folder, on_progress=steps.append)
    again = client.deploy(folder)

    assert first.revision == again.revision
    assert [step.stage for step in steps][:2] == ["pack", "send"]


def test_artifacts_reach_the_function(client: Client, folder: Path, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    copy(
        folder, tmp_path, 'name = "weighty"\nload = "handler:load"\n[artifacts]\nweights = "w.bin"'
    )
    (tmp_path / "w.bin").write_bytes(content)
    steps: list[Progress] = []

    client.deploy(tmp_path)
    client.deploy(tmp_path, on_progress=steps.append)

    loaded = client.invoke("weighty", {"do": "weights"}).value
    assert hashlib.sha256(loaded).digest() == hashlib.sha256(content).digest()
    assert Progress("upload", "weights is there already") in steps


def test_a_function_that_does_not_start_is_refused_with_its_traceback(
    client: Client, tmp_path: Path
) -> None:
    write(tmp_path, 'name = "broken"\n')
    (tmp_path / "handler.py").write_text("import no_such_library\n")

    with pytest.raises(DeployFailed) as caught:
        client.deploy(tmp_path)

    assert "no_such_library" in str(caught.value.traceback)
    with pytest.raises(FunctionNotFound):
        client.function("broken")


def test_functions_are_listed_rolled_back_and_removed(
    client: Client, folder: Path, tmp_path: Path
) -> None:
    copy(folder, tmp_path, 'name = "changing"\n')
    first = client.deploy(tmp_path)
    (tmp_path / "more.py").write_text("")
    second = client.deploy(tmp_path)
    assert {one.revision for one in second.revisions} == {first.revision, second.revision}

    assert client.rollback("changing").revision == first.revision
    assert client.rollback("changing", second.revision).revision == second.revision
    assert "changing" in {function.name for function in client.functions()}
    client.remove("changing")

    assert "changing" not in {function.name for function in client.functions()}


def test_a_rollback_to_a_revision_that_is_not_there_is_refused(client: Client) -> None:
    with pytest.raises((NotFound, Conflict)):
        client.rollback("echo", "0" * 12)


@pytest.mark.parametrize("value", [{"a": [1, None]}, "grüße", b"\x00\xff", 3.5, [], None])
def test_a_value_comes_back_as_it_was_sent(client: Client, value: Any) -> None:
    assert client.invoke("echo", value).value == value


def test_a_result_says_what_it_cost(client: Client) -> None:
    client.invoke("echo", 1)

    result = client.invoke("echo", 1, request_id="mine")

    assert (result.start_kind, result.request_id) == ("warm", "mine")
    assert set(result.timings) == {"queue", "sandbox", "libs", "load", "exec"}
    assert result.timings["exec"] > 0
    assert result.worker == client.workers()[0].id
    assert result.revision == client.function("echo").revision


def test_a_functions_own_status_is_a_result(client: Client) -> None:
    result = client.invoke("echo", {"do": "teapot"})

    assert (result.status, result.value) == (418, "short and stout")


def test_an_error_of_the_users_code_carries_its_traceback(client: Client) -> None:
    with pytest.raises(HandlerError, match="KeyError") as caught:
        client.invoke("echo", {"do": "fail"}, request_id="failing")

    assert "handler.py" in str(caught.value.traceback)
    assert caught.value.extra["request_id"] == "failing"


def test_past_the_deadline_the_invocation_is_given_up(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.invoke("echo", {"do": "sleep"}, deadline_s=0.2)


def test_one_idempotency_key_runs_once(client: Client) -> None:
    first = client.invoke("echo", {"do": "count"}, idempotency_key="once")
    again = client.invoke("echo", {"do": "count"}, idempotency_key="once")

    assert (first.replayed, again.replayed) == (False, True)
    assert first.value == again.value
    with pytest.raises(IdempotencyMismatch):
        client.invoke("echo", {"do": "other"}, idempotency_key="once")


def test_an_unknown_function_and_a_name_that_is_none_are_refused(client: Client) -> None:
    with pytest.raises(FunctionNotFound):
        client.invoke("nothing")
    with pytest.raises(BadRequest):
        client.invoke("No Name")


@pytest.mark.parametrize("items", [[{"n": 1}, {"n": 2}], [1, None, "a"], []])
def test_json_items_are_streamed_as_they_were_yielded(client: Client, items: list[Any]) -> None:
    value = {"do": "stream", "items": [{"item": item} for item in items]}

    assert list(client.stream("echo", value)) == value["items"]


def test_text_items_are_streamed_as_text(client: Client) -> None:
    value = {"do": "stream", "items": ["grü", "ße"]}

    assert "".join(client.stream("echo", value)) == "grüße"


def test_server_sent_events_bring_each_items_text(client: Client) -> None:
    value = {"do": "stream", "items": ["one", "two words", {"n": 3}]}

    events = list(client.stream("echo", value, sse=True))

    assert events[:2] == ["one", "two words"]
    assert json.loads(events[2]) == {"n": 3}


def test_an_error_in_the_midst_of_a_stream_comes_after_the_items_before_it(client: Client) -> None:
    value = {"do": "stream", "items": [{"n": 1}], "fail": True}

    events = client.stream("echo", value, sse=True)
    assert json.loads(next(events)) == {"n": 1}
    with pytest.raises(HandlerError, match="late"):
        next(events)

    with pytest.raises(Unavailable, match="broke off"):
        list(client.stream("echo", value))


def test_a_queued_invocation_is_waited_for(client: Client) -> None:
    result = client.result(client.submit("echo", {"a": 1}))

    assert result.value == {"a": 1}
    assert result.start_kind
    assert result.timings["exec"] > 0


def test_a_dead_invocation_tells_its_error_and_can_be_queued_again(client: Client) -> None:
    invocation_id = client.submit("echo", {"do": "fail"})

    with pytest.raises(HandlerError, match="KeyError"):
        client.result(invocation_id)
    assert invocation_id in {one.id for one in client.invocations("dead", "echo")}
    client.redrive(invocation_id)
    with pytest.raises(HandlerError, match="KeyError"):
        client.result(invocation_id)

    assert len(client.invocation(invocation_id).attempts) >= 1


def test_asking_once_for_what_is_not_finished_is_a_conflict(client: Client) -> None:
    invocation_id = client.submit("echo", {"do": "sleep"})

    with pytest.raises(Conflict):
        client.result(invocation_id, wait_s=0)


def test_what_a_function_prints_is_in_its_log(client: Client) -> None:
    client.invoke("echo", {"do": "print", "n": 1}, request_id="printing")

    lines = eventually(lambda: [one for one in client.logs("echo") if one.request_id == "printing"])

    assert [(one.line, one.stream) for one in lines] == [("[line] 1", "stdout")]


def test_a_followed_log_goes_on_with_lines_as_they_come(client: Client) -> None:
    client.invoke("echo", {"do": "print", "n": "before"})
    eventually(lambda: [one for one in client.logs("echo") if one.line == "[line] before"])
    found = []

    for line in client.logs("echo", follow=True, tail=1):
        found.append(line.line)
        if line.line == "[line] after":
            break
        client.invoke("echo", {"do": "print", "n": "after"})

    assert found == ["[line] before", "[line] after"]


def test_the_status_shows_the_function_on_the_worker(client: Client) -> None:
    client.invoke("echo", 1)

    status = client.status()

    (worker,) = status.workers
    assert status.ready
    assert worker.status == "up"
    assert "default/echo" in {one.function for one in worker.functions}
    assert "python" in {one.name for one in worker.runtimes}


def test_the_asynchronous_client_runs_calls_at_once(client: Client) -> None:
    async def many() -> list[Any]:
        async with AsyncClient(client.url) as other:
            results = await asyncio.gather(*(other.invoke("echo", n) for n in range(50)))
            return [result.value for result in results]

    assert asyncio.run(many()) == list(range(50))


def test_keys_shut_out_who_has_none_and_bound_who_has_one(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Platform(tmp_path) as platform:
        assert main(["keys", "create", "root", "--role", "admin", "--url", platform.url]) == 0
        admin_key = capsys.readouterr().out.strip()
        with Client(platform.url, admin_key) as admin:
            made = admin.create_key("caller", "invoke")
            admin.deploy(folder)
            with Client(platform.url, made.key) as caller:
                assert caller.invoke("echo", 1).value == 1
                with pytest.raises(Forbidden):
                    caller.remove("echo")
                admin.delete_key(made.id)
                with pytest.raises(Unauthorized):
                    caller.invoke("echo", 1)
            with Client(platform.url) as stranger, pytest.raises(Unauthorized):
                stranger.deploy(folder)


def test_a_drained_worker_leaves_nothing_that_can_serve(tmp_path: Path, folder: Path) -> None:
    with Platform(tmp_path) as platform, Client(platform.url) as client:
        client.deploy(folder)

        client.drain(client.workers()[0].id)

        assert client.workers()[0].status == "draining"
        assert not client.status().ready
        with pytest.raises(Unavailable):
            client.invoke("echo", 1)


def test_the_commands_work_together(
    client: Client, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(folder, tmp_path, 'name = "together"\n')
    target = ("--url", client.url)

    def run(*argv: str) -> str:
        assert main([*argv, *target]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert run("deploy", str(tmp_path)) == f"{client.url}/invoke/together\n"
    assert run("invoke", "together", "-d", '{"a":1}') == '{"a":1}\n'
    assert run("invoke", "together", "--async", "--wait", "-d", "hi") == "hi\n"
    stream = '{"do": "stream", "items": [{"n": 1}, {"n": 2}]}'
    assert run("invoke", "together", "--stream", "-d", stream) == '{"n": 1}\n{"n": 2}\n'
    assert "together" in run("ls")
    assert "default/together" in run("status")
    assert len(run("revisions", "together").splitlines()) == 2
    assert json.loads(run("invocations", "--function", "together", "--json"))["invocations"]
    run("rm", "together")
    assert "together" not in run("ls")


def test_a_command_that_fails_says_so(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke", "echo", "-d", '{"do": "fail"}', "--url", client.url]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert "handler.py" in err
    assert "Error: The function raised KeyError" in err
