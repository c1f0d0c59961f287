"""The clients against a server that keeps to docs/api.md, and that misbehaves where asked to."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faasd.client import AsyncClient, Client, Progress, Unreachable
from faasd.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    DeployFailed,
    FunctionNotFound,
    HandlerError,
    InternalError,
    InvalidSpec,
    QueueFull,
    Unauthorized,
    Unavailable,
)
from tests.unit.faasd.contract_server import ContractServer, serving


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAASD_URL", raising=False)
    monkeypatch.delenv("FAASD_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[ContractServer]:
    with serving(ContractServer()) as running:
        yield running


@pytest.fixture
def client(server: ContractServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "sentiment"
    root.mkdir()
    (root / "function.toml").write_text('name = "sentiment"\n')
    (root / "handler.py").write_text("def handle(event, context):\n    return event\n")
    return root


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_deploys_a_folder_and_tells_of_each_step(client: Client, folder: Path) -> None:
    steps: list[Progress] = []

    function = client.deploy(folder, on_progress=steps.append)

    assert (function.name, function.revision) == ("sentiment", "r1")
    assert [step.stage for step in steps] == ["pack", "send", "template"]


def test_deploys_under_another_name(client: Client, server: ContractServer, folder: Path) -> None:
    function = client.deploy(folder, name="mood")

    assert function.name == "mood"
    assert server.deployed["spec"] == {"name": "mood"}


def test_uploads_each_artifact_once(client: Client, server: ContractServer, folder: Path) -> None:
    (folder / "function.toml").write_text('name = "sentiment"\n[artifacts]\nweights = "w.bin"\n')
    content = bytes(range(256)) * 10_000
    (folder / "w.bin").write_bytes(content)

    client.deploy(folder)
    client.deploy(folder)

    assert list(server.artifacts.values()) == [content]
    assert server.deployed["artifacts"] == {"weights": next(iter(server.artifacts))}
    assert server.uploads == 1


def test_uploads_an_empty_artifact(client: Client, server: ContractServer, folder: Path) -> None:
    (folder / "function.toml").write_text('name = "sentiment"\n[artifacts]\nweights = "w.bin"\n')
    (folder / "w.bin").touch()

    client.deploy(folder)

    assert list(server.artifacts.values()) == [b""]


def test_an_artifact_that_shrinks_while_it_is_sent_is_told_of(client: Client, folder: Path) -> None:
    (folder / "function.toml").write_text('name = "sentiment"\n[artifacts]\nweights = "w.bin"\n')
    weights = folder / "w.bin"
    weights.write_bytes(bytes(3 * 1024 * 1024))

    def shrink(step: Progress) -> None:
        if step.stage == "upload":
            os.truncate(weights, 0)

    with pytest.raises(Unavailable, match="shrank"):
        client.deploy(folder, on_progress=shrink)


def test_a_deploy_that_fails_carries_the_traceback_of_the_users_code(
    client: Client, folder: Path
) -> None:
    with pytest.raises(DeployFailed, match="does not import") as caught:
        client.deploy(folder, name="broken")

    assert "KeyError" in str(caught.value.traceback)


def test_a_deploy_that_is_never_answered_is_an_error(client: Client, folder: Path) -> None:
    with pytest.raises(Unavailable, match="went away"):
        client.deploy(folder, name="vanishing")


def test_a_folder_that_is_no_function_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with Client(free_address()) as client, pytest.raises(InvalidSpec):
        client.deploy(tmp_path)


def test_reads_functions_with_their_revisions_and_instances(client: Client) -> None:
    (function,) = client.functions()

    assert function == client.function("echo")
    assert function.revisions[0].active
    assert function.created_at.isoformat() == "2025-01-02T03:04:05.678000+00:00"
    assert (function.instances.busy, function.queued) == (2, 3)


def test_removes_a_function(client: Client) -> None:
    client.remove("echo")

    with pytest.raises(FunctionNotFound, match="no function named 'echo'"):
        client.function("echo")


def test_rolls_back_to_the_revision_before_or_to_a_named_one(
    client: Client, server: ContractServer
) -> None:
    server.functions["echo"] = ["r1", "r2", "r3"]

    assert client.rollback("echo").revision == "r2"
    assert client.rollback("echo", "r1").revision == "r1"


@pytest.mark.parametrize("value", [{"text": "great"}, [1, None], 3.5, "grüße", b"\x00\x01"])
def test_a_value_comes_back_as_it_was_sent(client: Client, value: Any) -> None:
    assert client.invoke("echo", value).value == value


def test_nothing_is_sent_as_no_body(client: Client) -> None:
    assert client.invoke("echo").body == b""


def test_a_result_says_what_it_cost(client: Client) -> None:
    result = client.invoke("echo", 1, request_id="mine")

    assert result.status == 200
    assert result.start_kind == "warm"
    assert result.timings["exec"] == 3.2
    assert (result.worker, result.revision, result.request_id) == ("node-1", "r1", "mine")


def test_sends_what_the_caller_asks_for(client: Client, server: ContractServer) -> None:
    client.invoke("echo", b"x", content_type="image/png", deadline_s=1.5, idempotency_key="once")

    assert server.headers["Content-Type"] == "image/png"
    assert server.headers["Faasd-Deadline-Ms"] == "1500"
    assert server.headers["Idempotency-Key"] == "once"


def test_a_functions_own_status_is_a_result(client: Client) -> None:
    result = client.invoke("teapot")

    assert (result.status, result.value) == (418, "short and stout")


def test_a_functions_own_problem_is_a_result(client: Client) -> None:
    result = client.invoke("own-problem")

    assert (result.status, result.value["detail"]) == (409, "none left")


def test_an_error_of_the_users_code_carries_traceback_and_request_id(client: Client) -> None:
    with pytest.raises(HandlerError, match="KeyError") as caught:
        client.invoke("fails")

    assert "handler.py" in str(caught.value.traceback)
    assert caught.value.extra["request_id"] == "q1"


def test_an_overload_says_when_to_come_back(client: Client) -> None:
    with pytest.raises(QueueFull) as caught:
        client.invoke("full")

    assert caught.value.retry_after_s == 2


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("tokens", {}, [{"n": 1}, {"n": 2}]),
        ("tokens", {"sse": True}, ['{"n": 1}', "two\nlines"]),
        ("echo", {}, [{"a": 1}]),
    ],
)
def test_streams_items(
    client: Client, name: str, options: dict[str, Any], expected: list[Any]
) -> None:
    assert list(client.stream(name, {"a": 1}, **options)) == expected


def test_streams_text_and_bytes_in_pieces(client: Client) -> None:
    assert "".join(client.stream("text")) == "grüße"
    assert b"".join(client.stream("raw")) == b"\x00\x01\x02"


def test_an_error_in_the_midst_of_events_is_raised_after_the_items_before_it(
    client: Client,
) -> None:
    items = client.stream("breaks", sse=True)

    assert next(items) == "1"
    with pytest.raises(HandlerError, match="late"):
        next(items)


def test_a_stream_that_is_cut_off_is_an_error(client: Client) -> None:
    with pytest.raises(Unavailable):
        list(client.stream("cut-off"))


def test_leaving_a_stream_cancels_the_invocation(client: Client, server: ContractServer) -> None:
    for item in client.stream("endless"):
        assert item == 1
        break

    assert server.cancelled.wait(60)


def test_a_call_ends_at_the_clients_own_timeout(server: ContractServer) -> None:
    with Client(server.url, timeout_s=0.01) as client, pytest.raises(DeadlineExceeded):
        client.invoke("never")


def test_a_queued_invocation_is_waited_for(client: Client) -> None:
    invocation_id = client.submit("echo", {"a": 1})

    result = client.result(invocation_id)

    assert result.value == {"score": 1}
    assert (result.start_kind, result.timings, result.worker) == ("fork", {"exec": 3.2}, "node-1")


def test_asking_once_for_a_result_that_is_not_there_is_a_conflict(client: Client) -> None:
    with pytest.raises(Conflict, match="queued"):
        client.result("i-slow", wait_s=0)


def test_waiting_too_short_for_a_result_is_a_conflict(client: Client) -> None:
    with pytest.raises(Conflict, match="not finished"):
        client.result("i-slow", wait_s=0.01)


def test_the_result_of_a_dead_invocation_is_its_last_error(client: Client) -> None:
    with pytest.raises(HandlerError, match="KeyError"):
        client.result("i-dead")


def test_a_dead_invocation_is_queued_again(client: Client) -> None:
    (dead,) = client.invocations(status="dead", function="echo")
    assert dead.error is not None

    client.redrive(dead.id)

    assert client.invocation(dead.id).status == "queued"


def test_reads_the_last_lines_of_a_log(client: Client) -> None:
    lines = list(client.logs("echo", tail=2))

    assert [line.line for line in lines] == ["[line] 0", "[line] 1"]


def test_leaving_a_log_that_is_followed_ends_it(client: Client, server: ContractServer) -> None:
    for line in client.logs("echo", follow=True, tail=1):
        assert line.stream == "stdout"
        break

    assert server.cancelled.wait(60)


def test_reads_the_cluster(client: Client) -> None:
    status = client.status()

    assert status.ready
    assert status.workers[0].functions[0].template == "up"
    assert status.workers[0].runtimes[0].libraries == ("json",)
    assert status.functions[0].memory_mb == 12.5


def test_drains_a_worker(client: Client, server: ContractServer) -> None:
    client.drain("node-1")

    assert server.drained == ["node-1"]


def test_makes_lists_and_deletes_keys(client: Client) -> None:
    made = client.create_key("ci", "deploy", "team")
    assert made.key == "faasd_secret"

    (listed,) = client.keys()
    client.delete_key(listed.id)

    assert (listed.name, listed.role, listed.namespace, listed.key) == (
        "ci",
        "deploy",
        "team",
        None,
    )
    assert client.keys() == []


def test_key_and_namespace_go_with_every_call() -> None:
    with serving(ContractServer(key="secret")) as server:
        with Client(server.url, key="secret", namespace="team") as client:
            client.functions()
        assert server.headers["Faasd-Namespace"] == "team"
        with Client(server.url) as stranger, pytest.raises(Unauthorized):
            stranger.functions()


def test_a_deploy_without_a_key_is_refused_before_an_artifact_is_sent(folder: Path) -> None:
    (folder / "function.toml").write_text('name = "sentiment"\n[artifacts]\nweights = "w.bin"\n')
    (folder / "w.bin").write_bytes(b"x")

    with serving(ContractServer(key="secret")) as server, Client(server.url) as client:
        with pytest.raises(Unauthorized):
            client.deploy(folder)

        assert server.artifacts == {}


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ContractServer(key="secret")) as server:
        monkeypatch.setenv("FAASD_URL", server.url.removeprefix("http://"))
        monkeypatch.setenv("FAASD_API_KEY", "secret\n")
        with Client() as client:
            assert client.url == server.url
            assert len(client.functions()) == 1


def test_where_nothing_answers_it_says_how_to_start_it() -> None:
    with Client(free_address()) as client, pytest.raises(Unreachable, match="refused") as caught:
        client.functions()

    assert "`faasd up`" in caught.value.remedy
    assert isinstance(caught.value, Unavailable)


@pytest.mark.parametrize("call", ["functions", "status", "workers"])
def test_another_site_at_the_address_is_told_apart(server: ContractServer, call: str) -> None:
    with Client(f"{server.url}/html") as client, pytest.raises(Unreachable, match="not a faasd"):
        getattr(client, call)()


def test_another_site_is_told_apart_when_invoked(server: ContractServer) -> None:
    with Client(f"{server.url}/html") as client, pytest.raises(Unreachable, match="405"):
        client.invoke("echo")


def test_an_answer_of_another_shape_is_told_of(
    client: Client, server: ContractServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_describe", lambda _: {"name": 3})

    with pytest.raises(InternalError, match="not a Function"):
        client.functions()


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://h:0", "http://h:x", "http://h/?a"]
)
def test_refuses_what_is_no_address(url: str) -> None:
    with pytest.raises(BadRequest, match="not the address"):
        AsyncClient(url)


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "ü"])
def test_refuses_what_is_no_key(key: str) -> None:
    with pytest.raises(BadRequest, match="API key"):
        AsyncClient(key=key)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_refuses_a_name_that_would_change_the_path(client: Client, name: str) -> None:
    with pytest.raises(BadRequest, match="names nothing"):
        client.invoke(name)


def test_a_name_is_quoted_in_the_path(client: Client) -> None:
    with pytest.raises(FunctionNotFound, match="'a/b"):
        client.function("a/b?c#d")


@pytest.mark.parametrize("options", [{"deadline_s": 0}, {"idempotency_key": "a\r\nb: c"}])
def test_refuses_headers_that_cannot_be_sent(client: Client, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        client.invoke("echo", **options)


def test_the_asynchronous_client_runs_calls_at_once(server: ContractServer) -> None:
    async def both() -> list[Any]:
        async with AsyncClient(server.url) as client:
            results = await asyncio.gather(*(client.invoke("echo", n) for n in range(20)))
            return [result.value for result in results]

    assert asyncio.run(both()) == list(range(20))


def test_a_client_may_be_closed_twice(server: ContractServer) -> None:
    client = Client(server.url)
    client.functions()

    client.close()
    client.close()


def test_the_key_never_shows_in_a_repr() -> None:
    assert "hush" not in repr(AsyncClient(key="hush")._transport.target)
